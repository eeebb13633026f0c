"""The optimizer groups of what a hybrid trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from autopeft.errors import RecipeError
from autopeft.method import no_such_part, parts_of
from autopeft.recipe import TrainingSection

__all__ = ["check_parts", "groups_of"]

Group = dict[str, Any]


def groups_of(name: str, kind: str, module: nn.Module, training: TrainingSection) -> list[Group]:
    """The optimizer groups of an entry or a composition: dicts with `name`, `params`, `lr`, `weight_decay`.

    There is one group, or those of the module's own `parameter_groups()`; each part that the recipe has a
    group for is split off as `<name>.<part>`.

    Args:
        name: of the entry.
        kind: its method, or the kind of composition.
        module: what was built for it.
        training: the recipe's section.
    """
    own: Callable[[], list[Group]] | None = getattr(module, "parameter_groups", None)
    parameters = [p for p in module.parameters() if p.requires_grad]
    given: list[Group] = own() if own is not None else [{"params": parameters}] if parameters else []
    parts, groups = _addressed(name, kind, module, training), list[Group]()
    for group in given:
        left = list(group["params"])
        split = []
        for part, members in parts.items():
            chosen = [p for p in left if id(p) in members]
            left = [p for p in left if id(p) not in members]
            if chosen:
                rate, decay = training.settings(name, kind, part=part, own=group)
                changed = {"lr": rate, "weight_decay": decay, "name": f"{name}.{part}", "params": chosen}
                split.append({**group, **changed})
        if left or not split:
            rate, decay = training.settings(name, kind, own=group)
            label = f"{name}.{group['name']}" if "name" in group else name
            groups.append({**group, "lr": rate, "weight_decay": decay, "name": label, "params": left})
        groups += split
    return groups


def _addressed(name: str, kind: str, module: nn.Module, training: TrainingSection) -> dict[str, set[int]]:
    """The parameters (by id) of each part that the recipe has a group for; a part may be gone by now."""
    wanted = training.parts(name, kind)
    if not wanted:
        return {}
    there = parts_of(module)
    return {part: {id(p) for p in there.get(part, ())} for part in wanted}


def check_parts(name: str, kind: str, module: nn.Module, training: TrainingSection) -> None:
    """Check that a freshly built module has the parts that the recipe has groups for.

    Raises:
        RecipeError: it has not; the message lists those that it has.
    """
    wanted = training.parts(name, kind)
    there = parts_of(module) if wanted else {}
    for part in wanted:
        if part not in there:
            group = name if training.group(name, part=part) else kind
            raise RecipeError(f"training.groups.{group}.{part}: {no_such_part(group, part, there)}")
