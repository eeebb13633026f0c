"""Training policies: what a recipe's `policies:` makes of the optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autopeft.errors import UsageError
from autopeft.method import get_method
from autopeft.recipe import TrainingSection

__all__ = ["apply_policies", "refuse_idle"]


def apply_policies(
    groups: list[dict[str, Any]],
    training: TrainingSection,
    modules: Mapping[str, nn.Module] | nn.ModuleDict,
) -> list[dict[str, Any]]:
    """The groups after every policy of the recipe, in order."""
    for item in training.policies:
        policy = get_method(item.method)(item.method_config())
        groups = policy.adjust(groups, modules)
    return groups


def refuse_idle(
    groups: list[dict[str, Any]],
    training: TrainingSection,
    modules: Mapping[str, nn.Module] | nn.ModuleDict,
) -> None:
    """Raise where a policy has nothing to act on, as LoRA+ has not where no module names its up factors.

    Raises:
        UsageError: a policy leaves these groups as they are.
    """
    for item in training.policies:
        after = get_method(item.method)(item.method_config()).adjust(groups, modules)
        if _shown(after) == _shown(groups):
            raise UsageError(
                f"The policy {item.method!r} finds nothing to act on in this recipe (see `autopeft methods "
                f"{item.method}` for what it acts on); leave it out, or attach what it needs."
            )
        groups = after


def _shown(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with their parameters' identities, to be compared."""
    return [{**g, "params": [id(p) for p in g["params"]]} for g in groups if g["params"]]
