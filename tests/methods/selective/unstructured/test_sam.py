"""SAM, the Second-order Approximation Method: signed sums of gradients, a share of each tensor, and the mask
that a diagonal quadratic wants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import LogitsObjective, randomise, tiny_inputs, tiny_model
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, snapshot, tiny_bert
from support.two_layers import NetObjective, calibrate, net_of_seed, net_rows, net_spec
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError, MethodError, UsageError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec, StackSpec, TensorSpec
from autopeft.training.calibration import prepare
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=4, batch_size=16, seed=5, device="cpu", shortcuts=False)


class Vector(nn.Module):
    """Entries x (n,), and a loss of them that each batch gives."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(n), requires_grad=False)


class VectorObjective:
    """Σ c·x + ½ Σ h·x² of a batch's c and h."""

    def __init__(self, base: Vector) -> None:
        self.base = base
        self.model = nn.ModuleDict({"base": base})

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.base.x
        return (batch["c"][0] * x + 0.5 * batch["h"][0] * x.square()).sum()

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch)[None, None]

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch).detach()[None]

    def gradients(self, batch: dict[str, Tensor], wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        found = torch.autograd.grad(self(batch), wanted, allow_unused=True, materialize_grads=True)
        return list(found)


def batch(c: list[float], h: list[float] | None = None) -> dict[str, Tensor]:
    return {"c": torch.tensor([c]), "h": torch.tensor([h or [0.0] * len(c)])}


def chosen(name: str, batches: list[dict[str, Tensor]], /, **config: Any) -> list[int]:
    """The entries of a vector that a method keeps."""
    n = batches[0]["c"].shape[1]
    base, stack = Vector(n), StackSpec("encoder", 1, n, False)
    spec = BackboneSpec("vector", (stack,), (), (TensorSpec("x", (n,), "weight"),), n)
    module = configured(name, **config).build((), spec)
    module.settle(module.measure(base, batches, VectorObjective(base)))
    assert not base.x.any()
    found: list[int] = module.entries.index.tolist()
    return found


@given(toy_specs, st.sampled_from(["10%", "50%", "100%", 40]))
def test_count_is_what_it_holds_and_a_share_of_each_tensor(spec: BackboneSpec, keep: str | int) -> None:
    if spec.parameters < 250:
        return
    deployed, trained, held, held_trained = counted("sam", spec, keep=keep)
    assert deployed == trained == held == held_trained
    if keep == "10%":
        assert deployed == sum(t.size // 10 for t in spec.tensors)
    if keep == 40:
        assert deployed == sum(40 * t.size // spec.parameters for t in spec.tensors) <= 40


def test_what_cancels_is_not_kept_and_a_fish_mask_keeps_it() -> None:
    batches = [batch([(-1.0) ** i, 0.3, 0.01]) for i in range(6)]
    assert chosen("sam", batches, keep=1, batches=6, clip=0.0) == [1]
    assert chosen("fish_mask", batches, keep=1) == [0]


def test_each_tensor_keeps_its_share_of_the_largest_sums() -> None:
    net, batches = net_of_seed(), net_rows(12, 4)
    before = {n: p.clone() for n, p in net.named_parameters()}
    module = calibrate("sam", net, batches, keep="40%", batches=3, clip=0.0)
    sums = {n: torch.zeros_like(p) for n, p in net.base.named_parameters()}
    net.base.requires_grad_(True)
    for one in batches:
        grads = torch.autograd.grad(NetObjective(net)(one), list(net.base.parameters()))
        for name, grad in zip(sums, grads, strict=True):
            sums[name] += grad
    start, expected = 0, set()
    for total in sums.values():
        k = int(0.4 * total.numel())
        expected |= {start + int(i) for i in total.abs().flatten().topk(k).indices}
        start += total.numel()
    assert set(module.entries.index.tolist()) == expected
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_the_whole_gradient_of_a_batch_is_clipped_the_heads_included() -> None:
    """One batch's head has a huge gradient, so that the batch counts for little."""
    net, batches = net_of_seed(), net_rows(6, 3)
    batches[0]["x"] *= 30.0
    sums = {n: torch.zeros_like(p) for n, p in net.base.named_parameters()}
    own = {n: torch.zeros_like(p) for n, p in net.base.named_parameters()}
    net.requires_grad_(True)
    for one in batches:
        for total, parameters in ((sums, list(net.parameters())), (own, list(net.base.parameters()))):
            net.zero_grad()
            NetObjective(net)(one).backward()
            nn.utils.clip_grad_norm_(parameters, 0.05)
            for name, parameter in net.base.named_parameters():
                assert parameter.grad is not None
                total[name] += parameter.grad
    net.zero_grad()
    net.base.requires_grad_(False)

    def best(total: dict[str, Tensor]) -> list[int]:
        start, found = 0, []
        for tensor in total.values():
            k = int(0.4 * tensor.numel())
            found += [start + int(i) for i in tensor.abs().flatten().topk(k).indices]
            start += tensor.numel()
        return sorted(found)

    module = calibrate("sam", net, batches, keep="40%", batches=2, clip=0.05)
    assert module.entries.index.tolist() == best(sums)
    assert best(sums) != best(own), "with the base's norm alone the mask is another"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_with_curvature_the_mask_is_the_best_of_all_of_its_size(seed: int, clip: float) -> None:
    """Of ½Σhx² + Σcx no k entries reach a lower loss."""
    torch.manual_seed(seed)
    h, c = torch.rand(8) * 20 + 0.05, torch.randn(8)

    def lowest(mask: tuple[int, ...]) -> float:
        return float(-(c[list(mask)].square() / (2 * h[list(mask)])).sum())

    best = min(combinations(range(8), 3), key=lowest)
    rows = [batch(c.tolist(), h.tolist())]
    assert chosen("sam", rows, keep=3, batches=1, score="g2_over_h", clip=clip) == list(best)


def test_without_curvature_a_steep_entry_is_kept_where_a_flat_one_is_worth_more() -> None:
    rows = [batch([1.0, 0.5], [10.0, 0.1])]
    assert chosen("sam", rows, keep=1, batches=1) == [0]
    assert chosen("sam", rows, keep=1, batches=1, score="g2_over_h") == [1]


def test_a_flat_entry_counts_with_epsilon() -> None:
    rows = [batch([1.0, 0.1], [1.0, 0.0])]
    assert chosen("sam", rows, keep=1, batches=1, score="g2_over_h", epsilon=1e-6) == [1]
    assert chosen("sam", rows, keep=1, batches=1, score="g2_over_h", epsilon=0.5) == [0]


@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, -1, -1, -1), (-1, 1, -1, 1), (1, -1, 1, -1)])
def test_a_negative_curvature_counts_by_its_magnitude(signs: tuple[int, ...]) -> None:
    """Theorem 3 ranks by |g²/h|, and its proof wants h ≥ 0: an entry in which the loss curves downwards is
    neither the best of all nor left out."""
    c, magnitudes = [1.0, -1.0, 0.5, 2.0], [10.0, 0.5, 0.2, 4.0]  # g²/|h| is 0.1, 2, 1.25 and 1
    rows = [batch(c, [s * h for s, h in zip(signs, magnitudes, strict=True)])]
    ranked = [chosen("sam", rows, keep=k, batches=1, score="g2_over_h", clip=0.0) for k in (1, 2, 3)]
    assert ranked == [[1], [1, 2], [1, 2, 3]]


def test_curvatures_of_batches_cancel_before_their_magnitude_counts() -> None:
    rows = [batch([1.0, 1.0], [10.0, 1.0]), batch([1.0, 1.0], [-10.0, 1.0])]
    assert chosen("sam", rows, keep=1, batches=2, score="g2_over_h", clip=0.0) == [0]
    assert chosen("sam", rows, keep=1, batches=1, score="g2_over_h", clip=0.0) == [1]


def test_many_signs_give_the_diagonal_of_the_hessian() -> None:
    from autopeft.methods.selective.unstructured.sam import SAM, _Curvature

    net, (rows,) = net_of_seed(), net_rows(6, 6)
    parameters = list(net.base.parameters())
    net.base.requires_grad_(True)
    curvature = _Curvature(parameters, SAM.Config(score="g2_over_h", probes=1000, clip=0.0))
    torch.manual_seed(0)
    curvature.observe(rows, NetObjective(net), list(net.head.parameters()))
    hessian = []
    grads = torch.autograd.grad(NetObjective(net)(rows), parameters, create_graph=True)
    for entry in torch.cat([g.flatten() for g in grads]):
        row = torch.autograd.grad(entry, parameters, retain_graph=True)
        hessian.append(torch.cat([r.flatten() for r in row]))
    whole = torch.stack(hessian)
    found = torch.cat([d.flatten() for d in curvature.diagonal])
    # The variance of vᵢ(Hv)ᵢ is the sum of the squares beside the diagonal.
    error = ((whole.square().sum(1) - whole.diagonal().square()) / 1000).sqrt()
    off = (found - whole.diagonal()) / error
    assert float(off.abs().max()) < 5
    assert 0.6 < float(off.std()) < 1.5


def test_masks_of_many_sizes_share_a_ranking() -> None:
    net, batches = net_of_seed(), net_rows()
    small, large = (
        configured("sam", keep=keep, batches=3).build((), net_spec(net)) for keep in ("10%", "12%")
    )
    assert small.measurement() == large.measurement()
    assert small.measurement() != configured("sam", keep="10%").build((), net_spec(net)).measurement()
    small.settle(large.measure(net.base, batches, NetObjective(net)))
    alone = calibrate("sam", net, batches, keep="10%", batches=3)
    assert torch.equal(small.entries.index, alone.entries.index)


def recipe(**config: Any) -> Recipe:
    training = {"learning_rate": 0.01, "weight_decay": 0.1}
    return Recipe.from_dict({"name": "s", "model": [{"sam": config}], "training": training})


def test_the_batches_are_as_many_as_asked_for_in_passes_of_other_orders() -> None:
    """48 rows are 3 batches; what comes after them is another pass, with the dropout of training."""
    bert, seen = tiny_bert(), list[tuple[bool, list[int]]]()

    def saw(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((module.training, kwargs["input_ids"].sum(1).tolist()))

    bert.register_forward_pre_hook(saw, with_kwargs=True)
    with attach(bert, recipe(batches=8), seed=0) as hybrid:
        prepare(hybrid, encoded_task(), PLAN)
        assert not bert.training
    assert len(seen) == 8
    assert all(training for training, _ in seen)
    one, two = ([row for _, rows in seen[i : i + 3] for row in rows] for i in (0, 3))
    assert sorted(one) == sorted(two)
    assert one != two


def test_exactly_its_entries_move_and_the_others_are_bit_identical() -> None:
    bert = tiny_bert()
    before = snapshot(bert.bert)
    hybrid = attach(bert, recipe(keep="5%", batches=4), seed=0)
    train(hybrid, encoded_task(), PLAN)
    entries: Any = hybrid.modules["sam"].entries
    index, offsets = entries.index.clone(), entries.offsets
    train(hybrid, encoded_task(), PLAN, calibrate=False)
    assert torch.equal(index, entries.index)
    hybrid.merge()
    after = snapshot(bert.bert)
    for name, (start, end) in offsets.items():
        moved = set(((after[name] != before[name]).flatten().nonzero()[:, 0] + start).tolist())
        kept = {int(i) for i in index if start <= i < end}
        assert moved <= kept
        assert len(kept) == int(0.05 * (end - start))
        assert len(moved) >= 0.5 * len(kept), name


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2"])
def test_second_derivatives_go_through_attention(name: str) -> None:
    model = tiny_model(name)
    made = recipe(keep="5%", batches=2, score="g2_over_h")
    with attach(model, made, seed=0) as hybrid:
        rows = [{**tiny_inputs(name, batch=2, seed=i), "labels": torch.tensor([0, 1])} for i in range(2)]
        hybrid.prepare(rows, LogitsObjective(model))
        module: Any = hybrid.modules["sam"]
        assert len(module.entries.held) == len(module.entries.values)


def test_a_saved_one_is_loaded_as_it_was(tmp_path: Any) -> None:
    data = encoded_task()
    rows = data.train.collate([0, 1])
    with attach(tiny_bert(), recipe(keep="2%", batches=2), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        randomise(hybrid.modules["sam"])
        hybrid.save(tmp_path / "kept")
        wanted = hybrid.model(rows["input_ids"], rows["attention_mask"]).logits
    again = load(tiny_bert(), tmp_path / "kept")
    assert torch.equal(again.model(rows["input_ids"], rows["attention_mask"]).logits, wanted)


def test_refusals() -> None:
    net = net_of_seed()
    with pytest.raises(UsageError, match="sam needs at least one"):
        calibrate("sam", net, [], keep="10%")
    with pytest.raises(MethodError, match="sam with keep=1000000 selects"):
        configured("sam", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="less than one entry of each tensor"):
        configured("sam", keep="0.001%").parameter_count((), toy_spec())
    nn.init.constant_(net.head.weight, float("nan"))
    with pytest.raises(AutoPEFTError, match="finite"):
        calibrate("sam", net, net_rows(), keep="10%")
