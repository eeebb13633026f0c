"""What a finished search tells of its baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopeft.runs.records import TrialRecord

__all__ = ["fresh_runs"]


def fresh_runs(finals: Iterable[TrialRecord], result: Mapping[str, Any], index: int) -> Sequence[TrialRecord]:
    """Runs with fresh seeds of a baseline of one recipe: those of the recipe that the search's result tells,
    as another one may have lost a seed and given way to it.

    Args:
        finals: records of the search.
        result: its `result.json`.
        index: place of the baseline among those that the search was to train.
    """
    runs = [r for r in finals if r.job.startswith(f"baseline-{index}-") and "sweep" not in r.job]
    told = [dict(baseline["recipe"]) for baseline in result["baselines"]]
    return [r for r in runs if dict(r.recipe) in told]
