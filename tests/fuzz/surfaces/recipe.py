"""Recipes in YAML and JSON files, and what is made of them on a backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.graph import build_graph, draw_text
from autopeft.recipe import Recipe, recipe_names
from autopeft.spec import BackboneSpec

from .. import mutate
from ..surface import Call, First

_WRAPPERS: tuple[Callable[[Any], Any], ...] = (
    lambda item: {"gate": [item]},
    lambda item: {"sum": [item, "ia3"]},
    lambda item: {"chain": {"children": [item]}},
    lambda item: {"route": {"children": [item], "copies": 2}},
    lambda item: {"route": {"children": [item], "copies": 64}},
)
_OWN: tuple[dict[str, Any], ...] = (
    {
        "autopeft": 2,
        "name": "one of each",
        "reference": "arXiv:1234.56789",
        "layers": [
            {"at": "all", "stack": "encoder", "attach": [{"lora": {"sites": ["q", "v"]}, "as": "small"}]},
            {"at": "0-1", "attach": [{"gate": [{"serial_adapter": {"bottleneck": 4}}, "ia3"]}]},
            {"at": [0, 1], "attach": [{"route": {"children": [{"lora": {"rank": 2}}], "copies": 3}}]},
            {"at": "last 1", "attach": [{"chain": ["ssf"]}, "bitfit", {"prefix_tuning": {"length": 3}}]},
        ],
        "model": [{"prompt_tuning": {"length": 4}}],
        "training": {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "optimizer": {"name": "adamw"},
            "groups": {"small": {"learning_rate": 1e-2}, "head": {"weight_decay": 0.1}},
            "policies": [{"lora_plus": {"ratio": 4}}],
        },
    },
    {"autopeft": 1, "layers": [{"at": "all", "attach": ["lora", "sora", {"parallel_adapter": {}}]}]},
)  # fmt: skip


@cache
def spec() -> BackboneSpec:
    """Of a BERT of two layers."""
    return spec_of(
        BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
    )


@cache
def _valid() -> tuple[dict[str, Any], ...]:
    return (*_OWN, *(Recipe.named(name).to_dict() for name in recipe_names()))


def use(recipe: Recipe) -> None:
    """What commands do with a recipe."""
    recipe.entries()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    graph = build_graph(recipe, spec())
    draw_text(graph)
    count(graph, spec())
    Budget.parse("10%")
    recipe.hash()


def hostile(random: Random, folder: Path) -> Call:
    tree = random.choice(_valid())
    wrap = lambda random, item: random.choice(_WRAPPERS)(item)  # noqa: E731
    kind = random.randrange(4)
    if kind == 0:
        mutated = mutate.tree(random, tree, wrap=wrap)
        return lambda: use(Recipe.from_dict(mutated))
    suffix = random.choice((".yaml", ".json"))
    path = folder / f"recipe{suffix}"
    if kind == 1:
        path.write_bytes(mutate.written(random, mutate.tree(random, tree, wrap=wrap)))
    else:
        text = Recipe.from_dict(tree).to_yaml() if suffix == ".yaml" else json.dumps(tree, indent=1)
        path.write_bytes(mutate.text(random, text))
    return lambda: use(Recipe.load(path))


def _of(text: str) -> First:
    def write(folder: Path) -> Call:
        (folder / "recipe.yaml").write_bytes(mutate.bytes_of(text))
        return lambda: use(Recipe.load("recipe.yaml"))

    return write


def _routes(depth: int) -> str:
    item = "lora"
    for _ in range(depth):
        item = f"{{route: {{children: [{item}], copies: 64}}}}"
    return f"layers: [{{attach: [{item}]}}]"


def _laughs() -> str:
    lines = ["a: &a [lora, lora]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, "layers: *i"])


FIRST: dict[str, First] = {
    "four nested routes": _of(_routes(4)),
    "eighteen nested routes": _of(_routes(9)),
    "aliases of aliases": _of(_laughs()),
    "a merge key": _of("layers: &x [{attach: [lora]}]\n<<: *x"),
    "9,000 entries": _of("layers: [{attach: [" + ", ".join(["lora"] * 9000) + "]}]"),
    "30,000 entries in blocks": _of("layers: [" + ", ".join(["{attach: [ia3]}"] * 12000) + "]"),
    "15,000 misspelt methods": _of("layers: [{attach: [" + ", ".join(["lorra"] * 15000) + "]}]"),
    "5,000 unknown keys": _of("\n".join(f"key{i}: 1" for i in range(5000))),
    "a key of 100,000 letters": _of("a" * 100000 + ": 1"),
    "a method of 100,000 letters": _of("layers: [{attach: [" + "a" * 100000 + "]}]"),
    "a tag that names code": _of("layers: !!python/object/apply:os.system ['touch EXECUTED']"),
    "brackets": _of("[" * 20000),
    "braces": _of("{" * 20000),
    "lists in lists by dashes": _of("- " * 20000),
    "a number of 5,000 digits": _of("autopeft: 2\nlayers: [{at: [" + "9" * 5000 + "], attach: [lora]}]"),
    "a number of 300 digits": _of("layers: [{attach: [{lora: {rank: " + "9" * 300 + "}}]}]"),
    "a layer of 300 digits": _of("layers: [{at: [" + "9" * 300 + "], attach: [lora]}]"),
    "a rank that no backbone holds": _of("layers: [{attach: [{lora: {rank: 1000000000}}]}]"),
    "a lone surrogate as a name": _of('name: "\\ud800"\nlayers: [{attach: [lora]}]'),
    "a lone surrogate as it is": _of("name: \ud800\nlayers: [{attach: [lora]}]"),
    "a terminal's commands": _of('name: "\\x1b[31m"\nlayers: [{attach: [{lora: {}, as: "\\x1b[2J"}]}]'),
    "an infinite rate": _of("layers: [{attach: [lora]}]\ntraining: {learning_rate: .inf, warmup: .nan}"),
    "nothing": _of(""),
    "a name longer than a folder takes": lambda folder: lambda: use(Recipe.load("x" * 300 + ".yaml")),
    "a name of no file": lambda folder: lambda: use(Recipe.load("x" * 100000)),
    "a home that is nobody's": lambda folder: lambda: use(Recipe.load("~nosuchuser/x.yaml")),
    "a null byte": lambda folder: lambda: use(Recipe.load("a\0b.yaml")),
    "a lone surrogate as a path": lambda folder: lambda: use(Recipe.load("\ud800.yaml")),
    "the zero device": lambda folder: lambda: use(Recipe.load("/dev/zero")),
}
