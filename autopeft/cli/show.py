"""`autopeft show`: a recipe on a backbone, as tables and as a drawing."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.options import Json, Labels, Model, RecipeArgument

__all__ = ["Drawing", "show"]


class Drawing(str, Enum):
    """How the composition graph is drawn."""

    text = "text"
    mermaid = "mermaid"
    svg = "svg"


def show(
    recipe: RecipeArgument,
    model: Model = "minilm",
    labels: Labels = 2,
    drawing: Annotated[
        Drawing | None,
        typer.Option(
            "--format",
            "-f",
            help="Print only the graph, in this form.",
            show_default=False,
            case_sensitive=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a recipe on a backbone: its entries, the layer table, the four counts and the graph.

    Only the backbone's configuration is read, so a folder that holds nothing but a config.json will do.

    \b
      autopeft show mam
      autopeft show unipelt --model path/to/bert
      autopeft show winner/recipe.yaml --format svg > winner.svg
      autopeft show sapa-prefix --json
    """
    from autopeft.assets import quiet_libraries
    from autopeft.backbones import spec_of
    from autopeft.counting import count
    from autopeft.errors import UsageError
    from autopeft.graph import build_graph, draw_mermaid, draw_svg, draw_text
    from autopeft.recipe import Recipe
    from autopeft.report.backbone import config_of, head_size
    from autopeft.report.recipe import counts_sheet, describe_graph, entries_sheet, inputs_sheet, layers_sheet

    if drawing is not None and as_json:
        raise UsageError("--format prints the graph and --json a document; leave out one of them.")
    parsed = Recipe.load(recipe)
    quiet_libraries()
    config = config_of(model, notify)
    graph = build_graph(parsed, spec_of(config))
    if drawing is not None:
        draw = {Drawing.text: draw_text, Drawing.mermaid: draw_mermaid, Drawing.svg: draw_svg}
        say(draw[drawing](graph))
        return
    counts = count(graph, graph.spec, head=head_size(config, labels))
    if as_json:
        say_json(describe_graph(graph, counts))
        return
    reference = f" ({parsed.reference})" if parsed.reference else ""
    say(f"{parsed.name}{reference} on {model} ({graph.spec.family})")
    inputs = (inputs_sheet(parsed),) if parsed.inputs else ()
    for sheet in (*inputs, entries_sheet(graph), layers_sheet(graph), counts_sheet(counts)):
        say()
        say_sheet(sheet)
    say()
    say(draw_text(graph))
