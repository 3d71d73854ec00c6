"""A benchmark as Markdown and as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from . import __version__
from .cards import duration
from .errors import ArgumentError, DatasetError, StoreError, explain
from .variables import listed

LEAD = "prediction_timedelta"
# What forecasters look at first; others follow if there is room.
HEADLINES = (
    ("geopotential", 500),
    ("temperature", 850),
    ("specific_humidity", 700),
    ("u_component_of_wind", 850),
    ("v_component_of_wind", 850),
    ("2m_temperature", None),
    ("10m_u_component_of_wind", None),
    ("10m_v_component_of_wind", None),
    ("mean_sea_level_pressure", None),
)
_DAYS = (1, 3, 5, 7, 10, 15)
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-size:.85rem;display:block;overflow-x:auto}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}img{max-width:100%}dt{font-weight:600}dd{margin:0 0 .3rem 0}
caption{text-align:left;font-weight:600;padding:.3rem 0}"""


def to_markdown(
    result: xr.Dataset,
    *,
    scores: str | Iterable[str] | None = None,
    rows: Iterable[tuple[str, int | None]] | None = None,
    leads: Iterable[Any] | None = None,
) -> str:
    """Tables of a benchmark in Markdown: one per score, spectral ratio and mass drift.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`.
    scores : str or iterable of str, optional
        By default all.
    rows : iterable of (variable, level), optional
        By default the usual headline fields that are there, or else all.
    leads : iterable of timedelta-like, optional
        By default 1, 3, 5, 7, 10 and 15 days as far as they are there, or else up to six of them.

    Returns
    -------
    str
        Estimates with their confidence interval, in the variables' units.

    Raises
    ------
    DatasetError
        If this is no result of `xmosaic.benchmark`.
    ArgumentError
        For a score, row or lead that is not in it.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> result = xmosaic.benchmark({"bundled": fc}, ds, "crps", spectra=False, mass=False, progress=False)
    >>> text = to_markdown(result, rows=[("temperature", 850)], leads=["1D"])
    >>> [line for line in text.splitlines() if line.startswith("| field")]
    ['| field | forecast | 1 day |']
    """
    return "\n".join(
        [f"# {result.attrs.get('title', 'Benchmark')}", "", *(f"* {k}: {v}" for k, v in _about(result)), ""]
        + [_markdown_table(*table) for table in tables(result, scores=scores, rows=rows, leads=leads)]
    )


def write_report(result: xr.Dataset, path: str | Path) -> Path:
    """A benchmark as one HTML page with its pictures inside; opens anywhere, offline.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`.
    path : str or Path
        File to write; its folder must exist.

    Returns
    -------
    Path

    Raises
    ------
    StoreError
        Where it can't be written.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> import tempfile
    >>> result = xmosaic.benchmark({"bundled": fc}, ds, "crps", spectra=False, mass=False, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(result, folder + "/report.html")
    ...     page.name, page.stat().st_size > 1000
    ('report.html', True)
    """
    title = html.escape(str(result.attrs.get("title", "Benchmark")))
    about = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in _about(result))
    pictures = "".join(f'<h2>{name}</h2><img alt="{name}" src="{_png(figure)}">' for name, figure in _figures(result))
    body = "".join(_html_table(*table) for table in tables(result))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{title}</h1><dl>{about}</dl>{pictures}<h2>Tables</h2>{body}</html>\n"
    )
    path = Path(path)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(explain(f"The report can't be written to {path}", got=str(error))) from error
    return path


Table = tuple[str, list[str], list[list[str]]]


def tables(result: xr.Dataset, *, scores: Any = None, rows: Any = None, leads: Any = None) -> list[Table]:
    """Caption, header and cells of every table."""
    if not {"forecast", "score", LEAD, "bound"} <= set(result.dims):
        expected = "a result of xmosaic.benchmark"
        raise DatasetError(explain("This is no benchmark", got=f"dimensions {listed(result.dims)}", expected=expected))
    there = [str(s) for s in result["score"].values]
    wanted = there if scores is None else [scores] if isinstance(scores, str) else list(scores)
    if unknown := [s for s in wanted if s not in there]:
        raise ArgumentError(explain(f"Score {unknown[0]!r} isn't in this benchmark", expected=listed(there)))
    chosen = _leads(result, leads)
    fields = _fields(result, rows)
    found = [_score_table(result, name, fields, chosen) for name in wanted]
    if any(f"{variable}_spectral_ratio" in result for variable, _ in fields):
        found.append(_ratio_table(result, fields, chosen))
    return [*found, _mass_table(result, chosen)] if "mass_drift" in result else found


def _score_table(result: xr.Dataset, score: str, fields: list[Any], leads: list[np.timedelta64]) -> Table:
    pick = {"score": score}
    lines = []
    for variable, level in fields:
        units = (
            result[variable].attrs.get("units", "") if str(result["score_units"].sel(score=score).item()) != "1" else ""
        )
        for name in result["forecast"].values:
            values = _at(result[variable].sel(pick), level).sel(forecast=name)
            lines.append([_named(variable, level, units), str(name), *(_cell(values.sel({LEAD: t})) for t in leads)])
    title = str(result["score_name"].sel(score=score).item()) if "score_name" in result.coords else score
    return title[:1].upper() + title[1:], ["field", "forecast", *map(_lead_text, leads)], lines


def _ratio_table(result: xr.Dataset, fields: list[Any], leads: list[np.timedelta64]) -> Table:
    lines = []
    for variable, level in fields:
        ratio = result[f"{variable}_spectral_ratio"].sel(bound="estimate")
        for name in result["forecast"].values:
            values = _at(ratio, level).sel(forecast=name)
            cells = []
            for lead in leads:
                here = values.sel({LEAD: lead}).isel(total_wavenumber=slice(1, None)).dropna("total_wavenumber")
                cells.append(f"{here.min().item():.2f} … {here.max().item():.2f}" if here.size else "–")
            lines.append([_named(variable, level, ""), str(name), *cells])
    title = "Power of members over the truth's: lowest and highest over total wavenumbers from 1"
    return title, ["field", "forecast", *map(_lead_text, leads)], lines


def _mass_table(result: xr.Dataset, leads: list[np.timedelta64]) -> Table:
    lines = []
    for variable, units in (("mass_drift", "hPa"), ("mass_drift_percent", "%")):
        for name in result["forecast"].values:
            values = result[variable].sel(forecast=name)
            lines.append([units, str(name), *(_cell(values.sel({LEAD: t}), "+.4f") for t in leads)])
    return "Drift of area-mean pressure since the start", ["units", "forecast", *map(_lead_text, leads)], lines


def _cell(values: xr.DataArray, number: str = "#.4g") -> str:
    middle, low, high = (float(values.sel(bound=b)) for b in ("estimate", "lower", "upper"))
    if not np.isfinite(middle):
        return "–"
    shown = f"{middle:{number}}".rstrip(".")
    return f"{shown} ({low:{number}} … {high:{number}})" if np.isfinite(low) else shown


def _about(result: xr.Dataset) -> list[tuple[str, str]]:
    rows = [(k, str(result.attrs[k])) for k in ("starts", "weights", "confidence", "nan_policy") if k in result.attrs]
    if "members" in result.coords:
        each = zip(result["forecast"].values, result["members"].values, strict=True)
        rows.insert(1, ("members", ", ".join(f"{name}: {int(m) or 'single forecast'}" for name, m in each)))
    proxy = result["mass_drift"].attrs.get("proxy") if "mass_drift" in result else None
    return [*rows, *([("mass", str(proxy))] if proxy else []), ("made with", f"xmosaic {__version__}")]


def _fields(result: xr.Dataset, rows: Any) -> list[tuple[str, int | None]]:
    scored = [str(n) for n in result.data_vars if "score" in result[n].dims]
    if rows is not None:
        given = [(str(v), level) for v, level in rows]
        for variable, level in given:
            if variable not in scored or ("level" in result[variable].dims) != (level is not None):
                expected = listed(scored)
                raise ArgumentError(
                    explain(f"{variable!r} at level {level} isn't in this benchmark", expected=expected)
                )
        return given
    usual = [(v, level) for v, level in HEADLINES if v in scored and _has_level(result[v], level)]
    if usual:
        return usual
    return [
        (v, level)
        for v in scored
        for level in (result["level"].values.tolist() if "level" in result[v].dims else [None])
    ]


def _has_level(field: xr.DataArray, level: int | None) -> bool:
    return ("level" in field.dims) == (level is not None) and (level is None or level in field["level"].values)


def _at(field: xr.DataArray, level: int | None) -> xr.DataArray:
    return field if level is None else field.sel(level=level)


def _leads(result: xr.Dataset, leads: Any) -> list[np.timedelta64]:
    there = list(result[LEAD].values.astype("timedelta64[ns]"))
    if leads is not None:
        wanted = [pd.Timedelta(lead).to_timedelta64().astype("timedelta64[ns]") for lead in leads]
        if missing := [t for t in wanted if t not in there]:
            got = _lead_text(missing[0])
            raise ArgumentError(explain(f"Lead {got} isn't in this benchmark", expected=listed(map(_lead_text, there))))
        return wanted
    usual = [t for d in _DAYS if (t := np.timedelta64(d, "D").astype("timedelta64[ns]")) in there]
    every = -(-len(there) // 6)
    return usual or there[every - 1 :: every]


def _lead_text(lead: np.timedelta64) -> str:
    return duration(pd.Timedelta(lead))


def _named(variable: str, level: int | None, units: str) -> str:
    at = f" {level:g} hPa" if level is not None else ""
    return f"{variable.replace('_', ' ')}{at}" + (f" [{units}]" if units else "")


def _markdown_table(title: str, header: list[str], lines: list[list[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in [header, rule, *lines]), ""])


def _html_table(title: str, header: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in lines)
    return f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _figures(result: xr.Dataset) -> list[tuple[str, Any]]:
    from .plot.scorecard import mass_panel, ratio_panels, score_panels

    fields = _fields(result, None)[:8]
    found = [("Scores by lead", score_panels(result, fields))]
    if any(f"{v}_spectral_ratio" in result for v, _ in fields):
        found.append(("Power over the truth's", ratio_panels(result, fields, _leads(result, None))))
    return [*found, ("Mass", mass_panel(result))] if "mass_drift" in result else found


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
