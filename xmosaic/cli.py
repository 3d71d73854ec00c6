"""Command line: ``xmosaic forecast | check | evaluate | explore | train | convert | demo``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from . import __version__
from .errors import ArgumentError, DatasetError, MosaicError, StoreError, explain
from .explore.command import add_arguments, options_of

if TYPE_CHECKING:
    from .training import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the arguments of the process.

    Returns
    -------
    int
        0: done. 1: the text on standard error says what is wrong. 2: wrong usage. 130: interrupted.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except MosaicError as error:
        print(f"xmosaic: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("xmosaic: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xmosaic", description="Ensemble weather forecasts from a Dataset.")
    parser.add_argument("--version", action="version", version=f"xmosaic {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("forecast", help="make an ensemble forecast and write it to a Zarr store")
    command.add_argument("input", help="Zarr store or netCDF file with the analyses")
    command.add_argument("output", help="Zarr store to write; one that the same command began is gone on with")
    command.add_argument("--lead", required=True, help="how far, such as 10D or 240h")
    command.add_argument("--members", type=int, required=True, help="size of the ensemble")
    command.add_argument("--variables", nargs="+", help="variables or channels to keep; all by default")
    command.add_argument("--levels", nargs="+", type=int, help="levels to keep, in hPa; all by default")
    command.add_argument("--every", help="keep only leads that are multiples of this")
    command.add_argument("--leads", nargs="+", help="keep only these leads, such as 1D 5D 10D")
    command.add_argument("--keep-bits", type=int, help="round to so many bits of the mantissa; none by default")
    command.add_argument("--seed", type=int, default=0, help="0 by default")
    command.add_argument("--batch-size", type=int, help="members that run together; by default as fits the device")
    command.add_argument("--device", help="such as cpu, cuda:1 or cuda:0,cuda:1; by default all GPUs, else the CPU")
    kinds = "float32, bfloat16, float16, float64 or float8; by default bfloat16 on a GPU, float32 on a CPU"
    command.add_argument("--dtype", help=kinds)
    command.add_argument("--grid", choices=("model", "input"), default="model", help="grid of the result")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_model_and_time(command)
    command.set_defaults(run=_forecast)

    command = commands.add_parser("check", help="say what a forecast would use of a Dataset, and every problem")
    command.add_argument("input", help="Zarr store or netCDF file")
    _add_model_and_time(command)
    command.set_defaults(run=_check)

    command = commands.add_parser("evaluate", help="score forecasts against analyses: tables and a report")
    command.add_argument("forecasts", nargs="+", help="Zarr stores or netCDF files, as PATH or NAME=PATH")
    command.add_argument("--truth", required=True, help="Zarr store or netCDF file with the analyses")
    command.add_argument("--out", default="evaluation", help="folder for scores.nc, scores.md and report.html")
    command.add_argument("--variables", nargs="+", help="variables to score; all by default")
    command.add_argument("--scores", nargs="+", help="such as rmse crps spread_skill; the usual ones by default")
    command.add_argument("--persistence", action="store_true", help="score persistence of the truth too")
    command.add_argument("--climatology", metavar="HISTORY", help="score the climatology of these analyses too")
    command.add_argument("--confidence", type=float, default=0.95, help="of the intervals over starts; 0.95 by default")
    command.add_argument("--no-spectra", action="store_true", help="leave the spectra out")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("explore", help="make one HTML page of a forecast: a globe to turn, offline")
    add_arguments(command)
    command.set_defaults(run=_explore)

    command = commands.add_parser("train", help="train a model on analyses; torchrun … -m xmosaic train for many GPUs")
    command.add_argument("data", nargs="+", help="Zarr stores or netCDF files with analyses, also gs://, put together")
    command.add_argument("--recipe", choices=("small", "paper_era5", "paper_hres"), default="small")
    command.add_argument("--out", required=True, help="folder for checkpoints, history and model.safetensors")
    command.add_argument("--train", nargs=2, metavar=("FIRST", "LAST"), help="training period; needed by small")
    command.add_argument("--validation", nargs=2, metavar=("FIRST", "LAST"), help="validation period; needed by small")
    command.add_argument("--test", nargs=2, metavar=("FIRST", "LAST"), help="period that is never read")
    command.add_argument(
        "--variables", nargs="+", help="variables to predict, with all their levels; all known by default"
    )
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="such as size=4 updates=2000 seed=1"
    )
    command.add_argument("--init", help="model to begin with: bundled, era5, hres or a path")
    command.add_argument("--resume", action="store_true", help="go on with the run in --out")
    command.add_argument("--device", help="such as cpu or cuda:0")
    command.add_argument(
        "--parallel", choices=("ddp", "fsdp"), default="ddp", help="whole weights on each rank (default), or shards"
    )
    command.add_argument("--member-ranks", type=int, help="ranks that share the members of a sample; as few as can be")
    command.add_argument("--workers", type=int, default=4, help="threads that read ahead; 4 by default")
    command.add_argument("--tensorboard", action="store_true", help="write losses for TensorBoard too")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_train)

    command = commands.add_parser("convert", help="make one self-describing file of the published ones")
    command.add_argument("source", help="folder with the published files, one of its .pt files, or era5 or hres")
    command.add_argument("target", help="file to write, ending in .safetensors")
    command.add_argument("--variant", choices=("era5", "hres"), help="which one, if the folder holds both")
    command.set_defaults(run=_convert)

    command = commands.add_parser(
        "demo", help="24 members, 10 days, bundled model and sample, verified: a store and a picture"
    )
    command.add_argument("--out", default=".", help="folder for forecast.zarr and forecast.png; here by default")
    command.add_argument("--members", type=int, default=24)
    command.add_argument("--lead", default="10D")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_demo)
    return parser


def _add_model_and_time(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="bundled, era5, hres or a path; by default the one that fits the data")
    command.add_argument("--time", nargs="+", help="start or starts, such as 2020-01-01T00; the last by default")


def _open(path: str) -> xr.Dataset:
    """A Dataset from a Zarr store or a netCDF file, lazily."""
    from .store.place import label, readable

    local = "://" not in path
    source = readable(path)
    if local and not Path(path).exists():
        raise DatasetError(explain(f"There is no {path}", expected="a Zarr store or a netCDF file"))
    try:
        if local and Path(path).is_file():
            return xr.open_dataset(path, chunks={})
        # consolidated metadata spare a cloud store many small reads; beside a local disk they save nothing
        return xr.open_zarr(source, consolidated=False if local else None)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = label((str(error).splitlines() or [type(error).__name__])[0])
        missing = not local and isinstance(error, ImportError)
        do = "pip install 'xmosaic[cloud]' brings what reads gs:// and s3://" if missing else ""
        raise DatasetError(
            explain(f"{label(path)} can't be opened", got=reason, expected="a Zarr store or a netCDF file", do=do)
        ) from error


def _time(options: argparse.Namespace) -> str | list[str] | None:
    return options.time[0] if options.time and len(options.time) == 1 else options.time


def _forecast(options: argparse.Namespace) -> int:
    from .forecast import forecast

    result = forecast(
        _open(options.input),
        options.lead,
        options.members,
        model=options.model,
        time=_time(options),
        seed=options.seed,
        variables=options.variables,
        levels=options.levels,
        every=options.every,
        leads=options.leads,
        keep_bits=options.keep_bits,
        batch_size=options.batch_size,
        device=options.device,
        dtype=options.dtype,
        grid=options.grid,
        store=options.output,
        progress=not options.quiet,
    )
    print(result.mosaic)
    print(f"written to {options.output}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from .forecast import check

    report = check(_open(options.input), options.model, _time(options))
    print(report)
    return 0 if report.ok else 1


def _evaluate(options: argparse.Namespace) -> int:
    from .diagnostics.baselines import climatology, persistence
    from .diagnostics.sums import USUAL
    from .evaluation import benchmark
    from .report import to_markdown, write_report

    truth = _open(options.truth)
    forecasts = {}
    for given in options.forecasts:
        name, _, path = given.rpartition("=")
        name = name or Path(path).stem
        if name in forecasts:
            raise ArgumentError(explain(f"Two forecasts are called {name!r}", do="Give names, such as ours=fc.zarr"))
        forecast = _open(path)
        forecasts[name] = forecast[options.variables] if options.variables else forecast
    first = next(iter(forecasts.values()))
    if options.persistence:
        forecasts["persistence"] = persistence(truth, like=first)
    if options.climatology:
        forecasts["climatology"] = climatology(_open(options.climatology), like=first)
    folder = _folder(options.out)
    result = benchmark(
        forecasts,
        truth,
        options.scores or USUAL,
        spectra=not options.no_spectra,
        confidence=options.confidence,
        progress=not options.quiet,
    )
    try:
        result.to_netcdf(folder / "scores.nc")
        (folder / "scores.md").write_text(to_markdown(result), encoding="utf-8")
    except OSError as error:
        raise StoreError(explain(f"The scores can't be written to {folder}", got=str(error))) from error
    write_report(result, folder / "report.html")
    print(to_markdown(result))
    print(f"written to {folder}: scores.nc, scores.md, report.html")
    return 0


def _explore(options: argparse.Namespace) -> int:
    from .explore import explore

    truth = None if options.truth is None else _open(options.truth)
    page = explore(_open(options.forecast), truth, **options_of(options))
    print(f"{page.nbytes / 1e6:.1f} MB written to {page.save(options.html)}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from .training import train

    data = [_open(path) for path in options.data]
    model = train(
        data,
        _recipe(options, data[0]),
        out=options.out,
        resume=options.resume,
        init=options.init,
        device=options.device,
        parallel=options.parallel,
        member_ranks=options.member_ranks,
        workers=options.workers,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
    )
    if os.environ.get("RANK", "0") == "0":
        print(model)
        print(f"written to {Path(options.out) / 'model.safetensors'}")
    return 0


def _recipe(options: argparse.Namespace, ds: xr.Dataset) -> TrainConfig:
    from .dialects import known_variables
    from .training import recipes

    settings: dict[str, object] = {}
    for given in options.set:
        name, equals, value = given.partition("=")
        if not equals:
            raise ArgumentError(explain(f"--set {given!r} can't be read", expected="NAME=VALUE, such as updates=2000"))
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    periods: dict[str, object] = {
        n: tuple(p) for n in ("train", "validation", "test") if (p := getattr(options, n)) is not None
    }
    if options.recipe == "small" and (missing := [n for n in ("train", "validation") if n not in periods]):
        raise ArgumentError(
            explain(f"--{missing[0]} is needed", do=f"Pass --{missing[0]} FIRST LAST, such as 2018 2018")
        )
    if options.variables:
        known = known_variables(ds)
        if unknown := [v for v in options.variables if v not in known]:
            raise ArgumentError(explain(f"Variable {unknown[0]!r} isn't in the data", expected=", ".join(known)))
        settings["variables"] = {v: known[v] for v in options.variables}
    recipe = getattr(recipes, options.recipe)
    return _made(recipe, settings | _beginning(options.init, recipe, settings), periods)


def _beginning(init: str | None, recipe: Any, settings: dict[str, object]) -> dict[str, object]:
    """What a model to begin with settles: the network is the model's, unless one is asked for."""
    from .checkpoint import load_model

    shaping = {"network", "size", "nside", "neighbors", "history", "step_hours", "residual", "init"}
    if init is None or shaping & set(settings):
        return {}
    if "init" in inspect.signature(recipe).parameters:
        return {"init": init}
    return {"network": load_model(init).config}


def _made(recipe: Any, settings: dict[str, object], periods: dict[str, object]) -> TrainConfig:
    """A recipe's configuration, with the fields changed that aren't arguments of its own."""
    from .training import TrainConfig

    parameters = inspect.signature(recipe).parameters
    own = {n: v for n, v in settings.items() if n in parameters}
    rest = {n: v for n, v in settings.items() if n not in own}
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := [n for n in rest if n not in fields]:
        expected = ", ".join(sorted({*fields, *parameters} - {"changes"}))
        raise ArgumentError(explain(f"--set {unknown[0]}=… names nothing", expected=expected))
    config: TrainConfig = dataclasses.replace(recipe(**periods, **own), **rest)
    return config


def _folder(path: str) -> Path:
    """A folder to write to, made if need be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(explain(f"The folder {folder} can't be made", got=str(error))) from error
    return folder


def _convert(options: argparse.Namespace) -> int:
    from .checkpoint import convert_published, load_model

    path = convert_published(options.source, options.target, variant=options.variant)
    print(load_model(path))
    print(f"written to {path}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    import matplotlib.pyplot as plt

    from .checkpoint import load_model
    from .choices import parse_lead
    from .data import open_sample
    from .forecast import forecast
    from .plot import stamps

    began = time.perf_counter()
    folder = _folder(options.out)
    store, picture = folder / "forecast.zarr", folder / "forecast.png"
    model, sample = load_model("bundled"), open_sample()
    lead = parse_lead("lead", options.lead)
    # the last start whose whole forecast the sample can verify
    times, history = sample["time"].to_index(), (model.config.num_history - 1) * model.step
    starts = times[(times >= times[0] + history) & (times <= times[-1] - lead)]
    if starts.empty:
        longest = f"at most {(times[-1] - times[0] - history).days}D"
        raise ArgumentError(explain("The sample can't verify this lead", got=options.lead, expected=longest))
    result = forecast(
        sample, options.lead, options.members, model=model, time=starts[-1], store=store, progress=not options.quiet
    )
    figure = stamps(result)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
    print(result.mosaic)
    print(_verification(result, sample))
    print(f"written to {store} and {picture} in {time.perf_counter() - began:.0f} s")
    return 0


def _verification(result: xr.Dataset, sample: xr.Dataset) -> str:
    """Scores of the demo's forecast beside persistence and the mean of the sample's days up to the start."""
    from .diagnostics.baselines import climatology, persistence
    from .evaluation import benchmark
    from .report import tables

    fields = [("geopotential", 500), ("temperature", 850), ("mean_sea_level_pressure", None)]
    truth = sample[[name for name, _ in fields]]
    ours, start = result[list(truth)].load(), result["time"].values
    forecasts = {
        "forecast": ours,
        "persistence": persistence(truth, like=ours),
        "climatology": climatology(truth.sel(time=slice(None, start)), like=ours, window=None),
    }
    scored = benchmark(
        forecasts, truth, ("rmse", "crps", "spread_skill"), spectra=False, mass=False, confidence=None, progress=False
    )
    lines = [
        "",
        "Held–Suarez atmosphere, not the Earth's weather. One start, against the truth that the package carries;",
    ]
    lines.append("climatology is the mean of the sample's days up to the start.")
    for title, header, rows in tables(scored, rows=fields):
        kept = [row for row in rows if any(cell != "–" for cell in row[2:])]
        widths = [max(len(row[k]) for row in [header, *kept]) for k in range(len(header))]
        lines += ["", title]
        for row in [header, *kept]:
            cells = [c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, ""])
