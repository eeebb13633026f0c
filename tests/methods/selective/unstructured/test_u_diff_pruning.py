"""Diff pruning: gates and differences together, one cut to k entries, and a training of these alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.entries import PLAN, Seen, differing, flat, recipe_of, trained
from support.steps import NO_STEP
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor

from autopeft.errors import MethodError
from autopeft.hybrid import attach, load
from autopeft.nn import gated_deltas
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.plan import TrainingPlan

K = 60
METHODS = ("u_diff_pruning", "s_diff_pruning")
AUTHORS = 3207  # steps of a search on CoLA: 3 epochs of 8,551 rows in batches of 8
SLOW = {"location_learning_rate": 0.1 * (4 / AUTHORS) ** 0.5}  # 0.1 in the four steps of the search of PLAN


@pytest.fixture(scope="module", params=METHODS)
def seen(request: Any) -> Seen:
    """With another method beside it, decay, and gates that close."""
    return trained(recipe_of(request.param, {"lora": {"rank": 2}}, training={"weight_decay": 0.1}, keep=K))


@pytest.mark.parametrize("method", METHODS)
@given(spec=toy_specs, keep=st.sampled_from(["1%", "50%", "100%", 1, 7]))
def test_count_is_what_it_holds(method: str, spec: BackboneSpec, keep: str | int) -> None:
    if keep == "1%" and spec.parameters < 100:
        return
    deployed, of_training, held, held_of_training = counted(method, spec, keep=keep)
    assert deployed == of_training == held == held_of_training


def _differences(seen: Seen) -> Tensor:
    """w of all entries at the end of the search, in order."""
    start = f"autopeft.{seen.hybrid.recipe.name}.dense.values."
    names = [t.name.replace(".", "-") for t in seen.module.entries.tensors]
    return flat({n: seen.before[0][start + n] for n in names})


def _gates(seen: Seen) -> Tensor:
    """z of all entries at u = ½, times those of their tensors where these have some."""
    start, found = f"autopeft.{seen.hybrid.recipe.name}.dense.", []
    for name in (t.name.replace(".", "-") for t in seen.module.entries.tensors):
        z = torch.ones(())
        for kind in ("locations", "shared"):
            location = seen.before[0].get(f"{start}{kind}.{name}")
            if location is not None:
                z = z * (torch.sigmoid(location) * 3 - 1.5).clamp(0, 1)
        found.append(z.flatten())
    return torch.cat(found)


# The three stages
# ---------------------------------------------------------------------------------------------------


def test_the_entries_are_those_whose_gated_difference_is_largest(seen: Seen) -> None:
    """By the gates of u = ½, not by those of the last draw, and by no entry of the head."""
    changes = (_gates(seen) * _differences(seen)).abs().numpy()
    expected = np.argsort(-changes, kind="stable")[:K]
    assert sorted(expected.tolist()) == seen.chosen[0].tolist()
    assert not any("classifier" in t.name for t in seen.module.entries.tensors)
    ungated = _differences(seen)
    assert set(ungated.abs().topk(K).indices.tolist()) != set(expected.tolist()), "gates have a say"


def test_they_start_from_their_ungated_differences_and_all_else_goes_on(seen: Seen) -> None:
    name, before, after = seen.hybrid.recipe.name, seen.before[0], seen.after[0]
    index = after[f"autopeft.{name}.entries.index"]
    assert torch.equal(after[f"autopeft.{name}.entries.values"], _differences(seen)[index])
    assert not any(f"{name}.dense" in k for k in after)
    others = {k for k in after if not k.startswith(f"autopeft.{name}.")}
    assert {k for k in others if not torch.equal(after[k], before[k])} == set()
    moved = {k for k in others if not torch.equal(after[k], seen.start[k])}
    assert {k.split(".")[0] for k in moved} == {"classifier", "autopeft"}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_k_entries_differ_and_the_others_are_bit_identical(method: str) -> None:
    seen = trained(recipe_of(method, keep=K, training={"weight_decay": 0.1}))
    wrong = differing(seen)
    assert set(wrong.tolist()) <= set(seen.module.entries.index.tolist())
    assert K - 3 <= len(wrong) <= K


def test_the_mask_stays_and_nothing_dense_is_left(seen: Seen) -> None:
    assert torch.equal(seen.module.entries.index, seen.chosen[0])
    assert [n for n, _ in seen.module.named_parameters()] == ["entries.values"]
    assert seen.module.loss_terms(NO_STEP) is None
    first, second = seen.chosen[0], seen.module.entries.values.detach()
    assert len(first) == len(second) == K
    assert not torch.equal(second, seen.after[0][f"autopeft.{seen.hybrid.recipe.name}.entries.values"])


@pytest.mark.parametrize("method", METHODS)
def test_where_fewer_gates_are_open_than_entries_are_kept_the_largest_closed_ones_follow(method: str) -> None:
    module = configured(method, keep=9).build((), toy_spec(layers=1))
    module.begin_search()
    torch.manual_seed(0)
    names = [t.name for t in module.entries.tensors]
    with torch.no_grad():
        for name in names:
            module.dense[name].copy_(torch.randn(module.dense[name].shape))
            module.dense.locations[module.dense._key(name)].fill_(-20.0)
        module.dense.locations[module.dense._key(names[0])].view(-1)[3:7] = 20.0
    largest = torch.cat([module.dense[name].detach().flatten().abs() for name in names])
    largest[3:7] += 10.0
    module.end_search()
    assert set(module.entries.index.tolist()) == set(largest.topk(9).indices.tolist()) > {3, 4, 5, 6}


# Gates
# ---------------------------------------------------------------------------------------------------


def _locations(seen: Seen) -> Tensor:
    return flat({k: v for k, v in seen.before[0].items() if ".dense.locations." in k})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_at_the_length_of_a_quick_search_gates_close_and_choose(method: str) -> None:
    """Of 60 steps 30 search. A gate of an entry that the loss does not reach closes, such as that of a row of
    an embedding whose token is in no text; gates of those that are chosen are open; and what is chosen is not
    what has moved most."""
    seen = trained(recipe_of(method, keep=K), plan=replace(PLAN, steps=60))
    gates, differences, chosen = _gates(seen), _differences(seen), seen.chosen[0]
    still = differences == 0
    assert 0.05 < float(still.double().mean()) < 0.5
    assert not gates[still].any()
    assert 0.5 < float((gates == 0).double().mean()) < 0.99
    assert float(gates[chosen].min()) > 0.5
    largest = differences.abs().topk(K).indices
    assert len(set(largest.tolist()) - set(chosen.tolist())) > K // 10


@pytest.mark.parametrize(
    ("steps", "times"),
    [(30, (AUTHORS / 30) ** 0.5), (1604, (AUTHORS / 1604) ** 0.5), (AUTHORS, 1), (25_257, 1)],
)
def test_short_searches_have_a_larger_penalty_and_rate_and_long_ones_the_authors(
    steps: int, times: float
) -> None:
    recipe = recipe_of("u_diff_pruning", keep=K, search=0.5)
    hybrid = attach(tiny_bert(), recipe, seed=0)
    module: Any = hybrid.modules["u_diff_pruning"]
    module.begin_search()
    module.before_step(0, 2 * steps)
    optimizer = PhaseOptimizer(hybrid.parameter_groups(), recipe.training, steps)
    for step in (0, steps - 1):
        optimizer.schedule(step)
        (group,) = (g for g in optimizer.inner.param_groups if g["name"].endswith("locations"))
        assert group["lr"] == 0.1 * times
    module.after_backward(0, 2 * steps)
    p = torch.sigmoid(torch.tensor(5.0))
    for a in module.dense.all_locations():
        torch.testing.assert_close(a.grad, (1.25e-7 * times * p * (1 - p)).expand_as(a))
    term = module.loss_terms(NO_STEP)
    assert float(term) == pytest.approx(1.25e-7 * times * float(p) * module.entries.total, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "below_one", "zero"), [(15, 4, 6), (30, 6, 8), (300, 26, 31), (AUTHORS, 159, 174)]
)
def test_a_gate_without_a_gradient_of_the_loss_closes(steps: int, below_one: int, zero: int) -> None:
    """In how many steps follows from Adam on the gradient of the penalty alone, which is near ε = 1e-8."""
    module = configured("u_diff_pruning", keep=1, search=0.5).build((), toy_spec(layers=1))
    module.begin_search()
    training = Recipe.from_dict({"layers": [{"attach": ["lora"]}]}).training
    groups = [{"lr": 1e-3, **g} for g in module.parameter_groups()]
    optimizer = PhaseOptimizer(groups, training, steps)
    location = module.dense.all_locations()[0]
    gates = []
    for step in range(zero):
        optimizer.schedule(step)
        module.before_step(step, 2 * steps)
        module.after_backward(step, 2 * steps)
        optimizer.inner.step()
        gates.append(float(module.dense.gate(location).detach().flatten()[0]))
    assert [z < 1 for z in gates].index(True) + 1 == below_one
    assert [z == 0 for z in gates].index(True) + 1 == zero


def test_differences_train_at_a_fifth_of_the_rate_at_which_their_values_go_on() -> None:
    recipe = recipe_of("s_diff_pruning", keep=K, training={"learning_rate": 0.05})
    hybrid = attach(tiny_bert(), recipe, seed=0)
    module: Any = hybrid.modules["s_diff_pruning"]
    rates = []
    for change in (module.begin_search, module.end_search):
        change()
        rates.append({g["name"]: g["lr"] for g in hybrid.parameter_groups()})
    searching, sparse = rates
    expected = {"s_diff_pruning": 0.01, "s_diff_pruning.locations": 0.1, "head": 0.05}
    assert searching == pytest.approx(expected)
    assert sparse == {"s_diff_pruning": 0.05, "head": 0.05}


def test_locations_train_at_a_constant_rate_of_their_own() -> None:
    """Adam moves each by the rate in every step, while the recipe's rate falls."""
    training = {"max_grad_norm": 0.0}
    seen = trained(recipe_of("u_diff_pruning", keep=K, penalty=1.0, training=training, **SLOW))
    torch.testing.assert_close(
        _locations(seen), torch.full((seen.module.entries.total,), 4.6), atol=0.01, rtol=0
    )


def test_decay_does_not_reach_them() -> None:
    moved = [
        _locations(trained(recipe_of("u_diff_pruning", keep=K, training={"weight_decay": decay}, **SLOW)))
        for decay in (0.0, 0.5)
    ]
    torch.testing.assert_close(*moved, atol=0.1, rtol=0)


def test_they_are_clipped_by_themselves() -> None:
    module = configured("s_diff_pruning", keep=3).build((), toy_spec(layers=1))
    module.begin_search()
    differences, locations = module.parameter_groups()
    assert "clip" not in differences
    assert locations == {
        "name": "locations", "params": module.dense.all_locations(), "lr": 0.1, "meant_for": AUTHORS,
        "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": "group",
    }  # fmt: skip
    both = [id(p) for g in (differences, locations) for p in g["params"]]
    assert sorted(both) == sorted(id(p) for p in module.dense.parameters())


def test_a_larger_penalty_leaves_fewer_open() -> None:
    expected = []
    for penalty in (0.0, 1e-4, 1e-2):
        seen = trained(recipe_of("u_diff_pruning", keep=K, penalty=penalty, location=0.0))
        expected.append(float(torch.sigmoid(_locations(seen)).mean()))
    assert expected[0] > expected[1] > expected[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_draws_once_for_all_of_its_rows(method: str) -> None:
    drawn: list[list[dict[str, Any]]] = []
    losses = []
    for micro_rows in (8, 3):
        hybrid = attach(tiny_bert(), recipe_of(method, keep=K, location=0.0), seed=0)
        module: Any = hybrid.modules[method]
        seeds: list[dict[str, Any]] = []
        act = module.applied

        def applied(
            name: str, current: Tensor, module: Any = module, act: Any = act, seeds: Any = seeds
        ) -> Tensor:
            if name == module.entries.tensors[-1].name:
                seeds.append(dict(module.dense._seeds))
            return act(name, current)

        module.applied = applied
        plan = TrainingPlan(
            steps=8, batch_size=8, micro_batch=micro_rows, seed=3, device="cpu", shortcuts=False
        )
        losses.append(train(hybrid, encoded_task(), plan).losses)
        drawn.append(seeds)
    assert len(drawn[1]) > len(drawn[0]) == 4
    first, second = ({tuple(seeds.items()) for seeds in found} for found in drawn)
    assert len(first) == 4, "each step draws anew"
    assert first == second
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("low", "high", "gate"), [(-1.5, 1.5, 0.693176), (-0.1, 1.1, 0.777270), (-2.0, 1.2, 0.339387)]
)
def test_gates_are_stretched_to_the_limits_of_the_config(
    method: str, low: float, high: float, gate: float
) -> None:
    """At a = 1 and u = ½ s is 0.731059, and a gate s·(r − l) + l."""
    module = configured(method, keep=3, low=low, high=high, location=1.0).build((), toy_spec(layers=1))
    module.begin_search()
    with torch.no_grad():
        for w in module.dense.differences():
            w.fill_(1.0)
    expected = gate if method == "u_diff_pruning" else gate**2  # of entry and tensor
    changes = torch.cat([module.change(t.name).flatten() for t in module.entries.tensors])
    torch.testing.assert_close(changes, torch.full_like(changes, expected), atol=1e-4, rtol=0)


def test_evaluation_has_no_draws() -> None:
    module = configured("u_diff_pruning", keep=3, location=0.0).build((), toy_spec(layers=1))
    module.begin_search()
    with torch.no_grad():
        for w in module.dense.differences():
            w.fill_(1.0)
    module.before_step(0, 4)
    tensor = module.entries.tensors[0]
    zeros = torch.zeros(tensor.shape)
    module.eval()
    assert torch.equal(module.applied(tensor.name, zeros), zeros)  # s' = 0 at a = 0
    module.train()
    assert bool((module.applied(tensor.name, zeros) > 0).any())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_a_search_is_that_of_autograd(method: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that are made in pieces, and made again for the gradients, train as those that are kept: bit for
    bit, but that the sum over a tensor of many pieces rounds in another order."""
    monkeypatch.setattr(gated_deltas, "_PIECE", piece)
    recipe, found = recipe_of(method, keep=K, penalty=1e-3, location=0.5), []
    for kept in (False, True):
        with monkeypatch.context() as patched:
            if kept:
                patched.setattr(gated_deltas.GatedDeltas, "added_to", _with_autograd)
                patched.setattr(gated_deltas.GatedDeltas, "expected", _expected_with_autograd)
                patched.setattr(gated_deltas.GatedDeltas, "complete_gradients", lambda *given: None)
            seen = trained(recipe)
        assert seen.result is not None
        found.append((seen.result.losses, seen.before[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    exact = method == "u_diff_pruning" or piece > 64
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=0, atol=0 if exact else 1e-6)


def _with_autograd(deltas: Any, name: str, current: Tensor, *, drawn: bool = False) -> Tensor:
    gates, locations = deltas._of(name, drawn=drawn)
    parts = [noise for _, noise in gates.noise(locations)]
    noise = [torch.cat([n[0] for n in parts]).view(current.shape) if gates.seeds else None, *parts[0][1:]]
    return current + gates.opened(locations, noise) * deltas[name]


def _expected_with_autograd(deltas: Any, joint: str) -> Tensor:
    held = [a for each in (deltas.locations, deltas.shared) for a in each.values()]
    return torch.stack([deltas.gate.open(a).sum() for a in held]).sum()


# Life
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_is_stopped_while_it_searches_keeps_what_acts(method: str, tmp_path: Path) -> None:
    left = iter(range(2))
    recipe = recipe_of(method, keep=K, location=0.5, **SLOW)
    seen = trained(recipe, plan=PLAN, should_stop=lambda seen: next(left, None) is None)
    assert seen.module.dense is None
    assert bool(seen.module.entries.values.any())
    seen.hybrid.save(tmp_path / "kept")
    again = load(tiny_bert(), tmp_path / "kept")
    batch = encoded_task().train.collate([0, 1])
    both = [h.model(batch["input_ids"], batch["attention_mask"]).logits for h in (seen.hybrid, again)]
    assert torch.equal(*both)


def test_refusals() -> None:
    with pytest.raises(MethodError, match="u_diff_pruning with keep=1000000 selects"):
        configured("u_diff_pruning", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(ValidationError, match="less than 0"):
        configured("u_diff_pruning", low=0.0)
