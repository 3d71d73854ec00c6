"""The house: order of imports, what `import xmosaic` costs and touches, public names, packaging."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import xarray as xr

import xmosaic
from xmosaic.accessor import DataArrayAccessor, DatasetAccessor, _Diagnostics, _Plots

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xmosaic"
# The way of the data. store/ stands before forecast.py because forecast(store=…) writes while it runs.
ORDER = [
    *("errors", "options", "cards"),
    *("units", "variables", "dialects"),
    *("grid", "overlap", "healpix"),
    *("kernels", "model", "graph", "checkpoint"),
    *("state", "data", "store", "steps", "choices", "plan", "ready", "run", "lazy", "overview", "forecast"),
    *("diagnostics", "tracks", "plot", "explore", "evaluation", "report", "training"),
    *("accessor", "cli", "__init__", "__main__"),
]
EAGER = (
    *("MosaicError", "DatasetError", "ArgumentError", "CheckpointError", "StoreError", "AlignmentWarning"),
    "set_options",
)


# ------------------------------------------------------------------------------------------------ order of imports


def _home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, at the top, in functions and for types alike."""
    package = ("xmosaic", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            found |= {f"{name}.{alias.name}" for alias in node.names}
    inside = {tuple(name.split("."))[1] for name in found if name.startswith("xmosaic.")}
    return inside & set(ORDER) - {_home(path)}


def test_imports_follow_the_data():
    for path in PACKAGE.rglob("*.py"):
        above = ORDER[: ORDER.index(_home(path))]
        assert _imports(path) <= set(above), f"{path.name} imports {_imports(path) - set(above)}, which stand below it"


def test_import_order_names_every_module():
    assert {_home(path) for path in PACKAGE.rglob("*.py")} == set(ORDER)


def test_import_order_would_notice():
    """The reading above sees what it is for: relative, absolute, lazy and for types."""
    assert {"checkpoint", "state", "store"} <= _imports(PACKAGE / "forecast.py")
    assert "forecast" in _imports(PACKAGE / "accessor.py")  # inside functions
    assert "errors" in _imports(PACKAGE / "kernels" / "ops.py")  # two dots
    assert {"healpix", "kernels"} <= _imports(PACKAGE / "model.py")  # `from . import healpix`


# ---------------------------------------------------------------------------------------------- a fresh process

_PROBE = """
import json, logging, sys
sockets, records = [], []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
logging.getLogger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, r: records.append(r.name)})(0))
logging.getLogger().setLevel(0)
{before}
import xmosaic
import xarray as xr
xr.Dataset().mosaic  # registered
{after}
json.dump({"sockets": sockets, "records": records, "modules": sorted(sys.modules)}, sys.stderr)
"""


def _fresh(before: str = "", after: str = "") -> tuple[dict, str]:
    """What a new process sees, and what it prints."""
    code = textwrap.dedent(_PROBE).replace("{before}", before).replace("{after}", after)
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-W", "error:::xmosaic", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stderr), done.stdout


def test_import_is_light_and_quiet():
    seen, printed = _fresh()
    heavy = {"torch", "triton", "healpy", "matplotlib", "huggingface_hub", "sklearn", "zarr"}
    assert heavy.isdisjoint(seen["modules"])
    assert seen["sockets"] == []
    assert seen["records"] == []
    assert printed == ""


def test_diagnostics_need_no_torch():
    """A forecast of anyone's is scored, transformed and tracked where torch isn't even installed."""
    hide = "sys.modules['torch'] = None"
    run = """
ds = xmosaic.open_sample()
step = ds.time.diff("time").values[:1]
fc = ds.isel(time=[0]).expand_dims(number=[1, 2], prediction_timedelta=step * 0)
fc = fc + fc.number
print(float(fc.mosaic.crps(ds)["2m_temperature"].squeeze()), fc.mosaic.spectra().sizes["total_wavenumber"])
print(xmosaic.benchmark(fc, ds, progress=False).sizes["score"], fc.mosaic.tracks(progress=False).sizes["number"])
"""
    seen, printed = _fresh(hide, run)
    assert printed.split()[1:] == ["32", "6", "2"]
    assert float(printed.split()[0]) == pytest.approx(1.0)  # errors 1 and 2, one apart
    assert not [m for m in seen["modules"] if m.startswith("torch.")]


def test_import_and_forecast_without_triton():
    """Triton hidden, as where there are no wheels of it."""
    hide = "sys.modules['triton'] = None"
    run = (
        "ds = xmosaic.open_sample()\n"
        "fc = ds.mosaic.forecast('1D', 1, variables='z500', progress=False)\n"
        "print(fc['geopotential'].shape)"
    )
    seen, printed = _fresh(hide, run)
    assert printed.strip() == "(1, 1, 1, 33, 64)"
    assert not [event for event in seen["sockets"] if event in ("socket.connect", "socket.getaddrinfo")]


def test_import_takes_under_three_seconds():
    code = "import time; t = time.process_time(); import xmosaic; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(times) < 3.0


# ------------------------------------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", [*xmosaic._HOME_OF, *EAGER, *xmosaic._ROOMS])
def test_public_name_resolves_and_is_documented(name):
    value = getattr(xmosaic, name)
    assert inspect.getdoc(value)
    assert name in dir(xmosaic)


def test_type_checkers_see_the_same_names():
    """The names under TYPE_CHECKING and those found on first use are the same."""
    declared = {
        alias.asname
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert declared - {"accessor"} == {*xmosaic._HOME_OF, *EAGER, *xmosaic._ROOMS}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        xmosaic.forcast  # noqa: B018


def test_everything_public_has_a_docstring():
    """Every public function, class and method of every module, but for the network's own (ruff's D102 and D103)."""
    bare = []
    for path in PACKAGE.rglob("*.py"):
        where = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and where != "xmosaic.kernels.reference":
                bare.append(f"{where}.{node.name}")
            for method in node.body if isinstance(node, ast.ClassDef) and where != "xmosaic.model" else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    bare += [] if ast.get_docstring(method) else [f"{where}.{node.name}.{method.name}"]
    assert bare == []


def test_forecast_is_callable_however_it_is_reached():
    """A submodule of the same name is bound to the package once something imports it."""
    module = importlib.import_module("xmosaic.forecast")
    assert callable(module)
    assert callable(xmosaic.forecast)


# ------------------------------------------------------------------------------------------------------ accessor


def _parameters(function, skip: int) -> list[tuple]:
    return [(p.name, p.kind, p.default) for p in list(inspect.signature(function).parameters.values())[skip:]]


@pytest.mark.parametrize(
    ("method", "home", "name"),
    [
        (DatasetAccessor.forecast, "forecast", "forecast"),
        (DatasetAccessor.check, "forecast", "check"),
        (DatasetAccessor.to_healpix, "healpix", "to_healpix"),
        (DatasetAccessor.to_dialect, "dialects", "to_dialect"),
    ],
)
def test_accessor_has_the_signature_of_the_function(method, home, name):
    """Minus self here and the Dataset there."""
    function = getattr(importlib.import_module(f"xmosaic.{home}"), name)
    assert _parameters(method, 1) == _parameters(function, 1)


@pytest.mark.parametrize(
    ("home", "name", "arguments"),
    [
        ("forecast", "forecast", {"lead": "3D", "members": 7, "seed": 5, "variables": ["z500"], "grid": "input"}),
        ("forecast", "check", {"model": "bundled", "time": "2012-04-12"}),
        ("healpix", "to_healpix", {"nside": 4, "method": "nearest"}),
        ("healpix", "to_latlon", {"grid": (8, 5), "method": "bilinear"}),
        ("dialects", "to_dialect", {"dialect": "ecmwf"}),
    ],
)
def test_accessor_delegates(monkeypatch, home, name, arguments):
    """Every argument arrives, the object first, and the function's answer comes back."""
    module = importlib.import_module(f"xmosaic.{home}")
    signature, answer, seen = inspect.signature(getattr(module, name)), object(), {}

    def stand_in(*args, **kwargs):
        seen.update(signature.bind(*args, **kwargs).arguments)
        return answer

    monkeypatch.setattr(module, name, stand_in)
    ds = xr.Dataset()
    assert getattr(ds.mosaic, name)(**arguments) is answer
    assert next(iter(seen.values())) is ds
    assert arguments.items() <= seen.items()


@pytest.mark.parametrize(
    "name", [n for n, _ in inspect.getmembers(_Diagnostics, inspect.isfunction)] + ["mass_drift", "conservation"]
)
def test_accessor_delegates_diagnostics(monkeypatch, name):
    """The object first, then the arguments by place, then the options; the function's answer comes back."""
    from xmosaic import diagnostics

    answer, seen, ds = object(), {}, xr.Dataset()
    signature = inspect.signature(getattr(diagnostics, name))
    monkeypatch.setattr(diagnostics, name, lambda *a, **k: seen.update(signature.bind(*a, **k).arguments) or answer)
    method = getattr(ds.mosaic, name)
    places = [p for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
    given = {p.name: object() for p in places}
    assert method(*given.values()) is answer
    assert next(iter(seen.values())) is ds
    assert given.items() <= seen.items()


@pytest.mark.parametrize("name", [n for n, _ in inspect.getmembers(_Plots, inspect.isfunction) if n[0] != "_"])
def test_accessor_delegates_pictures(monkeypatch, name):
    from xmosaic import plot

    answer, seen, ds = object(), {}, xr.Dataset()
    signature = inspect.signature(getattr(plot, name))
    monkeypatch.setattr(plot, name, lambda *a, **k: seen.update(signature.bind(*a, **k).arguments) or answer)
    method = getattr(ds.mosaic.plot, name)
    given = {p.name: object() for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert method(*given.values()) is answer
    assert next(iter(seen.values())) is ds
    assert given.items() <= seen.items()


def test_accessor_keeps_no_state_and_never_raises_on_making():
    for obj in (xr.Dataset(), xr.DataArray()):
        assert vars(obj.mosaic).keys() == {"_obj"}


@pytest.mark.parametrize("accessor", [DatasetAccessor, DataArrayAccessor])
def test_accessor_methods_are_documented(accessor):
    for name, member in inspect.getmembers(accessor):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


# ----------------------------------------------------------------------------------------------------- packaging


def test_package_data_is_there():
    files = resources.files("xmosaic")
    for name in ("py.typed", "data/bundled.safetensors", "data/sample.nc"):
        assert files.joinpath(name).is_file(), name


def test_package_data_goes_into_the_wheel():
    """What isn't Python in the package is matched by the patterns of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for pattern in settings["package-data"]["xmosaic"] for path in PACKAGE.glob(pattern)}
    other = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert other <= shipped
    assert settings["packages"]["find"]["include"] == ["xmosaic*"]


def test_the_bundled_files_are_small():
    assert sum(p.stat().st_size for p in (PACKAGE / "data").iterdir() if p.is_file()) < 20e6


def test_constraints_pin_every_requirement():
    """Each package that pyproject.toml names has one exact version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for some in project["optional-dependencies"].values() for r in some)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {_plain(line.split("==")[0]) for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(;.*| ;.*)?", line) for line in lines)
    assert {_plain(re.split(r"[\[<>=;! ]", r)[0]) for r in wanted} <= pinned


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_forbidden_names():
    """No such package, and gone from Triton."""
    wrong = re.compile(r"proper" r"score\b|make_block_" r"ptr|tl\.adv" r"ance")
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt", *PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [p.name for p in files if wrong.search(p.read_text())] == []
