"""README, changelog and documentation say what the package does."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import xmosaic
from xmosaic.cli import _parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xmosaic"
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_readme_example_runs(tmp_path):
    (code,) = _blocks("python")
    assert 5 <= len(code.strip().splitlines()) <= 8
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    spread, title = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert float(spread) > 0
    assert title == xmosaic.open_sample().mosaic.forecast("2D", 4, progress=False).attrs["title"]


def test_readme_says_what_the_bundled_model_knows():
    """It was untrained once, and the page said so; it must not come to promise more than there is."""
    assert not xmosaic.load_model("bundled").untrained
    assert "not the Earth's" in README
    assert "untrained" not in README


def _tree() -> dict[str, str]:
    """Path → what the tree says of it."""
    (block,) = _blocks("text")
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition(" ")
        parents = [*parents[:depth], name]
        found["".join(parents)] = text.strip()
    return found


def test_readme_tree_names_every_file():
    """No file of the package is left out, and none is there that isn't."""
    tree = {path for path in _tree() if path.startswith("xmosaic/") and path[-1] != "/"}
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tree == files


def test_readme_tree_has_a_line_for_each():
    tree = _tree()
    assert all((ROOT / path).exists() for path in tree)
    assert [path for path, text in tree.items() if not text] == ["xmosaic/"]


def test_readme_tree_stands_in_order_of_import():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("house", Path(__file__).with_name("test_house.py"))
    house = module_from_spec(spec)
    spec.loader.exec_module(house)
    tops = [p.split("/")[1].removesuffix(".py") for p in _tree() if re.fullmatch(r"xmosaic/\w+(\.py|/)", p)]
    assert tops == house.ORDER


def _commands() -> list[list[str]]:
    return [shlex.split(part) for block in _blocks("bash") for part in block.strip().split("&&")]


def test_readme_has_two_commands_of_one_line():
    blocks = _blocks("bash")
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)


def test_readme_commands_exist():
    """Their flags, files and extras."""
    names = {command[0] for command in _commands()}
    assert names == {"python3", ".venv/bin/pip", ".venv/bin/xmosaic", ".venv/bin/python"}
    for command in _commands():
        if command[0] == ".venv/bin/xmosaic":
            assert callable(_parser().parse_args(command[1:]).run)
        if command[0] == ".venv/bin/pip":
            assert (ROOT / command[command.index("-c") + 1]).is_file()
    assert [".venv/bin/python", "-m", "pytest"] in _commands()
    project = (ROOT / "pyproject.toml").read_text()
    assert "test = [" in project
    assert 'xmosaic = "xmosaic.cli:main"' in project


def test_ci_takes_the_test_command_from_the_readme():
    lines = [line for line in README.splitlines() if re.search(r"&& \.venv/bin/python -m pytest", line)]
    assert len(lines) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_command_lines_in_the_documentation_parse(page):
    """Every `xmosaic …` line of a bash block."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line.split("&&")[-1] for block in blocks for line in block.splitlines()]
    for words in (shlex.split(line, comments=True) for line in lines):
        if words and words[0].endswith("xmosaic"):
            _parser().parse_args(words[1:])


def test_changelog_has_this_version():
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    assert re.search(rf"^## {re.escape(xmosaic.__version__)}$", changelog, flags=re.MULTILINE)
    assert f'version = "{xmosaic.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_changelog_names_everything_public():
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    names = {*xmosaic._HOME_OF, "set_options"}
    assert {name for name in names if not re.search(rf"\b{name}\b", changelog)} == set()


def test_api_pages_list_everything_public():
    page = (ROOT / "docs" / "api" / "functions.md").read_text()
    names = {line.strip() for line in page.splitlines()}
    assert {*xmosaic._HOME_OF, "set_options", "MosaicError"} <= names


def test_every_page_is_reached():
    """Each page of the documentation stands in a table of contents, and each entry has a page."""
    docs = ROOT / "docs"
    entries: set[str] = set()
    for page in docs.rglob("*.md"):
        for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            named = [re.sub(r".*<(.*)>", r"\1", line) for line in block.splitlines() if line and line[0] != ":"]
            entries |= {(page.parent / name).relative_to(docs).as_posix() for name in named}
    pages = {
        page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md") if "_build" not in page.parts
    }
    pages |= {f"notebooks/{notebook.stem}" for notebook in NOTEBOOKS}  # copied by conf.py
    assert pages - entries == {"index"}
    assert entries - pages <= {"api/generated/accessor"}  # written by conf.py


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebooks_are_kept_without_outputs(notebook):
    """What a notebook shows is made at every build of the documentation; cells have ids, as nbformat 4.5 wants."""
    content = json.loads(notebook.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    assert (content["nbformat"], content["nbformat_minor"]) >= (4, 5)


def test_there_is_a_notebook():
    assert "verify_a_forecast" in {notebook.stem for notebook in NOTEBOOKS}
