"""Markdown from texts of the code: escaped, with papers as links, tables and drawings."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["cell", "drawing", "prose", "sheet_table", "table", "yaml_block"]

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_ACL = re.compile(r"ACL:(\d{4}\.[\w-]+\.\d+)")
_MARKS = re.compile(r"([\\*_\[\]<>|#])")


def escaped(text: str) -> str:
    """Plain text in which Markdown finds nothing; what stands in backticks is left alone, for it is code."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if p.startswith("`") else _MARKS.sub(r"\\\1", p).replace("\\<", "&lt;") for p in parts)


def linked(text: str) -> str:
    """Numbers of arXiv and of the ACL Anthology as links."""
    text = _ACL.sub(r"[ACL:\1](https://aclanthology.org/\1)", text)
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def prose(text: str) -> str:
    """A docstring's text. Lines of a list keep their dashes."""
    lines = []
    for line in text.splitlines():
        bullet = re.match(r"\s*[-*] ", line)
        start = bullet[0].replace("*", "-") if bullet else ""
        lines.append(start + linked(escaped(line[len(start) :])))
    return "\n".join(lines)


def cell(text: object) -> str:
    """Text in a cell of a table, line by line."""
    return "<br>".join(linked(escaped(" ".join(line.split()))) for line in str(text).splitlines()) or " "


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def sheet_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain texts."""
    return table([cell(c) for c in columns], [[cell(value) for value in row] for row in rows])


def yaml_block(text: str) -> str:
    """YAML as a block of code."""
    return f"```yaml\n{text.rstrip()}\n```"


def drawing(svg: str, caption: str) -> str:
    """An SVG in the page itself, which scrolls inside its frame where it is wider than the page."""
    return (
        f'<figure class="graph" tabindex="0" aria-label="{html.escape(caption, quote=True)}">{svg}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
