"""The benchmark atmosphere's scripts: areas, interpolation, calendar, omega, symmetries, sample, driver."""

import dataclasses
import importlib.util
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from benchmark_scripts import script
from hypothesis import given, settings
from hypothesis import strategies as st

import xmosaic
from xmosaic import MosaicConfig, StageConfig, diagnostics
from xmosaic.grid import LatLonGrid
from xmosaic.training.samples import TrainingData

HAS_CORE = all(importlib.util.find_spec(name) for name in ("jax", "dinosaur"))
needs_core = pytest.mark.skipif(not HAS_CORE, reason="needs jax and dinosaur: pip install 'xmosaic[benchmark]'")
pytestmark = pytest.mark.usefixtures("benchmark_scripts")

GRID = LatLonGrid.equiangular(64, 33)


def gaussian(nodes):
    sine, weights = np.polynomial.legendre.leggauss(2 * nodes)
    return sine, weights


# ---------------------------------------------------------------------------------------------------- coarse-graining


@pytest.mark.parametrize("truncation", [21, 42, 63, 85])
def test_coarse_graining_leaves_a_constant_and_the_area_mean(truncation):
    simulate = script("simulate")
    nodes = simulate.gaussian_nodes(truncation)
    assert 4 * nodes >= 3 * truncation + 1
    rows, columns = simulate.area_matrices(nodes, GRID)
    assert np.allclose(rows.sum(1), 1) and np.allclose(columns.sum(1), 1)
    rng = np.random.default_rng(truncation)
    field = rng.standard_normal((2 * nodes, 4 * nodes))
    coarse = rows @ field @ columns.T
    _, weights = gaussian(nodes)
    fine_mean = (weights[:, None] * field).sum() / (weights.sum() * field.shape[1])
    coarse_mean = float((GRID.cell_area() * coarse).sum() / (4 * np.pi))
    assert abs(coarse_mean - fine_mean) < 1e-6
    assert np.allclose(rows @ np.full(field.shape, 7.0) @ columns.T, 7.0, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 40), st.integers(5, 40))
def test_areas_are_those_that_a_fine_sampling_finds(nlat, nlon):
    """Against counting points of a fine grid that fall into both cells."""
    simulate = script("simulate")
    target = LatLonGrid.equiangular(nlon, nlat)
    rows, columns = simulate.area_matrices(16, target)
    _, weights = gaussian(16)
    edges = np.concatenate([[-1], -1 + np.cumsum(weights)])
    sine = (np.arange(200_000) + 0.5) / 100_000 - 1
    source = np.clip(np.searchsorted(edges, sine) - 1, 0, 31)
    bounds = np.sin(np.deg2rad(target.latitude_edges()))
    counted = np.histogram2d(np.clip(np.searchsorted(bounds, sine) - 1, 0, nlat - 1), source, [nlat, 32])[0]
    assert np.allclose(rows, counted / counted.sum(1, keepdims=True), atol=2e-3)
    longitude = (np.arange(200_000) + 0.5) * 360 / 200_000
    source = np.round(longitude / (360 / 64)).astype(int) % 64
    counted = np.histogram2d(np.round(longitude / (360 / nlon)).astype(int) % nlon, source, [nlon, 64])[0]
    assert np.allclose(columns, counted / counted.sum(1, keepdims=True), atol=2e-3)


# ----------------------------------------------------------------------------------------------------------- calendar


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.integers(30, 360), st.sampled_from([1, 2, 4]))
def test_each_trajectory_has_a_year_of_its_own_and_no_window_crosses(years, days, each):
    simulate = script("simulate")
    times = simulate.calendar(years, days, each)
    assert len(times) == years * days * each and times.is_monotonic_increasing and times.is_unique
    by_year = pd.Series(times.year).value_counts()
    assert len(by_year) == years and set(by_year) == {days * each}
    # a day after the last of a trajectory isn't there, so neither is a window that would reach into the next
    last = times[days * each - 1 :: days * each]
    assert not (last + pd.Timedelta("1D")).isin(times).any()


def test_a_year_too_long_for_the_calendar_is_refused():
    with pytest.raises(SystemExit, match="no gap"):
        script("simulate").calendar(3, 365)


def test_periods_are_apart_and_cover_all_years():
    periods = script("simulate").periods(12)
    assert periods == {"train": ("2001", "2010"), "validation": ("2011", "2011"), "test": ("2012", "2012")}


# ------------------------------------------------------------------------------------------------------------ dataset


def made_up(years=4, days=40, seed=0):
    """Smooth random fields in the order of `dynamics`, as a labelled Dataset."""
    simulate = script("simulate")
    chosen = dataclasses.replace(simulate.Settings(), years=years, days=days)
    rng = np.random.default_rng(seed)
    shape = (years, days, 4 + 5 * len(chosen.levels), 33, 64)
    usual = [280, 0, 0, 1e5]
    for height in (1.6e5, 1e5, 5.5e4, 3e4, 1.4e4):
        usual += [height, 250, 0, 0, 0]
    fields = rng.standard_normal(shape, dtype=np.float32) * 5 + np.array(usual, np.float32)[:, None, None]
    return simulate.to_dataset(fields, chosen, GRID, {}), fields


def test_the_dataset_has_every_channel_in_its_place():
    ds, fields = made_up(2, 3)
    flat = fields.reshape(6, -1, 33, 64)
    assert np.array_equal(ds["mean_sea_level_pressure"].values, flat[:, 3])
    assert np.array_equal(ds["vertical_velocity"].sel(level=500).values, flat[:, 4 + 5 * 2 + 4])
    assert np.array_equal(ds["geopotential"].sel(level=850).values, flat[:, 4 + 5 * 4])
    assert ds["vertical_velocity"].attrs["units"] == "Pa s-1"
    assert json.loads(ds.attrs["seeds"]) == [0, 1]
    assert not xmosaic.check(ds.isel(time=slice(3)), "bundled").problems


def test_the_store_comes_back_as_it_was_written(tmp_path):
    ds, _ = made_up(2, 11)
    script("simulate").write_store(ds, tmp_path / "a.zarr")
    back = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    xr.testing.assert_identical(back.compute().drop_encoding(), ds)
    assert back["geopotential"].dtype == np.float32


# ------------------------------------------------------------------------------------------------------------- sample


def test_the_sample_is_packed_and_keeps_its_values(tmp_path):
    sample = script("sample")
    ds, _ = made_up(3, 60)
    path = sample.write_sample(ds.sel(level=[250, 500, 850]), tmp_path / "sample.nc", first=5, days=40)
    with xr.open_dataset(path) as back:
        truth = ds.sel(time="2003", level=[250, 500, 850]).isel(time=slice(5, 45))
        assert back.sizes["time"] == 40 and (np.diff(back["time"].values) == np.timedelta64(1, "D")).all()
        for name in truth:
            step = float(truth[name].max() - truth[name].min()) / 65534
            assert back[name].dtype == np.float32
            assert float(abs(back[name] - truth[name]).max()) < 0.6 * step
    assert path.stat().st_size < 0.6 * truth.nbytes


# ------------------------------------------------------------------------------------------------------------ training


def tiny(deterministic=False):
    return MosaicConfig(
        stages=(StageConfig(4, 16, 1, 1, 64, 16, 2), StageConfig(2, 16, 1, 1, 16, 4, 2)),
        bottleneck=StageConfig(1, 16, 1, 1, 12, 4, 1, 1, 0),
        num_variables=1,
        num_neighbors=4,
        noise_dim=0 if deterministic else 4,
    )


@pytest.fixture
def resident():
    """The loader of a rollout of three steps, its Dataset, and the channels' statistics."""
    train = script("train")
    ds, _ = made_up(3, 12)
    schema = xmosaic.Schema.from_variables(train.VARIABLES)
    data = TrainingData(ds, schema, pd.Timedelta("1D"), 2)
    rng = np.random.default_rng(1)
    mean, std = rng.standard_normal(len(schema.state)), 1 + rng.random(len(schema.state))
    return train.Resident(data, data.windows(("2001", "2001"), 3), 3, 8, 5, mean, std, rank=0, world=1), ds, mean, std


def test_batches_are_turned_and_mirrored_states(resident):
    """Each sample is a window of the data, rolled and mirrored by hand in physical units."""
    loader, ds, mean, std = resident
    batch = next(loader.batches(0))
    assert batch.history.shape == (8, 2, 64, 33, 24) and batch.targets.shape == (8, 3, 64, 33, 24)
    draw = np.random.default_rng([5, 1, 0])
    turns, mirrors = draw.integers(64, size=8), draw.random(8) < 0.5
    assert len(set(mirrors)) == 2
    for i, (turn, mirror) in enumerate(zip(turns, mirrors, strict=True)):
        for k, channel in enumerate(loader.data.schema.state):
            field = ds[channel.variable] if channel.level is None else ds[channel.variable].sel(level=channel.level)
            truth = np.roll(field.sel(time=batch.starts[i] + pd.Timedelta("2D")).values, -turn, axis=1)
            if mirror:
                truth = truth[::-1] * (-1 if "v_component" in channel.variable else 1)
            found = batch.targets[i, 1, :, :, k].numpy().T * std[k] + mean[k]
            assert np.allclose(found, truth, rtol=1e-5, atol=1e-4)


def test_validation_takes_the_states_as_they_are(resident):
    loader, ds, mean, std = resident
    batch = loader.load(loader.windows.starts[[2]])
    truth = ds["temperature"].sel(level=500, time=batch.starts[0]).values
    k = [c.name for c in loader.data.schema.state].index("temperature_500")
    assert np.allclose(batch.history[0, 1, :, :, k].numpy().T * std[k] + mean[k], truth, rtol=1e-5)
    assert np.allclose(batch.clock[:, 0], [[0, (batch.starts[0].day_of_year - 1 + k) / 365] for k in range(3)])


def test_the_order_depends_on_the_seed_alone_and_takes_every_start_once_an_epoch(resident):
    loader, *_ = resident
    count = len(loader.windows)
    places = [loader.place(p) for p in range(2 * count)]
    assert sorted(places[:count]) == sorted(places[count:]) == list(range(count))
    assert places[:count] != places[count:]
    later, again = itertools.islice(loader.batches(0), 3, 4), loader.batches(3)
    assert torch.equal(next(later).history, next(again).history)


@pytest.fixture
def quick(monkeypatch):
    """`train` with a tiny network and two updates per part; its data, and the settings of all its runs."""
    train, seen = script("train"), []
    ds, _ = made_up(3, 12)
    settings_of, data = script("plans").settings, ds.sel(level=list(train.LEVELS))

    def few(*args, **kwargs):
        made = dataclasses.replace(settings_of(*args, **kwargs), validation_samples=1, validation_members=2)
        seen.append(made)
        return made

    monkeypatch.setattr(script("plans"), "network", lambda size: tiny())
    monkeypatch.setattr(train, "WARM_UP", 2)
    monkeypatch.setattr(train, "fit_updates", lambda minutes, parts, seconds: [2] * len(seconds))
    monkeypatch.setattr(train, "settings", few)
    return train, data, seen


@pytest.mark.filterwarnings("ignore:No update made the weights of init= better")
def test_a_warm_start_begins_without_noise_and_ends_with_four_members(tmp_path, quick, monkeypatch):
    train, data, seen = quick
    plain, begun = xmosaic.train, []
    monkeypatch.setattr(train.xmosaic, "train", lambda *a, **k: begun.append(k.get("init")) or plain(*a, **k))
    path = train.train(data, tmp_path, train.Budget(0.1, batch=4), plan="warm")
    parts = seen[4:]  # the first four are timed
    assert [(c.loss, c.members, c.network.noise_dim, c.stages[0].rollout) for c in parts] == [
        ("mse", 1, 0, 1),
        ("crps", 2, 4, 1),
        ("crps", 4, 4, 1),
        ("crps", 4, 4, 3),
    ]
    assert [c.stages[0].batch_size for c in parts] == [4, 4, 2, 1]
    assert len({c.seed for c in parts}) == 4
    first, second, third, last = begun[4:]
    assert first is None and second.config.noise_dim == 0
    assert third.config.noise_dim == last.config.noise_dim == 4
    model = xmosaic.load_model(path)
    assert model.config.noise_dim == 4 and model.provenance["run"]["plan"] == "warm"
    assert len(model.provenance["run"]["updates"]) == 4
    assert "squared error" in script("report").TRAINED["warm"]
    # a run that is stopped in its first part leaves that part's network
    for name in ("1", "low", "3"):
        (tmp_path / f"run_bundled_{name}" / "model.safetensors").unlink()
    assert xmosaic.load_model(train.export(tmp_path, "bundled", "warm")).config.noise_dim == 0
    with pytest.raises(SystemExit, match="has left a model"):
        train.export(tmp_path, "dense", "warm")


def test_plans_share_all_the_time_and_a_twin_stays_without_noise():
    plans = script("plans")
    for name, parts in plans.PLANS.items():
        assert sum(p.share for p in parts) == pytest.approx(1), name
        updates = plans.fit_updates(10, parts, [0.1] * len(parts))
        assert 5600 < sum(updates) <= 5700
        for part in parts:
            made = plans.settings(periods_of_four(), part, part.stage(16, 20), "twin")
            assert (made.loss, made.members, made.network.noise_dim, made.bands) == ("mse", 1, 0, ())


def test_finer_bands_stand_where_the_power_was_too_much_and_reach_what_the_grid_resolves():
    plans, variants = script("plans"), script("variants")
    low = plans.PLANS["careful"][1]
    made = plans.settings(periods_of_four(), low, low.stage(16, 20), precision="bfloat16")
    assert made.bands == (1, 8, 16, 24, 28, 31) and made.members == 4 and made.precision == "bfloat16"
    assert made.stages[0].batch_size == 8 and made.band_weight == 1.0
    for size in variants.SIZES.values():
        assert size.fine[-1] == min(size.latitudes - 2, size.longitudes // 2 - 1)
        grid = LatLonGrid.equiangular(size.longitudes, size.latitudes)
        assert xmosaic.training.bands.Bands(grid, size.fine).size.shape == (len(size.fine) + 1, 1)
    # each part has an order of samples of its own, whatever the plan
    for parts in plans.PLANS.values():
        assert len({plans.settings(periods_of_four(), p, p.stage(16, 20)).seed for p in parts}) == len(parts)


def test_one_variant_that_fails_does_not_stop_the_others(tmp_path, quick, monkeypatch, capsys):
    train, data, _ = quick
    right = train.train

    def broken(ds, out, budget, variant, **options):
        if variant == "twin":
            raise RuntimeError("no such luck")
        return right(ds, out, budget, variant, **options)

    monkeypatch.setattr(train, "train", broken)
    budget = train.Budget(updates=(2, 2), batch=2)
    given = {"name": None, "plan": "direct", "size": "bundled", "device": "cpu", "seed": 0}
    assert train.train_all(data, tmp_path, budget, ["points", "twin", "biased"], **given) == ["twin"]
    told = capsys.readouterr()
    assert "no such luck" in told.err and "twin: FAILED" in told.out
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["biased.safetensors", "points.safetensors"]
    # what was stopped is exported, what was exported stays, and what has left nothing is told
    before = (tmp_path / "biased.safetensors").stat().st_mtime_ns
    (tmp_path / "points.safetensors").unlink()
    assert train.export_stopped(tmp_path, "direct", ["points", "twin", "biased"], None) == ["twin"]
    assert (tmp_path / "points.safetensors").exists()
    assert (tmp_path / "biased.safetensors").stat().st_mtime_ns == before


def test_a_model_is_gone_on_with_and_says_so(tmp_path, quick, monkeypatch):
    train, data, _ = quick
    plain, begun = xmosaic.train, []
    monkeypatch.setattr(train.xmosaic, "train", lambda *a, **k: begun.append(k.get("init")) or plain(*a, **k))
    first = train.train(data, tmp_path, train.Budget(updates=(2, 2), batch=2))
    start = xmosaic.load_model(first)
    last = train.train(data, tmp_path, train.Budget(updates=(2, 3, 2), batch=2), plan="further", begin=first)
    assert begun[0] is None and begun[2].sha256 == start.sha256
    run = xmosaic.load_model(last).provenance["run"]
    assert (run["updates"], run["before"]["updates"]) == ([2, 3, 2], [2, 2])
    told = script("report").training(run)
    assert told.index("2 + 2 updates") < told.index("Then: a trained model") < told.index("2 + 3 + 2 updates")
    with pytest.raises(SystemExit):
        train.arguments(["a.zarr", "out", "--variants", "twin", "rows", "--begin", str(first)])


def test_a_budget_that_does_not_fit_the_plan_is_told_at_once():
    train = script("train")
    train.Budget(updates=(3000, 400)).check("direct")
    with pytest.raises(SystemExit, match="has 2 numbers; the careful plan has 3 parts \\(1, low, 3\\)"):
        train.Budget(updates=(3000, 400)).check("careful")
    with pytest.raises(SystemExit):
        train.arguments(["a.zarr", "out", "--variants", "twin", "rows", "--name", "x"])
    with pytest.raises(SystemExit):
        train.arguments(["a.zarr", "out", "--minutes", "1", "--updates", "2", "2"])


def test_the_larger_network_fits_its_grid_and_takes_no_other_data():
    variants, train = script("variants"), script("train")
    for size in variants.SIZES.values():
        assert size.network().stages[0].points > size.longitudes * size.latitudes
        assert max(size.bands) < size.latitudes - 2
    config = dataclasses.replace(variants.network("evidence"), num_variables=24)
    longitude, latitude = np.arange(96) * 360 / 96, np.linspace(-90, 90, 49)
    tables = (np.zeros((12288, 12), np.int32), np.zeros((96 * 49, 12), np.int32))
    with torch.device("meta"):
        network = xmosaic.model.Mosaic(config, longitude, latitude, None, tables)
    assert 8e6 < sum(p.numel() for p in network.parameters()) < 11e6
    ds, _ = made_up(2, 3)
    assert train.fitting(ds, "bundled") is ds
    with pytest.raises(SystemExit, match="64 × 33 points, the evidence size takes 96 × 49"):
        train.fitting(ds, "evidence")
    for name, variant in variants.VARIANTS.items():
        assert variant.network(config).num_variables == 24, name


def test_the_driver_hands_size_and_plan_on():
    run, simulate = script("run"), script("simulate")
    words = run.commands(run.parse(["--out", "o", "--size", "evidence", "--plan", "warm"]))
    assert "--plan warm --size evidence" in " ".join(words["train"])
    assert "--plan warm --size evidence" in " ".join(words["twin"])
    parser = simulate.argparse.ArgumentParser()
    simulate.arguments(parser)
    options = parser.parse_args(words["simulate"][words["simulate"].index("--years") :])
    assert simulate.settings_from(options).grids == ("96x49",)


def test_training_ends_with_small_weights_that_load(tmp_path, quick):
    train, data, _ = quick
    path = train.train(data, tmp_path, train.Budget(updates=(2, 1), batch=2))
    assert xmosaic.load_model(path).provenance["run"]["updates"] == [2, 1]
    model = xmosaic.load_model(path)
    assert path.stat().st_size < 2.2 * model.num_parameters + 300_000  # two bytes each, and tables
    assert not model.untrained and model.license == "BSD-3-Clause"
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
    fc = xmosaic.forecast(data.isel(time=slice(4)), "2D", 2, model=model, progress=False)
    assert np.isfinite(fc["geopotential"]).all()


def test_the_network_is_small_and_its_mesh_finer_than_the_grid():
    assert script("variants").network().stages[0].points > 64 * 33


def test_every_variant_differs_from_the_bundled_model_in_what_its_title_says():
    variants, plans = script("variants"), script("plans")
    part = plans.PLANS["direct"][0]
    made = {v: plans.settings(periods_of_four(), part, part.stage(2, 20), v) for v in variants.VARIANTS}
    plain = made["bundled"].to_dict()

    def differs(name):
        other = made[name].to_dict()
        own = {f"network.{k}" for k in plain["network"] if plain["network"][k] != other["network"][k]}
        return own | {k for k in plain if k != "network" and plain[k] != other[k]}

    expected = {
        "bundled": set(),
        "twin": {"network.noise_dim", "loss", "members", "bands"},
        "points": {"bands"},
        "change": {"error_scale"},
        "biased": {"loss"},
        "residual": {"network.residual"},
        "coarse_entry": {"network.stages"},
        "without_compressed": {"network.branches"},
        "without_selected": {"network.branches"},
        "dense": {"network.branches", "network.stages", "network.bottleneck"},
        "rows": {"network.block_order"},
        "shuffled": {"network.block_order"},
    }
    assert {name: differs(name) for name in made} == expected
    assert made["coarse_entry"].network.stages[0].nside == 8
    assert all(s.block_count * s.block_size == s.points for s in made["dense"].network.stages)
    assert [made[v].network.block_order for v in ("bundled", "rows", "shuffled")] == ["nested", "rows", "shuffled"]


def periods_of_four():
    return script("simulate").periods(4)


@pytest.mark.parametrize("variant", ["coarse_entry", "dense", "residual", "rows", "shuffled"])
def test_variants_of_another_shape_take_a_step(variant):
    chosen = script("variants")
    config = dataclasses.replace(chosen.VARIANTS[variant].network(chosen.network()), num_variables=3)
    network = xmosaic.model.Mosaic(config, np.array(GRID.longitude), np.array(GRID.latitude))
    state = torch.randn(1, 1, 2, 64, 33, 3)
    with torch.no_grad():
        out = network(state, torch.rand(1, 2), torch.randn(1, 1, 32))
    assert out.shape == (1, 1, 64, 33, 3) and torch.isfinite(out).all()


# ------------------------------------------------------------------------------------------------ what the package has


@pytest.fixture(scope="module")
def bundled_forecast():
    """Three starts, nearly two weeks apart, four members, five days."""
    sample = xmosaic.open_sample()
    chosen = {"variables": ["geopotential", "2m_temperature"], "levels": [500], "progress": False}
    return xmosaic.forecast(sample, "5D", 4, model="bundled", time=sample["time"].values[[3, 16, 29]], **chosen)


@pytest.mark.parametrize("name", ["geopotential", "2m_temperature"])
def test_the_bundled_model_forecasts_the_bundled_sample(bundled_forecast, name):
    """Seven single starts had 0.07 to 0.22 of persistence after a day, 0.16 to 0.33 after five: three together less."""
    truth, fc = xmosaic.open_sample()[[name]], bundled_forecast[[name]]
    if "level" in truth.dims:
        truth = truth.sel(level=[500])
    error = fc.mosaic.rmse(truth)[name].values.ravel()
    still = diagnostics.persistence(truth, like=fc).mosaic.rmse(truth)[name].values.ravel()
    anomaly = (truth - truth.mean("time"))[name]
    normal = float(np.sqrt((anomaly**2).weighted(xmosaic.grid.area_weights(anomaly)).mean()))
    assert (error < 0.35 * still).all(), error / still
    assert error[0] < 0.23 * still[0]
    assert (error < normal).all()
    assert (np.diff(error) > 0).all()
    # members differ as much as they err, within what three starts can tell: other threes had 0.92 to 1.32
    ratio = fc.mosaic.spread_skill(truth)[name].values.ravel()
    assert ((ratio > 0.8) & (ratio < 1.45)).all(), ratio


def test_the_card_and_the_page_say_what_the_kept_scores_say():
    report = script("report")
    model = xmosaic.load_model("bundled")
    said = report.card(report.KEPT, model.provenance["run"])
    assert {heading: model.card()[heading] for heading in said} == said
    page = report.PAGE.read_text()
    made = page[page.index(report.BEGIN) + len(report.BEGIN) : page.index(report.END)]
    assert made.strip() == report.text(report.KEPT).strip()
    for picture in re.findall(r"\]\((_static/[^)]*)\)", page):
        assert (report.PAGE.parent / picture).is_file(), picture


def test_goals_are_judged_by_the_numbers():
    report, tables = script("report"), script("tables")
    assert tables.held(1.0, 1.04, low=0.95, high=1.05) == "reached"
    assert tables.held(1.0, 1.06, low=0.95, high=1.05) == "**not reached**"
    assert tables.held(float("nan"), low=0.0) == "**not reached**"
    stored = xr.load_dataset(report.KEPT / "scores.nc", decode_timedelta=True)
    shares = []
    for name in (n for n in stored.data_vars if "score" in stored[n].dims):
        crps = stored[name].sel(score="crps", bound="estimate")
        shares.append((crps.sel(forecast="bundled") / crps.sel(forecast="climatology")).max())
    assert report.worst_share(stored, "climatology") == pytest.approx(float(max(shares)))


# ---------------------------------------------------------------------------------------------- response of the layers


def answered(operator, nside=4, degrees=(1, 3, 6, 11), features=5):
    """Powers at the same, larger and smaller scales of a linear operator of (cell, feature)."""
    response = script("response")
    basis = response.harmonics(nside)
    x = torch.zeros(1, 12 * nside**2, features, dtype=torch.float64)
    parts = lambda x: operator(x[0])[None, None]  # noqa: E731
    found = np.array(list(response.respond(parts, x, list(degrees), 3, basis)))
    assert found.shape == (len(degrees), 2, 3) and np.allclose(found[:, 0], found[:, 1])  # one branch is the sum
    return found[:, 0]


def test_harmonics_are_orthonormal_and_those_of_the_sphere():
    import healpy

    basis = script("response").harmonics(8)
    assert basis.shape == (768, 24**2)
    assert torch.allclose(basis.T @ basis, torch.eye(24**2, dtype=torch.float64), atol=1e-12)
    x, y, z = healpy.pix2vec(8, np.arange(768), nest=True)
    # closed forms of degree 0, 1 and 2 lie in their columns
    for degree, field in ((0, np.ones(768)), (1, x + 2 * y - z), (2, x * y), (2, 3 * z**2 - 1)):
        inside = (basis[:, degree**2 : (degree + 1) ** 2].numpy().T @ field) ** 2
        assert inside.sum() == pytest.approx((field**2).sum(), rel=1e-3)


def test_a_layer_that_does_nothing_mixes_nothing():
    assert np.allclose(answered(lambda x: x), [[1, 0, 0]] * 4, atol=1e-12)
    assert np.allclose(answered(lambda x: -3 * x), [[9, 0, 0]] * 4, atol=1e-11)


def test_response_by_degree_is_that_of_operators_whose_response_is_known():
    basis = script("response").harmonics(4)
    degree = torch.from_numpy(np.repeat(np.arange(12), 2 * np.arange(12) + 1).astype(float))[:, None]
    smooth = lambda x: basis @ (basis.T @ x / (1 + degree))  # noqa: E731
    assert np.allclose(answered(smooth)[:, 0], [1 / (1 + d) ** 2 for d in (1, 3, 6, 11)])
    assert np.allclose(answered(smooth)[:, 1:], 0, atol=1e-12)
    up = lambda x: basis[:, 25:36] @ (basis[:, 1:12].T @ x)  # noqa: E731  # degrees 1 and 2 whole, to degree 5
    same, larger, smaller = answered(up, degrees=(1, 2)).T
    assert np.allclose(same, 0, atol=1e-12) and np.allclose(larger, 0, atol=1e-12) and np.allclose(smaller, 1)
    same, larger, smaller = answered(lambda x: basis[:, :4] @ (basis[:, 36:40].T @ x), degrees=(6,), features=400)[0]
    assert same < 1e-12 and smaller < 1e-12 and larger == pytest.approx(4 / 13, rel=0.1)


def test_a_permutation_spreads_power_as_white_noise_does():
    shuffle = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    found = answered(lambda x: x[shuffle], features=400)
    assert np.allclose(found.sum(1), 1)
    expected = [[(2 * d + 1) / 192, d**2 / 192] for d in (1, 3, 6, 11)]
    assert np.allclose(found[:, :2], expected, rtol=0.25, atol=0.02)


def test_linear_response_of_a_layer_is_its_difference_quotient():
    response = script("response")
    config = tiny()
    layer = xmosaic.model.BlockSparseAttention(config, config.stages[0])
    for order in ("nested", "shuffled"):
        made = response.reordered(layer, config, order)
        assert made.aligned == (order == "nested") and torch.equal(made.to_q.weight, layer.to_q.weight.double())
        x = torch.randn(1, 192, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = response.job(made, x, [2, 5], 1)[0, 0]
        basis, step = response.harmonics(4), 1e-5
        for degree, one in zip((2, 5), found, strict=True):
            change = step * response.wave(basis, degree, 16, np.random.default_rng([response.SEED, degree]))
            assert float(change.norm()) == pytest.approx(step)
            difference = (made(x + change) - made(x - change))[0] / (2 * step)
            same = (basis[:, degree**2 : (degree + 1) ** 2].T @ difference).square().sum()
            assert one[-1, 0] == pytest.approx(float(same), rel=1e-5)
            assert one[-1].sum() == pytest.approx(float(difference.square().sum()), rel=1e-5)


def test_the_kept_response_is_whole_and_labelled():
    response = script("response")
    stored = xr.load_dataset(response.KEPT / "response.nc")
    assert stored.attrs["model"].endswith(xmosaic.load_model("bundled").sha256[:12])
    assert list(stored["branch"].values) == ["local", "compressed", "selected", "all"]
    assert stored.sizes["time"] >= 3 and stored["total_wavenumber"].values[[0, -1]].tolist() == [1, 47]
    for name in ("same", "larger", "smaller"):
        assert stored[name].attrs["units"] == "1" and stored[name].attrs["long_name"]
        assert (stored[name] >= -1e-9).all() and np.isfinite(stored[name]).all()
    leak = response.summary(stored)["leakage"]
    assert ((leak >= 0) & (leak <= 1)).all()


# -------------------------------------------------------------------------------------------------------------- driver


def test_steps_go_on_after_a_failure_and_keep_what_was_made(tmp_path, monkeypatch):
    run = script("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / "simulate.py").write_text("import sys; print('no', sys.argv[-1]); sys.exit(3)")
    (tmp_path / "check.py").write_text("import sys; open(sys.argv[2] + '/checks.png', 'w').write('x')")
    (tmp_path / "out").mkdir()
    options = run.parse(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    with open(tmp_path / "out" / "log.txt", "w") as log:
        assert not run.run_step("simulate", options, log)
        assert run.run_step("check", options, log)
    text = (tmp_path / "out" / "log.txt").read_text()
    assert text.count("no ") == 2 and "no real" in text  # with the plain transforms, the second time
    assert (tmp_path / "out" / "checks.png").exists()


def test_a_training_that_is_too_slow_is_stopped_and_exported(tmp_path, monkeypatch):
    run = script("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    code = "import sys, time; out = sys.argv[2]\n"
    code += "if '--export' in sys.argv: open(out + '/bundled.safetensors', 'w').write('best')\nelse: time.sleep(60)"
    (tmp_path / "train.py").write_text(code)
    (tmp_path / "out").mkdir()
    options = run.parse(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    monkeypatch.setattr(run, "limits", lambda _: {"train": 1.0})
    with open(tmp_path / "out" / "log.txt", "w") as log:
        assert not run.run_step("train", options, log)
    assert (tmp_path / "out" / "bundled.safetensors").read_text() == "best"


def test_what_an_earlier_run_left_is_not_taken_for_new(tmp_path, monkeypatch):
    run = script("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / "check.py").write_text("raise SystemExit(1)")
    (tmp_path / "checks.png").write_text("old")
    import os

    os.utime(tmp_path / "checks.png", (0, 0))
    (tmp_path / "out").mkdir()
    options = run.parse(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    with open(tmp_path / "out" / "log.txt", "w") as log:
        assert not run.run_step("check", options, log)
    assert not (tmp_path / "out" / "checks.png").exists()


# ------------------------------------------------------------------------------------------------ what needs the core


@needs_core
def test_interpolation_is_exact_for_fields_linear_in_log_pressure():
    fields = script("fields")
    sigma = (np.arange(24) + 0.5) / 24
    surface = np.array([95_000.0, 101_000.0])
    log_pressure = np.log(sigma[:, None] * surface)
    stacked = np.stack([3.0 - 2.0 * log_pressure, 1.0 + 0.5 * log_pressure]).astype(np.float32)
    for level in (10_000.0, 50_000.0, 85_000.0):
        found = fields.interpolate(np.log(level), log_pressure.astype(np.float32), stacked)
        assert np.allclose(found, [[3 - 2 * np.log(level)] * 2, [1 + 0.5 * np.log(level)] * 2], atol=2e-5)
    beyond = fields.interpolate(np.log(110_000.0), log_pressure.astype(np.float32), stacked)
    assert np.allclose(beyond, stacked[:, -1])


@needs_core
def test_geopotential_is_hydrostatic_for_temperature_linear_in_log_pressure():
    """T = a + b ln p gives Φ = R [a (ln pₛ − ln p) + b (ln² pₛ − ln² p) / 2], whatever the layers."""
    fields = script("fields")
    log_pressure = np.log((np.arange(24) + 0.5) / 24 * 1e5)
    a, b, gas = -400.0, 60.0, 287.0

    def closed(x):
        return gas * (a * (np.log(1e5) - x) + b * (np.log(1e5) ** 2 - x**2) / 2)

    bottom = log_pressure[-1]
    for level in (25_000.0, 50_000.0, 70_000.0, 85_000.0, 105_000.0):
        x = np.log(level)
        # below the lowest layer temperature stays what it is there
        below = closed(bottom) - gas * (a + b * bottom) * (x - bottom)
        found = fields.geopotential_at(
            x,
            log_pressure.astype(np.float32),
            (a + b * log_pressure).astype(np.float32),
            closed(log_pressure).astype(np.float32),
            gas,
        )
        assert abs(float(found) - (closed(x) if x < bottom else below)) < 1.0


@needs_core
def test_omega_is_negative_where_air_flows_apart_aloft():
    fields = script("fields")
    sigma, thickness = (np.arange(24) + 0.5) / 24, np.full(24, 1 / 24)
    apart = np.where(sigma < 0.5, 1e-5, -1e-5)[:, None]
    omega = np.asarray(fields.vertical_velocity(apart, np.zeros((24, 1)), np.array([1e5]), sigma, thickness))[:, 0]
    assert (omega < 0).all() and abs(sigma[omega.argmin()] - 0.5) < 0.03
    assert np.isclose(omega.min(), -1e5 * 1e-5 * (0.5 - 0.25 / 24), rtol=0.03)
    # a surface pressure that flows along an isobar changes with it: ω = p v·∇ln pₛ where nothing diverges above
    along = np.asarray(
        fields.vertical_velocity(-1e-6 * np.ones((24, 1)), 1e-6 * np.ones((24, 1)), 1e5, sigma, thickness)
    )
    assert np.allclose(along[:, 0], 1e5 * sigma * 1e-6)


@needs_core
def test_the_core_conserves_mass_and_ends_all_trajectories_early_when_its_time_is_over(tmp_path):
    """One run on two processes gives the fields of two grids, which have the same means."""
    simulate = script("simulate")
    size = {"years": 2, "days": 4, "truncation": 10, "minutes": 60.0, "spin_truncation": 10, "spin_minutes": 60.0}
    chosen = dataclasses.replace(simulate.Settings(), **size, spin_days=0, settle_days=0, levels=(500.0,))
    short = dataclasses.replace(chosen, limit_seconds=0.0, grids=("64x33", "24x13"))
    simulate.CHUNK_DAYS, kept = 2, simulate.CHUNK_DAYS
    try:
        stores = simulate.simulate(short, tmp_path / "a.zarr", tmp_path / "scratch", processes=2)
    finally:
        simulate.CHUNK_DAYS = kept
    assert [s.name for s in stores] == ["a_64x33.zarr", "a_24x13.zarr"]
    ds, coarse = (xr.open_zarr(s, consolidated=False).load() for s in stores)
    assert list(ds["time"].dt.day_of_year.values) == [1, 2, 1, 2]
    for one in (ds, coarse):
        pressure = one["mean_sea_level_pressure"]
        mass = pressure.weighted(xmosaic.grid.area_weights(pressure)).mean(["latitude", "longitude"])
        assert np.allclose(mass, 1e5, atol=5.0)
    assert coarse["temperature"].dims == ds["temperature"].dims and coarse.sizes["latitude"] == 13
    assert 40_000 < float(ds["geopotential"].mean()) < 60_000
    assert float(abs(ds["u_component_of_wind"]).max()) > 1
    # trajectories differ, as their seeds do
    assert float(abs(ds["mean_sea_level_pressure"][0] - ds["mean_sea_level_pressure"][2]).max()) > 10
    assert "dinosaur 1" in ds.attrs["source"]
    found = np.load(tmp_path / "diagnostics.npz")
    assert found["means"].shape == (2, 2, 4) and found["spectrum"].ndim == 2 and found["zonal"].ndim == 3
    assert not (tmp_path / "scratch").exists()
