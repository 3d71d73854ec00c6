"""Is what is recorded on a GPU the same as what is launched, and what is recorded when?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import xmosaic
from xmosaic import graph, ready
from xmosaic import run as running

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs need one")


class Noted:
    """Stands for `Captured`: computes, and notes what it is asked for."""

    def __init__(self, compute, warm_up):
        self.compute, self.calls, self.forgotten, self.warm_up = compute, [], 0, warm_up

    def __call__(self, inputs):
        self.calls.append({n: None if t is None else tuple(t.shape) for n, t in inputs.items()})
        return self.compute(inputs)

    def forget(self):
        self.forgotten += 1


def test_the_first_step_of_each_shape_is_launched_and_the_others_replayed(monkeypatch):
    monkeypatch.setattr(graph, "Captured", Noted)
    launched = []

    def network(history, clock, noise):
        launched.append(len(history))
        return history.sum(2) + noise[..., :1]

    step = graph.Recorded(network)
    for members in (4, 4, 4, 2, 2, 4):
        history, noise = torch.randn(members, 3, 5), torch.randn(members, 8)
        assert torch.equal(step(history, torch.zeros(1, 2), noise), history.sum(2) + noise[..., :1])
    assert launched == [4, 4, 4, 2, 2, 4]
    assert [call["history"][0] for call in step._graph.calls] == [4, 4, 2]
    assert step._graph.forgotten == 3
    assert step._graph.warm_up == 0


def test_what_a_step_gives_stays_when_the_next_is_made(monkeypatch):
    """A recorded step writes to the same memory each time."""
    place = torch.empty(2)

    class Same(Noted):
        def __call__(self, inputs):
            return place.copy_(inputs["history"])

    monkeypatch.setattr(graph, "Captured", Same)
    step = graph.Recorded(lambda history, clock, noise: history.clone())
    states = [step(torch.full((2,), float(i)), torch.zeros(2), None) for i in range(4)]
    assert [state.tolist() for state in states] == [[float(i)] * 2 for i in range(4)]


@GPU
def test_no_step_is_recorded_on_the_stream_of_the_work_beside():
    """Torch hands out 32 streams again and again; one that is recorded on can't be waited for."""
    seen = set()

    def compute(inputs):
        seen.add(torch.cuda.current_stream().cuda_stream)
        return inputs["x"] + 1

    for _ in range(40):
        graph.Captured(compute)({"x": torch.zeros(3, device="cuda")})
    beside = {running._side(torch.device("cuda", 0)).cuda_stream for _ in range(2)}
    assert len(seen) == 32 and len(beside) == 1 and not seen & beside


@GPU
def test_many_threads_forecast_on_one_gpu():
    """Each records steps of its own while others work."""
    ds, options = xmosaic.open_sample(), {"device": "cuda", "progress": False}
    expected = xmosaic.forecast(ds, "3D", 2, **options)

    def some(members):
        return xmosaic.forecast(ds, "3D", members, batch_size=2, **options)

    with ThreadPoolExecutor(4) as pool:
        for fc in pool.map(some, [2, 4, 6] * 8):
            for name in expected.data_vars:
                assert np.array_equal(fc[name][:2], expected[name]), name


class Launched:
    """Stands for `Recorded`: launches every step."""

    recorded = False

    def __init__(self, network):
        self.network = network

    def __call__(self, *inputs):
        return self.network(*inputs)


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_a_forecast_is_the_same_bits_recorded_or_launched(dtype, monkeypatch):
    ds = xmosaic.open_sample()

    def forecast():
        # two blocks, and one that is smaller
        return xmosaic.forecast(ds, "5D", 10, device="cuda", dtype=dtype, batch_size=4, progress=False)

    recorded, again = forecast(), forecast()
    for name in recorded.data_vars:
        assert np.array_equal(recorded[name], again[name]), name  # what was kept is replayed from the first step on
    ready.SHELF.clear()
    monkeypatch.setattr(ready, "Recorded", Launched)
    launched = forecast()
    for name in launched.data_vars:
        assert np.array_equal(recorded[name], launched[name]), name
