"""A table that can be shown on a terminal, written into a pipe, or put into a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from autopeft.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Layout", "Sheet"]

_GAP = 2
_WORD = 24  # a longer word of prose may be broken
_NUMBER = re.compile(r"[+−-]?[\d.,]+%?")


@dataclass(frozen=True)
class Layout:
    """The columns of a sheet that are shown, by index, how wide each is, and the headers of the others."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    dropped: tuple[str, ...]

    @property
    def width(self) -> int:
        """Of the whole table."""
        return sum(self.widths) + _GAP * (len(self.widths) - 1)


@dataclass(frozen=True)
class Sheet:
    """Rows of text under headers, with an optional title above and notes below.

    Columns named in `right` are set flush right. Cells are plain text, never read as markup: names and labels
    come from users' files. What a terminal would act on in them becomes `�`.

    On a terminal that is too narrow the columns in `fold`, which hold prose, take several lines; then those
    in `drop` are left out, the first of them first. All others, which hold names and numbers, are whole at
    any width: what a reader copies is not broken.

    Raises:
        ValueError: a row is not as long as the headers, or `fold` or `drop` names no column.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    right: frozenset[str] = frozenset()
    fold: frozenset[str] = frozenset()
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"A row has {len(row)} cells under {len(self.headers)} headers: {row}.")
        unknown = {*self.fold, *self.drop} - set(self.headers)
        if unknown:
            raise ValueError(f"There is no column {sorted(unknown)[0]!r} to fold or to drop.")
        for name in ("headers", "notes", "drop", "right", "fold"):
            cells = getattr(self, name)
            object.__setattr__(self, name, type(cells)(printable(cell, keep="\n") for cell in cells))
        rows = tuple(tuple(printable(cell, keep="\n") for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "title", printable(self.title, keep="\n"))

    def layout(self, width: int) -> Layout:
        """What is shown in `width` columns of a terminal. It is wider where even the rest does not fit: then
        the terminal breaks the lines, and nothing is cut."""
        columns, waiting = list(range(len(self.headers))), list(self.drop)
        least = {i: max(cell_len(self.headers[i]), self._least(i)) for i in columns}
        while waiting and _total([least[i] for i in columns]) > width:
            columns.remove(self.headers.index(waiting.pop(0)))
        if _total([least[i] for i in columns]) > width:
            least = {i: max(1, self._least(i)) for i in columns}  # headers fold as well
        widths = _widened(
            [least[i] for i in columns],
            [max(least[i], _width(self.headers[i]), *self._widths(i)) for i in columns],
            width,
        )
        dropped = tuple(h for i, h in enumerate(self.headers) if i not in columns)
        return Layout(tuple(columns), tuple(widths), dropped)

    def _widths(self, column: int) -> list[int]:
        return [_width(row[column]) for row in self.rows] or [0]

    def _least(self, column: int) -> int:
        """The width below which a cell would lose something that has to stay whole."""
        if self.headers[column] not in self.fold:
            return max(self._widths(column))
        words = [word for row in self.rows for word in row[column].split()]
        return max(
            (n if _NUMBER.fullmatch(w) else min(n, _WORD) for w in words for n in [cell_len(w)]), default=0
        )

    def rich(self, layout: Layout) -> RenderableType:
        """The sheet for a terminal: title, table, and below it the notes and what was left out."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # Two columns apart: the padding, and the place that the box has for a line.
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, width in zip(layout.columns, layout.widths, strict=True):
            side = "right" if self.headers[i] in self.right else "left"
            table.add_column(Text(self.headers[i]), justify=side, width=width, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(Text(row[i]) for i in layout.columns))
        notes = [*self.notes, *_left_out(layout.dropped)]
        above = [Text(self.title, style="bold")] if self.title else []
        return Group(*above, table, *map(Text, notes))

    def plain(self) -> str:
        """Aligned columns, two spaces apart, for pipes and log files."""
        lines = [self.title] if self.title else []
        table = [self.headers, *self.rows]
        widths = [max(cell_len(row[i]) for row in table) for i in range(len(self.headers))]
        for row in table:
            cells = []
            for header, cell, width in zip(self.headers, row, widths, strict=True):
                gap = " " * (width - cell_len(cell))
                cells.append(gap + cell if header in self.right else cell + gap)
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """A Markdown table; pipes in cells are escaped."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

        rule = "|" + "|".join("---:" if h in self.right else "---" for h in self.headers) + "|"
        head = [f"**{self.title}**", ""] if self.title else []
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([*head, line(self.headers), rule, *(line(r) for r in self.rows), *notes])


def _width(text: str) -> int:
    """Columns of a terminal that a text takes; of several lines the longest counts."""
    return max((cell_len(line) for line in text.splitlines()), default=0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * max(0, len(widths) - 1)


def _widened(least: list[int], most: list[int], width: int) -> list[int]:
    """Widths between `least` and `most` that fill what there is, the narrowest first."""
    found, room = list(least), width - _total(least)
    while room > 0 and (growing := [i for i, w in enumerate(found) if w < most[i]]):
        found[min(growing, key=found.__getitem__)] += 1
        room -= 1
    return found


def _left_out(headers: Sequence[str]) -> list[str]:
    if not headers:
        return []
    return [f"Left out at this width: {', '.join(headers)}; a wider terminal and --json have all."]
