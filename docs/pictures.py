"""What a picture shows, for who doesn't see it: a cell's is described by its title, or by the call that draws it."""

from __future__ import annotations

import ast
from typing import Any

_TITLES = ("title", "suptitle", "set_title")


def described(code: str) -> str:
    """Alternative text for the pictures of a cell.

    Examples
    --------
    >>> described("fc.mosaic.plot.stamps('geopotential', level=500)")
    "Picture drawn by fc.mosaic.plot.stamps('geopotential', level=500)"
    >>> described("z.plot()\\nplt.title('Member 1, 500 hPa');")
    'Picture: Member 1, 500 hPa'
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a cell with a magic command
        return "Picture drawn by the code above"
    title = next((text for node in ast.walk(tree) if (text := _title(node))), "")
    if title:
        return f"Picture: {title}"
    calls = [node for node in tree.body if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call)]
    drawing = [text for call in calls if "plot" in (text := ast.unparse(call.value)) and "subplots(" not in text]
    return f"Picture drawn by {drawing[-1] if drawing else 'the code above'}"


def _title(node: ast.AST) -> str:
    """The text of `….title("…")`, as far as it is known before the code runs."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TITLES):
        return ""
    text = node.args[0] if node.args else None
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""


def describe_pictures(app: Any, doctree: Any) -> None:
    """For Sphinx's event doctree-read: pictures of cells get a text of their own instead of their file's name."""
    from docutils import nodes

    for cell in doctree.findall(nodes.container):
        if "cell" not in cell.get("classes", []):
            continue
        code = next((block.astext() for block in cell.findall(nodes.literal_block)), "")
        for picture in cell.findall(nodes.image):
            picture["alt"] = described(code)
