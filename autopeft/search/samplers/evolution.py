"""Aging evolution (Real et al. 2019, arXiv:1802.01548), over repaired recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autopeft.search.hypervolume import front_of, hypervolume
from autopeft.search.samplers.history import History, Repair
from autopeft.search.samplers.moves import Distributions, mutate
from autopeft.search.samplers.whole import WholeSampler

__all__ = ["EvolutionSampler", "ranking"]

# A quarter, the share in the paper, has half the selection pressure: too little for some fifty trials.
_SHARE = 0.5


class EvolutionSampler(WholeSampler):
    """Mutates the winner of a tournament among the latest trials; age alone removes a trial.

    The population is the last `population` finished trials; half of it, drawn without replacement, meets in a
    tournament. The winner gets one to three of its parameters, as they were before repair, changed until the
    recipe is a new one.
    """

    def __init__(self, *, seed: int, startup: int, population: int, repair: Repair | None = None) -> None:
        super().__init__(seed=seed, startup=startup, repair=repair)
        self._population = population

    def propose(self, history: History, space: Distributions) -> dict[str, Any] | None:
        """A mutant of a tournament's winner."""
        population = history.outcomes[-self._population :]
        entrants = min(len(population), max(2, round(len(population) * _SHARE)))
        drawn = self._rng.choice(len(population), size=entrants, replace=False)
        place = ranking([o.objectives for o in population])
        winner = population[min(drawn, key=lambda i: place[i])].params
        return self.fresh(lambda: mutate(winner, space, self._rng), history)


def ranking(objectives: Sequence[Sequence[float]]) -> list[int]:
    """Place of each point, 0 for the best.

    One objective: by value, the later one first among equals. Two (score up, size down): by front, as in
    NSGA-II; within a front by what the hypervolume would lose without the point, the ends first.
    """
    n = len(objectives)
    if n and len(objectives[0]) == 1:
        order = sorted(range(n), key=lambda i: (-objectives[i][0], -i))
    else:
        order = _two_objectives(np.array(objectives, dtype=np.float64).reshape(n, 2))
    places = [0] * n
    for place, i in enumerate(order):
        places[i] = place
    return places


def _two_objectives(points: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    left, order = list(range(len(points))), []
    while left:
        front = {tuple(p) for p in front_of(points[left]).tolist()}
        members = [i for i in left if tuple(points[i].tolist()) in front]
        # Beyond both ends, so that the ends of a front are worth most.
        scores, sizes = points[members, 0], points[members, 1]
        reference = (2 * scores.min() - scores.max() - 1.0, 2 * sizes.max() - sizes.min() + 1.0)
        whole = hypervolume(points[members], reference)
        loss = {i: whole - hypervolume(points[[j for j in members if j != i]], reference) for i in members}
        order += sorted(members, key=lambda i: (-loss[i], -i))
        left = [i for i in left if i not in set(members)]
    return order
