"""What the tests read in the project's documents: marked code blocks and tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def text_of(document: str) -> str:
    """A document of the repository, by its path from the top."""
    return (ROOT / document).read_text(encoding="utf-8")


def block(document: str, mark: str) -> str:
    """The code block that follows the comment `<!-- mark -->`."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```[a-z]*\n(.*?)^```$", text_of(document), re.M | re.S)
    assert found, f"{document} has no code block marked {mark!r}"
    return found[1]


def marks(document: str, kind: str) -> list[str]:
    """The names in comments `<!-- kind: name -->`, in order."""
    return re.findall(rf"<!-- {kind}: (\w+) -->", text_of(document))


def table(document: str, mark: str) -> list[dict[str, str]]:
    """The rows of the table that follows the comment `<!-- mark -->`, cells by the head of their column."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n((?:\|.*\n)+)", text_of(document))
    assert found, f"{document} has no table marked {mark!r}"
    head, _, *rows = [[c.strip() for c in line.strip("|\n ").split(" | ")] for line in found[1].splitlines()]
    assert all(len(row) == len(head) for row in rows), f"{document}, {mark}: rows differ in length"
    return [dict(zip(head, row, strict=True)) for row in rows]


def code_in(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
