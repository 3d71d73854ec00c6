"""Reads a selection once, slab by slab, and packs it: fields, spectra, scores, limits of colours."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from ..diagnostics.layout import LEAD
from ..diagnostics.spectra import spectra
from ..diagnostics.sums import score_sums, scores_from
from ..errors import ArgumentError, DatasetError, explain
from ..plot.style import colours_of, units_text
from .pack import MISSING_FINE, count, plane_bytes, to_text
from .select import Projection, Selection, words_of

# Values of a slab that the limits of colours are taken from.
_SAMPLE = 4000
# Of scripts and style [bytes], about.
_CODE = 80_000
SCORES = {"crps": "CRPS", "rmse": "RMSE of the mean", "spread": "spread"}


class Block:
    """A channel at one start: what a viewer loads at a time.

    Parameters
    ----------
    None
        Slabs are added lead by lead.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[bytes]] = {"mean": [], "truth": [], "members": [], "spectrum": []}
        self.about: dict[str, list[Any]] = {key: [] for key in ("step", "fine", "offset", "truth", "spectrum")}
        self.scores: dict[str, list[float | None]] = {}
        self.samples: dict[str, list[np.ndarray]] = {"value": [], "spread": [], "difference": []}

    def add_fields(self, members: np.ndarray, truth: np.ndarray | None) -> None:
        """Fields of the next lead, dims (number, latitude, longitude) and (latitude, longitude)."""
        fields = count(members, truth)
        self.parts["mean"].append(plane_bytes(fields.mean))
        self.parts["members"].append(plane_bytes(fields.members))
        if fields.truth is not None:
            self.parts["truth"].append(plane_bytes(fields.truth))
        for key in ("step", "fine", "offset"):
            self.about[key].append(getattr(fields, key))
        self.about["truth"].append(truth is not None)
        self._sample(members, truth)

    def _sample(self, members: np.ndarray, truth: np.ndarray | None) -> None:
        members = members.reshape(len(members), -1)
        every = max(members.size // _SAMPLE, 1) | 1  # odd, so that it doesn't keep to some columns
        self.samples["value"].append(members.ravel()[::every])
        if len(members) > 1:
            self.samples["spread"].append(members.std(0, ddof=1)[:: max(members.shape[1] // _SAMPLE, 1) | 1])
        if truth is not None:
            self.samples["difference"].append((members - truth.ravel()).ravel()[::every])

    def add_spectrum(self, power: np.ndarray | None) -> None:
        """Power of the next lead, dims (members then mean then truth, wavenumber), as its logarithm in 65 000 steps."""
        if power is None:
            self.about["spectrum"].append(None)
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(power)
        logs[~np.isfinite(logs)] = np.nan
        if np.isnan(logs).all():
            self.about["spectrum"].append(None)
            return
        low, high = np.nanmin(logs), np.nanmax(logs)
        step = max((high - low) / 4000, 1e-3)  # a thousandth of a decade: a fifth of a percent
        counted = np.where(np.isnan(logs), MISSING_FINE, np.rint(np.nan_to_num((logs - low) / step)))
        self.parts["spectrum"].append(plane_bytes(counted.astype(np.int16)))
        self.about["spectrum"].append(
            {"rows": len(power), "wavenumbers": power.shape[1], "first": float(low), "step": float(step)}
        )

    def add_scores(self, scores: dict[str, float]) -> None:
        """Scores of the next lead; none where it has no truth."""
        leads = len(self.about["step"]) - 1
        for name in SCORES:
            value = scores.get(name, np.nan)
            self.scores.setdefault(name, [None] * leads).append(float(value) if np.isfinite(value) else None)

    @property
    def valued(self) -> bool:
        """Whether there is any value."""
        return any(np.isfinite(sample).any() for sample in self.samples["value"])

    def text(self) -> str:
        """All of it, deflated: mean, truth, members, spectra, each lead after lead."""
        return to_text(b"".join(b"".join(self.parts[key]) for key in ("mean", "truth", "members", "spectrum")))


def build(chosen: Selection, max_bytes: int, progress: bool) -> tuple[dict[str, Any], list[str]]:
    """What the page is told, ready for JSON, and the packed blocks.

    Parameters
    ----------
    chosen : Selection
    max_bytes : int
        Raises where the page would be larger.
    progress : bool
        Whether to show a progress bar after the first second.

    Returns
    -------
    about : dict
    blocks : list of str

    Raises
    ------
    ArgumentError
        With what it would take, and what to select.
    """
    ds, projection = chosen.forecast, Projection(chosen.forecast)
    notes = [*chosen.notes, projection.note]
    fields: list[dict[str, Any]] = []
    texts: list[str] = []
    total = done = 0
    slabs = sum(ds.sizes["time"] * ds.sizes[LEAD] for _ in ds.data_vars)
    with tqdm(total=slabs, desc="explore", unit="field", disable=not progress, delay=1.0, dynamic_ncols=True) as bar:
        for name in ds.data_vars:
            blocks = _variable(chosen, name, projection, notes, bar)
            field, packed = _described(ds[name], blocks, len(texts))
            fields.append(field)
            texts += packed
            total += sum(map(len, packed))
            done += len(blocks)  # with those that held no value
            _check_size(total, done, ds, max_bytes)
    about = {
        "fields": fields,
        "latitude": projection.latitude.round(6).tolist(),
        "longitude": projection.longitude.round(6).tolist(),
        "notes": [note for note in dict.fromkeys(notes) if note],
    }
    return about, texts


def _check_size(total: int, done: int, ds: xr.Dataset, max_bytes: int) -> None:
    """Raise as soon as it is sure: variables deflate unlike each other, so what is to come is known to a third only."""
    needed = round(total / done * _levels(ds) * ds.sizes["time"])
    if total > max_bytes or needed > 1.5 * max_bytes:
        raise too_large(ds, needed + _CODE, max_bytes)


def _levels(ds: xr.Dataset) -> int:
    return sum(ds[name].sizes.get("level", 1) for name in ds.data_vars)


def too_large(ds: xr.Dataset, needed: int, max_bytes: int) -> ArgumentError:
    """An error that says how large the page would be, and how many members or leads would fit."""
    share = 0.97 * max(max_bytes - _CODE, 0) / max(needed - _CODE, 1)
    # mean, truth and spectra take about what two members do
    members, leads = int((ds.sizes["number"] + 2) * share - 2), int(ds.sizes[LEAD] * share)
    counts = {"start": ds.sizes["time"], "variable": len(ds.data_vars), "level": ds.sizes.get("level", 1)}
    counts |= {"lead": ds.sizes[LEAD], "member": ds.sizes["number"]}
    sizes = ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    fit = [f"members={members}"] * (members > 0) + [f"{leads} of the leads"] * (leads > 0)
    fitting = f" ({' or '.join(fit)} would fit)" if fit else ""
    return ArgumentError(
        explain(
            "The page would be too large",
            got=f"about {needed / 1e6:.3g} MB for {sizes}",
            expected=f"at most max_bytes, {max_bytes / 1e6:g} MB",
            do=f"Select with variables=, levels=, members=, leads= or time={fitting}, regrid to fewer points with "
            f"to_latlon, or pass max_bytes={needed * 1.1:.2g}",
        )
    )


def _variable(
    chosen: Selection, name: Hashable, projection: Projection, notes: list[str], bar: tqdm
) -> dict[tuple[int, int], Block]:
    """Blocks of a variable by start and level; each slab is read once."""
    field = chosen.forecast[name]
    levels = range(field.sizes.get("level", 1))
    blocks = {(start, level): Block() for start in range(field.sizes["time"]) for level in levels}
    for start in range(field.sizes["time"]):
        for lead in range(field.sizes[LEAD]):
            slab = _leveled(field.isel({"time": start, LEAD: lead}, drop=True).load())
            truth = _truth_of(chosen, name, start, lead)
            power, scores = _power(slab, truth, projection.resolved, notes), _scores(slab, truth, notes)
            ours, theirs = projection(slab), None if truth is None else projection(truth)
            there = [] if truth is None else truth["level"].values.tolist()
            for level, label in enumerate(slab["level"].values.tolist()):
                block, k = blocks[start, level], there.index(label) if label in there else None
                block.add_fields(ours[:, level], None if theirs is None or k is None else theirs[k])
                block.add_spectrum(None if power is None else power[level])
                block.add_scores({} if k is None else {key: float(by_level[k]) for key, by_level in scores.items()})
            bar.update()
    return blocks


def _leveled(slab: xr.DataArray) -> xr.DataArray:
    """With a level, if only a made-up one; members first, then levels; nothing else but what is needed below."""
    if "level" not in slab.dims:
        slab = slab.drop_vars("level", errors="ignore").expand_dims(level=[0])
    slab = slab.drop_vars(["number", "valid_time", "time", LEAD], errors="ignore")
    return slab.transpose(*(d for d in ("number", "level") if d in slab.dims), ...).astype(np.float64)


def _truth_of(chosen: Selection, name: Hashable, start: int, lead: int) -> xr.DataArray | None:
    if chosen.truth is None or chosen.found is None or name not in chosen.truth or not chosen.found[start, lead]:
        return None
    return _leveled(chosen.truth[name].isel({"time": start, LEAD: lead}, drop=True).load())


def _power(ours: xr.DataArray, theirs: xr.DataArray | None, last: int | None, notes: list[str]) -> np.ndarray | None:
    """Power of each member, of their mean and of the truth, dims (level, row, wavenumber)."""
    rows = [ours, ours.mean("number").expand_dims("number")]
    if theirs is not None:
        rows.append(theirs.reindex(level=ours["level"]).transpose(*ours.dims[1:]).expand_dims("number"))
    together = xr.concat(rows, "number", join="override").assign_attrs(ours.attrs).rename(ours.name)
    try:
        power = spectra(together)
    except DatasetError as error:
        notes.append(f"No spectra: {error}")
        return None
    every = power.transpose("level", "number", "total_wavenumber").values
    return np.array(every if last is None else every[..., : last + 1])


def _scores(ours: xr.DataArray, theirs: xr.DataArray | None, notes: list[str]) -> dict[str, np.ndarray]:
    """Scores by level of the truth; of one member CRPS is the mean absolute error, and there is no spread."""
    if theirs is None:
        return {}
    several = ours.sizes["number"] > 1
    names = {"crps": "crps" if several else "biased_crps", "rmse": "rmse"} | ({"spread": "spread"} if several else {})
    wanted = list(names.values())
    try:
        found = scores_from(score_sums(ours.sel(level=theirs["level"]), theirs, wanted), wanted)
    except DatasetError as error:  # such as a region, whose cells' areas aren't known
        notes.append(f"No scores: {error}")
        return {}
    values = found[next(iter(found.data_vars))].transpose("score", "level")
    return {key: values.sel(score=name).values for key, name in names.items()}


# ------------------------------------------------------------------------------------------------ descriptions


def _described(
    field: xr.DataArray, blocks: dict[tuple[int, int], Block], first: int
) -> tuple[dict[str, Any], list[str]]:
    """A variable's description with those of its blocks, and their texts; blocks are counted from `first`."""
    every = list(range(field.sizes.get("level", 1)))
    # a forecast has NaN where a variable isn't on a level that another one is on
    levels = [k for k in every if any(b.valued for (_, own), b in blocks.items() if own == k)] or every
    kept = {(start, levels.index(level)): block for (start, level), block in blocks.items() if level in levels}
    texts = [block.text() for block in kept.values()]
    described = []
    for k, ((start, level), block) in enumerate(kept.items()):
        own = {"block": first + k, "start": start, "level": level, **block.about}
        described.append({**own, "scores": block.scores if any(block.about["truth"]) else None})
    units = units_text(field.attrs.get("units", "")).strip()
    about = {
        "name": str(field.name),
        "title": words_of(field),
        "units": "" if units == "1" else units,
        "levels": field["level"].values[levels].tolist() if "level" in field.dims else None,
        "limits": [_limits(field, [b for (_, own), b in kept.items() if own == k]) for k in range(len(levels))],
        "blocks": described,
    }
    return about, texts


def _limits(field: xr.DataArray, blocks: list[Block]) -> dict[str, Any]:
    """Colours and limits of one channel, the same at all leads and starts."""
    none = np.zeros(0)
    samples = {key: np.concatenate([none, *(x for b in blocks for x in b.samples[key])]) for key in blocks[0].samples}
    of_values = colours_of(xr.DataArray(samples["value"], attrs=field.attrs), field.name)
    low, high = float(of_values["vmin"]), float(of_values["vmax"])
    if not high > low:
        low, high = low - (abs(low) * 1e-3 or 1.0), high + (abs(high) * 1e-3 or 1.0)
    top = {key: _quantile(np.abs(samples[key]), q) for key, q in (("spread", 0.995), ("difference", 0.99))}
    return {
        "value": {"colours": of_values["cmap"], "low": low, "high": high},
        "spread": {"colours": "magma_r", "low": 0.0, "high": top["spread"]},
        "difference": {"colours": "RdBu_r", "low": -top["difference"], "high": top["difference"]},
        "probability": {"colours": "magma_r", "low": 0.0, "high": 100.0},
    }


def _quantile(values: np.ndarray, q: float) -> float:
    finite = values[np.isfinite(values)]
    return (float(np.quantile(finite, q)) if finite.size else 0.0) or 1.0
