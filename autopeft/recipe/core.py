"""`Recipe`: a hybrid as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from autopeft.display import box, folded, short, table
from autopeft.errors import RecipeError
from autopeft.recipe.contents import in_brief, placed_items
from autopeft.recipe.format_1 import canonical_config
from autopeft.recipe.inputs import InputItem, address_of
from autopeft.recipe.models import (
    CompositionItem,
    EntryItem,
    Item,
    LayerBlock,
    entry_items,
)
from autopeft.recipe.names import named_entries
from autopeft.recipe.parse import SCHEMA_VERSION, read_fields
from autopeft.recipe.problems import Problems
from autopeft.recipe.training import GroupSection, TrainingSection
from autopeft.recipe.yaml_text import dump_yaml, read_text, read_yaml

__all__ = ["EmptyRecipe", "EntryRef", "Recipe"]


class EmptyRecipe(RecipeError):  # noqa: N818
    """A point of a search space left no entry at all."""


@dataclass(frozen=True)
class EntryRef:
    """One entry of a recipe.

    Attributes:
        name: unique in the recipe.
        method: name of its method.
        item: the entry.
        level: whether it stands under `layers:` or `model:`.
        block: index of its layer block, `None` under `model:`.
        path: its position in the list of items, then in the children of each composition around it.
    """

    name: str
    method: str
    item: EntryItem
    level: Literal["layers", "model"]
    block: int | None
    path: tuple[int, ...]


class Recipe(BaseModel):
    """A hybrid as data: which methods sit where, and how they train. Frozen; equal recipes are equal data.

    A recipe without entries is valid and trains the head alone. `from_yaml` reads with line numbers, `load`
    a file or a built-in recipe.

    Example:
        >>> recipe = Recipe.from_dict({"name": "small", "layers": [{"attach": [{"lora": {"rank": 4}}]}]})
        >>> [entry.name for entry in recipe.entries()]
        ['lora']
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    autopeft: int = SCHEMA_VERSION
    name: str = "hybrid"
    reference: str | None = None
    inputs: dict[str, InputItem] = Field(default_factory=dict)
    layers: tuple[LayerBlock, ...] = ()
    model: tuple[Item, ...] = ()
    training: TrainingSection = Field(default_factory=TrainingSection)

    @classmethod
    def from_dict(cls, tree: Any, source: str = "recipe") -> Recipe:
        """Read plain data of the form that `to_dict` gives.

        Raises:
            RecipeError: the data is no recipe; the message has one line for each problem.
        """
        problems = Problems(tree, source)
        fields = read_fields(tree, problems)
        problems.check()
        return cls(**fields)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read a YAML 1.2 document; `source` names it in messages.

        Raises:
            RecipeError: the text is no recipe; the message has one line `source:line: …` for each problem.
        """
        return cls.from_dict(read_yaml(text, source), source)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a YAML file.

        Raises:
            RecipeError: the file cannot be read or is no recipe.
        """
        return cls.from_yaml(read_text(Path(path)), str(path))

    @classmethod
    def named(cls, name: str) -> Recipe:
        """The built-in recipe of that name (see `autopeft.recipe.recipe_names`).

        Raises:
            RecipeError: there is none; the message names near matches.
        """
        from autopeft.recipe.library import built_in

        text, source = built_in(name)
        return cls.from_yaml(text, source)

    @classmethod
    def load(cls, ref: str | Path) -> Recipe:
        """The recipe in a file, or the built-in one of that name.

        Raises:
            RecipeError: there is neither; the message names near matches.
        """
        from autopeft.recipe.library import find_text

        text, source = find_text(ref)
        return cls.from_yaml(text, source)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data in the form of a file, defaults left out."""
        data: dict[str, Any] = {"autopeft": self.autopeft, "name": self.name}
        if self.reference is not None:
            data["reference"] = self.reference
        if self.inputs:
            data["inputs"] = {name: item.to_data() for name, item in self.inputs.items()}
        if self.layers:
            data["layers"] = [block.to_data() for block in self.layers]
        if self.model:
            data["model"] = [item.to_data() for item in self.model]
        training = self.training.to_data()
        if training:
            data["training"] = training
        return data

    def to_yaml(self) -> str:
        """The recipe as a YAML file; `from_yaml` gives back an equal recipe."""
        return dump_yaml(self.to_dict())

    @cached_property
    def _entries(self) -> tuple[EntryRef, ...]:
        names = iter(name for name, _ in named_entries(self.layers, self.model))
        found = [
            EntryRef(next(names), item.method, item, "layers", i, path)
            for i, block in enumerate(self.layers)
            for path, item in entry_items(block.attach)
        ]
        found += [
            EntryRef(next(names), item.method, item, "model", None, path)
            for path, item in entry_items(self.model)
        ]
        return tuple(found)

    def entries(self) -> list[EntryRef]:
        """All entries in file order, each with a unique name: its alias, or `lora`, `lora_2`, `lora_3`, …"""
        return list(self._entries)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its entries in file order, each once."""
        return tuple(dict.fromkeys(entry.method for entry in self._entries))

    @property
    def brief(self) -> str:
        """Its methods on one line: `lora + ia3`, or `head only`."""
        return in_brief(self.methods)

    def structure_hash(self) -> str:
        """Hash of what is attached where, 64 hex digits.

        Names, reference, training and whether a default is written out do not change it.
        """
        return _digest(self._structure())

    def pinned(self, hashes: Mapping[str, str]) -> Recipe:
        """The recipe with the hashes of its inputs' contents, by the inputs' names."""
        if not hashes:
            return self
        inputs = {k: i.model_copy(update={"sha256": hashes.get(k, i.sha256)}) for k, i in self.inputs.items()}
        return self.model_copy(update={"inputs": inputs})

    def starts(self) -> dict[str, list[tuple[str, str | None]]]:
        """What the values of each entry with a `from:` start from, by the entry's name: hashes of contents,
        and the entries therein that are named.

        Raises:
            RecipeError: the hash of an input's content is not known.
        """
        loose = [name for name, item in self.inputs.items() if item.sha256 is None]
        if loose:
            raise RecipeError(
                f"The recipe {self.name!r} takes its inputs {', '.join(loose)} as they are, so that its "
                "hash is not settled; autopeft.hybrid.pinned(recipe) writes their hashes into it."
            )
        if not self.inputs:  # a part of a recipe, to be counted or measured
            return {}
        found = {ref.name: [address_of(start) for start in ref.item.start] for ref in self._entries}
        return {
            ref: [(str(self.inputs[name].sha256), entry) for name, entry in addresses]
            for ref, addresses in found.items()
            if addresses
        }

    def hash(self) -> str:
        """Hash of the structure and of how it trains; inputs count by their content, not by where they lie.

        Raises:
            RecipeError: the hash of an input's content is not known.
        """
        section = self.training
        training = section.canonical()
        training["entries"] = [_dumped(section.group(e.name, e.method)) for e in self._entries]
        training["head"] = _dumped(section.group("head"))
        parts = [
            {
                part: _dumped(section.group(e.name, e.method, part=part))
                for part in section.parts(e.name, e.method)
            }
            for e in self._entries
        ]
        if any(parts):
            training["parts"] = parts
        of_head = {part: _dumped(section.group("head", part=part)) for part in section.parts("head")}
        if of_head:
            training["head_parts"] = of_head
        training["policies"] = [
            [p.method, canonical_config(p.method, p.method_config())] for p in self.training.policies
        ]
        if self.inputs:
            starts = self.starts()
            training["starts"] = [starts.get(ref.name, []) for ref in self._entries]
            merges = [None if e.item.merge is None else e.item.merge.to_data() for e in self._entries]
            training |= {"merges": merges} if any(merges) else {}
        return _digest([self._structure(), training])

    def __repr__(self) -> str:
        return f"Recipe({short(self.name)!r}: {self.brief})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A small box for notebooks: where each item stands, the learning rate, and the recipe as YAML."""
        items = table((), placed_items(self.layers, self.model)) if self.layers or self.model else ""
        rate = f"learning rate {self.training.learning_rate:g}"
        note = f"{self.brief}, {rate}"
        return box(self.name, items, folded("as YAML", self.to_yaml()), note=note)

    def _structure(self) -> Any:
        blocks = [[block.at, block.stack, [_canonical(i) for i in block.attach]] for block in self.layers]
        return [blocks, [_canonical(i) for i in self.model]]


def _dumped(group: GroupSection | None) -> Any:
    return None if group is None else group.model_dump(mode="json")


def _canonical(item: Item) -> Any:
    if isinstance(item, CompositionItem):
        return [item.kind, item.options, [_canonical(child) for child in item.children]]
    frozen = ["frozen"] if item.frozen else []
    return [item.method, canonical_config(item.method, item.method_config()), *frozen]


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
