"""Loss and gradients of an update as one CUDA graph: a small network waits for launches more than for arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Inputs = Mapping[str, torch.Tensor | None]
# Loss and loss by channel; the gradients are left at the weights.
Compute = Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]]

_WARM_UP = 2


class Captured:
    """Forward and backward pass of batches of one shape, recorded at the first and replayed from then on.

    The kernels and their order are those of `compute`, so the numbers are too.

    Parameters
    ----------
    compute : callable
        Inputs → loss and loss by channel; must not wait for the GPU, nor look at a value.
    weights : sequence of Parameter
        Those that get gradients; their tensors must stay where they are.

    Notes
    -----
    The memory of one update, activations and all, is kept between updates. The results are overwritten by the next one.
    """

    def __init__(self, compute: Compute, weights: Sequence[nn.Parameter]) -> None:
        self._compute, self._weights = compute, [w for w in weights if w.requires_grad]
        self._shapes: dict[str, Any] | None = None
        self._graph: Any = None
        self._inputs: dict[str, torch.Tensor | None] = {}
        self._gradients: list[torch.Tensor | None] = []
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and loss by channel, gradients at the weights.

        Parameters
        ----------
        inputs : mapping of str to Tensor or None
            On the GPU.

        Returns
        -------
        loss, by_channel : Tensor
        """
        shapes = {name: None if t is None else (tuple(t.shape), t.dtype) for name, t in inputs.items()}
        if shapes != self._shapes:
            self.forget()
            self._capture(inputs)
            self._shapes = shapes
        for name, given in inputs.items():
            target = self._inputs[name]
            if given is not None and target is not None:
                target.copy_(given, non_blocking=True)
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        assert self._result is not None
        return self._result

    def forget(self) -> None:
        """Give back the memory; the next batch is recorded anew."""
        self._graph = self._result = self._shapes = None
        self._inputs, self._gradients = {}, []

    def _capture(self, inputs: Inputs) -> None:
        self._inputs = {n: None if t is None else t.clone() for n, t in inputs.items()}
        # first uses choose kernels and allocate workspaces, which can't be recorded; and on another stream, for tensors
        # of this one are not the graph's
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._clear()
                self._compute(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._clear()
        self._graph = torch.cuda.CUDAGraph()
        # threads that read data ahead may allocate page-locked memory meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._compute(self._inputs)
        self._gradients = [w.grad for w in self._weights]

    def _clear(self) -> None:
        for weight in self._weights:
            weight.grad = None
