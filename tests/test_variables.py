"""What a channel is, and which dialects are understood."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmosaic.dialects import Problem, channel_arrays, decode_lead, recognise, standardise, to_dialect
from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.units import canonical, conversion, is_known
from xmosaic.variables import (
    CATALOGUE,
    PUBLISHED_LEVELS,
    Channel,
    Schema,
    cf_attributes,
    find_variable,
    published_schema,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
SCHEMA = Schema.from_variables(
    {
        "2m_temperature": None,
        "10m_u_component_of_wind": None,
        "mean_sea_level_pressure": None,
        "geopotential": [500, 850],
        "specific_humidity": [500, 850],
        "temperature": [500, 850],
        "vertical_velocity": [500, 850],
    },
    static=["geopotential_at_surface", "land_sea_mask"],
)
UPPER = ("geopotential", "specific_humidity", "temperature", "vertical_velocity")
SHORT = {name: CATALOGUE[name].short for name in CATALOGUE if CATALOGUE[name].short}
CDS = {name: row.cds[0] for name, row in CATALOGUE.items() if row.cds}
CMIP = {name: row.cmip[0] for name, row in CATALOGUE.items() if row.cmip}


def weatherbench(levels=(500, 850), times=2) -> xr.Dataset:
    """A small state in WeatherBench2's names and our units."""
    rng = np.random.default_rng(0)
    dims = ("time", "level", "latitude", "longitude")
    coords = {
        "time": pd.date_range("2020-01-01", periods=times, freq="6h", unit="ns"),
        "level": ("level", list(levels), {"units": "hPa"}),
        "latitude": np.linspace(-90, 90, 5),
        "longitude": np.arange(0.0, 360, 45),
    }
    ds = xr.Dataset(coords=coords)
    static = SCHEMA.variables["static"]
    for name in (*SCHEMA.variables["state"], *static):
        mine = [d for d in dims if not (d == "time" and name in static) and not (d == "level" and name not in UPPER)]
        values = rng.normal(1e3, 100, [ds.sizes[d] for d in mine]).astype(np.float32)
        ds[name] = (mine, values, {"units": CATALOGUE[name].units})
    return ds


def named(ds: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    return ds.rename({old: names[old] for old in ds.data_vars if old in names})


def only_state(ds: xr.Dataset) -> xr.Dataset:
    return ds.drop_vars(list(SCHEMA.variables["static"]))


def ecmwf(ds):
    spelled = {"m2 s-2": "m**2 s**-2", "m s-1": "m s**-1", "Pa s-1": "Pa s**-1", "kg kg-1": "kg kg**-1"}
    ds = named(ds.drop_vars("geopotential_at_surface"), SHORT)
    for da in ds.data_vars.values():
        da.attrs["units"] = spelled.get(da.attrs["units"], da.attrs["units"])
    return ds


def cds(ds):
    ds = named(ds.drop_vars("geopotential_at_surface"), CDS)
    return ds.rename(time="valid_time", level="pressure_level").isel(pressure_level=slice(None, None, -1))


def cfgrib(ds):
    ds = named(ds.drop_vars("geopotential_at_surface"), CDS).rename(level="isobaricInhPa")
    ds["isobaricInhPa"] = ds.isobaricInhPa.astype(float).assign_attrs(units="hPa", standard_name="air_pressure")
    ds = ds.assign_coords(
        valid_time=("time", ds.time.values, {"standard_name": "time"}),
        time=("time", ds.time.values, {"standard_name": "forecast_reference_time"}),
        step=np.timedelta64(0, "ns"),
        number=0,
        surface=0.0,
    )
    return ds


def cmip(ds):
    """Names of CMIP, pressure in Pa, geopotential by its standard_name; sea-level pressure in hPa."""
    ds = ds.drop_vars("geopotential_at_surface").rename(geopotential="phi")
    ds["phi"].attrs["standard_name"] = "geopotential"
    ds = named(ds, CMIP).rename(level="plev", latitude="lat", longitude="lon")
    ds["plev"] = (ds.plev * 100.0).assign_attrs(units="Pa", standard_name="air_pressure", axis="Z")
    return ds


def cf(ds):
    """Made-up names and nothing but CF attributes."""
    out = xr.Dataset()
    ds = only_state(ds).rename(time="t0", level="p", latitude="y", longitude="x")
    for i, (name, da) in enumerate(ds.data_vars.items()):
        row = CATALOGUE[name]
        da = da.assign_attrs(standard_name=row.standard_name)
        out[f"var{i}"] = da
    out["p"].attrs.update(units="hPa", standard_name="air_pressure")
    out["y"].attrs["units"], out["x"].attrs["units"] = "degrees_north", "degrees_east"
    # one scalar height each: 2 m for the temperature, 10 m for the wind
    out = out.assign_coords(h2=((), 2.0, {"standard_name": "height"}), h10=((), 10.0, {"standard_name": "height"}))
    return out


DIALECTS = {"wb2": lambda ds: ds, "ecmwf": ecmwf, "cds": cds, "cfgrib": cfgrib, "cmip": cmip, "cf": cf}


def problems_of(ds: xr.Dataset, schema: Schema = SCHEMA) -> dict[str, str]:
    return {problem.subject: str(problem) for problem in recognise(ds, schema).problems}


def never_compute(*args, **kwargs):
    raise AssertionError("computed")


def real(name: str, **kwargs) -> xr.Dataset:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in shared/data")
    return xr.open_dataset(DATA / name, **kwargs)


# ---- is a channel what it says? ----


def test_the_published_schema_is_the_model_card():
    schema = published_schema()
    upper = ["geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind"]
    levels = [50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000]
    expected = [
        "2m_temperature",
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "mean_sea_level_pressure",
    ]
    expected += [f"{v}_{level}" for v in [*upper, "vertical_velocity"] for level in levels]
    assert [c.name for c in schema.state] == expected
    assert len(expected) == 82
    assert [c.name for c in schema.static] == ["geopotential_at_surface", "land_sea_mask", "soil_type"]
    assert schema.forcing == ()
    assert schema.levels == PUBLISHED_LEVELS == tuple(levels)
    assert [schema.index(name) for name in schema.names] == list(range(85))


channels = st.builds(
    lambda name, level, role: Channel.known(name, level if CATALOGUE[name].vertical else None, role),
    st.sampled_from(sorted(CATALOGUE)),
    st.integers(1, 1100),
    st.just("state"),
)


@given(st.lists(channels, min_size=1, max_size=12, unique_by=lambda c: c.name))
def test_schema_survives_json(some):
    schema = Schema(tuple(some))
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert hash(again) == hash(schema)
    assert again.names == schema.names


@given(st.lists(st.sampled_from(published_schema().names), min_size=1, unique=True))
def test_select_keeps_the_schemas_order(names):
    schema = published_schema()
    assert schema.select(names).names == tuple(name for name in schema.names if name in names)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("t2m", ["2m_temperature"]),
        ("2t", ["2m_temperature"]),
        ("z500", ["geopotential_500"]),
        ("t_850", ["temperature_850"]),
        ("geopotential_500", ["geopotential_500"]),
        ("msl", ["mean_sea_level_pressure"]),
        ("wap", [f"vertical_velocity_{level}" for level in PUBLISHED_LEVELS]),
        ("z", [f"geopotential_{level}" for level in PUBLISHED_LEVELS]),
        ("lsm", ["land_sea_mask"]),
        ("surface_geopotential", ["geopotential_at_surface"]),
    ],
)
def test_select_takes_any_dialect(asked, expected):
    assert list(published_schema().select(asked).names) == expected


def test_select_z_is_the_surfaces_where_there_is_no_other():
    schema = Schema.from_variables({"2m_temperature": None}, static=["geopotential_at_surface"])
    assert schema.select(["z"]).names == ("geopotential_at_surface",)


@pytest.mark.parametrize("asked", ["geopotental_500", "z501", "nothing", "u100", ""])
def test_select_refuses_the_unknown(asked):
    with pytest.raises(ArgumentError, match="not in this schema"):
        published_schema().select([asked])


def test_select_tells_close_names():
    with pytest.raises(ArgumentError, match="geopotential_500"):
        published_schema().select(["geopotental_500"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"variable": ""}, "variable"),
        ({"variable": 3}, "variable"),
        ({"variable": "x", "level": 0}, "level"),
        ({"variable": "x", "level": -5}, "level"),
        ({"variable": "x", "level": 500.5}, "level"),
        ({"variable": "x", "level": True}, "level"),
        ({"variable": "x", "level": "500"}, "level"),
        ({"variable": "x", "role": "truth"}, "role"),
        ({"variable": "x", "units": ""}, "units"),
        ({"variable": "x", "height": float("nan")}, "height"),
        ({"variable": "x", "height": 2.0, "level": 500}, "height"),
    ],
)
def test_channel_is_validated(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        Channel(**arguments)


def test_channel_takes_whole_numbers_of_any_type():
    assert Channel("x", np.int64(500)) == Channel("x", 500.0) == Channel("x", 500)
    assert type(Channel("x", np.int64(500)).level) is int


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schema(()),
        lambda: Schema((Channel("x"), Channel("x"))),
        lambda: Schema((Channel("x", role="static"), Channel("y"))),
        lambda: Schema((Channel("x", 500), Channel("x", 850, units="K"))),
        lambda: Schema(("2m_temperature",)),
        lambda: Schema.from_variables({"geopotential": None}),
        lambda: Schema.from_variables({"2m_temperature": [500]}),
        lambda: Schema.from_variables({"tempersture": [500]}),
        lambda: Schema.from_dict({"channels": [], "more": 1}),
        lambda: Schema.from_dict({}),
        lambda: Schema.from_dict({"channels": "abc"}),
        lambda: Schema.from_dict({"channels": [{"variable": "x", "colour": "red"}]}),
        lambda: Schema.from_dict({"channels": [{"level": 3}]}),
        lambda: Schema.from_dict([]),
        lambda: published_schema().index("geopotential"),
        lambda: cf_attributes("nonsense"),
    ],
)
def test_wrong_schemas_are_refused(make):
    with pytest.raises(ArgumentError):
        make()


def test_repr_is_short_and_says_it():
    text = repr(published_schema())
    assert text.startswith("<Schema: 82 state, 3 static, 0 forcing channels>")
    assert len(text.splitlines()) == 3
    assert "geopotential" in published_schema()._repr_html_()


def test_attributes_of_a_channel_and_a_name_agree():
    assert cf_attributes("t2m") == cf_attributes(Channel.known("2m_temperature"))
    assert cf_attributes("geopotential_500") == {
        "standard_name": "geopotential",
        "long_name": "Geopotential",
        "units": "m2 s-2",
    }
    assert "standard_name" not in cf_attributes("toa_incident_solar_radiation")


def test_every_name_of_the_catalogue_is_found():
    for row in CATALOGUE.values():
        for name in row.names:
            assert name in find_variable(name).names


# ---- units ----


@pytest.mark.parametrize(
    ("found", "wanted", "linear"),
    [
        *[(s, "m s-1", (1, 0)) for s in ("m s**-1", "m/s", "m s-1", "m s^-1", "meter/second", "m.s-1", " m  s-1 ")],
        *[(s, "m2 s-2", (1, 0)) for s in ("m2 s-2", "m**2 s**-2", "m^2 s^-2", "m2/s2", "J kg-1", "J/kg")],
        *[(s, "K", (1, 0)) for s in ("K", "kelvin", "Kelvin", "degK")],
        *[(s, "K", (1, 273.15)) for s in ("degC", "celsius", "°C", "degrees_C", "deg C", "C", "degree_Celsius")],
        ("degF", "K", (5 / 9, 459.67 * 5 / 9)),
        *[(s, "Pa", (100, 0)) for s in ("hPa", "mbar", "mb", "millibar", "millibars", "hectopascal")],
        ("kPa", "Pa", (1000, 0)),
        *[(s, "kg kg-1", (1e-3, 0)) for s in ("g/kg", "g kg-1", "g kg**-1")],
        *[(s, "kg kg-1", (1, 0)) for s in ("1", "kg kg**-1", "kg/kg", "")],
        *[(s, "1", (1, 0)) for s in ("1", "(0 - 1)", "~", "-", "dimensionless", "0-1", "fraction")],
        ("%", "1", (0.01, 0)),
        *[(s, "Pa s-1", (1, 0)) for s in ("Pa s**-1", "Pa/s", "Pa s-1")],
        *[(s, "Pa s-1", (100 / 3600, 0)) for s in ("hPa/h", "hPa h-1")],
        ("knots", "m s-1", (1852 / 3600, 0)),
    ],
)
def test_units_in_every_spelling(found, wanted, linear):
    assert conversion(found, wanted) == pytest.approx(linear, rel=1e-13)
    assert is_known(found)


@pytest.mark.parametrize(("found", "wanted"), [("m", "m2 s-2"), ("gpm", "m2 s-2"), ("m s-1", "Pa s-1"), ("dB", "1")])
def test_units_of_other_things(found, wanted):
    assert conversion(found, wanted) is None
    assert is_known(found)


@given(st.text(max_size=12))
def test_units_never_crash(text):
    is_known(text)
    assert conversion(text, "K") is None or len(conversion(text, "K")) == 2
    assert canonical(canonical(text)) == canonical(text)


def test_whole_factors_are_exact():
    assert conversion("hPa", "Pa") == (100.0, 0.0)
    assert conversion("Pa", "hPa") == (0.01, 0.0)
    assert conversion("celsius", "K") == (1.0, 273.15)


# ---- is the same state the same in every dialect? ----


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(DIALECTS)),
    st.permutations(range(4)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.permutations(range(3)),
)
def test_every_dialect_gives_the_same_arrays(dialect, order, lazy, flip_levels, upper_first, times):
    truth = weatherbench(levels=(300, 500, 850), times=3)
    ds = DIALECTS[dialect](truth.copy(deep=True))
    ds = ds.transpose(*[list(ds.dims)[i] for i in order if i < len(ds.dims)], ...)
    if flip_levels:
        level = recognise(ds, SCHEMA).level
        ds = ds.isel({level: slice(None, None, -1)})
    time = ds[next(n for n in ds.data_vars)].dims
    time = next(d for d in time if d in ("time", "valid_time", "t0"))
    ds = ds.isel({time: list(times)})
    if upper_first:
        ds = ds[list(ds.data_vars)[::-1]]
    before = ds.copy(deep=True)
    with dask.config.set(scheduler=never_compute):
        given_ds = ds.chunk() if lazy else ds
        found = recognise(given_ds, SCHEMA)
        assert found.ok, found
        out = standardise(given_ds, SCHEMA, found)
        arrays = channel_arrays(given_ds, SCHEMA, found)
    assert ds.identical(before)
    assert list(arrays) == [c.name for c in SCHEMA.state]
    assert out["level"].values.tolist() == [500, 850]
    assert list(out.data_vars) == list(SCHEMA.variables["state"])
    for name in SCHEMA.variables["state"]:
        expected = truth[name].sel(level=[500, 850]) if name in UPPER else truth[name]
        assert out[name].dims == expected.dims
        np.testing.assert_array_equal(out[name].values, expected.values)
        np.testing.assert_array_equal(out[name]["time"].values, expected["time"].values)
        assert out[name].attrs == cf_attributes(name)
    for channel in SCHEMA.state:
        da = arrays[channel.name]
        assert da.dims == ("time", "latitude", "longitude")
        expected = truth[channel.variable]
        expected = expected if channel.level is None else expected.sel(level=channel.level)
        np.testing.assert_array_equal(da.values, expected.values)


def test_units_are_converted_lazily():
    truth = weatherbench()
    ds = truth.copy(deep=True)
    ds["2m_temperature"] = (truth["2m_temperature"].astype(float) - 273.15).assign_attrs(units="degC")
    ds["mean_sea_level_pressure"] = (truth["mean_sea_level_pressure"] / 100).assign_attrs(units="hPa")
    ds["specific_humidity"] = (truth["specific_humidity"] * 1000).assign_attrs(units="g kg**-1")
    with dask.config.set(scheduler=never_compute):
        out = standardise(ds.chunk(), SCHEMA)
    for name in ("2m_temperature", "mean_sea_level_pressure", "specific_humidity"):
        np.testing.assert_allclose(out[name], truth[name], rtol=3e-7)
        assert out[name].attrs["units"] == CATALOGUE[name].units
    assert out["specific_humidity"].dtype == np.float32


def test_different_levels_are_each_a_channel():
    schema = Schema.from_variables({"geopotential": [500], "temperature": [850, 500, 300]})
    truth = weatherbench(levels=(850, 500, 300))
    arrays = channel_arrays(truth, schema)
    assert list(arrays) == ["geopotential_500", "temperature_850", "temperature_500", "temperature_300"]
    for channel in schema.state:
        np.testing.assert_array_equal(arrays[channel.name], truth[channel.variable].sel(level=channel.level))
        assert not arrays[channel.name].isnull().any()
    out = standardise(truth, schema)
    assert out.level.values.tolist() == [300, 500, 850]
    np.testing.assert_array_equal(out["temperature"], truth["temperature"].sel(level=[300, 500, 850]))
    assert out["geopotential"].isnull().all(["time", "latitude", "longitude"]).values.tolist() == [
        True,
        False,
        True,
    ]


def test_cells_and_their_grid_mapping_stay():
    ds = weatherbench()[["2m_temperature", "temperature"]].stack(cell=("latitude", "longitude"))
    ds = ds.drop_vars(["cell", "latitude", "longitude"]).assign_coords(cell=np.arange(40), crs=0)
    for da in ds.data_vars.values():
        da.attrs["grid_mapping"] = "crs"
    ds["crs"].attrs = {"grid_mapping_name": "healpix", "refinement_level": 1, "indexing_scheme": "nested"}
    schema = SCHEMA.select(["t2m", "temperature"])
    found = recognise(ds, schema)
    assert found.ok
    assert found.cell == "cell"
    out = standardise(ds, schema, found)
    assert out["temperature"].dims == ("time", "level", "cell")
    assert out["crs"].attrs == ds["crs"].attrs
    assert out["temperature"].attrs["grid_mapping"] == "crs"


def test_statics_are_read_and_may_be_missing():
    ds = weatherbench()
    statics = channel_arrays(ds, SCHEMA, roles=["static"])
    assert list(statics) == ["geopotential_at_surface", "land_sea_mask"]
    assert statics["land_sea_mask"].dims == ("latitude", "longitude")
    assert channel_arrays(only_state(ds), SCHEMA, roles=["static"]) == {}
    moving = ds.assign(land_sea_mask=ds["land_sea_mask"].expand_dims(time=ds.time))
    again = channel_arrays(moving, SCHEMA, roles=["static"])
    np.testing.assert_array_equal(again["land_sea_mask"], statics["land_sea_mask"])
    assert any("constant in time" in note for note in recognise(moving, SCHEMA).notes)


def test_own_output_is_understood():
    out = standardise(weatherbench(), SCHEMA, roles=["state", "static"])
    found = recognise(out, SCHEMA)
    assert found.ok, found
    assert found.notes == ()
    xr.testing.assert_identical(standardise(out, SCHEMA, roles=["state", "static"]), out)


def test_forcing_is_like_state():
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    ds = weatherbench().assign(sst=lambda d: d["2m_temperature"])
    assert standardise(ds, schema)["sea_surface_temperature"].dims == ("time", "latitude", "longitude")
    assert "sea_surface_temperature" in problems_of(weatherbench(), schema)


def test_a_variable_of_ones_own():
    schema = Schema((Channel("ozone", 500, units="kg kg-1", standard_name="mass_fraction_of_ozone_in_air"),))
    ds = weatherbench().rename(temperature="o3")
    ds["o3"].attrs = {"units": "mg/kg", "standard_name": "mass_fraction_of_ozone_in_air"}
    found = recognise(ds, schema)
    assert found.sources["ozone_500"].factor == pytest.approx(1e-6)
    assert found.sources["ozone_500"].matched_by == "standard_name"


# ---- which variable is it? ----


def test_z_without_levels_is_the_surfaces():
    ds = weatherbench().drop_vars("geopotential_at_surface")
    ds["z"] = ds["land_sea_mask"].assign_attrs(units="m**2 s**-2", standard_name="geopotential")
    found = recognise(ds, SCHEMA)
    assert found.ok, found
    assert found.sources["geopotential_at_surface"].variable == "z"
    assert found.sources["geopotential_500"].variable == "geopotential"


def test_exact_names_win_and_others_are_ambiguous():
    ds = weatherbench()
    ds["t2m"] = ds["2m_temperature"]
    assert recognise(ds, SCHEMA).sources["2m_temperature"].variable == "2m_temperature"
    ds = ds.rename({"2m_temperature": "2t"})
    assert "ambiguous" in problems_of(ds)["2m_temperature"]
    assert "'2t', 't2m'" in problems_of(ds)["2m_temperature"]


def test_height_is_named_even_beside_a_flat_z():
    ds = weatherbench().rename(geopotential="gh", geopotential_at_surface="z")
    told = problems_of(ds)
    assert set(told) == {"geopotential"}
    assert "'gh' is geopotential height" in told["geopotential"]


def test_a_flat_z_can_t_be_on_levels():
    ds = weatherbench().drop_vars("geopotential").rename(geopotential_at_surface="z")
    assert "'z' has no level dimension" in problems_of(ds)["geopotential"]


def test_upper_case_is_taken_with_a_note():
    ds = named(weatherbench(), {"temperature": "T", "2m_temperature": "T2M"})
    found = recognise(ds, SCHEMA)
    assert found.ok, found
    assert found.sources["temperature_500"].variable == "T"
    assert any("'T' taken as 'temperature'" in note for note in found.notes)


def test_extremes_are_not_the_state():
    ds = only_state(weatherbench()).rename({"2m_temperature": "hot"})
    ds["hot"].attrs |= {"standard_name": "air_temperature", "cell_methods": "time: maximum"}
    assert "2m_temperature" in problems_of(ds.assign_coords(height=2.0))


def test_wind_at_another_height_is_another_wind():
    ds = weatherbench().rename({"10m_u_component_of_wind": "wind"})
    ds["wind"].attrs["standard_name"] = "eastward_wind"
    assert recognise(ds.assign_coords(height=((), 10.0)), SCHEMA).ok
    assert "10m_u_component_of_wind" in problems_of(ds.assign_coords(height=((), 100.0)))


def test_scalar_level_is_a_level():
    schema = Schema.from_variables({"temperature": [500], "geopotential": 500})
    ds = weatherbench().sel(level=500).rename(geopotential="z", geopotential_at_surface="orog")
    out = standardise(ds, schema)
    assert out["temperature"].dims == ("time", "level", "latitude", "longitude")
    assert out.level.values.tolist() == [500]
    assert recognise(ds, schema).sources["geopotential_500"].level_index is None
    (told,) = (text for subject, text in problems_of(ds).items() if "temperature" in subject.split(", "))
    assert "lack levels 850 hPa" in told


# ---- is every problem told, with its way out? ----


def test_a_level_that_several_variables_lack_is_told_once():
    schema = Schema.from_variables(
        {"temperature": [500, 850], "geopotential": [500, 850], "u_component_of_wind": [500]}
    )
    ds = weatherbench().sel(level=[500])
    ds["u_component_of_wind"] = ds["geopotential"].assign_attrs(units="m s-1", standard_name="eastward_wind")
    (problem,) = recognise(ds, schema).problems
    expected = "'temperature', 'geopotential' lack levels 850 hPa. Found 500 hPa; expected 500, 850 hPa. Add them"
    assert str(problem).startswith(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("z300", "Expected geopotential at 250, 500, 850 hPa. Write 'z250', the nearest."),
        ("geopotential_800", "Expected geopotential at 250, 500, 850 hPa. Write 'geopotential_850', the nearest."),
    ],
)
def test_a_level_that_is_not_there_names_those_that_are(name, text):
    schema = Schema.from_variables({"geopotential": [850, 250, 500], "u_component_of_wind": [500]})
    with pytest.raises(ArgumentError, match="is not in this schema. " + text):
        schema.select(name)
    with pytest.raises(ArgumentError, match="'u10' is not in this schema") as told:
        schema.select("u10")  # the wind at 10 m, which is no level
    assert "hPa" not in str(told.value)


def attrs_of(name, **attrs):
    def change(ds):
        ds[name].attrs |= attrs
        return ds

    return change


def hybrid(ds):
    ds["level"].attrs = {"standard_name": "atmosphere_hybrid_sigma_pressure_coordinate"}
    return ds


def curvilinear(ds):
    ds = ds.rename(latitude="y", longitude="x").reset_index(["y", "x"], drop=True)
    return ds.assign_coords(lat=(("y", "x"), np.zeros((5, 8))), lon=(("y", "x"), np.zeros((5, 8))))


def cftime_dates(calendar):
    def change(ds):
        times = xr.date_range("2020-01-01", periods=2, freq="6h", calendar=calendar, use_cftime=True)
        return ds.assign_coords(time=times)

    return change


WRONG = {
    "missing": (lambda ds: ds.drop_vars("temperature"), "temperature", "is missing", "Add it or rename it"),
    "close": (lambda ds: ds.rename(temperature="tempersture"), "temperature", "'tempersture'", "rename"),
    "flat": (
        lambda ds: ds.assign(temperature=ds["2m_temperature"]),
        "temperature",
        "no level dimension",
        "levels",
    ),
    "levels": (
        lambda ds: ds.isel(level=[0]),
        "geopotential, specific_humidity, temperature, vertical_velocity",
        "lack levels 850 hPa",
        "choose a schema",
    ),
    "hybrid": (hybrid, "level", "is a model level", "Interpolate to pressure"),
    "height levels": (attrs_of("level", units="m"), "level", "is a height", "Interpolate to pressure"),
    "level names": (
        lambda ds: ds.assign_coords(level=["a", "b"]),
        "level",
        "have no values",
        "assign_coords",
    ),
    "no levels": (lambda ds: ds.drop_vars("level"), "level", "have no values", "assign_coords"),
    "twice": (lambda ds: ds.assign_coords(level=[500, 500]), "level", "repeat", "drop_duplicates"),
    "height": (attrs_of("geopotential", units="m"), "geopotential", "geopotential height, not", "9.80665"),
    "gpm": (attrs_of("geopotential", units="gpm"), "geopotential", "geopotential height, not", "9.80665"),
    "gh": (lambda ds: ds.rename(geopotential="gh"), "geopotential", "'gh' is geopotential height", "9.80665"),
    "height by name": (
        attrs_of("geopotential", standard_name="geopotential_height"),
        "geopotential",
        "geopotential height, not",
        "9.80665",
    ),
    "w": (attrs_of("vertical_velocity", units="m/s"), "vertical_velocity", "upward velocity", "Pa s-1"),
    "w by name": (
        attrs_of("vertical_velocity", standard_name="upward_air_velocity"),
        "vertical_velocity",
        "upward velocity",
        "omega",
    ),
    "rh": (lambda ds: ds.rename(specific_humidity="r"), "specific_humidity", "relative humidity", "Compute"),
    "rh %": (attrs_of("specific_humidity", units="%"), "specific_humidity", "relative humidity", "Compute"),
    "sp": (
        lambda ds: ds.rename(mean_sea_level_pressure="sp"),
        "mean_sea_level_pressure",
        "at the surface",
        "reduced to mean sea level",
    ),
    "theta": (
        attrs_of("temperature", standard_name="air_potential_temperature"),
        "temperature",
        "potential temperature",
        "0.2857",
    ),
    "other name": (
        attrs_of("temperature", standard_name="eastward_wind"),
        "temperature",
        "something else",
        "correct",
    ),
    "units": (attrs_of("temperature", units="Pa"), "temperature", "can't be converted", "Convert the values"),
    "unreadable": (
        attrs_of("temperature", units="blorp"),
        "temperature",
        "can't be read. Found 'blorp'",
        "Convert",
    ),
    "text": (
        lambda ds: ds.assign(temperature=ds.temperature.astype(str)),
        "temperature",
        "holds no numbers",
        "astype",
    ),
    "objects": (
        lambda ds: ds.assign(temperature=ds.temperature.astype(object)),
        "temperature",
        "no numbers",
        "astype",
    ),
    "packed": (attrs_of("temperature", scale_factor=0.1), "temperature", "still packed", "decode_cf"),
    "no time": (lambda ds: ds.isel(time=0, drop=True), "time", "There is no time", "expand_dims"),
    "time numbers": (lambda ds: ds.assign_coords(time=[0, 6]), "time", "holds no dates", "to_datetime"),
    "undecoded": (
        lambda ds: ds.assign_coords(time=("time", [0, 6], {"units": "hours since 2020-01-01"})),
        "time",
        "holds no dates",
        "decode_cf",
    ),
    "strings": (
        lambda ds: ds.assign_coords(time=["2020-01-01", "2020-01-02"]),
        "time",
        "no dates",
        "to_datetime",
    ),
    "time values": (lambda ds: ds.drop_vars("time"), "time", "There is no time", "expand_dims"),
    "zoned index": (
        lambda ds: ds.assign_coords(time=ds.indexes["time"].tz_localize("Europe/Paris")),
        "time",
        "time zone",
        "UTC",
    ),
    "zone": (
        lambda ds: ds.assign_coords(time=ds.indexes["time"].tz_localize("Europe/Paris").astype(object)),
        "time",
        "time zone",
        "UTC",
    ),
    "noleap": (
        cftime_dates("noleap"),
        "time",
        "another calendar. Found calendar 'noleap'",
        "convert_calendar",
    ),
    "360": (cftime_dates("360_day"), "time", "another calendar", "convert_calendar"),
    "repeated": (
        lambda ds: ds.isel(time=[0, 0]),
        "time",
        "repeated times. Found '2020-01-01",
        "drop_duplicates",
    ),
    "NaT": (
        lambda ds: ds.assign_coords(time=[ds.time.values[0], np.datetime64("NaT", "ns")]),
        "time",
        "NaT",
        "Drop",
    ),
    "steps": (lambda ds: ds.expand_dims(step=3), "step", "is a lead time", "ds.isel(step=0)"),
    "members": (lambda ds: ds.expand_dims(number=3), "number", "ensemble members", "ds.isel(number=0)"),
    "unknown": (lambda ds: ds.expand_dims(colour=3), "colour", "is not a known one", "ds.isel(colour=0)"),
    "empty": (lambda ds: ds.isel(latitude=[]), "latitude", "is empty", "Select"),
    "empty time": (lambda ds: ds.isel(time=[]), "time", "is empty", "Select"),
    "dimension twice": (
        lambda ds: ds.assign(
            temperature=(("time", "level", "latitude", "latitude"), np.zeros((2, 2, 5, 5)), {"units": "K"})
        ),
        "temperature",
        "has a dimension twice",
        "name of its own",
    ),
    "no latitude": (lambda ds: ds.isel(latitude=0), "latitude", "There is no latitude", "expand_dims"),
    "no values": (lambda ds: ds.drop_vars("latitude"), "latitude", "no coordinate values", "assign_coords"),
    "curvilinear": (curvilinear, "latitude", "There is no latitude", "curvilinear grid of 'lat'"),
    "names of space": (lambda ds: ds.rename(longitude="blah"), "longitude", "no longitude", "Rename"),
    "two grids": (
        lambda ds: ds.assign(temperature=ds.temperature.isel(latitude=slice(3)).rename(latitude="lat")),
        "latitude",
        "different latitude axes",
        "same values",
    ),
    "some without time": (
        lambda ds: ds.assign(temperature=ds.temperature.isel(time=0, drop=True)),
        "time",
        "'temperature' have no time dimension",
        "Give them",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
@pytest.mark.parametrize("case", sorted(WRONG))
@pytest.mark.parametrize("lazy", [False, True])
def test_problem(case, lazy):
    change, subject, what, fix = WRONG[case]
    ds = change(weatherbench())
    with dask.config.set(scheduler=never_compute):
        told = problems_of(ds.chunk() if lazy else ds)
    assert what in told[subject]
    assert fix in told[subject]


def test_single_level_fix_can_be_followed():
    schema = Schema.from_variables({"temperature": [500]})
    ds = weatherbench().sel(level=500, drop=True)
    assert "expand_dims(level=[500])" in problems_of(ds, schema)["temperature"]
    assert recognise(ds.assign(temperature=ds["temperature"].expand_dims(level=[500])), schema).ok


def test_all_problems_come_at_once():
    ds = weatherbench().isel(level=[0]).expand_dims(number=2).drop_vars("2m_temperature").drop_vars("time")
    ds["vertical_velocity"].attrs["units"] = "m s-1"
    ds["mean_sea_level_pressure"].attrs["units"] = "blorp"
    with pytest.raises(DatasetError) as error:
        standardise(ds, SCHEMA)
    for text in (
        "6. ",
        "'2m_temperature' is missing",
        "850 hPa",
        "'number'",
        "omega",
        "blorp",
        "There is no time",
    ):
        assert text in str(error.value)
    with pytest.raises(DatasetError, match="blorp"):
        channel_arrays(ds, SCHEMA)


def test_problem_reads_like_an_error():
    problem = Problem("t", "'t' is missing", got="'u'", expected="'t'", fix="Add it")
    assert str(problem) == "'t' is missing. Found 'u'; expected 't'. Add it."


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda ds: ds.expand_dims(step=[np.timedelta64(0, "ns")]), "'step' has size 1"),
        (lambda ds: ds.expand_dims(number=1), "'number' has size 1"),
        (lambda ds: ds.expand_dims(colour=1), "'colour' has size 1"),
        (lambda ds: ds.isel(time=[1, 0]), "not in order"),
        (lambda ds: ds.assign_coords(longitude=np.arange(-180.0, 180, 45)), "−180…180"),
        (lambda ds: ds.assign_coords(level=[500, 850]), "no units attribute on 'level': taken as hPa"),
        (lambda ds: ds.assign_coords(level=[50000, 85000]), "no units attribute on 'level': taken as Pa"),
    ],
)
def test_assumptions_are_noted(change, note):
    found = recognise(change(weatherbench()), SCHEMA)
    assert found.ok, found
    assert any(note in text for text in found.notes)
    assert standardise(change(weatherbench()), SCHEMA)["temperature"].shape == (2, 2, 5, 8)


@pytest.mark.parametrize("units", ["millibars", "mb", "hPa", "mbar", "hectopascal"])
def test_levels_in_every_unit(units):
    ds = weatherbench()
    ds["level"].attrs["units"] = units
    assert recognise(ds, SCHEMA).ok


def test_one_axis_may_have_two_names():
    ds = weatherbench()
    ds["temperature"] = ds["temperature"].rename(level="plev", latitude="lat")
    out = standardise(ds, SCHEMA)
    np.testing.assert_array_equal(out["temperature"], weatherbench()["temperature"])


def test_recognition_is_of_its_dataset():
    found = recognise(weatherbench(), SCHEMA)
    with pytest.raises(DatasetError, match="another dataset"):
        standardise(weatherbench(times=3), SCHEMA, found)


@pytest.mark.parametrize("thing", [None, 3, weatherbench()["temperature"]])
def test_only_datasets(thing):
    with pytest.raises(ArgumentError, match="Dataset"):
        recognise(thing, SCHEMA)


@pytest.mark.parametrize("ds", [xr.Dataset(), xr.Dataset({"t": 3}), xr.Dataset({1: ("x", [1]), ("a", "b"): 2})])
def test_odd_datasets_are_problems_only(ds):
    found = recognise(ds, published_schema())
    assert not found.ok
    assert repr(found)
    assert found._repr_html_()


attribute = st.one_of(st.text(max_size=5), st.integers(), st.lists(st.integers(), max_size=2), st.none())


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["units", "standard_name", "axis", "cell_methods", "grid_mapping"]), attribute),
    st.sampled_from([*weatherbench().data_vars, "level", "latitude", "time"]),
    st.sampled_from(["name", "t", "level", "valid_time", "number", "cell", "height", "step"]),
)
def test_strange_metadata_never_crashes(attrs, name, other):
    ds = weatherbench()
    ds[name].attrs = {key: np.array(v) if isinstance(v, list) else v for key, v in attrs.items()}
    if other not in ds.variables:
        ds = ds.rename({name: other})
    found = recognise(ds, SCHEMA)
    if found.ok:
        standardise(ds, SCHEMA, found)
    assert repr(found)


# ---- times of forecasts ----


def test_valid_time_is_start_plus_lead():
    ds = weatherbench()
    wanted = ds.time.values + np.timedelta64(6, "h")
    scalar = ds.assign_coords(prediction_timedelta=np.timedelta64(6, "h").astype("m8[ns]"))
    np.testing.assert_array_equal(recognise(scalar, SCHEMA).times, wanted)
    dim = ds.rename(time="init_time").expand_dims(lead_time=[np.timedelta64(6, "h").astype("m8[ns]")])
    np.testing.assert_array_equal(recognise(dim, SCHEMA).times, wanted)
    numbers = ds.assign_coords(step=((), 6, {"units": "hours"}))
    np.testing.assert_array_equal(standardise(numbers, SCHEMA).time, wanted)
    assert "units" in problems_of(ds.assign_coords(step=6))["step"]


def test_cfgribs_valid_time_is_the_time():
    ds = cfgrib(weatherbench())
    shifted = ds.assign_coords(valid_time=ds.valid_time + np.timedelta64(6, "h"), step=np.timedelta64(6, "h"))
    found = recognise(shifted, SCHEMA)
    assert found.time == "valid_time"
    np.testing.assert_array_equal(found.times, shifted.valid_time)


def test_scalar_time_is_one_time():
    out = standardise(weatherbench().isel(time=0), SCHEMA)
    assert out.sizes["time"] == 1
    assert out.time.values[0] == weatherbench().time.values[0]
    lazy = weatherbench().isel(time=0).chunk()
    with dask.config.set(scheduler=never_compute):
        assert recognise(lazy, SCHEMA).ok


@pytest.mark.parametrize("calendar", ["standard", "proleptic_gregorian"])
def test_cftime_of_the_same_calendar_is_converted(calendar):
    out = standardise(cftime_dates(calendar)(weatherbench()), SCHEMA)
    assert out.time.dtype.kind == "M"
    assert (out.time.values == weatherbench().time.values).all()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_any_resolution_of_time(unit):
    ds = weatherbench().assign_coords(time=weatherbench().indexes["time"].as_unit(unit))
    out = standardise(ds, SCHEMA)
    assert np.datetime_data(out.time.dtype)[0] in ("us", "ns")
    assert (out.time.values == ds.time.values).all()


# ---- leads and dialects of forecasts ----


def forecast() -> xr.Dataset:
    leads = pd.to_timedelta([6, 12], unit="h").as_unit("ns")
    ds = weatherbench()[["2m_temperature", "geopotential", "geopotential_at_surface"]]
    ds = ds.expand_dims(number=[1, 2, 3], prediction_timedelta=leads)
    valid = ds.time + ds.prediction_timedelta
    ds = ds.assign_coords(valid_time=valid)
    return ds.transpose("time", "number", "prediction_timedelta", "level", ...)


@pytest.mark.parametrize(
    ("dialect", "dims", "names"),
    [
        ("weatherbenchx", {"init_time", "lead_time", "number"}, {"2m_temperature", "geopotential"}),
        ("climpred", {"init", "lead", "member"}, {"2m_temperature", "geopotential"}),
        ("xskillscore", {"time", "prediction_timedelta", "member"}, {"2m_temperature", "geopotential"}),
        ("ecmwf", {"time", "step", "number"}, {"2t", "z"}),
    ],
)
def test_dialect_of_a_forecast(dialect, dims, names):
    ds = forecast()
    before = ds.copy(deep=True)
    out = to_dialect(ds, dialect)
    assert set(out.dims) == dims | {"level", "latitude", "longitude"}
    assert names < set(out.data_vars)
    assert "geopotential_at_surface" in out.data_vars
    assert ds.identical(before)
    np.testing.assert_array_equal(
        out[max(names)], ds["2m_temperature" if max(names) == "2m_temperature" else "geopotential"]
    )


def test_dialect_of_an_array():
    da = to_dialect(forecast()["2m_temperature"], "ecmwf")
    assert da.name == "2t"
    assert "step" in da.dims
    assert to_dialect(forecast()["2m_temperature"], "climpred").name == "2m_temperature"


def test_dialect_is_known_and_free():
    with pytest.raises(ArgumentError, match="weatherbenchx"):
        to_dialect(forecast(), "grads")
    with pytest.raises(ArgumentError, match="already there"):
        to_dialect(forecast().assign_coords(member=1), "xskillscore")


@pytest.mark.parametrize("name", ["prediction_timedelta", "step", "lead_time", "lead"])
@pytest.mark.parametrize(
    ("units", "hours"), [("hours", 1), ("hour", 1), ("h", 1), ("days", 24), ("minutes", 1 / 60), ("Hours", 1)]
)
def test_lead_numbers_become_timedeltas(name, units, hours):
    ds = xr.Dataset({"x": (name, [1.0, 2.0])}, {name: (name, [6, 12], {"units": units, "long_name": "lead"})})
    for thing in (ds, ds["x"]):
        out = decode_lead(thing)
        assert out[name].dtype.kind == "m"
        assert out[name].attrs == {"long_name": "lead"}
        expected = pd.to_timedelta([6 * hours, 12 * hours], unit="h")
        assert (out.indexes[name] == expected).all()
    assert ds[name].dtype.kind == "i"


@pytest.mark.parametrize("attrs", [{}, {"units": "months"}, {"units": "hours since 2020-01-01"}])
def test_lead_without_units_is_refused(attrs):
    ds = xr.Dataset(coords={"prediction_timedelta": ("prediction_timedelta", [6, 12], attrs)})
    with pytest.raises(DatasetError, match=r"units.*'hours'"):
        decode_lead(ds)


def test_lead_as_timedelta_or_absent_stays():
    assert decode_lead(forecast()).identical(forecast())
    assert decode_lead(weatherbench()).identical(weatherbench())


# ---- real files ----


def test_era5_on_37_levels():
    schema = published_schema().select(["z", "q", "t", "u", "v"])
    ds = real("era5_tl31_19590102T00.nc")
    found = recognise(ds, schema)
    assert found.ok, found
    assert found.sources["u_component_of_wind_500"].units == "m s**-1"
    out = standardise(ds, schema)
    assert out.level.values.tolist() == list(PUBLISHED_LEVELS)
    expected = ds["temperature"].sel(level=850).transpose("latitude", "longitude")
    np.testing.assert_array_equal(out["temperature"].sel(level=850)[0], expected)
    assert out.time.values[0] == np.datetime64("1959-01-02")


def test_gfs_winds_without_units():
    ds = real("gfs_uv10m_1deg_2018_6hourly.nc", chunks={})
    with dask.config.set(scheduler=never_compute):
        found = recognise(ds, published_schema().select(["10u", "10v"]))
    assert found.ok, found
    assert len(found.times) == 100
    assert {s.variable for s in found.sources.values()} == {"u10", "v10"}
    assert "no units attribute: taken 'u10', 'v10' as m s-1" in found.notes


def test_gfs_82_channels_need_only_a_time():
    ds = real("gfs_82channels_20111008T00_f072_1p5deg.nc")
    (problem,) = recognise(ds, published_schema()).problems
    assert problem.subject == "time"
    ds = ds.expand_dims(time=[np.datetime64("2011-10-11", "ns")])
    found = recognise(ds, published_schema())
    assert found.ok, found
    assert len(channel_arrays(ds, published_schema(), found)) == 82


def test_era_interim():
    ds = real("eraint_tuv_20050123T00_1p5deg.nc").expand_dims(time=[np.datetime64("2005-01-23", "ns")])
    assert recognise(ds, published_schema().select(["t", "u", "v"])).ok
    told = problems_of(ds, published_schema())
    assert len(told) == 7


def test_scores_are_no_state():
    assert not recognise(real("gencast_1deg_scores_2020.nc"), published_schema()).ok


# One variable per level


def per_level(ds, pattern):
    """The dataset with each level of each variable as a variable of its own."""
    flat = ds.drop_vars([n for n in ds if "level" in ds[n].dims] + ["level"])
    for name in ds:
        if "level" in ds[name].dims:
            for level in ds["level"].values:
                short = find_variable(name).short
                flat[pattern.format(name=name, short=short, level=level)] = ds[name].sel(level=level, drop=True)
    return flat


@pytest.fixture
def on_levels():
    rng = np.random.default_rng(0)
    dims = ("time", "level", "latitude", "longitude")
    coords = {
        "time": pd.date_range("2020", periods=2),
        "level": [500, 850],
        "latitude": [-60.0, 0.0, 60.0],
        "longitude": [0.0, 90.0, 180.0, 270.0],
    }
    names = ("geopotential", "temperature")
    return xr.Dataset({n: (dims, rng.normal(size=(2, 2, 3, 4)), cf_attributes(n)) for n in names}, coords)


LEVEL_SCHEMA = Schema.from_variables({"geopotential": [500, 850], "temperature": [850]})


@pytest.mark.parametrize("pattern", ["{short}{level}", "{short}_{level}", "{name}_{level}", "{name}{level}"])
def test_one_variable_per_level_is_the_same_data(on_levels, pattern):
    flat = per_level(on_levels, pattern).chunk(time=1)
    with dask.config.set(scheduler=never_compute):
        found = recognise(flat, LEVEL_SCHEMA)
        got = standardise(flat, LEVEL_SCHEMA, found)
    assert found.ok, found
    assert "one variable per level" in repr(found)
    xr.testing.assert_identical(got.compute(), standardise(on_levels, LEVEL_SCHEMA))


def test_levels_that_have_no_variable_are_named(on_levels):
    flat = per_level(on_levels, "{short}{level}").drop_vars("z500")
    (problem,) = recognise(flat, LEVEL_SCHEMA).problems
    assert str(problem).startswith("'geopotential' lacks levels 500 hPa. Found 'z850'; expected 500, 850 hPa")


def test_a_variable_with_levels_comes_before_those_of_single_ones(on_levels):
    both = on_levels.assign(z500=on_levels["geopotential"].sel(level=500, drop=True) * 0)
    found = recognise(both, LEVEL_SCHEMA)
    assert {str(s.variable) for s in found.sources.values()} == {"geopotential", "temperature"}
