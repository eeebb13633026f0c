"""Runs of a few training steps, and sides that are compared by them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from lib.measuring import interleave, note, ratios, summarise

__all__ = ["StepRun", "compare", "told"]


@dataclass(frozen=True)
class StepRun:
    """One run of a side.

    Attributes:
        ms: CPU milliseconds of each counted step.
        loss: mean training loss of all steps, to see that the sides train alike.
        seconds: CPU seconds from the start of the run to the end of its last step.
    """

    ms: list[float]
    loss: float
    seconds: float

    @property
    def mean(self) -> float:
        """Milliseconds of a step. Steps differ in length, so their mean is what a training costs."""
        return statistics.fmean(self.ms)

    @classmethod
    def of(cls, start: float, ticks: Sequence[float], drop: int, loss: float) -> StepRun:
        """From the clock at the start and at the end of each step; the first `drop` steps are left out."""
        return cls([1e3 * (b - a) for a, b in pairwise(ticks[drop - 1 :])], loss, ticks[-1] - start)


def compare(
    sides: Mapping[str, Callable[[], StepRun]], repeats: int, where: str
) -> dict[str, dict[str, Any]]:
    """Run every side so many times, in turns.

    Args:
        where: what is measured, for the lines that tell how far it is.

    Returns:
        By side, JSON-able: its `runs`, their `ms_per_step`, and how many times the step of `ours` that is.
    """
    runs = interleave(
        sides,
        repeats,
        lambda name, repeat, run: note(f"{where} repeat {repeat} {name}: {run.mean:.1f} ms/step"),
    )
    found: dict[str, dict[str, Any]] = {}
    for name, several in runs.items():
        means = [run.mean for run in several]
        side: dict[str, Any] = {
            "ms_per_step": summarise(means).to_dict(),
            "runs": [asdict(r) for r in several],
        }
        if "ours" in runs:
            side["times_ours"] = ratios(means, [run.mean for run in runs["ours"]]).to_dict()
        found[name] = side
    return found


def told(side: Mapping[str, Any]) -> tuple[str, str, str]:
    """CPU milliseconds of a step, how many times ours that is, and the mean loss: as texts."""
    ratio = side.get("times_ours")
    return (
        summarise([statistics.fmean(r["ms"]) for r in side["runs"]]).text(),
        "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})",
        f"{statistics.fmean(r['loss'] for r in side['runs']):.3f}",
    )
