"""Foreign text in a Markdown file: names, labels and notices come from data and models of others."""

from __future__ import annotations

import html
import re

__all__ = ["fenced", "plain"]

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")
# GitHub and the hub make links of these wherever they stand.
_LINKS = re.compile(r"(?i)\b(https?|ftp)(?=://)|\bwww(?=\.)")


def plain(text: object) -> str:
    """Foreign text on one line, in which neither Markdown nor HTML finds anything."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    escaped = _MARKS.sub(r"\\\1", html.escape(" ".join(line.split()), quote=False))
    return _LINKS.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", escaped)


def fenced(text: str, language: str) -> str:
    """Text as a block of code; the fence is longer than any in the text."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
