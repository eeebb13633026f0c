"""Phases: ordered stages of one training, each with its data split, what it trains and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from autopeft.method import Phase, PhasePart
from autopeft.training.contracts import Modules
from autopeft.training.errors import PhaseError

__all__ = ["Phase", "phases_of", "steps_of", "trained_groups", "trained_modules"]


def phases_of(modules: Modules) -> tuple[str | None, list[Phase]]:
    """The entry that declares phases and its phases, or `None` and one phase of everything.

    Raises:
        PhaseError: several entries declare phases (their stages cannot be run at once), or the phases are
            malformed.
    """
    declared: dict[str, Sequence[Phase]] = {}
    for name, module in modules.items():
        handler: Any = getattr(module, "phases", None)
        if handler is not None:
            declared[name] = tuple(handler())
    if not declared:
        return None, [Phase("train")]
    if len(declared) > 1:
        raise PhaseError(
            f"The entries {', '.join(map(repr, declared))} each train in phases of their own, which cannot "
            "run together; keep one of them in the recipe."
        )
    ((owner, phases),) = declared.items()
    _check(owner, phases)
    return owner, list(phases)


def _check(owner: str, phases: Sequence[Phase]) -> None:
    names = [p.name for p in phases]
    if not phases or len(set(names)) < len(names):
        raise PhaseError(
            f"The phases of {owner!r} must be at least one, with different names, but got {names}."
        )
    for phase in phases:
        if not phase.share > 0:
            raise PhaseError(f"`share` of phase {phase.name!r} must be positive, but got {phase.share!r}.")
        if not phase.trains or not phase.trains <= {"own", "others", "head"}:
            raise PhaseError(
                f"`trains` of phase {phase.name!r} names at least one of own, others, head, "
                f"but got {set(phase.trains)}."
            )


def steps_of(phases: Sequence[Phase], total: int) -> list[int]:
    """Steps of each phase: its share of `total`, at least one, adding up to `total`.

    Raises:
        PhaseError: there are fewer steps than phases.
    """
    if total < len(phases):
        raise PhaseError(f"{len(phases)} phases need at least {len(phases)} steps, but got steps={total}.")
    whole = sum(p.share for p in phases)
    spare = total - len(phases)
    exact = [spare * p.share / whole for p in phases]
    steps = [1 + int(e) for e in exact]
    by_rest = sorted(range(len(phases)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_rest[: total - sum(steps)]:
        steps[i] += 1
    return steps


def trained_groups(phase: Phase, owner: str | None, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer groups that a phase trains.

    Raises:
        PhaseError: the phase trains nothing.
    """
    chosen = [g for g in groups if part_of(str(g["name"]), owner) in phase.trains]
    if not any(g["params"] for g in chosen):
        names = ", ".join(str(g["name"]) for g in groups)
        raise PhaseError(
            f"Phase {phase.name!r} trains nothing: {sorted(phase.trains)} of the groups {names}."
        )
    return chosen


def trained_modules(phase: Phase, owner: str | None, modules: Modules) -> list[nn.Module]:
    """The modules that a phase trains, which are those that events fire on."""
    return [module for name, module in modules.items() if part_of(name, owner) in phase.trains]


def part_of(name: str, owner: str | None) -> PhasePart:
    """Where a group or module of that name stands from the declaring entry's view.

    A module with several groups names them `<entry>.<group>`.
    """
    if name == "head":
        return "head"
    return "own" if owner is None or name == owner or name.startswith(f"{owner}.") else "others"
