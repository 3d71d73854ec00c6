"""Running a plan: block by block on its devices, every kept lead that is missing handed to where the forecast goes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .cards import duration
from .errors import MosaicError, explain
from .model import Mosaic
from .plan import Plan
from .ready import NARROW, SHELF, arranged
from .steps import Step, clock_at, member_noise, rollout
from .store import MemorySink, ZarrSink
from .store.writer import Writer

_TICK = 0.2  # seconds
# Triton compiles a kernel at its first launch, and nobody says that two threads may do so at once.
_COMPILING = threading.Lock()
# What has been launched once: device, arithmetic, rows and model.
_LAUNCHED: set[tuple[Any, ...]] = set()


def run(plan: Plan, sink: MemorySink | ZarrSink, bar: Bar) -> None:
    """Make the forecast of a plan, each block on the device that is free first, and hand it to the sink."""
    stop = threading.Event()
    tasks = _Shared(_tasks(plan, sink, bar), stop)
    threads = torch.get_num_threads()
    with arranged(plan.model.network, plan.device, plan.dtype) as network:
        if len(plan.devices) == 1:
            return _Worker(plan, sink, bar, stop).work(network, tasks)
        workers = [_Worker(plan.on(device), sink, bar, stop) for device in plan.devices]
        # libraries of matrix products keep the number of their threads per caller, and round by it
        with ThreadPoolExecutor(len(workers), "xmosaic device", torch.set_num_threads, (threads,)) as pool:
            busy = {pool.submit(worker.work, network, tasks) for worker in workers}
            try:
                while busy:
                    # a Ctrl-C that another thread receives doesn't wake one that waits without end
                    done, busy = wait(busy, _TICK, FIRST_COMPLETED)
                    for future in done:
                        future.result()
            except BaseException:  # Ctrl-C too
                stop.set()
                raise


# --------------------------------------------------------------------------------------------- what is to be made


@dataclass(frozen=True)
class _Task:
    """Starts and members that go through the network together."""

    starts: slice
    members: slice
    missing: np.ndarray  # bool (lead,)
    histories: np.ndarray  # (start, history, longitude, latitude, channel)


def _tasks(plan: Plan, sink: MemorySink | ZarrSink, bar: Bar) -> Iterator[_Task]:
    """Blocks that lack something, in the plan's order; a start is read when the first of its blocks is asked for."""
    compared = plan.compared()
    for starts, blocks in plan.blocks():
        missing = [(members, sink.missing(starts, members)) for members in blocks]
        many = starts.stop - starts.start
        if not any(leads.any() for _, leads in missing):
            if sink.wants_inputs(starts) and compared.intersection(range(starts.start, starts.stop)):
                _histories(plan, starts, sink)
            bar.skip(many * plan.members * plan.steps)
            continue
        histories = _histories(plan, starts, sink)
        for members, leads in missing:
            # no step is made beyond the last lead that is missing
            bar.skip((plan.steps - _steps(plan, leads)) * many * (members.stop - members.start))
            if leads.any():
                yield _Task(starts, members, leads, histories)


def _steps(plan: Plan, missing: np.ndarray) -> int:
    return max((plan.kept[i] for i in np.flatnonzero(missing)), default=0)


def _histories(plan: Plan, starts: slice, sink: MemorySink | ZarrSink) -> np.ndarray:
    """Histories of some starts, once the sink has agreed that they are the ones it knows."""
    times = plan.state.starts[starts]
    histories = np.stack([plan.state.history(t) for t in times])
    if sink.wants_inputs(starts):
        sink.take_inputs(starts, [plan.digest(t, h) for t, h in zip(times, histories, strict=True)])
    return histories


class _Shared:
    """Tasks that several threads share: each goes to the first that asks, until they are told to stop."""

    def __init__(self, tasks: Iterator[_Task], stop: threading.Event) -> None:
        self._tasks, self._stop, self._lock = tasks, stop, threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> _Task:
        with self._lock:
            if self._stop.is_set():
                raise StopIteration
            return next(self._tasks)


# --------------------------------------------------------------------------------------------------- on one device


class _Worker:
    """Makes blocks on one device. A thread beside it looks at the states, makes fields of them and hands those on.

    Parameters
    ----------
    plan : Plan
        As this device sees it.
    sink : MemorySink or ZarrSink
    bar : Bar
    stop : Event
        Set when another device has failed.
    """

    def __init__(self, plan: Plan, sink: MemorySink | ZarrSink, bar: Bar, stop: threading.Event) -> None:
        self.plan, self.sink, self.bar, self.stop = plan, sink, bar, stop

    def work(self, network: Mosaic, tasks: _Shared) -> None:
        """Make blocks until none is left."""
        device, dtype = self.plan.device, self.plan.dtype
        with _current(device), Writer() as hand, SHELF.lend(network, device, dtype) as step:
            for task in tasks:
                self._block(step, task, hand)
            hand.drain()

    @torch.inference_mode()
    def _block(self, network: Step, task: _Task, hand: Writer) -> None:
        plan = self.plan
        # a block that broke off begins again at its start: a stored lead is rounded, not the state the network had
        wanted = {plan.kept[i]: i for i in np.flatnonzero(task.missing).tolist()}
        dtype = NARROW.get(plan.dtype)
        # without its cache, which would go while what is recorded still reads from it
        with torch.autocast(plan.device.type, dtype, dtype is not None, cache_enabled=False):
            for step, state in enumerate(self._states(network, task), 1):
                if self.stop.is_set():
                    return
                self.sink.check()
                hand.put(functools.partial(self._take, task, state, step, wanted.get(step), _mark(plan.device)))
        hand.put(self.sink.end_block)

    def _states(self, network: Step, task: _Task) -> Iterator[torch.Tensor]:
        """States of a block after each step, (start, member, longitude, latitude, channel)."""
        plan, model, times = self.plan, self.plan.model, self.plan.state.starts[task.starts]
        numbers = range(plan.before + task.members.start + 1, plan.before + task.members.stop + 1)
        size = model.config.noise_dim

        def clock(step: int) -> torch.Tensor:
            return self._tensor([clock_at(model, t, step) for t in times])

        def noise(step: int) -> torch.Tensor | None:
            return self._tensor([member_noise(plan.seed, t, numbers, step, size) for t in times]) if size else None

        def forcing(step: int) -> torch.Tensor | None:
            if not model.schema.forcing:
                return None
            return self._tensor([plan.state.forcing(t + (step + 1) * model.step) for t in times]).unsqueeze(1)

        histories = task.histories
        # members of their own, as after each further step: the same sums in the same order
        history = self._tensor(histories).unsqueeze(1).repeat_interleave(len(numbers), dim=1)
        states = rollout(network, history, clock, noise, _steps(plan, task.missing), forcing)
        return _launched(states, plan, len(times) * len(numbers))

    def _tensor(self, values: Any) -> torch.Tensor:
        real = torch.float64 if self.plan.dtype == torch.float64 else torch.float32
        tensor, device = torch.as_tensor(np.asarray(values)).to(real), self.plan.device
        # from pinned memory: from any other, a copy would wait for everything that the GPU was given before
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def _take(
        self, task: _Task, state: torch.Tensor, step: int, lead: int | None, made: torch.cuda.Event | None
    ) -> None:
        """Look at a state and hand on its fields, while the next step is computed."""
        with torch.inference_mode(), _beside(self.plan.device, made):
            _check_finite(self.plan, state, step)
            fields = None if lead is None else self.plan.fields.physical(state)
        if fields is not None and lead is not None:
            self.sink.write(task.starts, task.members, lead, fields)
        self.bar.update(state.shape[0] * state.shape[1])


def _launched(states: Iterator[torch.Tensor], plan: Plan, rows: int) -> Iterator[torch.Tensor]:
    """The states; where their first may compile kernels, it is made while no other device's is."""
    key = (plan.device, plan.dtype, rows, plan.model.sha256)
    if plan.device.type == "cuda" and key not in _LAUNCHED:
        with _COMPILING:
            first = next(states)
        _LAUNCHED.add(key)
        yield first
    yield from states


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device of a thread, whatever device its tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """The moment in the GPU's work at which a state is made."""
    if device.type != "cuda":
        return None
    made = torch.cuda.Event()
    made.record()
    return made


@contextlib.contextmanager
def _beside(device: torch.device, made: torch.cuda.Event | None) -> Iterator[None]:
    """On a GPU, work beside the next step, not behind it."""
    if made is None:
        yield
        return
    with torch.cuda.stream(_side(device)):
        made.wait()
        yield


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    # torch hands out the same few streams again and again: those of this priority are none that a step is recorded on
    return torch.cuda.Stream(device, priority=-1)


def _check_finite(plan: Plan, state: torch.Tensor, step: int) -> None:
    if bool(torch.isfinite(state).all()):
        return
    bad = (~torch.isfinite(state)).flatten(0, -2).any(0).nonzero().flatten().tolist()
    names = [plan.model.schema.state[i].name for i in bad]
    raise MosaicError(
        explain(
            f"The forecast is no longer finite after {duration(step * plan.model.step)}",
            got=f"NaN or infinite values in {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            do="Use dtype='float32' if it was a 16-bit one; otherwise the model is not stable this far from its data",
        )
    )


class Bar:
    """Progress over member-steps, shown once a second has passed; several threads may tell it of theirs."""

    def __init__(self, plan: Plan, show: bool) -> None:
        self._lock = threading.Lock()
        name = f"{plan.model.name}{' (UNTRAINED)' if plan.model.untrained else ''}"
        self._bar = tqdm(
            total=plan.rows * plan.steps,
            desc=f"forecast, {name}",
            unit="step",
            disable=not show,
            delay=1.0,
            dynamic_ncols=True,
        )

    def update(self, count: int) -> None:
        """So many member-steps are done."""
        with self._lock:
            self._bar.update(count)

    def skip(self, count: int) -> None:
        """So many were done before: they say nothing of the speed."""
        with self._lock:
            if self._bar.disable or not count:
                return
            self._bar.initial += count
            self._bar.update(count)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
