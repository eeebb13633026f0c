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

__all__ = ["Cell", "Row", "Table", "finals_table", "methods_of", "state_of", "trials_table"]

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
    try:
        recipe = Recipe.from_dict(tree)
    except UsageError as error:
        return "unreadable recipe", f"# {shown(error, 300)}\n{text[:4000]}"
    counted: dict[str, int] = {}
    for entry in recipe.entries():
        counted[entry.method] = counted.get(entry.method, 0) + 1
    names = [name if n == 1 else f"{n} × {name}" for name, n in counted.items()]
    return in_brief(names), recipe.to_yaml()


def _recipe(value: Any) -> tuple[str, str]:
    if not isinstance(value, Mapping) or not value:
        return "–", ""
    return _read(json.dumps(value, default=str))


def methods_of(recipe: Any) -> str:
    """The methods of a recipe (`lora + 2 × serial_adapter`), `head only`, or that it cannot be read."""
    return _recipe(recipe)[0]


def _number(value: float | None, text: str) -> Cell:
    return Cell(text, None if value is None else float(value), flush=True)


def state_of(record: TrialRecord) -> str:
    """A record's state in words."""
    return "not ended" if record.state == "running" else record.state


def _rungs_text(record: TrialRecord) -> str:
    rungs = sorted((int(step), value) for step, value in record.rungs.items())
    return ", ".join(f"{step}: {score(value)}" for step, value in rungs)


def _state(record: TrialRecord) -> str:
    state = state_of(record)
    if state in _PARTLY:
        return f"{state} at a rung" if record.steps is None else f"{state} at step {record.steps}"
    if state == "duplicate":
        return f"duplicate of {shown(record.duplicate_of, 20)}"
    if state == "failed" and record.failure:
        return f"failed: {shown(record.failure, 40)}"
    return state


def _scored(value: float | None, record: TrialRecord) -> str:
    """A score, with its metric where that is not the task's."""
    named = value is not None and record.metric is not None
    return f"{score(value)} {shown(record.metric, 40)}" if named else score(value)


def _row(record: TrialRecord, *, final: bool) -> Row:
    methods, yaml = _recipe(record.recipe)
    # What a stopped trial scored is of fewer steps: its rungs show it, the column of full scores does not.
    select = None if record.state in _PARTLY else record.score
    test, n, seed = record.scores.get("test"), record.number, record.seed
    seconds = None if record.state in _OPEN else record.seconds
    first: tuple[Cell, ...]
    if final:
        first = (
            Cell(shown(record.label, 120)),
            Cell(shown(seed, 20), None if seed is None else float(seed)),
        )
    else:
        first = (_number(None if n is None else float(n), "–" if n is None else str(n)),)
    cells = [
        *first,
        Cell(_state(record)),
        Cell(methods),
        _number(record.deployed, number(record.deployed)),
        _number(record.share, percent(record.share)),
        _number(select, _scored(select, record)),
    ]
    if final:
        cells.append(_number(test, score(test)))
    else:
        cells.append(Cell(_rungs_text(record) or "–"))
    cells += [_number(record.steps, number(record.steps)), _number(seconds, duration(seconds))]
    error = shown(record.error) if record.error and record.state != "interrupted" else ""
    return Row(tuple(cells), state_of(record), yaml, error)


def _table(
    id: str, headers: tuple[tuple[str, bool], ...], records: Sequence[TrialRecord], *, final: bool
) -> Table:
    rows = tuple(_row(r, final=final) for r in records[:_MOST])
    return Table(id, headers, rows, max(0, len(records) - _MOST))


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
