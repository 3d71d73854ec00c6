"""Pictures: the lines are the diagnostics' numbers, axes say what they are, nothing else is touched."""

import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xmosaic
from xmosaic import plot
from xmosaic.diagnostics import calibration, scores
from xmosaic.diagnostics.conservation import mass_drift
from xmosaic.diagnostics.spectra import spectra, spectral_ratio
from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import cell_centres, cells_at
from xmosaic.plot.calibration import effective_points
from xmosaic.plot.cyclones import _ellipse, _path
from xmosaic.plot.style import coastlines, units_text
from xmosaic.tracks import ensemble_mean_track
from xmosaic.tracks import tracks as track
from xmosaic.tracks.sphere import angle, unit
from xmosaic.variables import cf_attributes

mpl.use("Agg")
LEAD = "prediction_timedelta"
GRID = LatLonGrid.equiangular(24, 13)
LEADS = pd.to_timedelta([1, 2, 3, 4, 5], "D")
STARTS = pd.date_range("2020-01-01", periods=6)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def make_truth(names=("geopotential", "mean_sea_level_pressure", "u_component_of_wind", "v_component_of_wind")):
    rng = np.random.default_rng(0)
    time = pd.date_range("2020-01-01", periods=11)
    fields = {}
    for name in names:
        levels = [] if name == "mean_sea_level_pressure" else [500, 850]
        dims = ("time", *(["level"] if levels else []), "latitude", "longitude")
        shape = (len(time), *([2] if levels else []), *GRID.shape)
        mean = 101000.0 if not levels else 0.0
        fields[name] = (dims, (mean + 50 * rng.normal(size=shape)).astype(np.float32), cf_attributes(name))
    return xr.Dataset(fields, {"time": time, "level": [500, 850], **GRID.coordinates()})


def make_forecast(truth, members=5, error=20.0, starts=STARTS):
    """The truth and noise that grows."""
    rng = np.random.default_rng(1)
    out = {}
    for name, field in truth.data_vars.items():
        future = xr.concat([field.sel(time=starts + lead).assign_coords(time=starts) for lead in LEADS], LEAD)
        future = future.assign_coords({LEAD: LEADS}).transpose("time", LEAD, ...)
        size = error * np.sqrt(np.arange(1, 6)).reshape(1, 5, *[1] * (future.ndim - 2))
        noise = rng.normal(size=(members, *future.shape)) * size
        joined = xr.DataArray(noise, dims=("number", *future.dims)) + future
        out[name] = joined.transpose("time", "number", LEAD, ...).astype(np.float32).assign_attrs(field.attrs)
    return xr.Dataset(out).assign_coords(number=np.arange(1, members + 1))


TRUTH = make_truth()
FC = make_forecast(TRUTH)


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def title(figure):
    return figure._suptitle.get_text()


# What every picture has in common


PICTURES = {
    "stamps": lambda: plot.stamps(FC),
    "spread": lambda: plot.spread(FC, TRUTH),
    "plume": lambda: plot.plume(FC, TRUTH, latitude=41, longitude=-100),
    "spectra": lambda: plot.spectra(FC, TRUTH),
    "ratio": lambda: plot.ratio(FC, TRUTH),
    "rank_histogram": lambda: plot.rank_histogram(FC, TRUTH),
    "reliability": lambda: plot.reliability(FC, TRUTH, 10.0),
    "skill": lambda: plot.skill(FC, TRUTH),
    "mass": lambda: plot.mass(FC),
    "tracks": lambda: plot.tracks(STORM, near=(20, 175)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_touches_nothing_and_has_a_style_of_its_own(name, monkeypatch):
    """Settings stay, one figure is made and none shown, and the caller's settings don't reach it."""
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("shown"))
    plt.close("all")  # what other tests left
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "axes.facecolor": "black", "text.color": "white"}):
        before = dict(mpl.rcParams)
        figure = PICTURES[name]()
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == [figure.number]
    assert mpl.colors.to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
    assert mpl.colors.to_hex(figure._suptitle.get_color()) == "#000000"
    assert figure._suptitle.get_fontsize() == 10


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_lies_outside_the_picture_or_on_another_text(name):
    figure = PICTURES[name]()
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [figure._suptitle.get_window_extent(renderer)]
    for ax in figure.axes:
        if ax.axison:
            labels = (ax.xaxis.label, ax.yaxis.label, ax.title)
            boxes += [text.get_window_extent(renderer) for text in labels if text.get_text() and text.get_visible()]
    for k, box in enumerate(boxes):
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert not any(box.overlaps(other) for other in boxes[:k])


@pytest.mark.parametrize(
    ("name", "labels"),
    {
        "stamps": ["longitude [°E]", "latitude [°N]", "Geopotential [m² s⁻²]", "standard deviation [m² s⁻²]"],
        "spread": ["lead [days]", "spread and error [m² s⁻²]", "standard deviation [m² s⁻²]"],
        "plume": ["valid time", "Geopotential at 500 hPa [m² s⁻²]"],
        "spectra": ["total wavenumber", "power [m⁴ s⁻⁴]"],
        "ratio": ["total wavenumber", "power over the truth's"],
        "rank_histogram": ["rank of the truth among 5 members", "relative frequency"],
        "reliability": ["forecast probability", "observed frequency", "share of forecasts"],
        "skill": ["lead [days]", "fair CRPS [m² s⁻²]"],
        "mass": ["lead [days]", "change of area-mean pressure [hPa]"],
        "tracks": ["longitude", "latitude", "valid time", "lowest mean sea-level pressure [hPa]"],
    }.items(),
)
def test_axes_carry_names_and_units(name, labels):
    there = [text for ax in PICTURES[name]().axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    assert set(labels) <= set(there)


def test_untrained_models_are_called_so_everywhere():
    fc = FC.assign_attrs(comment="UNTRAINED: random weights")
    pictures = [plot.stamps(fc), plot.spread(fc), plot.spectra(fc), plot.ratio(fc, TRUTH), plot.skill(fc, TRUTH)]
    pictures += [plot.rank_histogram(fc, TRUTH), plot.reliability(fc, TRUTH, 0.0), plot.mass(fc)]
    pictures += [plot.tracks(STORM.assign_attrs(fc.attrs), near=(20, 175)), plot.plume(fc, latitude=0, longitude=0)]
    assert all("UNTRAINED model: random weights, no skill" in title(figure) for figure in pictures)
    assert "UNTRAINED" not in title(plot.spread(FC))


@pytest.mark.parametrize("picture", [plot.stamps, plot.spread, plot.spectra])
def test_choices_that_are_not_there_name_what_is(picture):
    with pytest.raises(ArgumentError, match="'rain' is not in this forecast.*geopotential"):
        picture(FC, variable="rain")
    with pytest.raises(ArgumentError, match="level=10 is not in this forecast.*500, 850"):
        picture(FC, level=10)
    with pytest.raises(ArgumentError, match="'9D' is not in this forecast.*1 days"):
        picture(FC, lead="9D")
    with pytest.raises(ArgumentError, match="lead=24 is not in this forecast.*'36h'"):
        picture(FC, lead=24)


@pytest.mark.parametrize("picture", [plot.ratio, plot.rank_histogram, plot.skill])
def test_truth_is_asked_for_where_it_is_needed(picture):
    with pytest.raises(ArgumentError, match="needs a truth"):
        picture(FC)
    with pytest.raises(ArgumentError, match="The truth has no 'geopotential'.*mean_sea_level_pressure"):
        picture(FC, TRUTH[["mean_sea_level_pressure"]])


def test_any_dialect_is_drawn_alike():
    other = FC.isel(latitude=slice(None, None, -1)).mosaic.to_dialect("ecmwf")
    ours, theirs = plot.skill(FC, TRUTH, "msl"), plot.skill(other, TRUTH, "msl")
    np.testing.assert_allclose(ours.axes[0].lines[0].get_ydata(), theirs.axes[0].lines[0].get_ydata(), rtol=1e-6)
    ours, theirs = plot.stamps(FC, "z850"), plot.stamps(other, "z", level=850)
    arrays = [np.asarray(f.axes[0].collections[0].get_array()) for f in (ours, theirs)]
    np.testing.assert_array_equal(*arrays)


def test_one_level_against_a_truth_with_levels():
    ours = plot.skill(FC.sel(level=850), TRUTH).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(ours, plot.skill(FC, TRUTH, level=850).axes[0].lines[0].get_ydata())


def test_lazy_input_gives_the_same_picture():
    lazy = plot.spread(FC.chunk(time=1, number=2), TRUTH.chunk(time=1)).axes[0].lines
    for one, other in zip(lazy, plot.spread(FC, TRUTH).axes[0].lines, strict=True):
        np.testing.assert_allclose(one.get_ydata(), other.get_ydata(), rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "text"),
    [("m2 s-2", "m² s⁻²"), ("m**2 s**-2", "m² s⁻²"), ("kg kg-1", "kg kg⁻¹"), ("(m s-1)2", "(m s⁻¹)²"), ("%", "%")],
)
def test_exponents_are_raised(units, text):
    assert units_text(units) == text


# Maps


def test_spread_map_is_the_standard_deviation():
    figure = plot.spread(FC, TRUTH, "msl", lead="2D", time="2020-01-03")
    drawn = np.asarray(figure.axes[1].collections[0].get_array())
    at = FC["mean_sea_level_pressure"].sel(time="2020-01-03", prediction_timedelta=LEADS[1])
    np.testing.assert_allclose(drawn, at.astype(float).std("number", ddof=1), rtol=1e-6)


def test_winds_are_coloured_around_zero_and_pressure_is_not():
    u = plot.stamps(FC, "u").axes[0].collections[0]
    assert u.get_clim()[0] == -u.get_clim()[1]
    assert u.get_cmap().name == "RdBu_r"
    z = plot.stamps(FC, "z").axes[0].collections[0]
    assert z.get_cmap().name == "viridis"


def test_mesh_is_drawn_on_a_grid_and_says_so():
    mesh = xmosaic.to_healpix(FC[["mean_sea_level_pressure"]].isel(time=0), 4)
    figure = plot.stamps(mesh)
    assert "HEALPix nside 4, drawn on a 1° grid" in title(figure)
    expected = xmosaic.to_latlon(mesh["mean_sea_level_pressure"].isel(number=1, prediction_timedelta=-1), (360, 181))
    np.testing.assert_allclose(np.asarray(figure.axes[1].collections[0].get_array()), expected, rtol=1e-6)


def test_single_forecast_has_no_spread():
    with pytest.raises(DatasetError, match="no ensemble forecast"):
        plot.spread(FC.isel(number=0))
    with pytest.raises(DatasetError, match="One member has no spread"):
        plot.spread(FC.isel(number=[0]))
    figure = plot.stamps(FC.isel(number=[0]))
    assert any("one member has none" in ax.get_title() for ax in figure.axes)


@pytest.mark.parametrize("members", [0, True, 2.5])
def test_number_of_stamps_is_checked(members):
    with pytest.raises(ArgumentError, match="members="):
        plot.stamps(FC, members=members)


@pytest.fixture
def coast(tmp_path, monkeypatch):
    """A coastline on disk where cartopy would have downloaded it to."""
    cartopy = pytest.importorskip("cartopy")
    shapefile = pytest.importorskip("shapefile")
    folder = tmp_path / "shapefiles" / "natural_earth" / "physical"
    folder.mkdir(parents=True)
    with shapefile.Writer(str(folder / "ne_50m_coastline.shp"), shapeType=3) as file:
        file.field("name", "C")
        file.line([[[-80.0, 10.0], [-60.0, 20.0]]])
        file.record("coast")
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    return tmp_path


def test_coastlines_on_disk_are_drawn_in_the_map_s_longitudes(coast):
    (line,) = coastlines()
    np.testing.assert_array_equal(line, [[-80, 10], [-60, 20]])
    ax = plot.stamps(FC).axes[0]
    (drawn,) = [c for c in ax.collections if c.get_label() == "_coastlines"]
    np.testing.assert_array_equal(np.concatenate(drawn.get_segments())[:, 0], [280, 300])


def test_coastlines_are_never_downloaded(tmp_path, monkeypatch):
    cartopy = pytest.importorskip("cartopy")
    from cartopy.io import Downloader

    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    monkeypatch.setattr(Downloader, "acquire_resource", lambda *a, **k: pytest.fail("downloaded"))
    assert coastlines() == []
    assert [c.get_label() for c in plot.stamps(FC).axes[0].collections if c.get_label() == "_coastlines"] == []


def test_without_cartopy_there_are_no_coastlines(monkeypatch):
    monkeypatch.setitem(sys.modules, "cartopy", None)
    assert coastlines() == []


# Scores against lead


def test_spread_and_error_are_the_diagnostics():
    ax = plot.spread(FC, TRUTH).axes[0]
    z = FC[["geopotential"]].sel(level=[500])
    spread, rmse = (f(z, TRUTH)["geopotential"].squeeze() for f in (scores.spread, scores.rmse))
    np.testing.assert_allclose(lines(ax)["spread"].get_ydata(), spread)
    np.testing.assert_allclose(lines(ax)["RMSE of the mean"].get_ydata(), rmse)
    (called_for,) = [line for label, line in lines(ax).items() if "calls for" in label]
    np.testing.assert_allclose(called_for.get_ydata(), spread * np.sqrt(6 / 5))
    np.testing.assert_array_equal(lines(ax)["spread"].get_xdata(), [1, 2, 3, 4, 5])


def test_spread_needs_no_truth():
    ax = plot.spread(FC).axes[0]
    expected = FC["geopotential"].sel(level=500).astype(float).var("number", ddof=1)
    from xmosaic.grid import area_weights

    weights = area_weights(expected)
    mean = expected.weighted(weights).mean(("time", "latitude", "longitude")) ** 0.5
    np.testing.assert_allclose(lines(ax)["spread"].get_ydata(), mean)
    assert len(lines(ax)) == 1


# Plumes


def member_lines(ax):
    """Values of each member, (member, time)."""
    return np.array(
        [line.get_ydata() for line in ax.lines if line.get_linewidth() < 1 and line.get_color() == "#0072B2"]
    )


def test_plume_is_the_nearest_point_s_members_from_the_start_of_the_truth_on():
    """41° N, 100° W lies nearest to 45° N, 255° E on 15° × 15°."""
    figure = plot.plume(FC, TRUTH, "z850", latitude=41, longitude=-100, time="2020-01-04")
    (ax,) = figure.axes
    point = {"level": 850, "latitude": 45.0, "longitude": 255.0}
    members = FC["geopotential"].sel(point).sel(time="2020-01-04").transpose("number", LEAD).values
    start = float(TRUTH["geopotential"].sel(point).sel(time="2020-01-04"))
    drawn = member_lines(ax)
    np.testing.assert_allclose(drawn[:, 0], start)
    np.testing.assert_allclose(drawn[:, 1:], members)
    np.testing.assert_allclose(lines(ax)["median"].get_ydata()[1:], np.median(members, axis=0), rtol=1e-6)
    truth = lines(ax)["truth"]
    times = pd.date_range("2020-01-03", "2020-01-09")  # a quarter of five days before the start
    np.testing.assert_array_equal(truth.get_xdata(), times.values)
    np.testing.assert_array_equal(truth.get_ydata(), TRUTH["geopotential"].sel(point).sel(time=times))
    assert "grid point 45°N 105°W, nearest to 41°N 100°W" in title(figure).replace("\n", ", ")
    assert "5 members" in title(figure)
    assert "start 2020-01-04T00" in title(figure)


def test_plume_bands_hold_their_share_of_outcomes():
    """Of a truth that is one more draw: (M − 1)/(M + 1) lie between the extremes, so 80 % need nine members."""
    rng = np.random.default_rng(0)
    leads = pd.to_timedelta(np.arange(1, 2001), "h")
    values = rng.normal(size=(20, 2000))
    fc = xr.DataArray(values[:19], {"number": np.arange(19), LEAD: leads}, name="t2m")
    bands = [c for c in plot.plume(fc).axes[0].collections if c.get_label().startswith("middle")]
    for band, share in zip(bands, (0.8, 0.5), strict=True):
        path = band.get_paths()[0].vertices[:, 1]
        low, high = path[1:2001], path[2002:-1][::-1]
        inside = ((values[19] > low) & (values[19] < high)).mean()
        assert abs(inside - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    for count, expected in ((2, []), (8, ["middle 50 %"]), (9, ["middle 80 %", "middle 50 %"])):
        ax = plot.plume(fc.isel(number=slice(count))).axes[0]
        assert [c.get_label() for c in ax.collections if c.get_label().startswith("middle")] == expected


def test_plume_on_the_mesh_is_of_the_cell_that_holds_the_place():
    mesh = FC.mosaic.to_healpix(8)
    figure = plot.plume(mesh, variable="msl", latitude=41, longitude=-100)
    cell = int(cells_at(8, -100, 41))
    members = mesh["mean_sea_level_pressure"].isel(time=0, cell=cell).transpose("number", LEAD)
    np.testing.assert_allclose(member_lines(figure.axes[0]), members)
    east, north = (axis[cell] for axis in cell_centres(8))
    assert f"cell {north:.2f}°N {360 - east:.2f}°W, nearest to 41°N 100°W" in title(figure).replace("\n", ", ")
    shuffled = mesh.isel(cell=np.random.default_rng(0).permutation(mesh.sizes["cell"]))
    again = plot.plume(shuffled, variable="msl", latitude=41, longitude=-100)
    np.testing.assert_array_equal(member_lines(again.axes[0]), member_lines(figure.axes[0]))


def test_plume_with_a_truth_of_another_place_says_so_and_does_not_begin_there():
    theirs = TRUTH.isel(longitude=slice(1, None, 2))  # 30° apart
    figure = plot.plume(FC, theirs, latitude=45, longitude=0)
    assert "truth of grid point 45°N 15°E, nearest to 45°N 0°" in title(figure)
    assert member_lines(figure.axes[0]).shape == (5, 5)


def test_plume_takes_a_truth_in_other_units_and_names():
    theirs = (TRUTH[["mean_sea_level_pressure"]] / 100).rename(mean_sea_level_pressure="msl", latitude="lat")
    theirs["msl"].attrs["units"] = "hPa"
    for lazy in (False, True):
        other = theirs.chunk(time=1) if lazy else theirs
        there = plot.plume(FC.chunk(time=1) if lazy else FC, other, "msl", latitude=0, longitude=0).axes[0]
        ours = plot.plume(FC, TRUTH, "msl", latitude=0, longitude=0).axes[0]
        np.testing.assert_allclose(lines(there)["truth"].get_ydata(), lines(ours)["truth"].get_ydata(), rtol=1e-6)
    theirs["msl"].attrs["units"] = "K"
    with pytest.raises(DatasetError, match="truth has other units"):
        plot.plume(FC, theirs, "msl", latitude=0, longitude=0)


def test_plume_of_one_forecast_and_of_a_place_chosen_before():
    point = FC.isel(number=0).sel(latitude=30, longitude=60)
    ax = plot.plume(point, TRUTH).axes[0]
    assert set(lines(ax)) == {"forecast", "truth", "start"}
    np.testing.assert_array_equal(lines(ax)["forecast"].get_ydata()[1:], point["geopotential"].isel(time=0, level=0))
    one = plot.plume(FC.isel({LEAD: [2]}), latitude=30, longitude=60).axes[0]
    assert one.lines[0].get_marker() == "o"


NO_MESH = FC.mosaic.to_healpix(2).drop_vars(["crs", "cell"])


@pytest.mark.parametrize("east", [-180, 180, 179.99, -179.99])
def test_plume_finds_places_across_the_date_line(east):
    west = FC.assign_coords(longitude=(FC["longitude"] + 180) % 360 - 180).sortby("longitude")
    for fc in (FC, west):
        assert "180°" in title(plot.plume(fc, latitude=0, longitude=east))


@pytest.mark.parametrize(
    ("fc", "truth", "options", "error", "message"),
    [
        (FC, None, {}, ArgumentError, "of one place, and latitude= is missing. Pass latitude="),
        (FC, None, {"latitude": 0}, ArgumentError, "longitude= is missing"),
        (FC, None, {"latitude": 91, "longitude": 0}, ArgumentError, "latitude=91 .*-90 … 90"),
        (FC, None, {"latitude": np.nan, "longitude": 0}, ArgumentError, "latitude=nan"),
        (FC, None, {"latitude": "Paris", "longitude": 0}, ArgumentError, "latitude='Paris'"),
        (FC.sel(latitude=slice(0, 45)), None, {"latitude": -60, "longitude": 0}, ArgumentError, "60°S 0° lies outside"),
        (FC.mean("longitude"), None, {"latitude": 0, "longitude": 0}, DatasetError, "no place to choose"),
        (
            FC.mosaic.to_healpix(2).drop_vars(["crs", "cell"]),
            None,
            {"latitude": 0, "longitude": 0},
            DatasetError,
            "mesh",
        ),
        (
            FC,
            TRUTH.assign_coords(time=TRUTH["time"] + np.timedelta64(4000, "D")),
            {"latitude": 0, "longitude": 0},
            DatasetError,
            "none of the forecast's times",
        ),
        (
            FC,
            TRUTH.isel(time=slice(0, 0)),
            {"latitude": 0, "longitude": 0},
            DatasetError,
            "There is nothing along 'time'",
        ),
        (FC, TRUTH.isel(time=0), {"latitude": 0, "longitude": 0}, DatasetError, "not along time"),
        (FC.drop_vars("time"), TRUTH, {"latitude": 0, "longitude": 0}, DatasetError, "no start"),
        (FC.expand_dims(model=2), None, {"latitude": 0, "longitude": 0}, DatasetError, "dimension 'model'.*isel"),
        (FC, None, {"latitude": 0, "longitude": 0, "level": 10}, ArgumentError, "500, 850"),
    ],
)
def test_plume_refuses(fc, truth, options, error, message):
    with pytest.raises(error, match=message):
        plot.plume(fc, truth, **options)


# Panels of a benchmark


@pytest.fixture(scope="module")
def result():
    return xmosaic.benchmark({"ours": FC, "one": FC.isel(number=0)}, TRUTH, progress=False, resamples=20, mass=False)


def test_panels_draw_the_estimates_of_a_benchmark(result):
    figure = plot.score_panels(result, [("geopotential", 850), ("mean_sea_level_pressure", None)], ["rmse"])
    fields = result["geopotential"].sel(level=850), result["mean_sea_level_pressure"]
    for ax, field in zip(figure.axes, fields, strict=True):
        expected = field.sel(score="rmse", bound="estimate", forecast="ours")
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected)
    figure = plot.ratio_panels(result, [("geopotential", 850)], ["2D", "5D"])
    ratio = result["geopotential_spectral_ratio"].sel(level=850, bound="estimate", forecast="ours")
    for ax, lead in zip(figure.axes, ("2D", "5D"), strict=True):
        expected = ratio.sel({LEAD: pd.Timedelta(lead)}).isel(total_wavenumber=slice(1, None))
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected)
    assert len(plot.ratio_panels(result, [("geopotential", 850)]).axes) == 3


def test_panels_refuse_by_name(result):
    z = [("geopotential", 500)]
    for call, error, message in (
        (lambda: plot.score_panels(FC, z), DatasetError, "no result of a benchmark.*xmosaic.benchmark"),
        (lambda: plot.score_panels(result, []), ArgumentError, "fields= is empty"),
        (lambda: plot.score_panels(result, [("rain", None)]), ArgumentError, "'rain'.*'geopotential'"),
        (lambda: plot.score_panels(result, [("geopotential", 300)]), ArgumentError, "level 300.*500, 850"),
        (lambda: plot.score_panels(result, z, ["luck"]), ArgumentError, "'luck'.*'crps'"),
        (lambda: plot.ratio_panels(result, z, ["9D"]), ArgumentError, "'9D'"),
        (lambda: plot.ratio_panels(result.drop_vars("geopotential_spectral_ratio"), z), DatasetError, "spectra=True"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("score", ["crps", "rmse", "mae", "bias", "spread_skill"])
def test_skill_is_the_score(score):
    ax = plot.skill({"a": FC, "b": FC.isel(number=slice(3))}, TRUTH, score=score, level=850).axes[0]
    z = FC[["geopotential"]].sel(level=[850])
    for name, fc in (("a", z), ("b", z.isel(number=slice(3)))):
        expected = getattr(scores, score)(fc, TRUTH)["geopotential"].squeeze()
        np.testing.assert_allclose(lines(ax)[name].get_ydata(), expected)


def test_interval_is_the_bootstrap_s():
    figure = plot.skill(FC, TRUTH, confidence=0.9)
    expected = scores.crps(FC[["geopotential"]].sel(level=[500]), TRUTH, confidence=0.9)["geopotential"].squeeze()
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    for k, day in enumerate([1, 2, 3, 4, 5]):
        heights = band[band[:, 0] == day][:, 1]
        bounds = expected.isel({LEAD: k}).sel(bound=["lower", "upper"])
        np.testing.assert_allclose([heights.min(), heights.max()], bounds)
    assert "confidence 0.9" in figure._supxlabel.get_text()


def test_forecasts_of_different_starts_say_so():
    ax = plot.skill({"all": FC, "some": FC.isel(time=slice(4))}, TRUTH).axes[0]
    assert set(lines(ax)) == {"all (6 starts)", "some (4 starts)"}


def test_baselines_are_grey_and_options_reach_the_score():
    fc = FC.isel(number=slice(2))
    ax = plot.skill({"ours": FC}, TRUTH, baselines={"small": fc}, fair=False).axes[0]
    red, green, blue = mpl.colors.to_rgb(lines(ax)["small"].get_color())
    assert red == green == blue
    expected = scores.crps(fc[["geopotential"]].sel(level=[500]), TRUTH, fair=False)["geopotential"].squeeze()
    np.testing.assert_allclose(lines(ax)["small"].get_ydata(), expected)
    assert ax.get_ylabel() == "CRPS [m² s⁻²]"


def test_results_are_drawn_as_they_are():
    result = scores.crps(FC, TRUTH)
    again = plot.skill({"result": result}, level=850).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(again, result["geopotential"].sel(level=850))
    with pytest.raises(DatasetError, match="more dimensions than lead.*time"):
        plot.skill(scores.crps(FC, TRUTH, dim=["latitude", "longitude"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "luck"}, "score='luck' is not known.*'crps'"),
        ({"forecasts": {}}, "forecasts can't be used"),
        ({"forecasts": [FC]}, "forecasts can't be used.*list"),
        ({"forecasts": {"a": FC}, "baselines": {"a": FC}}, "one name.*'a'"),
    ],
)
def test_skill_refuses(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        plot.skill(**{"forecasts": FC, "truth": TRUTH} | arguments)


def test_a_single_lead_and_hours():
    ax = plot.skill(FC.isel({LEAD: [0]}), TRUTH).axes[0]
    assert ax.get_xlabel() == "lead [h]"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [24])


# Drift of mass


def test_mass_is_the_diagnostic_with_percent_on_the_right():
    one = FC.isel(time=0)
    figure = plot.mass(one, TRUTH)
    ax = figure.axes[0]
    expected = mass_drift(one, TRUTH)
    members = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 5]
    np.testing.assert_allclose(members[:5], expected["mass_drift"].transpose("number", LEAD))
    np.testing.assert_allclose(lines(ax)["mean"].get_ydata(), expected["mass_drift_mean"])
    (right,) = ax.child_axes
    figure.draw_without_rendering()
    ratio = np.array(right.get_ylim()) / np.array(ax.get_ylim())
    np.testing.assert_allclose(ratio, expected["mass_drift_percent"].values[0, 0] / expected["mass_drift"].values[0, 0])
    assert "stands for the mass" in title(figure)
    assert "analysis at the start" in title(figure)


def test_mass_accepts_its_result():
    result = mass_drift(FC)
    a, b = plot.mass(result).axes[0], plot.mass(FC).axes[0]
    np.testing.assert_allclose(lines(a)["mean"].get_ydata(), lines(b)["mean"].get_ydata())
    with pytest.raises(ArgumentError, match="without a start"):
        plot.mass(result, TRUTH)
    assert set(lines(plot.mass(FC.isel(number=0, time=0)).axes[0])) == {"forecast"}


# Spectra


def test_spectra_are_the_diagnostic():
    figure = plot.spectra(FC, TRUTH, lead=["2D", "5D"])
    for ax, day in zip(figure.axes, (1, 4), strict=True):
        z = FC[["geopotential"]].sel(level=500).isel({LEAD: day})
        power = spectra(z)["geopotential"].mean("time").isel(total_wavenumber=slice(1, None))
        np.testing.assert_allclose(lines(ax)["median member"].get_ydata(), power.median("number"))
        mean = spectra(z, of="mean")["geopotential"].mean("time").isel(total_wavenumber=slice(1, None))
        np.testing.assert_allclose(lines(ax)["ensemble mean"].get_ydata(), mean)
        truth = TRUTH[["geopotential"]].sel(level=500, time=STARTS + LEADS[day])
        own = spectra(truth)["geopotential"].mean("time").isel(total_wavenumber=slice(1, None))
        np.testing.assert_allclose(lines(ax)["truth"].get_ydata(), own)
        assert ax.get_xscale() == ax.get_yscale() == "log"


def test_starts_without_truth_are_left_out_of_the_power():
    cut = TRUTH.sel(time=slice(None, "2020-01-08"))  # at five days only starts until 3 January
    with pytest.warns(xmosaic.diagnostics.layout.AlignmentWarning, match="Not everything has a truth"):
        figure = plot.spectra(FC, cut, lead="5D")
    z = FC[["geopotential"]].sel(level=500).isel({LEAD: 4, "time": slice(3)})
    power = spectra(z)["geopotential"].mean("time").median("number").isel(total_wavenumber=slice(1, None))
    np.testing.assert_allclose(lines(figure.axes[0])["median member"].get_ydata(), power)


@pytest.mark.parametrize("kind", ["total", "zonal"])
def test_wavelength_axis_is_the_diagnostic_s_coordinate(kind):
    figure = plot.ratio(FC, TRUTH, kind=kind)
    ax = figure.axes[0]
    (upper,) = ax.child_axes
    power = spectra(TRUTH[["geopotential"]].isel(time=0, level=0), kind=kind)["geopotential"]
    forward, back = upper._functions
    np.testing.assert_allclose(forward(power[f"{kind}_wavenumber"].values[1:]), power["wavelength"].values[1:])
    np.testing.assert_allclose(back(power["wavelength"].values[1:]), power[f"{kind}_wavenumber"].values[1:])
    assert upper.get_xlabel() == "wavelength [km]"


def test_kinetic_energy_and_its_parts_have_slopes():
    for name in ("kinetic_energy", "kinetic_energy_rotational"):
        figure = plot.spectra(FC, TRUTH, name, level=850, lead="1D")
        ax = figure.axes[0]
        winds = FC[["u_component_of_wind", "v_component_of_wind"]].sel(level=850).isel({LEAD: 0})
        power = spectra(winds)[name].mean("time").median("number").isel(total_wavenumber=slice(1, None))
        np.testing.assert_allclose(lines(ax)["median member"].get_ydata(), power)
        slopes = {line.get_label(): line for line in ax.lines if line.get_label().startswith("_slope")}
        for text, slope in (("_slope −3", -3), ("_slope −5/3", -5 / 3)):
            if text in slopes:
                k, y = slopes[text].get_data()
                np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(k)), slope)
        assert "_slope −5/3" in slopes
        assert "kinetic energy at 850 hPa" in title(figure)
    assert not [line for line in plot.spectra(FC).axes[0].lines if line.get_label().startswith("_slope")]


def test_ratio_is_the_diagnostic_and_its_range_is_the_members():
    ax = plot.ratio(FC, TRUTH, lead="5D").axes[0]
    z = FC[["geopotential"]].sel(level=[500]).isel({LEAD: [4]})
    expected = spectral_ratio(z, TRUTH)["geopotential"].squeeze().isel(total_wavenumber=slice(1, None))
    np.testing.assert_allclose(lines(ax)["lead 5 d"].get_ydata(), expected)
    members = spectral_ratio(z, TRUTH, dim="time")["geopotential"].squeeze().isel(total_wavenumber=3)
    heights = ax.collections[0].get_paths()[0].vertices
    heights = heights[heights[:, 0] == 3][:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [members.min(), members.max()])
    band = next(patch for patch in ax.patches if patch.get_label() == "0.9 … 1.1")
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.9, 1.1])


def test_spectra_and_ratios_accept_results():
    power = spectra(FC)
    a, b = plot.spectra(power, level=850, lead="2D").axes[0], plot.spectra(FC, level=850, lead="2D").axes[0]
    np.testing.assert_allclose(lines(a)["median member"].get_ydata(), lines(b)["median member"].get_ydata())
    ratio = spectral_ratio(FC, TRUTH)
    a, b = plot.ratio(ratio, lead="2D").axes[0], plot.ratio(FC, TRUTH, lead="2D").axes[0]
    np.testing.assert_allclose(lines(a)["lead 2 d"].get_ydata(), lines(b)["lead 2 d"].get_ydata())
    for picture, result in ((plot.spectra, power), (plot.ratio, ratio)):
        with pytest.raises(ArgumentError, match="without a truth"):
            picture(result, TRUTH)


def test_mesh_is_drawn_up_to_what_it_resolves():
    mesh, truth = (xmosaic.to_healpix(ds[["mean_sea_level_pressure"]], 4) for ds in (FC.isel(time=[0]), TRUTH))
    for figure in (plot.spectra(mesh, truth), plot.ratio(mesh, truth)):
        assert figure.axes[0].lines[-1].get_xdata()[-1] == 8
        assert "drawn up to wavenumber 2 nside" in title(figure)


def test_deterministic_forecast_is_one_line():
    ax = plot.spectra(FC.isel(number=0, time=0)).axes[0]
    assert set(lines(ax)) == {"forecast"}
    with pytest.raises(ArgumentError, match="needs winds"):
        plot.spectra(FC[["geopotential"]], variable="kinetic_energy")


# Calibration


def test_bars_are_the_rank_histogram():
    figure = plot.rank_histogram(FC, TRUTH, lead=["1D", "4D"])
    expected = calibration.rank_histogram(FC[["geopotential"]].sel(level=[500]), TRUTH)["geopotential"].squeeze()
    for ax, day in zip(figure.axes, (0, 3), strict=True):
        bars = [patch.get_height() for patch in ax.containers[0]]
        np.testing.assert_allclose(bars, expected.isel({LEAD: day}))
        assert ax.get_ylim()[1] > max(bars)


def test_effective_points_are_those_that_were_drawn():
    """Sixty points at each of 400 starts; three neighbours each that say the same don't make them more."""
    rng = np.random.default_rng(0)
    ranks = np.repeat(rng.integers(0, 9, size=(400, 60)), 3, axis=1)
    counts = np.stack([np.bincount(row, minlength=9) for row in ranks]) / 180
    each = xr.DataArray(counts, dims=("time", "rank"))
    assert effective_points(each) == pytest.approx(400 * 60, rel=0.1)  # s.d. of the estimate: √(2/(400 · 8)) = 2.5 %
    assert effective_points(each.isel(time=[0, 0, 0])) == np.inf


def test_sampling_band_is_binomial_and_explained():
    figure = plot.rank_histogram(FC, TRUTH, lead="1D")
    z = FC[["geopotential"]].sel(level=[500])
    each = calibration.rank_histogram(z, TRUTH, dim=["latitude", "longitude"])["geopotential"].squeeze()
    n = effective_points(each.isel({LEAD: 0}))
    patch = figure.axes[0].patches[0]
    half = 1.96 * np.sqrt(1 / 6 * 5 / 6 / n)
    np.testing.assert_allclose([patch.get_y(), patch.get_y() + patch.get_height()], [1 / 6 - half, 1 / 6 + half])
    assert "binomial" in figure._supxlabel.get_text()
    assert "6 starts" in figure._supxlabel.get_text()
    alone = plot.rank_histogram(FC.isel(time=0), TRUTH, lead="1D")
    assert "no sampling band" in alone._supxlabel.get_text()
    assert len(alone.axes[0].patches) == 6


def test_rank_histogram_accepts_its_result():
    result = calibration.rank_histogram(FC, TRUTH)
    bars = [p.get_height() for p in plot.rank_histogram(result, lead="3D", level=850).axes[0].containers[0]]
    np.testing.assert_allclose(bars, result["geopotential"].sel(level=850).isel({LEAD: 2}))
    starts = calibration.rank_histogram(FC, TRUTH, dim=["latitude", "longitude"])
    assert "Shaded" in plot.rank_histogram(starts)._supxlabel.get_text()
    with pytest.raises(ArgumentError, match="without a truth"):
        plot.rank_histogram(result, TRUTH)


def test_reliability_is_the_diagnostic():
    figure = plot.reliability(FC, TRUTH, 10.0, lead="4D", event="below")
    z = FC[["geopotential"]].sel(level=[500]).isel({LEAD: [3]})
    result = calibration.reliability(z, TRUTH, 10.0, event="below")
    expected = result["geopotential"].squeeze()
    line = lines(figure.axes[0])["lead 4 d"]
    for data, quantity in zip(line.get_data(), ("forecast_probability", "observed_frequency"), strict=True):
        np.testing.assert_allclose(data, expected.sel(quantity=quantity).dropna("bin"))
    np.testing.assert_allclose(figure.axes[1].patches[0].get_data().values, expected.sel(quantity="share"))
    assert "≤ 10 m² s⁻²" in title(figure)
    again = lines(plot.reliability(result).axes[0])["lead 4 d"]
    np.testing.assert_allclose(again.get_data(), line.get_data())
    with pytest.raises(ArgumentError, match="needs a threshold"):
        plot.reliability(FC, TRUTH)


# Tracks


def make_storm(members=5):
    """Lows that cross the date line, each on a course of its own."""
    latitude, longitude = np.arange(-90, 91, 3.0), np.arange(0, 360, 3.0)
    grid = unit(latitude[:, None], longitude[None])
    out = np.empty((members, 5, latitude.size, longitude.size))
    for m in range(members):
        for k in range(5):
            centre = unit(20 + k * (1 + 0.2 * m), 175 + 3 * k + 0.3 * m)
            out[m, k] = 101000 - (2000 + 100 * m) * np.exp(-((np.rad2deg(angle(grid, centre)) / 6) ** 2))
    coords = {"number": np.arange(1, members + 1), LEAD: pd.to_timedelta(np.arange(5) * 12, "h")}
    coords |= {"latitude": latitude, "longitude": longitude, "time": np.datetime64("2020-01-01", "ns")}
    fields = {"mean_sea_level_pressure": (("number", LEAD, "latitude", "longitude"), out, cf_attributes("msl"))}
    return xr.Dataset(fields, coords)


STORM = make_storm()


def test_tracks_cross_the_date_line_without_a_jump():
    figure = plot.tracks(STORM, near=(20, 175))
    found = track(STORM, near=(20, 175), progress=False).isel(storm=0)
    mean = ensemble_mean_track(found)
    x, y = lines(figure.axes[0])["mean of members"].get_data()
    assert np.isfinite(x).all()
    assert np.abs(np.diff(x)).max() < 1
    ends = [[x[0], x[-1]], [y[0], y[-1]]]
    np.testing.assert_allclose(np.mod(ends[0], 360), mean["longitude"].values[[0, -1]])
    np.testing.assert_allclose(ends[1], mean["latitude"].values[[0, -1]])
    hpa = next(line.get_ydata() for line in figure.axes[1].lines if line.get_linewidth() > 2)
    np.testing.assert_allclose(hpa, mean["mean_sea_level_pressure"] / 100)


def test_lines_are_great_circles():
    x, y = _path(np.array([60.0, 60.0]), np.array([0.0, 90.0]), 45.0)
    middle = np.argmin(np.abs(x - 45))
    # the great circle between two points at 60° N, 90° apart: tan φ = tan 60° / cos 45° at its top
    assert y[middle] == pytest.approx(np.rad2deg(np.arctan(np.tan(np.pi / 3) / np.cos(np.pi / 4))), abs=0.01)
    x, _ = _path(np.array([0.0, 0.0]), np.array([10.0, -10.0]), 180.0)
    assert np.isnan(x).sum() == 1  # a line across the map's edge is broken


def test_half_of_normal_members_lie_in_the_ellipse():
    rng = np.random.default_rng(0)
    count = 4000
    position = {"latitude": (("number", "valid_time"), 50 + rng.normal(size=(count, 1)))}
    position["longitude"] = (("number", "valid_time"), 180 + 4 * rng.normal(size=(count, 1)))
    storm = xr.Dataset(position, {"valid_time": [np.datetime64("2020-01-01", "ns")]})
    ellipse = _ellipse(storm, ensemble_mean_track(storm), 0, 180.0)
    inside = mpl.path.Path(np.stack(ellipse, -1)).contains_points(
        np.concatenate([storm["longitude"].values, storm["latitude"].values], -1)
    )
    assert inside.mean() == pytest.approx(0.5, abs=0.03)  # s.d. 0.008, and the map is not quite flat


def test_best_track_is_drawn_and_starts_the_tracking():
    best = track(STORM.isel(number=2), near=(20, 175), progress=False).isel(storm=0)
    figure = plot.tracks(STORM, best)
    left, right = figure.axes[:2]
    dots = next(line for line in left.lines if line.get_linestyle() == "None" and line.get_marker() == "s")
    np.testing.assert_allclose(np.mod(dots.get_xdata(), 360), best["longitude"])
    squares = next(line for line in right.lines if line.get_marker() == "s")
    np.testing.assert_allclose(squares.get_ydata(), best["mean_sea_level_pressure"] / 100)


def test_tracks_accept_their_result():
    found = track(STORM, near=(20, 175), progress=False)
    a, b = plot.tracks(found), plot.tracks(STORM, near=(20, 175))
    for one, other in zip(a.axes[0].lines, b.axes[0].lines, strict=True):
        np.testing.assert_array_equal(one.get_xdata(), other.get_xdata())
    with pytest.raises(ArgumentError, match="near= is for tracking"):
        plot.tracks(found, near=(20, 175))
    with pytest.raises(DatasetError, match="no track to draw"):
        plot.tracks(found.where(False))
    assert set(lines(plot.tracks(found.isel(number=0)).axes[0])) == {"forecast"}


def test_storms_have_names_of_their_own():
    two = STORM.copy()
    field = STORM["mean_sea_level_pressure"]
    two["mean_sea_level_pressure"] = field + field.roll(longitude=40, roll_coords=False) - 101000
    ax = plot.tracks(two).axes[0]
    assert {"storm 1", "storm 2"} <= set(lines(ax))


def test_import_of_plot_needs_no_torch_and_no_matplotlib():
    code = "import sys, xmosaic.plot; print({'torch', 'matplotlib', 'cartopy', 'healpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
