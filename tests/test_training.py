"""Training: its loss and gradients; the same when resumed and over ranks; what it says when something is wrong."""

import asyncio
import dataclasses
import errno
import importlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from fsspec.asyn import AsyncFileSystem
from models import make_dataset, make_model
from processes import process_of
from safetensors import SafetensorError

import xmosaic
from xmosaic.checkpoint import load_model
from xmosaic.cli import main
from xmosaic.errors import ArgumentError, CheckpointError, DatasetError, MosaicError, StoreError
from xmosaic.grid import LatLonGrid
from xmosaic.model import Mosaic, MosaicConfig, StageConfig
from xmosaic.training import Stage, TrainConfig, folder, loop, plot_history, read_history, train
from xmosaic.training.adapt import adapt_weights
from xmosaic.training.loader import Loader
from xmosaic.training.ranks import Ranks
from xmosaic.training.step import RolloutLoss, check_finite, noise_of
from xmosaic.variables import Schema

NETWORK = MosaicConfig(
    stages=(StageConfig(4, 16, 4, 2, local_size=64, block_size=16, block_count=4),),
    bottleneck=StageConfig(2, 24, 2, 1, 48, 8, 2, decoder_depth=0),
    num_variables=1,
    num_neighbors=4,
)
VARIABLES = {"2m_temperature": None, "geopotential": [500, 850]}
DS = make_dataset(periods=40, times="2020-01-01")
BASE = TrainConfig(
    NETWORK,
    (Stage(6, batch_size=4), Stage(4, rollout=2, batch_size=2, warmup=1)),
    train=("2020-01-01", "2020-01-25"),
    validation=("2020-01-26", "2020-02-09"),
    variables=VARIABLES,
    validate_every=4,
    save_every=3,
    validation_samples=3,
    validation_members=3,
)


def _train(config=BASE, ds=DS, **options):
    return train(ds, config, progress=False, device="cpu", workers=2, **options)


def _changed(**fields):
    return dataclasses.replace(BASE, **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its folder and what it returned."""
    out = tmp_path_factory.mktemp("training") / "run"
    return out, _train(out=out)


# ------------------------------------------------------------------------------------------------- what comes out


def test_result_is_a_model_that_load_model_reads_and_forecast_takes(run):
    out, model = run
    again = load_model(out / "model.safetensors")
    assert again.sha256 == model.sha256
    fc = DS.mosaic.forecast("2D", 2, model=again, progress=False)
    assert set(fc.data_vars) == set(VARIABLES)
    assert np.isfinite(fc["geopotential"]).all()
    assert model.provenance["training"]["train"] == list(BASE.train)
    assert not model.untrained


def test_history_is_labelled(run):
    out, model = run
    history = model.history
    xr.testing.assert_identical(history, read_history(out))
    np.testing.assert_array_equal(history["update"], np.arange(1, 11))
    np.testing.assert_array_equal(history["stage"], [0] * 6 + [1] * 4)
    np.testing.assert_array_equal(history["validation_update"], [4, 6, 8, 10])
    assert history["channel"].values.tolist() == ["2m_temperature", "geopotential_500", "geopotential_850"]
    assert np.isfinite(history["loss"]).all()
    assert history["learning_rate"][0] == 0.02
    assert {v.attrs["units"] for v in history.data_vars.values()} == {"1", "s"}
    last_stage = history["validation_crps"].sel(validation_update=slice(7, None))
    assert model.provenance["validation_crps"] == last_stage.min()
    table = history["validation_crps_by_channel"].to_pandas()  # labelled by update and channel
    assert table.loc[8, "geopotential_850"] == history["validation_crps_by_channel"][2, 2]


def test_statistics_are_those_of_the_training_period(run):
    _, model = run
    field = DS["2m_temperature"].sel(time=slice(*BASE.train)).values.astype(np.float64)
    assert model.mean[0] == pytest.approx(field.mean(), rel=1e-9)
    assert model.std[0] == pytest.approx(field.std(), rel=1e-7)


def test_all_known_variables_by_default():
    model = _train(_changed(variables=None, stages=(Stage(1, batch_size=2),)))
    assert [c.name for c in model.schema.state] == [
        *("2m_temperature", "mean_sea_level_pressure"),
        *("geopotential_500", "geopotential_850", "u_component_of_wind_850"),
    ]


def test_gaps_are_counted_in_the_history_without_a_bar_too(tmp_path, run):
    """Once, even where a run goes on at the beginning of a stage."""
    holed = DS.isel(time=[i for i in range(40) if i != 10])
    short = _changed(stages=(Stage(1, batch_size=2), Stage(1, batch_size=2)))
    history = _train(short, ds=holed, out=tmp_path / "run").history
    whole = "2 of 22 starts lack '2020-01-11 00:00:00'"
    assert history.attrs["left_out"] == f"stage 0, training: {whole}; stage 1, training: {whole}"
    xr.testing.assert_identical(history, _train(short, ds=holed, out=tmp_path / "run", resume=True).history)
    assert "left_out" not in run[1].history.attrs


def test_picture_of_the_history(run):
    out, model = run
    figure = plot_history(model)
    lines = figure.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), model.history["loss"])
    assert len(plot_history(out).axes) == 4
    with pytest.raises(DatasetError, match="no history"):
        plot_history(load_model(out / "model.safetensors"))


def test_picture_of_the_history_hides_nothing_and_says_what_its_lines_are(run):
    """Power far from the truth's is on the axis; a mean is called one only where it is of more than one update."""
    history = run[1].history.copy(deep=True)
    history["power_ratio"][0] = [1e-3, 30.0, 1.0]
    history["spread_skill"][1, 1] = 4.0
    loss, _, skill, power = plot_history(history).axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["each update"]
    assert power.get_yscale() == "log"
    assert power.get_ylim()[0] < 1e-3
    assert power.get_ylim()[1] > 30
    assert skill.get_ylim()[1] > 4
    long = xr.concat([history.drop_dims("validation_update")] * 30, "update").assign_coords(update=np.arange(1, 301))
    loss = plot_history(long.merge(history.drop_dims("update"))).axes[0]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["each update", "mean of 3 updates"]
    values = loss.lines[1].get_ydata()
    np.testing.assert_allclose(values[1], history["loss"][:3].mean())


def test_picture_of_a_history_without_a_validation_yet(run):
    """As of a run that has just begun."""
    begun = run[1].history.isel(validation_update=slice(0))
    assert len(plot_history(begun).axes) == 4


def test_picture_of_a_history_that_was_saved_before_validations_had_labels(run):
    """Files of earlier versions have a dimension validation."""
    old = run[1].history.rename_dims(validation_update="validation").drop_indexes("validation_update")
    line = plot_history(old).axes[1].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [4, 6, 8, 10])


def test_command_line(tmp_path, capsys):
    DS.to_netcdf(tmp_path / "data.nc")
    options = ["--train", "2020-01-01", "2020-01-25", "--validation", "2020-01-26", "2020-02-09", "--quiet"]
    sizes = ["--set", "size=0.02", "nside=4", "updates=2", "neighbors=4", "validation_samples=2"]
    command = ["train", str(tmp_path / "data.nc"), "--out", str(tmp_path / "run"), *options, *sizes, "--device", "cpu"]
    assert main([*command, "--variables", "geopotential"]) == 0
    assert load_model(tmp_path / "run" / "model.safetensors").schema.levels == (500, 850)
    capsys.readouterr()
    for arguments, text in (
        (command, "--resume"),
        ([*command[:2], "--out", "x", "--quiet"], "--train is needed"),
        ([*command, "--variables", "q"], "'q' isn't in the data"),
        ([*command[:-2], "speed=3", "--device", "cpu"], "speed"),
    ):
        assert main(arguments) == 1, arguments
        assert text in capsys.readouterr().err


def test_command_line_goes_on_from_a_model_with_its_network(tmp_path, capsys):
    DS.to_netcdf(tmp_path / "data.nc")
    periods = ["--train", "2020-01-01", "2020-01-25", "--validation", "2020-01-26", "2020-02-09", "--quiet"]
    begin = ["train", str(tmp_path / "data.nc"), *periods, "--device", "cpu"]
    sizes = ["--set", "size=0.02", "nside=4", "updates=2", "neighbors=4", "validation_samples=2", "residual=True"]
    assert main([*begin, "--out", str(tmp_path / "first"), *sizes]) == 0
    first = load_model(tmp_path / "first" / "model.safetensors")
    more = ["--init", str(tmp_path / "first" / "model.safetensors"), "--set", "updates=2", "validation_samples=2"]
    assert main([*begin, "--out", str(tmp_path / "second"), *more]) == 0
    second = load_model(tmp_path / "second" / "model.safetensors")
    assert second.config == first.config and second.provenance["init"].startswith(first.name)
    # whoever asks for another network is told why it can't be
    assert main([*begin, "--out", str(tmp_path / "third"), *more, "nside=8"]) == 1
    assert "weights to begin with have another" in capsys.readouterr().err


class Bucket(AsyncFileSystem):
    """A bucket far away: each answer takes its time, and how many are under way is counted."""

    protocol, cachable = "bucket", False
    folder: Path
    under_way = most = 0
    tokens: ClassVar[set] = set()

    def __init__(self, token=None, **kwargs):
        super().__init__(**kwargs)
        Bucket.tokens.add(token)

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        Bucket.under_way += 1
        Bucket.most = max(Bucket.most, Bucket.under_way)
        await asyncio.sleep(0.002)
        Bucket.under_way -= 1
        return (self.folder / path).read_bytes()[start:end]

    async def _info(self, path, **kwargs):
        if not (self.folder / path).exists():
            raise FileNotFoundError(path)
        return {"name": path, "size": (self.folder / path).stat().st_size, "type": "file"}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Its name, with the analyses in it, a chunk per level and time."""
    sizes = {v: (1,) * (DS[v].ndim - 2) + DS[v].shape[-2:] for v in VARIABLES}
    encoding = {v: {"chunks": size} for v, size in sizes.items()}
    DS[list(VARIABLES)].to_zarr(tmp_path / "data.zarr", encoding=encoding, zarr_format=2)
    monkeypatch.delenv("XMOSAIC_OFFLINE")  # which forbids what isn't a path
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.folder, Bucket.most, Bucket.tokens = tmp_path, 0, set()
    return "bucket://data.zarr"


OPTIONS = [
    *("--train", "2020-01-01", "2020-01-25", "--validation", "2020-01-26", "2020-02-09", "--quiet", "--device", "cpu"),
    *("--set", "size=0.02", "nside=4", "updates=2", "neighbors=4", "validation_samples=2"),
]


def test_command_line_reads_from_a_bucket(bucket, tmp_path, monkeypatch, capsys):
    """As from a disk, with more answers under way than threads that ask; fsspec's settings reach the bucket."""
    monkeypatch.setitem(fsspec.config.conf, "bucket", {"token": "anon"})
    command = ["--workers", "1", *OPTIONS]
    assert main(["train", bucket, "--out", str(tmp_path / "far"), *command]) == 0
    assert Bucket.most > 1
    assert Bucket.tokens == {"anon"}
    assert main(["train", str(tmp_path / "data.zarr"), "--out", str(tmp_path / "near"), *command]) == 0
    far, near = (read_history(tmp_path / name) for name in ("far", "near"))
    xr.testing.assert_identical(_losses(far), _losses(near))


def test_command_line_reads_from_memory(tmp_path, capsys):
    DS.to_zarr("memory://analyses.zarr", mode="w", zarr_format=2)
    assert main(["train", "memory://analyses.zarr", "--out", str(tmp_path / "run"), *OPTIONS]) == 0
    assert load_model(tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize("url", ["gs://weatherbench2/era5.zarr", "s3://some/where.zarr"])
@pytest.mark.parametrize(
    "command", [["train", "--out", "run"], ["check"], ["forecast", "out.zarr", "--lead", "1D", "--members", "1"]]
)
def test_bucket_without_its_backend_names_the_extra(url, command, monkeypatch, capsys):
    monkeypatch.delenv("XMOSAIC_OFFLINE")
    for name in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
        monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, url[:2], raising=False)
    assert main([command[0], url, *command[1:]]) == 1
    text = capsys.readouterr().err
    assert f"{url} can't be opened" in text and "xmosaic[cloud]" in text


# ------------------------------------------------------------------------------------------------ loss and gradient


def _loss_module(kind="crps", dtype=torch.float64, **config):
    network = make_model(**config).network.to(dtype).requires_grad_(True)
    lon, lat = network.grid_shape
    generator = torch.Generator().manual_seed(1)
    area = torch.rand(lat, generator=generator, dtype=dtype) + 0.5
    alpha = torch.rand(network.config.num_variables, generator=generator, dtype=dtype) + 0.5
    module = RolloutLoss(network, area / area.mean(), alpha / alpha.mean(), kind)
    channels = network.config.num_channels

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    steps, samples, members = 2, 2, 3
    arguments = (
        draw(samples, network.config.num_history, lon, lat, channels),
        draw(samples, steps, lon, lat, network.config.num_variables),
        torch.rand(steps, samples, 2, generator=generator, dtype=dtype),
        None,
        draw(steps, samples, members, network.config.noise_dim),
        members,
    )
    return module, arguments


def test_gradient_of_the_whole_loss_against_finite_differences():
    """Two steps, three members, along a random direction of each weight, in float64.

    The steps are short: picked blocks change at once, and the loss jumps there.
    """
    module, arguments = _loss_module()
    module(*arguments)[0].backward()
    generator = torch.Generator().manual_seed(3)
    for name, weight in module.network.named_parameters():
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        slope, ends = (weight.grad * direction).sum().item(), []
        for sign in (1, -2):
            with torch.no_grad():
                weight.add_(direction, alpha=sign * 1e-6)
                ends.append(module(*arguments)[0].item())
        with torch.no_grad():
            weight.add_(direction, alpha=1e-6)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-9), name


def test_recomputed_activations_give_the_same_gradients():
    grads, kept = [], []
    for recompute in (False, "feed_forward", True):
        module, arguments = _loss_module(dtype=torch.float32)
        module.network.recompute = recompute
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = module(*arguments)[0]
        loss.backward()
        grads.append([w.grad.clone() for w in module.network.parameters()])
        kept.append(sum(sizes))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))
    # both halves of a gate and its output, at every point of every block: 2 samples × 3 members, 2 steps
    config = module.network.config
    blocks = [(s, s.encoder_depth + s.decoder_depth) for s in config.stages]
    blocks.append((config.bottleneck, config.bottleneck.encoder_depth))
    gates = sum(12 * depth * s.points * 3 * s.hidden for s, depth in blocks)
    assert kept[0] - kept[1] >= gates and kept[1] > kept[2]


def test_gradients_through_the_last_steps_alone():
    """As if the first state had been given."""
    module, (history, targets, clock, _, noise, members) = _loss_module()
    loss, _ = module(history, targets, clock, None, noise, members, 1)
    loss.backward()
    grads = [w.grad.clone() for w in module.network.parameters()]
    module.zero_grad()
    window = history.unsqueeze(1).expand(-1, members, *history.shape[1:])
    with torch.no_grad():
        state = module.network(window, clock[0], noise[0])
    window = torch.cat([window[:, :, 1:], state.unsqueeze(2)], dim=2)
    from xmosaic.training.loss import ensemble_loss

    last, _ = ensemble_loss(
        module.network(window, clock[1], noise[1]), targets[:, 1], module.area, module.alpha, "crps"
    )
    last.backward()
    assert loss.item() == last.item()
    assert all(torch.equal(a, w.grad) for a, w in zip(grads, module.network.parameters(), strict=True))


def test_noise_does_not_depend_on_company():
    alone = noise_of(5, 1, np.array([17]), range(1, 2), 2, 8)
    together = noise_of(5, 1, np.array([3, 17]), range(1, 4), 3, 8)
    assert torch.equal(alone[:, 0, 0], together[:2, 1, 0])
    assert noise_of(5, 1, np.array([3]), range(1, 3), 1, 0) is None


def test_overfits_one_sample():
    """The mean of the last losses is a small part of the first."""
    one = _changed(
        loss="mse", members=1, train=("2020-01-01", "2020-01-03"), stages=(Stage(180, batch_size=1),),
        validate_every=180, save_every=180, ema=None,
    )  # fmt: skip
    losses = _train(one).history["loss"]
    assert losses[-5:].mean() < 0.05 * losses[0]


def test_overfits_with_members():
    one = _changed(
        train=("2020-01-01", "2020-01-03"), stages=(Stage(100, batch_size=1),), validate_every=100, save_every=100
    )
    losses = _train(one).history["loss"]
    assert losses[-5:].mean() < 0.3 * losses[0]


def test_half_precision_is_near_and_weights_stay_float32():
    losses = [
        _train(_changed(precision=p, stages=(Stage(3, batch_size=4),))).history["loss"] for p in ("float32", "bfloat16")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert (losses[1] != losses[0]).any()


def test_frozen_weights_stay():
    start = _train(_changed(stages=(Stage(1, batch_size=2),)))
    model = _train(_changed(frozen=("encoder_stages.*",), stages=(Stage(3, batch_size=2),), ema=None), init=start)
    for name, weight in model.network.named_parameters():
        same = torch.equal(weight, dict(start.network.named_parameters())[name])
        assert same == name.startswith("encoder_stages."), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"checkpoint_activations": True},
        {"checkpoint_activations": "feed_forward"},
        {"bands": (2, 4)},
    ],
)
def test_recorded_updates_are_the_launched_ones(changes):
    """The same losses; where sums are made in no fixed order, as near as two launched runs are."""
    config = _changed(**changes)
    launched, again, recorded = (
        train(DS, config, progress=False, device="cuda", cuda_graph=way, workers=2).history["loss"].values
        for way in (False, False, True)
    )
    assert recorded[0] == pytest.approx(launched[0], rel=1e-6)
    assert np.abs(recorded - launched).max() < 1e-4 + 5 * np.abs(again - launched).max()


def test_recording_needs_a_gpu():
    with pytest.raises(ArgumentError, match="cuda_graph=True can't be done") as error:
        _train(cuda_graph=True)
    assert "1 rank on cpu" in str(error.value)


def test_a_loader_of_ones_own():
    """Twice the same sample in every batch: another run, and all starts are those it gave."""
    made = []

    class Twice(Loader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self.rollout)

        def starts(self, update):
            found = super().starts(update)
            return found[:1].repeat(len(found))

    own = _train(loader=Twice)
    assert made == [1, 1, 2, 2]  # training and validation of each stage
    assert not np.array_equal(own.history["loss"], _train().history["loss"])


def test_early_stopping_goes_on_with_the_next_stage():
    """A rate of practically 0 never gets better."""
    stages = (Stage(30, batch_size=2, learning_rate=1e-30), Stage(2, batch_size=2, learning_rate=1e-30))
    history = _train(_changed(stages=stages, validate_every=1, patience=2, ema=None, weight_decay=0.0)).history
    assert history["stage"].values.tolist() == [0, 0, 0, 1, 1]


def test_each_stage_has_a_best_of_its_own(monkeypatch):
    """Longer rollouts score worse than single steps: what they teach must not be thrown away for that."""
    plain, scores = loop.validate, iter([1.0, 2.0, 9.0, 8.0, 10.0])
    monkeypatch.setattr(loop, "validate", lambda *x: dataclasses.replace(plain(*x), total=next(scores)))
    stages = (Stage(2, batch_size=2), Stage(3, rollout=2, batch_size=2))
    model = _train(_changed(stages=stages, validate_every=1))
    assert (model.provenance["updates"], model.provenance["validation_crps"]) == (4, 8.0)


def test_a_gpu_without_a_number_is_that_of_the_local_rank(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [Ranks.find(name).device.index for name in ("cuda", "cuda:1")] == [0, 1]
    assert taken == [torch.device("cuda:0"), torch.device("cuda:1")]


# ------------------------------------------------------------------------------------------------- never lose work


def _losses(history):
    return history[["loss", "gradient_norm", "validation_crps"]]


@pytest.mark.parametrize("broken_at", [1, 3, 5, 8])
def test_interrupted_is_uninterrupted(run, tmp_path, monkeypatch, broken_at):
    """Whatever update it breaks at: losses and weights bit for bit."""
    _, whole = run
    step, done = loop.Optimiser.step, []

    def breaking(self):
        done.append(1)
        if len(done) == broken_at:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(loop.Optimiser, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        _train(out=tmp_path / "run")
    monkeypatch.undo()
    model = _train(out=tmp_path / "run", resume=True)
    xr.testing.assert_identical(_losses(model.history), _losses(whole.history))
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), whole.network.parameters(), strict=True))


def test_killed_is_uninterrupted(run, tmp_path):
    """SIGKILL at some moment; the same command goes on."""
    _, whole = run
    out = tmp_path / "run"
    process = process_of(_train, out=out)
    process.start()
    deadline = time.monotonic() + 60
    while not (out / "states.json").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    _train(out=out, resume=True)
    xr.testing.assert_identical(_losses(read_history(out)), _losses(whole.history))


def test_what_kills_left_goes_when_a_run_goes_on(tmp_path):
    """Half-written files, each as large as a state, would fill the disk in time; nothing else goes."""
    out = tmp_path / "run"
    _train(_changed(stages=(Stage(2, batch_size=2),)), out=out)
    before = {path.name for path in out.iterdir()}
    for name in ("state-00000002.pt", "model.safetensors", "history.jsonl", "states.json"):
        (out / f".{name}.a1b2c3d4").write_bytes(b"half")
    _train(_changed(stages=(Stage(2, batch_size=2),)), out=out, resume=True)
    assert {path.name for path in out.iterdir()} == before


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    """A job that is started anew while the old one hangs on would make a mess of history and states."""
    out, config = tmp_path / "run", _changed(stages=(Stage(4, batch_size=2),), save_every=1)
    refused = []

    class Meanwhile(Loader):
        def starts(self, update):
            if update == 3 and not refused:
                with pytest.raises(
                    StoreError, match=f"Another process is training in .*process {os.getpid()} on"
                ) as no:
                    _train(config, out=out, resume=True)
                refused.append(no)
            return super().starts(update)

    _train(config, out=out, loader=Meanwhile)
    assert refused
    assert read_history(out)["update"].values.tolist() == [1, 2, 3, 4]
    assert _train(config, out=out, resume=True).history.sizes["update"] == 4


def test_a_run_that_ended_before_its_first_update_leaves_its_folder_free(tmp_path):
    """A mistake is mended and the command given again; what was trained is never overwritten."""
    out = tmp_path / "run"
    holed = DS.copy(deep=True)
    holed["2m_temperature"][3, 2, 2] = np.nan
    short = _changed(stages=(Stage(1, batch_size=2),))
    with pytest.raises(DatasetError, match="2020-01-04"):
        _train(_changed(seed=3), ds=holed, out=out)
    assert _train(short, out=out).history.sizes["update"] == 1
    with pytest.raises(StoreError, match="already holds"):
        _train(short, out=out)


@pytest.mark.parametrize("stages", [(Stage(1, batch_size=2), Stage(1, 20, 2)), (Stage(1, 20, 2),)])
def test_windows_of_all_stages_are_looked_for_before_the_first_update(tmp_path, stages):
    with pytest.raises(DatasetError, match="20 of rollout"):
        _train(_changed(stages=stages), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_data_are_looked_at_before_the_first_update(tmp_path):
    holed = DS.copy(deep=True)
    holed["geopotential"][-1, 0, 2, 2] = np.nan
    with pytest.raises(DatasetError, match="geopotential at 500 hPa on 2020-02-09"):
        _train(ds=holed, out=tmp_path / "run")
    assert read_history(tmp_path / "run").sizes["update"] == 0
    other = _changed(variables={"2m_temperature": None}, stages=(Stage(1, batch_size=2),))
    history = _train(other, out=tmp_path / "run").history
    xr.testing.assert_identical(history, read_history(tmp_path / "run"))
    assert history.sizes == {"update": 1, "validation_update": 1, "channel": 1}


def test_resuming_a_finished_run_changes_nothing(run):
    out, whole = run
    before = (out / "model.safetensors").read_bytes()
    again = _train(out=out, resume=True)
    assert again.sha256 == whole.sha256
    assert (out / "model.safetensors").read_bytes() == before


def test_damaged_state_falls_back_to_the_one_before(run, tmp_path):
    _, whole = run
    out = tmp_path / "run"
    _train(out=out)
    last = json.loads((out / "states.json").read_text())[-1]["file"]
    (out / last).write_bytes((out / last).read_bytes()[:-7] + b"garbage")
    with pytest.warns(UserWarning, match=f"{last} can't be used"):
        model = _train(out=out, resume=True)
    xr.testing.assert_identical(_losses(model.history), _losses(whole.history))


def test_full_disk_stops_and_leaves_the_last_state(tmp_path, monkeypatch):
    out, replace = tmp_path / "run", os.replace

    def full(source, target):
        if "state-00000006" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(folder.os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        _train(out=out)
    monkeypatch.undo()
    assert folder.RunFolder(out).load()["update"] == 3
    assert not list(out.glob(".*"))
    assert _train(out=out, resume=True).history.sizes["update"] == 10


@pytest.mark.parametrize("room", [1000, 200_000])
def test_full_disk_is_said_whoever_writes(tmp_path, monkeypatch, room):
    """torch speaks of positions in its file, safetensors of serializing; both are told what to do."""
    written = torch.save

    class Full:
        def __init__(self, file):
            self.file, self.left = file, room

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    monkeypatch.setattr(folder.torch, "save", lambda state, file: written(state, Full(file)))
    with pytest.raises(StoreError, match="state-00000003.pt. Found .*No space left on device. Make room"):
        _train(out=tmp_path / "run")
    monkeypatch.undo()

    def serialize(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", serialize)
    with pytest.raises(StoreError, match="model.safetensors. Found .*No space left on device.*Make room"):
        _train(out=tmp_path / "run", resume=True)


def test_loss_that_is_no_number_names_channel_and_times(tmp_path):
    wild = _changed(stages=(Stage(8, batch_size=2, learning_rate=1e30),), clip=None, save_every=1)
    with pytest.raises(MosaicError, match=r"loss of update \d is (nan|inf).*2m_temperature.*2020-01-") as caught:
        _train(wild, out=tmp_path / "run")
    assert "resume=True" in str(caught.value)
    folder.RunFolder(tmp_path / "run").load()
    schema = Schema.from_variables(VARIABLES)
    with pytest.raises(MosaicError, match="geopotential_500; samples from 2020-01-01"):
        check_finite(np.nan, torch.tensor([1.0, torch.nan, 1.0]), schema, pd.DatetimeIndex(["2020-01-01"]), 3)


# ---------------------------------------------------------------------------------------------------- fine-tuning


def test_fine_tuning_with_other_channels(run):
    """Added, left out and reordered: what is known is predicted as before, for new inputs begin with weights 0."""
    _, start = run
    wanted = {"geopotential": [500], "mean_sea_level_pressure": None, "2m_temperature": None}
    schema = Schema.from_variables(wanted)
    network = Mosaic(
        dataclasses.replace(start.config, num_variables=3),
        np.array(start.grid.longitude),
        np.array(start.grid.latitude),
    )
    assert adapt_weights(start, network, schema) == ["mean_sea_level_pressure"]
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(1, 1, 2, *network.grid_shape, 3, generator=generator)
    clock, noise = torch.rand(1, 2), torch.randn(1, 1, 32)
    # the model's own order: 2 m temperature, geopotential at 500 and at 850 hPa, the last one 0 in both
    ours = torch.stack([history[..., 2], history[..., 0], torch.zeros_like(history[..., 0])], dim=-1)
    before, after = start.network(ours, clock, noise), network(history, clock, noise)
    torch.testing.assert_close(after[..., 2], before[..., 0])
    torch.testing.assert_close(after[..., 0], before[..., 1])


def test_fine_tuning_keeps_statistics_of_known_channels(run):
    _, start = run
    config = _changed(
        variables={"geopotential": [850], "mean_sea_level_pressure": None}, stages=(Stage(1, batch_size=2),)
    )
    model = _train(config, ds=DS.assign(geopotential=DS["geopotential"] + 1000), init=start)
    place = [c.name for c in model.schema.state].index("geopotential_850")
    assert model.mean[place] == start.mean[2]
    assert model.std[place] == start.std[2]
    assert model.provenance["init"].startswith(start.name)


TUNING = _changed(stages=(Stage(4, batch_size=2, learning_rate=0.2),), validate_every=2, ema=None)


def test_fine_tuning_that_only_gets_worse_returns_what_it_began_with(run, tmp_path):
    _, start = run
    with pytest.warns(UserWarning, match="come back as they were") as warned:
        model = _train(TUNING, init=start, out=tmp_path / "run")
    assert warned[0].filename == __file__
    crps = model.history["validation_crps"]
    assert crps["validation_update"].values.tolist() == [0, 2, 4]
    assert (crps.sel(validation_update=[2, 4]) > crps.sel(validation_update=0)).all()
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), start.network.parameters(), strict=True))
    assert model.provenance["updates"] == 0
    assert model.provenance["validation_crps"] == crps.sel(validation_update=0)
    assert "made it no better" in load_model(tmp_path / "run" / "model.safetensors").provenance["title"]


def test_first_validation_is_of_the_weights_that_training_begins_with(run):
    """A rate of practically 0 leaves them there; and the validation before leaves no trace in what follows."""
    _, start = run
    still = dataclasses.replace(TUNING, stages=(Stage(2, batch_size=2, learning_rate=1e-30),), weight_decay=0.0)
    with pytest.warns(UserWarning, match="as they were"):
        history = _train(still, init=start).history
    before, after = (history["validation_crps_by_channel"].sel(validation_update=n) for n in (0, 2))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert _train(_changed(stages=(Stage(2, batch_size=2),))).history["validation_update"].values.tolist() == [2]


@pytest.mark.parametrize("broken_at", [1, 2, 4])
def test_fine_tuning_interrupted_is_uninterrupted(run, tmp_path, monkeypatch, broken_at):
    """Before a state is saved and after it; the score of the beginning is kept."""
    _, start = run
    config = dataclasses.replace(TUNING, save_every=2)
    with pytest.warns(UserWarning, match="as they were"):
        whole = _train(config, init=start)
    step, done = loop.Optimiser.step, []

    def breaking(self):
        done.append(1)
        if len(done) == broken_at:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(loop.Optimiser, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        _train(config, init=start, out=tmp_path / "run")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="as they were"):
        model = _train(config, init=start, out=tmp_path / "run", resume=True)
    xr.testing.assert_identical(_losses(model.history), _losses(whole.history))
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), whole.network.parameters(), strict=True))


def test_an_ensemble_begins_with_a_deterministic_model_and_the_other_way_round():
    """The first state is the deterministic one's up to noise that is still small; then members learn to differ."""
    plain = dataclasses.replace(NETWORK, noise_dim=0)
    single = _train(_changed(network=plain, loss="mse", members=1, stages=(Stage(6, batch_size=4),)))
    quiet = _train(_changed(stages=(Stage(1, batch_size=4, learning_rate=1e-9),)), init=single)
    fc, alone = (
        xmosaic.forecast(DS.isel(time=slice(5)), "1D", n, model=m, progress=False) for m, n in ((quiet, 3), (single, 1))
    )
    for name in VARIABLES:
        spread = float(fc[name].std("number").max()) / float(alone[name].std())
        assert 0 < spread < 0.05
        assert np.allclose(fc[name].mean("number"), alone[name].isel(number=0), atol=0.1 * float(alone[name].std()))
    if torch.cuda.is_available():
        quiet.network.to("cuda")  # where a forecast has left it
    back = _train(_changed(network=plain, loss="mse", members=1, stages=(Stage(1, learning_rate=1e-9),)), init=quiet)
    quiet.network.cpu()
    for name, weight in back.network.named_parameters():
        assert torch.allclose(weight, dict(quiet.network.named_parameters())[name], atol=1e-6), name


def test_fine_tuning_takes_static_fields_by_name():
    """Those that are known stay as the weights know them; others, or those of another grid, are the data's."""
    rng, one = np.random.default_rng(0), (Stage(1, batch_size=2, learning_rate=1e-9),)
    shape, dims = (DS.sizes["latitude"], DS.sizes["longitude"]), ("latitude", "longitude")
    mask, other = (xr.DataArray(rng.random(shape), dims=dims, attrs={"units": "1"}) for _ in range(2))
    height = xr.DataArray(1e4 * rng.random(shape), dims=dims, attrs={"units": "m2 s-2"})
    start = _train(_changed(static=("land_sea_mask",), stages=one), ds=DS.assign(land_sea_mask=mask))
    ds = DS.assign(land_sea_mask=other, geopotential_at_surface=height)
    for names in (("geopotential_at_surface",), ("geopotential_at_surface", "land_sea_mask")):
        model = _train(_changed(static=names, stages=one), ds=ds, init=start)
        np.testing.assert_allclose(model.static[..., 0], height.T)
        assert len(names) == 1 or np.array_equal(model.static[..., 1], start.static[..., 0])
    with warnings.catch_warnings(action="ignore"):
        assert _train(_changed(stages=one), ds=ds, init=start).static is None
        finer = xmosaic.to_latlon(ds, LatLonGrid.equiangular(16, 9))
        model = _train(_changed(static=("land_sea_mask",), stages=one), ds=finer, init=start)
    np.testing.assert_allclose(model.static[..., 0], finer["land_sea_mask"].transpose("longitude", "latitude"))


def test_weights_that_do_not_fit(run):
    _, start = run
    wider = dataclasses.replace(NETWORK, bottleneck=StageConfig(2, 32, 2, 1, 48, 8, 2, decoder_depth=0))
    with pytest.raises(CheckpointError, match="another shape"):
        _train(_changed(network=wider), init=start)
    deeper = dataclasses.replace(NETWORK, bottleneck=StageConfig(2, 24, 2, 1, 48, 8, 2, 2, 0))
    with pytest.raises(CheckpointError, match="other weights"):
        _train(_changed(network=deeper), init=start)
    with pytest.raises(CheckpointError, match="num_history"):
        _train(_changed(network=dataclasses.replace(NETWORK, num_history=1)), init=start)
    with pytest.raises(CheckpointError, match="another residual"):
        _train(_changed(network=dataclasses.replace(NETWORK, residual=True)), init=start)


# ------------------------------------------------------------------------------------------------------ bad input


def test_data_that_can_not_be_trained_on():
    holed = DS.copy(deep=True)
    holed["2m_temperature"][3, 2, 2] = np.nan
    flat = DS.assign({"2m_temperature": DS["2m_temperature"] * 0 + 280})
    for ds, config, text in (
        (DS, _changed(train=("2020-01-01", "2020-01-02")), "longer than the data"),
        (DS, _changed(train=("1990", "1991")), "1990"),
        (holed, BASE, "2m_temperature.*2020-01-04"),
        (flat, BASE, "2m_temperature"),
        (DS.drop_vars("geopotential"), BASE, "geopotential"),
        (DS.isel(longitude=slice(0, 5)), BASE, "[Ll]ongitude|global"),
    ):
        with pytest.raises(DatasetError, match=text):
            _train(config, ds=ds)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stages": 5}, "stages"),
        ({"betas": 0.9}, "betas"),
        ({"forcing": [3]}, "forcing.*names"),
        ({"variables": ["geopotential"]}, "variables.*levels by name"),
        ({"variables": {"geopotential": [500.5]}}, "whole levels"),
        ({"variables": {"geopotential": "500"}}, "whole levels"),
        ({"area_statistics": "false"}, "area_statistics.*'false'; expected True or False"),
        ({"checkpoint_activations": 1}, "True, False or 'feed_forward'"),
        ({"checkpoint_activations": "all"}, "True, False or 'feed_forward'"),
        ({"clip": np.inf}, "clip"),
        ({"validate_every": 2.0}, "validate_every.*whole number"),
        ({"validation_members": 1}, "validation_members.*2 or more"),
        ({"train": ("2020-02-30", "2020-03")}, "no two dates"),
        ({"train": (pd.Timestamp("2020-01-01"), None)}, "no two dates"),
        ({"train": slice("2020-01-01", "2020-01-25")}, "two dates"),
    ],
)
def test_configurations_that_can_not_be_used(fields, text):
    with pytest.raises(ArgumentError, match=text):
        _changed(**fields)


@pytest.mark.parametrize(
    "change", [None, {"network": None}, {"stages": 5}, {"stages": [3]}, {"stages": [{"update": 3}]}, {"speed": 3}]
)
def test_dicts_that_are_no_configuration(change):
    with pytest.raises(ArgumentError):
        TrainConfig.from_dict(change and BASE.to_dict() | change)


def test_configuration_is_the_same_however_it_is_written():
    """And survives JSON: names, levels and dates of any kind are taken for what they mean."""
    written = _changed(
        variables={"2m_temperature": None, "geopotential": np.array([500, 850])},
        train=(pd.Timestamp("2020-01-01"), np.datetime64("2020-01-25")),
        frozen="encoder_stages.*",
        validation=[pd.Period("2020-01-26"), "2020-02-09"],
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(written.to_dict()))) == written
    plain = _changed(train=("2020-01-01 00:00:00", "2020-01-25"), frozen=("encoder_stages.*",))
    assert written == plain
    assert _changed(variables={"geopotential": 500}) == _changed(variables={"geopotential": (500,)})
    assert _changed(train=(2018, 2019)).train == ("2018", "2019")


def test_arguments_that_can_not_be_used(run, tmp_path):
    out, _ = run
    with pytest.raises(ArgumentError, match="TrainConfig"):
        train(DS, {"updates": 3})
    with pytest.raises(ArgumentError, match="out="):
        _train(resume=True)
    with pytest.raises(StoreError, match="resume=True"):
        _train(out=out)
    with pytest.raises(CheckpointError, match="no training run"):
        _train(out=tmp_path / "empty", resume=True)
    with pytest.raises(ArgumentError, match="another seed"):
        _train(_changed(seed=1), out=out, resume=True)
    with pytest.raises(CheckpointError, match="other statistics"):
        _train(ds=DS + 1, out=out, resume=True)
    for name, value in (("out", 5), ("init", 5), ("loader", 5)):
        with pytest.raises(ArgumentError, match=f"{name} can't be used.*5"):
            _train(**{name: value})
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="Take a folder that can be written to"):
        _train(out=tmp_path / "file")
    with pytest.raises(DatasetError, match="no history"):
        read_history(tmp_path / "file")
    with pytest.raises(ArgumentError, match=r"device='cuda:\d+' isn't there. Found (no CUDA GPU|GPUs up to cuda:\d)"):
        train(DS, BASE, device="cuda:0" if not torch.cuda.is_available() else "cuda:99", progress=False)


def test_public_names():
    assert xmosaic.train is train
    assert callable(xmosaic.recipes.small)
