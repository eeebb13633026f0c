"""Aging evolution (Real et al. 2019, arXiv:1802.01548), over repaired recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autopeft.search.optimization.hypervolume import front_of, hypervolume
from autopeft.search.optimization.samplers.base import WholeSampler
from autopeft.search.optimization.samplers.mutation import Distributions, mutate
from autopeft.search.optimization.samplers.observations import History, Repair

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["EvolutionSampler", "ranking"]

# A quarter, the share in the paper, has half the selection pressure: too little for some fifty trials.
_SHARE = 0.5


class EvolutionSampler(WholeSampler):
    """Mutates the winner of a tournament among the latest trials; age alone removes a trial.

    The population is the last `population` finished trials; half of it, drawn without replacement, meets in a
    tournament. The winner gets one to three of its parameters changed, until the recipe is a new one.
    """

    def __init__(
        self,
        *,
        seed: int,
        startup: int,
        population: int,
        repair: Repair | None = None,
        parameters: Sequence[Parameter] = (),
        objectives: int = 1,
    ) -> None:
        super().__init__(
            seed=seed, startup=startup, repair=repair, parameters=parameters, objectives=objectives
        )
        self._population = population

    def propose(self, history: History, space: Distributions) -> dict[str, Any] | None:
        """A mutant of a tournament's winner."""
        population = history.outcomes[-self._population :]
        entrants = min(len(population), max(2, round(len(population) * _SHARE)))
        drawn = self._rng.choice(len(population), size=entrants, replace=False)
        place = ranking([o.objectives for o in population])
        winner = population[min(drawn, key=lambda i: place[i])]
        genes = self.genes(winner.params, winner.values)
        return self.fresh(lambda: mutate(genes, space, self._rng), history)


def ranking(objectives: Sequence[Sequence[float]]) -> list[int]:
    """Place of each point, 0 for the best.

    One objective: by value, the later one first among equals. Two (score up, size down): by front, as in
    NSGA-II; within a front by what its hypervolume would lose without the point, down to the lowest score and
    the largest size of all.
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


def _two_objectives(points: NDArray[np.float64]) -> list[int]:
    left, order = list(range(len(points))), []
    while left:
        front = {tuple(p) for p in front_of(points[left]).tolist()}
        members = [i for i in left if tuple(points[i].tolist()) in front]
        reference = (float(points[:, 0].min()), float(points[:, 1].max()))
        whole = hypervolume(points[members], reference)
        loss = {i: whole - hypervolume(points[[j for j in members if j != i]], reference) for i in members}
        order += sorted(members, key=lambda i: (-loss[i], -i))
        left = [i for i in left if i not in set(members)]
    return order
