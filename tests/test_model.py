"""Is the network the published one, and does each of its parts do what its definition says?"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import healpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xmosaic
from xmosaic import healpix
from xmosaic.errors import ArgumentError
from xmosaic.grid import LatLonGrid
from xmosaic.kernels import quantise_rows, rotate
from xmosaic.model import (
    BLOCK_ORDERS,
    BRANCHES,
    PUBLISHED,
    BlockSparseAttention,
    FeedForward,
    Mosaic,
    MosaicConfig,
    StageConfig,
    find_neighbors,
)

HERE = Path(__file__).parent
TINY = HERE / "data" / "tiny"
LONGITUDE, LATITUDE = np.arange(0, 360, 30.0), np.arange(-90, 91, 30.0)

spec = importlib.util.spec_from_file_location("parity", HERE / "parity.py")
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)

STAGE = StageConfig(4, 16, 4, 2, 64, 16, 4)
LAST = StageConfig(2, 24, 2, 1, 48, 8, 2, decoder_depth=0)


def config(**change) -> MosaicConfig:
    base = {"stages": (STAGE,), "bottleneck": LAST, "num_variables": 3, "num_static": 2, "num_neighbors": 4}
    return MosaicConfig(**base | change)


def network(seed=0, weights=None, static=None, **change) -> Mosaic:
    c = config(**change)
    static = np.random.default_rng(7).normal(size=(12, 7, c.num_static)) if static is None else static
    net = Mosaic(c, LONGITUDE, LATITUDE, static)
    if weights is None:
        net.init_weights(torch.Generator().manual_seed(seed))
    else:
        net.load_state_dict(weights)
    return net.eval()


def inputs(c: MosaicConfig, batch=1, member=2, seed=0, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    history = rng.normal(size=(batch, member, c.num_history, 12, 7, c.num_channels))
    noise = rng.normal(size=(batch, member, c.noise_dim)) if c.noise_dim else None
    arrays = (history, rng.random((batch, 2)), noise)
    return [None if a is None else torch.tensor(a, dtype=dtype) for a in arrays]


# ---- parity with the published format ----


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_outputs_are_those_of_the_fixture(name, request):
    path = TINY if name == "tiny" else request.getfixturevalue("shared") / "parity" / name
    found = parity.errors(path)
    assert {"one step", "rollout"} <= set(found)
    assert name == "tiny" or len(found) > 5  # activations too
    assert max(found.values()) <= parity.TOLERANCE, found


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_search_finds_the_tables_of_the_fixture(name, request):
    path = TINY if name == "tiny" else request.getfixturevalue("shared") / "parity" / name
    state = torch.load(path.with_suffix(".pt"), weights_only=True)["model_state_dict"]
    with np.load(path.with_suffix(".npz")) as arrays:
        longitude, latitude = arrays["longitude"], arrays["latitude"]
    to_mesh, to_grid = find_neighbors(parity.read_config(path)[0], longitude, latitude)
    np.testing.assert_array_equal(to_mesh, state["model.interp_to_hp.neighbors"])
    np.testing.assert_array_equal(to_grid, state["model.interp_to_ll.neighbors"])


def test_derived_tables_of_the_fixture_follow_from_the_configuration():
    state = torch.load(TINY.with_suffix(".pt"), weights_only=True)["model_state_dict"]
    net, arrays, _ = parity.load_fixture(TINY)
    attention = net.encoder_stages[0].blocks[0].attention
    pairs = {
        "static_vars": net.static_features[:, None],
        "interp_to_hp.rel_pos": net.interp_to_hp.direction,
        "interp_to_ll.rel_pos": net.interp_to_ll.direction,
        "downsample_layers.0.rel_pos": net.downsample_layers[0].position,
        "upsample_layers.0.rel_pos": net.upsample_layers[0].position,
        "encoder_stages.0.blocks.0.attention.q_rope.cos_freqs": attention.cos,
        "encoder_stages.0.blocks.0.attention.q_rope.sin_freqs": attention.sin,
        "bottleneck.blocks.0.attention.k_rope.sin_freqs": net.bottleneck.blocks[0].attention.sin,
    }
    for name, table in pairs.items():
        torch.testing.assert_close(
            table, state[f"model.{name}"], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n} {m}"
        )
    assert arrays["static"].shape[-1] == 3


def run_parity(path):
    command = [sys.executable, str(HERE / "parity.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)


def test_parity_command_says_yes():
    done = run_parity(TINY)
    assert done.returncode == 0, done.stderr
    assert "one step" in done.stdout
    assert "rollout" in done.stdout
    assert ">" not in done.stdout


def test_parity_command_says_no(tmp_path):
    for end in (".json", ".npz"):
        (tmp_path / f"bad{end}").write_bytes(TINY.with_suffix(end).read_bytes())
    contents = torch.load(TINY.with_suffix(".pt"), weights_only=True)
    contents["model_state_dict"]["model.bottleneck.blocks.0.ffn.w2.weight"][0, 0] += 0.1
    torch.save(contents, tmp_path / "bad.pt")
    done = run_parity(tmp_path / "bad")
    assert done.returncode == 1, done.stderr
    assert "> 1e-05" in done.stdout


@pytest.mark.parametrize(("variant", "number"), [("era5", 214_184_448), ("hres", 214_310_400)])
def test_published_variants_have_the_published_parameters(variant, number, request):
    c = PUBLISHED[variant]
    cells, points, k = c.stages[0].points, 240 * 121, c.num_neighbors
    tables = (np.zeros((cells, k), np.int32), np.zeros((points, k), np.int32))
    with torch.device("meta"):
        net = Mosaic(c, np.arange(240) * 1.5, np.arange(121) * 1.5 - 90, np.zeros((240, 121, 3)), tables)
    shapes = {f"model.{n}": list(p.shape) for n, p in net.named_parameters()}
    assert sum(math.prod(s) for s in shapes.values()) == number
    assert not net.state_dict().keys() - {n.removeprefix("model.") for n in shapes}  # tables are not weights
    listed = request.getfixturevalue("shared") / "parity" / f"published_{variant}_params.json"
    assert shapes == json.loads(listed.read_text())


# ---- configuration ----

powers = st.integers(0, 5).map(lambda n: 2**n)


@st.composite
def configs(draw):
    nside, depth = draw(st.integers(0, 3)), draw(st.integers(1, 2))
    stages = [draw(stage(2 ** (nside + depth - i), last=i == depth)) for i in range(depth + 1)]
    branches = draw(st.lists(st.sampled_from(BRANCHES), min_size=1, unique=True))
    return MosaicConfig(
        stages=stages[:-1],
        bottleneck=stages[-1],
        branches=branches,
        num_variables=draw(st.integers(1, 100)),
        num_forcings=draw(st.integers(0, 5)),
        num_static=draw(st.integers(0, 5)),
        num_history=draw(st.integers(1, 5)),
        step_hours=draw(st.integers(1, 48)),
        noise_dim=draw(st.integers(0, 64)),
        residual=draw(st.booleans()),
        grouping=draw(st.sampled_from(["group", "strided"])),
        clock=draw(st.sampled_from(["calendar", "release"])),
        rope_theta=draw(st.floats(1, 1e6)),
        block_order=draw(st.sampled_from(BLOCK_ORDERS)),
    )


@st.composite
def stage(draw, nside, last):
    points, kv, group = 12 * nside**2, draw(st.integers(1, 4)), draw(st.integers(1, 4))
    sizes = [n for n in range(1, points + 1) if points % n == 0]
    block = draw(st.sampled_from(sizes))
    return StageConfig(
        nside,
        4 * draw(st.integers(1, 5)) * kv * group,
        kv * group,
        kv,
        draw(st.sampled_from(sizes)),
        block,
        draw(st.integers(1, points // block)),
        draw(st.integers(0, 3)),
        0 if last else draw(st.integers(0, 3)),
        draw(st.floats(1, 8)),
    )


@settings(max_examples=50, deadline=None)
@given(configs())
def test_config_survives_json(c):
    again = MosaicConfig.from_dict(json.loads(json.dumps(c.to_dict())))
    assert again == c
    assert hash(again) == hash(c)
    assert again.branches == tuple(b for b in BRANCHES if b in c.branches)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nside": 3}, "nside can't be used in this network. Found 3; expected a power of two"),
        ({"nside": 0}, "a power of two"),
        ({"nside": 4.0}, "nside can't be used in this network. Found 4.0; expected of type int"),
        ({"nside": "4"}, "Found '4'; expected of type int"),
        ({"nside": True}, "of type int"),
        ({"num_heads": 0}, "num_heads .* 1 or more"),
        ({"num_kv_heads": 3}, "num_kv_heads .* Found 3; expected a divisor of num_heads=4"),
        ({"num_kv_heads": 0}, "a divisor of num_heads"),
        ({"dim": 18}, "dim .* Found 18; expected num_heads=4 times a multiple of 4"),
        ({"dim": 24}, "times a multiple of 4"),
        ({"dim": 0}, "times a multiple of 4"),
        ({"dim": -16}, "times a multiple of 4"),
        ({"local_size": 50}, "local_size .* Found 50; expected a divisor of the 192 points of nside 4"),
        ({"block_size": 0}, "block_size .* a divisor of the 192 points"),
        ({"block_count": 13}, r"block_count .* Found 13; expected 1 to 12"),
        ({"block_count": 0}, "block_count .* 1 to 12"),
        ({"encoder_depth": -1}, r"depth .* \(-1, 1\); expected 0 or more"),
        ({"mlp_ratio": 0}, "mlp_ratio .* a number of at least"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio .* a number"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio .* a number"),
        ({"mlp_ratio": None}, "mlp_ratio .* of type float"),
    ],
)
def test_stage_refuses(change, text):
    with pytest.raises(ArgumentError, match=text):
        dataclasses.replace(STAGE, **change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stages": ()}, "stages .* at least one stage above the bottleneck"),
        ({"stages": (dataclasses.replace(STAGE, nside=8),)}, r"nside of the stages .* \[8, 2\]; expected each half"),
        ({"bottleneck": dataclasses.replace(LAST, decoder_depth=1)}, "bottleneck.decoder_depth .* encoder blocks only"),
        ({"bottleneck": {"nside": 2}}, "stages and bottleneck .* expected StageConfig"),
        ({"num_variables": 0}, "num_variables .* Found 0; expected 1 or more"),
        ({"num_forcings": -1}, "num_forcings .* 0 or more"),
        ({"num_static": -1}, "num_static .* 0 or more"),
        ({"num_history": 0}, "num_history .* 1 or more"),
        ({"step_hours": 0}, "step_hours .* 1 or more"),
        ({"step_hours": 1.5}, "step_hours .* Found 1.5; expected of type int"),
        ({"num_neighbors": 0}, "num_neighbors .* 1 or more"),
        ({"noise_dim": -1}, "noise_dim .* 0 or more"),
        ({"residual": 1}, "residual .* of type bool"),
        ({"branches": ()}, "branches .* some of local, compressed, selected"),
        ({"branches": ("local", "lokal")}, "branches .*lokal.*some of local"),
        ({"grouping": "both"}, "grouping .* 'group' or 'strided'"),
        ({"clock": "sundial"}, "clock .* 'calendar' or 'release'"),
        ({"block_order": "ring"}, "block_order .* Found 'ring'; expected 'nested', 'rows' or 'shuffled'"),
        ({"block_order": None}, "block_order .* Found None"),
        ({"rope_theta": 0.0}, "rope_theta .* a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta .* a positive number"),
    ],
)
def test_config_refuses(change, text):
    with pytest.raises(ArgumentError, match=text):
        config(**change)


def test_config_from_dict_names_what_is_wrong():
    good = config().to_dict()
    with pytest.raises(ArgumentError, match="MosaicConfig has no field 'depth'"):
        MosaicConfig.from_dict(good | {"depth": 3})
    with pytest.raises(ArgumentError, match="MosaicConfig lacks num_variables"):
        MosaicConfig.from_dict({k: v for k, v in good.items() if k != "num_variables"})
    with pytest.raises(ArgumentError, match="StageConfig lacks dim"):
        MosaicConfig.from_dict(good | {"bottleneck": {k: v for k, v in good["bottleneck"].items() if k != "dim"}})
    with pytest.raises(ArgumentError, match="StageConfig has no field 'heads'"):
        MosaicConfig.from_dict(good | {"stages": [good["stages"][0] | {"heads": 2}]})


# ---- inputs ----


@pytest.mark.parametrize(
    ("place", "change", "text"),
    [
        (0, lambda h: h[0], r"history has another shape.*expected \(batch, member, 2, 12, 7, 3\)"),
        (0, lambda h: h[:, :, 1:], "history has another shape"),
        (0, lambda h: h.transpose(3, 4), "history has another shape"),
        (0, lambda h: h[..., :2], "history has another shape"),
        (1, lambda c: c[0], r"clock has another shape. Found \(2,\); expected \(1, 2\)"),
        (1, lambda c: c.repeat(2, 1), "clock has another shape"),
        (2, lambda n: None, r"noise has another shape. Found none; expected \(1, 2, 32\)"),
        (2, lambda n: n[:, :1], "noise has another shape"),
        (2, lambda n: n[..., :31], "noise has another shape"),
    ],
)
def test_inputs_of_another_shape_are_refused(place, change, text):
    net = network()
    args = inputs(net.config)
    args[place] = change(args[place])
    with pytest.raises(ArgumentError, match=text):
        net(*args)


def test_network_refuses_what_is_not_on_its_grid():
    with pytest.raises(ArgumentError, match=r"static .* Found shape \(7, 12, 2\); expected \(longitude, latitude"):
        Mosaic(config(), LONGITUDE, LATITUDE, np.zeros((7, 12, 2)))
    with pytest.raises(ArgumentError, match=r"static .* Found shape \(12, 7, 0\)"):
        Mosaic(config(), LONGITUDE, LATITUDE)
    with pytest.raises(ArgumentError, match="num_neighbors .* Found 85; expected at most 84"):
        Mosaic(config(num_neighbors=85), LONGITUDE, LATITUDE, np.zeros((12, 7, 2)))
    tables = find_neighbors(config(), LONGITUDE, LATITUDE)
    with pytest.raises(ArgumentError, match=r"neighbors .* Found shape \(84, 4\); expected shape \(192, 4\)"):
        Mosaic(config(), LONGITUDE, LATITUDE, np.zeros((12, 7, 2)), tables[::-1])


# ---- the whole network ----


@torch.inference_mode()
def test_members_and_starts_are_independent():
    net = network()
    history, clock, noise = inputs(net.config, batch=2, member=3, dtype=torch.float32)
    y = net(history, clock, noise)
    assert y.shape == (2, 3, 12, 7, 3)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(history[:, order], clock, noise[:, order]), y[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(history.flip(0), clock.flip(0), noise.flip(0)), y.flip(0), rtol=1e-5, atol=1e-5)
    for b in range(2):
        for m in range(3):
            alone = net(history[b : b + 1, m : m + 1], clock[b : b + 1], noise[b : b + 1, m : m + 1])
            torch.testing.assert_close(alone[0, 0], y[b, m], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_noise_makes_the_members_differ():
    net = network()
    with torch.no_grad():  # initial noise weights are 0.01
        for name, p in net.named_parameters():
            if "noise" in name:
                p.mul_(100)
    history, clock, noise = inputs(net.config, member=2)
    history = history[:, :1].expand(-1, 2, *history.shape[2:])
    different = net(history, clock, noise)
    same = net(history, clock, noise[:, :1].expand(-1, 2, -1))
    assert (different[0, 0] - different[0, 1]).abs().max() > 1e-3
    torch.testing.assert_close(same[0, 0], same[0, 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same[0, 0], different[0, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(net(history, clock, noise), different)


@torch.inference_mode()
def test_without_noise_there_are_no_noise_parameters():
    net = network(noise_dim=0)
    assert not [n for n, _ in net.named_parameters() if "noise" in n]
    history, clock, none = inputs(net.config)
    assert none is None
    assert torch.equal(net(history, clock), net(history, clock))
    one = history[:, :1].expand(-1, 3, *history.shape[2:])
    y = net(one, clock)
    torch.testing.assert_close(y[:, 1:], y[:, :1].expand_as(y[:, 1:]), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_residual_adds_the_newest_state():
    direct = network(num_forcings=2)
    residual = network(weights=direct.state_dict(), residual=True, num_forcings=2)
    args = inputs(direct.config)
    expected = direct(*args) + args[0][:, :, -1, ..., :3]
    torch.testing.assert_close(residual(*args), expected, rtol=0, atol=0)


@torch.inference_mode()
def test_forcings_are_read_and_not_predicted():
    net = network(num_forcings=2)
    args = inputs(net.config)
    assert args[0].shape[-1] == 5
    y = net(*args)
    assert y.shape[-1] == 3
    args[0][:, :, -1, ..., 4] += 1
    assert (net(*args) - y).abs().max() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("history", [1, 3])
def test_every_time_of_the_history_is_read(history):
    net = network(num_history=history)
    args = inputs(net.config)
    y = net(*args)
    for t in range(history):
        changed = args[0].clone()
        changed[:, :, t] += 1
        assert (net(changed, *args[1:]) - y).abs().max() > 1e-4


def test_features_are_those_of_the_definition():
    """History oldest first, static fields, unit vector, then sine and cosine of day and year."""
    static = np.random.default_rng(7).normal(3, 5, size=(12, 7, 2))
    net = network(static=static)
    history, clock, _ = inputs(net.config, batch=2, member=2)
    found = net._features(history, clock).double().reshape(2, 2, 12, 7, -1)
    assert found.shape[-1] == net.config.input_width == 2 * 3 + 2 + 3 + 4
    unit = np.empty((12, 7, 3))
    for i, lon in enumerate(np.deg2rad(LONGITUDE)):
        for j, lat in enumerate(np.deg2rad(LATITUDE)):
            unit[i, j] = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    columns = np.concatenate([static, unit], -1)
    fixed = (columns - columns.mean((0, 1))) / (columns.reshape(84, -1).std(0, ddof=1) + 1e-6)
    for b in range(2):
        for m in range(2):
            h = history[b, m].double()
            day, year = (2 * np.pi * clock[b].double()).tolist()
            cycle = torch.tensor([np.sin(day), np.cos(day), np.sin(year), np.cos(year)]).expand(12, 7, 4)
            expected = torch.cat([h[0], h[1], torch.from_numpy(fixed), cycle], -1)
            torch.testing.assert_close(found[b, m], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_clock_has_period_one():
    net = network()
    history, clock, noise = inputs(net.config)
    y = net(history, clock, noise)
    for whole in ((1, 0), (0, 1), (3, -2)):
        shifted = net(history, clock + torch.tensor(whole), noise)
        torch.testing.assert_close(shifted, y, rtol=1e-4, atol=1e-4)
    for part in ((0.3, 0), (0, 0.3)):
        assert (net(history, clock + torch.tensor(part), noise) - y).abs().max() > 1e-3


def test_clock_is_not_rounded_to_half_precision():
    net = network().to(torch.bfloat16)
    history = inputs(net.config)[0]
    found = net._features(history.to(torch.bfloat16), torch.tensor([[0.0, 0.8412]]))[0, 0, -2:]
    expected = torch.tensor([math.sin(2 * math.pi * 0.8412), math.cos(2 * math.pi * 0.8412)])
    torch.testing.assert_close(found.float(), expected, rtol=0.004, atol=0.002)


@torch.inference_mode()
def test_float64_agrees_with_float32():
    net = network()
    args = inputs(net.config, dtype=torch.float64)
    single = net(*(a.float() for a in args))
    double = net.double()(*args)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert (single - double).abs().max() <= 1e-5 * double.abs().max()


@pytest.mark.parametrize("change", [{}, {"residual": True, "num_forcings": 1}, {"grouping": "strided"}])
def test_gradient_reaches_every_parameter(change):
    net = network(**change).train()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, p.shape[1] ** -0.5, generator=torch.Generator().manual_seed(p.numel()))
    net(*inputs(net.config)).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


def test_gradient_is_the_difference_quotient():
    net = network().double()
    args = inputs(net.config, dtype=torch.float64)
    rng = torch.Generator().manual_seed(3)
    direction = {n: torch.randn(p.shape, generator=rng, dtype=p.dtype) for n, p in net.named_parameters()}

    def loss():
        return net(*args).square().mean()

    loss().backward()
    slope = sum((p.grad * direction[n]).sum() for n, p in net.named_parameters())
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for n, p in net.named_parameters():
                p += step * direction[n]
            values.append(loss())
    # the picked blocks may change only if two scores are equal to 1e-6
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope.detach(), rtol=1e-5, atol=1e-8)


def test_init_weights_is_the_table():
    wide = StageConfig(4, 64, 4, 2, 64, 16, 4, mlp_ratio=4.0)
    last = StageConfig(2, 128, 4, 2, 48, 8, 2, decoder_depth=0)
    c = config(stages=(wide,), bottleneck=last)
    net = Mosaic(c, LONGITUDE, LATITUDE, np.random.default_rng(0).normal(size=(12, 7, 2)))
    assert net.init_weights(torch.Generator().manual_seed(1)) is net
    small = 0
    for name, p in net.named_parameters():
        out, into = p.shape
        if any(part in name for part in ("attention.to_o", "ffn.w2", "noise", "upsample")):
            std, small = 0.01, small + 1
        else:
            std = into**-0.5 * min(1, (out / into) ** 0.5)
        n = p.numel()
        assert abs(p.std().item() / std - 1) < 5 / math.sqrt(2 * n), name
        assert abs(p.mean().item()) < 5 * std / math.sqrt(n), name
    assert small == 3 * 3 + 1 + 2  # three blocks' to_o, w2 and noise_bias; to_noise; the upsampling's two
    again = Mosaic(c, LONGITUDE, LATITUDE, np.zeros((12, 7, 2))).init_weights(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    # a new network starts from the table too
    torch.manual_seed(1)
    fresh = Mosaic(c, LONGITUDE, LATITUDE, np.zeros((12, 7, 2)))
    for (name, a), b in zip(fresh.named_parameters(), net.parameters(), strict=True):
        assert abs(a.std() / b.std() - 1) < 10 / math.sqrt(2 * a.numel()), name


# ---- attention and its branches ----


def attention(branches=BRANCHES, stage=STAGE, seed=0, **change):
    module = BlockSparseAttention(config(branches=branches, **change), stage)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, p.shape[1] ** -0.5, generator=rng)
    return module.double().requires_grad_(False)


def features(stage=STAGE, batch=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, stage.points, stage.dim)))


def rotated(stage, x, theta=10000.0):
    """RoPE written out: pair (2i, 2i+1) turned by [lon·f, lat·f][i]."""
    lon, lat = (np.deg2rad(a) for a in healpix.cell_centres(stage.nside))
    half = stage.head_dim // 2
    frequency = [theta ** (-2 * j / half) for j in range(half // 2)]
    out = x.clone()
    for p in range(stage.points):
        for i, a in enumerate([lon[p] * f for f in frequency] + [lat[p] * f for f in frequency]):
            first, second = x[..., p, 2 * i], x[..., p, 2 * i + 1]
            out[..., p, 2 * i] = first * math.cos(a) - second * math.sin(a)
            out[..., p, 2 * i + 1] = second * math.cos(a) + first * math.sin(a)
    return out


def literal_attention(module, x, branches, grouping):
    """The three branches with a dense mask each, head by head, and their gate."""
    s = module.stage
    n, d, group = s.points, s.head_dim, s.num_heads // s.num_kv_heads
    blocks = n // s.block_size
    gate = (x @ module.to_strategy_combine_mlp.weight.T).view(n, s.num_heads, len(branches)).softmax(-1)
    q = rotated(s, (x @ module.to_q.weight.T).view(n, s.num_heads, d).transpose(0, 1))
    k = rotated(s, (x @ module.to_k.weight.T).view(n, s.num_kv_heads, d).transpose(0, 1))
    v = (x @ module.to_v.weight.T).view(n, s.num_kv_heads, d).transpose(0, 1)
    qm, km, vm = (t.view(-1, blocks, s.block_size, d).mean(2) for t in (q, k, v))
    place = torch.arange(n)
    out = torch.zeros(n, s.num_heads, d, dtype=x.dtype)
    for i in range(s.num_heads):
        h = i // group
        logits = q[i] @ k[h].T / math.sqrt(d)
        for b, branch in enumerate(branches):
            if branch == "local":
                mask = place[:, None] // s.local_size == place // s.local_size
                result = logits.masked_fill(~mask, -math.inf).softmax(-1) @ v[h]
            elif branch == "compressed":
                result = (qm[i] @ km[h].T / math.sqrt(d)).softmax(-1) @ vm[h]
                result = result[place // s.block_size]
            else:
                own = range(h * group, h * group + group)
                heads = own if grouping == "group" else [h + g * s.num_kv_heads for g in range(group)]
                score = torch.stack([qm[j] @ km[j // group].T for j in heads]).mean(0)
                picked = torch.zeros(blocks, blocks, dtype=torch.bool)
                picked.scatter_(1, score.topk(s.block_count, -1).indices, True)
                mask = picked[place[:, None] // s.block_size, place // s.block_size]
                result = logits.masked_fill(~mask, -math.inf).softmax(-1) @ v[h]
            out[:, i] += gate[:, i, b, None] * result
    return out.reshape(n, -1) @ module.to_o.weight.T


@pytest.mark.parametrize(
    "branches",
    [BRANCHES, ("local",), ("compressed",), ("selected",), ("local", "selected"), ("compressed", "selected")],
)
@pytest.mark.parametrize("grouping", ["group", "strided"])
def test_attention_is_the_gated_sum_of_its_branches(branches, grouping):
    module, x = attention(branches, grouping=grouping), features()
    assert module.to_strategy_combine_mlp.weight.shape == (len(branches) * 4, 16)
    # angles are rounded to float32
    torch.testing.assert_close(module(x)[0], literal_attention(module, x[0], branches, grouping), rtol=1e-5, atol=1e-5)


def test_groupings_make_a_difference():
    x = features()
    own, strided = (attention(("selected",), grouping=g)(x) for g in ("group", "strided"))
    assert (own - strided).abs().max() > 1e-2


def influence(branches):
    """Points whose attention changes when the last block's input changes."""
    module, x = attention(branches), features()
    changed = x.clone()
    changed[:, -16:] += 1
    return ((module(changed) - module(x)).abs().amax(-1) > 1e-12)[0]


def test_local_branch_stays_in_its_block():
    reached = influence(("local",))
    assert not reached[:128].any()  # blocks of 64 points
    assert reached[128:].all()


@pytest.mark.parametrize("branches", [("compressed",), BRANCHES])
def test_compressed_branch_reaches_everywhere(branches):
    assert influence(branches).all()


# ---- which points share a block ----

FIRST_SHUFFLED = [79, 24, 180, 179, 31, 93, 48, 98]  # of nside 4


def in_order(order, seed=0, branches=BRANCHES, stage=STAGE):
    """The same weights with blocks in an order."""
    return attention(branches, stage, seed, block_order=order)


def test_orders_are_the_rows_of_the_mesh_and_one_fixed_shuffle():
    for nside in (1, 4, 16):
        cells = np.arange(12 * nside**2)
        rows = in_order("rows", stage=StageConfig(nside, 8, 1, 1, 12, 12, 1)).order.numpy()
        np.testing.assert_array_equal(rows, healpy.ring2nest(nside, cells))
        shuffled = in_order("shuffled", stage=StageConfig(nside, 8, 1, 1, 12, 12, 1)).order.numpy()
        np.testing.assert_array_equal(np.sort(shuffled), cells)
    # nothing may change it: networks are trained with it
    assert in_order("shuffled").order[:8].tolist() == FIRST_SHUFFLED
    # neighbours in it are as far apart as any two points
    x, y, z = healpy.pix2vec(16, shuffled, nest=True)
    points = np.stack([x, y, z], -1)
    assert abs((points[1:] * points[:-1]).sum(-1).mean()) < 5 * 3**-0.5 / np.sqrt(len(cells))


@pytest.mark.parametrize("name", ["rows", "shuffled"])
@pytest.mark.parametrize("branches", [BRANCHES, ("local",), ("compressed",), ("selected",)])
def test_an_order_is_the_permutation_of_points_by_hand(name, branches):
    """Points permuted, with their angles, into a layer whose blocks are contiguous; the result permuted back."""
    module, x = in_order(name, branches=branches), features(batch=2)
    plain = in_order("nested", branches=branches)
    place = module.order.tolist()
    plain.cos, plain.sin = (torch.stack([t[p] for p in place]) for t in (plain.cos, plain.sin))
    expected = torch.empty_like(x)
    expected[:, place] = plain(torch.stack([x[:, p] for p in place], 1))
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert (module(x) - in_order("nested", branches=branches)(x)).abs().max() > 1e-2


def test_with_full_attention_the_order_does_not_matter():
    full = dataclasses.replace(STAGE, block_count=12)
    x = features(stage=full)
    plain, *others = (in_order(o, branches=("selected",), stage=full)(x) for o in BLOCK_ORDERS)
    for other in others:
        torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


def test_nested_blocks_cost_nothing_and_every_order_has_the_same_weights():
    plain, *others = (in_order(o) for o in BLOCK_ORDERS)
    assert {n for n, _ in plain.named_buffers()} == {"cos", "sin"}
    for other in others:
        assert plain.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("name", ["era5", "hres"])
def test_published_blocks_follow_the_mesh(name):
    assert PUBLISHED[name].block_order == "nested"
    without = PUBLISHED[name].to_dict()
    del without["block_order"]  # as files written before there was a choice
    assert MosaicConfig.from_dict(without) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["rows", "shuffled"])
def test_the_order_reaches_every_stage_and_gradients_come_back(name):
    net = network(block_order=name)
    layers = [m for m in net.modules() if isinstance(m, BlockSparseAttention)]
    assert [len(m.order) for m in layers] == [192, 48, 192]
    state, clock, noise = inputs(net.config)
    net(state, clock, noise).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_a_checkpoint_keeps_the_order(tmp_path):
    static = np.zeros((12, 7, 0))
    net = network(block_order="shuffled", num_static=0, static=static)
    schema = xmosaic.Schema.from_variables({"geopotential": [500, 850], "2m_temperature": None})
    grid = LatLonGrid(tuple(LATITUDE.tolist()), tuple(LONGITUDE.tolist()))
    made = xmosaic.Model(net, schema, grid, np.zeros(3), np.ones(3), None, {"license": "BSD-3-Clause"})
    made.save(tmp_path / "a.safetensors")
    again = xmosaic.load_model(tmp_path / "a.safetensors")
    assert again.config.block_order == "shuffled"
    with torch.inference_mode():
        args = inputs(net.config)
        assert torch.equal(again.network(*args), net(*args))
        other = network(weights=net.state_dict(), num_static=0, static=static)
        assert (other(*args) - net(*args)).abs().max() > 1e-4


@pytest.mark.parametrize("name", BLOCK_ORDERS)
@pytest.mark.parametrize("branches", [BRANCHES, ("local",), ("compressed", "selected")])
def test_parts_are_what_each_branch_adds(name, branches):
    module, x = in_order(name, branches=branches), features(batch=2)
    parts = module.parts(x)
    assert parts.shape == (len(branches), *x.shape)
    torch.testing.assert_close(parts.sum(0), module(x), rtol=1e-12, atol=1e-12)
    for branch, part in zip(branches, parts, strict=True):
        if branch == "compressed":
            continue
        # a branch's own formula, times its gate
        only = in_order(name, branches=(branch,))
        for linear in ("to_q", "to_k", "to_v", "to_o"):
            getattr(only, linear).weight.copy_(getattr(module, linear).weight)
        logits = (x @ module.to_strategy_combine_mlp.weight.T).unflatten(-1, (4, -1)).softmax(-1)
        gate = logits[..., branches.index(branch)].repeat_interleave(4, -1)
        only.to_o.weight.copy_(torch.eye(16))
        torch.testing.assert_close(part, (gate * only(x)) @ module.to_o.weight.T, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_rotation_keeps_lengths_and_depends_on_differences(seed):
    module = attention()
    rng = np.random.default_rng(seed)
    q, k = (torch.from_numpy(rng.normal(size=(1, 1, 1, 4))).expand(1, 192, 1, 4) for _ in range(2))
    rq, rk = (rotate(x, module.cos, module.sin, 1)[0] for x in (q, k))
    torch.testing.assert_close(rq.norm(dim=-1), q.norm(dim=-1))
    product = rq[0, :, 0] @ rk[0, :, 0].T
    lon, lat = healpix.cell_centres(4)
    ring = np.flatnonzero(np.abs(lat) < 1e-6)[np.argsort(lon[np.abs(lat) < 1e-6])]  # evenly spaced
    assert len(ring) == 16
    for shift in range(16):
        pairs = product[ring[: 16 - shift], ring[shift:]]
        torch.testing.assert_close(pairs, pairs[:1].expand_as(pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [0, 5])
def test_feed_forward_is_the_formula(noise):
    module = FeedForward(STAGE, noise).double()
    x, z = features(batch=2), torch.randn(2, noise, dtype=torch.float64)
    a, b = (x @ w.T for w in module.w13.weight.chunk(2))
    if noise:
        a = a + (z @ module.noise_bias.weight.T)[:, None]
    expected = (a * torch.sigmoid(a) * b) @ module.w2.weight.T
    torch.testing.assert_close(module(x, z if noise else None), expected)


# ---- the way between resolutions ----


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def positions(nside):
    def unit(n):
        lon, lat = (np.deg2rad(a) for a in healpix.cell_centres(n))
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)

    p = np.stack(
        [np.concatenate([unit(2 * nside)[4 * i + c] - unit(nside)[i] for c in range(4)]) for i in range(12 * nside**2)]
    )
    return torch.from_numpy((p - p.mean(0)) / (p.std(0, ddof=1) + 1e-6))


def test_feed_forward_in_eight_bits_is_off_by_their_rounding():
    """Each product of e4m3 numbers is off by an eighth at most, sums by much less; the residual hides most of it."""
    net = network(stages=(dataclasses.replace(STAGE, dim=32),), bottleneck=dataclasses.replace(LAST, dim=48))
    net.impl = "reference"
    history, clock, noise = torch.randn(1, 2, 2, 12, 7, 3), torch.rand(1, 2), torch.randn(1, 2, 32)
    with torch.no_grad():
        wide, eight, again = (net.use_float8(on)(history, clock, noise) for on in (False, True, False))
    assert torch.equal(wide, again)
    assert 0 < (eight - wide).norm() <= 0.05 * wide.norm()
    layer, x = net.encoder_stages[0].blocks[0].ffn, torch.randn(2, 9, 32)
    with torch.no_grad():
        z = net._project_noise(noise)
        got = layer.from_rows(quantise_rows(x, impl="reference"), z, "reference")
        expected = layer(x, z, "reference")
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.from_rows(quantise_rows(x, impl="reference"), z, "reference").dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert 0.005 <= (got - expected).norm() / expected.norm() <= 0.1


def test_weights_kept_in_eight_bits_give_the_bits_of_those_rounded_at_each_step():
    """In the memory of the first ones, which a recording reads."""
    net = network(stages=(dataclasses.replace(STAGE, dim=32),), bottleneck=dataclasses.replace(LAST, dim=48))
    net.impl = "reference"
    inputs = torch.randn(1, 2, 2, 12, 7, 3), torch.rand(1, 2), torch.randn(1, 2, 32)
    used = copy.deepcopy(net).use_float8()
    layer, places = used.bottleneck.blocks[0].ffn, []
    with torch.no_grad():
        for _ in range(2):
            used.keep_float8(net)
            expected = net.use_float8()(*inputs)
            assert torch.equal(used(*inputs), expected)
            assert not torch.equal(net.use_float8(False)(*inputs), expected)
            places.append(layer._kept.first.values.data_ptr())
            for p in net.parameters():
                p.mul_(1.1)
            used.load_state_dict(net.state_dict())
        assert places[0] == places[1]
        expected = net.use_float8()(*inputs)
        assert not torch.equal(used(*inputs), expected)  # kept is kept
        assert torch.equal(used.use_float8()(*inputs), expected)


def test_eight_bits_are_refused_where_they_can_not_be():
    history, clock, noise = torch.randn(1, 1, 2, 12, 7, 3), torch.rand(1, 2), torch.randn(1, 1, 32)
    with pytest.raises(ArgumentError, match=r"float8 can't be used in this network. Found \[24, 96\]; .* of 16"):
        network().use_float8()
    net = network(stages=(dataclasses.replace(STAGE, dim=32),), bottleneck=dataclasses.replace(LAST, dim=48))
    with pytest.raises(ArgumentError, match="float8 has no gradient here"):
        net.use_float8()(history, clock, noise)
    if os.environ.get("TRITON_INTERPRET", "0") == "0":
        with torch.inference_mode(), pytest.raises(ArgumentError, match="float8 can't be used. Found device cpu"):
            net(history, clock, noise)


def test_down_and_up_are_the_formulas():
    net = network().double()
    down, up = net.downsample_layers[0], net.upsample_layers[0]
    rng = np.random.default_rng(0)
    fine, coarse, skip = (torch.from_numpy(rng.normal(size=s)) for s in ((2, 192, 16), (2, 48, 24), (2, 192, 16)))
    p = positions(2)
    x = torch.stack([fine[:, 4 * i : 4 * i + 4].reshape(2, 64) for i in range(48)], 1)
    expected = norm(x @ down.proj_x.weight.T + p @ down.proj_pos.weight.T)
    torch.testing.assert_close(down(fine), expected, rtol=1e-5, atol=1e-5)
    both = coarse @ up.proj_x.weight.T + p @ up.proj_pos.weight.T
    children = torch.stack([both[:, i // 4, 16 * (i % 4) : 16 * (i % 4) + 16] for i in range(192)], 1)
    torch.testing.assert_close(up(coarse, skip), norm(children + skip), rtol=1e-4, atol=1e-5)


def test_interpolation_is_attention_to_the_neighbors():
    net = network().double()
    module, x = net.interp_to_hp, torch.from_numpy(np.random.default_rng(0).normal(size=(1, 84, 16)))
    key, value = (norm(x) @ module.to_kv.weight.T).chunk(2, -1)
    query = module.direction.double() @ module.to_q.weight.T  # (target, k, dim)
    out = torch.zeros(192, 16, dtype=torch.float64)
    for t in range(192):
        near = module.neighbors[t]
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            weights = ((query[t, :, part] * key[0, near, part]).sum(-1) / 2).softmax(0)
            out[t, part] = weights @ value[0, near, part]
    torch.testing.assert_close(module(norm(x))[0], out @ module.to_o.weight.T, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(3, 20), st.integers(3, 12), st.integers(1, 6))
def test_neighbors_are_the_nearest(nlon, nlat, k):
    longitude, latitude = np.arange(nlon) * 360 / nlon, np.linspace(-90, 90, nlat)
    to_mesh, to_grid = find_neighbors(config(num_neighbors=k), longitude, latitude)
    lon, lat = np.meshgrid(longitude, latitude, indexing="ij")
    points = [
        np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], -1)
        for a, b in (np.deg2rad([lon.ravel(), lat.ravel()]), np.deg2rad(healpix.cell_centres(4)))
    ]
    for table, source, target in ((to_mesh, *points), (to_grid, *points[::-1])):
        distance = np.linalg.norm(target[:, None] - source, axis=-1)
        found = np.take_along_axis(distance, table.astype(int), 1)
        np.testing.assert_allclose(found, np.sort(distance, 1)[:, :k], atol=2e-3)  # haversine of float32 radians
        assert all(len(set(row)) == k for row in table.tolist())


def test_a_source_at_the_target_has_no_direction():
    """Rows at the poles repeat one point; cells may lie on grid points."""
    lon, lat = healpix.cell_centres(4)
    longitude, latitude = np.array([lon[0], lon[0] + 120, lon[0] + 240]), np.array([-80.0, lat[0], 85.0])
    net = Mosaic(config(num_static=0, num_neighbors=1), longitude, latitude)
    at = net.interp_to_hp.neighbors[0].item()
    assert at == 1
    assert net.interp_to_hp.direction[0, 0].tolist() == [0, 0, 0]
    lengths = net.interp_to_hp.direction.norm(dim=-1)
    torch.testing.assert_close(lengths[lengths > 0], torch.ones(int((lengths > 0).sum())))
