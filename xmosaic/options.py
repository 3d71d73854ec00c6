"""Options of the whole package, set for good or for a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .errors import ArgumentError, explain

_OPTIONS: dict[str, Any] = {"model": None, "device": None, "dtype": None, "progress": True}


def get_option(name: str) -> Any:
    """Value of an option.

    Parameters
    ----------
    name : str

    Returns
    -------
    Any
    """
    return _OPTIONS[name]


class set_options:  # noqa: N801 — xarray's name and manner
    """Set options, for good or inside a ``with`` block.

    Parameters
    ----------
    model : str, path or Model, optional
        Model that forecasts use when none is passed.
    device : str, optional
        Device that forecasts run on when none is passed, such as ``"cpu"`` or ``"cuda:1"``.
    dtype : str, optional
        Arithmetic of the network when none is passed: "float32", "bfloat16", "float16", "float64", "float8".
    progress : bool, optional
        Whether forecasts show a progress bar when nothing else is passed.

    Raises
    ------
    ArgumentError
        For a name that is no option.

    Examples
    --------
    >>> with set_options(model="bundled", progress=False):
    ...     get_option("model")
    'bundled'
    >>> get_option("model") is None
    True
    >>> set_options(progress=True)
    set_options(progress=True)
    """

    def __init__(self, **options: Any) -> None:
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise ArgumentError(explain(f"There is no option {unknown[0]!r}", expected=", ".join(_OPTIONS)))
        self._before = {name: _OPTIONS[name] for name in options}
        self._set = options
        _OPTIONS.update(options)

    def __repr__(self) -> str:
        # a model by its name: its own repr is a card of many lines
        texts = [f"{n}={v.name if hasattr(v, 'provenance') else v!r}" for n, v in self._set.items()]
        return f"set_options({', '.join(texts)})"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OPTIONS.update(self._before)
