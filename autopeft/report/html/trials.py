"""Training runs as rows of sortable tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.recipe.contents import in_brief
from autopeft.report.html.values import shown
from autopeft.report.text import duration, number, percent, score
from autopeft.runs.records import TrialRecord

__all__ = [
    "Cell",
    "Row",
    "Table",
    "finals_table",
    "methods_of",
    "state_of",
    "trials_table",
]

_MOST = 2000
# Trained for fewer steps than others: stopped, or waiting on a rung to go on.
_PARTLY = ("stopped", "paused")
# What they take is not known before they end.
_OPEN = ("paused", "running")


@dataclass(frozen=True)
class Cell:
    """A cell: the text, and the number that it sorts by (`None` for texts and for nothing)."""

    text: str
    sort: float | None = None
    flush: bool = False


@dataclass(frozen=True)
class Row:
    """A row, with what unfolds under it: the recipe as YAML, an error."""

    cells: tuple[Cell, ...]
    state: str
    recipe: str = ""
    error: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under headers; `left_out` tells how many more there are."""

    id: str
    headers: tuple[tuple[str, bool], ...]
    rows: tuple[Row, ...]
    left_out: int = 0


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[str, str]:
    """(methods, YAML) of a recipe given as JSON."""
    tree = json.loads(text)
    if not isinstance(tree, Mapping) or not tree:
        return "–", ""
    try:
        recipe = Recipe.from_dict(tree)
    except UsageError as error:
        return "unreadable recipe", f"# {shown(error, 300)}\n{text[:4000]}"
    counted: dict[str, int] = {}
    for entry in recipe.entries():
        counted[entry.method] = counted.get(entry.method, 0) + 1
    names = [name if n == 1 else f"{n} × {name}" for name, n in counted.items()]
    return in_brief(names), recipe.to_yaml()


def methods_of(recipe: Any) -> str:
    """The methods of a recipe (`lora + 2 × serial_adapter`), `head only`, or that it cannot be read."""
    return _read(json.dumps(recipe, default=str))[0]


def _number(value: float | None, text: str) -> Cell:
    return Cell(text, None if value is None else float(value), flush=True)


def state_of(record: TrialRecord) -> str:
    """A record's state in words."""
    return "not ended" if record.state == "running" else record.state


def _table(
    id: str, headers: tuple[tuple[str, bool], ...], records: Sequence[TrialRecord], *, final: bool
) -> Table:
    rows = []
    for record in records[:_MOST]:
        methods, yaml = _read(json.dumps(record.recipe, default=str))
        state = told = state_of(record)
        if state in _PARTLY:
            told = f"{state} at a rung" if record.steps is None else f"{state} at step {record.steps}"
        elif state == "duplicate":
            told = f"duplicate of {shown(record.duplicate_of, 20)}"
        elif state == "failed" and record.failure:
            told = f"failed: {shown(record.failure, 40)}"

        # What a stopped trial scored is of fewer steps: its rungs show it, the column of full scores does
        # not. A score has its metric beside it where that is not the task's.
        select = None if state in _PARTLY else record.score
        scored = score(select)
        if select is not None and record.metric is not None:
            scored = f"{scored} {shown(record.metric, 40)}"
        seconds = None if record.state in _OPEN else record.seconds
        cells = [
            Cell(told),
            Cell(methods),
            _number(record.deployed, number(record.deployed)),
            _number(record.share, percent(record.share)),
            _number(select, scored),
        ]
        if final:
            seed, test = record.seed, record.scores.get("test")
            named = Cell(shown(seed, 20), None if seed is None else float(seed))
            cells = [Cell(shown(record.label, 120)), named, *cells, _number(test, score(test))]
        else:
            n = record.number
            rungs = sorted((int(step), value) for step, value in record.rungs.items())
            course = ", ".join(f"{step}: {score(value)}" for step, value in rungs)
            cells = [_number(n, "–" if n is None else str(n)), *cells, Cell(course or "–")]
        cells += [_number(record.steps, number(record.steps)), _number(seconds, duration(seconds))]
        error = shown(record.error) if record.error and record.state != "interrupted" else ""
        rows.append(Row(tuple(cells), state, yaml, error))
    return Table(id, headers, tuple(rows), max(0, len(records) - _MOST))


def trials_table(records: Iterable[TrialRecord], unfinished: Iterable[TrialRecord] = ()) -> Table:
    """Every trial of the search by number, with those that had not ended when the journal was read."""
    found = list(records)
    known = {r.number for r in found}
    found += [r for r in unfinished if r.number not in known]
    found.sort(key=lambda r: math.inf if r.number is None else r.number)
    headers = (
        ("trial", True), ("state", False), ("methods", False), ("deployed", True), ("share", True),
        ("select", True), ("rungs", False), ("steps", True), ("time", True),
    )  # fmt: skip
    return _table("trials-table", headers, found, final=False)


def finals_table(records: Iterable[TrialRecord]) -> Table:
    """The runs after the search: finalists and baselines with fresh seeds, tests."""
    headers = (
        ("run", False), ("seed", True), ("state", False), ("methods", False), ("deployed", True),
        ("share", True), ("select", True), ("test", True), ("steps", True), ("time", True),
    )  # fmt: skip
    return _table("finals-table", headers, list(records), final=True)
