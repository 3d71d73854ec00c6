"""Is a network that was kept on a device the one that the next forecast means?"""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import make_dataset, make_model

import xmosaic
from xmosaic import ready
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")  # nothing is computed there
HEADS = {"num_heads": 2, "num_kv_heads": 1, "local_size": 4, "block_size": 4, "block_count": 2}
WIDE = torch.float32


class Stand:
    """Stands for `Recorded`: counts its steps, and says that it has recorded from the second on."""

    made = 0

    def __init__(self, network):
        self.network, self.steps = network, 0
        Stand.made += 1

    @property
    def recorded(self):
        return self.steps > 1

    def __call__(self, *inputs):
        self.steps += 1
        return self.network(*inputs)


def network():
    import numpy as np

    config = MosaicConfig(
        stages=(StageConfig(nside=2, dim=16, **HEADS),),
        bottleneck=StageConfig(nside=1, dim=16, decoder_depth=0, **HEADS),
        num_variables=1,
        num_neighbors=4,
    )
    made = Mosaic(config, np.arange(0, 360, 60.0), np.linspace(-90, 90, 4))
    return made.requires_grad_(False).eval()


INPUTS = (torch.zeros(1, 2, 2, 6, 4, 1), torch.zeros(1, 2), torch.ones(1, 2, 32))


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.setattr(ready, "Recorded", Stand)
    # the second device's copy lies in this memory too
    monkeypatch.setattr(ready, "replica", lambda n, device, _: n if device == FIRST else copy.deepcopy(n))
    Stand.made = 0
    return ready.Shelf()


def lent(shelf, model, device=FIRST, dtype=WIDE, steps=2):
    with shelf.lend(model, device, dtype) as step:
        states = [step(*INPUTS) for _ in range(steps)]
    return step, states[-1]


def test_the_next_forecast_finds_what_the_last_has_recorded(shelf):
    model = network()
    first, a = lent(shelf, model)
    second, b = lent(shelf, model)
    assert second is first and torch.equal(a, b) and Stand.made == 1
    other, _ = lent(shelf, model, SECOND)
    assert other is not first and lent(shelf, model, SECOND)[0] is other and lent(shelf, model)[0] is first


@pytest.mark.parametrize("change", ["other", "dtype", "moved", "impl", "precision"])
def test_what_a_recording_depends_on_makes_a_new_one(shelf, change, monkeypatch):
    model = network()
    first, _ = lent(shelf, model)
    dtype = WIDE
    if change == "other":
        model = network()
    elif change == "dtype":
        dtype = torch.bfloat16
    elif change == "moved":
        model.double().float()
    elif change == "impl":
        model.impl = "reference"
    else:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert lent(shelf, model, dtype=dtype)[0] is not first


@pytest.mark.parametrize("device", [FIRST, SECOND])
def test_new_values_of_weights_are_followed_on_every_device(shelf, device):
    model = network()
    first, old = lent(shelf, model, device)
    for p in model.parameters():
        p.data.mul_(1.5)  # no counter of versions sees this
    again, new = lent(shelf, model, device)
    assert again is first and torch.equal(new, model(*INPUTS)) and not torch.equal(new, old)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_were_rounded_before_give_the_bits_of_autocast(dtype):
    model = network()
    rounded = ready.replica(model, torch.device("cpu"), dtype)
    with torch.autocast("cpu", dtype):
        assert torch.equal(rounded(*INPUTS), model(*INPUTS))
    assert all(p.dtype == dtype for p in rounded.parameters()) and all(p.dtype == WIDE for p in model.parameters())
    assert all(a is b for a, b in zip(rounded.buffers(), model.buffers(), strict=True))  # tables are not kept twice


def test_rounded_weights_follow_the_network():
    model = network()
    half = ready._Ready(model, torch.device("cpu"), torch.bfloat16, ())
    for p in model.parameters():
        p.data.mul_(1.5)
    half.follow(model)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(half._copy.parameters(), model.parameters(), strict=True))


def test_weights_in_eight_bits_follow_the_network():
    """They come from the network's own, not from those that were rounded to 16 bits."""
    model = network()
    model.impl = "reference"
    with ready.arranged(model, torch.device("cpu"), torch.float8_e4m3fn):
        eight = ready._Ready(model, torch.device("cpu"), ready.NARROW[torch.float8_e4m3fn], ())
    for p in model.parameters():
        p.data.mul_(1.5)
    eight.follow(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, wide = eight._copy(*INPUTS), model(*INPUTS)
        assert torch.equal(got, model.use_float8()(*INPUTS)) and not torch.equal(got, wide)


def test_what_a_recording_reads_beside_weights_and_tables_is_held(shelf):
    """A network that goes to another device and comes back makes its patches anew, maybe where the old ones were."""
    model = network()
    layer = model.interp_to_hp
    patches = layer.shared.of(layer.direction, layer.neighbors)
    first, _ = lent(shelf, model)
    layer.shared.patches = None
    assert shelf._kept[FIRST]._held[0] is patches and shelf._kept[FIRST].step is first


def test_two_forecasts_at_once_have_a_step_each(shelf):
    model = network()
    with shelf.lend(model, FIRST, WIDE) as one, shelf.lend(model, FIRST, WIDE) as two:
        assert one is not two


def test_a_step_that_failed_or_was_never_recorded_is_not_kept(shelf):
    model = network()
    seen = []

    def broken():
        with shelf.lend(model, FIRST, WIDE) as step:
            seen.extend([step, step(*INPUTS), step(*INPUTS)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    single, _ = lent(shelf, model, steps=1)
    assert single is not seen[0] and lent(shelf, model)[0] is not single


def test_a_network_that_goes_takes_its_recording_with_it(shelf):
    model, other = network(), network()
    lent(shelf, model)
    lent(shelf, other, SECOND)
    del model
    gc.collect()
    assert list(shelf._kept) == [SECOND]
    shelf.clear()
    assert not shelf._kept


def test_many_forecasts_from_many_threads_are_all_right(shelf):
    """Networks that come and go, on two devices, as tasks of dask would have it."""
    models, bad = [network() for _ in range(3)], []

    def work(seed):
        for i in range(10):
            model = models[(seed + i) % 3]
            if not torch.equal(lent(shelf, model, (FIRST, SECOND)[i % 2])[1], model(*INPUTS)):
                bad.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad


def test_on_a_cpu_nothing_is_recorded_or_kept():
    shelf, model = ready.Shelf(), network()
    with shelf.lend(model, torch.device("cpu"), WIDE) as step:
        assert step is model
    assert not shelf._kept


# Turns

CPU = torch.device("cpu")


def test_threads_that_want_the_same_have_the_network_at_once():
    model, met = network(), threading.Barrier(3, timeout=20)

    def work():
        with ready.arranged(model, CPU, WIDE):
            met.wait()  # breaks unless all are in

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not met.broken


def test_another_arithmetic_waits_for_its_turn_and_leaves_everything_as_it_was():
    model, order, inside = network(), [], threading.Event()

    def wide():
        with ready.arranged(model, CPU, torch.float64) as own:
            order.append(next(own.parameters()).dtype)

    with ready.arranged(model, CPU, WIDE):
        thread = threading.Thread(target=lambda: (inside.set(), wide()))
        thread.start()
        inside.wait()
        thread.join(0.2)
        order.append(next(model.parameters()).dtype)
    thread.join(20)
    assert order == [torch.float32, torch.float64]
    assert next(model.parameters()).dtype == torch.float32
    assert not any(getattr(m, "float8", False) for m in model.modules())


def test_eight_bits_last_as_long_as_anyone_uses_them():
    model, layers = network(), []
    with ready.arranged(model, CPU, torch.float8_e4m3fn):
        with ready.arranged(model, CPU, torch.float8_e4m3fn):
            pass
        layers = [m.float8 for m in model.modules() if hasattr(m, "float8")]
    assert layers and all(layers)


def test_a_network_that_could_not_be_arranged_is_free_again(monkeypatch):
    model = network()
    with monkeypatch.context() as patch:
        patch.setattr(Mosaic, "use_float8", lambda self, on: 1 / 0 if on else self)
        with pytest.raises(ZeroDivisionError), ready.arranged(model, CPU, torch.float8_e4m3fn):
            pass
    with ready.arranged(model, CPU, torch.float64) as own:
        assert next(own.parameters()).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32


def test_forecasts_of_one_model_in_several_threads_are_those_made_alone():
    ds, model = make_dataset(), make_model()

    def forecast(dtype):
        return xmosaic.forecast(ds, "3D", 2, model=model, dtype=dtype, progress=False)

    alone = {dtype: forecast(dtype) for dtype in ("float32", "float64", "bfloat16")}
    with ThreadPoolExecutor(6) as pool:
        for dtype, made in [(d, pool.submit(forecast, d)) for d in list(alone) * 3]:
            assert made.result().equals(alone[dtype]), dtype
