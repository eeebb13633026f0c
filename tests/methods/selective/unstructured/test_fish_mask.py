from __future__ import annotations

from typing import Any

import pytest
import torch
from autopeft.methods.selective.unstructured.fish_mask import FishMaskModule, fisher
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import LogitsObjective, randomise, tiny_inputs, tiny_model
from support.toy import configured, counted, toy_spec, toy_specs
from support.two_layers import NetObjective, TwoLayers, net_of_seed, net_rows, net_spec, singles
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError, MethodError, UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


def _module(net: TwoLayers, **config: object) -> FishMaskModule:
    module = configured("fish_mask", **config).build((), net_spec(net))
    assert isinstance(module, FishMaskModule)
    return module


def _squares(net: TwoLayers, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Σ (∂loss/∂θ)² by an explicit loop over whatever batches are given."""
    same = TwoLayers()
    same.load_state_dict(net.state_dict())
    total = {n: torch.zeros_like(p) for n, p in same.base.named_parameters()}
    for batch in batches:
        same.zero_grad()
        NetObjective(same)(batch).backward()
        for name, p in same.base.named_parameters():
            assert p.grad is not None
            total[name] += p.grad**2
    return total


@given(toy_specs, st.sampled_from(["1%", "50%", "100%", 1, 7]))
def test_count_is_what_it_holds(spec: BackboneSpec, keep: str | int) -> None:
    if keep == "1%" and spec.parameters < 100:
        return
    deployed, trained, held, held_trained = counted("fish_mask", spec, keep=keep)
    assert deployed == trained == held == held_trained


def test_fisher_is_the_sum_of_single_squares_not_the_square_of_the_batch() -> None:
    net, batches = net_of_seed(), net_rows()
    parameters = dict(net.base.named_parameters())
    scores = fisher(parameters, singles(batches), NetObjective(net))
    expected = _squares(net, list(singles(batches)))
    batched = _squares(net, batches)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name])
        assert not torch.allclose(score, batched[name], rtol=0.05)


def test_expect_equals_label_when_the_model_is_certain_of_the_label() -> None:
    net = net_of_seed()
    objective = NetObjective(net, temperature=1e3)
    batch = net_rows(1, 1)[0]
    batch["labels"] = objective.logits(batch).argmax(-1)
    net.head.bias.data[batch["labels"]] += 100
    parameters = dict(net.base.named_parameters())
    label = fisher(parameters, [batch], objective)
    expect = fisher(parameters, [batch], objective, mode="expect")
    for name in label:
        torch.testing.assert_close(expect[name], label[name])


def test_expect_is_the_mean_over_the_models_own_labels() -> None:
    net, batch = net_of_seed(), net_rows(1, 1)[0]
    objective = NetObjective(net)
    parameters = dict(net.base.named_parameters())
    p = objective.logits(batch).softmax(-1)[0].tolist()
    by_label = [fisher(parameters, [{**batch, "labels": torch.tensor([y])}], objective) for y in range(3)]
    expect = fisher(parameters, [batch], objective, mode="expect")
    for name, score in expect.items():
        torch.testing.assert_close(score, sum(w * f[name] for w, f in zip(p, by_label, strict=True)))


def test_absolute_sums_absolute_values() -> None:
    net, batch = net_of_seed(), net_rows(1, 1)
    parameters = dict(net.base.named_parameters())
    square = fisher(parameters, batch, NetObjective(net))
    absolute = fisher(parameters, batch, NetObjective(net), grad_type="absolute")
    for name in square:
        torch.testing.assert_close(absolute[name] ** 2, square[name])


def calibrate(module: Any, net: Any, batches: Any) -> None:
    module.settle(module.measure(net.base, batches, NetObjective(net)))


def test_masks_of_all_sizes_share_a_ranking() -> None:
    net, batches = net_of_seed(), net_rows()
    small, large = _module(net, keep=3), _module(net, keep=20)
    assert small.measurement() == large.measurement() != _module(net, keep=3, samples=5).measurement()
    measured = large.measure(net.base, batches, NetObjective(net))
    small.settle(measured)
    large.settle(measured)
    alone = _module(net, keep=3)
    calibrate(alone, net, batches)
    assert torch.equal(small.entries.index, alone.entries.index)
    assert set(small.entries.index.tolist()) < set(large.entries.index.tolist())


def test_calibration_selects_globally_and_leaves_the_model_as_it_was() -> None:
    net, batches = net_of_seed(), net_rows()
    before = {n: p.clone() for n, p in net.named_parameters()}
    module = _module(net, keep=20)
    calibrate(module, net, iter(batches))
    scores = torch.cat([s.flatten() for s in _squares(net, list(singles(batches))).values()])
    assert set(module.entries.index.tolist()) == set(scores.topk(20).indices.tolist())
    assert {n: p.requires_grad for n, p in net.named_parameters()} == {n: "head" in n for n in before}
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert not module.entries.values.any()
    names = [t.name for t in net_spec(net).tensors]
    assert [str(t.tensor) for t in module.weight_targets()] == [
        n for n in names if n in module.entries.selected()
    ]


def test_uses_no_more_than_the_given_number_ofsingles() -> None:
    net, batches = net_of_seed(), net_rows()
    few, many = _module(net, keep=10, samples=2), _module(net, keep=10, samples=6)
    calibrate(few, net, batches)
    calibrate(many, net, batches[:1])
    assert torch.equal(few.entries.index, many.entries.index)


def test_refusals() -> None:
    net = net_of_seed()
    with pytest.raises(UsageError, match="at least one"):
        calibrate(_module(net, keep=3), net, [])
    with pytest.raises(MethodError, match="which has"):
        configured("fish_mask", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="selects 0"):
        configured("fish_mask", keep="0.0001%").parameter_count((), toy_spec())
    with pytest.raises(ValidationError, match="not a quantity"):
        configured("fish_mask", keep="some")
    nn.init.constant_(net.head.weight, float("nan"))
    with pytest.raises(AutoPEFTError, match="finite"):
        calibrate(_module(net, keep=3), net, net_rows())


def test_expect_needs_classes() -> None:
    net = net_of_seed()
    net.head = nn.Linear(5, 1)
    parameters = dict(net.base.named_parameters())
    with pytest.raises(MethodError, match="'label'"):
        fisher(parameters, net_rows(1, 1), NetObjective(net), mode="expect")


def test_exactly_k_entries_of_a_model_differ_and_the_mask_stays() -> None:
    model = tiny_model("bert")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    hybrid = attach(
        model, Recipe.from_dict({"autopeft": 2, "name": "f", "model": [{"fish_mask": {"keep": 50}}]})
    )
    labelled = [{**tiny_inputs("bert", batch=1, seed=i), "labels": torch.tensor([i % 2])} for i in range(4)]
    hybrid.prepare(labelled, LogitsObjective(model))
    module = hybrid.modules["fish_mask"]
    assert isinstance(module, FishMaskModule)
    index = module.entries.index.clone()
    assert len(module.entries.selected()) < len(module.entries.tensors)
    optimizer = torch.optim.AdamW(hybrid.root.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        LogitsObjective(model)(labelled[0]).backward()
        optimizer.step()
    assert torch.equal(module.entries.index, index)
    randomise(hybrid.root)
    merged = hybrid.merge()
    changed = sum(int((p != before[n]).sum()) for n, p in merged.named_parameters())
    assert changed == 50
