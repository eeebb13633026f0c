"""Phases: ordered stages of one training, each with its data split, what it trains and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.method import Phase, PhasePart
from autopeft.training.contracts import Modules
from autopeft.training.errors import PhaseError

__all__ = [
    "FirstValues",
    "Phase",
    "phases_of",
    "said",
    "spans_of",
    "steps_of",
    "trained_groups",
    "trained_modules",
]


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
        if not 0 <= phase.held_out < 1:
            raise PhaseError(
                f"`held_out` of phase {phase.name!r} lies from 0 to below 1, but got {phase.held_out!r}."
            )
        if phase.outer is not None and not phase.held_out:
            raise PhaseError(f"Phase {phase.name!r} has an upper level, which needs `held_out` above 0.")


def said(phase: Phase, owner: str | None) -> str:
    """A phase in a few words for those who watch: `training`, `search of autolora`, `retrain of autolora,
    from the first values`."""
    if owner is None:
        return "training"
    return f"{phase.name} of {owner}{', from the first values' if phase.anew else ''}"


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


def spans_of(phases: Sequence[Phase], steps: Sequence[int]) -> list[int]:
    """For each phase, the steps that events count: those of all phases from the latest that starts anew, or
    the first, to the next that does."""
    begins = [i for i, phase in enumerate(phases) if phase.anew or i == 0]
    spans: list[int] = []
    for first, end in zip(begins, [*begins[1:], len(phases)], strict=True):
        spans += [sum(steps[first:end])] * (end - first)
    return spans


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


class FirstValues:
    """Copies of what a training starts from, for phases that start anew.

    Parameters and buffers of the modules are found again by name; those that have changed shape are left.
    """

    def __init__(self, modules: Modules, groups: Sequence[dict[str, Any]]) -> None:
        self._kept = {key: tensor.detach().clone() for key, tensor in _values(modules, groups)}

    @torch.no_grad()
    def restore(
        self, phase: Phase, owner: str | None, modules: Modules, groups: Sequence[dict[str, Any]]
    ) -> bool:
        """Put what `phase` trains back to its first values; whether some buffer had others."""
        chosen = {id(p) for g in trained_groups(phase, owner, groups) for p in g["params"]}
        buffers = {id(b) for module in trained_modules(phase, owner, modules) for b in module.buffers()}
        altered = False
        for key, tensor in _values(modules, groups):
            kept = self._kept.get(key)
            if id(tensor) not in chosen | buffers or kept is None or kept.shape != tensor.shape:
                continue
            altered = altered or (id(tensor) in buffers and not torch.equal(tensor, kept))
            tensor.copy_(kept)
        return altered


def _values(modules: Modules, groups: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Every parameter and buffer of the modules, and the head's parameters, by owner and name."""
    for owner, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield (owner, name), tensor
    head = [p for g in groups if g["name"] == "head" for p in g["params"]]
    yield from ((("head", str(i)), p) for i, p in enumerate(head))
