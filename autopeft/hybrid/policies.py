"""Training policies: what a recipe's `policies:` makes of the optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autopeft.method import get_method
from autopeft.recipe import TrainingSection

__all__ = ["apply_policies"]


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
