from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autopeft.methods.reparameterized.dynamic_rank.adalora import AdaLoRAModule, triplets_at
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, sites_of, toy_spec, toy_specs
from support.training import encoded_task, stop_after, tiny_bert
from transformers import Trainer, TrainingArguments

from autopeft.counting import count
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training import TrainingPlan
from autopeft.training.loop import train
from autopeft.training.scoring import evaluate

PLAN = TrainingPlan(steps=30, batch_size=8, seed=3, device="cpu")
SITES = 2 * 6  # of the tiny BERT: two layers with six linear maps


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "adalora",
            "layers": [{"attach": [{"adalora": {"rank": 2, "interval": 2, "final": 0.3, **config}}]}],
            "training": {"learning_rate": 1e-2, "weight_decay": 0.0},
        }
    )


def module_of(hybrid: Hybrid) -> AdaLoRAModule:
    found = hybrid.modules["adalora"]
    assert isinstance(found, AdaLoRAModule)
    return found


def alive(module: AdaLoRAModule) -> list[list[int]]:
    """Triplets with E other than zero, by site."""
    return [c.E.nonzero().flatten().tolist() for c in module.children_by_site()]


def trained(spec: BackboneSpec, steps: int = 0, **config: Any) -> AdaLoRAModule:
    """A module after some observed steps with random gradients."""
    module, _ = build("adalora", spec, **config)
    randomise(module)
    for _ in range(steps):
        for p in module.parameters():
            p.grad = torch.randn(p.shape)
        module.sensitivity.observe(module.parameters())
    assert isinstance(module, AdaLoRAModule)
    return module


# Counts and form
# ---------------------------------------------------------------------------------------------------


@given(toy_specs, st.integers(1, 4), st.integers(0, 5))
def test_the_count_is_that_of_the_largest_triplets(spec: BackboneSpec, rank: int, more: int) -> None:
    config = {"rank": rank, "initial_rank": rank + more}
    deployed, held_trained, untouched, held = counted("adalora", spec, **config)
    sites = sites_of(configured("adalora", **config), spec)
    sizes = sorted(s.in_features + s.out_features + 1 for s in sites for _ in range(rank + more))
    assert deployed == sum(sizes[-rank * len(sites) :])
    assert held_trained == held == sum(sizes)
    assert untouched == held  # nothing is pruned before there are scores


def test_it_starts_as_the_identity() -> None:
    module, sites = build("adalora", toy_spec(hidden=60, ffn=90, kv=50), rank=8)
    x, y = torch.randn(3, sites[0].in_features), torch.randn(3, sites[0].out_features)
    assert not module.delta(sites[0], x, y, CALL).any()
    for child in module.children_by_site():
        assert child.E.shape == (12,)


def test_delta_merge_and_gate() -> None:
    module, sites = build("adalora", toy_spec(), rank=2, initial_rank=4, alpha=12.0)
    randomise(module)
    site = sites[3]
    child = module[site]
    x, y = torch.randn(5, site.in_features), torch.randn(5, site.out_features)
    product = child.P @ torch.diag(child.E) @ child.Q
    torch.testing.assert_close(module.delta(site, x, y, CALL), 3 * x @ product.T)
    torch.testing.assert_close(module.delta(site, x, y, GATED), x @ product.T)
    weight = torch.randn(site.out_features, site.in_features)
    torch.testing.assert_close(module.merged(site, weight, None)[0], weight + 3 * product)


def test_configs_that_cannot_be_are_errors() -> None:
    with pytest.raises(ValidationError, match="initial_rank=3 is below rank=4"):
        configured("adalora", rank=4, initial_rank=3)
    with pytest.raises(ValidationError, match="less than 1"):
        configured("adalora", warmup=0.5, final=0.5)


# The budget
# ---------------------------------------------------------------------------------------------------


def test_the_budget_is_a_falling_cubic_between_two_constants() -> None:
    curve = [triplets_at(t, 100, 96, 64, 10, 30) for t in range(1, 101)]
    assert curve[:10] == [96] * 10
    assert curve[69:] == [64] * 31
    for t in (11, 25, 40, 55, 69):
        assert curve[t - 1] == int(64 + 32 * (1 - (t - 10) / 60) ** 3)
    assert curve == sorted(curve, reverse=True)


@given(st.integers(1, 60), st.floats(0, 0.99), st.floats(0, 0.99))
def test_the_budget_ends_at_the_target_however_short_the_training(
    total: int, warmup: float, final: float
) -> None:
    first, last = round(warmup * total), round(min(final, 0.99 - warmup) * total) if warmup < 0.99 else 0
    curve = [triplets_at(t, total, 50, 20, first, last) for t in range(1, total + 1)]
    assert curve[-1] == 20
    assert all(20 <= b <= 50 for b in curve)
    assert curve == sorted(curve, reverse=True)


def test_ties_are_broken_so_that_exactly_the_budget_stays() -> None:
    module = trained(toy_spec(), rank=2, initial_rank=3)
    assert not module.scores().any()
    for budget in (36, 17, 1, 0):
        module.allocate(budget)
        assert int(module.kept.sum()) == sum(map(len, alive(module))) == budget  # type: ignore[union-attr]
        randomise(module)


def test_the_triplets_of_highest_score_stay_over_all_sites_together() -> None:
    module = trained(toy_spec(), steps=4, rank=2, initial_rank=3)
    scores = module.scores()
    module.allocate(10)
    kept = module.kept
    assert kept is not None
    assert float(scores[kept].min()) > float(scores[~kept].max())
    assert len({len(a) for a in alive(module)}) > 1


def test_a_score_adds_that_of_the_value_and_the_mean_of_its_vectors() -> None:
    module = trained(toy_spec(layers=1), steps=3, rank=2, initial_rank=2)
    assert module.sensitivity is not None
    entries = module.sensitivity.score()
    child, start = module.children_by_site()[2], 0
    for before in module.children_by_site()[:2]:
        start += sum(p.numel() for p in before.parameters())
    p = entries[start : start + child.P.numel()].view_as(child.P)
    e = entries[start + child.P.numel() :][:2]
    q = entries[start + child.P.numel() + 2 :][: child.Q.numel()].view_as(child.Q)
    expected = torch.stack([e[i] + p[:, i].mean() + q[i].mean() for i in range(2)])
    torch.testing.assert_close(module.scores()[2], expected)


# Training
# ---------------------------------------------------------------------------------------------------


def test_a_training_ends_with_exactly_the_target_and_a_fixed_pattern() -> None:
    model, patterns, budgets = tiny_bert(), [], []
    with attach(model, recipe(), seed=0) as hybrid:
        module = module_of(hybrid)

        def on_step(step: int, loss: float) -> None:
            patterns.append(alive(module))
            budgets.append(sum(map(len, patterns[-1])))

        train(hybrid, encoded_task(), PLAN, on_step=on_step)
        assert alive(module) == patterns[-1]
    target, first = 2 * SITES, 3 * SITES
    assert budgets[:3] == [first] * 3
    assert budgets[20:] == [target] * 10
    assert all(p == patterns[-1] for p in patterns[20:])
    assert len({len(site) for site in patterns[-1]}) > 1
    # At steps 4, 6, … the cubic holds; in between those that were pruned learn again.
    assert budgets[3:20:2] == [triplets_at(t, 30, first, target, 3, 9) for t in range(4, 21, 2)]
    assert all(b == first for b in budgets[4:19:2])
    assert patterns[5] != patterns[13]


def test_what_is_deployed_is_the_kept_triplets_alone(tmp_path: Path) -> None:
    model, data = tiny_bert(), encoded_task()
    batch = data.test.collate(range(8))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    hybrid = attach(model, recipe(orthogonality=0.0), seed=0)
    bound = count(hybrid.recipe, hybrid.spec).deployed
    train(hybrid, data, PLAN)
    expected = model(**inputs).logits
    ranks = {s.path: len(a) for s, a in zip(_sites(hybrid), alive(module_of(hybrid)), strict=True)}
    real = sum(ranks[s.path] * (s.in_features + s.out_features + 1) for s in _sites(hybrid))
    assert sum(ranks.values()) == 2 * SITES
    assert hybrid.counts().deployed == real <= bound
    hybrid.save(tmp_path)
    state = load_file(tmp_path / "weights.safetensors")
    assert {k.removesuffix(".adalora.E"): len(v) for k, v in state.items() if k.endswith(".E")} == ranks
    assert sum(v.numel() for k, v in state.items() if not k.startswith("head.")) == real
    fresh = tiny_bert()
    again = load(fresh, tmp_path)
    assert again.counts().deployed == real
    torch.testing.assert_close(fresh(**inputs).logits, expected)
    merged = again.merge()
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def _sites(hybrid: Hybrid) -> Any:
    return hybrid.graph.entries["adalora"].sites


def test_a_loaded_module_trains_on_without_pruning(tmp_path: Path) -> None:
    hybrid = attach(tiny_bert(), recipe(), seed=0)
    train(hybrid, encoded_task(), PLAN)
    hybrid.save(tmp_path)
    again = load(tiny_bert(), tmp_path)
    before = again.counts()
    train(again, encoded_task(), PLAN)
    assert again.counts() == before
    assert module_of(again).loss_terms(NO_STEP) is None


def test_a_training_that_is_stopped_is_cut_to_the_target() -> None:
    hybrid = attach(tiny_bert(), recipe(), seed=0)
    result = train(hybrid, encoded_task(), PLAN, should_stop=stop_after(7))
    assert (result.stopped, result.steps) == ("asked", 7)
    assert sum(map(len, alive(module_of(hybrid)))) == 2 * SITES
    assert hybrid.counts().deployed <= count(hybrid.recipe, hybrid.spec).deployed


def test_early_stopping_returns_to_a_state_that_is_within_the_budget() -> None:
    """Scores before the final phase are of more ranks than training leaves; the best of the others is what is
    returned, triplets and pattern alike."""
    data = encoded_task(train=40, select=30)
    plan = replace(PLAN, eval_every=2, patience=2)
    for seed in range(3):
        hybrid = attach(tiny_bert(), recipe(), seed=seed)
        result = train(hybrid, data, replace(plan, seed=seed))
        assert result.steps >= 21 + 2 * 2, "patience counts from the final phase on"
        last = [score for step, score in result.scores if step >= 21]
        module = module_of(hybrid)
        assert module.kept is not None
        acts = torch.stack([c.E != 0 for c in module.children_by_site()])
        assert int(acts.sum()) == 2 * SITES
        assert torch.equal(module.kept, acts)
        again = evaluate(hybrid.model, data.select, data.task.metric)
        assert again == pytest.approx(max(last))


def test_the_two_decays_are_each_its_own() -> None:
    module, _ = build("adalora", toy_spec(), beta1=0.25, beta2=0.75)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    size = module.parameters().__next__().detach().abs().flatten()
    module.sensitivity.observe(module.parameters())
    smooth, spread = 0.75 * size, 0.25 * (size - 0.75 * size).abs()
    torch.testing.assert_close(module.sensitivity.score()[: len(size)], smooth * spread)


def test_deploying_between_two_allocations_keeps_what_came_back() -> None:
    module = trained(toy_spec(), steps=2, rank=1, initial_rank=3)
    module.allocate(5)
    _, sites = build("adalora", toy_spec(), rank=1)
    with torch.no_grad():
        module[sites[0]].E.fill_(0.5)
    x, y = torch.randn(2, sites[0].in_features), torch.randn(2, sites[0].out_features)
    expected = module.delta(sites[0], x, y, CALL)
    module.deploy()
    assert len(module[sites[0]].E) == 3
    assert sum(len(c.E) for c in module.children_by_site()) < 9
    torch.testing.assert_close(module.delta(sites[0], x, y, CALL), expected)
    assert set(dict(module.named_buffers())) == set()


def test_a_site_may_be_left_with_nothing() -> None:
    module = trained(toy_spec(), steps=3, rank=1, initial_rank=2)
    module.allocate(1)
    module.deploy()
    _, sites = build("adalora", toy_spec(), rank=1)
    empty = next(s for s in sites if not len(module[s].E))
    x, y = torch.randn(2, 3, empty.in_features), torch.randn(2, 3, empty.out_features)
    assert torch.equal(module.delta(empty, x, y, CALL), torch.zeros_like(y))
    weight = torch.randn(empty.out_features, empty.in_features)
    assert torch.equal(module.merged(empty, weight, None)[0], weight)


def test_the_orthogonality_loss_is_the_mean_norm_and_falls() -> None:
    module = trained(toy_spec(hidden=8, kv=8), rank=3, initial_rank=3, orthogonality=0.5)
    norms = [
        torch.linalg.matrix_norm(g - torch.eye(3))
        for c in module.children_by_site()
        for g in (c.P.T @ c.P, c.Q @ c.Q.T)
    ]
    term = module.loss_terms(NO_STEP)
    assert term is not None
    torch.testing.assert_close(term, 0.5 * torch.stack(norms).mean())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = module.loss_terms(NO_STEP)
        assert loss is not None
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * float(term.detach())
    assert trained(toy_spec(), rank=3, orthogonality=0.0).loss_terms(NO_STEP) is None


def test_inside_the_trainer_it_sees_the_gradients_of_each_step(tmp_path: Path) -> None:
    bert, data = tiny_bert(), encoded_task(train=8).train
    batch = data.collate(range(8))
    rows: Any = [{k: batch[k][i] for k in ("input_ids", "attention_mask", "labels")} for i in range(8)]
    hybrid = attach(bert, recipe(), seed=0)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    callback = hybrid.callback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(bert, args, train_dataset=rows, callbacks=[callback], compute_loss_func=callback.loss).train()
    module = module_of(hybrid)
    assert sum(map(len, alive(module))) == 2 * SITES
    assert float(module.scores().min()) > 0


def test_on_a_decoder_all_linear_maps_take_part() -> None:
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    hybrid = attach(model, recipe(), seed=0)
    assert {s.name for s in _sites(hybrid)} == {"q", "k", "v", "o", "up", "gate_proj", "down"}
    randomise(hybrid.root)
    assert logits(model, inputs).isfinite().all()
