"""The exceptions xmosaic raises, and the one shape of their text."""

from __future__ import annotations


class MosaicError(Exception):
    """Base class of every exception that xmosaic raises on purpose."""


class DatasetError(MosaicError, ValueError):
    """A Dataset can't be used as it is; the text says what to change."""


class ArgumentError(MosaicError, ValueError):
    """An argument has a value that can't be used; the text says which values can."""


class CheckpointError(MosaicError, ValueError):
    """A file of weights is missing, damaged, unsafe or doesn't fit its description."""


class StoreError(MosaicError, OSError):
    """A forecast can't be written where it was asked to go."""


class AlignmentWarning(UserWarning):
    """A part of a forecast has no truth and isn't scored; the text says which."""


_LONGEST = 1000  # letters of a part


def explain(what: str, *, got: str = "", expected: str = "", do: str = "") -> str:
    """Join the four parts of an error text: what is wrong, what was found, what was expected, what to do.

    Parameters
    ----------
    what, got, expected, do : str
        The parts; empty ones are left out, and long ones cut: they may quote a damaged file.

    Returns
    -------
    str

    Examples
    --------
    >>> explain("'z500' is not on this dataset", got="'t500'", expected="'geopotential'", do="Rename it.")
    "'z500' is not on this dataset. Found 't500'; expected 'geopotential'. Rename it."
    """
    what, got, expected, do = (s if len(s) <= _LONGEST else f"{s[: _LONGEST - 2]} …" for s in (what, got, expected, do))
    found = "; ".join(
        part for part in (f"found {got}" if got else "", f"expected {expected}" if expected else "") if part
    )
    sentences = [what.rstrip("."), (found[:1].upper() + found[1:]).rstrip("."), do.rstrip(".")]
    return " ".join(f"{s}." for s in sentences if s)
