"""Training policies: what a recipe's `policies:` makes of the optimizer's groups, and of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from autopeft.errors import UsageError
from autopeft.method import Phase, get_method
from autopeft.recipe import TrainingSection

__all__ = ["Policies"]

Groups = Sequence[Mapping[str, Any]]
_Modules = Mapping[str, nn.Module] | nn.ModuleDict


class Policies:
    """The policies of a recipe, in its order.

    A policy adjusts the optimizer's groups (`adjust`), hears of each step (`before_step`, `after_backward`,
    `before_update`, `after_step`), adds terms to its loss (`loss_terms`), or several of these. In a step
    modules hear of an event before policies do.

    Args:
        also: policies of the trainer, after the recipe's.

    Attributes:
        terms: those that add terms to the loss.
    """

    def __init__(self, training: TrainingSection, also: Sequence[Any] = ()) -> None:
        self._own = [(p.method, get_method(p.method)(p.method_config())) for p in training.policies]
        self._own += [(type(policy).__name__, policy) for policy in also]
        self.terms: list[Any] = [policy for _, policy in self._own if hasattr(policy, "loss_terms")]

    def adjust(self, groups: list[dict[str, Any]], modules: _Modules) -> list[dict[str, Any]]:
        """The groups after every policy."""
        for _, policy in self._own:
            if hasattr(policy, "adjust"):
                groups = policy.adjust(groups, modules)
        return groups

    def upon(self, phase: Phase) -> Phase:
        """A phase without held-out rows, with those of a policy that steps on some: it has `outer` and
        `held_out` as a phase has."""
        leader = next((policy for _, policy in self._own if getattr(policy, "held_out", 0.0)), None)
        if leader is None or phase.outer is not None:
            return phase
        return replace(phase, outer=leader.outer, held_out=leader.held_out)

    def fire(self, event: str, groups: Groups, step: int, total: int) -> None:
        """Call `event(groups, step, total)` on every policy that has it, with the optimizer's groups."""
        for _, policy in self._own:
            handler: Any = getattr(policy, event, None)
            if handler is not None:
                handler(groups, step, total)

    def refuse_idle(self, groups: list[dict[str, Any]], modules: _Modules) -> None:
        """Raise where a policy has nothing to act on, as LoRA+ has not where no module names its up factors.

        Raises:
            UsageError: a policy leaves these groups as they are, or says that it acts on none of them
                (`acts_on`).
        """
        for name, policy in self._own:
            if hasattr(policy, "acts_on"):
                idle = not policy.acts_on(groups)
                after = groups
            else:
                after = policy.adjust(groups, modules)
                idle = _shown(after) == _shown(groups)
            if idle:
                raise UsageError(
                    f"The policy {name!r} finds nothing to act on in this recipe (see `autopeft methods "
                    f"{name}` for what it acts on); leave it out, or attach what it needs."
                )
            groups = after


def _shown(groups: Groups) -> list[dict[str, Any]]:
    """The groups with their parameters' identities, to be compared."""
    return [{**g, "params": [id(p) for p in g["params"]]} for g in groups if g["params"]]
