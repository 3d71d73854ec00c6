"""Units as datasets spell them: linear conversions between spellings, or the statement that there is none."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

# Spellings that pint refuses, misreads ("mb" is a millibarn to it, "C" a coulomb) or that are worth answering
# without the second which importing pint costs. Keys are lower-case, with single spaces.
_SPELLINGS = {
    "": "1",
    "~": "1",
    "-": "1",
    "(0 - 1)": "1",
    "(0-1)": "1",
    "0 - 1": "1",
    "0-1": "1",
    "[0-1]": "1",
    "1": "1",
    "none": "1",
    "dimensionless": "1",
    "unitless": "1",
    "fraction": "1",
    "proportion": "1",
    "numeric": "1",
    "kg kg-1": "kg kg-1",
    "kg kg**-1": "kg kg-1",
    "kg/kg": "kg kg-1",
    "k": "K",
    "kelvin": "K",
    "degk": "K",
    "c": "degC",
    "°c": "degC",
    "deg c": "degC",
    "deg_c": "degC",
    "degc": "degC",
    "degree c": "degC",
    "degrees c": "degC",
    "degrees_c": "degC",
    "degree celsius": "degC",
    "degrees celsius": "degC",
    "degrees_celsius": "degC",
    "celsius": "degC",
    "m s-1": "m s-1",
    "m s**-1": "m s-1",
    "m s^-1": "m s-1",
    "m/s": "m s-1",
    "m2 s-2": "m2 s-2",
    "m**2 s**-2": "m2 s-2",
    "m^2 s^-2": "m2 s-2",
    "m2/s2": "m2 s-2",
    "m**2/s**2": "m2 s-2",
    "pa": "Pa",
    "pascal": "Pa",
    "hpa": "hPa",
    "mb": "hPa",
    "mbar": "hPa",
    "millibar": "hPa",
    "millibars": "hPa",
    "pa s-1": "Pa s-1",
    "pa s**-1": "Pa s-1",
    "pa/s": "Pa s-1",
    "j m**-2": "J m-2",
    "j m-2": "J m-2",
    "kg m**-2": "kg m-2",
    "kg m-2": "kg m-2",
}


def canonical(units: str) -> str:
    """One spelling for the usual ones of a unit; anything else comes back as it is.

    Parameters
    ----------
    units : str

    Returns
    -------
    str

    Examples
    --------
    >>> canonical("m s**-1"), canonical("(0 - 1)"), canonical("furlong")
    ('m s-1', '1', 'furlong')
    """
    text = " ".join(str(units).split())
    return _SPELLINGS.get(text.lower(), text)


@lru_cache(maxsize=512)
def _unit(units: str) -> Any:
    """Unit of a spelling in pint, None where it can't be read."""
    from cf_xarray.units import units as registry

    try:
        return registry.Unit(units)
    except Exception:  # pint raises AssertionError, TypeError, ValueError and its own, by spelling
        return None


def is_known(units: str) -> bool:
    """Whether the spelling can be read as a unit.

    Parameters
    ----------
    units : str

    Returns
    -------
    bool
    """
    text = canonical(units)
    return text in _SPELLINGS.values() or _unit(text) is not None


@lru_cache(maxsize=512)
def conversion(found: str, wanted: str) -> tuple[float, float] | None:
    """The linear map from one unit to another: ``value · factor + offset``.

    Parameters
    ----------
    found, wanted : str
        Units in any spelling.

    Returns
    -------
    (factor, offset) : tuple of float, or None
        None where the two measure different things or one of them can't be read.

    Examples
    --------
    >>> conversion("hPa", "Pa"), conversion("celsius", "K"), conversion("m", "m2 s-2")
    ((100.0, 0.0), (1.0, 273.15), None)
    """
    found, wanted = canonical(found), canonical(wanted)
    if found == wanted:
        return 1.0, 0.0
    source, target = _unit(found), _unit(wanted)
    if source is None or target is None or source.dimensionality != target.dimensionality:
        return None
    from cf_xarray.units import units as registry

    # a wide span, so that the offset's rounding doesn't end up in the factor
    span = 2.0**20
    try:
        with np.errstate(all="ignore"):
            points = [registry.Quantity(x, source).to(target).magnitude for x in (0.0, span, 2 * span)]
        start, middle, end = map(float, points)
    except Exception:
        return None
    # logarithmic units have the right dimension and no linear map
    if not math.isfinite(end) or abs(end - 2 * middle + start) > 1e-9 * (abs(middle - start) + abs(start)):
        return None
    # 15 digits: 1 hPa is 100 Pa, not 100.00000000000001
    return float(f"{(middle - start) / span:.15g}"), float(f"{start:.15g}")
