"""A page for each method, made from its class: what it is, options, traits, counts, a recipe, its graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from autopeft.composition import composition_names, get_composition
from autopeft.counting import count
from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, draw_svg
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.report.defaults import sources_sheet
from autopeft.report.methods import fields_sheet, flowing, summary, taxonomy
from generate.backbones import SEVERAL, Named, on_the_first_that_fits, shown_and_trained
from generate.markdown import cell, drawing, prose, sheet_table, table, yaml_block
from generate.offered import offered_in_words

__all__ = ["minimal_recipe", "pages", "traits_in_words"]

_FAST = "\N{NO-BREAK SPACE}"
_COMPOSED = """\
autopeft: 2
name: a-{name}
layers:
  - at: all
    attach:
      - {name}:
          - serial_adapter
"""
_SECOND = "          - parallel_adapter\n"
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_WAYS = {
    "hook": "It acts on activations: it reads what goes into or comes out of a site and adds to it.",
    "weight": "It acts on weights: it changes a frozen weight by a learnt amount.",
    "region": "It takes the place of a region and runs the frozen one on the rows that it chooses.",
    "kv": "It acts on keys and values: it adds positions that attention reads.",
    "scores": "It acts on the scores of attention: it adds a learnt term to them.",
    "prompt": "It acts as a prompt: it puts rows into the sequence and fills them.",
    "logits": "It acts on logits: it adds to what the last map of the model yields, position by position.",
}
_RULE = "It places nothing in the backbone: it is a rule of training."
_NEEDS = {
    "calibration": "It needs batches of the task before the first step, to measure something on them.",
    "decoder": "It needs a decoder.",
    "encoder_decoder": "It needs an encoder and a decoder.",
    "several_tasks": "It needs several tasks at once.",
    "artefacts": "It needs a file that another training has left.",
    "text": "It needs text as input.",
    "row_logits": "It needs logits of each row, which language models do not have.",
    "token_logits": "It needs logits of each token, which decoders have as language models.",
}


def minimal_recipe(name: str) -> str:
    """The shortest recipe that uses a method, as YAML; the option that sets its size is written out."""
    method = get_method(name)
    size = getattr(method, "size_field", None)
    default = method.Config.model_fields[size].get_default(call_default_factory=True) if size else None
    entry = name if default is None else f"{name}: {{{size}: {_written(default)}}}"
    head = f"autopeft: 2\nname: only-{name.replace('_', '-')}\n"
    start = ""
    if "artefacts" in method.traits.needs:
        head, start = f"{head}inputs:\n  source: source\n", "from: source\n"
    if method.traits.level == "training":
        return (
            f"{head}layers:\n  - at: all\n    attach:\n      - lora\ntraining:\n  policies:\n    - {name}\n"
        )
    if method.traits.level == "model":
        return f"{head}model:\n  - {entry}\n{start and f'    {start}'}"
    return f"{head}layers:\n  - at: all\n    attach:\n      - {entry}\n{start and f'        {start}'}"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def traits_in_words(name: str) -> list[str]:
    """What a method declares of itself, a sentence each."""
    t = get_method(name).traits
    said = [words for way, words in _WAYS.items() if way in t.ways] or [_RULE]
    if t.sites:
        said.append(f"It may sit at {_listed(t.sites)}.")
    if t.default_sites:
        said.append(
            f"Without `sites` it sits at {_listed(t.default_sites)}, as far as the backbone has them."
        )
    where = {
        "layers": "under `layers:`",
        "model": "under `model:`",
        "training": "under `policies:` of `training:`",
    }
    said.append(f"A recipe lists it {where[t.level]}.")
    said += [_NEEDS[need] for need in sorted(t.needs)]
    flags = (
        (
            t.mergeable,
            "It merges into the backbone's weights exactly.",
            "It does not merge into the backbone's weights.",
        ),
        (
            t.identity,
            "Before training it changes nothing.",
            "It changes the model's outputs before training begins.",
        ),
        (t.changes_length, "It lengthens the sequence.", ""),
        (
            t.sees_text,
            "It depends on the text as a whole, so no language model can take it in its decoder.",
            "",
        ),
        (t.every_stack, "Its prompts stand in each stack, in a decoder behind an encoder too.", ""),
        (bool(t.features), "The bare backbone runs once more before each forward.", ""),
        (t.stochastic, "It draws random numbers while it trains.", ""),
        (t.direction, "It replaces the direction of a weight, so a weight takes only one such method.", ""),
        (
            t.replaces_head,
            "Its head takes the place of the model's, so a recipe takes only one such method.",
            "",
        ),
        (t.pretrained, "It reads the pretrained values, so nothing before it in a chain may alter them.", ""),
        (t.phased, "It trains in phases of its own; several such entries follow each other.", ""),
        (
            t.batch_terms,
            "Its terms of the loss are of all rows of a batch, so one process trains it.",
            "",
        ),
        (t.searched, "It is looked for without gradients, once all else has trained.", ""),
        (not t.gateable, "No gate may stand in front of it.", ""),
        (t.data_dependent, "Its deployed size is settled when training ends; a budget counts the bound.", ""),
    )
    said += [yes if holds else no for holds, yes, no in flags if (yes if holds else no)]
    return said


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def counts_in_words(name: str, backbone: Named, graph: CompositionGraph) -> list[str]:
    """The count on a backbone: in total, site by site in one layer, and as a function of the size option."""
    counts = count(graph, backbone.spec)
    lines = [
        f"On {backbone.name} ({counts.backbone:,} parameters), as in the recipe below, it deploys "
        f"**{counts.deployed:,}** parameters ({counts.share:.3%}) and trains **{counts.trained:,}**. "
        "The head is left out.",
    ]
    if get_method(name).traits.level == "training":
        return [*lines, "These are the parameters of the LoRA that the policy trains; the policy adds none."]
    lines.append(_by_layer(name, backbone, counts.deployed))
    sizes = dict(_by_size(name))
    if len(sizes) > 2:
        size = get_method(name).size_field
        formula = _straight_line(sizes)
        if formula is not None:
            slope, fixed = formula
            rest = f" + {fixed:,}" if fixed else ""
            lines.append(f"Deployed parameters on {backbone.name} = {slope:,} × `{size}`{rest}.")
        rows = [[str(s), f"{n:,}", f"{n / counts.backbone:.3%}"] for s, n in sizes.items()]
        lines.append(table([f"`{size}`", "deployed", "share"], rows))
    return [line for line in lines if line]


def _by_layer(name: str, backbone: Named, total: int) -> str:
    """One layer's share of the count, where all layers are alike."""
    if get_method(name).traits.level != "layers" or len(backbone.spec.stacks) > 1:
        return ""
    layers = backbone.spec.stacks[0].layers
    one = Recipe.from_yaml(minimal_recipe(name).replace("at: all", "at: [0]"))
    _, graph = on_the_first_that_fits(one)
    alone = count(graph, backbone.spec).deployed
    if alone * layers != total:
        return f"In one layer alone it deploys {alone:,}."
    return f"That is {layers} layers × {alone:,}."


def _by_size(name: str) -> Iterator[tuple[int, int]]:
    """Deployed parameters for each size that the method takes."""
    method = get_method(name)
    size = getattr(method, "size_field", None)
    if size is None:
        return
    default = method.Config.model_fields[size].get_default(call_default_factory=True)
    if not isinstance(default, int):
        return
    for value in sorted({*_SIZES, default}):
        recipe = Recipe.from_yaml(minimal_recipe(name)).to_dict()
        place = recipe["layers"][0]["attach"] if "layers" in recipe else recipe["model"]
        beside = {k: v for k, v in place[0].items() if k == "from"} if isinstance(place[0], dict) else {}
        place[0] = {name: {size: value}, **beside}
        try:
            method.Config(**{size: value})
            backbone, graph = on_the_first_that_fits(Recipe.from_dict(recipe))
        except (ValidationError, AutoPEFTError):
            continue  # not every size fits: limits, and divisors of a width
        yield value, count(graph, backbone.spec).deployed


def _straight_line(sizes: dict[int, int]) -> tuple[int, int] | None:
    """Slope and constant, where all sizes lie on one line."""
    (a, first), (b, second), *_ = sizes.items()
    slope = (second - first) // (b - a)
    fixed = first - slope * a
    return (slope, fixed) if all(slope * s + fixed == n for s, n in sizes.items()) else None


def _options(model: Any) -> str:
    sheet = fields_sheet(model, "")
    if not sheet.rows:
        return "It has no options."
    rows = [
        [
            f"`{key}`",
            cell(kind),
            cell(default),
            cell(limits).replace(" ", _FAST).replace(f",{_FAST}", ", "),
            cell(meaning),
        ]
        for key, kind, default, limits, meaning in sheet.rows
    ]
    return table(["option", "type", "default", "limits", "meaning"], rows)


def published_defaults(name: str) -> str:
    """Defaults of the paper and of the authors' code with their sources, where they are recorded."""
    sheet = sources_sheet(name)
    if sheet is None:
        return ""
    shown = sheet_table(["option", *sheet.headers[1:]], sheet.rows)
    return "\n\n".join([shown, *map(prose, sheet.notes)])


def method_page(name: str) -> str:
    """The page of one method."""
    method = get_method(name)
    recipe = minimal_recipe(name)
    backbone, graph = on_the_first_that_fits(Recipe.from_yaml(recipe))
    sections = {
        "Options": _options(method.Config),
        "Published defaults": published_defaults(name),
        "Where it sits and what it does": "\n".join(f"- {line}" for line in traits_in_words(name)),
        "Size": "\n\n".join(counts_in_words(name, backbone, graph)),
        "A minimal recipe": f"{yaml_block(recipe)}\n\n{_used(name, backbone)}",
        "In a search": offered_in_words(name),
        "Its graph": drawing(draw_svg(graph), f"{name} on {backbone.name}, input at the top"),
    }
    parts = [f"# {name}", prose(f"{summary(method)}."), prose(flowing(inspect.getdoc(method) or ""))]
    for title, text in sections.items():
        if text:
            parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def _used(name: str, backbone: Named) -> str:
    needs = get_method(name).traits.needs
    task = "cmudict --metric chrf" if "token_logits" in needs else "trec"
    task = ",".join(SEVERAL) if "several_tasks" in needs else task
    typed = f"Then train it, or show it:\n\n{shown_and_trained('recipe.yaml', backbone, task)}"
    if "encoder_decoder" in needs:
        typed = "Then train it, with an encoder-decoder of your own as `--model`: none is packaged."
    if "artefacts" in needs:
        typed = (
            "The folder `source` is what another training has left; "
            "[Start from another training](../how-to/inputs.md) has the commands."
        )
    return (
        f"Save it as `recipe.yaml`. {typed}\n\n"
        f"`autopeft methods {name}` prints this page's facts in a terminal. "
        "What each method does alone stands under [Results](../results/each-method-alone.md)."
    )


def composition_page() -> str:
    """All compositions on one page."""
    parts = [
        "# Compositions",
        "A composition says how the modules at one site act together. Compositions nest.",
    ]
    for name in composition_names():
        composition = get_composition(name)
        text = _COMPOSED.format(name=name) + ("" if composition.traits.single else _SECOND)
        backbone, graph = on_the_first_that_fits(Recipe.from_yaml(text))
        parts += [
            f"## {name}",
            prose(f"{composition.summary[:1].upper()}{composition.summary[1:]}."),
            prose(flowing(inspect.getdoc(composition) or "")),
            _options(composition.Options),
            yaml_block(text),
            drawing(draw_svg(graph), f"{name} on {backbone.name}, input at the top"),
        ]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """The table of all methods, by their place in the taxonomy."""
    groups: dict[str, list[str]] = {}
    for name in method_names():
        groups.setdefault(taxonomy(get_method(name)), []).append(name)
    parts = [
        "# Methods",
        "A method is a published way to fine-tune a frozen model with few parameters. A recipe names methods "
        "and says where they sit. Each page here is made from the method's class.",
        "[Compositions](compositions.md) say how methods at one site act together. "
        "[Fixed recipes](../recipes/index.md) are published combinations.",
    ]
    for group, names in sorted(groups.items()):
        rows = [
            [
                f"[`{n}`]({n}.md)",
                cell(summary(get_method(n))),
                "yes" if get_method(n).traits.mergeable else "no",
            ]
            for n in names
        ]
        parts += [
            f"## {group.replace('_', ' ').replace('/', ': ')}",
            table(["method", "what it is", "merges"], rows),
        ]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """All pages under `methods/` by path, the list for the navigation included."""
    found = {f"methods/{name}.md": method_page(name) for name in method_names()}
    navigation = ["* [All methods](index.md)", "* [Compositions](compositions.md)"]
    navigation += [f"* [{name}]({name}.md)" for name in method_names()]
    return {
        **found,
        "methods/index.md": overview(),
        "methods/compositions.md": composition_page(),
        "methods/SUMMARY.md": "\n".join(navigation) + "\n",
    }
