"""The optimizer groups of what a hybrid trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autopeft.backbones import hidden_of_head
from autopeft.errors import RecipeError
from autopeft.method import no_such_part, parts_of
from autopeft.recipe import TrainingSection
from autopeft.recipe.training import address

__all__ = ["check_parts", "groups_of", "groups_of_head"]

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


def groups_of_head(
    model: PreTrainedModel, head: Mapping[str, nn.Parameter], training: TrainingSection
) -> list[Group]:
    """The optimizer groups of a task head: one, and its hidden layers apart where the recipe has a group for
    them and the head has some.

    Args:
        head: its parameters by their names in the model. They may be copies, as where several hybrids are on
            it.
    """
    hidden = hidden_of_head(model) if "hidden" in training.parts("head") else {}
    groups = []
    for name, part in (("head", ""), ("head.hidden", "hidden")):
        params = [p for own, p in head.items() if (own in hidden) == bool(part)]
        if params:
            rate, decay = training.settings("head", part=part)
            groups.append({"name": name, "params": params, "lr": rate, "weight_decay": decay})
    return groups


def _addressed(name: str, kind: str, module: nn.Module, training: TrainingSection) -> dict[str, set[int]]:
    """The parameters (by id) of each part that the recipe has a group for; a part may be gone by now."""
    wanted = training.parts(name, kind)
    if not wanted:
        return {}
    there = parts_of(module)
    return {part: {id(p) for p in there.get(part, ())} for part in wanted}


def check_parts(
    kinds: Mapping[str, str], modules: Mapping[str, nn.Module], training: TrainingSection
) -> None:
    """Check that freshly built modules have the parts that the recipe has groups for.

    Args:
        kinds: the method, or the kind of composition, of each module.
        modules: what was built, by name.
        training: the recipe's section.

    Raises:
        RecipeError: none that a group is for has its part; the message lists those that there are.
    """
    for group in training.groups:
        name, part = address(group)
        if part and name != "head":
            parts = [parts_of(m) for n, m in modules.items() if name in (n, kinds[n])]
            there = list(dict.fromkeys(p for found in parts for p in found))
            if part not in there:
                raise RecipeError(f"training.groups.{group}: {no_such_part(name, part, there)}")
