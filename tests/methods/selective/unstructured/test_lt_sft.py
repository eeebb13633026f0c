"""LT-SFT: full fine-tuning, the k entries that moved most, all rewound, and a training of these alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.entries import PLAN, Seen, choose_by_lot, differing, flat, recipe_of, trained
from support.steps import NO_STEP
from support.tiny import randomise, tiny_model
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, snapshot, tiny_bert
from torch import Tensor

from autopeft.errors import MethodError, UsageError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.full_tuning import FullFineTuning
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

K = 60


@pytest.fixture(scope="module")
def seen() -> Seen:
    """With another method beside it, and decay."""
    return trained(recipe_of("lt_sft", {"lora": {"rank": 2}}, keep=K, training={"weight_decay": 0.1}))


@given(toy_specs, st.sampled_from(["1%", "50%", "100%", 1, 7]))
def test_count_is_what_it_holds(spec: BackboneSpec, keep: str | int) -> None:
    if keep == "1%" and spec.parameters < 100:
        return
    deployed, of_training, held, held_of_training = counted("lt_sft", spec, keep=keep)
    assert deployed == of_training == held == held_of_training


# The two phases
# ---------------------------------------------------------------------------------------------------


def test_the_entries_are_those_that_moved_most(seen: Seen) -> None:
    moved = flat(seen.changes[0]).abs().numpy()
    expected = np.argsort(-moved, kind="stable")[:K]
    assert sorted(expected.tolist()) == seen.chosen[0].tolist() == seen.module.entries.index.tolist()
    assert not set(expected.tolist()) <= set(np.random.default_rng(0).permutation(len(moved))[:K].tolist())
    assert (moved > 0).mean() > 0.5, "all tensors take part in full fine-tuning"


def test_everything_returns_to_its_first_values(seen: Seen) -> None:
    before, after = seen.before[0], seen.after[0]
    rest = {k for k in seen.start if not k.endswith("entries.index")}
    assert {k for k in rest if not torch.equal(after[k], seen.start[k])} == set()
    assert not any("lt_sft.dense" in k for k in (*seen.start, *after))
    assert any("lt_sft.dense" in k for k in before)
    assert seen.module.dense is None


def test_exactly_k_entries_differ_and_the_others_are_bit_identical() -> None:
    seen = trained(recipe_of("lt_sft", keep=K, training={"weight_decay": 0.1}))
    wrong = differing(seen)
    assert set(wrong.tolist()) <= set(seen.module.entries.index.tolist())
    assert K - 3 <= len(wrong) <= K
    assert len(seen.module.entries.index.unique()) == K


def test_the_first_phase_is_full_fine_tuning() -> None:
    training = {"learning_rate": 0.1, "warmup": 0.0, "optimizer": {"name": "sgd"}}
    seen = trained(recipe_of("lt_sft", keep=K, training=training))
    model = tiny_bert()
    start = snapshot(model)
    full = FullFineTuning(model, Recipe.from_dict({"name": "f", "training": training}).training)
    train(full, encoded_task(), TrainingPlan(steps=4, batch_size=8, seed=3, device="cpu", shortcuts=False))
    for name, change in seen.changes[0].items():
        there = model.state_dict()[f"bert.{name}"] - start[f"bert.{name}"]
        torch.testing.assert_close(change, there, atol=2e-6, rtol=1e-3)


def test_the_second_phase_trains_k_values_with_a_new_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.training import loop

    made: list[Any] = []

    class Watched(loop.PhaseOptimizer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(loop, "PhaseOptimizer", Watched)
    seen = trained(recipe_of("lt_sft", keep=K))
    first, second = made
    own = [p for p in second.parameters if p is seen.module.entries.values]
    assert len(own) == 1
    head = sum(p.numel() for p in seen.hybrid.head_parameters())
    assert sum(p.numel() for p in second.parameters) == K + head
    assert sum(p.numel() for p in first.parameters) == seen.module.entries.total + head
    states = [v for v in second.inner.state[own[0]].values() if v.ndim]
    assert [tuple(v.shape) for v in states] == [(K,), (K,)]
    assert all(p.grad is None for p in first.parameters)
    assert all(p.grad is None for p in seen.hybrid.model.parameters())


def test_nothing_dense_is_held_before_and_after() -> None:
    hybrid = attach(tiny_bert(), recipe_of("lt_sft", keep=K), seed=0)
    assert sum(p.numel() for p in hybrid.root.parameters()) == K == hybrid.counts().trained
    train(hybrid, encoded_task(), PLAN)
    assert sum(p.numel() for p in hybrid.root.parameters()) == K == hybrid.counts().deployed


def test_values_are_of_single_precision_whatever_the_backbone_s() -> None:
    model = tiny_bert().to(torch.bfloat16)
    seen = trained(recipe_of("lt_sft", keep=K), model=model)
    assert seen.module.entries.values.dtype is torch.float32
    assert all(change.dtype is torch.float32 for change in seen.changes[0].values())


def test_norms_may_stay_frozen() -> None:
    seen = trained(recipe_of("lt_sft", keep=K, norms="frozen"))
    assert not any("LayerNorm" in t.name for t in seen.module.entries.tensors)
    assert any("LayerNorm" in n for n in seen.start)
    differing(seen)


# Iterations
# ---------------------------------------------------------------------------------------------------


def test_iterations_add_entries_and_go_on_from_the_one_before() -> None:
    plan = TrainingPlan(steps=12, batch_size=8, seed=3, device="cpu", shortcuts=False)
    seen = trained(recipe_of("lt_sft", {"lora": {"rank": 2}}, keep=11, iterations=3), plan=plan)
    chosen = [set(index[index >= 0].tolist()) for index in seen.chosen]
    assert [len(c) for c in chosen] == [3, 6, 11]
    assert chosen[0] < chosen[1] < chosen[2]
    for i, changes in enumerate(seen.changes):
        moved = flat(changes).abs()
        new, old = chosen[i] - (chosen[i - 1] if i else set()), chosen[i - 1] if i else set()
        others = torch.ones(len(moved), dtype=torch.bool)
        others[list(chosen[i])] = False
        assert moved[list(new)].min() >= moved[others].max()
        assert not new & old
    # What the second full fine-tuning has made of head and LoRA is forgotten, and not what was before it.
    own = {"autopeft.lt_sft.entries.values", "autopeft.lt_sft.entries.index"}
    kept, there = seen.begun[1], seen.after[1]
    assert {k for k in kept if not torch.equal(kept[k], there[k])} == own
    moved_before = {k for k in kept if not torch.equal(kept[k], seen.start[k])} - own
    assert {k.split(".")[0] for k in moved_before} == {"classifier", "autopeft"}
    values = seen.after[1]["autopeft.lt_sft.entries.values"]
    index = seen.after[1]["autopeft.lt_sft.entries.index"]
    trained_before = [int(p) in chosen[0] for p in index]
    assert bool((values[trained_before] != 0).any())
    assert not bool(values[[not t for t in trained_before]].any())


def test_a_second_search_goes_on_from_the_values_of_the_first() -> None:
    module = configured("lt_sft", keep=4, iterations=2).build((), toy_spec(layers=1))
    module.entries.extend(torch.tensor([2, 9]))
    with torch.no_grad():
        module.entries.values.copy_(torch.tensor([0.0, 0.0, 1.5, -2.5]))
    module.begin_search()
    change = flat({t.name: module.change(t.name).detach() for t in module.entries.tensors})
    assert change.nonzero()[:, 0].tolist() == [2, 9]
    assert change[[2, 9]].tolist() == [1.5, -2.5]
    module.end_search(1)
    assert module.entries.index.tolist()[0] == -1
    assert {2, 9} < set(module.entries.index.tolist())
    assert sorted(module.entries.values.tolist()) == [-2.5, 0.0, 0.0, 1.5]


# Options
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["trained", "frozen"])
def test_the_penalty_is_the_mean_distance_in_either_phase(norms: str) -> None:
    """Over all entries of the base model, those that it may not choose too."""
    spec = toy_spec(layers=1)
    module = configured("lt_sft", keep=5, l1_full=0.3, l1_sparse=0.7, norms=norms).build((), spec)
    module.begin_search()
    randomise(module.dense)
    total = sum(float(p.detach().abs().sum()) for p in module.dense.parameters())
    assert float(module.loss_terms(NO_STEP).detach()) == pytest.approx(
        0.3 * total / spec.parameters, rel=1e-5
    )
    module.end_search()
    randomise(module)
    total = float(module.entries.values.detach().abs().sum())
    assert float(module.loss_terms(NO_STEP).detach()) == pytest.approx(
        0.7 * total / spec.parameters, rel=1e-5
    )
    assert configured("lt_sft", keep=5).build((), spec).loss_terms(NO_STEP) is None


def test_the_penalty_holds_changes_back() -> None:
    moved = []
    for weight in (0.0, 1000.0):
        seen = trained(recipe_of("lt_sft", keep=K, l1_full=weight))
        moved.append(float(flat(seen.changes[0]).abs().mean()))
    assert moved[1] < 0.9 * moved[0]


def test_refusals() -> None:
    with pytest.raises(MethodError, match="lt_sft with keep=1000000 selects 1,000,000 entries"):
        configured("lt_sft", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="iterations=5 cannot share out"):
        configured("lt_sft", keep=4, iterations=5).parameter_count((), toy_spec())
    with pytest.raises(UsageError, match="trains in phases"):
        attach(tiny_bert(), recipe_of("lt_sft", keep=K), seed=0).for_trainer()


# Life
# ---------------------------------------------------------------------------------------------------


def _logits(model: Any) -> Tensor:
    batch = encoded_task().train.collate([0, 1, 2])
    with torch.no_grad():
        out: Tensor = model(batch["input_ids"], batch["attention_mask"]).logits
    return out


def test_two_add_in_either_order_and_come_off_again() -> None:
    """A task's and a language's, which may share entries."""
    names, changed = ("a", "b"), {}
    for order in (names, names[::-1]):
        model = tiny_model("bert")
        start = snapshot(model)
        for name in order:
            hybrid = attach(model, recipe_of("lt_sft", keep=300), seed=0)
            entries: Any = hybrid.modules["lt_sft"].entries
            draw = torch.Generator().manual_seed(names.index(name))
            entries.select(torch.randperm(entries.total, generator=draw)[:300])
            randomise(hybrid.root, seed=names.index(name))
            hybrid.refresh()
            hybrid.merge()
        changed[order] = snapshot(model)
    for key, value in changed[names].items():
        torch.testing.assert_close(value, changed[names[::-1]][key], atol=1e-6, rtol=1e-6)
    assert sum(int((changed[names][k] != start[k]).sum()) for k in start) > 500
    # Taken off again: b alone is left.
    one = tiny_model("bert")
    hybrid = attach(one, recipe_of("lt_sft", keep=300), seed=0)
    choose_by_lot(hybrid)
    randomise(hybrid.root)
    hybrid.detach()
    assert all(torch.equal(v, start[k]) for k, v in snapshot(one).items())


def test_both_in_one_recipe_add() -> None:
    body = {"name": "two", "model": [{"lt_sft": {"keep": 40}}, {"lt_sft": {"keep": 30}}]}
    hybrid = attach(tiny_bert(), Recipe.from_dict(body), seed=0)
    result = train(hybrid, encoded_task(), PLAN)
    assert result.steps == 8
    found = [module.entries for module in hybrid.modules.values()]  # type: ignore[union-attr]
    assert [len(e.index) - e.missing for e in found] == [40, 30]
    expected = _logits(hybrid.model)
    torch.testing.assert_close(_logits(hybrid.merge()), expected, atol=1e-5, rtol=1e-4)


def test_a_saved_one_is_loaded_as_it_was(seen: Seen, tmp_path: Path) -> None:
    seen.hybrid.save(tmp_path / "kept")
    again = load(tiny_bert(), tmp_path / "kept")
    assert torch.equal(_logits(again.model), _logits(seen.hybrid.model))


@pytest.mark.parametrize("iterations", [1, 2])
def test_what_is_stopped_while_it_searches_keeps_the_largest_changes(iterations: int, tmp_path: Path) -> None:
    seen = _stopped(iterations, 2 if iterations == 1 else 4)
    module: Any = seen.module
    assert module.dense is None
    assert module.entries.missing == 0
    assert bool(module.entries.values.any())
    seen.hybrid.save(tmp_path / "kept")
    again = load(tiny_bert(), tmp_path / "kept")
    assert torch.equal(_logits(again.model), _logits(seen.hybrid.model))


def _stopped(iterations: int, steps: int) -> Seen:
    left = iter(range(steps))
    plan, recipe = PLAN, recipe_of("lt_sft", keep=K, iterations=iterations)
    return trained(recipe, plan=plan, should_stop=lambda seen: next(left, None) is None)


def test_a_second_training_goes_on_with_the_entries_that_are_chosen() -> None:
    seen = trained(recipe_of("lt_sft", keep=K))
    index = seen.module.entries.index.clone()
    values = seen.module.entries.values.detach().clone()
    assert [p.name for p in seen.module.phases()] == ["train"]
    train(seen.hybrid, encoded_task(), PLAN)
    assert torch.equal(seen.module.entries.index, index)
    assert not torch.equal(seen.module.entries.values, values)
