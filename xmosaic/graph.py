"""Work on the GPU as one CUDA graph: a small network waits for launches more than for arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Result = TypeVar("Result")
Inputs = Mapping[str, torch.Tensor | None]

# Recording waits for the GPU and gives back memory: one thread at a time.
_RECORDING = threading.Lock()


class Captured(Generic[Result]):
    """A function of tensors, recorded at the first call with tensors of these shapes and replayed from then on.

    The kernels and their order are those of the function, so the numbers are too.

    Parameters
    ----------
    compute : callable
        Inputs → tensors; must not wait for the GPU, look at a value, or change anything but the gradients of `weights`.
    weights : sequence of Parameter
        Those that get gradients; their tensors must stay where they are.
    warm_up : int
        Calls before the one that is recorded: first uses choose kernels and allocate workspaces, which can't be.

    Notes
    -----
    The memory of one call, activations and all, is kept between calls. Results are overwritten by the next one.
    """

    def __init__(
        self, compute: Callable[[Inputs], Result], weights: Sequence[nn.Parameter] = (), warm_up: int = 2
    ) -> None:
        self._compute, self._weights, self._warm_up = compute, [w for w in weights if w.requires_grad], warm_up
        self._graph: Any = None
        self._inputs: dict[str, torch.Tensor | None] = {}
        self._gradients: list[torch.Tensor | None] = []
        self._result: Result

    def __call__(self, inputs: Inputs) -> Result:
        """What `compute` gives, and its gradients at the weights.

        Parameters
        ----------
        inputs : mapping of str to Tensor or None
            On the GPU.
        """
        if self._graph is None or _shapes(inputs) != _shapes(self._inputs):
            self.forget()
            with _RECORDING:
                self._capture(inputs)
        for name, given in inputs.items():
            own = self._inputs[name]
            if own is not None and given is not None:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._result

    @property
    def recorded(self) -> bool:
        """Whether there is something to replay."""
        return self._graph is not None

    def forget(self) -> None:
        """Give back the memory; the next call is recorded anew."""
        self._graph, self._inputs, self._gradients = None, {}, []
        self.__dict__.pop("_result", None)

    def _capture(self, inputs: Inputs) -> None:
        self._inputs = {n: None if t is None else t.clone() for n, t in inputs.items()}
        # on another stream, for tensors of this one are not the graph's
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self._warm_up):
                self._clear()
                self._compute(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._clear()
        graph = torch.cuda.CUDAGraph()
        # on a stream of this device: by default torch records on that of the first device that recorded anything;
        # and threads that read data ahead may allocate page-locked memory meanwhile
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self._result = self._compute(self._inputs)
        self._graph, self._gradients = graph, [w.grad for w in self._weights]

    def _clear(self) -> None:
        for weight in self._weights:
            weight.grad = None


class Recorded:
    """A network on a GPU whose first step with inputs of some shapes is launched, and whose others are replayed.

    Parameters
    ----------
    network : callable
        ``network(history, clock, noise)``, such as a `Mosaic` without gradients.
    """

    def __init__(self, network: Callable[..., torch.Tensor]) -> None:
        self._network = network
        self._launched: dict[str, Any] = {}
        # the step that is launched before is its warm-up
        self._graph = Captured(lambda given: network(*given.values()), warm_up=0)

    @property
    def recorded(self) -> bool:
        """Whether the next step of the same shapes will be replayed without anything being launched."""
        return self._graph.recorded

    def __call__(self, history: torch.Tensor, clock: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """The network's next state, a tensor of its own."""
        inputs = {"history": history, "clock": clock, "noise": noise}
        if _shapes(inputs) != self._launched:
            self._graph.forget()
            self._launched = _shapes(inputs)
            return self._network(history, clock, noise)
        return self._graph(inputs).clone()


def _shapes(inputs: Inputs) -> dict[str, Any]:
    return {name: None if t is None else (t.shape, t.dtype) for name, t in inputs.items()}
