"""Phases: ordered stages of one training, each with its data split, what it trains and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.method import Phase, PhasePart
from autopeft.training.contracts import Modules
from autopeft.training.errors import PhaseError

__all__ = [
    "Phase",
    "Span",
    "Stage",
    "return_to_start",
    "spans_of",
    "stages_of",
    "step_counts",
    "values_of",
]


@dataclass(frozen=True)
class Span:
    """Successive stages over which events count on: their `steps`, and whether a stage `begins` them."""

    steps: int
    begins: bool


@dataclass(frozen=True)
class Stage:
    """A phase in its place in a training.

    Attributes:
        owner: the entry that declares it; `None` where no entry has phases.
        apart: the other entries with phases, which stay as they are.
        steps: optimizer steps.
        own, others: what events count over: those of the owner, and those of entries without phases and of
            policies, for which the phases of all owners are one training.
        first: whether it is its owner's first.
        alone: whether it is its owner's only phase.
    """

    phase: Phase
    owner: str | None
    apart: frozenset[str]
    steps: int
    own: Span
    others: Span
    first: bool
    alone: bool

    @property
    def key(self) -> str:
        """The name of its output."""
        return f"{self.owner}.{self.phase.name}" if self.apart else self.phase.name

    def label(self) -> str:
        """The phase in a few words for those who watch: `training`, `search of autolora`, `retrain of
        autolora, from the first values`."""
        if self.owner is None or (self.alone and not self.apart):
            return "training"
        anew = self.phase.anew
        back = "" if not anew else ", from the first values" if anew is True else f", from before {anew}"
        return f"{self.phase.name} of {self.owner}{back}"

    def groups(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer groups that the phase trains.

        Raises:
            PhaseError: the phase trains nothing.
        """
        chosen = [g for g in groups if self.part_of(str(g["name"])) in self.phase.trains]
        if not any(g["params"] for g in chosen):
            names = ", ".join(str(g["name"]) for g in groups)
            raise PhaseError(
                f"Phase {self.phase.name!r} trains nothing: {sorted(self.phase.trains)} of the groups "
                f"{names}."
            )
        return chosen

    def modules(self, modules: Modules) -> dict[str, nn.Module]:
        """The modules that the phase trains, which are those that events fire on."""
        return {name: module for name, module in modules.items() if self.part_of(name) in self.phase.trains}

    def part_of(self, name: str) -> PhasePart | None:
        """Where a group or module of that name stands from the declaring entry's view; `None`: apart.

        A module with several groups names them `<entry>.<group>`.
        """
        if f"{name}.".startswith("head."):
            return "head"
        if self.owner is None or f"{name}.".startswith(f"{self.owner}."):
            return "own"
        return None if any(f"{name}.".startswith(f"{other}.") for other in self.apart) else "others"


def stages_of(modules: Modules, total: int) -> list[Stage]:
    """The stages of a training of `total` steps: the phases of each entry that declares some, in the order of
    the recipe and with equal parts of the steps, or one phase of everything.

    Raises:
        PhaseError: the phases are malformed, or there are more of them than steps.
    """
    declared: dict[str | None, Sequence[Phase]] = {}
    for name, module in modules.items():
        handler: Any = getattr(module, "phases", None)
        if handler is not None:
            declared[name] = tuple(handler())
            _check(name, declared[name])
    declared = declared or {None: [Phase("train")]}
    shares = [
        phase.share / math.fsum(p.share for p in phases) for phases in declared.values() for phase in phases
    ]
    steps = step_counts(shares, total)
    others = iter(spans_of([p for phases in declared.values() for p in phases], steps, "others"))
    found: list[Stage] = []
    for owner, phases in declared.items():
        counts = steps[len(found) : len(found) + len(phases)]
        apart = frozenset(str(name) for name in declared if name != owner)
        for i, (phase, own) in enumerate(zip(phases, spans_of(phases, counts, "own"), strict=True)):
            found.append(Stage(phase, owner, apart, counts[i], own, next(others), i == 0, len(phases) == 1))
    return found


def _check(owner: str, phases: Sequence[Phase]) -> None:
    names = [p.name for p in phases]
    if not phases or len(set(names)) < len(names):
        raise PhaseError(
            f"The phases of {owner!r} must be at least one, with different names, but got {names}."
        )
    for i, phase in enumerate(phases):
        if isinstance(phase.anew, str) and phase.anew not in names[:i]:
            raise PhaseError(
                f"`anew` of phase {phase.name!r} names an earlier one, but got {phase.anew!r}; earlier are "
                f"{names[:i]}."
            )
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
        if phase.outer is not None and phase.run is not None:
            raise PhaseError(
                f"Phase {phase.name!r} has an upper level and a `run` of its own; it has one of them."
            )


def step_counts(shares: Sequence[float], total: int) -> list[int]:
    """Steps of each of several phases: its share of `total`, at least one, adding up to `total`.

    Raises:
        PhaseError: there are fewer steps than phases.
    """
    if total < len(shares):
        raise PhaseError(f"{len(shares)} phases need at least {len(shares)} steps, but got steps={total}.")
    spare, whole = total - len(shares), sum(shares)
    exact = [spare * share / whole for share in shares]
    steps = [1 + int(e) for e in exact]
    by_rest = sorted(range(len(shares)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_rest[: total - sum(steps)]:
        steps[i] += 1
    return steps


def spans_of(phases: Sequence[Phase], steps: Sequence[int], part: PhasePart) -> list[Span]:
    """For each of successive phases what events of `part` count over: all phases from the latest that starts
    it anew, or the first, to the next that does. What a phase does not train it does not start anew."""
    begins = [i for i, phase in enumerate(phases) if i == 0 or (phase.anew and part in phase.trains)]
    spans: list[Span] = []
    for first, end in zip(begins, [*begins[1:], len(phases)], strict=True):
        spans += [Span(sum(steps[first:end]), i == first) for i in range(first, end)]
    return spans


@torch.no_grad()
def return_to_start(
    coming: Sequence[Stage],
    starts: dict[bool | str, dict[tuple[str, str], Tensor]],
    modules: Modules,
    groups: Sequence[dict[str, Any]],
) -> bool:
    """Put what a stage trains back to where it starts from, and keep copies of what later ones start from.

    Parameters and buffers of the modules are found again by name; those that have changed shape are left.

    Args:
        coming: the stage and those after it.
        starts: copies of what the owner's first phase began with (`True`), and of what a phase began with
            that a later one names. They are held here as long as some phase will need them.

    Returns:
        Whether some buffer had other values.
    """
    stage = coming[0]
    wanted = {s.phase.anew for s in coming if s.owner == stage.owner}
    for name in list(starts):
        if stage.first or name not in wanted:
            del starts[name]
    if stage.first and True in wanted:
        starts[True] = {key: tensor.detach().clone() for key, tensor in values_of(modules, groups)}
    altered = False
    if stage.phase.anew in starts:
        kept = starts[stage.phase.anew]
        chosen = {id(p) for g in stage.groups(groups) for p in g["params"]}
        buffers = {id(b) for module in stage.modules(modules).values() for b in module.buffers()}
        for key, tensor in values_of(modules, groups):
            if id(tensor) not in chosen | buffers or key not in kept or kept[key].shape != tensor.shape:
                continue
            altered = altered or (id(tensor) in buffers and not torch.equal(tensor, kept[key]))
            tensor.copy_(kept[key])
    if stage.phase.name in wanted:
        starts[stage.phase.name] = {
            key: tensor.detach().clone() for key, tensor in values_of(modules, groups)
        }
    return altered


def values_of(modules: Modules, groups: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Every parameter and buffer of the modules, and the head's parameters, by owner and name."""
    for owner, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield (owner, name), tensor
    head = [p for g in groups if f"{g['name']}.".startswith("head.") for p in g["params"]]
    yield from ((("head", str(i)), p) for i, p in enumerate(head))
