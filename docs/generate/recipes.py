"""A page for each fixed recipe, made from its file."""

from __future__ import annotations

from autopeft.counting import count
from autopeft.graph import draw_svg
from autopeft.recipe import Recipe
from autopeft.recipe.library import built_in, recipe_names
from autopeft.recipe.tasks import lacks_tasks
from autopeft.report.recipe import entries_sheet, layers_sheet
from generate.backbones import SEVERAL, on_the_first_that_fits, shown_and_trained
from generate.markdown import cell, drawing, linked, prose, sheet_table, table, yaml_block

__all__ = ["pages"]


def described(text: str) -> tuple[str, str]:
    """The comment at the top of a file, and the rest."""
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end]), "\n".join(lines[end:])


def recipe_page(name: str) -> str:
    """The page of one fixed recipe."""
    text, _ = built_in(name)
    comment, body = described(text)
    recipe = Recipe.named(name)
    backbone, graph = on_the_first_that_fits(recipe)
    counts = count(graph, backbone.spec)
    methods = dict.fromkeys(entry.method for entry in recipe.entries())
    uses = ", ".join(f"[`{m}`](../methods/{m}.md)" for m in methods)
    entries, layers = entries_sheet(graph), layers_sheet(graph)
    parts = [
        f"# {name}",
        prose(comment),
        f"Source: {linked(recipe.reference)}." if recipe.reference else "",
        f"Methods in it: {uses}.",
        "## The recipe",
        yaml_block(body),
        shown_and_trained(name, backbone, ",".join(SEVERAL) if lacks_tasks(recipe) else "trec"),
        f"From Python it is `autopeft.Recipe.named({name!r})`. To change it, save the text in a file "
        "and name the file.",
        f"## On {backbone.name}",
        f"It deploys **{counts.deployed:,}** parameters ({counts.share:.3%}) and trains "
        f"**{counts.trained:,}**. The head is left out.",
        sheet_table(entries.headers, entries.rows),
        "## Layer by layer",
        sheet_table(layers.headers, [[text.replace("  ", "\n") for text in row] for row in layers.rows]),
        "## Its graph",
        drawing(draw_svg(graph), f"{name} on {backbone.name}, input at the top"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview() -> str:
    """The table of all fixed recipes."""
    rows = []
    for name in recipe_names():
        comment, _ = described(built_in(name)[0])
        rows.append([f"[`{name}`]({name}.md)", cell(comment.partition(". ")[0].rstrip(".") + ".")])
    return (
        "\n\n".join(
            [
                "# Fixed recipes",
                "A fixed recipe is a published combination of methods as a file. Its name stands for the "
                "file in every command and function that takes a recipe. Each page is made from its file.",
                table(["recipe", "what it is"], rows),
            ]
        )
        + "\n"
    )


def pages() -> dict[str, str]:
    """All pages under `recipes/` by path, the list for the navigation included."""
    navigation = ["* [All fixed recipes](index.md)", *(f"* [{n}]({n}.md)" for n in recipe_names())]
    return {
        **{f"recipes/{name}.md": recipe_page(name) for name in recipe_names()},
        "recipes/index.md": overview(),
        "recipes/SUMMARY.md": "\n".join(navigation) + "\n",
    }
