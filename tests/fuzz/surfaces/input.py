"""What a recipe starts from: saved hybrids that somebody sent, named by a recipe that somebody sent."""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from support.fingerprint import changed, fingerprint
from transformers import PreTrainedModel

from autopeft.assets import load_model
from autopeft.errors import AutoPEFTError
from autopeft.hybrid import attach, pinned
from autopeft.recipe import Recipe

from .. import mutate
from ..folders import Edit, Files, Move, cut, edit, json_bytes, linked, put, read, replace, write
from ..products import command
from ..surface import Call, First

SHARE = 0.3

_BACKBONE = Path(__file__).parents[2] / "fixtures" / "runs" / "bert"
_FOLDER = "source"
_PROMPTS: dict[str, Any] = {"length": 2}
_LEFT = {
    "name": "left",
    "layers": [{"attach": [{"lora": {"rank": 2}}]}],
    "model": [{"spot": _PROMPTS}],
}
_RECIPE = {
    "name": "starting",
    "inputs": {"one": _FOLDER, "two": {"folder": _FOLDER}},
    "layers": [{"attach": [{"lora": {"rank": 2}, "from": "one"}]}],
    "model": [
        {"spot": {**_PROMPTS, "top": 2}, "from": ["one.spot", "two"]},
        {"tpt": {"length": 2, "source_width": 16, "hidden": 2}, "from": "two.spot"},
        {"prompt_tuning": _PROMPTS, "from": "one.spot"},
    ],
}


@cache
def _model() -> PreTrainedModel:
    return load_model(str(_BACKBONE))


@cache
def _valid() -> Files:
    with tempfile.TemporaryDirectory() as place:
        attach(copy.deepcopy(_model()), Recipe.from_dict(_LEFT), seed=0).save(place)
        return read(Path(place))


def use() -> None:
    """What is done with such a recipe."""
    model = copy.deepcopy(_model())
    before = fingerprint(model)
    recipe = Recipe.from_file("recipe.yaml")
    command("show", "recipe.yaml", "--model", str(_BACKBONE))
    try:
        pinned(recipe).hash()
        attach(model, recipe, seed=0).detach()
    finally:
        differences = changed(before, fingerprint(model))
        assert not differences, f"{differences[:3]} changed"


def hostile(random: Random, folder: Path) -> Call:
    files, recipe = dict(_valid()), copy.deepcopy(_RECIPE)
    for name in random.sample(sorted(files), random.choice((0, 1, 1, 2))):
        edit(random, files, name)
    _write(folder, files, mutate.tree(random, recipe) if random.random() < 0.5 else recipe)
    if random.random() < 0.2:
        replace(
            random, folder / _FOLDER / random.choice(("winner", *sorted(files))), f"{_FOLDER}/hybrid.json"
        )
    return use


def _write(folder: Path, files: Files, recipe: Any) -> None:
    write(folder / _FOLDER, files)
    (folder / "recipe.yaml").write_bytes(json_bytes(recipe))


def _with(change: Edit | None = None, *, also: Move | None = None, **said: Any) -> First:
    def prepare(folder: Path) -> Call:
        files = dict(_valid())
        if change is not None:
            change(files)
        _write(folder, files, {**_RECIPE, **said})
        if also is not None:
            also(folder / _FOLDER)
        return use

    return prepare


def _taken(folder: Path) -> Call:
    _write(folder, _valid(), _RECIPE)
    return lambda: _no_error(use)


def _no_error(call: Call) -> None:
    try:
        call()
    except AutoPEFTError as error:
        raise AssertionError(f"valid input was refused: {error}") from error


_OUTSIDE = {"one": "../outside", "two": "/etc"}
FIRST: dict[str, First] = {
    "valid": _taken,
    "folders outside": _with(inputs=_OUTSIDE),
    "a run outside": _with(inputs={"one": {"run": ".."}, "two": {"run": "../.."}}),
    "a home": _with(inputs={"one": "~", "two": "~root"}),
    "a null byte": _with(inputs={"one": "a\0b", "two": _FOLDER}),
    "a device": _with(inputs={"one": "/dev/zero", "two": _FOLDER}),
    "10,000 inputs": _with(inputs={f"i{i}": _FOLDER for i in range(10_000)}),
    "a folder that is the recipe": _with(inputs={"one": "recipe.yaml", "two": "recipe.yaml"}),
    "another hash": _with(inputs={"one": {"folder": _FOLDER, "sha256": "0" * 64}, "two": _FOLDER}),
    "a recipe that starts from itself": _with(put("recipe.yaml", json.dumps(_RECIPE).encode())),
    "weights that were cut": _with(cut("weights.safetensors", -40)),
    "a link to weights outside": _with(also=linked("weights.safetensors", "../../outside/secret.csv")),
    "a link to a recipe outside": _with(also=linked("recipe.yaml", "../../outside/recipe.yaml")),
    "a winner outside": _with(also=linked("winner", "../../outside")),
    "weights that are a device": _with(also=linked("weights.safetensors", "/dev/zero")),
}
