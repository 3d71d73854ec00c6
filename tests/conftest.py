"""What every test shares: one thread, a cache of its own, no network; and where fixtures outside the repository are."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_scripts import FOLDER

import xmosaic
from xmosaic import checkpoint

SHARED = Path(__file__).parents[1].parent / "shared"

collect_ignore = ["faults_warm.py"]  # has no examples, and makes a forecast when it is imported

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any is imported
else:
    xmosaic.set_options(device="cpu")  # what is compared are the bits of a CPU; tests of a GPU name it


def _quicken_the_interpreter() -> None:
    """A third of the interpreter's time goes into looking through Triton's language for what is to be replaced, at each
    call of one function by another, after the kernel's launch has replaced it all.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    replace, first = interpreter._patch_builtin, {}

    def once(package: Any, *rest: Any) -> None:
        if package not in first:
            first[package] = next((n for n in dir(package) if is_builtin(getattr(package, n))), None)
        if first[package] is not None and is_builtin(getattr(package, first[package])):
            replace(package, *rest)

    interpreter._patch_builtin = once


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    _quicken_the_interpreter()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's record of digests, or the network; tests of the hub say otherwise."""
    monkeypatch.setenv("XMOSAIC_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("XMOSAIC_OFFLINE", "1")
    monkeypatch.setattr(checkpoint.variants, "_license_shown", set())


@pytest.fixture(scope="module")
def benchmark_scripts() -> Iterator[None]:
    """While a module's tests run, the scripts of the benchmark atmosphere find each other."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of large fixtures that are not committed."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here: fixtures that are not committed")
    return SHARED
