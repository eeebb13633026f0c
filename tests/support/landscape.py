"""A synthetic search: a space on a small BERT under a budget, with known true scores."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.hypervolume import hypervolume
from autopeft.search.optimization.samplers import Point, make_sampler
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space

DIRECTIONS = ("maximize", "minimize")
_SIZES = (
    ("serial_adapter.bottleneck", "bottleneck"),
    ("parallel_adapter.bottleneck", "parallel_bottleneck"),
    ("prefix_tuning.length", "p_tuning_v2.length"),
)


def bound_space(name: str = "autopeft", layers: int = 4, hidden: int = 64) -> BoundSpace:
    config = BertConfig(
        vocab_size=3000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
    )
    return Space.named(name).bind(spec_of(config))


class Landscape:
    """True scores: a sum over layers and modules of a weight times a log size, with pairs in a layer,
    that levels off.

    In spaces with a learning rate the score falls with its distance from the best one.
    """

    def __init__(self, space: BoundSpace, budget: str, seed: int, noise: float = 0.004) -> None:
        self.space, self.codec, self.noise = space, Codec(space.parameters), noise
        self.distributions = self.codec.distributions
        self._budget = Budget.parse(budget)
        there = {p.name: p for p in space.parameters}
        self._sizes = [next(there[name] for name in names if name in there) for names in _SIZES]
        rng = np.random.default_rng(seed)
        layers = sum(p.name.endswith(".on") and p.name.startswith("layer_") for p in space.parameters)
        self._gain = rng.gamma(1.0, 0.15 / layers, (layers, 3))
        self._pair = rng.normal(0.0, 0.1 / layers, (layers, 3))
        self.limit = self._budget.limits(space.spec)[1]

    def repaired(self, params: dict[str, Any]) -> Point | None:
        try:
            done = repair(self.space, self.codec.decode(params), self._budget)
        except AutoPEFTError:
            return None
        return Point(done.values, done.counts.deployed, done.recipe.hash())

    def truth(self, values: Mapping[str, Any]) -> float:
        sizes = [dict(zip(p.choices, p.sizes, strict=True))[values[p.name]] for p in self._sizes]
        there = [s > 0 for s in sizes]
        worth = [0.3 + 0.7 * math.log1p(s) / math.log(64) if s else 0.0 for s in sizes]
        total = 0.0
        for layer, (gain, pair) in enumerate(zip(self._gain, self._pair, strict=True)):
            if values[f"layer_{layer}.on"] and layer >= values.get("first_layer", 0):
                total += sum(g * w for g, w in zip(gain, worth, strict=True))
                total += sum(b for k, b in enumerate(pair) if there[k] and there[(k + 1) % 3])
        total = 0.6 + 0.4 * math.tanh(total / 0.4)
        if "learning_rate" in values:
            total -= 0.05 * math.log10(values["learning_rate"] / 2e-3) ** 2
        if "parallel_adapter.scale" in values:
            total += 0.02 * (values["parallel_adapter.scale"] == 2.0) * there[1]
        return total

    def measure(self, values: Mapping[str, Any], rng: np.random.Generator) -> float:
        return self.truth(values) + float(rng.normal(0.0, self.noise))

    def best(self, draws: int) -> float:
        """The highest true score that a long climb finds."""
        rng = random.Random(0)
        found = -math.inf
        starts = sorted(
            (repair(self.space, self.space.sample(rng), self._budget).values for _ in range(draws)),
            key=self.truth,
        )[-8:]
        for values in starts:
            stale = 0
            while stale < 400:
                there = dict(values)
                for p in rng.sample(self.space.parameters, rng.choice((1, 2, 3))):
                    there[p.name] = p.sample(rng)
                there = repair(self.space, there, self._budget).values
                stale += 1
                if self.truth(there) > self.truth(values):
                    values, stale = there, 0
            found = max(found, self.truth(values))
        return found


def trial_of(
    land: Landscape,
    params: dict[str, Any],
    score: float | None,
    *,
    objectives: int = 1,
    state: TrialState = TrialState.COMPLETE,
    rung: int = 100,
    attributes: bool = True,
) -> FrozenTrial:
    point = land.repaired(params)
    assert point is not None
    complete = state == TrialState.COMPLETE
    more: dict[str, Any] = {"point": dict(point.values), "cost": point.cost}
    if complete:
        more |= {"rung": rung, "full": rung == 100, "score": score}
    return create_trial(
        state=state,
        values=[score, float(point.cost)][:objectives] if complete else None,
        params=params,
        distributions=land.distributions,
        user_attrs=more if attributes else {},
    )


def view(trials: Sequence[FrozenTrial], sampler: BaseSampler, objectives: int = 1) -> Study:
    """A study in memory, built anew as a search does for each suggestion."""
    study = optuna.create_study(directions=list(DIRECTIONS[:objectives]), sampler=sampler)
    study.add_trials(trials)
    return study


class Run:
    """A search of `trials` trials; the study is built anew for each."""

    def __init__(self, land: Landscape, name: str, trials: int, seed: int, objectives: int = 1) -> None:
        self.land, self.trials, self.points = land, [], []
        sampler = make_sampler(
            name,
            seed=seed,
            trials=trials,
            objectives=objectives,
            repaired=land.repaired,
            parameters=land.space.parameters,
        )
        noise = np.random.default_rng(1000 + seed)
        for _ in range(trials):
            params = view(self.trials, sampler, objectives).ask(dict(land.distributions)).params
            point = land.repaired(params)
            assert point is not None
            score = land.measure(point.values, noise)
            self.points.append(point)
            self.trials.append(trial_of(land, params, score, objectives=objectives))

    @property
    def duplicates(self) -> int:
        return len(self.points) - len({p.hash for p in self.points})

    def regret(self, best: float) -> float:
        """What the recipe of highest measured score lacks, in truth, to the best one."""
        chosen = max(range(len(self.trials)), key=lambda i: self.trials[i].values[0])
        return best - self.land.truth(self.points[chosen].values)

    def volume(self, log: bool = False) -> float:
        """Hypervolume of the true scores, sizes as a share of the budget."""
        most = self.land.limit
        points = [
            (self.land.truth(p.values), math.log(p.cost / most) if log else p.cost / most)
            for p in self.points
        ]
        return hypervolume(points, (0.6, 0.0 if log else 1.0))
