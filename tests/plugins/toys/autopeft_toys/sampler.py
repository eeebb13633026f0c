"""A sampler: the best trial so far, with one parameter drawn anew."""

from __future__ import annotations

import random
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autopeft.search.optimization.samplers import SamplerContext, register


@register("toy")
class Climber(RandomSampler):
    """Draws at random until a trial has a score."""

    def __init__(self, context: SamplerContext) -> None:
        super().__init__(seed=context.seed)
        self._choose = random.Random(context.seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return dict(scored[0].distributions) if scored else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max(scored, key=lambda t: t.values[0])
        name = self._choose.choice(sorted(search_space))
        return {**best.params, name: self.sample_independent(study, trial, name, search_space[name])}
