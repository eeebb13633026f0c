"""What a training run of a fixed recipe, or a scoring of a saved one, prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.report.sheet import Sheet
from autopeft.report.tasks import data_line, unbeaten_text
from autopeft.report.text import duration, number, percent, score
from autopeft.tasks import Task
from autopeft.tasks.summary import DataSummary

__all__ = ["train_sheet"]


def train_sheet(outcome: Mapping[str, Any], task: Task, summary: DataSummary | None = None) -> Sheet:
    """Scores and counts of one run; `outcome` is `FixedOutcome.to_dict()`, and `summary` of its rows."""
    counts = outcome["counts"]
    row = (
        str(outcome["recipe"]["name"]),
        score(outcome["select_mean"]),
        score(outcome["test_mean"]),
        number(counts["deployed"]),
        percent(counts["share"]),
        number(counts["trained"]),
        number(counts["head"]),
        duration(outcome["seconds"]),
    )
    headers = ("recipe", "select", "test", "deployed", "share", "trained", "head", "training")
    rows: list[tuple[str, ...]] = [row]
    notes = [data_line(task.source)]
    constant = summary.constant if summary else None
    if constant is not None:
        name, deployed, share, *scores = constant.row()
        rows.append((name, *scores, deployed, share, *["–"] * 3))
    unbeaten = unbeaten_text(constant, "The hybrid", outcome["test_mean"])
    notes += [unbeaten] if unbeaten else []
    return Sheet(
        headers,
        tuple(rows),
        title=f"{task.metric}, one seed, {outcome['steps']} steps",
        notes=tuple(notes),
        right=frozenset(headers[1:]),
        drop=("head", "trained", "share", "training"),
    )
