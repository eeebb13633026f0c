"""How several hybrids come onto one model and leave it, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.multi import (
    FISH,
    GATE,
    HOULSBY,
    LORA,
    MULTIS,
    PREFIX,
    PROMPTS,
    B,
    classifier,
    cut,
    inputs_of,
    loss_of,
    multi_of,
    ready,
    recipe,
)
from support.tiny import ARCHITECTURES, randomise, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.backbones import base_model_of
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import attach, attach_many, load
from autopeft.recipe import Recipe


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_detach_leaves_no_trace(name: str) -> None:
    model, inputs = classifier(name), inputs_of(name)
    before, expected = fingerprint(model), model(**inputs).logits.detach()
    for recipes in (MULTIS["lora+prefix, houlsby+dora, gate"], PROMPTS["prompts of one length"]):
        with attach_many(model, recipes, seeds=(0, 1, 2)) as multi:
            for i, hybrid in enumerate(multi.hybrids):
                ready(hybrid, name, i)
            model(**inputs).logits.pow(2).sum().backward()
            torch.optim.SGD(multi.trainable_parameters(), lr=0.1).step()
            base = {n: p for n, p in model.named_parameters() if not n.startswith("autopeft.")}
            assert all(p.grad is None for p in base.values())
            assert all(torch.equal(base[n], before[n]) for n in base)
        assert changed(before, fingerprint(model)) == []
        multi.detach()
        assert not multi.attached
        assert not any(hybrid.attached for hybrid in multi.hybrids)
    assert torch.equal(model(**inputs).logits, expected)


def test_a_recipe_that_does_not_fit_is_named_and_changes_nothing() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(UsageError, match=r"Recipe 2 of 2, 'r': bitfit trains biases"):
        attach_many(model, [recipe(LORA), recipe(model=["bitfit"])])
    model.config._attn_implementation = "flex_attention"
    before = fingerprint(model)
    with pytest.raises(CompositionError, match="attn_implementation='sdpa'"):
        attach_many(model, [recipe(LORA), recipe(PREFIX)])
    assert changed(before, fingerprint(model)) == []


def test_each_hybrid_starts_as_it_does_alone_with_its_seed() -> None:
    model = classifier("bert")
    item = recipe(LORA, "dora", GATE, model=[{"prompt_tuning": {"length": 3, "init": "vocabulary"}}])
    states = []
    for seed in (5, 6):
        with attach(model, item, seed=seed) as hybrid:
            states.append({k: v.clone() for k, v in hybrid.root.state_dict().items()})
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with attach_many(model, [item, item], seeds=(5, 6)) as multi:
        assert torch.equal(torch.rand(2), expected)
        for hybrid, state in zip(multi.hybrids, states, strict=True):
            held = hybrid.root.state_dict()
            assert held.keys() == state.keys()
            assert all(torch.equal(held[k], state[k]) for k in state)
        heads = [hybrid.head() for hybrid in multi.hybrids]
        assert list(heads[0]) == ["classifier.weight", "classifier.bias"]
        for name, parameter in heads[0].items():
            assert torch.equal(parameter, model.get_parameter(name))
            assert parameter is not heads[1][name]


def test_groups_counts_and_keys_are_those_of_a_hybrid() -> None:
    items = [recipe(LORA, PREFIX), recipe(HOULSBY)]
    model = classifier("bert")
    wanted = []
    for item in items:
        with attach(model, item, seed=0) as hybrid:
            sizes = [(g["name"], sum(p.numel() for p in g["params"])) for g in hybrid.parameter_groups()]
            wanted.append((hybrid.counts(), sizes))
    before = set(model.state_dict())
    with attach_many(model, items) as multi:
        for hybrid, (counts, sizes) in zip(multi.hybrids, wanted, strict=True):
            groups = hybrid.parameter_groups()
            assert [(g["name"], sum(p.numel() for p in g["params"])) for g in groups] == sizes
            assert hybrid.counts() == counts
        trained = {id(p) for p in multi.trainable_parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == trained
        assert before <= set(model.state_dict())
        assert all(k.startswith("autopeft.") for k in set(model.state_dict()) - before)


def test_one_step_of_each_hybrids_own_optimizer_equals_its_step_alone() -> None:
    items, name = MULTIS["fish, dora+ia3+lora, pfeiffer"], "bert"
    inputs, after = inputs_of(name), []
    for i, item in enumerate(items):
        model = classifier(name)
        with attach(model, item, seed=i) as hybrid:
            ready(hybrid, name, i)
            optimizer = hybrid.optimizer(eps=1e-3)
            loss_of(model(**cut(inputs, slice(i * B, i * B + B))).logits, i).backward()
            optimizer.step()
            after.append([p.detach().clone() for p in hybrid.trainable_parameters()])
    model, multi = multi_of(name, items)
    optimizers = [hybrid.optimizer(eps=1e-3) for hybrid in multi.hybrids]
    out = model(**inputs).logits
    sum(loss_of(out[rows], i) for i, rows in enumerate(multi.rows(len(out)))).backward()  # type: ignore[union-attr]
    for optimizer, hybrid, expected in zip(optimizers, multi.hybrids, after, strict=True):
        optimizer.step()
        torch.testing.assert_close(
            [p.detach() for p in hybrid.trainable_parameters()], expected, atol=2e-6, rtol=1e-5
        )


def test_one_of_several_hybrids_is_saved_as_if_it_were_alone(tmp_path: Path) -> None:
    items = MULTIS["fish, dora+ia3+lora, pfeiffer"]
    model, multi = multi_of("bert", items)
    inputs = inputs_of("bert")
    out = model(**inputs).logits
    for i, (hybrid, rows) in enumerate(zip(multi.hybrids, multi.rows(len(out)), strict=True)):
        hybrid.save(tmp_path / str(i))
        fresh = classifier("bert")
        load(fresh, tmp_path / str(i))
        torch.testing.assert_close(fresh(**cut(inputs, rows)).logits, out[rows], atol=1e-6, rtol=1e-6)


def test_deepcopy_is_independent() -> None:
    model, multi = multi_of("bert", MULTIS["lora+prefix, houlsby+dora, gate"])
    inputs = inputs_of("bert")
    expected = model(**inputs).logits
    copied = copy.deepcopy(model)
    randomise(model.autopeft, std=0.3, seed=9)
    torch.testing.assert_close(copied(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)
    assert multi.attached


# Refusals


def test_what_cannot_stand_in_one_batch_is_refused_and_changes_nothing() -> None:
    unmasked = recipe({"gate": {"children": [LORA], "masked": False}})
    prompt = recipe(model=[{"prompt_tuning": {"length": 3}}])
    for name, items, why in (
        ("vit", [prompt, recipe(LORA)], "3, 0 rows cannot stand in one batch here.*takes none"),
        ("bert", [prompt, unmasked], "`masked: false` counts the padding"),
        ("bert", [], "at least one recipe"),
    ):
        model = tiny_model(name)
        before = fingerprint(model)
        with pytest.raises(UsageError, match=why):
            attach_many(model, items)
        assert changed(before, fingerprint(model)) == []
    with pytest.raises(UsageError, match="2 recipes and 1 seeds"):
        attach_many(tiny_model("bert"), [prompt, prompt], seeds=[1])


def test_a_model_is_attached_to_once() -> None:
    model = tiny_model("bert")
    with attach_many(model, [recipe(LORA)] * 2):
        for attempt in (lambda: attach(model, recipe(LORA)), lambda: attach_many(model, [recipe(LORA)])):
            with pytest.raises(UsageError, match="attached already"):
                attempt()
    with attach(model, recipe(LORA)), pytest.raises(UsageError, match="attached already"):
        attach_many(model, [recipe(LORA)])


def test_one_of_several_hybrids_neither_goes_nor_merges_by_itself() -> None:
    _, multi = multi_of("bert", [recipe(LORA)] * 2)
    with pytest.raises(UsageError, match=r"call detach\(\) on what attach_many"):
        multi.hybrids[0].detach()
    with pytest.raises(UsageError, match="save\\(\\) it"):
        multi.hybrids[0].merge()
    assert multi.attached


@pytest.mark.parametrize("sizes", [None, (2, 2), (3, 3, -1), (1, 2, 3)])
def test_rows_that_cannot_be_divided_are_refused(sizes: Any) -> None:
    model, multi = multi_of("bert", [recipe(LORA)] * 3)
    inputs = tiny_inputs("bert", batch=5)
    with pytest.raises(UsageError, match="5 rows"):
        model(**inputs, **({} if sizes is None else {"rows": sizes}))
    with pytest.raises(UsageError, match="5 rows"):
        multi.rows(5, sizes)
    assert multi.rows(5, (0, 2, 3)) == (slice(0, 0), slice(0, 2), slice(2, 5))
    assert model(**inputs_of("bert")).logits.shape[0] == 6


def test_prompts_of_different_lengths_are_refused_with_a_cache() -> None:
    model = tiny_model("gpt2")
    attach_many(model, [*PROMPTS["prompts of three lengths"][:1], recipe(LORA)])
    with pytest.raises(CompositionError, match="use_cache=False"):
        model.generate(**tiny_inputs("gpt2", batch=4), max_new_tokens=3, pad_token_id=0)


def test_a_part_of_the_model_by_itself_does_not_guess_whose_rows_it_sees() -> None:
    model, _ = multi_of("bert", [recipe(LORA)] * 2)
    query = model.base_model.encoder.layer[0].attention.self.query
    for _ in range(2):
        with pytest.raises(CompositionError, match="outside a forward"):
            query(torch.zeros(4, 3, 32))
        model(**inputs_of("bert", 2))  # leaves nothing behind that would be taken for a forward
        base_model_of(model)(**inputs_of("bert", 2))  # nor does a root that is called by itself


def test_calibration_sees_the_hybrids_own_head_and_nothing_of_the_others() -> None:
    """And what was said before about whose rows they are holds after it."""
    model, multi = multi_of("bert", [recipe(LORA, HOULSBY), recipe(model=[FISH])])
    with multi.alone(1) as hybrid:
        own = model.classifier.weight
        seen: list[Tensor] = []
        hook = model.classifier.register_forward_hook(lambda m, a, out: seen.append(m.weight))
        inputs = tiny_inputs("bert", batch=1)
        out: list[Tensor] = []
        with multi.bare(1):
            out.append(model(**inputs).logits)
        hook.remove()
        assert seen[0] is hybrid.head()["classifier.weight"]
        assert model.classifier.weight is own
        torch.nn.init.zeros_(hybrid.modules["fish_mask"].entries.values)  # the identity
        torch.testing.assert_close(model(**inputs).logits, out[0])


def test_a_table_of_positions_that_no_row_can_have_of_its_own_is_told() -> None:
    """UMT5's attention looks its bias up itself and takes none, as T5's does."""
    table = Recipe.from_dict({"name": "f", "model": [{"fish_mask": {"keep": 20, "samples": 2}}]})
    lora = Recipe.from_dict({"name": "l", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    with (
        attach_many(tiny_model("umt5"), [lora, table]) as together,
        pytest.raises(CompositionError, match=r"cannot be told apart; attach them one at a time"),
    ):
        together.model(**tiny_inputs("umt5"))
