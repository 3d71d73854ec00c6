"""Networks made ready: on their devices and in their arithmetic, and on a GPU recorded, for the next forecast too."""

from __future__ import annotations

import atexit
import copy
import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .graph import Recorded
from .model import Mosaic, NeighborAttention
from .steps import Step

NARROW = {torch.float16: torch.float16, torch.bfloat16: torch.bfloat16, torch.float8_e4m3fn: torch.bfloat16}
"""What autocast is to, in an arithmetic: in 8 bits are the products of the feed-forward layers alone."""


class _Turn:
    """Who uses a network, and how."""

    def __init__(self) -> None:
        self.free, self.users, self.way = threading.Condition(), 0, (torch.device("cpu"), torch.float32)


_TURNS: weakref.WeakKeyDictionary[Mosaic, _Turn] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


@contextmanager
def arranged(network: Mosaic, device: torch.device, dtype: torch.dtype) -> Iterator[Mosaic]:
    """A network on a device and in an arithmetic, for all threads that want the same of it; others wait for their turn.

    Parameters
    ----------
    network : Mosaic
        Moved and changed where it is: its weights are the memory that counts.
    device : torch.device
    dtype : torch.dtype
        Of the weights for float64; of the feed-forward layers' products for float8_e4m3fn.

    Yields
    ------
    Mosaic
        The same.
    """
    with _GUARD:
        turn = _TURNS.setdefault(network, _Turn())
    with turn.free:
        turn.free.wait_for(lambda: not turn.users or turn.way == (device, dtype))
        turn.users += 1
        turn.way = device, dtype
        try:
            if turn.users == 1:
                network.to(device, torch.float64 if dtype == torch.float64 else None)
                network.use_float8(dtype == torch.float8_e4m3fn)
        except BaseException:  # no memory, for one
            _leave(network, turn)
            raise
    try:
        yield network
    finally:
        with turn.free:
            _leave(network, turn)


def _leave(network: Mosaic, turn: _Turn) -> None:
    turn.users -= 1
    if not turn.users:
        network.use_float8(False)
        if turn.way[1] == torch.float64:
            network.float()
        turn.free.notify_all()


class Shelf:
    """Keeps, for each GPU, the step that was recorded there last, until another one is, or its network is gone.

    Launching and recording a step of the full network takes a third of a second, and on several GPUs at once, where
    threads wait for one interpreter, twice that. A forecast of ten steps takes six seconds on one.

    Notes
    -----
    What is kept is used again if nothing that the recording holds has changed: where the weights and tables lie, the
    arithmetic, and the implementation. The weights' values may have; copies on other devices follow them. Two forecasts
    at the same time on one device don't share a recording: what is lent is not on the shelf.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.device, _Ready] = {}
        self._lock = threading.RLock()  # a network may go while it is held

    @contextmanager
    def lend(self, network: Mosaic, device: torch.device, dtype: torch.dtype) -> Iterator[Step]:
        """A step of a network on a device, in inference.

        Parameters
        ----------
        network : Mosaic
            On any device.
        device : torch.device
        dtype : torch.dtype
            Of the arithmetic that the caller sets.
        """
        if device.type != "cuda":
            yield replica(network, device)
            return
        state = _state(network, dtype)
        # weights are rounded once, not in each step
        ready = self._take(network, device, state) or self._make(network, device, NARROW.get(dtype), state)
        ready.follow(network)
        yield ready.step
        # after an error nobody knows what was recorded, and after a single step nothing was
        if ready.step.recorded:
            self._keep(ready)

    def clear(self) -> None:
        """Give back the memory of all that is kept."""
        with self._lock:
            self._kept.clear()

    def _take(self, network: Mosaic, device: torch.device, state: tuple[Any, ...]) -> _Ready | None:
        """What is kept, if it fits; what doesn't is forgotten, before another takes as much memory."""
        with self._lock:
            found = self._kept.pop(device, None)
        return found if found is not None and found.origin() is network and found.state == state else None

    def _keep(self, ready: _Ready) -> None:
        ready.hold()
        with self._lock:
            self._kept[ready.device] = ready

    def _make(self, network: Mosaic, device: torch.device, dtype: torch.dtype | None, state: tuple[Any, ...]) -> _Ready:
        ready = _Ready(network, device, dtype, state)
        # a network that goes takes its recording with it
        weakref.finalize(network, self._forget, weakref.ref(ready)).atexit = False
        return ready

    def _forget(self, reference: weakref.ref[_Ready]) -> None:
        ready = reference()
        with self._lock:
            if ready is not None and self._kept.get(ready.device) is ready:
                del self._kept[ready.device]


SHELF = Shelf()
atexit.register(SHELF.clear)  # while there still is a driver


class _Ready:
    """A network on a GPU with its recorded step; holds a copy that it has made, but not the network it was given."""

    def __init__(
        self, network: Mosaic, device: torch.device, dtype: torch.dtype | None, state: tuple[Any, ...]
    ) -> None:
        self.origin, self.device, self.state = weakref.ref(network), device, state
        there = replica(network, device, dtype)
        self._copy = None if there is network else there
        reference = weakref.ref(there)

        def step(*inputs: torch.Tensor | None) -> torch.Tensor:
            called = reference()
            assert called is not None  # whoever calls holds it
            return called(*inputs)

        self.step = Recorded(step)

    def hold(self) -> None:
        """Keep what a recording reads and the network may make anew: it is no buffer."""
        called = self._copy if self._copy is not None else self.origin()
        layers = () if called is None else called.modules()
        self._held = [m.shared.patches for m in layers if isinstance(m, NeighborAttention)]

    @torch.no_grad()
    def follow(self, network: Mosaic) -> None:
        """Give the copy the weights and tables that the network has today."""
        if self._copy is not None:
            for own, given in zip(_tensors(self._copy), _tensors(network), strict=True):
                if own is not given:
                    own.copy_(given, non_blocking=True)
            self._copy.keep_float8(network)


def _tensors(network: Mosaic) -> Iterator[torch.Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _state(network: Mosaic, dtype: torch.dtype) -> tuple[Any, ...]:
    """All that a recording depends on but the shapes of its inputs."""
    places = tuple((t.data_ptr(), t.dtype) for t in _tensors(network))
    ways = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    return places, dtype, network.impl, *ways


def replica(network: Mosaic, device: torch.device, dtype: torch.dtype | None = None) -> Mosaic:
    """A network on a device, with weights of a type: the one that was given if it is that, else one with weights, and
    on another device tables, of its own.
    """
    first = next(network.parameters())
    if first.device == device and dtype in (None, first.dtype):
        return network
    # straight to the device: copying first and moving then would take the weights' memory twice where they are
    moved: dict[int, Any] = {id(b): b.to(device) for b in network.buffers()}
    for p in network.parameters():
        moved[id(p)] = torch.nn.Parameter(p.detach().to(device, dtype), requires_grad=p.requires_grad)
    return copy.deepcopy(network, moved)
