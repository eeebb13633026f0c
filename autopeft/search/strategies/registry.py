"""Strategies by name, open to other packages through the entry-point group `autopeft.strategies`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from autopeft.errors import UsageError, near
from autopeft.search.strategies.contract import StrategyClass

__all__ = ["DEFAULT", "get_strategy", "register", "strategy_names"]

DEFAULT = "trials"
_GROUP = "autopeft.strategies"
_REGISTRY: dict[str, Any] = {}
_LOADED = False
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a strategy under `name`.

    Raises:
        UsageError: the name is taken or malformed, or the class lacks a part of the contract.
    """

    def enter(cls: _C) -> _C:
        if not name.isidentifier() or name != name.lower():
            raise UsageError(f"A strategy's name is a lower-case identifier, but got {name!r}.")
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise UsageError(f"The strategy name {name!r} is taken by {_REGISTRY[name].__module__}.")
        members = ("open", "planned_steps", "next", "complete", "updates", "records", "candidates")
        missing = [m for m in members if not callable(getattr(cls, m, None))]
        if missing:
            raise UsageError(f"Strategy {name!r} ({cls.__qualname__}) lacks {', '.join(missing)}.")
        cls.name = name  # type: ignore[attr-defined]
        _REGISTRY[name] = cls
        return cls

    return enter


def _load() -> None:
    """Import the built-in strategies and those of installed packages, once."""
    global _LOADED
    if not _LOADED:
        _LOADED = True
        import autopeft.search.strategies.trials  # noqa: F401

        for point in entry_points(group=_GROUP):
            point.load()


def get_strategy(name: str) -> type[StrategyClass]:
    """The strategy registered under `name`.

    Raises:
        UsageError: there is none; the message names near matches.
    """
    _load()
    if name not in _REGISTRY:
        known = ", ".join(strategy_names())
        raise UsageError(
            f"There is no strategy {name!r}.{near(name, _REGISTRY)} Strategies: {known}; one from another "
            f"package registers through the entry-point group {_GROUP!r}."
        )
    found: type[StrategyClass] = _REGISTRY[name]
    return found


def strategy_names() -> tuple[str, ...]:
    """Names of all registered strategies, sorted."""
    _load()
    return tuple(sorted(_REGISTRY))
