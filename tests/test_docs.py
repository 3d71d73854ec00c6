"""README, changelog and documentation say what the package does."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import xmosaic
from xmosaic.accessor import DataArrayAccessor, DatasetAccessor, _Plots
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
    assert [".venv/bin/python", "-m", "pytest"] in [command[:3] for command in _commands()]
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
    joined = [block.replace("\\\n", " ") for block in blocks]
    lines = [line.split("&&")[-1] for block in joined for line in block.splitlines()]
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


# ----------------------------------------------------------------------------------------------------------- links


def _texts() -> dict[Path, str]:
    """What is read as Markdown, without code: pages, READMEs, and the text of notebooks."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found = {page: page.read_text() for page in [*pages, *(ROOT / "docs" / "api").glob("*.md")]}
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text())["cells"]
        found[notebook] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {page: re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE) for page, text in found.items()}


TEXTS = _texts()


def _anchors(text: str) -> set[str]:
    """What headings are called in links, as GitHub and MyST make it."""
    heads = re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


def _links(text: str) -> list[str]:
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in inline if not re.match(r"[a-z]+:", link)]


def _broken(page: Path, link: str) -> str:
    """What is wrong with a link of a page; empty if nothing is."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if target.parent == ROOT / "docs" / "notebooks":  # copied there by conf.py
        target = ROOT / "examples" / target.name
    if not target.exists():
        return f"{page.name}: no {name}"
    known = not anchor or target not in TEXTS or anchor in _anchors(TEXTS[target])
    return "" if known else f"{page.name}: {name} has no heading #{anchor}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """Between the pages, READMEs and notebooks: the file is there, and so is the heading."""
    assert [problem for link in _links(TEXTS[page]) if (problem := _broken(page, link))] == []


def test_broken_links_are_noticed():
    page = ROOT / "README.md"
    assert _anchors("# A `b`, c: d?\n") == {"a-b-c-d"}
    assert _links("[a](b.md#c) ![d](e.png) [f](https://g.h)") == ["b.md#c", "e.png"]
    assert _broken(page, "docs/nowhere.md") == "README.md: no docs/nowhere.md"
    assert _broken(page, "docs/faq.md#nothing") == "README.md: docs/faq.md has no heading #nothing"
    assert _broken(page, "docs/faq.md#cuda-out-of-memory") == ""


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_cards_lead_to_pages(page):
    named = re.findall(r"^:link: (.*)$", page.read_text(), flags=re.MULTILINE)
    there = [(page.parent / name).with_suffix(".md").exists() for name in named]
    notebooks = [(ROOT / "examples" / Path(name).name).with_suffix(".ipynb").exists() for name in named]
    assert all(a or b for a, b in zip(there, notebooks, strict=True))


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_names_in_the_text_exist(page):
    """`ds.mosaic.name(…)`, `….mosaic.plot.name` and `xmosaic.name` of every page, run or not."""
    text = page.read_text()
    accessors = {*dir(DatasetAccessor), *dir(DataArrayAccessor)}
    assert set(re.findall(r"\.mosaic\.(?!plot\b)([a-z]\w*)", text)) - {"name"} <= accessors
    assert set(re.findall(r"\.mosaic\.plot\.(\w+)", text)) <= set(dir(_Plots))
    modules = {path.stem for path in PACKAGE.iterdir()}
    modules |= {"set", "value"} if page.name == "explore.md" else set()  # JavaScript's
    assert set(re.findall(r"(?<![\w./-])xmosaic\.(?!toml)([A-Za-z]\w*)", text)) <= {*dir(xmosaic), *modules}


def test_tests_in_the_text_exist():
    there = {
        name for file in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = {name for text in TEXTS.values() for name in re.findall(r"`(test_\w+)`", text)}
    assert len(named) > 15 and named <= there, named - there


# -------------------------------------------------------------------------------------------------------- pictures


def _pictures() -> list[tuple[str, str]]:
    """Page and alternative text of every picture that stands in the text itself."""
    found = []
    for page, text in TEXTS.items():
        found += [(page.name, alt) for alt in re.findall(r"!\[([^\]]*)\]\(", text)]
        found += [
            (page.name, (re.findall(r'alt="([^"]*)"', tag) or [""])[0]) for tag in re.findall(r"<img [^>]*>", text)
        ]
        if page.suffix == ".md":
            blocks = re.findall(r"```\{(?:image|figure)\}.*?```", page.read_text(), flags=re.DOTALL)
            found += [(page.name, (re.findall(r"^:alt: (.*)$", b, flags=re.MULTILINE) or [""])[0]) for b in blocks]
    return found


def test_every_picture_has_a_text_for_who_does_not_see_it():
    pictures = _pictures()
    assert len(pictures) > 5
    # those of benchmark.md are named by examples/held_suarez, above a caption
    assert [(page, alt) for page, alt in pictures if len(alt) < (3 if page == "benchmark.md" else 15)] == []


def test_pictures_of_cells_are_described_by_their_code():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert pictures.described("fc.mosaic.plot.spread(ds, 'z')") == "Picture drawn by fc.mosaic.plot.spread(ds, 'z')"
    assert pictures.described("z.plot()\nplt.title('Chance, after five days');") == "Picture: Chance, after five days"
    several = "figure, axes = plt.subplots(2)\nx.plot(ax=axes[0])\nprint(3)"
    assert pictures.described(several) == "Picture drawn by x.plot(ax=axes[0])"
    assert pictures.described("for x in y:\n    x.plot()") == "Picture drawn by the code above"
    assert pictures.described("%matplotlib inline") == "Picture drawn by the code above"
    texts = {
        pictures.described("".join(cell["source"])) for n in NOTEBOOKS for cell in json.loads(n.read_text())["cells"]
    }
    assert len(texts) > 20


# ------------------------------------------------------------------------------------------------------ docstrings

# What still lacks an example or a list of errors; nothing may be added.
OWED: set[str] = set()


def _listed() -> list[str]:
    page = (ROOT / "docs" / "api" / "functions.md").read_text()
    blocks = re.findall(r"autosummary::\n(.*?)```", page, flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()[:1] not in ("", ":")]


def _resolve(name: str):
    """What a name of the API page is, without what is wrapped around it."""
    *home, last = name.split(".")
    where = (
        ".".join(["xmosaic", *home])
        if home
        else f"xmosaic.{xmosaic._HOME_OF[last]}"
        if last in xmosaic._HOME_OF
        else "xmosaic"
    )
    found = getattr(importlib.import_module(where), last)
    return found if inspect.isclass(found) else inspect.unwrap(found)


def _sections(found) -> dict[str, str]:
    """Title → text of a numpydoc docstring; what comes first is under "Summary"."""
    parts = re.split(r"^([A-Z][\w ]+)\n-+$", inspect.getdoc(found) or "", flags=re.MULTILINE)
    return {"Summary": parts[0].strip()} | dict(zip(parts[1::2], (p.strip() for p in parts[2::2]), strict=True))


def _raising(function) -> bool:
    """Whether it, or a function of its module that it comes by, has a `raise`."""
    body = ast.parse(Path(inspect.getsourcefile(function)).read_text()).body
    here = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    seen, todo = set(), [function.__name__]
    while todo:
        name = todo.pop()
        if name in here and name not in seen:
            seen.add(name)
            nodes = list(ast.walk(here[name]))
            if any(isinstance(node, ast.Raise) for node in nodes):
                return True
            todo += [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return False


def _lacking(name: str) -> list[str]:
    """Sections that the docstring of a public object should have and hasn't."""
    found = _resolve(name)
    there = _sections(found)
    wanted = {"Summary"}
    if not (inspect.isclass(found) and issubclass(found, Exception)):
        wanted.add("Examples")
    if inspect.isfunction(found):
        wanted.add("Yields" if "Yields" in there else "Returns")
        wanted |= {"Raises"} if _raising(found) else set()
        described = set(
            re.findall(
                r"[*\w]+", " ".join(re.findall(r"^\S.*?(?= :|$)", there.get("Parameters", ""), flags=re.MULTILINE))
            )
        )
        absent = set(inspect.signature(found).parameters) - {word.lstrip("*") for word in described}
        wanted |= {f"parameter {name}" for name in absent}
    if ">>>" not in there.get("Examples", ">>>"):
        wanted.add("an example that runs")
    return sorted(section for section in wanted if not there.get(section))


@pytest.mark.parametrize("name", _listed())
def test_public_docstring_is_complete(name):
    """Summary, every parameter, what comes back, what is raised, and an example, which the doctests run."""
    assert not _lacking(name) or name in OWED


def test_incomplete_docstrings_are_noticed(monkeypatch):
    def bare(first, *second):
        """Do something.

        Parameters
        ----------
        first : int
        """
        raise ValueError

    monkeypatch.setattr(sys.modules[__name__], "_resolve", lambda name: bare)
    monkeypatch.setattr(sys.modules[__name__], "_raising", lambda function: True)
    assert _lacking("bare") == ["Examples", "Raises", "Returns", "parameter second"]


def test_raising_is_followed_through_helpers():
    from xmosaic.diagnostics.scores import spread
    from xmosaic.variables import published_schema

    assert _raising(spread)  # through needs_two
    assert not _raising(published_schema)


def test_public_methods_say_what_they_do():
    bare = []
    for name in _listed():
        found = _resolve(name)
        for each, member in vars(found).items() if inspect.isclass(found) else ():
            if not each.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
                bare += [] if inspect.getdoc(getattr(found, each)) else [f"{name}.{each}"]
    assert set(bare) <= {"StageConfig.points", "StageConfig.head_dim", "StageConfig.hidden"}  # their names say it


# --------------------------------------------------------------------------------------- citation, release, baseline


def test_citation_has_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(xmosaic.__version__)}$", citation, flags=re.MULTILINE)
    assert "10.48550/arXiv.2604.16429" in citation
    assert "license: BSD-3-Clause" in citation


def test_scripts_of_ci_can_be_run():
    for name in ("run", "bench", "release"):
        script = ROOT / ".ci" / name
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert script.stat().st_mode & 0o100, f"{name} isn't executable"


def _ratios():
    spec = importlib.util.spec_from_file_location("ratios", Path(__file__).with_name("benchmarks") / "ratios.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_baseline_has_every_ratio_and_moves_are_told():
    ratios = _ratios()
    stored = json.loads(ratios.BASELINE.read_text())["ratios"]
    assert stored.keys() == ratios.ALL.keys()
    assert all(0 < one["least"] <= one["median"] <= one["most"] for one in stored.values())
    before = {"median": 2.0, "least": 1.9, "most": 2.2}
    said = [ratios.verdict({"median": now}, before) for now in (3.0, 2.6, 1.6, 1.0)]
    assert said == ["SLOWER: 1.50 times", "as before", "as before", "faster: 0.50 times"]
