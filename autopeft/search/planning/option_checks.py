"""Choices and checks of the options of a search.

Modules that take long to import are imported inside the functions.
"""

from __future__ import annotations

import ipaddress
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any

from autopeft.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from autopeft.tasks.kinds import TaskKind

__all__ = [
    "AUTO",
    "RANKS",
    "check_baselines",
    "check_budget",
    "check_gpus",
    "check_listen",
    "check_margin",
    "check_rank_for",
    "check_sampler",
    "check_size",
    "check_space",
    "check_span",
    "check_strategy",
    "check_time",
    "check_trackers",
    "names_in",
    "space_name",
    "time_text",
]

RANKS = ("calibrated-loss", "loss", "score")


AUTO = "auto"
"""The choice that leaves the decision to a probe."""


def names_in(module: str, name: str, *first: str) -> tuple[str, ...]:
    """The names that a collection or registry of a module holds, which is imported only now; those of `first`
    stand before them."""
    return (*first, *getattr(import_module(module), name))


def check_strategy(name: str) -> object:
    from autopeft.search.strategies.registry import STRATEGIES

    return STRATEGIES.find(name)


def check_sampler(name: str, objectives: int = 2) -> object:
    from autopeft.search.optimization.samplers import make_sampler

    return make_sampler(
        name, seed=0, trials=1, objectives=objectives, repaired=lambda params: None, parameters=()
    )


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
            f"Recipes for the kind of task {kind.plain} are ranked by {allowed}, but got rank_by={name!r}: "
            f"{why}; give {allowed}, or leave it out."
        )


def check_margin(points: float) -> object:
    if not 0 <= points <= 100:
        raise UsageError(f"A margin is 0 to 100 points of the score, but got {points!r}.")
    return points


def check_baselines(text: str) -> object:
    from autopeft.search.selection.baselines import parse_kinds

    return parse_kinds(text, "quick")


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


def space_name(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value.name)


def check_listen(value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise UsageError(f"listen is an IP address of this machine, but got {value!r}.") from error


def check_gpus(value: float) -> None:
    if value < 0 or (value > 1 and value != int(value)):
        raise UsageError(f"gpus_per_trial is a share below 1 or a whole number, but got {value}.")
