"""One HTML file of the packed blocks, the description, and the scripts and styles in assets/."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from typing import Any

import numpy as np
import xarray as xr

from .. import __version__
from ..diagnostics.layout import LEAD
from ..plot.style import coastlines, lead_text, untrained

# In this order they are one script; each uses what stands in those before it.
SCRIPTS = ("decode.js", "sphere.js", "colours.js", "fields.js", "globe.js", "chart.js", "panels.js", "app.js")
_MAPS = 256


def compose(forecast: xr.Dataset, about: dict[str, Any], blocks: list[str]) -> tuple[str, str]:
    """The page and its title.

    Parameters
    ----------
    forecast : Dataset
        In canonical dimensions; read for its labels and attributes only.
    about : dict
        Of `build`; must go into JSON.
    blocks : list of str
        Packed.

    Returns
    -------
    page, title : str

    Notes
    -----
    The page's own policy (Content-Security-Policy) allows this one script and style by their digests, and no request to
    anywhere: text of the Dataset that came to be taken for a script wouldn't run.
    """
    title = str(forecast.attrs.get("title") or "Forecast")
    described = {"title": title, **_labels(forecast), **about, "colours": _colour_maps(about)}
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();"
    style = _asset("page.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = "\n".join(f'<script type="text/plain" id="block-{k}">{text}</script>' for k, text in enumerate(blocks))
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "about": _json(described),
        "blocks": data,
        "script": script,
    }
    page = _asset("page.html")
    for key, text in parts.items():
        before, after = page.split(f"%{key}%", 1)
        page = before + text.replace("%", "\0") + after  # a part's own text is no place for the next
    return page.replace("\0", "%"), title


def _labels(ds: xr.Dataset) -> dict[str, Any]:
    leads = ds[LEAD].values
    starts = ds["time"].values
    dated = starts.dtype.kind == "M"
    return {
        "leads": [lead_text(x) for x in leads],
        "hours": [float(np.timedelta64(x) / np.timedelta64(1, "h")) for x in leads],
        "starts": [_time_text(t) for t in starts] if dated else [str(t)[:16] for t in starts],
        "valid": [[_time_text(t + x) if dated else "" for x in leads] for t in starts],
        "members": [str(m) for m in ds["number"].values],
        "facts": _facts(ds),
        "warning": untrained(ds),
        "coastlines": [np.round(line, 2).tolist() for line in coastlines()],
    }


def _time_text(time: Any) -> str:
    return str(np.datetime_as_string(time, unit="m")).replace("T", " ") + " UTC"


def _facts(ds: xr.Dataset) -> list[tuple[str, str]]:
    """What the forecast says of itself."""
    rows = [("Source", "source"), ("Seed", "seed"), ("Licence", "license"), ("Comment", "comment")]
    rows += [("Institution", "institution"), ("References", "references"), ("History", "history")]
    found = [(label, str(ds.attrs[key])) for label, key in rows if str(ds.attrs.get(key, ""))]
    return [*found, ("Page", f"made by xmosaic {__version__}")]


def _colour_maps(about: dict[str, Any]) -> dict[str, str]:
    """Colours of each map in use, as one string of hexadecimal digits."""
    import matplotlib as mpl

    names = {limits["colours"] for field in about["fields"] for own in field["limits"] for limits in own.values()}
    found = {}
    for name in sorted(names):
        colours = mpl.colormaps[name](np.linspace(0, 1, _MAPS))[:, :3]
        found[name] = (colours * 255).round().astype(np.uint8).tobytes().hex()
    return found


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(described: dict[str, Any]) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(described, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
