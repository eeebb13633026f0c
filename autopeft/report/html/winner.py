"""The winner (or the best trial so far) on its backbone: graph, drawing, tables, recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from markupsafe import Markup

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.graph import CompositionGraph, build_graph, draw_svg
from autopeft.recipe import Recipe
from autopeft.recipe.told import input_lines
from autopeft.report.backbone import config_of
from autopeft.report.html.load import Run
from autopeft.report.html.values import shown
from autopeft.report.recipe import counts_sheet, entries_sheet
from autopeft.report.sheet import Sheet

__all__ = ["Winner", "winner_of"]


@dataclass(frozen=True)
class Winner:
    """What is shown of the winner.

    Attributes:
        title: `winner`, or what it is instead.
        yaml: the recipe, empty where there is none.
        graph: `None` where it cannot be built here; `reason` says why.
        note: that training settled the size, where it did.
        inputs: what it starts from, a line each.
    """

    title: str
    yaml: str = ""
    graph: CompositionGraph | None = None
    svg: Markup | None = None
    sheets: tuple[Sheet, ...] = ()
    reason: str = ""
    note: str = ""
    inputs: tuple[str, ...] = ()


def winner_of(run: Run, model: str | None, notify: Callable[[str], None] | None) -> Winner:
    """The winner's recipe and graph, as far as they can be had."""
    result, best = run.result, run.best
    if run.fixed:
        title = "The recipe"
    elif result:
        name = result.origin if result.number is None else f"trial {result.number}"
        title = f"The winner: {shown(name, 120)}" if name else "The winner"
    else:
        title = "The best so far" if best is None else f"The best so far: trial {shown(best.number, 20)}"
    if run.recipe is None:
        return Winner(title, reason="No trial has been trained to the end yet: there is no recipe to draw.")
    try:
        recipe = Recipe.from_dict(run.recipe)
    except UsageError as error:
        return Winner(title, reason=f"The recipe cannot be read: {shown(error)}")
    title, yaml = f"{title}, {shown(recipe.name, 60)}", recipe.to_yaml()
    inputs = tuple(shown(line) for line in input_lines(recipe))
    try:
        backbone = model or shown(run.about.model, 500)
        spec, trained = spec_of(config_of(backbone, notify)), run.about.backbone.parameters
        if trained is not None and trained != spec.parameters:
            raise UsageError(
                f"The backbone {backbone!r} has {spec.parameters:,} parameters, but that of the run had "
                f"{trained:,}."
            )
        graph = build_graph(recipe, spec)
    except AutoPEFTError as error:
        reason = f"The graph cannot be drawn here: {shown(error)} --model says where the backbone is."
        return Winner(title, yaml, reason=reason, inputs=inputs)

    # What the weights that the run kept have, as far as it is known.
    kept: dict[str, float | None] = {}
    for figure in ("deployed", "head"):
        known = getattr(result.counts, figure) if result else None
        if known is None and best is not None:
            known = (best.counts or {}).get(figure)
        kept[figure] = known
    counts, note = count(graph, spec, head=int(kept["head"] or 0)), ""
    resized = [name for name, entry in graph.entries.items() if entry.traits.data_dependent]
    if resized and kept["deployed"] is not None and int(kept["deployed"]) != counts.deployed:
        names, deployed = ", ".join(map(shown, resized)), int(kept["deployed"])
        note = (
            f"Training settled the size of {names}: {deployed:,} parameters are deployed. Tables of entries "
            f"and of places have the {counts.deployed:,} that the recipe has at most."
        )
        counts = replace(counts, deployed=deployed)
    sheets = (entries_sheet(graph), counts_sheet(counts))
    # Every text of the drawing was escaped where it was drawn.
    return Winner(title, yaml, graph, Markup(draw_svg(graph)), sheets, note=note, inputs=inputs)
