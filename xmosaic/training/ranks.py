"""One process or many under ``torchrun``: who am I, what do I work on, and what is shared."""

from __future__ import annotations

import atexit
import datetime
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from ..errors import ArgumentError, MosaicError, explain
from .config import TrainConfig

Parallel = Literal["ddp", "fsdp"]

# After so long without an answer a rank ends with an error, for another one hangs.
_TIMEOUT = datetime.timedelta(minutes=10)
# What the first rank does alone may take hours, such as statistics over decades; a dead one is noticed at once.
_PATIENCE = datetime.timedelta(days=2)


@dataclass(frozen=True)
class Layout:
    """What a rank works on: groups of samples × groups of members, those of one sample next to each other.

    Parameters
    ----------
    rank : int
    samples, members : int
        Numbers of groups; their product is the number of ranks.
    """

    rank: int
    samples: int
    members: int

    @property
    def sample(self) -> int:
        """Number of this rank's group of samples."""
        return self.rank // self.members

    @property
    def part(self) -> int:
        """Which part of their members it has."""
        return self.rank % self.members

    def own(self, members: int) -> range:
        """Numbers of this rank's members, from 1."""
        share = members // self.members
        return range(1 + self.part * share, 1 + (self.part + 1) * share)


def layout_of(rank: int, world: int, batch_size: int, members: int, member_ranks: int | None = None) -> Layout:
    """Spread samples over ranks, then members.

    Parameters
    ----------
    rank, world : int
    batch_size, members : int
        Samples per update, and members of each.
    member_ranks : int, optional
        How many ranks share the members of a sample; by default as few as there can be.

    Returns
    -------
    Layout

    Raises
    ------
    ArgumentError
        Where the ranks can't have equal shares.

    Examples
    --------
    >>> layout_of(5, world=8, batch_size=4, members=2)
    Layout(rank=5, samples=4, members=2)
    >>> layout_of(5, world=8, batch_size=16, members=2)
    Layout(rank=5, samples=8, members=1)
    """
    wanted = [n for n in range(1, world + 1) if world % n == 0] if member_ranks is None else [member_ranks]
    for parts in wanted:
        if 1 <= parts <= world and world % parts == 0 and batch_size % (world // parts) == 0 and members % parts == 0:
            return Layout(rank, world // parts, parts)
    asked = "" if member_ranks is None else f" with member_ranks={member_ranks}"
    raise ArgumentError(
        explain(
            f"{world} ranks can't share {batch_size} samples of {members} members{asked}",
            expected="ranks = a · b, where a divides batch_size and b (member_ranks) divides members",
            do=f"Take a batch_size that is a multiple of {world}, or another number of ranks"
            + ("" if member_ranks is None else ", or leave member_ranks out"),
        )
    )


@dataclass
class Ranks:
    """The processes that train together.

    Parameters
    ----------
    rank, world : int
    device : torch.device
    parallel : {"ddp", "fsdp"}
        Whether each rank has all weights, or a part of each.
    started : bool
        Whether the process group was made here; it ends with the process, or with an error.
    control, patient : process group, optional
        For words between ranks, on the CPU; the second waits as long as it takes.
    """

    rank: int
    world: int
    device: torch.device
    parallel: Parallel = "ddp"
    started: bool = False
    control: Any = None
    patient: Any = None
    _meshes: dict[int, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, device: Any = None, parallel: Parallel = "ddp") -> Ranks:
        """From the environment that ``torchrun`` sets; without it, one process.

        Parameters
        ----------
        device : str or torch.device, optional
            By default the GPU of the local rank if there is one.
        parallel : {"ddp", "fsdp"}

        Returns
        -------
        Ranks
        """
        if parallel not in ("ddp", "fsdp"):
            raise ArgumentError(explain(f"parallel={parallel!r} is not known", expected="'ddp' or 'fsdp'"))
        world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        if world == 1 and parallel == "fsdp":
            do = "Start with torchrun --nproc-per-node=N, or leave parallel out"
            raise ArgumentError(explain("parallel='fsdp' shares the weights among ranks", got="one process", do=do))
        chosen = _device(device, local)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", local if chosen.index is None else chosen.index)
            torch.cuda.set_device(chosen)
        if world == 1:
            return cls(0, 1, chosen)
        started = not dist.is_initialized()
        if started:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
            atexit.register(_end)
        return cls(rank, world, chosen, parallel, started, *_control_groups(dist.group.WORLD))

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank has a part of each weight alone."""
        return self.world > 1 and self.parallel == "fsdp"

    def can_capture(self, wanted: bool | None) -> bool:
        """Whether an update is recorded as a CUDA graph: as asked, by default where that can be.

        Raises
        ------
        ArgumentError
            If it is asked for and can't be.
        """
        can = self.world == 1 and self.device.type == "cuda"
        if wanted and not can:
            got = f"{self.world} rank{'s' * (self.world > 1)} on {self.device.type}"
            do = "Leave cuda_graph out"
            raise ArgumentError(explain("cuda_graph=True can't be done", got=got, expected="one rank on a GPU", do=do))
        return can if wanted is None else wanted

    def wrap(self, module: nn.Module, precision: str = "float32") -> nn.Module:
        """The module with gradients that are means over ranks, and under FSDP with weights in shards.

        Parameters
        ----------
        module : RolloutLoss
            Under DDP on the device; under FSDP anywhere: its tensors are moved, block by block.
        precision : {"float32", "bfloat16"}
            Of the weights that FSDP puts together for a while; the shards are float32.

        Returns
        -------
        Module
        """
        if self.world == 1:
            return module
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh

            from .shards import shard_module

            return shard_module(module, init_device_mesh(self.device.type, (self.world,)), precision)
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        # tables are the same everywhere, and nobody changes them
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)

    # --------------------------------------------------------------------------------------------- samples and members

    def layout(self, config: TrainConfig, stage: int, member_ranks: int | None = None) -> Layout:
        """What this rank works on in a stage; see `layout_of`."""
        return layout_of(self.rank, self.world, config.stages[stage].batch_size, config.members, member_ranks)

    def mesh(self, parts: int) -> Any:
        """Device mesh of samples × members, the latter shared by `parts` ranks; one of each kind for all time."""
        if parts not in self._meshes:
            from torch.distributed.device_mesh import init_device_mesh

            shape = (self.world // parts, parts)
            self._meshes[parts] = init_device_mesh(self.device.type, shape, mesh_dim_names=("sample", "member"))
        return self._meshes[parts]

    def gatherer(self, layout: Layout) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What puts the members of one sample together, for a loss over all of them; None where a rank has all."""
        if layout.members == 1:
            return None
        group = self.mesh(layout.members)["member"].get_group()
        return lambda own: _AllMembers.apply(own, group, layout)

    # --------------------------------------------------------------------------------------------------- what is shared

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
        """The result of work that the first rank does for all; its error is everyone's."""
        if self.world == 1:
            return work()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except Exception as error:  # the others must not wait for ever
                box[1] = error
        dist.broadcast_object_list(box, group=self.patient)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def each(self, work: Callable[[], Any]) -> Any:
        """The result of work that every rank does for itself; where one fails, all end with an error.

        Nobody must go on to something that all ranks take part in, and wait there for one that has gone.
        """
        error, result = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        failures = self._failures(error)
        if error is not None:
            raise error
        if failures:
            rank, text = failures[0]
            raise MosaicError(explain(f"Rank {rank} of {self.world} failed, so all end", got=text))
        return result

    def _failures(self, error: Exception | None) -> list[tuple[int, str]]:
        if self.world == 1:
            return []
        failed = torch.tensor(int(error is not None))
        dist.all_reduce(failed, group=self.control)  # a number first: texts cost more, and there are hardly ever any
        if not failed:
            return []
        texts = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        return [(rank, text) for rank, text in enumerate(texts) if text is not None]

    def gather(self, value: Any) -> list[Any]:
        """A value from each rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier(group=self.control)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # else it stays for a further run of this process: torchrun's store can't begin a group a second time
        if kind is not None:
            atexit.unregister(_end)  # NCCL would wait in vain for what the others never joined
            if self.started and self.device.type != "cuda":
                dist.destroy_process_group()


@functools.cache
def _control_groups(everyone: Any) -> tuple[Any, Any]:
    """Groups for words on the CPU: one that gives up in time, one that doesn't."""
    control, patient = (dist.new_group(backend="gloo", timeout=limit) for limit in (_TIMEOUT, _PATIENCE))
    return control, patient


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _AllMembers(torch.autograd.Function):
    """Members of one sample from all ranks that share them, (sample, member, …); gradients go to the own ones.

    Gradients of weights are means over all ranks, and what this sample gives is spread over the ranks of its members:
    so each part counts as many times as there are parts.
    """

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: Any, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(layout.members)]
        dist.all_gather(parts, own, group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        parts, own = ctx.layout.members, ctx.layout.part
        return grad.chunk(parts, dim=1)[own] * parts, None, None


def _device(device: Any, local: int) -> torch.device:
    if device is None:
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(explain(f"device={device!r} is not known", expected="such as 'cpu' or 'cuda:0'")) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        got = f"GPUs up to cuda:{count - 1}" if count else "no CUDA GPU"
        raise ArgumentError(explain(f"device={device!r} isn't there", got=got, do="Leave device= out"))
    return chosen
