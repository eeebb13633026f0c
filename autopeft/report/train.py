"""What a training run of a fixed recipe, or a scoring of a saved one, prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.report.sheet import Sheet
from autopeft.report.tasks import data_line
from autopeft.report.text import duration, number, percent, score
from autopeft.tasks import Task

__all__ = ["next_steps", "train_sheet"]


def train_sheet(outcome: Mapping[str, Any], task: Task) -> Sheet:
    """Scores and counts of one run; `outcome` is `FixedOutcome.to_dict()`."""
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
    return Sheet(
        headers,
        (row,),
        title=f"{task.metric}, one seed, {outcome['steps']} steps",
        notes=(data_line(task.source),),
        right=frozenset(headers[1:]),
    )


def next_steps(run: str, *, other: str = "trec") -> str:
    """What to type next, once something has been trained."""
    return "\n".join(
        (
            "Next:",
            "  # recipe, weights, and peft's format where it can be said:",
            f"  autopeft export {run} -o winner",
            "  # the same recipe on another task:",
            f"  autopeft train --recipe winner/recipe.yaml --task {other}",
            "  # use it:",
            f'  autopeft predict {run} --text "…"',
        )
    )
