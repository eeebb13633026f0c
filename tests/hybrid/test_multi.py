"""Several hybrids in one batch equal each of them alone, in logits and in gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.multi import (
    FISH,
    GATE,
    HOULSBY,
    LORA,
    MULTIS,
    NAMES,
    PFEIFFER,
    PREFIX,
    PROMPTS,
    WITH_BIASES,
    B,
    assert_equals_alone,
    assert_near,
    checkpointed,
    classifier,
    cut,
    gradients,
    inputs_of,
    loss_of,
    multi_of,
    ready,
    recipe,
    without_dropout,
)
from support.tiny import tiny_inputs, tiny_model

from autopeft.errors import CompositionError
from autopeft.hybrid import attach, attach_many


def rounding(name: str) -> dict[str, float]:
    """What remains in double precision comes from norms that compute in fp32 (Llama's, T5's)."""
    norms = name in ("llama", "t5")
    return {"logits": 1e-7 if norms else 1e-12, "grads": 1e-5 if norms else 1e-10}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [*MULTIS, *PROMPTS])
def test_many_equal_alone(name: str, which: str) -> None:
    assert_equals_alone(classifier(name).double(), name, (MULTIS | PROMPTS)[which], **rounding(name))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_many_equal_alone_where_biases_are_trained(name: str) -> None:
    assert_equals_alone(classifier(name).double(), name, WITH_BIASES, logits=1e-12, grads=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_many_equal_alone_in_single_precision(name: str) -> None:
    assert_equals_alone(classifier(name), name, MULTIS["lora+prefix, houlsby+dora, gate"])


@pytest.mark.parametrize("name", ["roberta", "distilbert", "mpnet", "vit"])
def test_many_equal_alone_on_the_other_families(name: str) -> None:
    mixed = [recipe(HOULSBY, PREFIX, model=["bitfit"]), recipe("dora", LORA, model=[FISH]), recipe(GATE)]
    prompts = PROMPTS["prompts of one length" if name == "vit" else "prompts of three lengths"]
    for recipes in (mixed, prompts):
        assert_equals_alone(classifier(name).double(), name, recipes, logits=1e-12, grads=1e-10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_many_equal_alone_without_a_mask(name: str, attention: str) -> None:
    """Without a mask there is none to hide a shorter prefix's columns, or a shorter prompt's padding."""
    for which in ("prefixes of three lengths", "prompts of three lengths"):
        inputs = inputs_of(name)
        del inputs["attention_mask"]
        assert_equals_alone(classifier(name, attention=attention), name, (MULTIS | PROMPTS)[which], inputs)


@pytest.mark.parametrize("name", NAMES)
def test_hybrids_may_have_different_numbers_of_rows(name: str) -> None:
    recipes = [recipe(PREFIX, GATE, "dora"), recipe(LORA), recipe(HOULSBY)]
    assert_equals_alone(classifier(name).double(), name, recipes, sizes=(1, 3, 2), **rounding(name))


def test_positions_and_token_types_given_by_the_caller_move_with_each_prompt() -> None:
    for name in ("bert", "roberta", "gpt2"):
        first = 2 if name == "roberta" else 0
        inputs = inputs_of(name)
        inputs["position_ids"] = torch.arange(first, first + 7).repeat(6, 1)
        if name == "bert":
            inputs["token_type_ids"] = torch.arange(7).ge(3).long().repeat(6, 1)
        assert_equals_alone(classifier(name), name, PROMPTS["prompts of three lengths"], inputs)


@pytest.mark.parametrize("which", PROMPTS)
def test_positions_may_be_one_row_for_all_examples(which: str) -> None:
    model, multi = multi_of("gpt2", PROMPTS[which])
    inputs, positions = inputs_of("gpt2"), torch.arange(7)[None]
    given = model(**inputs, position_ids=positions).logits
    torch.testing.assert_close(given, model(**inputs).logits)
    assert multi.attached


def test_prompts_of_three_lengths_stand_before_embeddings_too() -> None:
    for name in ("bert", "llama"):
        model, inputs = classifier(name), inputs_of(name)
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        assert_equals_alone(model, name, PROMPTS["prompts of three lengths"], inputs)


@pytest.mark.parametrize("name", ["pegasus", "marian"])
@pytest.mark.parametrize("count", [1, 2])
def test_embeddings_that_are_given_are_refused_where_the_model_scales_those_it_looks_up(
    name: str, count: int
) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name)
    given = {"inputs_embeds": model.get_input_embeddings()(inputs.pop("input_ids"))}
    prompt = [recipe(model=[{"prompt_tuning": {"length": 3}}])] * count
    attached = attach_many(model, prompt) if count > 1 else attach(model, prompt[0])
    with attached, pytest.raises(CompositionError, match="multiplies the embeddings that it looks up"):
        model(**inputs, **given)
    with attach_many(model, [recipe(LORA)] * 2):
        model(**inputs, **given)


# Gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "vit"])
def test_recomputation_divides_the_rows_of_its_own_forward(name: str, reentrant: bool) -> None:
    """Three forwards of different sizes are open at once: what the last one laid down is wrong for the first,
    from the norm in front of the attention on."""
    recipes = [recipe(GATE, model=[FISH]), recipe(HOULSBY), recipe("dora", PREFIX)]
    model = without_dropout(classifier(name).double())
    inputs = inputs_of(name)
    with attach_many(model, recipes, seeds=(0, 1, 2)) as multi:
        for i, hybrid in enumerate(multi.hybrids):
            ready(hybrid, name, i)
        results = []
        for again in (False, True):
            if again:
                checkpointed(model, reentrant)
            outs = [model(**inputs, rows=sizes).logits for sizes in ((2, 2, 2), (1, 1, 4), (3, 2, 1))]
            sum(loss_of(out, i) for i, out in enumerate(outs)).backward()  # type: ignore[union-attr]
            results.append([g for hybrid in multi.hybrids for g in gradients(hybrid)])
            model.zero_grad()
    largest = max(float(g.abs().max()) for g in results[0])
    for n, (plain, recomputed) in enumerate(zip(*results, strict=True)):
        assert_near(recomputed, plain, 1e-9, f"gradient {n}", floor=1e-3 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_many_equal_alone_under_checkpointing(name: str) -> None:
    model = without_dropout(classifier(name))
    checkpointed(model, reentrant=False)
    assert_equals_alone(model, name, MULTIS["lora+prefix, houlsby+dora, gate"])


def test_the_checkpointing_function_of_a_layer_is_back_after_its_forward() -> None:
    model = classifier("bert").train()
    checkpointed(model, reentrant=False)
    layers = model.base_model.encoder.layer
    before = [layer._gradient_checkpointing_func for layer in layers]
    with attach_many(model, [recipe(LORA)] * 2):
        model(**inputs_of("bert", 2)).logits.sum().backward()
        with pytest.raises(IndexError):
            model(input_ids=torch.full((2, 3), 10**6))
    assert [layer._gradient_checkpointing_func for layer in layers] == before


# Whole batches for one hybrid, and generation


@pytest.mark.parametrize("name", NAMES)
def test_alone_gives_one_hybrid_the_whole_batch(name: str) -> None:
    items = PROMPTS["prompts of three lengths"]
    model, multi = multi_of(name, items)
    inputs = inputs_of(name)
    for i in range(3):
        with multi.alone(i) as hybrid:
            got = model(**inputs).logits
            assert hybrid is multi.hybrids[i]
        parts = [model(**inputs, rows=[6 if j == i else 0 for j in range(3)]).logits]
        other = classifier(name)
        ready(attach(other, items[i], seed=i), name, i)
        for out in (got, *parts):
            torch.testing.assert_close(out, other(**inputs).logits, atol=2e-6, rtol=1e-6)
    assert model(**inputs).logits.shape[0] == 6


GENERATION = [
    ("gpt2", "mixed", True),
    ("gpt2", "prompts", False),
    ("llama", "mixed", True),
    ("llama", "prompts", False),
    ("t5", "mixed", True),
    ("t5", "prompts", True),
]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("name", "which", "cache"), GENERATION)
def test_generation_equals_alone(name: str, which: str, cache: bool, beams: int) -> None:
    mixed = [recipe(LORA, PREFIX), recipe(HOULSBY, "dora"), recipe(model=[FISH])]
    first, _, last = PROMPTS["prompts of three lengths"]
    items = mixed if which == "mixed" else [first, recipe(PREFIX), last]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    options |= {"pad_token_id": 0, "use_cache": cache, "num_beams": beams}
    inputs = {k: v for k, v in tiny_inputs(name, batch=6).items() if k != "decoder_input_ids"}
    if name != "t5":  # left padding, as decoders want it
        inputs["attention_mask"][1::2, :2] = 0
    model = tiny_model(name)
    with attach_many(model, items, seeds=(0, 1, 2)) as multi:
        for i, hybrid in enumerate(multi.hybrids):
            ready(hybrid, name, i)
        got = model.generate(**inputs, **options)
    for i, item in enumerate(items):
        rows = slice(i * B, i * B + B)
        with attach(model, item, seed=i) as hybrid:
            ready(hybrid, name, i)
            assert torch.equal(got[rows], model.generate(**cut(inputs, rows), **options))


def test_what_serves_no_row_of_the_batch_is_refused() -> None:
    """DeBERTa-v3 projects relative positions by the maps of contents; ALBERT hands its pooler one row."""
    for item in ({"lora": {"sites": ["q"]}}, {"ssf": {"sites": ["k"]}}):
        with pytest.raises(CompositionError, match="projects relative positions too"):
            attach_many(tiny_model("deberta-v2"), [recipe(item), recipe(PREFIX)])
    with pytest.raises(CompositionError, match="projects relative positions too"):
        attach_many(tiny_model("deberta-v2"), [recipe(model=["bitfit"]), recipe(PREFIX)])
    with pytest.raises(CompositionError, match="reads a row of its last states itself"):
        attach_many(tiny_model("albert"), [recipe(model=[{"prompt_tuning": {"length": 2}}])] * 2)


@pytest.mark.parametrize("name", ["deberta", "deberta-v2", "modernbert", "albert", "siglip_vision_model"])
def test_many_equal_alone_where_attention_is_special(name: str) -> None:
    gate = {"gate": [{"lora": {"rank": 2, "sites": ["o"]}}, PREFIX, PFEIFFER]}
    lora = {"lora": {"rank": 2, "sites": ["down", "o"]}}
    recipes = [recipe(HOULSBY, PREFIX), recipe(lora), recipe(gate)]
    assert_equals_alone(classifier(name).double(), name, recipes, logits=1e-10, grads=1e-8)
