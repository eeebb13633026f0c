"""Strategies by name, open to other packages through the entry-point group `autopeft.strategies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from autopeft.errors import UsageError
from autopeft.plugins import Registry, import_modules
from autopeft.search.strategies.contract import StrategyClass

__all__ = ["DEFAULT", "STRATEGIES", "register"]

DEFAULT = "trials"
STRATEGIES: Registry[type[StrategyClass]] = Registry(
    error=UsageError,
    malformed="A strategy's name is a lower-case identifier, but got {name!r}.",
    taken="The strategy name {name!r} is taken by {by}.",
    unknown="There is no strategy {name!r}.{near} Strategies: {names}; one from another package registers "
    "through the entry-point group 'autopeft.strategies'.",
    group="autopeft.strategies",
    built_in=lambda: import_modules("autopeft.search.strategies"),
)
_CALLED = ("open", "planned_steps", "next", "complete", "updates", "records", "candidates")
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a strategy under `name`.

    Raises:
        UsageError: the name is taken or malformed, or the class lacks a part of the contract.
    """

    def enter(cls: _C) -> _C:
        STRATEGIES.check_name(name, cls)
        missing = [m for m in _CALLED if not callable(getattr(cls, m, None))]
        if missing:
            raise UsageError(f"Strategy {name!r} ({cls.__qualname__}) lacks {', '.join(missing)}.")
        cls.name = name  # type: ignore[attr-defined]
        for member, usual in (
            ("finals", ()),
            ("space", "default"),
            ("preset_trials", 1),
            ("takes_points", True),
            ("preset", {}),
            ("outline", "{trials} of {steps}"),
        ):
            if not hasattr(cls, member):
                setattr(cls, member, usual)
        STRATEGIES.enter(name, cls)
        return cls

    return enter
