"""Weights in shards (FSDP2): how a module is cut, and tensors that are cut or not treated alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..model import Block


def shard_module(module: nn.Module, mesh: Any, precision: str) -> nn.Module:
    """Cut a module's weights by rows over the ranks of a mesh: each block on its own, and the rest together.

    Gathered weights are given back after use, the rest's too: after a validation with the running mean, weights that
    were still gathered would be taken for the present ones.

    Parameters
    ----------
    module : RolloutLoss
        Changed in place; `requires_grad` must be as it is to stay.
    mesh : DeviceMesh, one dimension
    precision : {"float32", "bfloat16"}
        bfloat16: what is gathered is half as large. It is what autocast would round the weights to, and gradients are
        summed in float32.

    Returns
    -------
    Module
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    half = (torch.bfloat16, torch.float32) if precision == "bfloat16" else (None, None)
    policy = MixedPrecisionPolicy(param_dtype=half[0], reduce_dtype=half[1], cast_forward_inputs=False)
    for part in [*(m for m in module.modules() if isinstance(m, Block)), module]:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    register_fsdp_forward_method(module, "rollout")
    return module


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Own part, without gradient and sharing memory; of a tensor that isn't cut, all of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, without gradient; where it is cut, every rank must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy values to a tensor, of which this rank may have a part alone.

    Parameters
    ----------
    target : Tensor
        Changed in place.
    source : Tensor
        Cut like the target, or whole.
    """
    if isinstance(target, DTensor) and not isinstance(source, DTensor):
        mesh = target.device_mesh
        first = sum(rows_of(len(source), mesh.size())[: mesh.get_local_rank()])
        source = source[first : first + len(local(target))]
    local(target).copy_(local(source))


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights as they are now, by name: shards on their device, what is whole on the CPU."""
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    return {n: w.clone() if isinstance(w, DTensor) else w.to("cpu", copy=True) for n, w in weights.items()}


def rows_of(rows: int, world: int) -> list[int]:
    """How many rows of a tensor each rank has, as `torch.chunk` cuts.

    Examples
    --------
    >>> rows_of(10, 4)
    [3, 3, 3, 1]
    >>> rows_of(5, 4)
    [2, 2, 1, 0]
    """
    most = -(-rows // world)
    return [max(0, min(most, rows - rank * most)) for rank in range(world)]


def group_of(tensors: Sequence[torch.Tensor]) -> Any:
    """The process group over which tensors are cut, None where they aren't."""
    cut = [t for t in tensors if isinstance(t, DTensor)]
    return cut[0].device_mesh.get_group() if cut else None
