"""U-BitFit: first-order scores of all biases' updates, the k best, and a training of these alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.entries import PLAN, Seen, differing, flat, recipe_of, trained
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, snapshot, tiny_bert
from torch import nn
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

K = 40


def module_of(**config: Any) -> Any:
    module = configured("u_bitfit", **config).build((), toy_spec(layers=1))
    module.begin_search()
    return module


def deltas(module: Any) -> list[nn.Parameter]:
    """Those of all tensors, in their order."""
    return [module.dense[t.name] for t in module.entries.tensors]


@given(toy_specs, st.sampled_from(["1%", "50%", "100%", 1, 7]))
def test_count_is_what_it_holds(spec: BackboneSpec, keep: str | int) -> None:
    if keep == "1%" and sum(t.size for t in spec.tensors if "bias" in t.role) < 100:
        return
    deployed, of_training, held, held_of_training = counted("u_bitfit", spec, keep=keep)
    assert deployed == of_training == held == held_of_training


@pytest.mark.parametrize(("keep", "expected"), [("100%", 102_912), ("10%", 10_291), ("2k", 2_000)])
def test_a_share_is_one_of_all_biases(keep: str, expected: int) -> None:
    count = configured("u_bitfit", keep=keep).parameter_count((), spec_of(BertConfig()))
    assert count.deployed == count.trained == expected


# Scores
# ---------------------------------------------------------------------------------------------------


def test_a_score_is_the_sum_of_minus_update_times_gradient() -> None:
    module, total = module_of(keep=3), 0.0
    module._scoring = True
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        each = []
        for delta in deltas(module):
            delta.data = torch.randn(delta.shape, generator=generator)
            delta.grad = torch.randn(delta.shape, generator=generator)
            each.append((-delta.detach() * delta.grad).flatten())
        total = total + torch.cat(each)
        module.after_backward(seed, 3)
    names = [t.name for t in module.entries.tensors]
    torch.testing.assert_close(torch.cat([module.scores(n).flatten() for n in names]), total)
    other = module_of(keep=3, score="abs")
    other._scores = module._scores
    torch.testing.assert_close(torch.cat([other.scores(n).flatten() for n in names]), total.abs())


def test_what_has_not_moved_scores_nothing() -> None:
    module = module_of(keep=3)
    module._scoring = True
    for delta in module.dense.parameters():
        delta.grad = torch.ones_like(delta)
    module.after_backward(0, 1)
    assert not any(module.scores(t.name).any() for t in module.entries.tensors)


def test_a_search_of_one_step_ranks_by_how_far_entries_moved() -> None:
    """Its gradient comes before its update, so that no score says anything."""
    model = tiny_bert()
    recipe = recipe_of("u_bitfit", keep=K, search=0.01, rewind=False, training={"optimizer": {"name": "sgd"}})
    hybrid = attach(model, recipe, seed=0)
    module: Any = hybrid.modules["u_bitfit"]
    change: list[torch.Tensor] = []
    end = module.end_search

    def seen(n: int | None = None) -> None:
        change.append(torch.cat([d.detach().flatten() for d in deltas(module)]))
        end(n)

    module.end_search = seen
    train(hybrid, encoded_task(), TrainingPlan(steps=4, batch_size=8, seed=3, device="cpu"))
    moved = change[0].abs()
    assert int((moved > 0).sum()) > K
    expected = moved.argsort(descending=True, stable=True)[:K]
    assert set(module.entries.index.tolist()) == set(expected.tolist())


def test_small_updates_rank_as_the_loss_does_without_them() -> None:
    """L(v) = ½·Σ h·v² + c·v: what the loss gains by each entry's update, and its first-order estimate."""
    module = module_of(keep=3)
    module._scoring = True
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in deltas(module)]
    h = [torch.rand(shape, generator=generator) for shape in shapes]
    c = [torch.randn(shape, generator=generator) for shape in shapes]
    gained = []
    for delta, hi, ci in zip(deltas(module), h, c, strict=True):
        delta.data = 1e-3 * torch.randn(delta.shape, generator=generator)
        loss = (0.5 * hi * delta**2 + ci * delta).sum()
        loss.backward()
        gained.append(-(0.5 * hi * delta**2 + ci * delta).detach().flatten())
    module.after_backward(0, 1)
    found = torch.cat([module.scores(t.name).flatten() for t in module.entries.tensors])
    assert torch.equal(found.argsort(), torch.cat(gained).argsort())


@pytest.mark.parametrize(("scored", "steps"), [(0.25, 1), (0.5, 2), (1.0, 4), (0.01, 1)])
def test_the_last_steps_of_the_search_score(scored: float, steps: int) -> None:
    hybrid = attach(tiny_bert(), recipe_of("u_bitfit", keep=K, scored=scored), seed=0)
    module: Any = hybrid.modules["u_bitfit"]
    flags: list[bool] = []
    real = module.after_backward

    def watched(step: int, total: int) -> None:
        flags.append(module._scoring)
        real(step, total)

    module.after_backward = watched
    train(hybrid, encoded_task(), PLAN)
    assert flags == [False] * (4 - steps) + [True] * steps + [False] * 4


# Training
# ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> Seen:
    found: dict[str, Any] = {}

    def look(module: Any) -> None:
        found.update({t.name: module.scores(t.name).clone() for t in module.entries.tensors})

    seen = trained(recipe_of("u_bitfit", {"lora": {"rank": 2}}, keep=K), look=look)
    seen.changes.append(found)
    return seen


def test_the_entries_are_those_of_the_best_scores_of_all_tensors(seen: Seen) -> None:
    scores = flat(seen.changes[1]).numpy()
    assert seen.chosen[0].tolist() == sorted(np.argsort(-scores, kind="stable")[:K].tolist())
    assert len(seen.module.entries.selected()) > 2


def test_everything_returns_to_its_first_values(seen: Seen) -> None:
    rest = {k for k in seen.start if not k.endswith("entries.index")}
    assert {k for k in rest if not torch.equal(seen.after[0][k], seen.start[k])} == set()
    assert seen.module._scores == {}


def test_without_rewinding_it_goes_on_from_the_updates() -> None:
    seen = trained(recipe_of("u_bitfit", keep=K, rewind=False))
    values = seen.after[0]["autopeft.u_bitfit.entries.values"]
    assert torch.equal(values, flat(seen.changes[0])[seen.chosen[0]])
    assert bool(values.any())
    assert not torch.equal(seen.after[0]["classifier.weight"], seen.start["classifier.weight"])


@pytest.mark.parametrize("rewind", [True, False])
def test_exactly_k_bias_entries_differ_and_no_weight(rewind: bool) -> None:
    seen = trained(recipe_of("u_bitfit", keep=K, rewind=rewind, training={"weight_decay": 0.1}))
    assert all(t.name.endswith("bias") for t in seen.module.entries.tensors)
    wrong = differing(seen)
    assert set(wrong.tolist()) <= set(seen.module.entries.index.tolist())
    assert K - 3 <= len(wrong) <= K


@pytest.mark.parametrize("method", ["u_bitfit", "s_bitfit"])
def test_with_all_biases_it_is_bitfit_to_the_last_bit(method: str) -> None:
    training = {"learning_rate": 1e-2, "max_grad_norm": 0.0}
    found = []
    for name, steps, config in ((method, 8, {"keep": "100%"}), ("bitfit", 4, {})):
        model = tiny_bert()
        hybrid = attach(model, recipe_of(name, training=training, **config), seed=0)
        plan = TrainingPlan(steps=steps, batch_size=8, seed=3, device="cpu", shortcuts=False)
        losses = train(hybrid, encoded_task(), plan).losses
        found.append((losses[-4:], snapshot(hybrid.merge())))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())


def test_a_saved_one_is_loaded_as_it_was(seen: Seen, tmp_path: Path) -> None:
    seen.hybrid.save(tmp_path / "kept")
    again = load(tiny_bert(), tmp_path / "kept")
    batch = encoded_task().train.collate([0, 1])
    both = [h.model(batch["input_ids"], batch["attention_mask"]).logits for h in (seen.hybrid, again)]
    assert torch.equal(*both)


def test_refusals() -> None:
    for method in ("u_bitfit", "s_bitfit"):
        with pytest.raises(MethodError, match=f"{method} trains biases.*ia3"):
            configured(method).parameter_count((), toy_spec(bias=False))
        with pytest.raises(MethodError, match="of the biases of 'toy'"):
            configured(method, keep=10**6).parameter_count((), toy_spec())


def test_beside_a_method_on_weights_both_train() -> None:
    body = {"name": "both", "model": ["u_bitfit"], "layers": [{"attach": [{"lora": {"rank": 2}}]}]}
    with attach(tiny_bert(), Recipe.from_dict(body), seed=0) as hybrid:
        before = {n: p.detach().clone() for n, p in hybrid.root.named_parameters()}
        train(hybrid, encoded_task(), PLAN)
        still = {n for n, p in hybrid.root.named_parameters() if torch.equal(p, before[n])}
    assert still == set()
    assert isinstance(hybrid.modules["u_bitfit"], nn.Module)
