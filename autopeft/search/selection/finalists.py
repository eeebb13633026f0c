"""Who wins: finalists with fresh seeds ranked on *select*; *test* is for winner and baselines alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job
from autopeft.search.optimization.pareto import order
from autopeft.search.selection.contender import RepeatedRuns, mean_sd

__all__ = ["Finalist", "choose_finalists", "choose_winner"]


class Finalist(RepeatedRuns):
    """One of the search's best recipes, to be retrained with fresh seeds."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(f"finalist {record.number}", "confirm")
        self.recipe, self.counts, self.number = record.recipe, record.counts or {}, record.number

    def jobs(self, seeds: Iterable[int], steps: int) -> list[Job]:
        """Its runs; they keep their weights, of which the winner's are tested."""
        return self.final_jobs(f"confirm-{self.number}", seeds, steps, ("select",), keep=True)


def choose_finalists(records: Iterable[TrialRecord], top: int) -> list[TrialRecord]:
    """The best `top` of `records` (best first already) that are different recipes."""
    seen: set[str] = set()
    chosen: list[TrialRecord] = []
    for record in records:
        if record.hash not in seen and len(chosen) < top:
            seen.add(record.hash)
            chosen.append(record)
    return chosen


def choose_winner(finalists: Sequence[Finalist]) -> Finalist | None:
    """The finalist with the best mean on *select*; one whose runs partly failed comes after the others."""
    scored = [f for f in finalists if f.good]
    if not scored:
        return None

    def rank(f: Finalist) -> tuple[bool, tuple[float, float, float]]:
        mean = mean_sd([r.select for r in f.good if r.select is not None])[0]
        return len(f.good) < len(f.runs), order(mean or 0.0, f.counts.get("deployed"))

    return min(scored, key=rank)
