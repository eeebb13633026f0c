from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs

from autopeft.errors import MethodError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 9))
def test_count_is_what_it_holds(spec: BackboneSpec, length: int) -> None:
    deployed, trained, held, held_trained = counted("prompt_tuning", spec, length=length)
    assert deployed == trained == held == held_trained == length * spec.stacks[0].hidden


def test_a_prompt_that_is_drawn_is_left_as_it_is() -> None:
    uniform, sites = build("prompt_tuning", toy_spec(hidden=64), length=50)
    assert uniform.prompt(sites[0], torch.randn(2, 5, 64), CALL).shape == (1, 50, 64)
    before = uniform.table.detach().clone()
    uniform.initialise_prompt(torch.ones(11, 64))
    assert torch.equal(uniform.table, before)


def test_vocabulary_copies_distinct_rows_of_frequent_tokens_and_follows_the_seed() -> None:
    embedding = torch.arange(6000.0)[:, None].expand(-1, 6)
    torch.manual_seed(3)
    module, _ = build("prompt_tuning", toy_spec(), length=200, init="vocabulary")
    module.initialise_prompt(embedding)
    rows = module.table[:, 0]
    assert len(set(rows.tolist())) == 200
    assert 4800 < rows.max() < 5000
    torch.manual_seed(3)
    second, _ = build("prompt_tuning", toy_spec(), length=200, init="vocabulary")
    torch.manual_seed(4)
    second.initialise_prompt(embedding)
    assert torch.equal(second.table, module.table)
    other, _ = build("prompt_tuning", toy_spec(), length=200, init="vocabulary")
    other.initialise_prompt(embedding)
    assert not torch.equal(other.table, module.table)


def test_vocabulary_smaller_than_the_prompt_repeats_rows() -> None:
    module, _ = build("prompt_tuning", toy_spec(), length=10, init="vocabulary")
    module.initialise_prompt(torch.arange(4.0)[:, None].expand(-1, 6))
    assert set(module.table[:, 0].tolist()) == {0, 1, 2, 3}


def test_class_labels_begin_the_prompt_and_frequent_tokens_fill_it() -> None:
    """Lester et al. 2021, §3.2: a row for each label, the mean of its tokens where they are several, in the
    order of the classes; the rest is drawn as `vocabulary` draws it."""
    embedding = torch.randn(6000, 6, generator=torch.Generator().manual_seed(0))
    labels = [5500, [7, 5999], [1, 2, 3, 1]]
    torch.manual_seed(3)
    module, _ = build("prompt_tuning", toy_spec(), length=50, init="labels", label_words=labels)
    module.initialise_prompt(embedding)
    table = module.table.detach()
    assert torch.equal(table[0], embedding[5500])
    torch.testing.assert_close(table[1], (embedding[7] + embedding[5999]) / 2)
    torch.testing.assert_close(table[2], (2 * embedding[1] + embedding[2] + embedding[3]) / 4)
    torch.manual_seed(3)
    sampled, _ = build("prompt_tuning", toy_spec(), length=50, init="vocabulary")
    sampled.initialise_prompt(embedding)
    assert torch.equal(table[3:], sampled.table[3:])
    copied = (table[3:, None] == embedding[:5000]).all(-1).nonzero()[:, 1]
    assert len(set(copied.tolist())) == 47, "distinct tokens of the first 5,000"


def test_labels_beyond_the_length_are_left_out() -> None:
    module, _ = build("prompt_tuning", toy_spec(), length=2, init="labels", label_words=[3, [1, 2], 0])
    module.initialise_prompt(torch.arange(4.0)[:, None].expand(-1, 6))
    assert module.table[:, 0].tolist() == [3, 1.5]


def test_labels_from_a_recipe_are_rows_of_the_models_embedding() -> None:
    model = tiny_model("t5")
    text = "model: [{prompt_tuning: {length: 4, init: labels, label_words: [9, [5, 17]]}}]"
    recipe = Recipe.from_yaml(f"autopeft: 2\nname: p\n{text}\n")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    table = attach(model, recipe).root.get_parameter("prompt_tuning.table").detach()
    embedding = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(table[:2], torch.stack([embedding[9], embedding[[5, 17]].mean(0)]))


@pytest.mark.parametrize(
    "options",
    [
        {"init": "labels"},
        {"init": "labels", "label_words": []},
        {"init": "labels", "label_words": [3, []]},
        {"label_words": [3]},
        {"init": "vocabulary", "label_words": [3]},
    ],
)
def test_labels_without_words_and_words_that_nothing_reads_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="label_words"):
        configured("prompt_tuning", **options)


@pytest.mark.parametrize("words", [[[2, 11]], [-1]])
def test_labels_outside_the_vocabulary_are_refused(words: list[Any]) -> None:
    module, _ = build("prompt_tuning", toy_spec(), init="labels", label_words=words)
    with pytest.raises(MethodError, match="from 0 to 10"):
        module.initialise_prompt(torch.ones(11, 6))


@pytest.mark.parametrize("options", [{"init": "vocabulary"}, {"init": "labels", "label_words": [3]}])
def test_vision_has_no_vocabulary(options: dict[str, Any]) -> None:
    spec = replace(toy_spec(), modality="vision")
    method = configured("prompt_tuning", **options)
    with pytest.raises(MethodError, match="'uniform'"):
        method.parameter_count(sites_of(method, spec), spec)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prompt_of_real_embeddings_is_feeding_those_tokens(name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name)
    words = torch.tensor([[5, 9, 17]])
    ids = torch.cat([words.expand(2, -1), inputs["input_ids"]], dim=1)
    expected = model(input_ids=ids).logits[:, 3:]
    recipe = Recipe.from_dict({"autopeft": 2, "name": "p", "model": [{"prompt_tuning": {"length": 3}}]})
    hybrid = attach(model, recipe)
    table = hybrid.root.get_parameter("prompt_tuning.table")
    with torch.no_grad():
        table.copy_(model.get_input_embeddings().weight[words[0]])
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def _started(source: dict[str, Any], where: Path) -> tuple[Any, Any]:
    """What a method has left, deployed, and the prompt that begins with it."""
    left = attach(tiny_model("bert"), Recipe.from_dict({"model": [source]}), seed=1)
    left.save(where / "source")
    item = {"prompt_tuning": {"length": 4}, "from": "source"}
    made = Recipe.from_dict({"inputs": {"source": "source"}, "model": [item]})
    module = attach(tiny_model("bert"), made, seed=2).modules["prompt_tuning"]
    return load(tiny_model("bert"), where / "source"), module


def test_it_starts_from_the_rows_that_p_tuning_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, module = _started({"p_tuning": {"length": 4, "hidden": 4}}, tmp_path)
    assert torch.equal(module.table, source.root.get_parameter("p_tuning.embedding"))


@pytest.mark.parametrize("source", [{"lpt": {"generator": "none"}}, {"dept": {"rank": 2}}, {"smop": {}}])
def test_prompts_that_are_more_than_rows_at_the_embeddings_are_refused(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LPT's rows are states of a layer in the middle, DePT's come with an update of the embeddings."""
    monkeypatch.chdir(tmp_path)
    ((method, options),) = source.items()
    with pytest.raises(MethodError, match=rf"which {method} does not leave as such"):
        _started({method: {"length": 4, **options}}, tmp_path)
