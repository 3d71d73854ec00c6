"""The page's public face: `explore` makes it, an `Explorer` holds it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import xarray as xr

from ..errors import ArgumentError, StoreError, explain
from ..options import get_option
from .build import build, too_large
from .page import compose
from .select import select

_HEIGHT = 960


class Explorer:
    """A forecast as one HTML page, to be shown in a notebook or saved.

    Parameters
    ----------
    page : str
        The whole page.
    title : str

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> page = xmosaic.explore.explore(fc, variables="temperature", levels=850, progress=False)
    >>> page.nbytes < 10e6, page.html[:15]
    (True, '<!doctype html>')
    """

    def __init__(self, page: str, title: str) -> None:
        self._page, self._title = page, title

    @property
    def html(self) -> str:
        """The whole page."""
        return self._page

    @property
    def nbytes(self) -> int:
        """Size of the page's file [bytes]."""
        return len(self._page.encode())

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Parameters
        ----------
        path : str or Path
            File to write, such as "forecast.html"; its folder must exist.

        Returns
        -------
        Path

        Raises
        ------
        StoreError
            Where it can't be written.
        """
        path = Path(path)
        try:
            path.write_text(self._page, encoding="utf-8")
        except OSError as error:
            raise StoreError(explain(f"The page can't be written to {path}", got=str(error))) from error
        return path

    def __repr__(self) -> str:
        return f'<xmosaic: page of {self.nbytes / 1e6:.1f} MB, {self._title}; .save("page.html")>'

    def _repr_html_(self) -> str:
        # a frame of its own origin: nothing in it reaches the notebook; its text is seen where frames are taken out
        return (
            f'<iframe title="{html.escape(self._title)}" sandbox="allow-scripts" width="100%" height="{_HEIGHT}" '
            f'style="border:0" srcdoc="{html.escape(self._page)}">{html.escape(self._instead())}</iframe>'
        )

    def _instead(self) -> str:
        return (
            f"{self._title}: the interactive page is not shown, for this notebook isn't trusted here. Run this cell "
            'again, trust the notebook, or open the file that .save("page.html") writes.'
        )


def explore(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    *,
    variables: Any = None,
    levels: Any = None,
    members: Any = None,
    leads: Any = None,
    time: Any = None,
    max_bytes: float = 10e6,
    progress: bool | None = None,
) -> Explorer:
    """A forecast as one interactive page that opens anywhere, offline.

    A globe to turn; member, ensemble mean, spread, probability of exceeding a value, and difference from the truth;
    variables, levels, leads, members and starts to step through; at a point that is clicked the series of all members;
    every member's spectrum beside the truth's, and scores by lead.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (prediction_timedelta, latitude, longitude) or (…, cell)
        Further time, number and level. In any common dialect, lazy or not; each field is read once. Fields on the
        HEALPix mesh are regridded to be drawn, and the page says so.
    truth : Dataset or DataArray, optional
        Analyses along time, or fields laid out as the forecast, on the same points.
    variables : str or iterable of str, optional
        In any dialect; all by default.
    levels : float or iterable of float [hPa], optional
        All by default.
    members : int or iterable of int, optional
        So many, or those with these labels; all by default. With fewer, mean, spread and scores are of those, and the
        page says so.
    leads : timedelta-like or sequence of them, optional
        All by default.
    time : datetime-like, sequence or slice of them, optional
        Starts; all by default.
    max_bytes : float [bytes]
        A larger page raises.
    progress : bool, optional
        Progress bar after the first second; by default the option `progress`.

    Returns
    -------
    Explorer
        Shows itself in a notebook; ``.save("page.html")`` writes the file.

    Raises
    ------
    DatasetError
        If this is no forecast, or has no horizontal dimensions; or if the truth is on another grid.
    ArgumentError
        If something selected isn't in it, or the page would be too large: the text says what would fit.

    Warns
    -----
    AlignmentWarning
        Names variables, levels and valid times that the truth doesn't have; the page shows no truth there.

    Notes
    -----
    Values are kept in steps. A member's step is a sixth of the root mean square deviation from the mean at that lead,
    or a hundredth of the range from the 0.5th to the 99.5th percentile where that is less, unless the largest
    deviation needs more than 127 of them. Mean and truth are kept four times as fine. The page gives the error, half
    a step, with each value.

    Spectra and scores are computed from the forecast itself, for each start: `xmosaic.diagnostics.spectra`, and fair
    CRPS, RMSE of the mean and spread by exact cell area.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("2D", 2, variables="z500", time="2012-05-01", progress=False)
    >>> page = explore(fc, ds)
    >>> page.nbytes < 1e6
    True
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int | float) or not max_bytes > 0:
        raise ArgumentError(explain(f"max_bytes={max_bytes!r} can't be used", expected="a number above 0"))
    chosen = select(forecast, truth, variables, levels, members, leads, time)
    show = bool(get_option("progress") if progress is None else progress)
    about, blocks = build(chosen, int(max_bytes), show)
    page, title = compose(chosen.forecast, about, blocks)
    if (size := len(page.encode())) > max_bytes:
        raise too_large(chosen.forecast, size, int(max_bytes))
    return Explorer(page, title)
