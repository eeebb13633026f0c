"""The parts of a recipe as frozen, strict data: items and layer blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from autopeft.composition import composition_names, default_options
from autopeft.errors import near
from autopeft.method import MethodConfig, get_method
from autopeft.recipe.layers import At, normalise_at

__all__ = [
    "CompositionItem",
    "EntryItem",
    "Item",
    "LayerBlock",
    "Merge",
    "Part",
    "entry_items",
    "validate_config",
]

StackChoice = Literal["all", "encoder", "decoder"]


class Part(BaseModel):
    """Base of everything that a recipe consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def validate_config(method: str, config: dict[str, Any]) -> MethodConfig:
    """The config of a method as its model. Types are strict; a list stands for a tuple, as in a file.

    Raises:
        MethodError: there is no such method.
        pydantic.ValidationError: the config does not fit.
    """
    model: type[MethodConfig] = get_method(method).Config
    return model.model_validate_json(json.dumps(config), strict=True)


class Merge(Part):
    """How the values of several inputs become those that an entry starts from (see
    `autopeft.hybrid.combining`, which has the equations).

    Attributes:
        how: the rule.
        weights: of the sources, in the order of `from:`; `None` for ones. They are not normalised.
        density: the share of values that `ties`, `dare` and `dare_ties` keep of each source.
        seed: which values are kept, where they are drawn.
        align: match the hidden units of each source with those of the first, by the weights that go into
            them, or by those on both sides.
    """

    how: Literal["mean", "sum", "ties", "dare", "dare_ties", "svd"] = "mean"
    weights: tuple[float, ...] | None = None
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    align: Literal["none", "incoming", "both"] = "none"

    @model_validator(mode="after")
    def _its_rule_reads_it(self) -> Merge:
        said = self.model_fields_set
        if self.weights is not None and self.how == "mean":
            raise ValueError("'weights' is not for the mean; take 'how: sum', which does not normalise them")
        if "density" in said and self.how not in ("ties", "dare", "dare_ties"):
            raise ValueError(f"'density' is for ties, dare and dare_ties, but the rule is {self.how}")
        if "seed" in said and self.how not in ("dare", "dare_ties"):
            raise ValueError(f"'seed' is for dare and dare_ties, which draw, but the rule is {self.how}")
        if self.align != "none" and self.how == "svd":
            raise ValueError("'align' changes nothing of the products that svd adds; leave it out")
        return self

    def to_data(self) -> Any:
        """The rule as it is written in a file: its name alone where all options are defaults."""
        options = self.model_dump(mode="json", exclude_defaults=True, exclude={"how"})
        return {"how": self.how, **options} if options else self.how


class EntryItem(Part):
    """A method at its sites. `config` holds what the recipe says, defaults left out; `alias` is its `as:`,
    `start` its `from:`: inputs, or entries of them, that its values start from, `merge` says how several of
    them become one, and `frozen` that these values stay."""

    method: str
    config: dict[str, Any] = Field(default_factory=dict)
    alias: str | None = None
    start: tuple[str, ...] = ()
    merge: Merge | None = None
    frozen: bool = False

    def method_config(self) -> MethodConfig:
        """The validated config, defaults filled in."""
        return validate_config(self.method, self.config)

    def to_data(self) -> Any:
        """The item as it is written in a file."""
        data: dict[str, Any] = {self.method: dict(self.config)}
        if self.alias is not None:
            data["as"] = self.alias
        if self.start:
            data["from"] = self.start[0] if len(self.start) == 1 else list(self.start)
        if self.merge is not None:
            data["merge"] = self.merge.to_data()
        if self.frozen:
            data["frozen"] = True
        return data if len(data) > 1 or self.config else self.method


class CompositionItem(Part):
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


class LayerBlock(Part):
    """Items attached to some layers of some stacks."""

    at: Annotated[At, BeforeValidator(normalise_at)] = "all"
    stack: StackChoice = "all"
    attach: tuple[Item, ...] = Field(min_length=1)

    def to_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"at": self.at if isinstance(self.at, str) else list(self.at)}
        if self.stack != "all":
            data["stack"] = self.stack
        data["attach"] = [item.to_data() for item in self.attach]
        return data
