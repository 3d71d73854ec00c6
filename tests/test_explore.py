"""Does the page hold what the forecast holds, show it, stay small, and let no text of a Dataset run?"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import make_dataset, make_model

import xmosaic
from xmosaic.diagnostics import crps, rmse, spectra, spread
from xmosaic.errors import AlignmentWarning, ArgumentError, DatasetError, StoreError
from xmosaic.explore import Explorer, explore
from xmosaic.explore.pack import (
    MISSING_FINE,
    count,
    from_text,
    plane_bytes,
    planes_of,
    to_text,
    uncounted,
    values,
)

DS = make_dataset(periods=8)
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&quot;\" %about% \u2028"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def fc():
    """Two leads, three members, with one value missing."""
    model = make_model()
    made = DS.mosaic.forecast("2D", 3, model=model, time=["2020-02-29", "2020-03-01"], progress=False).load()
    made["2m_temperature"][0, 1, 0, 3, 4] = np.nan
    return made


@pytest.fixture(scope="module")
def page(fc):
    return explore(fc, DS, progress=False)


def about_of(page: Explorer) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="about">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(text)


def block_of(page: Explorer, name: str, start: int = 0, level: int = 0) -> dict:
    """A block as a viewer unpacks it, written plainly: mean, truth, members, spectrum, each lead after lead."""
    about = about_of(page)
    (field,) = [f for f in about["fields"] if f["name"] == name]
    (own,) = [b for b in field["blocks"] if (b["start"], b["level"]) == (start, level)]
    (text,) = re.findall(rf'<script type="text/plain" id="block-{own["block"]}">(.*?)</script>', page.html)
    data, at = from_text(text), 0
    shape = (len(about["latitude"]), len(about["longitude"]))
    found: dict[str, list] = {"mean": [], "truth": [], "members": [], "spectrum": []}

    def take(size: int, dims: tuple, dtype: type) -> np.ndarray:
        nonlocal at
        at += size
        return planes_of(data[at - size : at], dims, dtype)

    leads = range(len(about["leads"]))
    fine = [(own["fine"][k], own["offset"][k], MISSING_FINE) for k in leads]
    found["mean"] = [uncounted(take(2 * shape[0] * shape[1], shape, np.int16), *fine[k]) for k in leads]
    for k in leads:
        there = own["truth"][k]
        found["truth"].append(uncounted(take(2 * shape[0] * shape[1], shape, np.int16), *fine[k]) if there else None)
    for k in leads:
        members = (len(about["members"]), *shape)
        counted = take(int(np.prod(members)), members, np.int8)
        found["members"].append(found["mean"][k] + uncounted(counted, own["step"][k], 0.0, -128))
    for k in leads:
        power = own["spectrum"][k]
        dims = (power["rows"], power["wavenumbers"])
        logs = uncounted(take(2 * dims[0] * dims[1], dims, np.int16), power["step"], power["first"], MISSING_FINE)
        found["spectrum"].append(10**logs)
    assert at == len(data)
    return {**own, **found}


# ------------------------------------------------------------------------------------------------------- packing


FIELDS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    elements=st.one_of(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
        st.just(np.nan),
        st.floats(250, 320, width=32),
    ),
)


@given(FIELDS)
@settings(max_examples=80, deadline=None)
def test_no_value_is_off_by_more_than_half_a_step(members):
    """The page prints the error; it must hold for any numbers, and what is missing stays missing."""
    fields = count(members, members[0])
    there = np.isfinite(members)
    back = values(fields)
    np.testing.assert_array_equal(np.isfinite(back), there)
    rounding = 1e-12 * np.abs(members[there], dtype=np.float64).max(initial=0.0)
    assert np.all(np.abs(back - members)[there] <= fields.step / 2 * (1 + 1e-9) + rounding)
    truth = uncounted(fields.truth, fields.fine, fields.offset, MISSING_FINE)
    assert np.all(np.abs(truth - members[0])[there[0]] <= fields.fine / 2 * (1 + 1e-9) + rounding)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 30))
@settings(max_examples=25, deadline=None)
def test_steps_are_as_fine_as_promised(seed, width):
    """σ/6 or a hundredth of the coloured range, unless the largest deviation needs more than 127 steps."""
    rng = np.random.default_rng(seed)
    members = 280 + 10 * rng.normal(size=(8, 9)) + width * rng.normal(size=(5, 8, 9))
    fields = count(members)
    deviation = members - members.mean(0)
    low, high = np.quantile(members, [0.005, 0.995])
    promised = max(min(deviation.std() / 6, (high - low) / 100), np.abs(deviation).max() / 127)
    assert promised * (1 - 1e-12) <= fields.step <= promised + fields.fine / 127
    assert fields.fine == pytest.approx(max(promised / 4, np.ptp(members.mean(0)) / 65500))


@given(
    arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))),
    arrays(np.int16, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))),
)
@settings(max_examples=60, deadline=None)
def test_planes_come_back_exactly(small, fine):
    for counted in (small, fine[0]):
        back = planes_of(plane_bytes(counted), counted.shape, counted.dtype.type)
        np.testing.assert_array_equal(back, counted)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_text_comes_back_exactly_and_means_nothing_in_html(data):
    text = to_text(data)
    assert from_text(text) == data
    assert html.escape(text) == text
    assert "`" not in text


def test_the_page_holds_the_forecast(fc, page):
    """Every value of every member, lead, start and level, decoded as a viewer would, to half a step."""
    for name, field in fc.data_vars.items():
        for start in range(2):
            for level in range(field.sizes.get("level", 1)):
                if name == "u_component_of_wind" and level == 0:
                    continue  # the model has it at 850 hPa alone
                block = block_of(page, str(name), start, level if name == "geopotential" else 0)
                ours = field.isel(level=level) if "level" in field.dims else field
                theirs = ours.isel(time=start).transpose("prediction_timedelta", "number", "latitude", "longitude")
                for lead in range(2):
                    exact = theirs.values[lead].astype(float)
                    np.testing.assert_allclose(
                        block["members"][lead], exact, rtol=0, atol=block["step"][lead] * (0.5 + 1e-9)
                    )
                    at = ours["time"].values[start] + ours["prediction_timedelta"].values[lead]
                    truth = DS[name].sel(time=at)
                    truth = truth.isel(level=level) if "level" in truth.dims else truth
                    np.testing.assert_allclose(
                        block["truth"][lead], truth.values, rtol=0, atol=block["fine"][lead] * (0.5 + 1e-9)
                    )


def test_spectra_and_scores_are_those_of_the_diagnostics(fc, page):
    field, truth = fc["geopotential"].isel(time=1), DS["geopotential"]
    block = block_of(page, "geopotential", 1, 1)
    power = spectra(field).isel(level=1).transpose("prediction_timedelta", "number", "total_wavenumber").values
    mean = spectra(field, of="mean").isel(level=1).values
    analysed = spectra(truth.isel(level=1).sel(time=field["time"] + field["prediction_timedelta"])).values
    for lead in range(2):
        rows = np.concatenate([power[lead], mean[[lead]], analysed[[lead]]])
        np.testing.assert_allclose(block["spectrum"][lead], rows, rtol=0.005)
    for key, score in (("crps", crps), ("rmse", rmse), ("spread", spread)):
        expected = score(field, truth, dim=("latitude", "longitude")).isel(level=1)
        np.testing.assert_allclose(block["scores"][key], expected.values, rtol=1e-6)


def test_limits_are_the_same_at_all_leads_and_fit_the_quantity(fc, page):
    limits = {f["name"]: f["limits"] for f in about_of(page)["fields"]}
    wind = limits["u_component_of_wind"][0]["value"]
    assert wind["low"] == -wind["high"]
    assert wind["colours"] == "RdBu_r"
    temperature = limits["2m_temperature"][0]
    low, high = np.nanquantile(fc["2m_temperature"], [0.005, 0.995])
    assert (temperature["value"]["low"], temperature["value"]["high"]) == pytest.approx((low, high))
    assert temperature["difference"]["low"] == -temperature["difference"]["high"]
    assert temperature["spread"]["low"] == 0


# ----------------------------------------------------------------------------------------------------- selection


def test_levels_without_any_value_are_left_out(page):
    """A forecast has NaN where a variable isn't on a level that another one is on."""
    assert {f["name"]: f["levels"] for f in about_of(page)["fields"]} == {
        "2m_temperature": None,
        "mean_sea_level_pressure": None,
        "geopotential": [500, 850],
        "u_component_of_wind": [850],
    }


def test_lazy_is_eager(fc, page):
    assert (
        explore(fc.chunk(number=1, prediction_timedelta=1, time=1), DS.chunk(time=1), progress=False).html == page.html
    )


def test_dialects_and_order_of_dimensions_do_not_matter(fc, page):
    other = fc.transpose(..., "time").isel(latitude=slice(None, None, -1)).mosaic.to_dialect("ecmwf")
    block, same = (
        block_of(explore(other, DS, progress=False), "t2m" if "t2m" in other else "2t"),
        block_of(page, "2m_temperature"),
    )
    np.testing.assert_allclose(block["members"], same["members"], atol=same["step"][0])


def test_selection(fc):
    few = explore(fc, variables=["z", "msl"], levels=500, members=2, leads="2D", time="2020-03-01", progress=False)
    about = about_of(few)
    assert [(f["name"], f["levels"]) for f in about["fields"]] == [
        ("geopotential", [500]),
        ("mean_sea_level_pressure", None),
    ]
    assert (about["leads"], about["members"]) == (["2 d"], ["1", "2"])
    assert about["starts"] == ["2020-03-01 00:00 UTC"]
    assert any("2 of 3 members" in note for note in about["notes"])
    block = block_of(few, "mean_sea_level_pressure")
    assert block["scores"] is None
    exact = fc["mean_sea_level_pressure"].sel(time="2020-03-01", prediction_timedelta="2D").values[:2]
    np.testing.assert_allclose(block["members"][0], exact, atol=block["step"][0] / 1.9)
    assert about_of(explore(fc, members=[3, 1], progress=False))["members"] == ["3", "1"]


def test_single_forecast_without_start_or_members(fc):
    one = fc["geopotential"].isel(time=0, number=0, drop=True).drop_vars("valid_time")
    block = block_of(explore(one, progress=False), "geopotential")
    np.testing.assert_allclose(block["members"][1][0], one.values[1, 0], atol=block["fine"][1] * 0.51)


def test_region_is_shown_without_spectra_and_says_why(fc):
    part = fc.isel(longitude=slice(2, 6), latitude=slice(3, 6))
    notes = about_of(explore(part, DS, variables="2t", progress=False))["notes"]
    assert any(note.startswith("No spectra: ") for note in notes)


def test_mesh_is_regridded_and_says_so(fc):
    mesh = fc[["2m_temperature"]].fillna(280.0).mosaic.to_healpix(4)
    made = explore(mesh, DS.mosaic.to_healpix(4), progress=False)
    assert any("HEALPix nside 4" in note for note in about_of(made)["notes"])
    block = block_of(made, "2m_temperature")
    shown = mesh["2m_temperature"].mosaic.to_latlon((16, 9)).isel(time=0, prediction_timedelta=1)
    exact = shown.transpose("number", "latitude", "longitude").values
    np.testing.assert_allclose(block["members"][1], exact, atol=block["step"][1] * 0.51)
    power = spectra(mesh["2m_temperature"]).isel(time=0, prediction_timedelta=1).transpose("number", "total_wavenumber")
    np.testing.assert_allclose(block["spectrum"][1][:3], power.values[:, :9], rtol=0.005)  # 2 nside is the last
    own = crps(mesh, DS.mosaic.to_healpix(4), dim="cell")["2m_temperature"].isel(time=0)
    np.testing.assert_allclose(block["scores"]["crps"], own.values, rtol=1e-6)


def test_part_without_truth_warns_and_is_left_out(fc):
    with pytest.warns(AlignmentWarning, match="2020-03-03"):
        made = explore(fc, DS.sel(time=slice(None, "2020-03-02")), variables="msl", progress=False)
    block = block_of(made, "mean_sea_level_pressure", start=1)
    there = DS["mean_sea_level_pressure"].sel(time="2020-03-02").transpose("latitude", "longitude").values
    np.testing.assert_allclose(block["truth"][0], there, atol=block["step"][0] * 0.51)
    assert block["truth"][1] is None
    assert block["scores"]["rmse"][1] is None


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda fc: {"forecast": DS}, DatasetError, "This is no forecast: it has no dimension 'prediction_timedelta'"),
        (lambda fc: {"forecast": 3}, ArgumentError, "no xarray object. Found int"),
        (lambda fc: {"forecast": fc.mean(("latitude", "longitude"))}, DatasetError, "nothing to put on a globe"),
        (lambda fc: {"forecast": fc.expand_dims(scenario=2)}, DatasetError, "no place for dimension 'scenario'"),
        (lambda fc: {"variables": "q"}, ArgumentError, "variable 'q' is not in this forecast"),
        (lambda fc: {"levels": [500, 300]}, ArgumentError, "level 300.0 is not in this forecast. Expected 500, 850"),
        (lambda fc: {"leads": "5D"}, ArgumentError, "is not in this forecast"),
        (lambda fc: {"members": 0}, ArgumentError, "members=0"),
        (lambda fc: {"members": [9]}, ArgumentError, "labels '1', '2', '3'"),
        (lambda fc: {"time": "1999-01-01"}, ArgumentError, "time='1999-01-01' is not in this forecast"),
        (lambda fc: {"max_bytes": 0}, ArgumentError, "above 0"),
        (lambda fc: {"max_bytes": 20_000}, ArgumentError, "too large"),
        (lambda fc: {"truth": DS.isel(longitude=slice(0, 5))}, DatasetError, "on another grid"),
        (lambda fc: {"truth": DS.sel(time="2020-02-27")}, DatasetError, "none of the forecast's valid times"),
    ],
)
def test_errors_say_what_to_do(fc, change, error, text):
    arguments = {"forecast": fc, "progress": False} | change(fc)
    with pytest.raises(error, match=re.escape(text)):
        explore(**arguments)


def days_as_members(name: str) -> xr.Dataset:
    """Days of the sample as members of a forecast with two leads: as unlike as members ever get."""
    ds = xmosaic.open_sample()[[name]]
    leads = np.array([24, 48], "m8[h]").astype("m8[ns]")
    parts = [
        ds.isel(time=slice(k, k + 2)).rename(time="prediction_timedelta").assign_coords(prediction_timedelta=leads)
        for k in range(0, 40, 2)
    ]
    number = xr.DataArray(range(20), dims="number", name="number")
    return xr.concat(parts, number).assign_coords(time=np.datetime64("2012-04-10", "ns"))


def test_too_large_says_what_would_fit():
    """And what is said to fit does."""
    fc = days_as_members("geopotential")
    with pytest.raises(
        ArgumentError, match=r"about 0\.\d+ MB for 1 start, 1 variable, 4 levels, 2 leads, 20 memb"
    ) as raised:
        explore(fc, max_bytes=220_000, progress=False)
    fits = int(re.search(r"members=(\d+) or 1 of the leads would fit", str(raised.value))[1])
    assert 3 < fits < 15
    assert explore(fc, members=fits, max_bytes=220_000, progress=False).nbytes > 120_000
    with pytest.raises(ArgumentError, match="too large"):
        explore(fc, members=fits + 5, max_bytes=220_000, progress=False)
    wanted = float(re.search(r"max_bytes=(\S+)\.", str(raised.value))[1])
    assert explore(fc, max_bytes=wanted, progress=False).nbytes < wanted


def test_empty_levels_do_not_count_for_the_size():
    """A variable on one of four levels takes what it takes alone, and isn't refused for the others."""
    fc = days_as_members("geopotential")
    alone = explore(fc.sel(level=[850]), progress=False).nbytes
    made = explore(fc.where(fc["level"] == 850), max_bytes=alone + 200, progress=False)
    assert made.nbytes == pytest.approx(alone, abs=200)


def test_saving_where_there_is_no_folder(page, tmp_path):
    assert page.save(tmp_path / "p.html").read_text(encoding="utf-8") == page.html
    assert page.nbytes == (tmp_path / "p.html").stat().st_size
    with pytest.raises(StoreError, match="can't be written"):
        page.save(tmp_path / "none" / "p.html")


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_asks_for_nothing_from_outside(page):
    """No address but SVG's namespace, which is a name; and a policy that allows none."""
    without_data = re.sub(r'<script type="(application/json|text/plain)".*?</script>', "", page.html, flags=re.DOTALL)
    assert set(re.findall(r"\w+://[^\s'\"]+", without_data)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"<link|<iframe|\ssrc=|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|import\(", without_data
    )
    assert "default-src 'none'" in page.html


def hostile(fc: xr.Dataset) -> xr.Dataset:
    bad = fc.rename({"2m_temperature": HOSTILE}).assign_attrs(title=HOSTILE, comment=HOSTILE, license=HOSTILE, seed=7)
    bad[HOSTILE].attrs.update(long_name=HOSTILE, units=HOSTILE)
    return bad


def test_text_of_the_dataset_is_escaped(fc):
    made = explore(hostile(fc), progress=False)
    assert "<script>window.hacked" not in made.html
    assert "<img" not in made.html
    about = about_of(made)
    assert about["title"] == HOSTILE
    assert about["fields"][0]["name"] == HOSTILE
    frame = made._repr_html_()
    (inside,) = re.findall(r'srcdoc="(.*?)">[^<]*</iframe>', frame, re.DOTALL)
    assert html.unescape(inside) == made.html
    assert 'sandbox="allow-scripts"' in frame


def test_untrained_model_is_announced(fc):
    said = about_of(explore(fc.assign_attrs(comment="UNTRAINED weights"), variables="msl", progress=False))
    assert said["warning"].startswith("UNTRAINED model")
    assert about_of(explore(fc, variables="msl", progress=False))["warning"] == ""


def test_bytes_per_value_let_the_sample_fit_into_ten_megabytes(page):
    """0.82 bytes per value are 10 MB of 24 members × 10 leads × 24 fields."""
    fc = days_as_members("mean_sea_level_pressure")
    made = explore(fc, fc.isel(number=0, drop=True), progress=False)
    assert made.nbytes - page.nbytes < 0.82 * 2 * 20 * 33 * 64


# ------------------------------------------------------------------------------------------------- in a browser


def browse(address: str, folder) -> tuple[str, list[str]]:
    """The page's elements after it has run, and what it wrote to the console."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=8000 --dump-dom "
        f"--window-size=1000,900 --user-data-dir={folder}"
    )
    done = subprocess.run([CHROMIUM, *flags.split(), address], capture_output=True, text=True, timeout=90, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page in")


@needs_chromium
def test_a_browser_shows_the_value_under_a_point(fc, page, tmp_path):
    """By the address alone, in the page as it is shared; nothing goes wrong, and its own policy stops nothing."""
    path = page.save(tmp_path / "page.html")
    at = "#variable=geopotential&level=850&lead=2&member=3&start=2&show=member&point=58,28"
    dom, console = browse(f"file://{path}{at}", tmp_path / "profile")
    assert console == []
    assert 'data-ready="true"' in dom
    (readout,) = re.findall(r'<p id="readout"([^>]*)>([^<]*)<', dom)
    found = {key: float(value) for key, value in re.findall(r'data-(\w+)="([^"]+)"', readout[0])}
    exact = fc["geopotential"].isel(time=1, prediction_timedelta=1, number=2, level=1)
    nearest = exact.sel(latitude=58, longitude=28, method="nearest")
    assert (found["latitude"], found["longitude"]) == (nearest["latitude"], nearest["longitude"])
    assert abs(found["value"] - float(nearest)) <= found["error"] * (1 + 1e-6)
    assert "60°N 30°E" in readout[1]
    assert "m² s⁻²" in readout[1]
    assert dom.count("<path") > 3 * 3


STEPS = [
    {"variable": "mean_sea_level_pressure", "show": "member", "lead": 1, "member": "1", "start": 1},
    {"lead": 2, "member": "3"},
    {"start": 2, "show": "mean"},
    {"show": "spread"},
    {"show": "truth"},
    {"show": "difference"},
    {"show": "error", "member": "2"},
    {"show": "probability", "above": 101000},
    {"variable": HOSTILE, "show": "member", "lead": 2, "member": "1", "start": 1},
    {"variable": "geopotential", "level": 500, "show": "member", "map": "flat", "theme": "dark"},
]


def drive(made: Explorer, steps: list[dict], at: tuple[float, float], folder, others=()) -> list[dict]:
    """Steps through a page with a script of ours in it; what it sees at a place after each step, and at others."""
    script = f"""<pre id="seen"></pre><script>(async () => {{
      await xmosaic.ready;
      const seen = [];
      for (const step of {json.dumps(steps).replace("<", chr(92) + "u003c")}) {{
        await xmosaic.set({{ ...step, point: '{at[0]},{at[1]}' }});
        const own = document.getElementById('readout');
        seen.push({{ ...xmosaic.value({at[0]}, {at[1]}), read: own.dataset.value, text: own.textContent,
          label: document.getElementById('bar-label').textContent, hacked: window.hacked ?? 0,
          others: {json.dumps(others)}.map(([latitude, longitude]) => xmosaic.value(latitude, longitude)),
          charts: document.querySelectorAll('.chart svg').length }});
      }}
      document.getElementById('seen').textContent = JSON.stringify(seen);
    }})();</script></body>"""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made.html)
    (folder / "driven.html").write_text(free.replace("</body>", script), encoding="utf-8")
    dom, console = browse(f"file://{folder}/driven.html", folder / "profile")
    assert console == []
    (text,) = re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(text))


@needs_chromium
def test_a_browser_steps_through_everything(fc, tmp_path):
    """Value at a point by the page's arithmetic and by xarray's; hostile text is shown and doesn't run."""
    made = explore(hostile(fc), hostile(DS), progress=False)
    here = fc.sel(latitude=30, longitude=120)
    msl = here["mean_sea_level_pressure"]
    truth = DS["mean_sea_level_pressure"].sel(latitude=30, longitude=120, time="2020-03-03")
    last = msl.isel(time=1, prediction_timedelta=1)
    at_a_member = float(last[1])  # which packing may carry to either side
    steps = [*STEPS[:8], {"above": at_a_member}, *STEPS[8:]]
    seen = drive(made, steps, (30.0, 120.0), tmp_path)
    assert [s["hacked"] for s in seen] == [0] * len(steps)
    expected = [
        msl.isel(time=0, prediction_timedelta=0, number=0),
        msl.isel(time=0, prediction_timedelta=1, number=2),
        last.mean("number"),
        last.std("number", ddof=1),
        truth,
        last.mean("number") - truth,
        last.isel(number=1) - truth,
        100 * (last > 101000).mean("number"),
        100 * (last > at_a_member).mean("number"),
        here["2m_temperature"].isel(time=0, prediction_timedelta=1, number=0),
        here["geopotential"].sel(level=500).isel(time=0, prediction_timedelta=1, number=0),
    ]
    for step, got, value in zip(steps, seen, expected, strict=True):
        assert float(got["read"]) == got["value"]
        assert abs(got["value"] - float(value)) <= got["error"] * (1 + 1e-6) + 1e-9, step
        assert got["charts"] == 3
    assert [seen[k]["error"] for k in (7, 8)] == pytest.approx([0, 100 / 3])
    assert "window.hacked" in seen[9]["label"]
    assert seen[10]["label"].startswith("Geopotential at 500 hPa, member 1")


@needs_chromium
def test_a_browser_finds_places_of_a_region_across_greenwich(fc, tmp_path):
    """Uneven rows, columns on both sides of 0°, one member: the nearest point, and nothing outside."""
    part = fc[["mean_sea_level_pressure"]].isel(time=0, number=0, longitude=[10, 11, 0, 1], latitude=[2, 3, 5])
    made = explore(part, progress=False)
    near = {(0, -31): (0, 330), (-29, 14.9): (-30, 0), (59, 29): (60, 30), (20, 301): (0, 300), (-5, 359): (0, 0)}
    beside = [(0, 60), (-80, 0), (0, 180), (80, 0)]
    seen = drive(made, [{"lead": 2}], (0, 0), tmp_path, others=[*near, *beside])[0]["others"]
    assert seen[len(near) :] == [None] * len(beside)
    for (latitude, longitude), got in zip(near.values(), seen, strict=False):
        exact = part["mean_sea_level_pressure"].isel(prediction_timedelta=1).sel(latitude=latitude, longitude=longitude)
        assert (got["latitude"], got["longitude"]) == (latitude, longitude)
        assert abs(got["value"] - float(exact)) <= got["error"] * (1 + 1e-6)


def test_a_missing_value_is_none_in_the_page(fc, page):
    block = block_of(page, "2m_temperature")
    assert np.isnan(fc["2m_temperature"].values[0, 1, 0, 3, 4])
    assert np.isnan(block["members"][0][1, 3, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(np.array(block["members"])).sum() == np.array(block["members"]).size - 1
