"""Does JupyterLab itself show what this package shows: cards, pictures, the page? Skipped where it isn't installed."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser, needs_chromium, wait_for
from matplotlib.image import imread

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(
        not (importlib.util.find_spec("jupyterlab") and importlib.util.find_spec("ipykernel")),
        reason="no jupyterlab here: docs/contributing.md says how to get one beside this environment",
    ),
]

CELLS = [
    "import xmosaic\nds = xmosaic.open_sample()\nds",
    "ds.mosaic",
    "fc = ds.mosaic.forecast('3D', members=2, time='2012-05-01', variables=['z500', 't850'])",
    "fc.mosaic.plot.stamps('geopotential', level=500)",
    "page = fc.mosaic.explore(ds)\npage",
]
SETTINGS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
PANEL = "[...jupyterapp.shell.widgets('main')].find((panel) => panel.sessionContext)"
OUTPUTS = """[...document.querySelectorAll('.jp-OutputArea-output')].map((o) => {
  const frame = o.querySelector('iframe');
  return {kind: o.getAttribute('data-mime-type'), text: o.innerText, height: o.offsetHeight,
    image: o.querySelector('img')?.naturalWidth ?? 0, frame: frame ? frame.clientWidth : 0};
})"""


def notebook(outputs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "execution_count": None, "source": text, "outputs": out}
        for k, (text, out) in enumerate(zip(CELLS, outputs, strict=True))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a server over a folder with two notebooks: one to run, one of somebody else's with outputs."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "page_config.json").write_text(json.dumps(SETTINGS))
    (folder / "files").mkdir()
    (folder / "files" / "fresh.ipynb").write_text(json.dumps(notebook([[]] * len(CELLS))))
    from xmosaic.explore import Explorer

    page = Explorer("<!doctype html><p>inside", "A forecast")
    data = {"text/html": page._repr_html_(), "text/plain": repr(page)}
    shown = {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}
    (folder / "files" / "theirs.ipynb").write_text(json.dumps(notebook([[]] * 4 + [[shown]])))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --ServerApp.port_retries=0 --IdentityProvider.token=test "
    options += f"--LabApp.expose_app_in_browser=True --ServerApp.root_dir={folder / 'files'}"
    own = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options.split()], env=os.environ | own, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: server.poll() is not None or answers(port), "JupyterLab to start", 40)
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=test"
    finally:
        server.terminate()
        server.wait(20)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5):
            return True
    except OSError:
        return False


def opened(page: Browser, address: str) -> Browser:
    page.open(address, "!!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))", seconds=60)
    return page


def test_lab_shows_everything(lab, tmp_path: Path):
    with Browser(tmp_path / "profile", 1300, 3000) as page:
        opened(page, lab.format("fresh.ipynb"))
        page.until(f"({PANEL}).sessionContext.session?.kernel?.status === 'idle'", seconds=60)
        page.value(
            f"window.finished = false; jupyterapp.shell.activateById(({PANEL}).id);"
            "jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.finished = true; }); 1"
        )
        page.until("window.finished", seconds=90)
        page.until("!!document.querySelector('.jp-OutputArea-output iframe')")
        page.value("new Promise((done) => setTimeout(done, 1500))")
        outputs = page.value(OUTPUTS)
        seen = imread(page.picture(tmp_path / "lab.png"))
        left, top, wide = page.value(
            "(() => {const b = document.querySelector('.jp-OutputArea-output iframe').getBoundingClientRect();"
            " return [b.left, b.top, b.width].map(Math.round)})()"
        )
    assert not [o for o in outputs if "Traceback" in o["text"]]
    cards = [o for o in outputs if o["kind"] == "text/html" and not o["frame"]]
    assert "geopotential" in cards[0]["text"]
    assert "9 of 9 variables recognised" in cards[1]["text"]
    assert [o["image"] > 500 for o in outputs if o["kind"] == "image/png"] == [True]
    (explorer,) = [o for o in outputs if o["frame"]]
    assert explorer["frame"] > 700  # so wide that the diagrams stand beside the globe
    assert explorer["height"] > 900
    globe = np.unique((255 * seen[top + 200 : top + 400, left : left + wide // 2, :3]).reshape(-1, 3), axis=0)
    assert len(globe) > 500  # a field in colours is drawn there, no empty frame


def test_a_notebook_that_is_not_trusted_says_why_there_is_no_page(lab, tmp_path: Path):
    """JupyterLab takes frames out of what another one ran; what remains must tell how to see it."""
    with Browser(tmp_path / "profile", 1300, 1200) as page:
        opened(page, lab.format("theirs.ipynb"))
        page.until("document.querySelectorAll('.jp-OutputArea-output').length === 1")
        (shown,) = page.value(OUTPUTS)
    assert shown["frame"] == 0
    assert shown["text"].startswith("A forecast: the interactive page is not shown")
    assert "trust the notebook" in shown["text"]
