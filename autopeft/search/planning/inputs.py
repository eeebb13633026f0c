"""What a space's entries start from: opened and pinned by hash before anything is trained, and checked to
fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from autopeft.assets import ModelSource
from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Artefact, build_modules
from autopeft.hybrid.draws import seeded
from autopeft.hybrid.inputs import open_input, start_entries
from autopeft.recipe import Item, Recipe
from autopeft.recipe.problems import dotted
from autopeft.search.space.bound import BoundSpace, Unit, blocks_of
from autopeft.search.space.compiler import each_option
from autopeft.search.space.space import Space
from autopeft.search.space.templates import has_start

__all__ = ["check_fit", "open_inputs"]


def open_inputs(space: Space, runs: str | Path) -> tuple[Space, dict[str, Artefact]]:
    """The space with the hashes of what its inputs hold now, and the inputs by name.

    Raises:
        DataError: an input is missing, damaged, or not what the space's hash says.
    """
    found = {name: open_input(name, item, Path(runs)) for name, item in space.inputs.items()}
    return space.pinned({name: artefact.sha256 for name, artefact in found.items()}), found


def check_fit(bound: BoundSpace, inputs: Mapping[str, Artefact], source: ModelSource) -> None:
    """Check that every option of an item with a `from:` can start from what it names: repair chooses among
    them.

    Raises:
        UsageError: one cannot.
    """
    for unit in bound.units:
        if has_start(unit.template.node):
            for item in _options(bound, unit):
                where = bound.where(unit, bound.middle())
                at = {"model": (item,)} if where is None else {"layers": tuple(blocks_of((item,), where))}
                recipe = Recipe(name=bound.name, inputs=bound.inputs_of((item,)), **at)
                try:
                    graph = build_graph(recipe, bound.spec)
                    with seeded(0):
                        start_entries(recipe, build_modules(graph), inputs, bound.spec, source)
                except UsageError as error:
                    raise type(error)(
                        f"{dotted(unit.template.path)} of space {bound.name!r}: {error} Each option with a "
                        "'from:' has to fit; offer other sizes as options without one."
                    ) from error


def _options(bound: BoundSpace, unit: Unit) -> Iterator[Item]:
    """The items with a start that a unit can be, one option at a time."""
    seen = set[str]()
    for values in each_option(unit.template.node):
        item = bound.item(unit, {**bound.middle(), **values})
        if item is not None and repr(item) not in seen and bound.inputs_of((item,)):
            seen.add(repr(item))
            yield item
