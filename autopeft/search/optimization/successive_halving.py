"""Rungs: trials pause after a share of their steps, and only the better ones go on.

Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934, algorithm 2): of the trials that have
reached a rung, the best 1/η may go on to the next one, as soon as there are enough of them; no trial waits
for a rung to fill. A paused trial goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import UsageError, near
from autopeft.search.optimization.pareto import nondominated, order

__all__ = ["FIDELITIES", "Rungs", "Standing", "SuccessiveHalving", "ranked"]

# What a trial has less of below the last rung: steps, or both steps and training rows.
FIDELITIES = ("steps", "data", "none")
# Before this step losses hardly tell good recipes apart: from probed heads their rank correlation with the
# end is 0.3 to 0.7 at step 20, about zero within the better half (`experiments/allocation`).
FIRST = 40


@dataclass(frozen=True)
class Rungs:
    """Steps at which trials are scored; the last are all of them.

    Attributes:
        steps: rising.
        shares: of the training rows that a trial draws from on its way to each rung.
        eta: one in so many goes on.
    """

    steps: tuple[int, ...]
    shares: tuple[float, ...]
    eta: int = 3

    @classmethod
    def of(cls, steps: int, fidelity: str = "steps", *, first: int = FIRST, eta: int = 3) -> Rungs:
        """The rungs of trainings of `steps` steps: each is `eta` times the one before; below `first` there is
        none.

        Raises:
            UsageError: the fidelity is unknown, or a number is too small.
        """
        if fidelity not in FIDELITIES:
            raise UsageError(
                f"There is no fidelity {fidelity!r}.{near(fidelity, FIDELITIES)} "
                f"Fidelities: {', '.join(FIDELITIES)}."
            )
        if first < 1 or eta < 2:
            raise UsageError(f"A first rung is at least 1 and eta at least 2, but got {first=}, {eta=}.")
        found = [steps]
        while fidelity != "none" and round(found[0] / eta) >= first:
            found.insert(0, round(found[0] / eta))
        shares = tuple(s / steps if fidelity == "data" else 1.0 for s in found)
        return cls(tuple(found), shares, eta)

    @property
    def full(self) -> int:
        """All steps."""
        return self.steps[-1]

    @property
    def expected(self) -> float:
        """Mean steps of a trial, where one in η of each rung goes on."""
        before, total = 0, 0.0
        for i, step in enumerate(self.steps):
            total += (step - before) / self.eta**i
            before = step
        return total


@dataclass(frozen=True)
class Standing:
    """A trial on a rung: its score on *select* there, and its cost, the second objective."""

    number: int
    score: float
    cost: float


def ranked(entries: Iterable[Standing], *, objectives: int = 1) -> list[Standing]:
    """Best first: by score, then cost, then number; with two objectives by front (the first is not dominated
    in score and cost), and within a front those furthest from their neighbours first."""
    rest = sorted(entries, key=_order)
    if objectives == 1:
        return rest
    found: list[Standing] = []
    while rest:
        front = nondominated(rest, _order)[::-1]
        found += _spread(front)
        chosen = {e.number for e in front}
        rest = [e for e in rest if e.number not in chosen]
    return found


def _order(entry: Standing) -> tuple[float, float, float]:
    return order(entry.score, entry.cost, entry.number)


def _spread(front: Sequence[Standing]) -> list[Standing]:
    """By crowding distance (Deb et al. 2002), the largest first; both ends have an infinite one."""
    if len(front) < 3:
        return list(front)
    scores, costs = front[0].score - front[-1].score, front[0].cost - front[-1].cost

    def distance(i: int) -> float:
        if i in (0, len(front) - 1):
            return float("inf")
        a, b = front[i - 1], front[i + 1]
        return (a.score - b.score) / (scores or 1.0) + (a.cost - b.cost) / (costs or 1)

    return [front[i] for i in sorted(range(len(front)), key=lambda i: (-distance(i), i))]


class SuccessiveHalving:
    """Which trials are on which rung, and which go on.

    Args:
        planned: trials of the whole search, which bounds how many can ever go on.
        least: trials that shall reach the last rung, if there are so many.
    """

    def __init__(self, rungs: Rungs, planned: int, *, objectives: int = 1, least: int = 1) -> None:
        self.rungs, self._objectives = rungs, objectives
        self._planned, self._least = planned, least
        self._entries: list[dict[int, Standing]] = [{} for _ in rungs.steps]
        self._gone: list[set[int]] = [set() for _ in rungs.steps]

    def reach(self, entry: Standing, step: int) -> None:
        """Note the score of a trial at a rung."""
        self._entries[self.rungs.steps.index(step)][entry.number] = entry

    def promote(self, number: int, step: int) -> None:
        """Note that a trial left the rung at `step` upwards."""
        self._gone[self.rungs.steps.index(step)].add(number)

    def drop(self, number: int) -> None:
        """A trial has failed: it stands nowhere any more."""
        for entries in self._entries:
            entries.pop(number, None)

    def candidate(self, *, closing: bool = False) -> tuple[int, int] | None:
        """The trial to continue and the rung (in steps) that it stands on, or `None`.

        While the search is `closing` (no new trial will come), the best of a rung go on until enough have
        reached the last one.
        """
        for level in range(len(self.rungs.steps) - 2, -1, -1):
            entries, gone = self._entries[level], self._gone[level]
            quota = len(entries) // self.rungs.eta
            if closing:
                quota = max(quota, self._least)
            for entry in ranked(entries.values(), objectives=self._objectives)[:quota]:
                if entry.number not in gone:
                    return entry.number, self.rungs.steps[level]
        return None

    def hopeless(self) -> set[int]:
        """Paused trials that can never go on: so many are better that even all of the trials still to come
        would not raise the quota to them."""
        found: set[int] = set()
        for level, entries in enumerate(self._entries[:-1]):
            most = max(self._planned // self.rungs.eta, self._least)
            order = ranked(entries.values(), objectives=self._objectives)
            # With two objectives a newcomer can lift others by dominating what stood before them.
            if self._objectives == 1:
                found |= {e.number for e in order[most:]} - self._gone[level]
        return found

    def queue(self) -> list[int]:
        """Paused trials, from those likely to go on to those that are not: the best of each rung, then the
        next of each."""
        found: list[tuple[int, int, int]] = []
        for level, (entries, gone) in enumerate(zip(self._entries[:-1], self._gone[:-1], strict=True)):
            order = ranked(entries.values(), objectives=self._objectives)
            waiting = [e.number for e in order if e.number not in gone]
            found += [(place, -level, number) for place, number in enumerate(waiting)]
        return [number for _, _, number in sorted(found)]

    @property
    def waiting(self) -> Mapping[int, int]:
        """Paused trials: number and the step that they stand at."""
        found: dict[int, int] = {}
        for level, entries in enumerate(self._entries[:-1]):
            found.update({n: self.rungs.steps[level] for n in entries if n not in self._gone[level]})
        return found
