"""The winner (or the best trial so far) on its backbone: graph, drawing, tables, recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from markupsafe import Markup

from autopeft.assets import ModelSource, load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.foreign import local_path
from autopeft.graph import CompositionGraph, build_graph, draw_svg
from autopeft.recipe import Recipe
from autopeft.report.html.load import Run
from autopeft.report.html.values import shown
from autopeft.report.recipe import counts_sheet, entries_sheet
from autopeft.report.sheet import Sheet
from autopeft.spec import BackboneSpec

__all__ = ["Winner", "winner_of"]


@dataclass(frozen=True)
class Winner:
    """What is shown of the winner.

    Attributes:
        title: `winner`, or what it is instead.
        yaml: the recipe, empty where there is none.
        graph: `None` where it cannot be built here; `reason` says why.
        note: that training settled the size, where it did.
    """

    title: str
    yaml: str = ""
    graph: CompositionGraph | None = None
    svg: Markup | None = None
    sheets: tuple[Sheet, ...] = ()
    reason: str = ""
    note: str = ""


def winner_of(run: Run, model: str | None, notify: Callable[[str], None] | None) -> Winner:
    """The winner's recipe and graph, as far as they can be had."""
    title = _title(run)
    if run.recipe is None:
        return Winner(title, reason="No trial has been trained to the end yet: there is no recipe to draw.")
    try:
        recipe = Recipe.from_dict(run.recipe)
    except UsageError as error:
        return Winner(title, reason=f"The recipe cannot be read: {shown(error)}")
    title, yaml = f"{title}, {shown(recipe.name, 60)}", recipe.to_yaml()
    try:
        spec = _spec(run, model, notify)
        graph = build_graph(recipe, spec)
    except AutoPEFTError as error:
        reason = f"The graph cannot be drawn here: {shown(error)} --model says where the backbone is."
        return Winner(title, yaml, reason=reason)
    counts, note = count(graph, spec, head=_head(run)), ""
    settled, resized = _deployed(run), [n for n, e in graph.entries.items() if e.traits.data_dependent]
    if resized and settled is not None and settled != counts.deployed:
        names = ", ".join(map(shown, resized))
        note = (
            f"Training settled the size of {names}: {settled:,} parameters are deployed. Tables of entries "
            f"and of places have the {counts.deployed:,} that the recipe has at most."
        )
        counts = replace(counts, deployed=settled)
    sheets = (entries_sheet(graph), counts_sheet(counts))
    # Every text of the drawing was escaped where it was drawn.
    return Winner(title, yaml, graph, Markup(draw_svg(graph)), sheets, note=note)


def _deployed(run: Run) -> int | None:
    """Deployed parameters of the weights that the run kept, as far as they are known."""
    found = run.result.counts.deployed if run.result else None
    if found is None and run.best is not None:
        found = (run.best.counts or {}).get("deployed")
    return None if found is None else int(found)


def _head(run: Run) -> int:
    """Parameters of the head."""
    found = run.result.counts.head if run.result else None
    if found is None and run.best is not None:
        found = (run.best.counts or {}).get("head")
    return int(found or 0)


def _title(run: Run) -> str:
    if run.fixed:
        return "The recipe"
    if run.result:
        n = run.result.number
        name = run.result.origin if n is None else f"trial {n}"
        return f"The winner: {shown(name, 120)}" if name else "The winner"
    return "The best so far" if run.best is None else f"The best so far: trial {shown(run.best.number, 20)}"


def _spec(run: Run, model: str | None, notify: Callable[[str], None] | None) -> BackboneSpec:
    """The backbone's shapes; only its configuration is read.

    Raises:
        UsageError: it is not here, or is not the one of the run.
    """
    name = model or shown(run.about.model, 500)
    folder = local_path(name)
    if (folder / "config.json").is_file():
        # resolve_model would read all weights for their hash.
        source = ModelSource(str(folder), None, "folder", None)
    else:
        source = resolve_model(name, notify=notify)
    spec = spec_of(load_config(source))
    trained = run.about.backbone.parameters
    if trained is not None and trained != spec.parameters:
        raise UsageError(
            f"The backbone {name!r} has {spec.parameters:,} parameters, but that of the run had {trained:,}."
        )
    return spec
