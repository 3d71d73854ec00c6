"""Is a model read back exactly, is everything else refused with a clear text, and does no file ever run code?"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import stat
import subprocess
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import xmosaic
from xmosaic import checkpoint
from xmosaic.checkpoint import (
    LicenseNotice,
    Model,
    convert_published,
    load_model,
    load_published_weights,
    read_model,
)
from xmosaic.cli import main
from xmosaic.errors import CheckpointError, MosaicError
from xmosaic.grid import LatLonGrid
from xmosaic.model import Mosaic, MosaicConfig, StageConfig
from xmosaic.variables import Schema

TINY = Path(__file__).parent / "data" / "tiny"
GRID = LatLonGrid.equiangular(12, 7)
SCHEMA = Schema.from_variables({"2m_temperature": None, "geopotential": [500, 850]}, static=["land_sea_mask"])
CONFIG = MosaicConfig(
    stages=(StageConfig(4, 8, 2, 1, 64, 16, 4),),
    bottleneck=StageConfig(2, 8, 2, 1, 48, 8, 2, decoder_depth=0),
    num_variables=3,
    num_static=1,
    num_neighbors=4,
    noise_dim=4,
)


def make_model(**change) -> Model:
    static = np.random.default_rng(0).random((12, 7, 1)).astype(np.float32)
    network = Mosaic(CONFIG, np.array(GRID.longitude), np.array(GRID.latitude), static)
    network.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    values = {
        "network": network,
        "schema": SCHEMA,
        "grid": GRID,
        "mean": np.array([280.0, 5e4, 1e4]),
        "std": np.array([20.0, 3e3, 2e3]),
        "static": static,
        "provenance": {"name": "test", "license": "BSD-3-Clause", "training": {"steps": 3}},
    }
    return Model(**values | change)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return make_model().save(tmp_path_factory.mktemp("model") / "model.safetensors")


def contents(path):
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["xmosaic"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118


def rewrite(source, target, tensors=lambda t: t, description=lambda d: d, metadata=lambda m: m, sign=True):
    """The file with changes and, as anyone could make it, a digest that is right."""
    header, held = contents(source)
    held = tensors(dict(held))
    described = description(header["model"])
    if isinstance(described, str):  # of text that is no JSON, or too deep for it
        text = json.dumps(header | {"model": None}).replace("null", described)
    else:
        digest = checkpoint.arrays.digest_of(held, described) if sign else header["digest"]
        text = json.dumps(header | {"model": described, "digest": digest}, sort_keys=True)
    save_file(held, target, metadata=metadata({"xmosaic": text}))
    return target


def edited_header(change):
    """Metadata whose header is changed."""
    return lambda m: {"xmosaic": json.dumps(change(json.loads(m["xmosaic"])))}


# ---- our own format: what is written is read ----


def test_a_model_is_read_back_as_it_was(tmp_path):
    before = make_model()
    path = before.save(tmp_path / "deep" / "er" / "m.safetensors")
    after = load_model(path)
    weights = after.network.state_dict()
    assert weights.keys() == before.network.state_dict().keys()
    for name, weight in before.network.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    buffers = dict(after.network.named_buffers())
    for name, buffer in before.network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert (after.config, after.schema, after.grid) == (before.config, before.schema, before.grid)
    for name in ("mean", "std", "static"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype
    assert after.provenance == before.provenance
    assert not after.network.training
    assert not any(p.requires_grad for p in after.network.parameters())
    told = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert after.sha256 == told == hashlib.sha256(path.read_bytes()).hexdigest()


def test_saving_again_writes_the_same(tmp_path, file):
    again = load_model(file).save(tmp_path / "again.safetensors")
    (metadata, tensors), (before, held) = contents(again), contents(file)
    assert metadata == before
    assert again.read_bytes() == file.read_bytes()
    assert tensors.keys() == held.keys()
    assert all(torch.equal(t, held[n]) for n, t in tensors.items())
    assert stat.S_IMODE(again.stat().st_mode) == 0o644


def test_a_model_computes_the_same_after_reading(file):
    before, after = make_model(), load_model(str(file))
    rng = torch.Generator().manual_seed(1)
    args = [torch.randn(s, generator=rng) for s in ((1, 2, 2, 12, 7, 3), (1, 2), (1, 2, 4))]
    assert torch.equal(before.network(*args), after.network(*args))


def test_a_model_without_static_fields(tmp_path):
    schema = Schema.from_variables({"2m_temperature": None, "geopotential": [500, 850]})
    config = dataclasses.replace(CONFIG, num_static=0, noise_dim=0)
    network = Mosaic(config, np.array(GRID.longitude), np.array(GRID.latitude)).init_weights()
    model = make_model(network=network, schema=schema, static=None)
    after = load_model(model.save(tmp_path / "m.safetensors"))
    assert after.static is None
    assert after.config == config


def test_views_and_shared_arrays_are_saved(tmp_path):
    table = np.arange(1.0, 13.0).reshape(3, 4)
    one = np.ones(3)
    one.flags.writeable = False
    for mean, std in ((table[:, 0], table[::-1, 1]), (one, one)):
        after = load_model(make_model(mean=mean, std=std).save(tmp_path / "m.safetensors"))
        np.testing.assert_array_equal(after.mean, mean)
        np.testing.assert_array_equal(after.std, std)


def test_provenance_that_json_changes_is_still_readable(tmp_path):
    given = {"name": "n", "losses": {2: 0.5, 10: 0.25}, "years": (1979, 2020)}
    after = load_model(make_model(provenance=given).save(tmp_path / "m.safetensors"))
    assert after.provenance == {"name": "n", "losses": {"2": 0.5, "10": 0.25}, "years": [1979, 2020]}


def test_unnamed_model_is_called_after_its_file(tmp_path):
    assert load_model(make_model(provenance={}).save(tmp_path / "storm.safetensors")).name == "storm"


@pytest.mark.parametrize("moment", ["save_file", "replace"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = make_model().save(tmp_path / "m.safetensors")
    old = path.read_bytes()

    def fail(*args, **_):
        Path(args[1]).write_bytes(b"half") if moment == "save_file" else None
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file" if moment == "save_file" else "os.replace", fail)
        with pytest.raises(CheckpointError, match=r"can't be written to .*m.safetensors. Found No space left"):
            make_model(mean=np.zeros(3)).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_folder_in_the_way_is_no_target(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "f").write_text("a file")
    for target in (tmp_path / "m", tmp_path / "f" / "m.safetensors"):
        with pytest.raises(CheckpointError, match="can't be written"):
            make_model().save(target)
    assert sorted(os.listdir(tmp_path)) == ["f", "m"]


def test_the_card_says_what_it_is(file):
    text = repr(load_model(file))
    for part in ("test", "BSD-3-Clause", "24 h", "12 longitudes × 7 latitudes", "nside 4 → 2", "500, 850 hPa"):
        assert part in text
    assert "UNTRAINED" not in text
    assert "UNTRAINED" in repr(make_model(provenance={"untrained": True}))
    assert "&lt;b&gt;" in make_model(provenance={"name": "<b>"})._repr_html_()
    assert make_model(provenance={"card": {"Limits": "many"}}).card()["Limits"] == "many"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"schema": SCHEMA.select(["geopotential", "land_sea_mask"])},
            r"Schema and network don't fit. Found \(2, 0, 1",
        ),
        ({"grid": LatLonGrid.equiangular(8, 5)}, r"Grid and network don't fit. Found \(8, 5\).* expected \(12, 7\)"),
        ({"grid": LatLonGrid(GRID.latitude[::-1], GRID.longitude)}, "not in order"),
        ({"mean": np.zeros(2)}, r"mean is misshapen. Found \(2,\); expected \(3,\)"),
        ({"std": np.array([1.0, 0.0, 1.0])}, "The std of geopotential_500 can't be used"),
        ({"std": np.array([1.0, -1.0, np.nan])}, "The std of geopotential_500, geopotential_850 can't be used"),
        ({"mean": np.array([1.0, np.inf, 1.0])}, "The mean of geopotential_500 can't be used"),
        ({"mean": np.array([1, 2, 3])}, "mean is of another type. Found int64"),
        ({"static": None}, r"Static fields misshapen. Found \(12, 7, 0\); expected .* \(12, 7, 1\)"),
        ({"static": np.zeros((7, 12, 1))}, "Static fields misshapen"),
    ],
)
def test_parts_that_do_not_fit_make_no_model(change, text):
    with pytest.raises(CheckpointError, match=text):
        make_model(**change)


# ---- our own format: what is damaged is refused ----


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_truncated_file(file, data):
    raw = file.read_bytes()
    length = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(raw) - 1)))
    damaged = file.with_name("truncated.safetensors")
    damaged.write_bytes(raw[:length])
    with pytest.raises(CheckpointError, match=r"truncated.safetensors is no readable safetensors file.*fetch or make"):
        load_model(damaged)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_flipped_bit(file, data):
    raw = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(raw) - 1)))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = file.with_name("flipped.safetensors")
    damaged.write_bytes(raw)
    with pytest.raises(CheckpointError, match="flipped.safetensors"):
        load_model(damaged)


def drop(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


def put(name, change):
    return lambda t: t | {name: change(t.get(name)).contiguous()}


def filled(value):
    return lambda t: torch.cat([t.flatten()[:-1], torch.tensor([value], dtype=t.dtype)]).view(t.shape)


WEIGHT = "network.preprocess.0.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop(WEIGHT), r"The tensors of .* 1 missing \(preprocess.0.weight\)"),
        (put("network.extra.weight", lambda t: torch.ones(2)), r"1 unexpected \(extra.weight\)"),
        (put("network.bias", lambda t: torch.tensor(2.0)), r"1 unexpected \(bias\)"),
        (put(WEIGHT, lambda t: t.T), r"preprocess.0.weight of .* is misshapen. Found \(14, 8\); expected \(8, 14\)"),
        (put(WEIGHT, filled(float("nan"))), "preprocess.0.weight of .* holds NaN or infinite values"),
        (put(WEIGHT, filled(float("-inf"))), "preprocess.0.weight of .* holds NaN or infinite values"),
        (
            put(WEIGHT, lambda t: t.to(torch.int32)),
            "preprocess.0.weight of .* no plain real numbers. Found torch.int32",
        ),
        (put(WEIGHT, lambda t: t.to(torch.float8_e4m3fn)), "no plain real numbers. Found torch.float8"),
        (put(WEIGHT, lambda t: t.to(torch.complex64)), "no plain real numbers. Found torch.complex64"),
        (drop("statistics.std"), r"1 missing \(statistics.std\)"),
        (put("secret", lambda t: torch.ones(1)), r"1 unexpected \(secret\)"),
        (put("statistics.std", filled(0.0)), "The std of geopotential_850 can't be used"),
        (put("statistics.mean", filled(float("nan"))), "The mean of geopotential_850 can't be used"),
        (put("statistics.mean", lambda t: t[:2]), r"mean is misshapen. Found \(2,\)"),
        (put("statistics.mean", lambda t: t.to(torch.int64)), "mean is of another type"),
        (
            put("statistics.mean", lambda t: t.to(torch.bfloat16)),
            "statistics.mean of .* another type. Found torch.bfloat",
        ),
        (put("static", lambda t: t.transpose(0, 1)), r"Static fields of .* misshapen. Found \(7, 12, 1\)"),
        (put("static", filled(float("inf"))), "Static fields of .* hold NaN"),
        (drop("static"), r"1 missing \(static\)"),
        (put("neighbors.to_mesh", lambda t: t[:, :3]), r"A table of neighbours of .* misshapen. Found \(192, 3\)"),
        (put("neighbors.to_mesh", filled(84)), "points outside the grid. Found int32, 0 to 84; .* from 0 to 83"),
        (put("neighbors.to_grid", filled(-1)), "points outside the grid"),
        (put("neighbors.to_grid", lambda t: t.float()), "points outside the grid. Found float32"),
        (put("grid.latitude", filled(61.0)), "Latitudes don't reach"),
        (put("grid.latitude", lambda t: t.flip(0)), "not in order"),
        (put("grid.latitude", filled(float("nan"))), "latitude has values that are NaN"),
        (put("grid.latitude", lambda t: t[None]), "latitude"),
        (put("grid.longitude", lambda t: t[::2]), "points outside the grid. Found int32, 0 to 83; .* 0 to 41"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, file, change, text):
    bad = rewrite(file, tmp_path / "bad.safetensors", tensors=change)
    with pytest.raises(CheckpointError, match=text):
        load_model(bad)


def configured(**change):
    return lambda d: d | {"config": d["config"] | change}


def staged(**change):
    return lambda d: d | {"config": d["config"] | {"stages": [d["config"]["stages"][0] | change]}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (configured(colour=1), "MosaicConfig has no field 'colour'"),
        (configured(stages=[]), "at least one stage"),
        (configured(stages=None), "description in .* can't be read"),
        (configured(bottleneck=[1, 2]), "bad.safetensors"),
        (configured(num_variables=4), "bad.safetensors"),
        (configured(num_variables="3"), "num_variables .* of type int"),
        (configured(num_history=3), r"preprocess.0.weight of .* is misshapen. Found \(8, 14\); expected \(8, 17\)"),
        (configured(num_history=10**9), "The tensors of .* are not those of its network"),
        (configured(num_history=10**30), "The tensors of .* are not those of its network"),
        (configured(num_variables=10**12), "bad.safetensors"),
        (configured(noise_dim=2**60), "The tensors of .* are not those of its network"),
        (configured(num_neighbors=10**15), "A table of neighbours"),
        (configured(rope_theta=float("nan")), "rope_theta"),
        (staged(nside=2**40), "nside of the stages"),
        (staged(dim=2**62), "The tensors of .* are not those of its network"),
        (staged(dim=2**40), "The tensors of .* are not those of its network"),
        (staged(dim=16.0), "dim .* of type int"),
        (staged(num_heads=0), "num_heads"),
        (staged(mlp_ratio=1e300), "The tensors of .* are not those of its network"),
        (staged(mlp_ratio=float("inf")), "mlp_ratio"),
        (staged(encoder_depth=10**9), "The tensors of .* are not those of its network"),
        (staged(encoder_depth=2), "missing .*encoder_stages.0.blocks.1"),
        (lambda d: d | {"schema": {"channels": d["schema"]["channels"][1:]}}, "Schema and network don't fit"),
        (lambda d: d | {"schema": {"channels": [{"variable": 3}]}}, "bad.safetensors"),
        (lambda d: d | {"schema": {}}, "schema lacks"),
        (lambda d: d | {"provenance": 7}, "description in .* can't be read"),
        (lambda d: {k: v for k, v in d.items() if k != "schema"}, "description in .* can't be read. Found KeyError"),
        (lambda d: "[" * 100_000, "description in .* can't be read"),
        (lambda d: "[]", "description in .* can't be read"),
        (lambda d: "{", "description in .* can't be read"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path, file, change, text):
    bad = rewrite(file, tmp_path / "bad.safetensors", description=change)
    with pytest.raises(CheckpointError, match=text):
        load_model(bad)


def test_huge_meshes_are_refused_before_they_are_made(tmp_path, file, monkeypatch):
    def large(description):
        c = description["config"]
        stages = [c["stages"][0] | {"nside": 2**14}]
        return description | {"config": c | {"stages": stages, "bottleneck": c["bottleneck"] | {"nside": 2**13}}}

    bad = rewrite(file, tmp_path / "bad.safetensors", description=large)
    monkeypatch.setattr("xmosaic.healpix.cell_centres", lambda *_: pytest.fail("a mesh was made"))
    with pytest.raises(
        CheckpointError, match=r"A table of neighbours .* misshapen. Found \(192, 4\); expected \(3221225472"
    ):
        load_model(bad)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nonsense_in_the_configuration_never_crashes(file, data):
    """Any JSON value in any field: the model or a CheckpointError, nothing else."""
    nonsense = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.lists(st.integers(), max_size=3),
        st.sampled_from([2**31, 2**63, 2**100, 0, -1, 1e308]),
    )

    def change(d):
        place = data.draw(st.sampled_from(["config", "stage", "bottleneck", "channel"]))
        target = {
            "config": d["config"],
            "stage": d["config"]["stages"][0],
            "bottleneck": d["config"]["bottleneck"],
            "channel": d["schema"]["channels"][0],
        }[place]
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(nonsense)
        return d

    bad = rewrite(file, file.with_name("nonsense.safetensors"), description=change)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load_model(bad), Model)


def test_wrong_digest(tmp_path, file):
    bad = rewrite(file, tmp_path / "bad.safetensors", tensors=put(WEIGHT, lambda t: t + 1), sign=False)
    with pytest.raises(CheckpointError, match=r"bad.safetensors is damaged. Found digest .*; expected [0-9a-f]{64}"):
        load_model(bad)
    described = rewrite(file, tmp_path / "bad.safetensors", description=configured(step_hours=6), sign=False)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(described)
    bare = rewrite(file, tmp_path / "bad.safetensors", metadata=edited_header(lambda h: h | {"digest": None}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(bare)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (lambda m: {"format": "pt"}, "is not a model of this package. Found safetensors with the metadata 'format'"),
        (lambda m: None, "is not a model of this package. Found safetensors with the metadata none"),
        (edited_header(lambda h: h | {"format_version": 2}), "another version of the format. Found 2; expected 1"),
        (edited_header(lambda h: {"format_version": 1}), "description in .* can't be read. Found KeyError"),
        (edited_header(lambda h: [h]), "description in .* can't be read. Found AttributeError"),
    ],
)
def test_other_formats(tmp_path, file, metadata, text):
    bad = rewrite(file, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=text):
        load_model(bad)


def test_names_that_mean_nothing(tmp_path):
    with pytest.raises(
        CheckpointError, match="There is no model 'gfs'. Expected 'bundled', 'era5', 'hres', or the path"
    ):
        load_model("gfs")
    with pytest.raises(CheckpointError, match="There is no file"):
        read_model(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read_model(tmp_path)
    for option in ("folder", "revision"):
        with pytest.raises(CheckpointError, match=f"{option}= is for the published models"):
            load_model("bundled", **{option: "x"})
    model = make_model()
    assert load_model(model) is model


def test_the_bundled_model_is_whole():
    model = load_model("bundled")
    assert model.name == "bundled"
    assert model.license == "BSD-3-Clause"


# ---- the published format: weights ----


class Trap:
    """Pickled code: makes a file when it is run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def tiny_state():
    return torch.load(TINY.with_suffix(".pt"), weights_only=True)["model_state_dict"]


def save_state(path, change=lambda s: s):
    torch.save({"model_state_dict": change(tiny_state()), "epoch": 3}, path)
    return path


def test_published_weights_and_tables_are_read():
    weights, neighbors = load_published_weights(TINY.with_suffix(".pt"))
    state = tiny_state()
    assert sum(w.numel() for w in weights.values()) == 21_504
    assert all(torch.equal(w, state[f"model.{n}"]) for n, w in weights.items())
    assert [t.shape for t in neighbors] == [(192, 4), (84, 4)]


@pytest.mark.parametrize("prefix", [True, False])
def test_derived_tables_may_be_absent(tmp_path, prefix):
    def strip(state):
        kept = {k: v for k, v in state.items() if not k.endswith((".neighbors", ".rel_pos", "_freqs", "static_vars"))}
        return kept if prefix else {k.removeprefix("model."): v for k, v in kept.items()}

    weights, neighbors = load_published_weights(save_state(tmp_path / "w.pt", strip))
    assert neighbors is None
    assert weights.keys() == load_published_weights(TINY.with_suffix(".pt"))[0].keys()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "raw", "old torch", "nested"])
def test_code_in_a_pickle_is_never_run(tmp_path, kind):
    sprung, path = tmp_path / "sprung", tmp_path / "w.pt"
    trap = {"model_state_dict": {"a": Trap(sprung)}} if kind == "nested" else Trap(sprung)
    if kind == "raw":
        path.write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=kind != "old torch")
    with pytest.raises(CheckpointError, match=r"not plain tensors: reading it could run code.*Nothing in it was run"):
        load_published_weights(path)
    assert not sprung.exists()
    # the trap works: plain unpickling, as others do it, springs it
    torch.load(path, weights_only=False) if kind != "raw" else pickle.loads(path.read_bytes())
    assert sprung.exists()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_truncated_published_file(tmp_path_factory, data):
    raw = TINY.with_suffix(".pt").read_bytes()
    length = data.draw(st.one_of(st.integers(0, 300), st.integers(0, len(raw) - 1)))
    path = tmp_path_factory.getbasetemp() / "truncated.pt"
    path.write_bytes(raw[:length])
    with pytest.raises(CheckpointError, match="truncated.pt"):
        load_published_weights(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_overwritten_published_file_never_crashes(tmp_path_factory, data):
    """torch checks the archive's checksums in part only: either weights come back or a CheckpointError."""
    raw = bytearray(TINY.with_suffix(".pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, 9000), st.integers(len(raw) - 5000, len(raw) - 1)))
        raw[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "overwritten.pt"
    path.write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        weights, _ = load_published_weights(path)
        assert all(isinstance(w, torch.Tensor) for w in weights.values())


def test_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(TINY.with_suffix(".pt")) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, bytes(50_000_000) if name.endswith("data/3") else good.read(name))
    assert path.stat().st_size < 300_000
    with pytest.raises(CheckpointError, match=r"unpacks to too much. Found \d{8} bytes packed into \d{5,6}; expected"):
        load_published_weights(path)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: p.write_text("plain text, a page of HTML perhaps"), "w.pt"),
        (lambda p: p.write_bytes(b""), "can't be read as a PyTorch file"),
        (lambda p: p.mkdir(), "can't be read as a PyTorch file"),
        (lambda p: None, "There is no file"),
        (lambda p: torch.save([1, 2], p), "laid out otherwise .* Found list; expected a dict with 'model_state_dict'"),
        (lambda p: torch.save({}, p), "laid out otherwise .* Found the keys none"),
        (lambda p: torch.save({"state_dict": {}}, p), "laid out otherwise .* Found the keys 'state_dict'"),
        (lambda p: torch.save({"model_state_dict": {"a": 1}}, p), "laid out otherwise"),
        (lambda p: torch.save({"model_state_dict": [torch.ones(1)]}, p), "laid out otherwise"),
        (lambda p: zipfile.ZipFile(p, "w").close(), "w.pt"),
    ],
)
def test_files_that_are_no_weights(tmp_path, make, text):
    make(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=text):
        load_published_weights(tmp_path / "w.pt")


def test_weights_alone_are_no_model(tmp_path):
    path = save_state(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds weights alone.*`xmosaic convert`"):
        load_model(path)


# ---- the published folder, in small: the layout with the network of the fixture ----


def tiny_config() -> MosaicConfig:
    raw = json.loads(TINY.with_suffix(".json").read_text())

    def stage(r):
        return StageConfig(
            r["nside"],
            r["dim"],
            r["num_heads"],
            r["num_heads"] // r["gqa_ratio"],
            r["block_attn_size"],
            r["sparse_block_size"],
            r["sparse_block_count"],
            r.get("encoder_depth", r.get("depth")),
            r.get("decoder_depth", 0),
            r["mlp_ratio"],
        )

    return MosaicConfig(
        stages=tuple(stage(s) for s in raw["stages"]),
        bottleneck=stage(raw["bottleneck"]),
        num_variables=raw["num_variables"],
        num_static=3,
        num_history=raw["num_history_steps"],
        num_neighbors=raw["k_neighbors"],
        grouping="strided",
        clock="release",
    )


@pytest.fixture
def small_published(monkeypatch):
    """Both variants are the network of the fixture, with three channels on its grid."""
    schema = Schema.from_variables(
        {"2m_temperature": None, "geopotential": [500, 850]},
        static=["geopotential_at_surface", "land_sea_mask", "soil_type"],
    )
    monkeypatch.setattr(checkpoint.variants, "PUBLISHED", {"era5": tiny_config(), "hres": tiny_config()})
    monkeypatch.setattr(checkpoint.variants, "PUBLISHED_GRID", (12, 7))
    monkeypatch.setattr(checkpoint.variants, "published_schema", lambda: schema)
    return schema


def publish(folder, variants=("era5",), flat=False, weights=lambda s: s, **arrays):
    """Files in the published layout; `arrays` replaces arrays or, with None, leaves them out."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(TINY.with_suffix(".npz")) as file:
        held = {n: file[n] for n in ("state_mean", "state_std", "static", "longitude", "latitude")}
    held["data"] = held.pop("static")
    held = {k: v for k, v in (held | arrays).items() if v is not None}

    def place(name):
        path = folder / (Path(name).name if flat else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    for variant in variants:
        save_state(place(f"checkpoints/{variant}_best.pt"), weights)
        statistics = {k: np.asarray(v, np.float64) for k, v in held.items() if k.startswith("state_")}
        np.savez(place(f"data/norm_stats_{variant}.npz"), **statistics)
    np.savez(place("data/static_vars.npz"), **{k: v for k, v in held.items() if not k.startswith("state_")})
    return folder


@pytest.mark.filterwarnings("ignore::xmosaic.LicenseNotice")
class TestFolder:
    @pytest.mark.parametrize("flat", [False, True])
    @pytest.mark.parametrize("named", [False, True])
    def test_a_published_folder_is_a_model(self, tmp_path, small_published, flat, named):
        folder = publish(tmp_path / "f", flat=flat)
        model = load_model("era5", folder=folder) if named else load_model(folder)
        assert model.name == "era5"
        assert model.schema == small_published
        assert model.license == "CC-BY-NC-4.0"
        assert "revision" not in model.provenance
        weights = folder / ("era5_best.pt" if flat else "checkpoints/era5_best.pt")
        assert model.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert model.provenance["files"]["era5_best.pt"] == model.sha256
        assert model.provenance["files"].keys() == {"era5_best.pt", "norm_stats_era5.npz", "static_vars.npz"}
        with np.load(TINY.with_suffix(".npz")) as arrays:
            x = torch.from_numpy((arrays["x"] - arrays["state_mean"]) / arrays["state_std"])[:, None]
            args = (x.expand(-1, 2, *x.shape[2:]), torch.from_numpy(arrays["day_year"]))
            y = model.network(*args, torch.from_numpy(arrays["eps"])[None])
            np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=1e-5 * np.abs(arrays["y"]).max())

    def test_without_its_tables_the_model_is_the_same(self, tmp_path, small_published):
        def strip(state):
            return {k: v for k, v in state.items() if not k.endswith((".neighbors", ".rel_pos", "_freqs", "_vars"))}

        full = load_model(publish(tmp_path / "a"))
        bare = load_model(publish(tmp_path / "b", weights=strip))
        for name in ("interp_to_hp", "interp_to_ll"):
            assert torch.equal(getattr(full.network, name).neighbors, getattr(bare.network, name).neighbors)

    def test_weights_may_be_parameters_in_half_precision(self, tmp_path, small_published):
        def halve(state):
            return {k: torch.nn.Parameter(v.half()) if v.is_floating_point() else v for k, v in state.items()}

        model = load_model(publish(tmp_path / "f", weights=halve))
        for name, p in model.network.named_parameters():
            assert p.dtype == torch.float32
            assert not p.requires_grad
            assert torch.equal(p, tiny_state()[f"model.{name}"].half().float()), name

    def test_tables_of_the_file_are_used(self, tmp_path, small_published):
        def turn(state):
            name = "model.interp_to_hp.neighbors"
            return state | {name: state[name].flip(1).contiguous()}

        model = load_model(publish(tmp_path / "f", weights=turn))
        expected = tiny_state()["model.interp_to_hp.neighbors"].flip(1)
        assert torch.equal(model.network.interp_to_hp.neighbors, expected)

    def test_two_variants_must_be_told_apart(self, tmp_path, small_published):
        folder = publish(tmp_path / "f", ("era5", "hres"))
        with pytest.raises(
            CheckpointError, match=r"does not say which .* Found era5 and hres.*load_model\('era5', folder"
        ):
            load_model(folder)
        assert load_model("hres", folder=folder).name == "hres"
        with pytest.raises(CheckpointError, match="does not say which"):
            convert_published(folder, tmp_path / "out.safetensors")
        done = load_model(convert_published(folder, tmp_path / "out.safetensors", variant="hres"))
        assert done.name == "hres"

    @pytest.mark.parametrize(
        "missing", ["checkpoints/era5_best.pt", "data/norm_stats_era5.npz", "data/static_vars.npz"]
    )
    def test_missing_file(self, tmp_path, small_published, missing):
        folder = publish(tmp_path / "f")
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=f"lacks {missing}. Expected the files of huggingface.co/AMLab"):
            load_model("era5", folder=folder)
        with pytest.raises(CheckpointError, match=missing):
            load_model(folder)

    def test_empty_or_absent_folder(self, tmp_path, small_published):
        with pytest.raises(CheckpointError, match="does not say which model is meant. Found nothing; expected"):
            load_model(tmp_path)
        with pytest.raises(
            CheckpointError, match="lacks checkpoints/era5_best.pt, data/norm_stats_era5.npz, data/stat"
        ):
            load_model("era5", folder=tmp_path / "absent")
        with pytest.raises(CheckpointError, match="revision= is for files that are fetched"):
            load_model("era5", folder=tmp_path, revision="main")

    @pytest.mark.parametrize(
        ("arrays", "text"),
        [
            ({"state_std": None}, r"norm_stats_era5.npz lacks state_std. Found state_mean"),
            ({"state_mean": np.zeros(82)}, r"state_mean of .* misshapen. Found \(82,\); expected \(3,\)"),
            ({"state_mean": np.zeros((3, 1))}, "state_mean of .* misshapen"),
            ({"state_std": np.array([1.0, 0, 1])}, "The std of geopotential_500 can't be used"),
            ({"state_mean": np.array([1.0, np.nan, 1])}, "The mean of geopotential_500 can't be used"),
            ({"data": np.zeros((7, 12, 3), np.float32)}, r"Static fields of .* misshapen. Found \(7, 12, 3\)"),
            ({"data": np.zeros((12, 7, 2), np.float32)}, r"Static fields of .* misshapen. Found \(12, 7, 2\)"),
            ({"data": np.full((12, 7, 3), np.nan)}, "Static fields of .* hold NaN"),
            ({"data": np.full((12, 7, 3), "x")}, "Static fields of .* hold no numbers"),
            (
                {"longitude": np.arange(12) * 30.0 - 180},
                "static fields of .* are on another grid. Found another longitude",
            ),
            ({"latitude": np.linspace(90, -90, 7)}, "static fields of .* are on another grid. Found another latitude"),
            ({"latitude": np.linspace(-90, 90, 9)}, "static fields of .* are on another grid. Found another latitude"),
            (
                {"latitude": np.array(list("abcdefg"))},
                "static fields of .* are on another grid. Found another latitude",
            ),
            ({"latitude": None}, "static_vars.npz lacks latitude"),
        ],
    )
    def test_arrays_that_do_not_fit(self, tmp_path, small_published, arrays, text):
        with pytest.raises(CheckpointError, match=text):
            load_model(publish(tmp_path / "f", **arrays))

    def test_packed_statistics_are_fine_and_bombs_are_not(self, tmp_path, small_published):
        path = publish(tmp_path / "f") / "data" / "norm_stats_era5.npz"
        with np.load(path) as file:
            arrays = {n: file[n] for n in file.files}
        np.savez_compressed(path, **arrays)
        assert load_model(tmp_path / "f").mean.tolist() == arrays["state_mean"].tolist()
        np.savez_compressed(path, state_mean=np.zeros(13_000_000), state_std=np.ones(3))
        assert path.stat().st_size < 1_000_000
        (checkpoint.cache_folder() / "published.json").unlink()
        with pytest.raises(CheckpointError, match=r"norm_stats_era5.npz unpacks to too much. Found 104\d{6} bytes"):
            load_model(tmp_path / "f")

    def test_statistics_of_another_kind(self, tmp_path, small_published):
        path = publish(tmp_path / "f") / "data" / "norm_stats_era5.npz"
        sprung = tmp_path / "sprung"
        wrong = {
            "objects": lambda: np.savez(path, state_mean=np.array([Trap(sprung)] * 3), state_std=np.ones(3)),
            "integers": lambda: np.savez(path, state_mean=np.zeros(3, int), state_std=np.ones(3)),
            "array": lambda: np.save(path.open("wb"), np.ones(3)),
            "text": lambda: path.write_text("<html>"),
            "pickle": lambda: path.write_bytes(pickle.dumps(Trap(sprung))),
            "empty": lambda: path.write_bytes(b""),
        }
        for kind, make in wrong.items():
            make()
            shutil.rmtree(checkpoint.cache_folder(), ignore_errors=True)
            with pytest.raises(CheckpointError, match=r"norm_stats_era5.npz"):
                load_model(path.parents[1])
            assert not sprung.exists(), kind

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda s: {k: v for k, v in s.items() if k != "model.preprocess.0.weight"}, "1 missing"),
            (lambda s: {k: v for k, v in s.items() if "attention" not in k}, r"missing .*, …\)"),
            (lambda s: s | {"model.head.weight": torch.ones(2, 2)}, r"1 unexpected \(head.weight\)"),
            (lambda s: s | {"model.preprocess.0.weight": torch.ones(16, 17)}, r"misshapen. Found \(16, 17\)"),
            (lambda s: s | {"model.preprocess.0.weight": torch.full((16, 16), torch.nan)}, "holds NaN"),
            (lambda s: s | {"model.preprocess.0.weight": torch.eye(16).to_sparse()}, "no plain real numbers"),
            (lambda s: s | {"model.preprocess.0.weight": torch.ones(16, 16, device="meta")}, "era5_best.pt"),
            (
                lambda s: s | {"model.interp_to_hp.neighbors": torch.zeros(3, 4, dtype=torch.int64)},
                "neighbours .* missh",
            ),
            (lambda s: s | {"model.interp_to_hp.neighbors": torch.full((192, 4), 84)}, "points outside the grid"),
            (lambda s: s | {"model.interp_to_hp.neighbors": torch.zeros(192, 4)}, "points outside the grid"),
            (lambda s: s | {"model.interp_to_hp.neighbors": torch.ones(192, 4).long().to_sparse()}, "has another type"),
            (lambda s: s | {"model.interp_to_hp.neighbors": torch.ones(192, 4, dtype=torch.bool)}, "has another type"),
            (lambda s: {}, "The tensors of .* are not those of its network"),
        ],
    )
    def test_weights_that_do_not_fit(self, tmp_path, small_published, change, text):
        with pytest.raises(CheckpointError, match=text):
            load_model(publish(tmp_path / "f", weights=change))

    def test_a_later_change_is_refused(self, tmp_path, small_published):
        folder = publish(tmp_path / "f")
        first = load_model(folder)
        record = checkpoint.cache_folder() / "published.json"
        assert first.sha256 in record.read_text()
        assert load_model(folder).sha256 == first.sha256
        with np.load(folder / "data/norm_stats_era5.npz") as file:
            changed = {n: file[n] * 1.01 for n in file.files}
        np.savez(folder / "data/norm_stats_era5.npz", **changed)
        with pytest.raises(CheckpointError) as error:
            load_model(folder)
        for part in (
            "norm_stats_era5.npz is not the file it was at its first use",
            "Found sha256",
            str(record),
            "delete",
        ):
            assert part in str(error.value)
        with pytest.raises(CheckpointError, match="not the file it was"):  # refusing does not wear off
            load_model("era5", folder=folder)
        record.unlink()
        assert load_model(folder).std[0] == changed["state_std"][0]

    def test_another_folder_is_another_record(self, tmp_path, small_published):
        load_model(publish(tmp_path / "a"))
        changed = publish(tmp_path / "b", state_std=np.ones(3))
        assert load_model(changed).std.tolist() == [1, 1, 1]
        assert load_model(tmp_path / "a").std.tolist() != [1, 1, 1]
        assert len(json.loads((checkpoint.cache_folder() / "published.json").read_text())["sha256"]) == 2

    @pytest.mark.parametrize("text", ["{", "[1, 2]", '{"sha256": [1]}', '{"sha256": {"a": 3}}', ""])
    def test_a_broken_record_is_not_overwritten(self, tmp_path, small_published, text):
        record = checkpoint.cache_folder() / "published.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(text)
        with pytest.raises(CheckpointError, match=r"record of digests .*published.json can't be read.*delete it"):
            load_model(publish(tmp_path / "f"))
        assert record.read_text() == text

    def test_a_record_that_cannot_be_kept_is_said(self, tmp_path, small_published, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XMOSAIC_CACHE", str(tmp_path / "file"))
        with pytest.raises(CheckpointError, match=r"can't be written.*XMOSAIC_CACHE"):
            load_model(publish(tmp_path / "f"))

    def test_conversion_keeps_everything(self, tmp_path, small_published):
        before = load_model(publish(tmp_path / "f"))
        for source in (tmp_path / "f", tmp_path / "f" / "checkpoints" / "era5_best.pt"):
            after = load_model(convert_published(source, tmp_path / "out.safetensors"))
            assert (after.config, after.schema, after.grid) == (before.config, before.schema, before.grid)
            assert after.provenance == before.provenance
            assert after.license == "CC-BY-NC-4.0"
            for a, b in zip(after.network.parameters(), before.network.parameters(), strict=True):
                assert torch.equal(a, b)
            for name in ("interp_to_hp", "interp_to_ll"):
                assert torch.equal(getattr(after.network, name).neighbors, getattr(before.network, name).neighbors)
            np.testing.assert_array_equal(after.mean, before.mean)
            np.testing.assert_array_equal(after.static, before.static)

    def test_convert_on_the_command_line(self, tmp_path, small_published, capsys):
        folder, target = publish(tmp_path / "f", ("era5", "hres")), tmp_path / "out.safetensors"
        assert main(["convert", str(folder), str(target)]) == 1
        assert "does not say which model is meant" in capsys.readouterr().err
        assert not target.exists()
        assert main(["convert", str(folder), str(target), "--variant", "hres"]) == 0
        out = capsys.readouterr().out
        assert "CC-BY-NC-4.0" in out
        assert str(target) in out
        assert load_model(target).name == "hres"
        assert main(["convert", str(folder / "checkpoints" / "era5_best.pt"), str(target)]) == 0
        assert load_model(target).name == "era5"

    def test_only_the_named_weights_are_converted(self, tmp_path, small_published):
        folder = publish(tmp_path / "f")
        other = folder / "checkpoints" / "mine.pt"
        shutil.copy(folder / "checkpoints" / "era5_best.pt", other)
        for source, variant in ((other, None), (other, "era5"), (folder / "checkpoints" / "era5_best.pt", "hres")):
            with pytest.raises(CheckpointError, match="can't be converted"):
                convert_published(source, tmp_path / "out.safetensors", variant=variant)
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("by_folder", [True, False])
def test_the_licence_is_shown_to_the_caller_once(tmp_path, small_published, by_folder):
    folder = publish(tmp_path / "f")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_model(folder) if by_folder else load_model("era5", folder=folder)
        load_model("era5", folder=folder)  # the second time it is known
    (notice,) = [w for w in seen if w.category is LicenseNotice]
    assert "CC-BY-NC-4.0" in str(notice.message)
    assert notice.filename == __file__
    assert xmosaic.LicenseNotice is LicenseNotice


# ---- the hub: the real client against a server here ----


class Hub:
    """What the client asks of huggingface.co: ``/{repository}/resolve/{revision}/{file}``, HEAD and GET."""

    def __init__(self):
        self.commits: dict[str, Path] = {}
        self.refs: dict[str, str] = {}
        self.requests: list[str] = []
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self._answer(body=False)

            def do_GET(self):
                self._answer(body=True)

            def _answer(self, body):
                hub.requests.append(f"{self.command} {self.path}")
                prefix = f"/{checkpoint.REPOSITORY}/resolve/"
                revision, name = self.path.removeprefix(prefix).split("/", 1)
                commit = hub.refs.get(revision, revision)
                path = hub.commits.get(commit, Path("absent")) / name
                if not path.is_file():
                    known = commit in hub.commits
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if known else "RevisionNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content[: len(content) // 2] if hub.broken else content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch, small_published):
    server = Hub()
    server.commits[OLD] = publish(tmp_path / "old", ("era5", "hres"))
    server.refs["main"] = OLD
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _, pause=time.sleep: pause(0.001))  # the client waits between attempts
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XMOSAIC_OFFLINE")
    yield server
    server.stop()


def advance(hub, tmp_path, commit=NEW, move=True):
    """A later commit with other statistics."""
    hub.commits[commit] = publish(tmp_path / commit, ("era5", "hres"), state_std=np.ones(3))
    if move:
        hub.refs["main"] = commit


def record():
    return json.loads((checkpoint.cache_folder() / "published.json").read_text())


@pytest.mark.filterwarnings("ignore::xmosaic.LicenseNotice")
class TestHub:
    def test_first_use_is_written_down(self, hub, tmp_path):
        model = load_model("era5")
        assert model.provenance["revision"] == OLD
        assert model.provenance["repository"] == "AMLab-UvA/mosaic"
        told = record()
        assert told["revision"] == OLD
        names = ["checkpoints/era5_best.pt", "data/norm_stats_era5.npz", "data/static_vars.npz"]
        expected = {n: hashlib.sha256((tmp_path / "old" / n).read_bytes()).hexdigest() for n in names}
        assert told["sha256"] == {f"revision {OLD}": expected}
        assert model.sha256 == expected["checkpoints/era5_best.pt"]
        asked = [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r]
        assert [r.rsplit("/", 1)[1] for r in asked] == ["era5_best.pt", "norm_stats_era5.npz", "static_vars.npz"]

    def test_later_uses_need_no_network(self, hub, monkeypatch):
        first = load_model("era5")
        hub.stop()
        assert load_model("era5").sha256 == first.sha256
        monkeypatch.setenv("XMOSAIC_OFFLINE", "1")
        again = load_model("era5")
        assert (again.sha256, again.provenance) == (first.sha256, first.provenance)

    def test_offline_asks_nothing(self, hub, monkeypatch):
        load_model("era5")
        asked = len(hub.requests)
        monkeypatch.setenv("XMOSAIC_OFFLINE", "1")
        load_model("era5")
        assert len(hub.requests) == asked

    def test_main_may_move_on(self, hub, tmp_path):
        first = load_model("era5")
        advance(hub, tmp_path)
        assert load_model("era5").provenance["revision"] == OLD
        assert load_model("hres").provenance["revision"] == OLD  # the same commit for both variants
        assert record()["revision"] == OLD
        moved = load_model("era5", revision="main")
        assert moved.provenance["revision"] == NEW
        assert moved.std.tolist() == [1, 1, 1]
        assert load_model("era5").std.tolist() == first.std.tolist()

    def test_all_files_are_of_one_commit(self, hub, tmp_path, monkeypatch):
        """The branch moves between the first file and the second."""
        plain = checkpoint.hub._download

        def then_move(name, revision):
            path = plain(name, revision)
            advance(hub, tmp_path)
            return path

        monkeypatch.setattr(checkpoint.hub, "_download", then_move)
        model = load_model("era5")
        assert model.provenance["revision"] == OLD
        assert model.std.tolist() != [1, 1, 1]

    def test_revision_is_taken_and_not_remembered(self, hub, tmp_path):
        advance(hub, tmp_path, move=False)
        assert load_model("era5", revision=NEW).provenance["revision"] == NEW
        assert "revision" not in record()
        assert load_model("era5").provenance["revision"] == OLD
        with pytest.raises(CheckpointError, match=r"revision v9\) can't be fetched and is not in the cache"):
            load_model("era5", revision="v9")

    def test_other_bytes_of_the_same_commit_are_refused(self, hub, tmp_path, monkeypatch):
        load_model("era5")
        hub.commits[OLD] = publish(tmp_path / "forged", ("era5",), state_std=np.ones(3))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "fresh"))
        with pytest.raises(CheckpointError, match=r"norm_stats_era5.npz is not the file it was at its first use"):
            load_model("era5")

    def test_a_changed_cache_is_refused(self, hub):
        load_model("era5")
        (path,) = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("snapshots/*/data/static_vars.npz")
        blob = path.resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")
        with pytest.raises(CheckpointError, match="static_vars.npz is not the file it was"):
            load_model("era5")

    def test_an_empty_cache_without_a_network(self, hub, monkeypatch):
        monkeypatch.setenv("XMOSAIC_OFFLINE", "1")
        text = r"checkpoints/era5_best.pt of AMLab-UvA/mosaic \(revision main\) can't be fetched .*folder=.*'bundled'"
        with pytest.raises(CheckpointError, match=text):
            load_model("era5")
        assert not hub.requests
        monkeypatch.delenv("XMOSAIC_OFFLINE")
        hub.stop()
        with pytest.raises(CheckpointError, match=text):
            load_model("era5")
        assert not (checkpoint.cache_folder() / "published.json").exists()

    def test_a_missing_file(self, hub):
        (hub.commits[OLD] / "data/norm_stats_era5.npz").unlink()
        with pytest.raises(CheckpointError, match=r"data/norm_stats_era5.npz of AMLab.* can't be fetched"):
            load_model("era5")

    def test_a_download_that_breaks_off(self, hub):
        hub.broken = True
        with pytest.raises(CheckpointError, match="can't be fetched"):
            load_model("era5")
        hub.broken = False
        assert load_model("era5").provenance["revision"] == OLD

    def test_conversion_from_the_hub(self, hub, tmp_path):
        model = load_model(convert_published("hres", tmp_path / "hres.safetensors"))
        assert model.name == "hres"
        assert model.provenance["revision"] == OLD


def test_a_folder_called_snapshots_is_no_revision(tmp_path, small_published):
    with pytest.warns(LicenseNotice):
        model = load_model(publish(tmp_path / "snapshots" / "monday"))
    assert "revision" not in model.provenance


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XMOSAIC_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/xmosaic"),
        ({"HOME": "/h"}, "/h/.cache/xmosaic"),
    ],
)
def test_where_the_record_lies(monkeypatch, environment, expected):
    for name in ("XMOSAIC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert checkpoint.cache_folder() == Path(expected)


def test_errors_are_of_one_family():
    assert issubclass(CheckpointError, MosaicError)
    assert issubclass(CheckpointError, ValueError)
