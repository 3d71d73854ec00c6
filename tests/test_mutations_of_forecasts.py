"""Do scores, spectra, mass, tracks, pages, meshes and training take changed forecasts rightly, or refuse them?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from forecast_mutants import FORECAST, TRUTH, forecast_mutants
from mutants import mutants

import xmosaic
from xmosaic.errors import MosaicError
from xmosaic.explore import explore

MUTANTS = forecast_mutants()
SMALL = xmosaic.LatLonGrid.equiangular(8, 5)
# What takes a forecast that is called 'foo' or 7, has no members, and so on, differs: here it is a result or an error.
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "crps": lambda fc: xmosaic.diagnostics.crps(fc, TRUTH),
    "spread and skill": lambda fc: xmosaic.diagnostics.spread_skill(fc, TRUTH),
    "spectra": xmosaic.diagnostics.spectra,
    "mass": xmosaic.diagnostics.mass_drift,
    "mesh": lambda fc: xmosaic.to_healpix(fc, nside=2),
    "grid": lambda fc: xmosaic.to_latlon(fc, SMALL),
    "tracks": lambda fc: xmosaic.tracks.tracks(fc, progress=False),
    "benchmark": lambda fc: xmosaic.benchmark(fc, TRUTH, "crps", spectra=False, resamples=20, progress=False),
    "page": lambda fc: explore(fc, progress=False)._repr_html_(),
}
# those that look at one mutant in so many; the others look at all
EVERY = {"crps": 6, "spread and skill": 20, "spectra": 2, "mass": 3, "tracks": 4, "benchmark": 30, "page": 30}
# these once ended in an error that wasn't ours, so everything looks at them
FELL = [f"sizes: {dim} empty" for dim in ("time", "number", "prediction_timedelta", "latitude", "longitude")]
FELL += [f"sizes: latitude {how}" for how in ("scalar", "gone")] + ["sizes: one variable without members"]
FELL += ["doubles: time twice", "doubles: prediction_timedelta twice", "sizes: prediction_timedelta without values"]
FELL += [
    "leads: NaT",
    "leads: starts in cftime",
    "kinds: longitude U8",
    "kinds: level complex128",
    "no_dataset: a tree",
]
FELL += [f"labels: {what}" for what in ("NaN latitude", "infinite longitude", "NaN level")]
# tracks are followed in the order that is given, through times of datetime64
TRACKS_REFUSE = ("prediction_timedelta backwards", "prediction_timedelta shuffled", "starts in cftime")


def called(entry: str, fc: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ENTRIES[entry](fc)
        return result.compute() if isinstance(result, xr.Dataset) else result


@pytest.fixture(scope="module", params=ENTRIES)
def entry(request) -> tuple[str, Any]:
    return request.param, called(request.param, FORECAST.copy(deep=True))


def test_there_are_hundreds():
    assert len(MUTANTS) >= 230 and sum(m.outcome == "same" for m in MUTANTS.values()) >= 70


def some(entry: str) -> list[str]:
    return list(dict.fromkeys([*list(MUTANTS)[:: EVERY.get(entry, 1)], *FELL]))


def test_a_changed_forecast_ends_in_a_result_or_our_own_error(entry):
    """One that says the same in other words is taken; one that is refused is refused in words."""
    failed = []
    for name in some(entry[0]):
        try:
            found = called(entry[0], MUTANTS[name].make())
        except MosaicError as error:
            fine = MUTANTS[name].outcome != "same" or (entry[0] == "tracks" and name.endswith(TRACKS_REFUSE))
            if not fine or not 20 < len(str(error)) < 2500:
                failed.append((name, f"refused: {error}"))
        except Exception as error:
            failed.append((name, repr(error)))
        else:
            if MUTANTS[name].outcome == "refused":
                failed.append((name, f"taken: {type(found)}"))
    assert not failed


@pytest.mark.parametrize("entry", ["crps"], indirect=True)
def test_a_score_of_the_same_in_other_words_is_the_same(entry):
    """Under other names, in other orders, units, types and chunks."""
    which, expected = entry
    t, z = "2m_temperature", "geopotential"
    for name, m in list(MUTANTS.items())[::2]:
        if m.outcome != "same" or "_component_of_wind" in name or "mean_sea_level" in name:
            continue
        found = called(which, m.make())
        for ours, theirs in ((t, ("t2m", "2t", t)), (z, ("z", z))):
            field = next(found[n] for n in theirs if n in found)
            factor = 1.0 if field.attrs.get("units") in (expected[ours].attrs["units"], None) else None
            if factor is None:
                continue  # in the caller's units
            values, known = (np.sort(np.ravel(f.values)) for f in (field, expected[ours]))
            np.testing.assert_allclose(values, known, rtol=2e-3, err_msg=name)


def test_no_forecast_is_changed_by_looking_at_it(entry):
    fc = FORECAST.copy(deep=True)
    called(entry[0], fc)
    xr.testing.assert_identical(fc, FORECAST)


# -------------------------------------------------------------------------------------------- what is trained on

ANALYSES = mutants()
TRAINED = [n for n in ANALYSES if n.startswith(("values", "times", "sizes", "dtypes", "chunked", "attributes"))][::10]
TRAINED += [n for n in ANALYSES if n.startswith(("no_dataset", "chunked: a chunk")) and n not in TRAINED]


NETWORK = xmosaic.MosaicConfig(
    stages=(xmosaic.StageConfig(4, 16, 4, 2, local_size=64, block_size=16, block_count=4),),
    bottleneck=xmosaic.StageConfig(2, 24, 2, 1, 48, 8, 2, decoder_depth=0),
    num_variables=1,
    num_neighbors=4,
    num_history=1,
)
CONFIG = xmosaic.TrainConfig(
    NETWORK,
    (xmosaic.Stage(1, batch_size=1),),
    train=("2020-02-27", "2020-02-29"),
    validation=("2020-03-01", "2020-03-02"),
    variables={"2m_temperature": None, "geopotential": [500, 850]},
    validation_samples=1,
    validation_members=2,
)


@pytest.mark.parametrize("name", TRAINED)
def test_training_on_a_changed_dataset_begins_or_is_refused(name):
    """One update of a tiny network."""
    ds = ANALYSES[name].make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = xmosaic.train(ds, CONFIG, device="cpu", workers=1, progress=False)
        except MosaicError as error:
            assert 20 < len(str(error)) < 5000
        else:
            assert all(bool(w.isfinite().all()) for w in model.network.parameters())
