"""Is each notebook fit to be read: no outputs, a title, links that lead somewhere? Running them is the docs build's."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import xmosaic

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
WANTED = {
    "first_forecast",
    "your_own_data",
    "verify_a_forecast",
    "train_your_own",
    "published_weights",
    "hurricane",
    "hindcast_on_a_cluster",
    "healpix",
    "weatherbench",
}
# what myst-nb knows of those; anything else is a slip
TAGS = {"hide-input", "hide-output", "remove-input", "remove-output", "remove-cell"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text())


def _cells(notebook: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _trees(notebook: dict[str, Any]) -> list[ast.Module]:
    return [ast.parse(_text(cell)) for cell in _cells(notebook, "code")]


def test_they_are_all_there():
    assert {path.stem for path in NOTEBOOKS} == WANTED


def test_they_begin_with_a_title_and_only_one(notebook):
    """Sphinx takes it for the page's; a second one would make a second page in the table of contents."""
    titles = [line for cell in _cells(notebook, "markdown") for line in _text(cell).splitlines() if line[:2] == "# "]
    assert len(titles) == 1
    assert _text(notebook["cells"][0]).startswith(titles[0])


def test_metadata_are_minimal(notebook):
    """No trace of the machine that a notebook was written on."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"] == {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        assert set(cell["metadata"].get("tags", [])) <= TAGS
        assert re.fullmatch(r"[a-z0-9_]+", cell["id"])


def test_no_path_of_one_machine(notebook):
    text = "\n".join(_text(cell) for cell in notebook["cells"])
    assert re.findall(r"(?:^|[\s\"'(=])(/(?:home|work|root|tmp|opt|Users|mnt)/\S*|[A-Z]:\\\S*)", text) == []


def test_relative_links_lead_somewhere(notebook):
    """As they stand in examples/; conf.py puts those to the documentation right for the built pages."""
    text = "\n".join(_text(cell) for cell in _cells(notebook, "markdown"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            file, _, anchor = target.partition("#")
            page = EXAMPLES / file
            assert page.is_file(), target
            assert not anchor or anchor in _anchors(page), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_only_public_names_are_used(notebook):
    """A cell is what a user would write; what is hidden because it makes a stand-in may reach further."""
    hidden = [cell for cell in _cells(notebook, "code") if "hide-input" in cell["metadata"].get("tags", [])]
    public = {*dir(xmosaic), "tracks", "diagnostics", "plot", "recipes"}
    for cell in _cells(notebook, "code"):
        if cell in hidden:
            continue
        for node in ast.walk(ast.parse(_text(cell))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xmosaic":
                assert node.attr in public
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xmosaic":
                assert node.module in {"xmosaic", "xmosaic.tracks", "xmosaic.diagnostics", "xmosaic.plot"}
            if isinstance(node, ast.Attribute):
                assert not re.match(r"_[a-z]", node.attr), node.attr


def test_random_numbers_are_seeded(notebook):
    for node in (node for tree in _trees(notebook) for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng"):
            assert node.args
        if isinstance(node, ast.Attribute):
            assert not re.match(r"np\.random\.(?!default_rng|Generator)", ast.unparse(node))


def test_it_is_said_that_this_is_not_the_weather(notebook):
    """Before the first result: the atmosphere is simulated, or the storm made up."""
    first = next(k for k, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code")
    text = " ".join(_text(cell) for cell in notebook["cells"][:first])
    assert re.search(r"simulated|made up", text)


def test_nothing_is_fetched(notebook):
    """Addresses stand in text and in blocks that aren't run, never in a cell."""
    assert not any(re.search(r"\b(?:https?|gs|s3)://", _text(cell)) for cell in _cells(notebook, "code"))


def test_lists_name_every_notebook():
    page, readme = (ROOT / "docs" / "notebooks.md").read_text(), (EXAMPLES / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f":link: notebooks/{path.stem}\n" in page
        assert f"]({path.name})" in readme
