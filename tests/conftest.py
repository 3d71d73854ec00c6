"""What every test shares: one thread, a cache of its own, no network; and where fixtures outside the repository are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmark_scripts import FOLDER

import xmosaic
from xmosaic import checkpoint

SHARED = Path(__file__).parents[1].parent / "shared"

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any is imported
else:
    xmosaic.set_options(device="cpu")  # what is compared are the bits of a CPU; tests of a GPU name it


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
