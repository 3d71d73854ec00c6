"""Readable cards: labelled lines as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import pandas as pd

_WIDTH = 12


def duration(span: pd.Timedelta) -> str:
    """A time span as one would say it.

    Examples
    --------
    >>> duration(pd.Timedelta("24h")), duration(pd.Timedelta("10D")), duration(pd.Timedelta("36h"))
    ('1 day', '10 days', '36 h')
    """
    hours = span / pd.Timedelta(hours=1)
    if hours % 24:
        return f"{hours:g} h"
    return f"{hours / 24:g} day{'s' * (hours != 24)}"


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
