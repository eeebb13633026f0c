"""What a training run of a fixed recipe, or a scoring of a saved one, prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.report.runs import inputs_of
from autopeft.report.sheet import Sheet
from autopeft.report.tasks import data_line
from autopeft.report.text import duration, number, percent, score
from autopeft.tasks import Task
from autopeft.tasks.summary import DataSummary

__all__ = ["kept_text", "train_sheet"]


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
        unbeaten = constant.unbeaten(outcome["test_mean"], "test", "The hybrid")
        notes += [unbeaten] if unbeaten else []
    notes += [*inputs_of(outcome["recipe"]), *_course(outcome["history"], outcome["trial_metric"])]
    notes += [told for told in outcome["remarks"] if summary is None or told not in summary.remarks]
    return Sheet(
        headers,
        tuple(rows),
        title=f"{task.metric}, one seed, {outcome['steps']} steps",
        notes=tuple(notes),
        right=frozenset(headers[1:]),
        drop=("head", "trained", "share", "training"),
    )


def _course(history: Mapping[str, Any], metric: str) -> list[str]:
    """The losses, and the best score on *select*, by a metric, where some were taken on the way."""
    first, last = history["first_loss"], history["last_loss"]
    found = []
    if first is not None:  # else no step was taken
        found.append(f"Loss: {first:.4f} over the first tenth of the steps, {last:.4f} over the last.")
    if history["scores"]:
        step, best = max(history["scores"], key=lambda point: point[1])
        found.append(f"Best {metric} on select while training: {score(best)} at step {step:,}.")
    return found


def kept_text(run: str) -> str:
    """What a training of a fixed recipe has left, and where."""
    return f"Kept in {run}: recipe.yaml, result.json (scores and losses), winner/ (weights and head)."
