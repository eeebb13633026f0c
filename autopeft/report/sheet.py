"""A table that can be shown on a terminal, written into a pipe, or put into a Markdown file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopeft.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Sheet"]


@dataclass(frozen=True)
class Sheet:
    """Rows of text under headers, with an optional title above and notes below.

    Columns named in `right` are set flush right. Cells are plain text, never read as markup: names and labels
    come from users' files. What a terminal would act on in them becomes `�`.

    Raises:
        ValueError: a row is not as long as the headers.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    right: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"A row has {len(row)} cells under {len(self.headers)} headers: {row}.")
        shown = {
            "headers": _shown(self.headers),
            "rows": tuple(map(_shown, self.rows)),
            "title": printable(self.title, keep="\n"),
            "notes": _shown(self.notes),
            "right": frozenset(_shown(self.right)),
        }
        for name, value in shown.items():
            object.__setattr__(self, name, value)

    def rich(self) -> Table:
        """The table for a terminal; notes stand in its caption."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.title) if self.title else None,
            caption=Text("\n".join(self.notes)) if self.notes else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
        )
        for header in self.headers:
            table.add_column(
                Text(header), justify="right" if header in self.right else "left", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def plain(self) -> str:
        """Aligned columns, two spaces apart, for pipes and log files."""
        lines = [self.title] if self.title else []
        lines += self._aligned()
        lines += list(self.notes)
        return "\n".join(lines)

    def markdown(self) -> str:
        """A Markdown table; pipes in cells are escaped."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

        rule = "|" + "|".join("---:" if h in self.right else "---" for h in self.headers) + "|"
        head = [f"**{self.title}**", ""] if self.title else []
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([*head, line(self.headers), rule, *(line(r) for r in self.rows), *notes])

    def _aligned(self) -> Iterator[str]:
        table = [self.headers, *self.rows]
        widths = [max(_width(row[i]) for row in table) for i in range(len(self.headers))]
        for row in table:
            cells = []
            for header, cell, width in zip(self.headers, row, widths, strict=True):
                gap = " " * (width - _width(cell))
                cells.append(gap + cell if header in self.right else cell + gap)
            yield "  ".join(cells).rstrip()


def _shown(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(printable(cell, keep="\n") for cell in cells)


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal (wide East Asian characters take two)."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
