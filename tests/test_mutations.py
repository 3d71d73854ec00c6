"""Does every Dataset that isn't quite ours, in any of hundreds of ways, end in the right forecast or in a refusal?"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_model
from mutants import DS, SPACE, T, Z, mutants

import xmosaic
from xmosaic import diagnostics as dg
from xmosaic.errors import MosaicError

MODEL = make_model()
MUTANTS = mutants()
# of the largest difference of two normalised fields, where the input is rounded
TOLERANCE = {"same": 0.0, "close": 1e-4, "rounded": 0.05}
# What contradicts only the training's statistics, which a score doesn't know.
PLAUSIBLE = ("said to be", "without units", "values: ", "bool")


def forecast(ds: Any, **options: Any) -> xr.Dataset:
    return xmosaic.forecast(ds, "1D", 2, model=MODEL, progress=False, **options)


def made(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of xarray, about what the mutant is
        return MUTANTS[name].make()


def in_order(fc: xr.Dataset) -> xr.Dataset:
    """A forecast as that of the unchanged Dataset, by its labels alone."""
    names = {fc[n].attrs["standard_name"]: n for n in fc.coords if fc[n].attrs.get("standard_name") in SPACE}
    fc = fc.rename({names[n]: n for n in SPACE if names[n] != n})
    fc = fc.assign_coords(longitude=("longitude", fc["longitude"].values % 360, fc["longitude"].attrs))
    return fc.sortby(list(SPACE)).transpose("number", "prediction_timedelta", "level", *SPACE)


EXPECTED = in_order(forecast(DS))


def assert_right(fc: xr.Dataset, tolerance: float) -> None:
    """Every value stands under the label that it has in the forecast from the unchanged Dataset, in its units."""
    fc = in_order(fc)
    assert {*fc.coords} == {*EXPECTED.coords} and {*fc.data_vars} == {*EXPECTED.data_vars}
    for name in ("time", "valid_time", "prediction_timedelta", "number", "level"):
        np.testing.assert_array_equal(fc[name].values, EXPECTED[name].values)
    for name in SPACE:
        np.testing.assert_allclose(fc[name].values, EXPECTED[name].values, rtol=0, atol=1e-3)
    for name, ours in EXPECTED.data_vars.items():
        assert fc[name].attrs == ours.attrs
        np.testing.assert_allclose(fc[name].values, ours.values, rtol=0, atol=tolerance * float(ours.std()))


def assert_explained(error: BaseException) -> None:
    """Our own error, of which a sentence says what was found, was expected or is to be done."""
    text = str(error)
    assert isinstance(error, MosaicError) and text
    assert any(word in text for word in ("Found", "Expected", "expected", "\n1. ")), text
    assert len(text) < 5000


def fingerprint(thing: Any) -> str:
    """Everything that tells one Dataset from another."""
    if not isinstance(thing, xr.Dataset):
        return f"{type(thing)} {thing!r}"
    parts = [str(dict(thing.sizes)), str(thing.attrs)]
    for name, v in thing.variables.items():
        chunks = None if name in thing.indexes else v.chunks
        plain = chunks is None and isinstance(v.dtype, np.dtype) and v.dtype.kind not in "OUS"
        values = v.values.tobytes() if plain and name not in thing.indexes else str(thing.indexes.get(name, repr(v)))
        kind = (name in thing.coords, name in thing.xindexes, type(v.data if chunks else None))
        parts.append(f"{name!r} {v.dims} {v.dtype.str if hasattr(v.dtype, 'str') else v.dtype} {chunks} {kind}")
        parts.append(f"{v.attrs} {v.encoding} {values!r}")
    return "\n".join(parts)


# ----------------------------------------------------------------------------------------------- one change at a time


def test_there_are_hundreds_and_each_is_a_change():
    known = fingerprint(DS)
    found = {name: fingerprint(made(name)) for name in MUTANTS}
    assert [name for name, text in found.items() if text == known] == []
    assert len(set(found.values())) == len(MUTANTS) >= 600
    assert min(sum(m.outcome == o for m in MUTANTS.values()) for o in ("same", "refused")) >= 250


@pytest.mark.parametrize("name", MUTANTS)
def test_a_changed_dataset_gives_the_right_forecast_or_is_refused(name):
    outcome, ds = MUTANTS[name].outcome, made(name)
    before = fingerprint(ds)
    if outcome != "refused":
        assert_right(forecast(ds), TOLERANCE[outcome])
        assert xmosaic.check(ds, MODEL).ok
    else:
        with pytest.raises(MosaicError) as error:
            forecast(ds)
        assert_explained(error.value)
        if isinstance(ds, xr.Dataset):  # the report says so too, in every form
            found = xmosaic.check(ds, MODEL)
            assert not found.ok and repr(found) and found._repr_html_()
    assert fingerprint(ds) == before  # an input is never changed


REFUSED = [name for name, m in MUTANTS.items() if m.outcome == "refused"]


@pytest.mark.parametrize("name", REFUSED[::7])
def test_what_is_refused_leaves_no_half_store(name, tmp_path):
    path = tmp_path / "fc.zarr"
    with pytest.raises(MosaicError):
        forecast(made(name), store=path)
    assert not path.exists() or not xmosaic.written(path).any()


# what a lazy forecast is handed is computed by dask, whose own errors come as they are
HANDED = [name for name in MUTANTS if not name.startswith("chunked: a chunk")]


@pytest.mark.parametrize("name", HANDED[::13])
def test_lazy_ends_as_eager(name):
    if MUTANTS[name].outcome == "refused":
        with pytest.raises(MosaicError):
            forecast(made(name), chunks={}).compute(scheduler="synchronous")
    else:
        fc = forecast(made(name), chunks={}).compute(scheduler="synchronous")
        assert_right(fc, TOLERANCE[MUTANTS[name].outcome])


# ------------------------------------------------------------------------------------------------ several at a time


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    order=st.permutations(["time", "level", *SPACE]),
    turn=st.integers(0, 11),
    flips=st.sets(st.sampled_from(["time", "level", "latitude", "longitude"])),
    west=st.booleans(),
    units=st.sampled_from([None, "degC", "degF"]),
    dtype=st.sampled_from(["float32", "float64", ">f4"]),
    chunks=st.sampled_from([None, {}, {"time": 2, "longitude": 5}]),
    names=st.sampled_from(
        [{}, {"latitude": "lat", "longitude": "lon"}, {Z: "z", "level": "plev", "time": "valid_time"}]
    ),
    extra=st.sets(st.sampled_from(["number", "band", "height"])),
)
def test_changes_may_come_together(order, turn, flips, west, units, dtype, chunks, names, extra):
    ds = DS.copy(deep=True).roll(longitude=turn, roll_coords=True).astype(dtype)
    if west:
        ds = ds.assign_coords(
            longitude=("longitude", (ds["longitude"].values + 180) % 360 - 180, ds["longitude"].attrs)
        )
    if units is not None:
        factor, offset = {"degC": (1, 273.15), "degF": (5 / 9, 255.3722222222222)}[units]
        ds[T] = ((ds[T].astype(float) - offset) / factor).assign_attrs(ds[T].attrs | {"units": units})
    ds = ds.isel({d: slice(None, None, -1) for d in sorted(flips)}).transpose(*order)
    for name in sorted(extra):
        ds = ds.expand_dims({name: 1})
    ds = ds.rename(names)
    assert_right(forecast(ds if chunks is None else ds.chunk({names.get(k, k): v for k, v in chunks.items()})), 1e-4)


# ------------------------------------------------------------------------------------------------- truths of scores

FORECAST = xmosaic.forecast(DS, "1D", 3, model=MODEL, time=["2020-03-01"], progress=False)
SCORES = dg.crps(FORECAST, DS)


@pytest.mark.parametrize("name", list(MUTANTS)[::2])  # all of them go through the same door into a forecast
def test_a_changed_truth_gives_the_right_score_or_is_refused(name):
    """Refused, named as left out, NaN where the truth has none, or the score that the unchanged truth gives."""
    truth = made(name)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = dg.crps(FORECAST, truth)
    except MosaicError as error:
        return assert_explained_briefly(error)
    left_out = any(issubclass(w.category, xmosaic.AlignmentWarning) for w in said)
    assert left_out or {*found.data_vars} == {*SCORES.data_vars}
    if found.chunks and MUTANTS[name].outcome == "refused":
        return None  # computed when the caller computes it
    for score, values in found.data_vars.items():
        assert values.attrs == SCORES[score].attrs
        if not any(word in name for word in (*PLAUSIBLE, "averaged")):
            ours = SCORES[score].reindex_like(values)
            seen = np.isfinite(values.values)
            np.testing.assert_allclose(values.values[seen], ours.values[seen], rtol=2e-3)
    return None


def assert_explained_briefly(error: BaseException) -> None:
    assert isinstance(error, MosaicError) and 20 < len(str(error)) < 2000
