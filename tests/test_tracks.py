"""Are storms found where they are, followed through what happens to them, and compared rightly with best tracks?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.healpix import cell_centres, mesh_coordinates
from xmosaic.tracks import ensemble_mean_track, read_best_track, track_error, tracks
from xmosaic.tracks.detect import Criteria, Fields, _fitted, find_centres
from xmosaic.tracks.mesh import CellMesh, LatLonMesh
from xmosaic.tracks.sphere import angle, between, degrees, exp_map, frame, log_map, plane, unit

SHARED = Path(__file__).parents[2] / "shared"
IAN = SHARED / "data" / "ian_2022_besttrack.csv"
RADIUS = 6371.229  # km
LATITUDE, LONGITUDE = np.linspace(-90, 90, 121), np.arange(240) * 1.5
COARSE = np.linspace(-90, 90, 61), np.arange(120) * 3.0
HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


# An analytic storm


def distance(lat1, lon1, lat2, lon2):
    """Great-circle distance [km] by the haversine formula."""
    p1, p2, dl = np.deg2rad(lat1), np.deg2rad(lat2), np.deg2rad(np.asarray(lon2) - lon1)
    h = np.sin((p2 - p1) / 2) ** 2 + np.cos(p1) * np.cos(p2) * np.sin(dl / 2) ** 2
    return 2 * RADIUS * np.arcsin(np.sqrt(h))


def holland(latitude, longitude, centre, depth=4000.0, core=200.0, b=1.3):
    """Fall of pressure [Pa] below the surroundings, dp (1 − exp(−(R/r)^B)); Holland (1980)."""
    r = np.maximum(distance(*centre, latitude, longitude), 1e-6)
    return depth * -np.expm1(-((core / r) ** b))


def swirl(latitude, longitude, centre, speed=30.0, core=200.0):
    """Eastward and northward wind [m s-1] of a cyclone with its highest speed at the core's radius."""
    origin, points = unit(*centre), unit(latitude, longitude)
    r = distance(*centre, latitude, longitude)
    away = -log_map(points, origin)
    away = away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-12)
    around = np.cross(points, away) * np.sign(centre[0] or 1)
    size = speed * (r / core) * np.exp((1 - (r / core) ** 2) / 2)
    return tuple((around * axis).sum(-1) * size for axis in frame(points))


def storms(centres, latitude=LATITUDE, longitude=LONGITUDE, **shape):
    """Pressure [Pa] of several storms; a centre is (latitude, longitude)."""
    lat, lon = np.meshgrid(latitude, longitude, indexing="ij")
    return 101000.0 - sum((holland(lat, lon, c, **shape) for c in centres), np.zeros(lat.shape))


def forecast(paths, step=6, grid=COARSE, first=1, **shape):
    """Forecast whose members each hold the storms of a list of paths; a path has None where there is no storm."""
    leads = len(paths[0][0])
    values = [[storms([p[k] for p in member if p[k]], *grid, **shape) for k in range(leads)] for member in paths]
    coords = {
        "number": np.arange(1, len(paths) + 1),
        "prediction_timedelta": (np.arange(leads) + first) * step * HOUR.astype("timedelta64[ns]"),
        "latitude": grid[0],
        "longitude": grid[1],
        "time": np.datetime64("2022-09-24", "ns"),
    }
    dims = ("number", "prediction_timedelta", "latitude", "longitude")
    return xr.Dataset({"mean_sea_level_pressure": (dims, np.array(values), {"units": "Pa"})}, coords)


def path(start, move, count):
    return [(start[0] + k * move[0], (start[1] + k * move[1]) % 360) for k in range(count)]


def away(result, truth):
    """Distance [km] of a track from a path, dims as the track."""
    lat, lon = np.array(truth).T
    return distance(lat, lon, result["latitude"].values, result["longitude"].values)


CRITERIA = Criteria(200.0, np.deg2rad(5.5), np.deg2rad(3.0), 0.05, 0.05, (0.1, 0.2), (0.04, 0.12), {})


def located(centres, mesh=None, **shape):
    """Position error [km] of each storm on the 1.5° grid."""
    mesh = mesh or LatLonMesh(LATITUDE, LONGITUDE)
    found = find_centres(mesh, Fields(mesh.flatten(storms(centres, **shape))), CRITERIA, None)
    assert len(found) == len(centres)
    lat, lon = degrees(found.points)
    return [float(distance(*c, lat, lon).min()) for c in centres]


# Is the sphere right?


points = st.tuples(st.floats(-90, 90), st.floats(-360, 720))


@given(points, points)
@settings(max_examples=60, deadline=None)
def test_angle_is_the_haversine_distance(a, b):
    np.testing.assert_allclose(angle(unit(*a), unit(*b)) * RADIUS, distance(*a, *b), atol=2e-4)


@given(points, points, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_logarithm_leads_there_and_the_way_is_straight(a, b, part):
    start, end = unit(*a), unit(*b)
    if angle(start, end) > 3.1:  # any way leads to the antipode
        return
    np.testing.assert_allclose(exp_map(start, log_map(start, end)), end, atol=1e-9)
    middle = between(start, end, part)
    np.testing.assert_allclose(angle(start, middle) + angle(middle, end), angle(start, end), atol=1e-7)


@pytest.mark.parametrize("mesh", ["grid", "rows off the poles", "cells"])
@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (0.6, 0.0, 0.8)])
def test_vorticity_of_a_turning_sphere(mesh, axis):
    """ζ = 2 Ω·up for rotation about any axis, at the poles as well."""
    axis = 1e-5 * np.array(axis)
    if mesh == "cells":
        longitude, latitude = cell_centres(32)
        own = CellMesh(32, np.arange(12 * 32**2))
    else:
        rows = LATITUDE if mesh == "grid" else LATITUDE[:-1] + 0.75
        longitude, latitude = np.meshgrid(LONGITUDE, rows)
        own = LatLonMesh(rows, LONGITUDE)
    up = unit(latitude, longitude)
    wind = np.cross(axis, up) * RADIUS * 1e3
    east, north = frame(up)
    if mesh == "grid":  # on a pole, each value belongs to its meridian
        lam = np.deg2rad(LONGITUDE)
        for row, sign in ((0, -1), (-1, 1)):
            east[row] = np.stack([-np.sin(lam), np.cos(lam), 0 * lam], -1)
            north[row] = np.stack([-sign * np.cos(lam), -sign * np.sin(lam), 0 * lam], -1)
    zeta = own.vorticity((wind * east).sum(-1), (wind * north).sum(-1))
    np.testing.assert_allclose(zeta, 2 * own.points @ axis, atol=4e-7 if mesh == "cells" else 2e-7)


# Is the centre between the grid points?


@pytest.mark.parametrize("place", [(0, 120), (60, 5), (40, 0), (119, 17), (120, 0), (0, 0)])
@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.5, 3), st.floats(0.5, 3), st.floats(-0.4, 0.4))
@settings(max_examples=15, deadline=None)
def test_fit_is_exact_on_quadratics(place, x0, y0, xx, yy, xy):
    """In the tangent plane of the grid point, at the date line and the poles too."""
    mesh = LatLonMesh(LATITUDE, LONGITUDE)
    origin = unit(LATITUDE[place[0]], LONGITUDE[place[1]])
    x, y = (c / mesh.spacing for c in plane(origin, mesh.points))
    field = 98765.0 + 100 * (xx * (x - x0) ** 2 + yy * (y - y0) ** 2 + 2 * xy * (x - x0) * (y - y0))
    low = np.array([np.argmin(angle(mesh.points, origin))])
    found, lowest = _fitted(mesh, field, low)
    np.testing.assert_allclose(np.array(plane(origin, found[0])) / mesh.spacing, (x0, y0), atol=1e-6)
    np.testing.assert_allclose(lowest, 98765.0, atol=1e-4)


def test_fit_without_a_minimum_is_the_grid_point():
    mesh = LatLonMesh(LATITUDE, LONGITUDE)
    low = np.array([9000])
    found, lowest = _fitted(mesh, mesh.points @ [0.0, 0.3, 0.7], low)
    np.testing.assert_array_equal(found, mesh.points[low])
    assert lowest == mesh.points[9000] @ [0.0, 0.3, 0.7]


@pytest.mark.parametrize("latitude", [0.0, -15.0, 30.0, 50.0, -70.0, 85.0, 88.0, 89.3, -90.0])
def test_centre_is_found_within_a_part_of_the_spacing(latitude):
    """A storm of 200 km on 1.5° (167 km): within 6 km at the median, 12 km always."""
    rng = np.random.default_rng(7)
    shifts = rng.uniform(-0.75, 0.75, 12)
    errors = [located([(np.clip(latitude + s, -90, 90), rng.uniform(0, 360))])[0] for s in shifts]
    assert np.median(errors) < 6
    assert max(errors) < 12


def lowest_near(centre, centres):
    """Lowest point of the field itself, by looking at every 0.02° around a centre: the other storm pulls at it."""
    off = np.arange(-1, 1.01, 0.02)
    lat, lon = np.meshgrid(centre[0] + off, centre[1] + off, indexing="ij")
    at = np.argmax(sum(holland(lat, lon, c) for c in centres))
    return lat.flat[at], lon.flat[at]


@pytest.mark.parametrize("centres", [[(20.5, 177.7), (20.5, 182.7)], [(15.2, 359.1), (20.1, 0.4)]])
def test_two_close_storms_stay_two(centres):
    """Five degrees apart, with the date line or 0° between them; within an eighth of the spacing of 167 km."""
    mesh = LatLonMesh(LATITUDE, LONGITUDE)
    lat, lon = degrees(find_centres(mesh, Fields(mesh.flatten(storms(centres))), CRITERIA, None).points)
    assert len(lat) == 2
    for centre in centres:
        assert distance(*lowest_near(centre, centres), lat, lon).min() < 20


def test_of_two_lows_within_the_separation_the_deeper_counts():
    mesh = LatLonMesh(LATITUDE, LONGITUDE)
    field = storms([(20, 60)], depth=4000.0) + storms([(20, 66)], depth=3500.0) - 101000.0
    apart = {}
    for separation in (2.0, 7.0):
        own = Criteria(100.0, CRITERIA.contour_radius, np.deg2rad(separation), 0.05, 0.05, (0.1, 0.2), (0.04, 0.12), {})
        apart[separation] = degrees(find_centres(mesh, Fields(mesh.flatten(field)), own, None).points)[1]
    assert len(apart[2.0]) == 2
    assert np.round(apart[7.0]) == [60]


def test_open_trough_is_no_centre():
    """Pressure rises on all sides but one; a low at the edge of a region isn't closed either."""
    rows = LATITUDE[20:101]
    mesh = LatLonMesh(rows, LONGITUDE)
    lat, lon = np.meshgrid(rows, LONGITUDE, indexing="ij")
    trough = 101000 - 3000 * np.exp(-(((lon - 60) / 4) ** 2)) - 2 * lat
    assert len(find_centres(mesh, Fields(mesh.flatten(trough)), CRITERIA, None)) == 0
    region = LatLonMesh(LATITUDE[60:80], LONGITUDE[40:60])
    at_edge = storms([(15, 60)])[60:80, 40:60]
    assert len(find_centres(region, Fields(region.flatten(at_edge)), CRITERIA, None)) == 0
    inside = storms([(15, 74)])[60:80, 40:60]
    assert len(find_centres(region, Fields(region.flatten(inside)), CRITERIA, None)) == 1


def test_equal_lowest_points_are_one_centre():
    mesh = LatLonMesh(LATITUDE, LONGITUDE)
    found = find_centres(mesh, Fields(mesh.flatten(storms([(20.25, 60.75)]))), CRITERIA, None)
    assert len(found) == 1
    np.testing.assert_allclose(degrees(found.points), [[20.25], [60.75]], atol=0.1)


# Is the storm followed?


NORTHWEST = path((15.0, 290.0), (0.6, -0.9), 8)


def test_near_follows_the_storm_of_every_member():
    other = path((35.0, 300.0), (0.0, 1.0), 8)
    paths = [[NORTHWEST, other], [[(a + 0.5, b - 0.5) for a, b in NORTHWEST], other]]
    fc = forecast(paths)
    out = tracks(fc, near=(15.5, 291.0))
    assert out["latitude"].dims == ("number", "storm", "valid_time")
    assert dict(out.sizes) == {"number": 2, "storm": 1, "valid_time": 8}
    assert out["found"].all()
    for member in (0, 1):
        assert away(out.isel(number=member, storm=0), paths[member][0]).max() < 60
    first = out.isel(number=0, storm=0, valid_time=0)
    np.testing.assert_allclose(
        first["distance_to_near"], distance(15.5, 291.0, first["latitude"], first["longitude"]), rtol=1e-9
    )
    assert out["valid_time"].values[0] == np.datetime64("2022-09-24T06")
    assert (out["prediction_timedelta"] == fc["prediction_timedelta"].values).all()
    assert out["prediction_timedelta"].dims == ("valid_time",)
    assert set(out.data_vars) == {
        *("latitude", "longitude", "mean_sea_level_pressure", "distance_to_near", "flag", "found")
    }
    assert all({"long_name"} <= v.attrs.keys() for v in out.data_vars.values())
    assert "5.5 degrees" not in out.attrs["method"] and "9 degrees" in out.attrs["method"]  # three spacings of 3°


def test_daily_steps_across_the_date_line():
    """700 km a day; the best track before the first lead says where to and how fast."""
    truth = path((12.0, 175.0), (1.5, 6.0), 6)
    fc = forecast([[truth, path((40.0, 200.0), (0.0, 7.0), 6)]], step=24)
    before = [(fc["time"].values - k * DAY, 12.0 - 1.5 * (k + 1), 175.0 - 6.0 * (k + 1)) for k in (1, 0)]
    out = tracks(fc, near=before).isel(number=0, storm=0)
    assert away(out, truth).max() < 70
    east = tracks(fc.assign_coords(longitude=(fc.longitude + 180) % 360 - 180).sortby("longitude"), near=before)
    np.testing.assert_allclose(
        east["longitude"].isel(number=0, storm=0), (out["longitude"] + 180) % 360 - 180, atol=1e-8
    )


def test_storm_over_the_pole():
    truth = [(84.0, 10.0), (87.0, 10.0), (90.0, 0.0), (87.0, 190.0), (84.0, 190.0)]
    out = tracks(forecast([[truth]]), near=(84, 10)).isel(number=0, storm=0)
    assert away(out, truth).max() < 70


def test_a_lost_storm_is_nan_and_nothing_is_made_up():
    lost = [*NORTHWEST[:4], *[None] * 4]
    gap = [*NORTHWEST[:3], None, *NORTHWEST[4:]]
    long_gap = [*NORTHWEST[:3], None, None, *NORTHWEST[5:]]
    far = [(a + 20, b) for a, b in NORTHWEST]
    out = tracks(forecast([[lost], [gap], [long_gap], [far]]), near=(15, 290)).isel(storm=0)
    assert out["flag"].values.tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 2, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0] * 8,
    ]
    for name in ("latitude", "longitude", "mean_sea_level_pressure"):
        np.testing.assert_array_equal(out[name].notnull(), out["flag"] == 1)
    patient = tracks(forecast([[long_gap]]), near=(15, 290), max_gap=2)
    assert patient["flag"].values.ravel().tolist() == [1, 1, 1, 2, 2, 1, 1, 1]


def test_a_missing_lead_is_a_gap_of_its_own_kind():
    fc = forecast([[NORTHWEST]])
    fc["mean_sea_level_pressure"][0, 4] = np.nan
    assert tracks(fc, near=(15, 290))["flag"].values.ravel().tolist() == [1, 1, 1, 1, 3, 1, 1, 1]
    assert tracks(fc)["flag"].values.ravel().tolist() == [1, 1, 1, 1, 3, 1, 1, 1]
    # leads that were never written: the steps are uneven, the storm is the same
    out = tracks(fc.isel(prediction_timedelta=[0, 1, 3, 6, 7]), near=(15, 290)).isel(number=0, storm=0)
    assert away(out, [NORTHWEST[k] for k in (0, 1, 3, 6, 7)]).max() < 60


def crossing():
    """Two storms that swap sides; at no time closer than six degrees."""
    one = path((16.0, 150.0), (0.0, 3.0), 9)
    two = path((24.0, 174.0), (0.0, -3.0), 9)
    return one, two


@pytest.mark.parametrize("which", [0, 1])
def test_storms_that_cross_keep_their_own_track(which):
    truth = crossing()
    fc = forecast([list(truth)])
    out = tracks(fc, near=truth[which][0]).isel(number=0, storm=0)
    assert away(out, truth[which]).max() < 80
    both = tracks(fc).isel(number=0)
    assert both.sizes["storm"] == 2
    assert min(away(both.isel(storm=s), truth[which]).max() for s in (0, 1)) < 80


def test_start_leaves_out_what_is_before():
    fc = forecast([[NORTHWEST]])
    for start in ("2022-09-24T18", pd.Timedelta("18h"), "18h", np.datetime64("2022-09-24T18")):
        out = tracks(fc, near=NORTHWEST[2], start=start)
        assert out["flag"].values.ravel().tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    # a point long before the first lead: the storm may have moved since
    assert not tracks(fc, near=(15, 278)).found.any()
    assert tracks(fc, near=(15, 278), start="2022-09-23T18").found.any()


def test_no_centre_is_faster_than_allowed():
    fast = forecast([[path((15.0, 150.0), (0.0, 9.0), 4)]])  # 960 km in 6 h: 44 m/s
    assert tracks(fast, near=(15, 150), max_speed=50.0)["found"].sum() == 4
    assert tracks(fast, near=(15, 150), max_speed=10.0)["found"].sum() == 1


# Are the storms of the members matched?


def test_without_near_every_storm_of_every_member():
    one, two, three = NORTHWEST, path((-20.0, 60.0), (-0.5, 0.5), 8), path((45.0, 10.0), (0.0, 1.5), 8)
    late = [*[None] * 3, *three[3:]]
    paths = [[one, two], [two, late, one], [one, three]]
    out = tracks(forecast(paths))
    assert out.sizes["storm"] == 3
    have = {tuple(np.flatnonzero(out["found"].isel(storm=s).any("valid_time"))): s for s in range(3)}
    assert set(have) == {(0, 1, 2), (0, 1), (1, 2)}
    third = out.isel(storm=have[1, 2])
    assert third["found"].sum("valid_time").values.tolist() == [0, 5, 8]
    assert np.nanmax(away(third.isel(number=1), three)) < 60
    assert out["storm"].values.tolist() == [1, 2, 3] and have[0, 1, 2] == 0
    assert tracks(forecast(paths), min_members=3).sizes["storm"] == 1
    # the order of the members changes nothing but their order
    turned = tracks(forecast(paths[::-1])).isel(number=[2, 1, 0])
    np.testing.assert_array_equal(out["latitude"], turned["latitude"])


def test_a_storm_never_has_two_tracks_of_one_member():
    """Two storms, nearer to each other than the radius: they stay two, and each takes its nearest."""
    one = path((15.0, 290.0), (0.5, -0.5), 4)
    two = [(a, b + 10) for a, b in one]
    shifted = [[(a, b + 2) for a, b in p] for p in (two, one)]
    out = tracks(forecast([[one, two], shifted]), match_radius=1500.0)
    assert out.sizes["storm"] == 2 and out["found"].all()
    for s in (0, 1):
        apart = distance(*(out[n].isel(storm=s, number=m) for m in (0, 1) for n in ("latitude", "longitude")))
        assert apart.max() < 300


def test_too_short_tracks_are_left_out():
    short = [None, None, NORTHWEST[2], *[None] * 5]
    assert tracks(forecast([[short]])).sizes["storm"] == 0
    assert tracks(forecast([[short]]), min_points=1).sizes["storm"] == 1


# What do the other fields say?


def full(centre, warm=6.0):
    """Winds at 10 m and 850 hPa and temperatures on levels around a storm, in ECMWF's names."""
    lat, lon = np.meshgrid(*COARSE, indexing="ij")
    u, v = swirl(lat, lon, centre, core=400.0)
    bump = warm * np.exp(-((distance(*centre, lat, lon) / 400.0) ** 2))
    levels = [300.0, 500.0, 850.0]
    dims = ("level", "latitude", "longitude")
    data = {
        "msl": (dims[1:], storms([centre], *COARSE) / 100.0, {"units": "hPa"}),
        "u10": (dims[1:], u),
        "v10": (dims[1:], v),
        "u": (dims, np.stack([0 * u + 5, 0 * u + 5, u])),
        "v": (dims, np.stack([0 * u, 0 * u, v])),
        "t": (dims, np.stack([240 + bump, 260 + bump, 0 * bump])),
    }
    coords = {"level": ("level", levels, {"units": "hPa"}), "latitude": COARSE[0], "longitude": COARSE[1]}
    return xr.Dataset(data, coords).assign_coords(time=np.datetime64("2000-01-01", "ns"))


@pytest.mark.parametrize("centre", [(18.0, 60.0), (-21.0, 180.0)])
def test_wind_vorticity_and_warm_core(centre):
    ds = full(centre)
    out = tracks(ds.expand_dims("time"), near=centre).squeeze()
    assert set(out.dims) == set()
    lat, lon = np.meshgrid(*COARSE, indexing="ij")
    near = distance(*centre, lat, lon) < np.deg2rad(6.0) * RADIUS
    np.testing.assert_allclose(out["wind"], np.hypot(ds.u10, ds.v10).values[near].max())
    # 30 (1 + …): curl of speed·(r/R)·exp((1 − (r/R)²)/2) at r = 0 is 2·30·√e/R
    exact = 2 * 30.0 * np.exp(0.5) / 400e3
    assert np.sign(out["relative_vorticity_850"]) == np.sign(centre[0])
    assert 0.4 * exact < abs(out["relative_vorticity_850"]) < exact
    assert 1.0 < out["warm_core"] < 6.0
    assert 90000 < out["mean_sea_level_pressure"] < 100000
    assert "850, 500" not in out.attrs["fields"] and "wind at 500, 850 hPa" in out.attrs["fields"]
    assert "temperature at 300, 500 hPa" in out.attrs["fields"]


def test_a_cold_core_is_refused_on_demand():
    ds = full((18.0, 60.0), warm=-3.0).expand_dims("time")
    assert tracks(ds, near=(18, 60))["warm_core"].item() < -0.5
    assert not tracks(ds, near=(18, 60), min_warm_core=0.5)["found"].any()
    assert tracks(ds, near=(18, 60), min_vorticity=1e-5, min_wind=20.0)["found"].all()
    assert not tracks(ds, near=(18, 60), min_wind=200.0)["found"].any()
    with pytest.raises(ArgumentError, match=r"min_wind=10 needs 'wind'.*Leave out min_wind"):
        tracks(ds[["msl"]], near=(18, 60), min_wind=10)


def test_steering_flow_carries_a_storm_that_turns():
    """After a day to the west the flow turns to the north; a decoy waits where the old motion leads."""
    truth, decoy = [(12.0, 120.0), (12.0, 111.0), (21.0, 111.0)], [None, None, (12.0, 102.0)]
    fc = forecast([[truth, decoy]], step=24)
    lead = fc["prediction_timedelta"]
    flow = xr.ones_like(fc["mean_sea_level_pressure"]).drop_attrs().expand_dims(level=[500, 700, 850])
    fc["u_component_of_wind"] = flow * xr.DataArray([-11.0, 0.0, 0.0], {lead.name: lead}, (lead.name,))
    fc["v_component_of_wind"] = flow * xr.DataArray([0.0, 25.0, 0.0], {lead.name: lead}, (lead.name,))
    with_flow = tracks(fc, near=(12, 120)).squeeze()
    np.testing.assert_allclose(with_flow["latitude"][-1], 21, atol=1)
    assert "the steering flow" in with_flow.attrs["method"]
    without = tracks(fc, near=(12, 120), steering=False).squeeze()
    np.testing.assert_allclose(without["longitude"][-1], 102, atol=1)


# Does the layout matter?


@given(st.integers(0, 119), st.booleans(), st.booleans(), st.sampled_from([0.0, -180.0]))
@settings(max_examples=12, deadline=None)
def test_order_and_convention_of_the_grid_do_not_matter(turn, south_first, member_last, west):
    """Turned in longitude by whole columns, latitudes either way, 0…360 or −180…180."""
    fc = forecast([[NORTHWEST[:4]]])
    expected = tracks(fc, near=(15, 290))
    moved = fc.roll(longitude=turn)  # values move east; coordinates stay
    moved = moved.assign_coords(longitude=(fc.longitude - west) % 360 + west).sortby("longitude")
    moved = moved.sortby("latitude", ascending=south_first)
    moved = moved.transpose(..., "number") if member_last else moved
    out = tracks(moved, near=(15, 290 + 3.0 * turn))
    np.testing.assert_allclose(out["latitude"], expected["latitude"], atol=1e-8)
    shift = (out["longitude"] - expected["longitude"] - 3.0 * turn + 180) % 360 - 180
    np.testing.assert_allclose(shift, 0, atol=1e-8)
    assert (out["longitude"].min() >= west) and (out["longitude"].max() < west + 360)


def test_callers_names_come_back():
    fc = forecast([[NORTHWEST], [NORTHWEST]])
    renamed = fc.rename(number="member", prediction_timedelta="step", latitude="lat", longitude="lon")
    renamed = renamed.rename(mean_sea_level_pressure="msl")
    out = tracks(renamed, near=(15, 290))
    assert out["latitude"].dims == ("member", "storm", "valid_time")
    assert "step" in out.coords
    np.testing.assert_array_equal(out["latitude"], tracks(fc, near=(15, 290))["latitude"])
    alone = tracks(fc.isel(number=0, drop=True), near=(15, 290))
    assert alone["latitude"].dims == ("storm", "valid_time")
    array = tracks(fc["mean_sea_level_pressure"], near=(15, 290))
    np.testing.assert_array_equal(array["latitude"], tracks(fc, near=(15, 290))["latitude"])


def test_many_starts_keep_start_and_lead():
    early, later = forecast([[NORTHWEST[:5]]]), forecast([[NORTHWEST[1:6]]])
    later = later.assign_coords(time=early["time"] + 6 * HOUR)
    fc = xr.concat([early, later], "time")
    best = [(early["time"].values + 6 * (k + 1) * HOUR, *p) for k, p in enumerate(NORTHWEST)]
    out = tracks(fc, near=best)
    assert out["latitude"].dims == ("time", "number", "storm", "prediction_timedelta")
    assert out["valid_time"].dims == ("time", "prediction_timedelta")
    for k, truth in enumerate((NORTHWEST[:5], NORTHWEST[1:6])):
        assert away(out.isel(time=k, number=0, storm=0), truth).max() < 60
    every = tracks(fc)
    assert every.sizes["storm"] == 1
    np.testing.assert_allclose(every["latitude"], out["latitude"])


def test_analyses_are_followed_along_their_times():
    fc = forecast([[NORTHWEST]]).isel(number=0, drop=True)
    valid = (fc["time"] + fc["prediction_timedelta"]).values
    ana = fc.drop_vars("time").assign_coords(prediction_timedelta=valid).rename(prediction_timedelta="time")
    out = tracks(ana, near=(15, 290))
    assert out["latitude"].dims == ("storm", "valid_time")
    np.testing.assert_array_equal(out["latitude"], tracks(fc, near=(15, 290))["latitude"])
    assert "time" not in out.coords


@pytest.mark.parametrize("scheme", ["nested", "ring"])
def test_storm_on_healpix(scheme):
    """nside 64, on the cells themselves; within a quarter of the spacing of 102 km."""
    import healpy

    nside, truth = 64, path((20.3, 358.0), (0.4, 0.8), 4)
    longitude, latitude = healpy.pix2ang(nside, np.arange(12 * nside**2), nest=scheme == "nested", lonlat=True)
    values = np.stack([101000 - holland(latitude, longitude, c) for c in truth])
    coords = mesh_coordinates(nside)
    coords["crs"] = coords["crs"].copy()
    coords["crs"].attrs["indexing_scheme"] = scheme
    attrs = {"grid_mapping": "crs", "units": "Pa"}
    times = pd.date_range("2020-01-01", periods=4, freq="6h")
    ds = xr.Dataset({"mean_sea_level_pressure": (("time", "cell"), values, attrs)}, {**coords, "time": times})
    assert away(tracks(ds, near=truth[0]).isel(storm=0), truth).max() < 25
    assert away(tracks(ds).isel(storm=0), truth).max() < 25


@pytest.mark.parametrize(
    "chunks", [{"number": 1, "prediction_timedelta": 1}, {"number": 2, "prediction_timedelta": -1}]
)
def test_lazy_gives_the_same_and_reads_only_what_it_needs(chunks):
    fc = forecast([[NORTHWEST], [NORTHWEST[::-1]]])
    expected = tracks(fc)
    lazy = fc.chunk(chunks)

    def never(block):
        raise AssertionError("read a variable that is not needed")

    unused = xr.apply_ufunc(never, lazy["mean_sea_level_pressure"], dask="parallelized", output_dtypes=[float])
    lazy["2m_temperature"] = unused
    xr.testing.assert_identical(tracks(lazy).drop_attrs(), expected.drop_attrs())


def test_progress_bar_is_an_option(capsys, monkeypatch):
    import xmosaic
    from xmosaic.tracks import finder

    shown = []
    real = finder.tqdm
    monkeypatch.setattr(finder, "tqdm", lambda **kw: shown.append(kw) or real(**{**kw, "disable": True}))
    fc = forecast([[NORTHWEST]])
    with xmosaic.set_options(progress=False):
        tracks(fc)
        tracks(fc, progress=True)
    assert [(kw["disable"], kw["total"], kw["delay"]) for kw in shown] == [(True, 8, 1.0), (False, 8, 1.0)]


# Is what can't work refused?


def test_bad_forecasts_are_refused():
    fc = forecast([[NORTHWEST]])
    with pytest.raises(DatasetError, match=r"no mean sea-level pressure.*Found 'z'"):
        tracks(fc.rename(mean_sea_level_pressure="z"))
    with pytest.raises(DatasetError, match=r"no times"):
        tracks(fc.drop_vars("time"))
    with pytest.raises(DatasetError, match=r"Units of 'mean_sea_level_pressure'.*'m s-1'.*'Pa'"):
        tracks(fc["mean_sea_level_pressure"].assign_attrs(units="m s-1"))
    with pytest.raises(DatasetError, match=r"don't ascend"):
        tracks(fc.isel(prediction_timedelta=slice(None, None, -1)))
    with pytest.raises(DatasetError, match=r"further dimension 'sample'"):
        tracks(fc.expand_dims(sample=2))
    with pytest.raises(DatasetError, match=r"too small"):
        tracks(fc.isel(latitude=slice(2)))
    with pytest.raises(DatasetError, match=r"need"):
        tracks(fc.isel(latitude=30))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"near": "Ian"}, r"near='Ian' can't be used"),
        ({"near": (95.0, 10.0)}, r"not on the sphere"),
        ({"near": (np.nan, 10.0)}, r"not on the sphere"),
        ({"near": [("2022-09-24", 1.0, 2.0), ("2022-09-24", 1.0, 3.0)]}, r"a time twice"),
        ({"near": [("2023-09-24", 1.0, 2.0)]}, r"begin after the last valid time"),
        ({"start": "soon"}, r"start='soon'"),
        ({"start": "2023-01-01"}, r"begin after the last valid time"),
        ({"max_speed": 0.0}, r"max_speed=0.0"),
        ({"max_gap": -1}, r"max_gap=-1.*at least 0"),
        ({"max_gap": 1.5}, r"max_gap=1.5"),
        ({"contour_radius": 4.0}, r"too few points.*at least two grid spacings, 6°"),
    ],
)
def test_bad_arguments_are_refused(options, text):
    with pytest.raises(ArgumentError, match=text):
        tracks(forecast([[NORTHWEST]]), **options)


# Are the errors right?


def best(latitude, longitude, freq="6h", **values):
    times = pd.date_range("2022-09-24", periods=len(latitude), freq=freq)
    data = {"latitude": latitude, "longitude": longitude, **values}
    return xr.Dataset({n: ("valid_time", np.asarray(v, float)) for n, v in data.items()}, {"valid_time": times})


@given(
    st.floats(-80, 80),
    st.floats(0, 360),
    st.floats(0, 360),
    st.floats(100, 800),
    st.floats(-3000, 3000),
    st.floats(-3000, 3000),
)
@settings(max_examples=60, deadline=None)
def test_along_and_across_in_closed_form(lat, lon, bearing, pace, along, across):
    """A storm on a great circle; the forecast stands `along` further on it and then `across` to the right."""
    here = unit(lat, lon)
    east, north = frame(here)
    ahead = np.sin(np.deg2rad(bearing)) * east + np.cos(np.deg2rad(bearing)) * north
    right = np.cross(ahead, here)
    track = best(*degrees(exp_map(here, ahead * (np.array([-1, 0, 1]) * pace / RADIUS)[:, None])))
    foot = exp_map(here, ahead * along / RADIUS)
    point = exp_map(foot, right * across / RADIUS)
    forecast_ = xr.Dataset({n: ((), v) for n, v in zip(("latitude", "longitude"), degrees(point), strict=True)})
    error = track_error(forecast_.assign_coords(valid_time=track["valid_time"][1].drop_vars("valid_time")), track)
    np.testing.assert_allclose(error["along_track_error"], along, atol=1e-4)
    np.testing.assert_allclose(error["cross_track_error"], across, atol=1e-4)
    # Pythagoras on the sphere
    cosines = np.cos(along / RADIUS) * np.cos(across / RADIUS)
    np.testing.assert_allclose(np.cos(error["track_error"] / RADIUS), cosines, atol=1e-10)
    assert {v.attrs["units"] for v in error.data_vars.values()} == {"km"}


def test_best_track_is_interpolated_on_great_circles_and_never_beyond_its_span():
    """Along the parallel of 60° the great circle bends to the pole; 180° is no place to jump at."""
    track = best([60, 60], [170, -170], freq="12h", mean_sea_level_pressure=[100000, 98000], wind=[20, np.nan])
    times = pd.to_datetime(["2022-09-23T18", "2022-09-24T00", "2022-09-24T06", "2022-09-24T12", "2022-09-24T18"])
    values = {"mean_sea_level_pressure": np.full(5, 99500.0), "wind": np.full(5, 25.0)}
    positions = {"latitude": np.full(5, 60.0), "longitude": np.full(5, 180.0)}
    own = xr.Dataset({n: ("valid_time", v) for n, v in {**positions, **values}.items()}, {"valid_time": times})
    error = track_error(own, track)
    middle = np.rad2deg(np.arctan(np.tan(np.deg2rad(60)) / np.cos(np.deg2rad(10))))
    np.testing.assert_allclose(error["best_latitude"], [np.nan, 60, middle, 60, np.nan])
    np.testing.assert_allclose(error["best_longitude"] % 360, [np.nan, 170, 180, 190, np.nan])
    np.testing.assert_allclose(error["track_error"][2], np.deg2rad(middle - 60) * RADIUS)
    np.testing.assert_allclose(error["cross_track_error"][2], np.deg2rad(middle - 60) * RADIUS)
    np.testing.assert_allclose(error["mean_sea_level_pressure_error"], [np.nan, -500, 500, 1500, np.nan])
    np.testing.assert_allclose(error["wind_error"], [np.nan, 5, np.nan, np.nan, np.nan])


def test_a_storm_that_stands_still_has_no_direction():
    track = best([10, 10, 10, 11], [50, 50, 50, 50])
    own = track.isel(valid_time=slice(1, 3)).assign(latitude=("valid_time", [11.0, 11.0]))
    error = track_error(own, track)
    assert np.isnan(error["along_track_error"]).values.tolist() == [True, False]
    np.testing.assert_allclose(error["track_error"], np.deg2rad(1) * RADIUS)


def test_ensemble_mean_and_spread():
    lat, lon = np.array([[10.0, 10, 10], [20, 20, np.nan], [15, np.nan, np.nan]]).T, np.array([350.0, 10, 355])
    members = xr.Dataset(
        {
            "latitude": (("valid_time", "number"), lat),
            "longitude": ("number", lon),
            "wind": (("number",), [1.0, 3.0, 8.0]),
        },
        {"valid_time": pd.date_range("2022-09-24", periods=3)},
    )
    members["longitude"] = members["longitude"].where(members["latitude"].notnull())
    lat, lon = (members[n].transpose("number", "valid_time").values for n in ("latitude", "longitude"))
    mean = ensemble_mean_track(members, min_fraction=0.6)
    for k in range(3):
        there = np.isfinite(lat[:, k])
        vector = unit(lat[there, k], lon[there, k]).mean(axis=0)
        want = degrees(vector)
        if there.sum() < 2:
            assert np.isnan(mean["latitude"][k]) and np.isnan(mean["spread"][k])
            continue
        np.testing.assert_allclose((mean["latitude"][k], mean["longitude"][k] % 360), (want[0], want[1] % 360))
        squares = [distance(*want, a, b) ** 2 for a, b in zip(lat[there, k], lon[there, k], strict=True)]
        np.testing.assert_allclose(mean["spread"][k], np.sqrt(np.mean(squares)))
    assert mean["members"].values.tolist() == np.isfinite(lat).sum(0).tolist()
    assert mean["found"].dtype == bool


def test_errors_of_members_and_of_their_mean():
    left, right = ([(a, b - s) for a, b in NORTHWEST] for s in (1.0, -1.0))
    out = tracks(forecast([[left], [right]]), near=(15, 290))
    truth = best(*np.array(NORTHWEST).T).assign_coords(valid_time=out["valid_time"].values)
    error = track_error(out, truth)
    assert error["track_error"].dims == ("number", "storm", "valid_time")
    np.testing.assert_allclose(
        error["track_error"].isel(storm=0, number=0), away(out.isel(storm=0, number=0), NORTHWEST), rtol=1e-9
    )
    assert error["ensemble_mean_track_error"].dims == ("storm", "valid_time")
    assert error["ensemble_mean_track_error"].max() < 60 < error["track_error"].min()
    np.testing.assert_allclose(error["spread"], 105, atol=40)
    # a perfect track has no error, and no member at all needs no mean
    perfect = track_error(out.isel(number=0), out.isel(number=0))
    assert perfect["track_error"].max() < 1e-6
    assert "spread" not in perfect


def test_errors_of_many_starts_are_at_their_own_times():
    fc = xr.concat(
        [
            forecast([[NORTHWEST[:4]]]),
            forecast([[NORTHWEST[2:6]]]).assign_coords(time=np.datetime64("2022-09-24T12", "ns")),
        ],
        "time",
    )
    truth = best(*np.array(NORTHWEST).T).assign_coords(valid_time=pd.date_range("2022-09-24T06", periods=8, freq="6h"))
    error = track_error(tracks(fc, near=truth), truth)
    assert error["track_error"].dims == ("time", "number", "storm", "prediction_timedelta")
    assert error["track_error"].max() < 60
    assert error["best_latitude"].dims == ("time", "prediction_timedelta")


def test_more_than_one_best_track_is_refused():
    out = tracks(forecast([[NORTHWEST], [NORTHWEST]]), near=(15, 290))
    with pytest.raises(DatasetError, match=r"The best track is more than one track.*'number': 2.*ensemble_mean_track"):
        track_error(out, out)
    with pytest.raises(ArgumentError, match=r"window='-6h'"):
        track_error(out, best([1, 2], [1, 2]), window="-6h")
    with pytest.raises(DatasetError, match=r"no 'latitude'"):
        track_error(out, xr.Dataset(coords={"valid_time": out["valid_time"]}))
    with pytest.raises(DatasetError, match=r"no members"):
        ensemble_mean_track(out.isel(number=0))


# Are best tracks read?


IBTRACS = """\
SID,SEASON,NUMBER,BASIN,NAME,ISO_TIME,NATURE,LAT,LON,WMO_WIND,WMO_PRES,USA_LAT,USA_LON,USA_WIND,USA_PRES
 ,Year, , , , , ,degrees_north,degrees_east,kts,mb,degrees_north,degrees_east,kts,mb
2031001N10150,2031,1,WP,ALPHA,2031-01-01 00:00:00,TS,10.0,179.5,40,1000,10.1,179.6,45,998
2031001N10150,2031,1,WP,ALPHA,2031-01-01 03:00:00,TS,10.5,-179.5, , , , , ,
2031001N10150,2031,1,WP,ALPHA,2031-01-01 06:00:00,TS,11.0,-178.5,50,-999,11.1,-178.4,55,990
2032200S20060,2032,9,SI,BETA,2032-07-18 00:00:00,TS,-20.0,60.0,30,1004,-20.0,60.0,35,1002
"""

HURDAT2 = """\
AL012031,              ALPHA,      3,
20310901, 0000,  , TD, 12.0N,   1.5E,  25, 1010,    0,
20310901, 0600,  , TS, 12.2N,   0.5W,  35, -999,    0,
20310901, 0915, L, HU, 12.3S, 179.9W, -99, 1001,    0,
AL022031,            UNNAMED,      1,
20310905, 0000,  , TS, 20.0N, 300.0E,  40, 1000,
"""


def written(tmp_path, text, name="track.txt"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_ibtracs_csv(tmp_path):
    file = written(tmp_path, IBTRACS)
    one = read_best_track(file, name="alpha", year=2031)
    assert one["latitude"].dims == ("valid_time",)
    assert one["longitude"].values.tolist() == [179.5, 180.5, 181.5]
    np.testing.assert_allclose(one["wind"], [40 * 1852 / 3600, np.nan, 50 * 1852 / 3600])
    np.testing.assert_allclose(one["mean_sea_level_pressure"], [100000, np.nan, np.nan])
    assert (one.attrs["agency"], one.attrs["source"]) == ("wmo", "IBTrACS, track.txt")
    assert (one["storm"].item(), one["name"].item(), one["year"].item()) == ("2031001N10150", "ALPHA", 2031)
    usa = read_best_track(file, storm="2031001N10150", agency="usa")
    assert usa["longitude"].values.tolist() == [179.6, 181.6]
    assert usa["mean_sea_level_pressure"].values.tolist() == [99800, 99000]
    every = read_best_track(file)
    assert every["latitude"].dims == ("storm", "valid_time")
    assert every["latitude"].notnull().sum("valid_time").values.tolist() == [3, 1]
    with pytest.raises(ArgumentError, match=r"agency 'tokyo'.*'usa', 'wmo'"):
        read_best_track(file, agency="tokyo")
    with pytest.raises(ArgumentError, match=r"no rows of \{'name': 'GAMMA'\}"):
        read_best_track(file, name="GAMMA")


def test_ibtracs_netcdf(tmp_path):
    """As IBTrACS lays it out: characters along a dimension, times in days since 1858, gaps at the end."""
    times = np.array([["2031-01-01T00", "2031-01-01T03", "NaT"], ["2032-07-18T00", "NaT", "NaT"]], "datetime64[ns]")
    dims = ("storm", "date_time")

    def text(values):
        return ("storm", np.array(values, "S"))

    ds = xr.Dataset(
        {
            "sid": text(["2031001N10150", "2032200S20060"]),
            "name": text(["ALPHA", "BETA"]),
            "season": ("storm", [2031.0, 2032.0]),
            "time": (dims, times),
            "nature": (dims, np.array([["TS", "TS", ""], ["TS", "", ""]], "S2")),
            **{
                n: (dims, np.array([[a, a + 1, np.nan], [b, np.nan, np.nan]], np.float32))
                for n, a, b in (
                    ("lat", 10.1, -20.0),
                    ("lon", 179.5, 60.0),
                    ("wmo_wind", 40, 30),
                    ("wmo_pres", 1000, 1004),
                )
            },
        }
    )
    ds["time"].encoding = {"units": "days since 1858-11-17 00:00:00", "dtype": "float64", "_FillValue": -9999999.0}
    ds.to_netcdf(tmp_path / "ib.nc")
    one = read_best_track(tmp_path / "ib.nc", name="Alpha")
    assert one["valid_time"].values.tolist() == times[0, :2].tolist()
    np.testing.assert_allclose(one["longitude"], [179.5, 180.5])
    np.testing.assert_allclose(one["latitude"], [10.1, 11.1])
    np.testing.assert_allclose(one["mean_sea_level_pressure"], [100000, 100100])
    np.testing.assert_allclose(one["wind"], np.array([40, 41]) * 1852 / 3600)
    assert read_best_track(tmp_path / "ib.nc").sizes == {"storm": 2, "valid_time": 3}
    ds.drop_vars("sid").to_netcdf(tmp_path / "other.nc")
    with pytest.raises(DatasetError, match=r"not IBTrACS.*no variable 'sid'"):
        read_best_track(tmp_path / "other.nc")


def test_hurdat2(tmp_path):
    file = written(tmp_path, HURDAT2)
    one = read_best_track(file, storm="al012031")
    assert one["longitude"].values.tolist() == [1.5, 359.5, 180.1]
    assert one["latitude"].values.tolist() == [12.0, 12.2, -12.3]
    np.testing.assert_allclose(one["mean_sea_level_pressure"], [101000, np.nan, 100100])
    np.testing.assert_allclose(one["wind"], [25 * 1852 / 3600, 35 * 1852 / 3600, np.nan])
    assert one["valid_time"].values[2] == np.datetime64("2031-09-01T09:15")
    assert read_best_track(file, year=2031).sizes["storm"] == 2
    assert one.attrs["agency"] == "NHC"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HURDAT2.replace("12.2N", "12.2X"), r"track.txt, line 3: latitude is no number.*'12.2X'"),
        (HURDAT2.replace("179.9W", "479.9W"), r"line 4: longitude is not on the sphere"),
        (HURDAT2.replace("20310901, 0600", "20311301, 0600"), r"line 3: this is no time"),
        (HURDAT2.replace("3,\n", "4,\n"), r"line 1: the header counts 1 rows more"),
        (HURDAT2.replace("3,\n", "2,\n"), r"line 4: not a row of HURDAT2.*a storm's header"),
        (HURDAT2.replace("0600", "0000"), r"line 3: two different rows of one time.*line 2 as well"),
        (IBTRACS.replace("10.5,-179.5", "ten,-179.5"), r"line 4: latitude is no number.*'ten'"),
        (IBTRACS.replace("55,990", "55"), r"line 5: too few or too many.*14 entries"),
        (IBTRACS.replace("40,1000", "fast,1000"), r"line 3: WMO_WIND is no number.*'fast'"),
        ("time,lat,lon\n2022-01-01,x,3\n", r"line 2: latitude is no number"),
        ("time,lat\n2022-01-01,3\n", r"line 1: no longitude"),
        ("a,b\n1,2\n", r"line 1: not a best track"),
        ("", r"not a best track"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path, text, said):
    with pytest.raises(DatasetError, match=said):
        read_best_track(written(tmp_path, text))


def test_too_many_storms_for_one_table_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"no file"):
        read_best_track(tmp_path / "absent.csv")
    rows = [f"2031-01-01T00:00:{k % 60:02d}.{k:06d},1,2,S{k}" for k in range(2300)]
    with pytest.raises(DatasetError, match=r"2300 storms at 2300 times.*Choose some with storm="):
        read_best_track(written(tmp_path, "time,lat,lon,storm\n" + "\n".join(rows)))


def test_ian():
    if not IAN.is_file():
        pytest.skip(f"{IAN} is not here: fixtures that are not committed")
    ian = read_best_track(IAN)
    assert ian.sizes == {"valid_time": 39}  # one of the 40 rows is there twice
    assert ian["mean_sea_level_pressure"].min() == 93700
    np.testing.assert_allclose(ian["wind"].max(), 140 * 1852 / 3600)
    # members that run ahead of Ian by six hours are late nowhere
    leads = pd.date_range("2022-09-25T00", periods=8, freq="12h")
    place = ian.sel(valid_time=leads)
    truth = list(zip(place["latitude"].values, place["longitude"].values, strict=True))
    fc = forecast([[truth]], step=12, first=0).assign_coords(time=np.datetime64("2022-09-25", "ns"))
    error = track_error(tracks(fc, near=ian), ian)
    assert error["track_error"].max() < 80
    ahead = fc.assign_coords(time=fc["time"] - np.timedelta64(6, "h"))
    assert track_error(tracks(ahead, near=ian), ian)["along_track_error"].mean() > 60
