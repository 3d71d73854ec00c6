"""The history of a training run as a labelled Dataset, and its picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..plot.style import styled
from ..variables import Schema
from .folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .validate import Validation

_ABOUT = {
    "loss": ("loss of the batch", "1"),
    "learning_rate": ("learning rate", "1"),
    "gradient_norm": ("norm of the gradient before clipping", "1"),
    "seconds": ("time of the update", "s"),
    "waited": ("part of it spent waiting for data", "s"),
    "samples": ("samples of the update", "1"),
    "stage": ("stage of the training", "1"),
    "validation_crps": ("fair CRPS on the validation period, α-weighted, normalised units", "1"),
    "validation_crps_by_channel": ("fair CRPS on the validation period, normalised units", "1"),
    "spread_skill": ("spread/skill ratio on the validation period", "1"),
    "power_ratio": ("power of members over the truth's, upper half of the zonal wavenumbers", "1"),
    "loss_by_channel": ("loss of the batch, without α", "1"),
}


# Dimension of what is known of validations.
_CHECKED = "validation_update"
# Losses of every channel are kept of each so many updates.
_CHANNELS_EVERY = 10


class Journal:
    """What a run writes down while it goes, for `read_history`, the bar and TensorBoard.

    Parameters
    ----------
    folder : RunFolder, optional
    first : bool
        Whether this rank writes; every rank remembers.
    lines : list of dict
        What was written before.
    tensorboard : bool
    """

    def __init__(self, folder: RunFolder | None, first: bool, lines: list[dict[str, Any]], tensorboard: bool) -> None:
        self.folder, self.first, self.lines = folder, first, lines
        self._board = _board(folder, first) if tensorboard and folder is not None else None

    def add(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self.lines.append(line)
        if self.folder is not None and self.first:
            self.folder.append(line)

    def update(self, update: int, values: dict[str, Any], channels: Any, bar: Any) -> None:
        """Write down an update.

        Parameters
        ----------
        update : int
            Its number, from 1.
        values : dict
            See `history_of`.
        channels : Tensor, (channel,)
            Losses.
        bar : tqdm
        """
        bar.update()
        line = {"kind": "update", "update": update} | values
        if update % _CHANNELS_EVERY == 1:
            line["channels"] = channels.tolist()
        self.add(line)
        speed = values["samples"] / values["seconds"]
        text = f"loss {values['loss']:.4f}, rate {values['learning_rate']:.2g}, {speed:.3g} samples/s"
        bar.set_postfix_str(text, refresh=False)
        if self._board is not None:
            for name in ("loss", "learning_rate"):
                self._board.add_scalar(f"train/{name}", values[name], update)

    def validation(self, update: int, found: Validation) -> None:
        """Write down the scores of a validation."""
        lists = {"channels": found.crps, "spread_skill": found.spread_skill, "power_ratio": found.power_ratio}
        line = {"kind": "validation", "update": update, "crps": found.total}
        self.add(line | {name: values.tolist() for name, values in lists.items()})
        if self._board is not None:
            self._board.add_scalar("validation/crps", found.total, update)

    def close(self) -> None:
        """End what TensorBoard reads."""
        if self._board is not None:
            self._board.close()


def _board(folder: RunFolder, first: bool) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        do = "pip install tensorboard, or leave tensorboard=True out"
        raise ArgumentError(explain("TensorBoard isn't installed", do=do)) from None
    return SummaryWriter(str(folder.path / "tensorboard")) if first else None


def history_of(lines: list[dict[str, Any]], schema: Schema) -> xr.Dataset:
    """A history from its lines.

    Parameters
    ----------
    lines : list of dict
    schema : Schema

    Returns
    -------
    Dataset, dims (update), (validation_update) and channel
        Validations by the updates done before them; 0 is what a run with ``init=`` began with. Starts of samples that
        gaps in the data left out are counted in the attribute ``left_out``, if there are any.
    """
    updates = [line for line in lines if line["kind"] == "update"]
    checks = [line for line in lines if line["kind"] == "validation"]
    channels = [c.name for c in schema.state]
    names = ("stage", "loss", "learning_rate", "gradient_norm", "seconds", "waited", "samples")
    found: dict[str, Any] = {name: ("update", np.array([line[name] for line in updates])) for name in names}
    rows = [line.get("channels") or [np.nan] * len(channels) for line in updates]
    found["loss_by_channel"] = (("update", "channel"), np.array(rows, dtype=np.float64).reshape(-1, len(channels)))
    found["validation_crps"] = (_CHECKED, np.array([line["crps"] for line in checks], dtype=np.float64))
    for name, key in (("validation_crps_by_channel", "channels"), ("spread_skill",) * 2, ("power_ratio",) * 2):
        values = np.array([line[key] for line in checks], dtype=np.float64).reshape(-1, len(channels))
        found[name] = ((_CHECKED, "channel"), values)
    coords: dict[str, Any] = {"channel": channels}
    for dim, some, text in (("update", updates, "updates done"), (_CHECKED, checks, "updates before the validation")):
        numbers = np.array([line["update"] for line in some], dtype=np.int64)
        coords[dim] = (dim, numbers, {"long_name": text, "units": "1"})
    # a run that goes on at the beginning of a stage says it once more
    gaps = [f"stage {s['stage']}, {s['period']}: {s['why']}" for s in lines if s["kind"] == "left out"]
    ds = xr.Dataset(found, coords, {"left_out": "; ".join(dict.fromkeys(gaps))} if gaps else None)
    for name, (text, units) in _ABOUT.items():
        ds[name].attrs = {"long_name": text, "units": units}
    return ds


def read_history(out: str | os.PathLike[str]) -> xr.Dataset:
    """History of a run from its folder, also while it runs.

    Parameters
    ----------
    out : path
        As given to `xmosaic.train`.

    Returns
    -------
    Dataset, dims (update), (validation_update) and channel
        ``history.sel(validation_update=100)`` is the validation after 100 updates.

    Raises
    ------
    DatasetError
        If the folder holds no history.

    Examples
    --------
    >>> import tempfile
    >>> from xmosaic.errors import DatasetError
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         read_history(folder)
    ...     except DatasetError as error:
    ...         print("holds no history" in str(error))
    True
    """
    folder = RunFolder(out)
    lines = folder.lines()
    if not lines:
        raise DatasetError(explain(f"{out} holds no history of a training run"))
    head = next((line for line in lines if line["kind"] == "schema"), None)
    if head is None:
        raise DatasetError(explain(f"The history in {out} doesn't begin with its channels"))
    return history_of(lines, Schema.from_dict(head["schema"]))


@styled
def plot_history(history: Any) -> Figure:
    """Loss, validation CRPS, spread/skill and power ratio against updates.

    Parameters
    ----------
    history : Dataset, Model or path
        Of `read_history`; a model that `xmosaic.train` has just returned; or the folder of a run.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If there is no history in it.

    Examples
    --------
    >>> import tempfile
    >>> import xmosaic
    >>> config = xmosaic.recipes.small(
    ...     0.01, train=("2012-04-10", "2012-05-09"), validation=("2012-05-10", "2012-05-19"),
    ...     variables={"2m_temperature": None}, nside=4, updates=2, validation_samples=1,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = xmosaic.train(xmosaic.open_sample(), config, out=folder + "/run", progress=False)
    ...     figure = plot_history(folder + "/run")
    """
    if isinstance(history, str | os.PathLike):
        history = read_history(history)
    ds = getattr(history, "history", history)
    if not isinstance(ds, xr.Dataset) or "loss" not in ds:
        got = type(history).__name__
        raise DatasetError(
            explain("This has no history of training", got=got, expected="a folder, or what train returned")
        )
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = plt.figure(figsize=(9, 6), layout="constrained")
    (loss, crps), (skill, power) = figure.subplots(2, 2, sharex=True)
    _draw_loss(loss, ds["loss"])
    crps.plot(ds["validation_update"], ds["validation_crps"], color="#D55E00", marker="o", markersize=3)
    crps.set(ylabel="validation CRPS [1]")
    for ax, name in ((skill, "spread_skill"), (power, "power_ratio")):
        for k, channel in enumerate(ds["channel"].values):
            label = None if k else "each channel"
            ax.plot(ds["validation_update"], ds[name].sel(channel=channel), color="0.7", linewidth=0.6, label=label)
        ax.plot(ds["validation_update"], ds[name].median("channel"), color="#009E73", label="median of channels")
        ax.axhline(1, color="black", linewidth=0.6)
        ax.set(ylabel=f"{name.replace('_', '/' if name == 'spread_skill' else ' ')} [1]", xlabel="update")
    skill.set_ylim(0, max(2.0, 1.05 * float(np.fmax.reduce(ds["spread_skill"].values, axis=None, initial=0.0))))
    # a factor of ten too rough is as far from 1 as one too smooth
    power.set_yscale("log")
    low, high = power.get_ylim()
    power.set_ylim(min(low, 0.5), max(high, 2.0))
    power.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    power.yaxis.set_major_formatter("{x:g}")
    power.yaxis.set_minor_formatter(NullFormatter())
    for ax in (loss, crps, skill, power):
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)
    return figure


def _draw_loss(ax: Axes, loss: xr.DataArray) -> None:
    """Every update's, and from 200 of them on a running mean over a hundredth of them."""
    many = loss.sizes["update"] // 100
    each = "#0072B2" if many < 2 else "0.8"
    ax.plot(loss["update"], loss, color=each, linewidth=0.6 if many > 1 else 1.2, label="each update")
    if many > 1:
        mean = loss.rolling(update=many, center=True).mean()
        ax.plot(loss["update"], mean, color="#0072B2", label=f"mean of {many} updates")
    ax.set(ylabel="loss [1]", yscale="log")
