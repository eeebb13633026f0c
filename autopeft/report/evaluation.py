"""What a scoring of a saved hybrid prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopeft.report.sheet import Sheet
from autopeft.report.tasks import data_line
from autopeft.report.text import number, score
from autopeft.tasks import Task
from autopeft.tasks.kinds import Breakdown

__all__ = ["evaluation_sheets"]

_WIDEST = 12  # columns that fit a terminal


def evaluation_sheets(
    scored: tuple[str, str, int, float],
    task: Task,
    breakdown: Sequence[Breakdown] = (),
    recorded: tuple[float | None, Sequence[str]] | None = None,
) -> list[Sheet]:
    """One score of a saved hybrid, and the tables of its kind of task.

    Args:
        scored: what was scored, the split, its rows and the score.
        recorded: the run's own figure, and why it is another one.
    """
    what, split, rows, value = scored
    narrow = [table for table in breakdown if len(table.headers) <= _WIDEST]
    notes = [data_line(task.source), *_compared(split, value, recorded)]
    notes += [
        f"{table.title}: {len(table.headers)} columns are too many for a terminal; --json has them."
        for table in breakdown
        if table not in narrow
    ]
    first = Sheet(
        ("hybrid", "split", "rows", task.metric),
        ((what, split, number(rows), score(value)),),
        notes=tuple(notes),
        drop=("rows",),
        right=frozenset({"rows", task.metric}),
    )
    return [first, *map(_breakdown_sheet, narrow)]


def _compared(split: str, value: float, recorded: tuple[float | None, Sequence[str]] | None) -> list[str]:
    if recorded is None:
        return []
    figure, reasons = recorded
    if figure is None:
        return list(reasons)
    if not reasons:
        return [f"The run recorded the same figure on {split}."]
    return [f"The run recorded {score(figure)} on {split}, a difference of {value - figure:+.4f}:", *reasons]


def _breakdown_sheet(table: Breakdown) -> Sheet:
    rows = tuple(tuple(map(_entry, row)) for row in table.rows)
    # Names of classes may repeat a header, so that columns are set flush by their place alone.
    first, *others = table.headers
    texts = {
        h for i, h in enumerate(table.headers) if rows and all(isinstance(r[i], str) for r in table.rows)
    }
    right = frozenset(others) - texts
    return Sheet(table.headers, rows, title=table.title, right=right, fold=frozenset({first, *texts}))


def _entry(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return number(value)
    return "–" if math.isnan(value) else f"{value:.4f}"
