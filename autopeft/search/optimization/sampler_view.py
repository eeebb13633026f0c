"""What a sampler sees: the whole history at full fidelity, in memory.

A trial that paused at a rung enters with the score that it would have if it gained, from there on, what those
gained that went on; its real score and rung stand beside it, for samplers that can use them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

__all__ = ["DIRECTIONS", "Observation", "ask", "gains", "view_of"]

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)


@dataclass
class Observation:
    """What is known of one trial.

    Attributes:
        params: the sampler's raw parameters.
        point: the repaired values of the space.
        cost: what a second objective makes small.
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
    ahead = gains(seen, steps)
    study = optuna.create_study(directions=DIRECTIONS[:objectives], sampler=sampler)
    for trial in seen:
        study.add_trial(_frozen(trial, dict(distributions), ahead, steps[-1], objectives))
    return study


def _frozen(
    trial: Observation,
    distributions: dict[str, BaseDistribution],
    ahead: Mapping[int, float],
    full: int,
    objectives: int,
) -> FrozenTrial:
    reached = max(trial.rungs, default=None)
    attributes: dict[str, Any] = {"point": dict(trial.point), "cost": trial.cost, "hash": trial.hash}
    values: list[float] | None = None
    state = TrialState.FAIL if trial.failed else TrialState.RUNNING
    if reached is not None and not trial.failed:
        score = trial.rungs[reached]
        attributes.update(rung=reached, full=reached == full, score=score)
        values, state = [score + ahead[reached], float(trial.cost)][:objectives], TrialState.COMPLETE
    return create_trial(
        state=state,
        values=values,
        params=dict(trial.params),
        distributions=distributions,
        user_attrs=attributes,
    )


def ask(study: Study, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A suggestion of the study's sampler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(study.ask(dict(distributions)).params)
