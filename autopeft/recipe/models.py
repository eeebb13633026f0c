"""The parts of a recipe as frozen, strict data: items, layer blocks and the training section."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autopeft.composition import composition_names, default_options
from autopeft.errors import near
from autopeft.method import MethodConfig, get_method
from autopeft.recipe.layers import At, normalise_at, resolve_layers

__all__ = [
    "CompositionItem",
    "EntryItem",
    "GroupSection",
    "Item",
    "LayerBlock",
    "PolicyItem",
    "Settings",
    "TrainingSection",
    "entry_items",
    "validate_config",
]

StackChoice = Literal["all", "encoder", "decoder"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def validate_config(method: str, config: dict[str, Any]) -> MethodConfig:
    """The config of a method as its model. Types are strict; a list stands for a tuple, as in a file.

    Raises:
        MethodError: there is no such method.
        pydantic.ValidationError: the config does not fit.
    """
    model: type[MethodConfig] = get_method(method).Config
    return model.model_validate_json(json.dumps(config), strict=True)


class EntryItem(_Part):
    """A method at its sites. `config` holds what the recipe says, defaults left out; `alias` is its `as:`."""

    method: str
    config: dict[str, Any] = Field(default_factory=dict)
    alias: str | None = None

    def method_config(self) -> MethodConfig:
        """The validated config, defaults filled in."""
        return validate_config(self.method, self.config)

    def to_data(self) -> Any:
        """The item as it is written in a file."""
        if self.alias is None:
            return {self.method: dict(self.config)} if self.config else self.method
        return {self.method: dict(self.config), "as": self.alias}


class CompositionItem(_Part):
    """Children that act together.

    `options` are complete (see `autopeft.composition.default_options`).
    """

    kind: str
    children: tuple[EntryItem | CompositionItem, ...] = Field(min_length=1)
    alias: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _exists(cls, value: str) -> str:
        known = composition_names()
        if value not in known:
            raise ValueError(
                f"there is no composition {value!r}.{near(value, known)} There are: {', '.join(known)}"
            )
        return value

    def to_data(self) -> Any:
        """The item as it is written in a file: a plain list of children where all options are defaults."""
        children = [child.to_data() for child in self.children]
        default = default_options(self.kind)
        extra = {k: v for k, v in self.options.items() if default[k] != v}
        body: Any = {"children": children, **extra} if extra else children
        return {self.kind: body} if self.alias is None else {self.kind: body, "as": self.alias}


Item = EntryItem | CompositionItem


def entry_items(
    items: tuple[Item, ...], path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], EntryItem]]:
    """Every entry among `items` and their children, in file order, with its position at each level."""
    for i, item in enumerate(items):
        if isinstance(item, EntryItem):
            yield (*path, i), item
        else:
            yield from entry_items(item.children, (*path, i))


class LayerBlock(_Part):
    """Items attached to some layers of some stacks."""

    at: At = "all"
    stack: StackChoice = "all"
    attach: tuple[Item, ...] = Field(min_length=1)

    @field_validator("at", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> At:
        return normalise_at(value)

    def layer_indices(self, n_layers: int) -> tuple[int, ...]:
        """The 0-based layers of a stack of `n_layers` that the block covers.

        Raises:
            RecipeError: it names a layer that the stack does not have.
        """
        return resolve_layers(self.at, n_layers)

    def to_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"at": self.at if isinstance(self.at, str) else list(self.at)}
        if self.stack != "all":
            data["stack"] = self.stack
        data["attach"] = [item.to_data() for item in self.attach]
        return data


class GroupSection(_Part):
    """Optimizer settings of one group; what is left out is taken from the training section."""

    learning_rate: float | None = Field(default=None, gt=0, le=10)
    weight_decay: float | None = Field(default=None, ge=0, le=1)


class PolicyItem(_Part):
    """A method that alters training only (LoRA+)."""

    method: str
    config: dict[str, Any] = Field(default_factory=dict)

    def method_config(self) -> MethodConfig:
        """The validated config, defaults filled in."""
        return validate_config(self.method, self.config)

    def to_data(self) -> Any:
        return {self.method: dict(self.config)} if self.config else self.method


class Settings(NamedTuple):
    """How one part of a recipe trains."""

    learning_rate: float
    weight_decay: float


class TrainingSection(_Part):
    """How a recipe trains.

    Attributes:
        learning_rate: peak learning rate of every group that names none.
        weight_decay: AdamW's, decoupled.
        warmup: share of the steps with a rising learning rate.
        schedule: what follows the warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them alone.
        dropout: whether the backbone's own dropout acts.
        groups: settings by entry name, method name or `head`.
        policies: methods that alter training only.
    """

    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.06, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, ge=0)
    dropout: bool = False
    groups: dict[str, GroupSection] = Field(default_factory=dict)
    policies: tuple[PolicyItem, ...] = ()

    def group_of(self, *names: str) -> GroupSection | None:
        """The group of the first of `names` that has one: an entry's name goes before its method's."""
        return next((self.groups[name] for name in names if name in self.groups), None)

    def settings_of(self, *names: str) -> Settings:
        """Learning rate and weight decay of an entry, a composition or the head, by its names as in
        `group_of`; what that group leaves open, or where there is none, is this section's own."""
        group = self.group_of(*names)
        rate = None if group is None else group.learning_rate
        decay = None if group is None else group.weight_decay
        return Settings(
            self.learning_rate if rate is None else rate, self.weight_decay if decay is None else decay
        )

    def to_data(self) -> dict[str, Any]:
        """What differs from the defaults, as it is written in a file."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"policies", "groups"})
        if self.groups:
            data["groups"] = {k: g.model_dump(mode="json", exclude_none=True) for k, g in self.groups.items()}
        if self.policies:
            data["policies"] = [p.to_data() for p in self.policies]
        return data
