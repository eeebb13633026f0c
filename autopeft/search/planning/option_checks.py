"""Choices and checks of the options of a search.

Modules that take long to import are imported inside the functions.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from autopeft.errors import RecipeError, UsageError, near
from autopeft.search.core.goals import GOALS, OBJECTIVES

if TYPE_CHECKING:
    from autopeft.tasks.kinds import TaskKind

__all__ = [
    "AUTO",
    "RANKS",
    "baselines",
    "check_baselines",
    "check_budget",
    "check_fidelity",
    "check_gpus",
    "check_listen",
    "check_margin",
    "check_precision",
    "check_rank",
    "check_rank_for",
    "check_sampler",
    "check_size",
    "check_space",
    "check_span",
    "check_strategy",
    "check_time",
    "check_trackers",
    "fidelities",
    "goals",
    "objectives",
    "poolings",
    "precisions",
    "ranks",
    "samplers",
    "servings",
    "space_name",
    "strategies",
    "time_text",
    "trackers",
]

RANKS = ("calibrated-loss", "loss", "score")


AUTO = "auto"
"""The choice that leaves the decision to a probe."""


def poolings() -> Iterable[str]:
    from autopeft.recipe.pooling import POOLINGS

    return (AUTO, *POOLINGS)


def ranks() -> Iterable[str]:
    return RANKS


def objectives() -> Iterable[str]:
    """Names of the objectives."""
    return OBJECTIVES


def goals() -> Iterable[str]:
    """Names of the goals."""
    return GOALS


def servings() -> Iterable[str]:
    """Names of the ways to serve a hybrid."""
    from autopeft.graph import SERVED

    return SERVED


def strategies() -> Iterable[str]:
    from autopeft.search.strategies.registry import STRATEGIES

    return STRATEGIES.names()


def check_strategy(name: str) -> object:
    from autopeft.search.strategies.registry import STRATEGIES

    return STRATEGIES.find(name)


def samplers() -> Iterable[str]:
    from autopeft.search.optimization.samplers.registry import SAMPLERS

    return SAMPLERS


def check_sampler(name: str) -> object:
    from autopeft.search.optimization.samplers import make_sampler

    return make_sampler(name, seed=0, trials=1, repaired=lambda params: None, parameters=())


def fidelities() -> Iterable[str]:
    from autopeft.search.optimization.successive_halving import FIDELITIES

    return FIDELITIES


def check_fidelity(name: str) -> object:
    from autopeft.search.optimization.successive_halving import Rungs

    return Rungs.of(1, name)


def baselines() -> Iterable[str]:
    from autopeft.search.selection.baselines import BASELINE_KINDS

    return BASELINE_KINDS


def precisions() -> Iterable[str]:
    from autopeft.assets.precision import PRECISIONS

    return ("auto", *PRECISIONS)


def check_precision(name: str) -> object:
    from autopeft.assets.precision import dtype_of

    return name if name == "auto" else dtype_of(name)


def check_rank(name: str) -> object:
    if name not in RANKS:
        raise UsageError(f"Recipes are ranked by {' or '.join(RANKS)}, but got {name!r}.{near(name, RANKS)}")
    return name


def check_rank_for(kind: TaskKind, name: str | None) -> None:
    """Refuse a loss to rank by that a kind of task lacks: recipes would be ranked by something else.

    Args:
        name: as it was asked for; `None` is the default.

    Raises:
        UsageError: recipes for this kind of task are not ranked by it.
    """
    from autopeft.tasks.kinds import Scorer

    known: tuple[str, ...] = RANKS
    why = ""
    if type(kind.scorer).row_loss is Scorer.row_loss:
        known, why = ("score",), "it has no loss to rank by"
    elif not kind.scorer.tempered:
        known, why = ("loss", "score"), "its outputs are not logits, which a temperature could divide"
    if name is not None and name not in known:
        allowed = " or ".join(known)
        raise UsageError(
            f"Recipes for the kind of task {kind.name} are ranked by {allowed}, but got rank_by={name!r}: "
            f"{why}; give {allowed}, or leave it out."
        )


def check_margin(points: float) -> object:
    if not 0 <= points <= 100:
        raise UsageError(f"A margin is 0 to 100 points of the score, but got {points!r}.")
    return points


def check_baselines(text: str) -> object:
    from autopeft.search.selection.baselines import parse_kinds

    return parse_kinds(text, "quick")


def trackers() -> Iterable[str]:
    from autopeft.search.tracking.reporter import TRACKERS

    return TRACKERS


def check_trackers(text: str) -> object:
    from autopeft.search.tracking.reporter import parse_trackers

    return parse_trackers(text)


def check_budget(value: str | int) -> object:
    from autopeft.counting import Budget

    return Budget.parse(value)


def check_time(value: str | float) -> object:
    from autopeft.effort import parse_duration

    return parse_duration(value)


def time_text(value: str | float) -> str:
    # A bare number is minutes on the command line, and seconds in Python.
    return value if isinstance(value, str) else f"{Decimal(repr(value)):f}s"


def check_size(name: str, value: str | int) -> object:
    from autopeft.resources.limits import read_size

    return read_size(name, value)


def check_span(name: str, value: str | float) -> object:
    from autopeft.resources.limits import read_span

    return read_span(name, value)


def check_space(value: Any) -> None:
    from autopeft.search.space.space import Space

    if not isinstance(value, (str, Space)):
        raise RecipeError(f"A space is a name, a YAML file or a `Space`, but got space={value!r}.")


def space_name(value: Any) -> str:
    return value if isinstance(value, str) else str(value.name)


def check_listen(value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise UsageError(f"listen is an IP address of this machine, but got {value!r}.") from error


def check_gpus(value: float) -> None:
    if value < 0 or (value > 1 and value != int(value)):
        raise UsageError(f"gpus_per_trial is a share below 1 or a whole number, but got {value}.")
