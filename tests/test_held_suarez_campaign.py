"""The benchmark's driver and its evaluation: parts put together are the whole, failures are told and stop nothing."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from benchmark_scripts import script

import xmosaic
from xmosaic import diagnostics

pytestmark = pytest.mark.usefixtures("benchmark_scripts")


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def sample():
    return xmosaic.open_sample()[["geopotential", "mean_sea_level_pressure"]].sel(level=[500])


@pytest.fixture(scope="module")
def forecasts(sample):
    """Two ensembles of three members and a single forecast: states of the sample plus noise, four starts, two days."""
    starts, leads = sample["time"].values[[2, 9, 16, 23]], pd.to_timedelta([1, 2], unit="D")
    valid = xr.DataArray(starts[:, None] + leads.values, dims=("time", "prediction_timedelta"))
    truth = sample.sel(time=valid).drop_vars("time").assign_coords(time=starts, prediction_timedelta=leads)
    truth = truth.assign_coords(valid_time=valid)
    rng = np.random.default_rng(0)

    def members(size):
        shape = {"number": np.arange(1, 4)}
        made = truth.expand_dims(shape).copy(deep=True)
        for name in made:
            made[name] = made[name] + size * float(truth[name].std()) * rng.standard_normal(made[name].shape)
        return made.astype(np.float32).transpose("time", "number", "prediction_timedelta", ...)

    return {"one": members(0.01), "two": members(0.02), "single": members(0.01).isel(number=0, drop=True)}


def test_scores_by_forecast_and_variable_put_together_are_those_of_one_pass(sample, forecasts, tmp_path):
    scoring = script("scoring")
    scoring.spill(sample, tmp_path, "truth")
    found = []
    for variable in sample.data_vars:
        found.append({})
        for name, fc in forecasts.items():
            scoring.spill(fc, tmp_path, name)
            found[-1][name] = scoring.score_variable(tmp_path, name, str(variable), 3)
            assert not (tmp_path / f"{name}-{variable}").exists()  # disks are small
    scores, spectra = scoring.merged(found, list(forecasts))
    whole = xmosaic.benchmark(forecasts, sample, scoring.SCORES, progress=False)
    for name in sample.data_vars:
        xr.testing.assert_allclose(scores[name], whole[name].transpose(*scores[name].dims), rtol=1e-12)
        ratio = f"{name}_spectral_ratio"
        xr.testing.assert_allclose(spectra[ratio], whole[ratio].transpose(*spectra[ratio].dims), rtol=1e-12)
    for name in ("mass_drift", "mass_drift_percent_max"):
        xr.testing.assert_allclose(scores[name], whole[name].transpose(*scores[name].dims), rtol=1e-12)
    assert list(scores["members"].values) == [3, 3, 0]
    scoring.write(scores, tmp_path / "scores.nc")
    scoring.write(spectra, tmp_path / "spectra.nc")
    back = xr.load_dataset(tmp_path / "scores.nc", decode_timedelta=True)
    assert list(back["forecast"].values) == list(forecasts)


def test_power_by_zonal_wavenumber_is_the_ratio_of_means_inside_its_interval(sample, forecasts):
    scoring = script("scoring")
    for name in ("one", "single"):
        found = scoring.zonal_ratio(forecasts[name], sample, "geopotential")
        label = "geopotential_zonal_ratio"
        direct = diagnostics.spectral_ratio(forecasts[name], sample, kind="zonal")["geopotential"]
        xr.testing.assert_allclose(
            found[label].transpose(*direct.dims), direct.drop_vars("valid_time", errors="ignore")
        )
        known = found[label].notnull()
        assert (found[f"{label}_lower"] <= found[label] * (1 + 1e-9)).where(known, True).all()
        assert (found[f"{label}_upper"] >= found[label] * (1 - 1e-9)).where(known, True).all()
        assert (found[f"{label}_upper"] > found[f"{label}_lower"])[:, :, 20:].all()


def test_resamples_are_whole_blocks_and_fair_to_every_start():
    draws = script("scoring").block_draws(12, 4, 4000)
    assert draws.shape == (4000, 12) and np.allclose(draws.sum(1), 1)
    assert np.allclose(draws.mean(0), 1 / 12, atol=0.004)
    counts = np.round(draws * 12).astype(int)
    # starts 4 apart are never in one block of four, so neighbours vary together and they don't
    assert np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] > 0.5 > np.corrcoef(counts[:, 0], counts[:, 6])[0, 1]
    assert script("scoring").block_draws(2, 4, 10).shape == (10, 2)


def test_baselines_need_no_forecast_to_be_like(tmp_path):
    """Their fields at hand: persistence keeps the start, climatology is the training years' mean."""
    evaluate, scoring = script("evaluate"), script("scoring")
    store, ds = made_store(tmp_path)
    test = evaluate.Test(starts=3, members=2, days=2)
    for name in evaluate.BASELINES:
        variables = evaluate.forecast_baseline((store, tmp_path, tmp_path), name, test)
        made = scoring.fetch(tmp_path, name, "geopotential")["geopotential"]
        assert made.sizes["time"] == 3 and made.sizes["prediction_timedelta"] == 2 and len(variables) == 9
        if name == "persistence":
            start = ds["geopotential"].sel(time=made["time"][1], level=made["level"])
            assert np.allclose(made[1].isel(prediction_timedelta=1).values, start.values)
        elif name == "climatology":
            mean = ds["geopotential"].sel(time=slice("2001", "2001"), level=made["level"]).mean("time")
            assert np.allclose(made.values, mean.values, rtol=1e-5)
        else:
            assert made.sizes["number"] == 2


def made_store(folder):
    """Three years of ten days of random fields."""
    simulate = script("simulate")
    chosen = simulate.Settings(years=3, days=10)
    usual = [280, 0, 0, 1e5] + [v for height in (1.6e5, 1e5, 5.5e4, 3e4, 1.4e4) for v in (height, 250, 0, 0, 0)]
    fields = np.random.default_rng(0).standard_normal((3, 10, 29, 33, 64), dtype=np.float32)
    ds = simulate.to_dataset(fields + np.array(usual, np.float32)[:, None, None], chosen, simulate.grid_of("64x33"), {})
    simulate.write_store(ds, folder / "atmosphere_64x33.zarr")
    return folder / "atmosphere_64x33.zarr", ds


def test_models_are_taken_in_the_order_of_the_variants(tmp_path):
    for name in ("other", "twin", "bundled", "rows"):
        (tmp_path / f"{name}.safetensors").touch()
    assert script("evaluate").models_in(tmp_path) == ["bundled", "twin", "rows", "other"]


def test_an_evaluation_goes_on_after_a_model_that_fails(tmp_path, monkeypatch):
    """In threads instead of processes: one model of two can't be forecast; what the other gives is written."""
    from concurrent.futures import ThreadPoolExecutor

    evaluate, scoring = script("evaluate"), script("scoring")
    store, _ = made_store(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("bundled", "twin"):
        (folder / f"{name}.safetensors").touch()
    truth = scoring.read(store, "test")

    def forecast_model(work, name, test, device, long):
        if name == "twin":
            raise RuntimeError("the GPU is gone")
        like = truth[["geopotential", "mean_sea_level_pressure"]]
        leads = pd.to_timedelta([1, 2], unit="D")
        blank = xr.Dataset(coords={"time": truth["time"].values[1:4], "prediction_timedelta": leads})
        valid = (("time", "prediction_timedelta"), truth["time"].values[1:4, None] + leads.values)
        blank = blank.assign_coords(valid_time=valid)
        blank = blank.assign({n: evaluate._blank(like[n], blank) for n in like})
        scoring.spill(diagnostics.persistence(truth, like=blank), work[2], name)
        return list(like.data_vars)

    monkeypatch.setattr(evaluate, "forecast_model", forecast_model)
    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", lambda n, **_: ThreadPoolExecutor(n))
    bad = evaluate.evaluate([(store, folder), (store, tmp_path / "nothing")], evaluate.Test(3, 2, 2), 1, [None], [], [])
    assert bad == ["models/twin", str(tmp_path / "nothing")]
    assert list(xr.load_dataset(folder / "scores.nc", decode_timedelta=True)["forecast"].values) == ["bundled"]
    assert not (folder / "long.nc").exists()


# -------------------------------------------------------------------------------------------------------------- report


def intervals(*rows):
    return np.array(rows, float).T


def test_worse_and_better_are_intervals_apart():
    others = script("others")
    ours = intervals((1, 0.9, 1.1), (1, 0.9, 1.1), (1, 0.9, 1.1), (1, 0.9, 1.1))
    other = intervals((1.3, 1.2, 1.4), (1.1, 1.05, 1.2), (0.7, 0.6, 0.8), (0.5, 0.4, 0.6))
    assert others.worse_and_better(ours, other) == (0.25, 0.5)
    assert others.worse_and_better(ours, ours) == (0, 0)


def test_power_is_as_far_off_when_it_is_twice_as_when_it_is_half():
    others = script("others")
    found = others.off(intervals((2, 1.5, 3), (0.5, 1 / 3, 1 / 1.5), (1, 0.5, 1.5)))
    assert np.allclose(found[:, 0], found[:, 1]) and np.allclose(found[:, 0], np.log([2, 1.5, 3]))
    assert found[1, 2] == 0 and found[2, 2] == pytest.approx(np.log(2))
    assert others.factor(intervals((4, 0, 9), (0.25, 0, 1))) == pytest.approx(4)


@pytest.fixture
def more(tmp_path):
    """The kept scores as if they were those of every kind of model; intervals of spectra are 10 % wide."""
    report = script("report")
    kept = {n: xr.load_dataset(report.KEPT / f"{n}.nc", decode_timedelta=True) for n in ("scores", "spectra", "long")}
    spectra = kept["spectra"]
    for name in [n for n in spectra.data_vars if n.endswith("_zonal_ratio")]:
        spectra = spectra.assign({f"{name}_lower": spectra[name] * 0.95, f"{name}_upper": spectra[name] * 1.05})
    both = [n for n in kept["scores"]["forecast"].values if n in spectra["forecast"].values]
    for folder, names in (("ablation", both), ("evidence", both)):
        (tmp_path / folder).mkdir()
        renamed = ["evidence" if folder == "evidence" and n == "bundled" else n for n in names]
        for kind, ds in (("scores", kept["scores"]), ("spectra", spectra)):
            chosen = ds.sel(forecast=names).assign_coords(forecast=[str(n) for n in renamed])
            if folder == "evidence" and kind == "scores":
                rest = [n for n in ds["forecast"].values if n not in names]
                chosen = xr.concat([chosen, ds.sel(forecast=rest)], "forecast")
            chosen.to_netcdf(tmp_path / folder / f"{kind}.nc", engine=script("scoring").ENGINE)
    kept["long"].to_netcdf(tmp_path / "evidence" / "long.nc", engine=script("scoring").ENGINE)
    return tmp_path


def test_a_variant_that_was_run_twice_is_beside_its_reference_and_beside_itself(more):
    others = script("others")
    first = [others.load(more / "ablation", name) for name in others.FILES[:2]]
    assert "Run twice" not in str(others.text(more))
    # a later run in which the twin is 1.5 times as far off, and the reference 1.2 times
    worse = xr.where(first[0]["forecast"] == "bundled", 1.2, 1.5)
    again = [first[0].map(lambda x: x * worse if "score" in x.dims else x, keep_attrs=True), first[1]]
    table = others.repeat_table([(first[0], first[1]), (again[0], again[1])]).splitlines()
    own, twin = ([c.strip() for c in row.split("|")[1:-1]] for row in table[2:])
    assert own[1:4] == ["1.00, 1.00"] * 3 and own[5:] == ["1.20"] * 3
    assert twin[5:] == ["1.50"] * 3
    before, now = (np.array([float(c.split(", ")[k]) for c in twin[1:4]]) for k in (0, 1))
    assert np.allclose(now, before * 1.5 / 1.2, atol=0.012)  # two digits are printed
    assert len({c.strip() for c in twin[4].split(",")}) == 1


def test_what_is_not_there_is_not_printed_and_what_is_comes_from_the_scores(more, tmp_path):
    others, report = script("others"), script("report")
    assert others.text(tmp_path / "nowhere") == []
    parts = others.text(more)
    headings = [p for p in parts if p.startswith("#")]
    assert headings == ["### Ablations, the same number of updates each", "### The larger network"]
    table = parts[1].splitlines()
    names = report.variants_in(others.load(more / "ablation", "scores.nc"))
    assert len(table) == 2 + len(names) and "1.000 (1.00 … 1.00)" in table[2] and names[0] == "bundled"
    # the row of the second variant, made by hand
    scores = xr.load_dataset(report.KEPT / "scores.nc", decode_timedelta=True)
    row, name = table[3], names[1]
    fields = [n for n in scores.data_vars if "score" in scores[n].dims]
    crps = [scores[n].sel(score="crps", bound="estimate", prediction_timedelta=np.timedelta64(5, "D")) for n in fields]
    ratio = np.concatenate([np.ravel(c.sel(forecast=name) / c.sel(forecast="bundled")) for c in crps])
    assert f"{ratio.mean():.3f} ({ratio.min():.2f} … {ratio.max():.2f})" in row
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    others.draw(more, pictures)
    assert sorted(p.name for p in pictures.iterdir()) == ["ablation.png", "evidence.png"]
    others.keep(more, tmp_path / "kept")
    assert (tmp_path / "kept" / "evidence" / "long.nc").exists() and not (tmp_path / "kept" / "experiments").exists()


def test_ways_to_train_are_told_with_spread_and_power(more):
    others = script("others")
    scores, spectra = (others.load(more / "ablation", n) for n in others.FILES[:2])
    rows = others.experiment_table(scores, spectra).splitlines()
    first = spectra.sel(forecast="bundled", prediction_timedelta=np.timedelta64(1, "D"))
    names = [n for n in first.data_vars if n.endswith("_zonal_ratio")]
    power = np.concatenate([np.ravel(first[n].sel(zonal_wavenumber=slice(19, None))) for n in names])
    assert f"{power.min():.2f} … {power.max():.2f}" in rows[2] and len(rows) == 2 + len(
        script("tables").variants_in(scores)
    )


# -------------------------------------------------------------------------------------------------------------- driver


def options(tmp_path, *words):
    return script("campaign").parse([*words, "--out", str(tmp_path / "out"), "--work", str(tmp_path)])


def fake(folder, **codes):
    """Scripts that write down their words and end with a status."""
    for name in ("simulate", "check", "train", "evaluate", "sample"):
        text = "import sys, json, os\n"
        text += f"print(json.dumps(sys.argv[1:]), file=open(os.path.join({str(folder)!r}, '{name}.told'), 'a'))\n"
        (folder / f"{name}.py").write_text(text + codes.get(name, ""))
    return folder


def told(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.told").read_text().splitlines()]


def test_jobs_say_where_each_model_goes_and_with_what_budget(tmp_path):
    campaign, train = script("campaign"), script("train")
    o = options(tmp_path, "train", "--updates", "30", "4", "--batch", "8")
    for text, folder, names, variants in (
        ("bundled --plan careful --minutes 3", ".", None, ["bundled"]),
        ("twin --minutes 3", ".", None, ["twin"]),
        ("evidence --minutes 2", "evidence", "evidence", ["bundled"]),
        ("ablation bundled twin --plan direct", "ablation", None, ["bundled", "twin"]),
        ("experiment fine --plan fine --minutes 1", "experiments", "fine", ["bundled"]),
    ):
        job = campaign.job_of(text, o.work, o.updates, o.batch)
        got = train.arguments(job.words)
        assert (got.out, got.name, got.variants) == (tmp_path / folder, names, variants), text
        grid = "96x49" if "evidence" in text else "64x33"
        assert got.store.name == f"atmosphere_{grid}.zarr" and got.size == (
            "evidence" if grid == "96x49" else "bundled"
        )
        assert (got.updates == [30, 4] and got.batch == 8) == text.startswith("ablation")
    for text in ("ablation", "dense", "experiment"):
        with pytest.raises(SystemExit, match="is no job"):
            campaign.job_of(text, o.work, o.updates, o.batch)


def test_lanes_run_side_by_side_and_a_failed_job_is_exported_and_told(tmp_path, monkeypatch):
    campaign = script("campaign")
    monkeypatch.setattr(campaign, "HERE", fake(tmp_path, train="sys.exit('twin' in sys.argv)"))
    lanes = ["--lane", "0", "bundled --minutes 1", "--lane", "1", "twin --minutes 1", "ablation rows"]
    o = options(tmp_path, "train", *lanes)
    runner = campaign.Runner(tmp_path / "logs", 500)
    assert campaign.run_training(o, runner) == ["twin --minutes 1"]
    words = told(tmp_path, "train")
    assert len(words) == 4 and sum("--export" in w for w in words) == 1
    assert next(w for w in words if "--export" in w)[3] == "twin"
    assert "exit status 1" in (tmp_path / "logs" / "campaign.txt").read_text()
    with pytest.raises(SystemExit, match="number of a GPU and jobs"):
        campaign.lane_of(["bundled"], o)


def test_a_job_that_is_too_slow_is_stopped_with_its_children_and_exported(tmp_path, monkeypatch):
    campaign = script("campaign")
    slow = "if '--export' not in sys.argv: import subprocess; subprocess.run(['sleep', '60'])"
    monkeypatch.setattr(campaign, "HERE", fake(tmp_path, train=slow))
    monkeypatch.setattr(campaign, "RESERVE", 1.5)
    monkeypatch.setattr(campaign, "LEAST", 1.5)
    runner = campaign.Runner(tmp_path / "logs", 5.0)
    o = options(tmp_path, "train", "--lane", "0", "bundled --minutes 1", "twin --minutes 1")
    assert campaign.run_training(o, runner) == ["bundled --minutes 1", "twin --minutes 1"]
    assert [("--export" in w) for w in told(tmp_path, "train")] == [False, True]
    assert "no time is left" in (tmp_path / "logs" / "campaign.txt").read_text()


def test_stages_hand_on_stores_and_folders(tmp_path, monkeypatch):
    campaign = script("campaign")
    monkeypatch.setattr(campaign, "HERE", fake(tmp_path, check="sys.exit(1)"))
    runner = campaign.Runner(tmp_path / "logs", 500)
    o = options(tmp_path, "simulate", "evaluate", "--simulation", "--truncation 85 --days 40")
    assert campaign.run_simulation(o, runner) == ["check bundled", "check evidence"]
    (words,) = told(tmp_path, "simulate")
    given = script("simulate").argparse.ArgumentParser()
    given.add_argument("store", type=Path)
    given.add_argument("--scratch")
    script("simulate").arguments(given)
    made = script("simulate").settings_from(given.parse_args(words))
    assert made.grids == ("64x33", "96x49") and made.truncation == 85 and made.days == 40 and made.limit_seconds == 330
    assert [w[0].rpartition("_")[2] for w in told(tmp_path, "check")] == ["64x33.zarr", "96x49.zarr"]
    assert campaign.run_evaluation(o, runner) == ["evaluate: there is no model"]
    for folder in (".", "ablation", "evidence"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "bundled.safetensors").touch()
    assert campaign.run_evaluation(o, runner) == []
    (words,) = told(tmp_path, "evaluate")
    got = script("evaluate").arguments(words)
    assert [p.name for p in got.pairs[1::2]] == ["evidence", tmp_path.name, "ablation"]
    assert [p.name for p in got.pairs[::2]] == ["atmosphere_96x49.zarr"] + ["atmosphere_64x33.zarr"] * 2
    assert got.baselines == [str(tmp_path / "evidence"), str(tmp_path)]


def test_what_is_packed_comes_out_again_and_what_is_too_much_is_told(tmp_path, capsys, monkeypatch):
    campaign = script("campaign")
    monkeypatch.setattr(campaign, "PIECE", 50_000)
    files = {"scores.nc": 20_000, "bundled.safetensors": 90_000, "ablation/twin.safetensors": 500_000}
    files |= {"logs/train_0.txt": 100, "atmosphere_64x33.zarr/zarr.json": 100, "run_bundled_1/config.json": 100}
    rng = np.random.default_rng(0)
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(rng.bytes(size))
    pieces = campaign.pack(tmp_path, tmp_path / "out", campaign.KEPT, 0.3)
    assert [p.name for p in pieces] == ["results.tar.00", "results.tar.01", "results.tar.02"]
    assert "left out: ablation/twin.safetensors" in capsys.readouterr().out
    with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as whole:
        assert sorted(whole.getnames()) == ["bundled.safetensors", "logs/train_0.txt", "scores.nc"]
        read = whole.extractfile("bundled.safetensors")
        assert read is not None and read.read() == (tmp_path / "bundled.safetensors").read_bytes()
