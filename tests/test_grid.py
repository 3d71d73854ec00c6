"""Is the grid of any dataset recognised, described by value, and are its areas exact?"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.grid import (
    LatLonGrid,
    area_weights,
    distinct_meridians,
    find_latlon,
    normalise_latlon,
    parse_grid,
    wrap_longitude,
)

ROWS = np.linspace(-90, 90, 7)
COLUMNS = np.arange(12) * 30.0


def field(latitude=ROWS, longitude=COLUMNS, names=("latitude", "longitude"), attrs=({}, {})):
    values = np.arange(len(latitude) * len(longitude), dtype=np.float32).reshape(len(latitude), len(longitude))
    coords = {n: (n, np.asarray(v), a) for n, v, a in zip(names, (latitude, longitude), attrs, strict=True)}
    return xr.DataArray(values, dims=names, coords=coords, name="t")


grids = st.builds(
    lambda nlon, nlat, poles, offset, descending, centred: _grid(nlon, nlat, poles, offset, descending, centred),
    st.integers(2, 40),
    st.integers(2, 30),
    st.booleans(),
    st.floats(-180, 180),
    st.booleans(),
    st.booleans(),
)


def _grid(nlon, nlat, poles, offset, descending, centred):
    plain = LatLonGrid.equiangular(nlon, nlat, poles)
    longitude = np.asarray(plain.longitude) + offset
    longitude = (longitude + 180) % 360 - 180 if centred else longitude
    return LatLonGrid(plain.latitude[:: -1 if descending else 1], tuple(longitude))


# What is the grid?


def test_equiangular_holds_both_poles_and_starts_at_zero():
    grid = LatLonGrid.equiangular(240, 121)
    assert (grid.latitude[0], grid.latitude[-1], grid.latitude[60]) == (-90, 90, 0)
    assert (grid.longitude[0], grid.longitude[-1], grid.shape) == (0, 358.5, (121, 240))


def test_equiangular_without_poles_is_half_a_step_away_from_them():
    grid = LatLonGrid.equiangular(64, 32, poles=False)
    assert grid.latitude[0] == -90 + 180 / 64
    np.testing.assert_allclose(grid.latitude_edges(), np.linspace(-90, 90, 33), atol=1e-12)


def test_repr_says_what_was_understood():
    text = "LatLonGrid(240 longitudes 0 … 358.5 by 1.5, 121 latitudes -90 … 90 by 1.5)"
    assert repr(LatLonGrid.equiangular(240, 121)) == text
    uneven = LatLonGrid((-80.0, -30.0, 25.0, 75.0), (0.0, 90.0, 180.0, 270.0))
    assert "by uneven steps" in repr(uneven)


@given(grids)
@settings(max_examples=30, deadline=None)
def test_equality_hash_and_dict_are_by_value(grid):
    again = LatLonGrid.from_dict(grid.to_dict())
    assert again == grid
    assert hash(again) == hash(grid)
    assert again != LatLonGrid(grid.latitude, grid.longitude, "y", "x")


@pytest.mark.parametrize("short", [1.5, (240, 121), [240, 121], LatLonGrid.equiangular(240, 121)])
def test_short_forms_name_the_grid(short):
    assert parse_grid(short) == LatLonGrid.equiangular(240, 121)


def test_even_number_of_rows_stands_off_the_poles():
    assert parse_grid((64, 32)) == LatLonGrid.equiangular(64, 32, poles=False)
    assert parse_grid(field()) == LatLonGrid.from_dataset(field())


@pytest.mark.parametrize("wrong", [0.7, -1.0, "1.5deg", (1, 2, 3), {"nlon": 3}, True, (240.0, 121)])
def test_what_names_no_grid_is_refused(wrong):
    with pytest.raises(ArgumentError, match=r"doesn't name a latitude/longitude grid\. Found .*Pass e\.g\. grid=1\.5"):
        parse_grid(wrong)


# Are areas and bounds exact?


@given(grids)
@settings(max_examples=60, deadline=None)
def test_areas_cover_the_sphere_once(grid):
    area = grid.cell_area()
    assert area.dims == ("latitude", "longitude")
    assert (area > 0).all()
    np.testing.assert_allclose(area.sum(), 4 * np.pi, rtol=1e-13)


@given(grids)
@settings(max_examples=60, deadline=None)
def test_bounds_enclose_each_point_and_join(grid):
    south, north = grid.latitude_bounds().T
    west, east = grid.longitude_bounds().T
    latitude, longitude = np.array(grid.latitude), np.array(grid.longitude)
    assert ((south <= latitude) & (latitude <= north)).all()
    assert ((west < longitude) & (longitude < east)).all()
    assert (south.min(), north.max()) == (-90, 90)
    assert np.isclose((east - west).sum(), 360)
    assert set(np.sort(north)[:-1]) == set(np.sort(south)[1:])


def test_areas_equal_the_formula_and_small_caps_keep_their_digits():
    grid = LatLonGrid.equiangular(1440, 721)
    bounds = np.deg2rad(grid.latitude_bounds())
    plain = (np.sin(bounds[:, 1]) - np.sin(bounds[:, 0])) * 2 * np.pi / 1440
    np.testing.assert_allclose(grid.cell_area()[:, 0], plain, rtol=1e-9)
    cap = 2 * np.sin(np.deg2rad(0.125) / 2) ** 2 * 2 * np.pi / 1440
    np.testing.assert_allclose(grid.cell_area()[[0, -1], 0], cap, rtol=1e-13)


def test_weights_of_any_order_are_the_areas():
    shuffled = field().isel(latitude=[3, 0, 6, 1, 5, 2, 4], longitude=[5, 1, 0, 2, 3, 4, 11, 10, 9, 8, 7, 6])
    aligned = area_weights(shuffled).sortby(["latitude", "longitude"])
    np.testing.assert_allclose(aligned, LatLonGrid.from_dataset(field()).cell_area(), rtol=1e-14)
    assert area_weights(shuffled).dims == ("latitude", "longitude")


def test_weights_of_zonal_means_have_latitude_only():
    weights = area_weights(field().mean("longitude"))
    assert weights.dims == ("latitude",)
    np.testing.assert_allclose(weights, area_weights(field()).sum("longitude"), rtol=1e-14)


def test_repeated_meridian_counts_once_in_a_weighted_mean():
    closed = field(longitude=np.arange(13) * 30.0)
    weights = area_weights(closed)
    assert float(weights.sel(longitude=360).max()) == 0
    np.testing.assert_allclose(weights.sum(), 4 * np.pi, rtol=1e-13)


# Are the coordinates found?


@pytest.mark.parametrize(
    ("names", "attrs"),
    [
        (("latitude", "longitude"), ({}, {})),
        (("lat", "lon"), ({}, {})),
        (("a", "b"), ({"standard_name": "latitude"}, {"standard_name": "longitude"})),
        (("a", "b"), ({"units": "degrees_north"}, {"units": "degreeE"})),
        (("y", "x"), ({"axis": "Y", "units": "degrees"}, {"axis": "X"})),
    ],
)
def test_coordinates_are_found(names, attrs):
    assert find_latlon(field(names=names, attrs=attrs)) == names
    assert LatLonGrid.from_dataset(field(names=names, attrs=attrs).to_dataset()).latitude_name == names[0]


def test_coordinates_may_have_another_name_than_their_dimension():
    renamed = field().rename(latitude="lat").swap_dims({"lat": "y"})
    assert find_latlon(renamed) == ("lat", "longitude")


def test_standard_name_outranks_a_usual_name():
    ds = field(names=("a", "b"), attrs=({"standard_name": "latitude"}, {"standard_name": "longitude"})).to_dataset()
    assert find_latlon(ds.assign_coords(lat=("a", ROWS))) == ("a", "b")


# Is the normal form right, and lazy?


@pytest.mark.parametrize(
    "order", [{"latitude": slice(None, None, -1)}, {"longitude": [3, 1, 2, 0, 4, 5, 6, 11, 10, 9, 8, 7]}]
)
def test_any_order_is_sorted(order):
    xr.testing.assert_identical(normalise_latlon(field().isel(order)), field())


def test_centred_longitudes_go_to_0_360_and_stale_ranges_go():
    centred = field().assign_coords(longitude=(COLUMNS + 180) % 360 - 180).sortby("longitude")
    centred.longitude.attrs = {"valid_min": -180, "units": "degrees_east"}
    notes: list[str] = []
    out = normalise_latlon(centred, notes)
    np.testing.assert_array_equal(out, field())
    np.testing.assert_array_equal(out.longitude, COLUMNS)
    assert out.longitude.attrs == {"units": "degrees_east"}
    assert notes == ["'longitude' was brought to 0 … 360, eastward."]


@pytest.mark.parametrize("start", [0.0, -180.0])
def test_repeated_meridian_is_left_out_and_noted(start):
    closed = field(longitude=start + np.arange(13) * 30.0)
    notes: list[str] = []
    out = normalise_latlon(closed, notes)
    assert out.sizes["longitude"] == 12
    assert any(f"repeated a meridian: {start + 360:g} was left out" in note for note in notes)
    np.testing.assert_array_equal(out.sel(longitude=start % 360), closed.sel(longitude=start))


def test_normal_form_is_left_alone_without_notes():
    notes: list[str] = []
    xr.testing.assert_identical(normalise_latlon(field(), notes), field())
    assert notes == []


def test_nothing_is_computed():
    def fail(*args, **kwargs):
        raise RuntimeError("computed")

    import dask

    with dask.config.set(scheduler=fail):
        out = normalise_latlon(field().chunk()[::-1])
        area_weights(field().chunk())
    assert out.chunks is not None


@given(st.floats(-1e4, 1e4))
def test_wrapped_longitudes_are_within_a_turn(longitude):
    assert 0 <= wrap_longitude(longitude) < 360


def test_wrapping_never_rounds_to_360():
    assert wrap_longitude(-1e-20) == 0


# Is what can't be used refused with a reason?


def test_same_number_twice_is_an_error_and_no_wrap():
    np.testing.assert_array_equal(distinct_meridians(np.array([-180.0, 0.0, 180.0])), [0, 1])
    with pytest.raises(DatasetError, match=r"A longitude appears more than once\. Found 30; expected each longitude"):
        LatLonGrid.from_dataset(field(longitude=[*COLUMNS, 30.0]))


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (ROWS, np.arange(12) * 5.0, "Longitudes don't go around the globe"),
        (ROWS, np.delete(COLUMNS, 4), "Longitudes don't go around the globe"),
        (ROWS[2:], COLUMNS, "Latitudes don't reach from pole to pole"),
        (ROWS / 4 + 40, COLUMNS, "Latitudes don't reach from pole to pole"),
        (ROWS + 1, COLUMNS, r"Latitudes lie beyond the poles\. Found -89 … 91; expected degrees_north in -90 … 90"),
        ([-60.0, 0.0, 0.0, 60.0], COLUMNS, r"A latitude appears more than once\. Found 0"),
        (np.where(ROWS == 0, np.nan, ROWS), COLUMNS, r"'latitude' has values that are NaN or infinite\. Found 1 of 7"),
        (ROWS, np.where(COLUMNS == 0, np.inf, COLUMNS), "'longitude' has values that are NaN or infinite"),
        ([0.0], COLUMNS, "latitude is not a list of numbers"),
    ],
)
def test_unusable_coordinates_are_refused(latitude, longitude, message):
    with pytest.raises(DatasetError, match=message):
        LatLonGrid.from_dataset(field(latitude, longitude))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LatLonGrid((-45.0, 45.0), (0.0, 180.0, 360.0)),
            r"A meridian appears more than once\. Found .*normalise",
        ),
        (lambda: LatLonGrid((-45.0, np.nan), (0.0, 180.0)), "latitude has values that are NaN"),
        (lambda: LatLonGrid((-45.0, 45.0), (0.0, 180.0), "x", "x"), "The two dimensions need two names"),
        (lambda: LatLonGrid.equiangular(8, 1), "nlat=1 is not a number of grid points"),
        (lambda: LatLonGrid.equiangular(8.5, 4), "nlon=8.5 is not a number of grid points"),
        (lambda: find_latlon(np.ones(3)), "This is no xarray object"),
    ],
)
def test_unusable_arguments_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_no_coordinate_names_what_was_looked_for():
    with pytest.raises(DatasetError, match=r"No latitude is on this DataArray\. Found dimensions \('longitude',\)"):
        find_latlon(field().isel(latitude=0, drop=True))
    with pytest.raises(DatasetError, match=r"No longitude .*standard_name='longitude'.*Add or rename it"):
        find_latlon(field().mean("longitude").to_dataset())


def test_two_dimensional_coordinates_are_a_curvilinear_grid():
    plane = np.ones((3, 4))
    ds = xr.Dataset({"t": (("y", "x"), plane)}, {"lat": (("y", "x"), plane), "lon": (("y", "x"), plane)})
    with pytest.raises(DatasetError, match=r"'lat' is a latitude of two dimensions \(a curvilinear grid\)"):
        find_latlon(ds)


def test_single_points_are_no_grid():
    ds = xr.Dataset({"t": ("station", np.ones(3))}, {"lat": ("station", np.ones(3)), "lon": ("station", np.ones(3))})
    with pytest.raises(DatasetError, match="'lat' and 'lon' list single points, not a grid"):
        find_latlon(ds)


def test_two_candidates_are_ambiguous():
    with pytest.raises(DatasetError, match="More than one coordinate can be the latitude"):
        find_latlon(field(names=("lat", "lon")).to_dataset().expand_dims(latitude=[1.0, 2.0]))


@pytest.mark.parametrize("unit", ["radian", "radians"])
def test_radians_are_refused(unit):
    with pytest.raises(DatasetError, match="'latitude' is not in degrees"):
        LatLonGrid.from_dataset(field(attrs=({"units": unit}, {})))
