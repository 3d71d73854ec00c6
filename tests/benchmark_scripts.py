"""The scripts of the benchmark atmosphere, as modules. The fixture of this name makes them find each other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "examples" / "held_suarez"


def script(name: str) -> ModuleType:
    """One of the scripts."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)
