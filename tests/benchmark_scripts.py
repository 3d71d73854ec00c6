"""The scripts of the benchmark atmosphere, as modules. The fixture of this name makes them find each other."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "examples" / "held_suarez"


def script(name: str) -> ModuleType:
    """One of the scripts, while that fixture is in use."""
    return importlib.import_module(name)
