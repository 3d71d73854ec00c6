"""Running a plan: block by block, every kept lead handed to where the forecast goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .cards import duration
from .errors import MosaicError, explain
from .model import Mosaic
from .plan import Plan
from .steps import clock_at, member_noise, rollout
from .store import MemorySink, ZarrSink


def run(plan: Plan, sink: MemorySink | ZarrSink, bar: Bar) -> None:
    """Make the forecast of a plan, block by block, and hand every kept lead that is missing to the sink."""
    network = plan.model.network.to(plan.device)
    if plan.dtype == torch.float64:
        network = network.double()
    compared = plan.compared()
    try:
        for starts, blocks in plan.blocks():
            missing = [(members, sink.missing(starts, members)) for members in blocks]
            if not any(leads.any() for _, leads in missing):
                if sink.wants_inputs(starts) and compared.intersection(range(starts.start, starts.stop)):
                    _histories(plan, starts, sink)
                bar.skip((starts.stop - starts.start) * plan.members * plan.steps)
                continue
            histories = _histories(plan, starts, sink)
            for members, leads in missing:
                _run_block(plan, network, histories, starts, members, leads, sink, bar)
    finally:
        if plan.dtype == torch.float64:
            plan.model.network.float()


def _histories(plan: Plan, starts: slice, sink: MemorySink | ZarrSink) -> np.ndarray:
    """Histories of some starts, once the sink has agreed that they are the ones it knows."""
    times = plan.state.starts[starts]
    histories = np.stack([plan.state.history(t) for t in times])
    if sink.wants_inputs(starts):
        sink.take_inputs(starts, [plan.digest(t, h) for t, h in zip(times, histories, strict=True)])
    return histories


@torch.inference_mode()
def _run_block(
    plan: Plan,
    network: Mosaic,
    histories: np.ndarray,
    starts: slice,
    members: slice,
    missing: np.ndarray,
    sink: MemorySink | ZarrSink,
    bar: Bar,
) -> None:
    model, times = plan.model, plan.state.starts[starts]
    numbers = range(plan.before + members.start + 1, plan.before + members.stop + 1)
    real = torch.float64 if plan.dtype == torch.float64 else torch.float32
    # a block that broke off begins again at its start: a stored lead is rounded, not the state that the network had
    wanted = {plan.kept[i]: i for i in np.flatnonzero(missing).tolist()}
    steps = max(wanted, default=0)

    def tensor(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), device=plan.device).to(real)

    def noise(step: int) -> torch.Tensor | None:
        size = model.config.noise_dim
        return tensor([member_noise(plan.seed, t, numbers, step, size) for t in times]) if size else None

    def forcing(step: int) -> torch.Tensor | None:
        if not model.schema.forcing:
            return None
        return tensor([plan.state.forcing(t + (step + 1) * model.step) for t in times]).unsqueeze(1)

    history = tensor(histories).unsqueeze(1).expand(-1, len(numbers), *histories.shape[1:])
    autocast = plan.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(plan.device.type, dtype=plan.dtype if autocast else None, enabled=autocast):
        states = rollout(
            network, history, lambda step: tensor([clock_at(model, t, step) for t in times]), noise, steps, forcing
        )
        for step, state in enumerate(states, 1):
            sink.check()
            _check_finite(plan, state, step)
            if step in wanted:
                sink.write(starts, members, wanted[step], _fields(plan, state))
            bar.update(len(times) * len(numbers))
    bar.skip((plan.steps - steps) * len(times) * len(numbers))
    sink.end_block()


def _fields(plan: Plan, state: torch.Tensor) -> Callable[[], Mapping[str, np.ndarray]]:
    """What makes physical fields of a state, perhaps in another thread while the next step is computed."""
    if state.device.type != "cuda":
        return functools.partial(plan.fields.physical, state)
    made = torch.cuda.Event()
    made.record()

    def bring() -> Mapping[str, np.ndarray]:
        # beside the next step, not behind it
        with torch.cuda.stream(_side(state.device)):
            made.wait()
            fields = plan.fields.physical(state)
        return fields

    return bring


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


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
    """Progress over member-steps, shown once a second has passed."""

    def __init__(self, plan: Plan, show: bool) -> None:
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
        self._bar.update(count)

    def skip(self, count: int) -> None:
        """So many were done before: they say nothing of the speed."""
        if not self._bar.disable:
            self._bar.initial += count
            self._bar.update(count)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
