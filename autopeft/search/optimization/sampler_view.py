"""What a sampler sees: the whole history at full fidelity, as a study in memory.

A trial that paused at a rung enters with the score that it has there plus the mean gain of those that went on
from it. Its real score and rung stand beside that, for samplers that can use them: `History` reads them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "DIRECTIONS",
    "History",
    "Observation",
    "Outcome",
    "Point",
    "Repair",
    "ask",
    "gains",
    "view_of",
]

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)


@dataclass
class Observation:
    """One trial, as the study knows it.

    Attributes:
        params: the sampler's raw parameters.
        point: the repaired values of the space.
        cost: the second objective, which is minimised.
        rungs: step to score on *select*, the last rung's included.
        failed: nothing can be learned from it.
        hash: of the repaired recipe.
    """

    params: Mapping[str, Any]
    point: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 0
    rungs: dict[int, float] = field(default_factory=dict)
    failed: bool = False
    hash: str = ""


def gains(seen: Iterable[Observation], steps: Sequence[int]) -> dict[int, float]:
    """For each rung the mean gain in score from there to the last one, over the trials that went on, rung by
    rung; where none did, the gain counts as 0."""
    trials = list(seen)
    total, found = 0.0, {steps[-1]: 0.0}
    for low, high in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
        both = [t.rungs[high] - t.rungs[low] for t in trials if low in t.rungs and high in t.rungs]
        total += sum(both) / len(both) if both else 0.0
        found[low] = total
    return found


class _Shared(dict[str, BaseDistribution]):
    """Distributions that all trials of a study share. A study keeps a deep copy of each trial that it is
    given; nothing changes the distributions, and copying them takes most of the time."""

    def __deepcopy__(self, memo: object) -> _Shared:
        return self


def view_of(
    seen: Sequence[Observation],
    distributions: Mapping[str, BaseDistribution],
    steps: Sequence[int],
    sampler: BaseSampler,
    *,
    objectives: int = 1,
) -> Study:
    """An in-memory study of `seen`, in order; `steps` are the rungs."""
    # Optuna tells of every study that is made.
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.ERROR))
    ahead, full, shared = gains(seen, steps), steps[-1], _Shared(distributions)
    study = optuna.create_study(directions=DIRECTIONS[:objectives], sampler=sampler)
    for trial in seen:
        attributes: dict[str, Any] = {"point": dict(trial.point), "cost": trial.cost, "hash": trial.hash}
        values: list[float] | None = None
        state = TrialState.FAIL if trial.failed else TrialState.RUNNING
        reached = max(trial.rungs, default=None)
        if reached is not None and not trial.failed:
            score, state = trial.rungs[reached], TrialState.COMPLETE
            attributes.update(rung=reached, full=reached == full, score=score)
            values = [score + ahead[reached], float(trial.cost)][:objectives]
        now = datetime.now()
        study.add_trial(
            FrozenTrial(
                number=-1,  # the study numbers its trials
                trial_id=-1,
                state=state,
                value=None,
                values=values,
                params=dict(trial.params),
                distributions=shared,
                user_attrs=attributes,
                system_attrs={},
                intermediate_values={},
                datetime_start=now,
                datetime_complete=now if state.is_finished() else None,
            )
        )
    return study


def ask(study: Study, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A suggestion of the study's sampler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(study.ask(dict(distributions)).params)


@dataclass(frozen=True)
class Point:
    """A repaired suggestion.

    Attributes:
        values: the space's values after repair, by parameter name.
        cost: the second objective, known before training: deployed parameters, or the cost of a training
            step.
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
        trials: number of trials with parameters, running and failed ones too.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    trials: int = 0

    @classmethod
    def of(cls, study: Study, repair: Repair) -> History:
        """Read a study. Where a trial's user attributes lack `point`, `cost` or `hash`, `repair` supplies
        them; where they lack `score` and `rung`, its value counts, at one rung for all."""
        outcomes: list[Outcome] = []
        hashes: set[str] = set()
        # The trial that the sampler is proposing for has no parameters yet.
        trials = [t for t in study.get_trials(deepcopy=False) if t.params]
        for trial in trials:
            a = trial.user_attrs
            if a.keys() >= {"point", "cost", "hash"}:
                point: Point | None = Point(a["point"], float(a["cost"]), a["hash"])
            elif (point := repair(dict(trial.params))) is not None:
                point = Point(a.get("point", point.values), float(a.get("cost", point.cost)), point.hash)
            if point is None or not point.values:
                continue
            hashes.add(point.hash)
            values = trial.values if trial.state == TrialState.COMPLETE else None
            if values is None or not all(map(math.isfinite, values)):
                continue
            score, rung = a.get("score"), a.get("rung", 0)
            if score is None or not math.isfinite(score):
                score, rung = values[0], 0
            outcomes.append(
                Outcome(trial.params, point.values, point.cost, rung, float(score), tuple(values))
            )
        return cls(outcomes, hashes, len(trials))
