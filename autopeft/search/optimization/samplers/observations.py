"""What samplers of whole recipes read in a study: repaired points and how they scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

__all__ = ["History", "Outcome", "Point", "Repair"]


@dataclass(frozen=True)
class Point:
    """A repaired suggestion.

    Attributes:
        values: the space's values after repair, by parameter name.
        cost: what a second objective makes small, known before training: deployed parameters, or the cost of
            a training step.
        hash: equal for recipes that train the same.
    """

    values: Mapping[str, Any]
    cost: float
    hash: str


Repair = Callable[[dict[str, Any]], "Point | None"]


@dataclass(frozen=True)
class Outcome:
    """A finished trial.

    Attributes:
        params: Optuna's parameters, before repair.
        values: the space's values, after repair.
        rung: training steps at which `score` was taken.
        objectives: the values of the trial; for one that was stopped early they may be extrapolated.
    """

    params: Mapping[str, Any]
    values: Mapping[str, Any]
    cost: float
    rung: int
    score: float
    objectives: tuple[float, ...]


@dataclass(frozen=True)
class History:
    """A study at one moment.

    Attributes:
        outcomes: finished trials with finite values, in order.
        hashes: of every recipe in the study, running and failed ones too, where they are known.
        asked: number of trials with parameters, running and failed ones too.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    asked: int = 0

    @classmethod
    def of(cls, study: Study, repair: Repair) -> History:
        """Read a study. Where a trial's user attributes lack `point`, `cost` or `hash`, `repair` supplies
        them; where they lack `score` and `rung`, its value counts, at one rung for all."""
        outcomes: list[Outcome] = []
        hashes: set[str] = set()
        # A trial that is being asked for has no parameters yet.
        trials = [t for t in study.get_trials(deepcopy=False) if t.params]
        for trial in trials:
            point = _point(trial, repair)
            if point is None or not point.values:
                continue
            hashes.add(point.hash)
            values = trial.values if trial.state == TrialState.COMPLETE else None
            if values is None or not all(map(math.isfinite, values)):
                continue
            score, rung = trial.user_attrs.get("score"), trial.user_attrs.get("rung", 0)
            if score is None or not math.isfinite(score):
                score, rung = values[0], 0
            outcomes.append(
                Outcome(trial.params, point.values, point.cost, rung, float(score), tuple(values))
            )
        return cls(outcomes, hashes, len(trials))


def _point(trial: FrozenTrial, repair: Repair) -> Point | None:
    a = trial.user_attrs
    if a.keys() >= {"point", "cost", "hash"}:
        return Point(a["point"], float(a["cost"]), a["hash"])
    point = repair(dict(trial.params))
    if point is None:
        return None
    return Point(a.get("point", point.values), float(a.get("cost", point.cost)), point.hash)
