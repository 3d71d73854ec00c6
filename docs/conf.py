"""How the documentation is built: sphinx-build -W --keep-going -b html docs docs/_build/html."""

import importlib
import importlib.util
import inspect
import shutil
import sys
from pathlib import Path

import xmosaic
from xmosaic.accessor import DataArrayAccessor, DatasetAccessor, _Plots

# `xmosaic.forecast` is a module as well, callable; here the function is meant
xmosaic.forecast = importlib.import_module("xmosaic.forecast").forecast

sys.path.insert(0, str(Path(__file__).parent))
from pictures import describe_pictures  # noqa: E402

project = "xmosaic"
author = "the xmosaic developers"
copyright = "the xmosaic developers, BSD-3-Clause"
version = release = xmosaic.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
    "sphinx_design",
]
# formulas without the network; where the package (of the docs extra) is missing, browsers fetch MathJax from its site
extensions += ["sphinx-mathjax-offline"] if importlib.util.find_spec("sphinx-mathjax-offline") else []
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "py:obj"

# notebooks run at every build: what they show is what this version does
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # with tables
nb_ipywidgets_js = {}  # no widgets here, so nothing to fetch from elsewhere
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say it, with dims and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = f"xmosaic {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": []}  # everywhere else: the pages of its section
html_show_sourcelink = False


def write_accessor_page() -> None:
    """The accessor's methods under the names they are called by, from the code itself."""
    lines = [
        ".. This file is written by conf.py.",
        "",
        "By accessor",
        "===========",
        "",
        "Registered by ``import xmosaic``. The accessor keeps no state and changes nothing; each method calls the",
        "function that its text names, which has the full description.",
        "",
    ]
    for owner, cls in (("Dataset", DatasetAccessor), ("DataArray", DataArrayAccessor)):
        lines += [f"{owner}.mosaic", "-" * (len(owner) + 7), "", inspect.getdoc(cls) or "", ""]
        for name, member in inspect.getmembers(cls, inspect.isfunction):
            if not name.startswith("_"):
                lines += _method(f"{owner}.mosaic.{name}", member)
        if hasattr(cls, "plot"):
            for name, member in inspect.getmembers(_Plots, inspect.isfunction):
                if not name.startswith("_"):
                    lines += _method(f"{owner}.mosaic.plot.{name}", member)
    page = Path(__file__).parent / "api" / "generated" / "accessor.rst"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines))


def _method(name: str, member: object) -> list[str]:
    signature = inspect.signature(member)  # type: ignore[arg-type]
    bare = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
    shown = signature.replace(parameters=bare, return_annotation=signature.empty)
    return [f".. py:method:: {name}{shown}", "", f"   {inspect.getdoc(member)}", ""]


def copy_notebooks() -> None:
    """The notebooks of examples/, for Sphinx reads no file outside its folder; links to pages are put right."""
    folder = Path(__file__).parent / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in (Path(__file__).parents[1] / "examples").glob("*.ipynb"):
        (folder / notebook.name).write_text(notebook.read_text().replace("](../docs/", "](../"))


def setup(app: object) -> None:
    app.connect("doctree-read", describe_pictures)  # type: ignore[attr-defined]


write_accessor_page()
copy_notebooks()
