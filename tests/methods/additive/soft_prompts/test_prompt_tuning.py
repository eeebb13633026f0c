from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


def test_vision_has_no_vocabulary() -> None:
    spec = replace(toy_spec(), modality="vision")
    method = configured("prompt_tuning", init="vocabulary")
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
