"""For every test, and every example of a docstring."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def close_pictures() -> Iterator[None]:
    """Pictures left open are closed: pyplot keeps them all, and warns from the twentieth on."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")
