"""One process or many under ``torchrun``: who am I, and what is shared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import ArgumentError, explain


@dataclass
class Ranks:
    """The processes that train together.

    Parameters
    ----------
    rank, world : int
    device : torch.device
    started : bool
        Whether the process group was made here, and is ended here.
    """

    rank: int
    world: int
    device: torch.device
    started: bool = False

    @classmethod
    def find(cls, device: Any = None) -> Ranks:
        """From the environment that ``torchrun`` sets; without it, one process.

        Parameters
        ----------
        device : str or torch.device, optional
            By default the GPU of the local rank if there is one.

        Returns
        -------
        Ranks
        """
        world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        chosen = _device(device, local)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world == 1:
            return cls(0, 1, chosen)
        started = not dist.is_initialized()
        if started:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank, world, chosen, started)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are means over ranks."""
        if self.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over ranks."""
        return self.sum(value) / self.world

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def once(self, work: Callable[[], Any]) -> Any:
        """The result of work that the first rank does for all."""
        if self.world == 1:
            return work()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except Exception as error:  # the others must not wait for ever
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            dist.destroy_process_group()


def _device(device: Any, local: int) -> torch.device:
    if device is None:
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(explain(f"device={device!r} is not known", expected="such as 'cpu' or 'cuda:0'")) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(explain(f"device={device!r} isn't there", got="no CUDA GPU", do="Leave device= out"))
    return chosen
