"""Readable cards: labelled lines as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_WIDTH = 12


def text_card(rows: Iterable[tuple[str, str]]) -> str:
    """One line per label; further lines of a text are indented below it."""
    indent = "\n" + " " * _WIDTH
    return "\n".join(f"{label:<{_WIDTH}}{text}".replace("\n", indent) for label, text in rows)


def html_card(rows: Iterable[tuple[str, str]]) -> str:
    """The same as a table."""
    style = "text-align:left;vertical-align:top"
    lines = (
        f"<tr><th style='{style}'>{escape(label)}</th>"
        f"<td style='{style}'>{escape(text).replace(chr(10), '<br>')}</td></tr>"
        for label, text in rows
    )
    return f"<table class='xmosaic-card'>{''.join(lines)}</table>"


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a header row, under a title."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = line(header, "th") + "".join(line(row, "td") for row in rows)
    return f"<p><b>{escape(title)}</b></p><table>{body}</table>"
