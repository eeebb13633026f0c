"""The training section of a recipe as frozen, strict data: rates, decay, optimizer, groups and policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from autopeft.method import MethodConfig
from autopeft.recipe.models import Part, validate_config
from autopeft.recipe.optimizer import DEFAULT_OPTIMIZER, Optimizer

__all__ = ["HEAD_PARTS", "GroupSection", "GroupSettings", "PolicyItem", "TrainingSection", "address"]


HEAD_PARTS = ("hidden",)
"""Parts of the task head that a recipe may have groups for: `head.hidden` are its layers before the last
linear map, which many models' heads lack."""


def address(group: str) -> tuple[str, str]:
    """The entry (or method) and the part that a group is named after; the part is empty for all of it."""
    name, _, part = group.partition(".")
    return name, part


class GroupSettings(NamedTuple):
    """How a group of parameters trains, with everything filled in."""

    learning_rate: float
    weight_decay: float


class GroupSection(Part):
    """Optimizer settings of one group; what is left out comes from the next wider one."""

    learning_rate: float | None = Field(default=None, gt=0, le=10)
    weight_decay: float | None = Field(default=None, ge=0, le=1)


class PolicyItem(Part):
    """A method that alters training only (LoRA+)."""

    method: str
    config: dict[str, Any] = Field(default_factory=dict)

    def method_config(self) -> MethodConfig:
        """The validated config, defaults filled in."""
        return validate_config(self.method, self.config)

    def to_data(self) -> Any:
        return {self.method: dict(self.config)} if self.config else self.method


class TrainingSection(Part):
    """How a recipe trains.

    Attributes:
        learning_rate: peak learning rate of every group that names none.
        weight_decay: of every group that names none. What multiplies the backbone's own values decays towards
            the value at which it changes nothing, not towards zero (see `decays` in `autopeft.method`).
        warmup: share of the steps with a rising learning rate.
        schedule: what follows the warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them alone. `optimizer.clip` says whose.
        dropout: whether the backbone's own dropout acts.
        optimizer: what takes the steps (see `autopeft.recipe.optimizer`); AdamW where it is left out.
        groups: settings by entry name, method name or `head`, and of one part of an entry by `entry.part`:
            `{prefix_tuning.mlp: {learning_rate: 1e-3}}`. A part takes what its group leaves out from its
            entry's group, and that from the section. `head.hidden` are the head's layers before its last
            linear map, and says nothing where it has none.
        policies: methods that alter training only.
    """

    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.06, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, ge=0)
    dropout: bool = False
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    groups: dict[str, GroupSection] = Field(default_factory=dict)
    policies: tuple[PolicyItem, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """The values that are not defaults, as they are written in a file."""
        apart = {"policies", "groups", "optimizer"}
        data = self.model_dump(mode="json", exclude_defaults=True, exclude=apart)
        if self.optimizer != DEFAULT_OPTIMIZER:
            data["optimizer"] = self.optimizer.to_data()
        if self.groups:
            data["groups"] = {k: g.model_dump(mode="json", exclude_none=True) for k, g in self.groups.items()}
        if self.policies:
            data["policies"] = [p.to_data() for p in self.policies]
        return data

    def canonical(self, *, without: Iterable[str] = ()) -> dict[str, Any]:
        """The values that go into hashes beside groups and policies: all, but no default optimizer."""
        apart = {"groups", "policies", *without}
        if self.optimizer == DEFAULT_OPTIMIZER:
            apart.add("optimizer")
        return self.model_dump(mode="json", exclude=apart)

    def group(self, *names: str, part: str = "") -> GroupSection | None:
        """The group of the first of `names` that has one; with `part`, of this part of theirs."""
        wanted = [f"{name}.{part}" for name in names] if part else names
        return next((self.groups[name] for name in wanted if name in self.groups), None)

    def without_head_parts(self) -> TrainingSection:
        """The section without groups for parts of the head, which say nothing where it is one linear map."""
        if not self.parts("head"):
            return self
        groups = {n: g for n, g in self.groups.items() if n == "head" or address(n)[0] != "head"}
        return self.model_copy(update={"groups": groups})

    def parts(self, *names: str) -> tuple[str, ...]:
        """The parts of these names that have groups of their own, in file order."""
        split = [address(group) for group in self.groups]
        return tuple(dict.fromkeys(part for name, part in split if part and name in names))

    def settings(self, *names: str, part: str = "", own: Mapping[str, Any] | None = None) -> GroupSettings:
        """How an entry, composition, head or part of them trains.

        A value comes from the group of the part, from `own`, from the group of the first of `names` that has
        one, else from the section.

        Args:
            names: the entry's name, then its method.
            part: which part of it; empty for the whole.
            own: `lr` and `weight_decay` that a module itself asks for, or an `lr_factor`, by which it
                multiplies what the entry's group or the section says.
        """
        of_part = self.group(*names, part=part) if part else None
        of_entry, of_module = self.group(*names), own or {}
        of_group = None if of_entry is None else of_entry.learning_rate
        rates = (
            None if of_part is None else of_part.learning_rate,
            of_module.get("lr"),
            (self.learning_rate if of_group is None else of_group) * of_module.get("lr_factor", 1.0),
        )
        decays = (
            None if of_part is None else of_part.weight_decay,
            of_module.get("weight_decay"),
            None if of_entry is None else of_entry.weight_decay,
        )
        return GroupSettings(
            next(rate for rate in rates if rate is not None),
            next((decay for decay in decays if decay is not None), self.weight_decay),
        )
