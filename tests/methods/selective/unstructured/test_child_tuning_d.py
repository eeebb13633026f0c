"""Child-tuning D: the child is the k entries of the layers with the largest squared batch gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from support.tiny import randomise, tiny_model
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, snapshot, tiny_bert
from support.two_layers import NetObjective, TwoLayers, calibrate, net_of_seed, net_rows, singles
from torch import Tensor, nn

from autopeft.backbones import spec_of_model
from autopeft.errors import AutoPEFTError, MethodError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.calibration import prepare
from autopeft.training.forward import Forward
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=4, batch_size=16, seed=5, device="cpu", shortcuts=False)


def recipe(**config: Any) -> Recipe:
    training = {"learning_rate": 0.01, "weight_decay": 0.1}
    return Recipe.from_dict({"name": "c", "model": [{"child_tuning_d": config}], "training": training})


def squares(net: TwoLayers, batches: Any, clip: float) -> Tensor:
    """Σ g² over batches, each tensor's g clipped by torch, over all tensors one after another."""
    same = TwoLayers()
    same.load_state_dict(net.state_dict())
    total = [torch.zeros_like(p) for p in same.base.parameters()]
    for batch in batches:
        same.zero_grad()
        NetObjective(same)(batch).backward()
        for score, parameter in zip(total, same.base.parameters(), strict=True):
            nn.utils.clip_grad_norm_([parameter], clip)
            assert parameter.grad is not None
            score += parameter.grad**2
    return torch.cat([t.flatten() for t in total])


def inside(hybrid: Hybrid) -> tuple[dict[str, Any], Tensor]:
    """The tensors of the layers by name, and whether each entry of their concatenation is in the mask."""
    entries: Any = hybrid.modules["child_tuning_d"].entries
    chosen = torch.zeros(entries.total, dtype=torch.bool)
    chosen[entries.index] = True
    return {t.name: t for t in entries.tensors}, chosen


@given(toy_specs)
def test_count_is_what_it_holds(spec: BackboneSpec) -> None:
    layers = sum(t.size for t in spec.tensors if t.layer is not None)
    if layers < 4:
        return
    for rest in ("trained", "frozen"):
        deployed, trained, held, held_trained = counted("child_tuning_d", spec, rest=rest)
        assert deployed == trained == held == held_trained
        assert deployed == layers * 3 // 10 + (spec.parameters - layers) * (rest == "trained")


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_the_mask_is_of_squared_batch_gradients_each_tensors_clipped(clip: float) -> None:
    net, batches = net_of_seed(), net_rows(12, 4)
    before = {n: p.clone() for n, p in net.named_parameters()}
    module = calibrate("child_tuning_d", net, iter(batches), keep=20, clip=clip)
    scores = squares(net, batches, clip)
    assert module.entries.index.tolist() == sorted(scores.topk(20).indices.tolist())
    fish = calibrate("fish_mask", net, batches, keep=20)
    assert fish.entries.index.tolist() != module.entries.index.tolist(), "not of single examples"
    single = squares(net, list(singles(batches)), clip)
    assert sorted(single.topk(20).indices.tolist()) != module.entries.index.tolist()
    assert {n: p.requires_grad for n, p in net.named_parameters()} == {n: "head" in n for n in before}
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_each_tensor_is_clipped_by_itself() -> None:
    """Clipped as one, or not at all, the mask is another."""
    net, batches = net_of_seed(), net_rows(12, 4)
    nn.init.normal_(net.head.weight, std=3.0)
    masks = [
        calibrate("child_tuning_d", net, batches, keep=20, clip=clip).entries.index.tolist()
        for clip in (0.0, 0.05)
    ]
    assert masks[0] != masks[1]
    assert masks[0] == sorted(squares(net, batches, 1e9).topk(20).indices.tolist())
    assert masks[1] == sorted(squares(net, batches, 0.05).topk(20).indices.tolist())


def test_only_entries_of_layers_are_ranked_and_the_rest_trains_whole() -> None:
    net, batches = net_of_seed(), net_rows()
    module = calibrate("child_tuning_d", net, batches, outside="0", keep=10)
    assert [t.name for t in module.entries.tensors] == ["2.weight", "2.bias"]
    assert module.rest.names == ("0.weight", "0.bias")
    targets = [str(t.tensor) for t in module.weight_targets()]
    assert targets == [*module.entries.selected(), "0.weight", "0.bias"]
    frozen = calibrate("child_tuning_d", net, batches, outside="0", keep=10, rest="frozen")
    assert torch.equal(frozen.entries.index, module.entries.index)
    assert frozen.rest.names == ()


def test_it_is_measured_in_one_pass_with_the_dropout_of_training() -> None:
    """As an explicit loop over the plan's batches has it, that draws the same numbers."""
    data, bert = encoded_task(), tiny_bert(hidden_dropout_prob=0.4)
    forward, scores = Forward(bert), {n: torch.zeros_like(p) for n, p in bert.bert.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PLAN.seed)
        bert.train()
        for batch in forward.batches(
            data.train, 16, shuffle=True, seed=PLAN.seed, device=torch.device("cpu")
        ):
            bert.zero_grad()
            nn.functional.cross_entropy(forward(batch), batch["labels"]).backward()
            for name, parameter in bert.bert.named_parameters():
                nn.utils.clip_grad_norm_([parameter], 1.0)
                assert parameter.grad is not None
                scores[name] += parameter.grad**2
    bert.zero_grad()
    bert.eval()
    with attach(bert, recipe(), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        tensors, chosen = inside(hybrid)
    flat = torch.cat([scores[name].flatten() for name in tensors])
    k = int(0.3 * len(flat))
    assert int(chosen.sum()) == k
    assert set(chosen.nonzero()[:, 0].tolist()) == set(flat.topk(k).indices.tolist())
    # The authors keep what reaches the quantile, which without ties is as many or one more.
    assert int((flat.numpy() >= np.percentile(flat.numpy(), 70)).sum()) - k in (0, 1)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_the_layers_are_those_of_the_stacks(name: str) -> None:
    model = tiny_model(name)
    spec, layout = spec_of_model(model)
    with attach(model, recipe(), seed=0) as hybrid:
        tensors, _ = inside(hybrid)
        module: Any = hybrid.modules["child_tuning_d"]
        paths = tuple(f"{path}." for stack in layout.stacks for path in stack.layers)
        assert all(n.startswith(paths) for n in tensors)
        assert not any(n.startswith(paths) for n in module.rest.names)
        assert len(tensors) + len(module.rest.names) == len(spec.tensors)


@pytest.mark.parametrize("rest", ["trained", "frozen"])
def test_entries_outside_are_bit_identical_in_spite_of_weight_decay(rest: str) -> None:
    bert = tiny_bert()
    before = snapshot(bert.bert)
    hybrid = attach(bert, recipe(rest=rest), seed=0)
    train(hybrid, encoded_task(), PLAN)
    tensors, chosen = inside(hybrid)
    others = [n for n in before if n not in tensors]
    index: Any = hybrid.modules["child_tuning_d"].entries.index.clone()
    train(hybrid, encoded_task(), PLAN, calibrate=False)
    assert torch.equal(hybrid.modules["child_tuning_d"].entries.index, index)
    hybrid.merge()
    after = snapshot(bert.bert)
    moved = torch.cat([(after[n] != before[n]).flatten() for n in tensors])
    assert int(moved.sum()) > 0.9 * int(chosen.sum())
    assert not bool((moved & ~chosen).any())
    changed = [not torch.equal(after[n], before[n]) for n in others if "position_ids" not in n]
    assert all(changed) if rest == "trained" else not any(changed)


def test_a_saved_one_is_loaded_as_it_was(tmp_path: Any) -> None:
    data = encoded_task()
    batch = data.train.collate([0, 1])
    with attach(tiny_bert(), recipe(keep=90), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        randomise(hybrid.modules["child_tuning_d"])
        hybrid.save(tmp_path / "kept")
        wanted = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits
    again = load(tiny_bert(), tmp_path / "kept")
    assert torch.equal(again.model(batch["input_ids"], batch["attention_mask"]).logits, wanted)


def test_refusals() -> None:
    net = net_of_seed()
    with pytest.raises(UsageError, match="child_tuning_d needs at least one"):
        calibrate("child_tuning_d", net, [], keep=3)
    with pytest.raises(MethodError, match="child_tuning_d with keep=1000000 selects"):
        configured("child_tuning_d", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="finds no layers in 'toy'; use fish_mask"):
        calibrate("child_tuning_d", net, net_rows(), outside="", keep=3)
    nn.init.constant_(net.head.weight, float("nan"))
    with pytest.raises(AutoPEFTError, match="finite"):
        calibrate("child_tuning_d", net, net_rows(), keep=3)
