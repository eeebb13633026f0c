"""Before a search begins: what its space's entries start from is there, is what it was, and fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.tiny import randomise, tiny_config, tiny_model

from autopeft import bank
from autopeft.assets import ModelSource
from autopeft.backbones import spec_of
from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach
from autopeft.method import method_names
from autopeft.recipe import Recipe
from autopeft.search.planning.inputs import check_fit, open_inputs
from autopeft.search.space.space import Space

TINY = spec_of(tiny_config("bert"))
SOURCE = ModelSource("tiny", None, "folder", "f" * 64)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder: str, *items: Any, level: str = "layers") -> None:
    body = {"layers": [{"attach": list(items)}]} if level == "layers" else {"model": list(items)}
    with attach(tiny_model("bert"), Recipe.from_dict({"name": "source", **body}), seed=1) as hybrid:
        randomise(hybrid.root, seed=1)
        hybrid.save(folder)


def checked(text: str) -> None:
    space, inputs = open_inputs(Space.from_yaml(text), "runs")
    check_fit(space.bind(TINY), inputs, SOURCE)


def test_inputs_are_pinned_to_what_they_hold() -> None:
    left("runs/night/winner", {"lora": {"rank": 2}})
    bank.add("runs/night/winner", "kept")
    text = (
        "inputs: {a: {run: night}, b: {bank: kept}}\n"
        "layers: [{attach: [{lora: {rank: 2}, from: {choice: [a, b]}}]}]"
    )
    space, inputs = open_inputs(Space.from_yaml(text), "runs")
    assert {name: item.sha256 for name, item in space.inputs.items()} == {
        name: found.sha256 for name, found in inputs.items()
    }
    assert inputs["a"].sha256 == inputs["b"].sha256 == bank.entry("kept").sha256
    recipe = space.bind(TINY).materialize({"lora.from": "b"})
    assert recipe.inputs["b"].sha256 == inputs["b"].sha256
    other = text.replace("{run: night}", f"{{run: night, sha256: {'a' * 64}}}")
    with pytest.raises(DataError, match="was altered"):
        open_inputs(Space.from_yaml(other), "runs")
    with pytest.raises(DataError, match="missing"):
        open_inputs(Space.from_yaml(text), "elsewhere")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("{lora: {rank: {choice: [2, 4]}}, from: a}", r"layers\[0\].attach\[0\] of space .*shape"),
        ("{lora: {rank: 2, sites: {choice: [[q, v], [q]]}}, from: a}", "the same sites"),
        ("{choice: [ia3, {lora: {rank: 4}, from: a}]}", "offer other sizes"),
        ("{optional: {gate: [{ia3: {}, from: a}, {lora: {rank: 2}, from: a}]}}", "its own method, ia3"),
        ("{lora: {rank: 2}, from: {choice: [a, a.large]}}", "no entry 'large'"),
        ("{lora: {rank: 2}, from: [a, b]}", "one entry of its own method"),
    ],
)
def test_an_option_that_does_not_fit_its_start_is_refused(item: str, words: str) -> None:
    left("source", {"lora": {"rank": 2}})
    left("other", {"lora": {"rank": 2}})
    named = "inputs: {a: source, b: other}" if "b]" in item else "inputs: {a: source}"
    with pytest.raises(UsageError, match=words):
        checked(f"{named}\nlayers: [{{attach: [{item}]}}]")


def test_options_that_leave_the_shapes_alone_may_be_searched() -> None:
    left("source", {"lora": {"rank": 2}})
    text = (
        "inputs: {a: source}\n"
        "layers: [{attach: [{choice: [{lora: {rank: {choice: [2, 4]}}}, {from: {choice: [a, null]}, "
        "lora: {rank: 2, alpha: {choice: [2, 4]}, dropout: {float: [0.0, 0.5]}}}]}]}]"
    )
    checked(text)
    with pytest.raises(UsageError, match="shape"):  # the same space, one of whose started options is larger
        checked(text.replace("lora: {rank: 2, alpha", "lora: {rank: 3, alpha"))


def test_layers_of_a_start_are_those_of_its_training() -> None:
    with attach(
        tiny_model("bert"),
        Recipe.from_dict({"name": "x", "layers": [{"at": "last 1", "attach": [{"lora": {"rank": 2}}]}]}),
    ) as hybrid:
        hybrid.save("source")
    item = "attach: [{lora: {rank: 2}, from: a}]"
    checked(f"inputs: {{a: source}}\nlayers: [{{at: last 1, {item}}}]")
    with pytest.raises(UsageError, match="the same sites and layers"):
        checked(f"inputs: {{a: source}}\nlayers: [{{{item}}}]")


def test_what_is_damaged_is_refused_before_anything_is_trained() -> None:
    left("source", {"lora": {"rank": 2}})
    tensors = load_file("source/weights.safetensors")
    tensors["encoder.0.q.lora.A"][0, 0] = float("inf")
    save_file(tensors, "source/weights.safetensors", metadata={"format": "pt"})
    text = "inputs: {a: source}\nlayers: [{attach: [{lora: {rank: 2}, from: a}]}]"
    with pytest.raises(UsageError, match="not finite"):
        checked(text)
    Path("source/weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        checked(text)


def test_what_was_trained_on_another_backbone_is_refused() -> None:
    left("source", {"lora": {"rank": 2}})
    space, inputs = open_inputs(
        Space.from_yaml("inputs: {a: source}\nlayers: [{attach: [{lora: {rank: 2}, from: a}]}]"), "runs"
    )
    told = {"name": "large", "origin": "folder", "sha256": "e" * 64}
    with pytest.raises(UsageError, match="another backbone"):
        check_fit(space.bind(TINY), {"a": replace(inputs["a"], backbone=told)}, SOURCE)


@pytest.mark.parametrize("method", method_names())
def test_the_check_agrees_with_attach(method: str) -> None:
    """For each method: what can be attached from its own saved hybrid passes, and what cannot does not."""
    level = "layers"
    try:
        left("source", method)
    except UsageError:
        try:
            level = "model"
            left("source", method, level=level)
        except UsageError:
            pytest.skip("it needs another backbone, or an input")
    item = {method: {}, "from": "a"}
    body = {"layers": [{"attach": [item]}]} if level == "layers" else {"model": [item]}
    outcomes = []
    for act in (
        lambda: attach(tiny_model("bert"), Recipe.from_dict({"inputs": {"a": "source"}, **body})),
        lambda: checked(Recipe.from_dict({"inputs": {"a": "source"}, **body}).to_yaml()),
    ):
        try:
            act()
            outcomes.append(True)
        except UsageError:
            outcomes.append(False)
    assert outcomes[0] == outcomes[1]
