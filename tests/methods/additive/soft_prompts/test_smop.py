from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import ENCODER_DECODERS, tiny_inputs, tiny_model
from support.toy import configured, counted, toy_specs
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.tasks.kinds import get_kind
from autopeft.training.checks import check_recipe

TEXTS = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart", "mpnet")


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "s", "model": [{"smop": {"length": 3, **config}}]})


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(**config), seed=0)
    return model, hybrid.modules["smop"], hybrid


def test_defaults_are_those_of_the_authors_code() -> None:
    """jyjohnchoi/SMoP, README.md: 20 rows in prompts of 5, one of them, a perturbed router."""
    c = configured("smop").config
    assert (c.length, c.experts, c.top_k, c.noise, c.dropout) == (5, 4, 1, 1.0, 0.0)


@given(toy_specs, st.integers(1, 5), st.integers(1, 5))
def test_count_is_what_it_holds(spec: BackboneSpec, length: int, experts: int) -> None:
    d = spec.stacks[0].hidden
    expected = experts * length * d + (experts * d if experts > 1 else 0)
    assert counted("smop", spec, length=length, experts=experts) == (expected,) * 4


def _embedded(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the encoder's (or only) table makes of the ids."""
    return (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()(
        inputs["input_ids"]
    )


def _longer(mask: Tensor, rows: int) -> Tensor:
    return torch.cat([mask.new_ones(len(mask), rows), mask], dim=1)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_it_computes_the_papers_formula(name: str, top_k: int) -> None:
    """Σⱼ gⱼ·Pⱼ over the largest of softmax(x̄·W), x̄ the mean of the real tokens, in front of the text."""
    model, module, hybrid = attached(name, top_k=top_k)
    inputs = tiny_inputs(name, pad=2)
    inputs["attention_mask"][0, 5:] = 0
    run = model if name in ENCODER_DECODERS else model.base_model
    ours = run(**inputs)[0]
    hybrid.detach()
    mask, words = inputs.pop("attention_mask"), _embedded(model, inputs)
    rows = []
    for embedded, n in zip(words, mask.sum(1), strict=True):
        g = torch.softmax(embedded[:n].mean(0) @ module.router.weight.T, dim=0)
        chosen = g.argsort(descending=True)[:top_k].tolist()
        rows.append(sum(g[j] * module.prompts[j] for j in chosen))
    del inputs["input_ids"]
    embeds = torch.cat([torch.stack(rows), words], dim=1)
    expected = run(inputs_embeds=embeds, attention_mask=_longer(mask, 3), **inputs)[0]
    if name not in ENCODER_DECODERS:
        ours, expected = ours[mask == 1], expected[:, 3:][mask == 1]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", [2, 7])
def test_each_text_has_one_prompt_and_grows_by_its_rows(experts: int) -> None:
    model, module, hybrid = attached("bert", experts=experts)
    lengths: list[int] = []
    layer = model.base_model.encoder.layer[0]
    layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    used = set()
    for seed in range(12):
        hybrid.root.zero_grad()
        model(**tiny_inputs("bert", batch=1, seed=seed)).logits.sum().backward()
        trained = [j for j, g in enumerate(module.prompts.grad) if g.abs().sum() > 0]
        assert len(trained) == 1
        used |= set(trained)
        # The router learns by the weight of the one.
        assert module.router.weight.grad.abs().sum() > 0
    assert len(used) > 1
    assert set(lengths) == {10}


@pytest.mark.parametrize("perturbation", [{"noise": 1.0}, {"noise": 0.0, "dropout": 0.5}])
def test_the_router_is_perturbed_in_training_only(perturbation: dict[str, float]) -> None:
    model, module, _ = attached("bert", **perturbation)
    inputs = tiny_inputs("bert")
    plain = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, plain)
    module.train()
    drawn = [model(**inputs).logits for _ in range(4)]
    assert not all(torch.allclose(one, plain) for one in drawn)
    module.eval()
    assert torch.equal(model(**inputs).logits, plain)


def test_one_prompt_is_prompt_tuning() -> None:
    model, module, hybrid = attached("bert", experts=1)
    assert module.router is None
    assert not hybrid.graph.entries["smop"].traits.sees_text
    inputs = tiny_inputs("bert", pad=2)
    module.train()
    ours = model(**inputs).logits
    hybrid.detach()
    plain = Recipe.from_dict({"autopeft": 2, "name": "p", "model": [{"prompt_tuning": {"length": 3}}]})
    with torch.no_grad():
        attach(model, plain).root.get_parameter("prompt_tuning.table").copy_(module.prompts[0])
    assert torch.equal(model(**inputs).logits, ours)


def test_more_prompts_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ValidationError, match="of 4; lower it"):
        configured("smop", top_k=5)


def test_a_language_model_would_see_what_it_is_to_predict() -> None:
    with pytest.raises(UsageError, match="see what they are to predict"):
        check_recipe(attached("gpt2")[2], get_kind("causal_lm"))
    check_recipe(attached("gpt2", experts=1)[2], get_kind("causal_lm"))
    check_recipe(attached("t5")[2], get_kind("seq2seq"))


def test_prompts_and_router_have_rates_of_their_own() -> None:
    groups = {"smop.router": {"learning_rate": 0.1}}
    made = Recipe.from_dict(
        {"autopeft": 2, "name": "s", "model": ["smop"], "training": {"groups": groups, "learning_rate": 0.5}}
    )
    with attach(tiny_model("bert"), made) as hybrid:
        rates = {g["name"]: g["lr"] for g in hybrid.parameter_groups()}
    assert rates["smop"] == 0.5
    assert rates["smop.router"] == 0.1
