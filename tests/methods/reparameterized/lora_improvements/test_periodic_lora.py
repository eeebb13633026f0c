from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from autopeft.methods.reparameterized.lora_improvements.periodic_lora import PeriodicPair, StagedModule
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.dropped import assert_dropped
from support.laws import KAIMING, ZEROS, violations
from support.tiny import logits, randomise, snapshot, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, counted, toy_spec, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor

import autopeft.training.loop as loop
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training import TrainingPlan
from autopeft.training.loop import train
from autopeft.training.optimizer import PhaseOptimizer

PLAN = TrainingPlan(steps=24, batch_size=8, seed=3, device="cpu")


def recipe(method: str = "periodic_lora", **config: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "p",
            "layers": [{"attach": [{method: {"rank": 2, **config}}]}],
            "training": {"learning_rate": 1e-2, "schedule": "linear", "warmup": 0.25},
        }
    )


def staged(hybrid: Hybrid) -> StagedModule:
    (module,) = hybrid.modules.values()
    assert isinstance(module, StagedModule)
    return module


def rank_of(delta: Tensor) -> int:
    return int(torch.linalg.matrix_rank(delta.detach().double(), rtol=1e-6))


@given(toy_specs, st.integers(1, 4), st.integers(1, 3))
def test_count_is_what_it_holds(spec: BackboneSpec, stages: int, rank: int) -> None:
    deployed, trained, held, held_trained = counted("periodic_lora", spec, stages=stages, rank=rank)
    assert deployed == held == stages * trained
    assert trained == held_trained


def test_dropout_acts_on_what_the_live_pair_reads_alone() -> None:
    pair = PeriodicPair(16, 16, 16, 2, dropout=0.25).train()
    x = 1 + torch.rand(1000, 16)
    with torch.no_grad():
        pair.past_down.copy_(torch.eye(16))
        pair.past_up.copy_(torch.eye(16))
        assert torch.equal(pair(x), x)
        pair.A.copy_(torch.eye(16))
        pair.B.copy_(torch.eye(16))
        assert_dropped(pair(x) - x, x, 0.25)
        torch.testing.assert_close(pair.eval()(x), 2 * x)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_the_function_does_not_jump_when_it_is_unloaded(momentum: float) -> None:
    """Neither behind a constant scale nor behind a gate."""
    torch.manual_seed(0)
    module, sites = build("periodic_lora", toy_spec(hidden=12), rank=2, stages=3, momentum=momentum)
    site, x, y = sites[0], torch.randn(5, 12), torch.zeros(5, 12)
    for stage in range(2):
        randomise(module, std=0.5, seed=stage)
        pair = module[site]
        before = [module.delta(site, x, y, call) for call in (CALL, GATED)]
        live = pair.B.detach() @ pair.A.detach()
        pair.unload(stage, momentum)
        after = [module.delta(site, x, y, call) for call in (CALL, GATED)]
        for a, b in zip(after, before, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pair.B @ pair.A, momentum * live)
        place = slice(2 * stage, 2 * stage + 2)
        torch.testing.assert_close(pair.past_up[:, place] @ pair.past_down[place], (1 - momentum) * live)


def test_without_momentum_every_stage_begins_at_the_init_of_lora() -> None:
    torch.manual_seed(0)
    pair = PeriodicPair(120, 8, 20, 2, 0.0)
    randomise(pair)
    pair.unload(0, 0.0)
    assert violations(ZEROS, [pair.B]) == violations(KAIMING, [pair.A]) == []


def test_one_stage_is_lora() -> None:
    results = [
        train(attach(tiny_bert(), r, seed=0), encoded_task(), PLAN)
        for r in (recipe(stages=1), recipe("lora"))
    ]
    assert results[0].losses == results[1].losses


class Watched(PhaseOptimizer):
    """Remembers every optimizer that a training made, and its learning rates."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.course: list[float] = []
        self.moments: list[int] = []
        Watched.made.append(self)

    def schedule(self, step: int) -> None:
        super().schedule(step)
        self.moments.append(sum(bool(s["exp_avg"].any()) for s in self.inner.state.values()))
        self.course.append(self.rates[0])


def test_moments_are_zero_and_the_schedule_restarts_with_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.made = []
    monkeypatch.setattr(loop, "PhaseOptimizer", Watched)
    train(attach(tiny_bert(), recipe(stages=3), seed=0), encoded_task(), PLAN)
    rates = [o.course for o in Watched.made]
    assert [len(r) for r in rates] == [8, 8, 8]
    assert rates[0] == rates[1] == rates[2]
    assert rates[0][0] < max(rates[0]) > rates[0][-1]
    assert all(o.moments[0] == 0 < o.moments[1] for o in Watched.made)


def test_rank_grows_with_the_stages_and_the_backbone_stays() -> None:
    model = tiny_bert()
    before = snapshot(model)
    hybrid = attach(model, recipe(stages=3), seed=0)
    train(hybrid, encoded_task(), PLAN)
    module = staged(hybrid)
    ranks = {rank_of(pair.product()) for pair in module.children_by_site()}
    assert min(ranks) > 4, "more than the rank of two stages"
    assert max(ranks) <= 6
    state = model.state_dict()
    backbone = [k for k in before if not k.startswith("classifier")]
    assert all(torch.equal(state[k], before[k]) for k in backbone)


def test_the_deployed_form_is_one_lora_of_the_whole_rank(tmp_path: Path) -> None:
    hybrid = attach(tiny_bert(), recipe(stages=3, momentum=0.2), seed=0)
    train(hybrid, encoded_task(), PLAN)
    inputs = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    hybrid.model.eval()
    expected = logits(hybrid.model, inputs)
    hybrid.save(tmp_path)
    saved = {k: v.shape for k, v in load_file(tmp_path / "weights.safetensors").items()}
    assert {s[0] for k, s in saved.items() if k.endswith(".A")} == {6}
    fresh = tiny_bert()
    load(fresh, tmp_path)
    torch.testing.assert_close(logits(fresh.eval(), inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_training_that_ends_early_leaves_what_its_stages_had() -> None:
    hybrid = attach(tiny_bert(), recipe(stages=3), seed=0)
    steps = iter(range(1, 100))
    result = train(hybrid, encoded_task(), PLAN, should_stop=lambda: next(steps) == 10)
    assert (result.stopped, result.steps) == ("asked", 10)
    pair = staged(hybrid).children_by_site()[0]
    assert pair.past_down is not None
    assert pair.past_down[:2].any()
    assert not pair.past_down[2:].any()


def test_beside_another_method_it_merges() -> None:
    model = tiny_model("llama")
    items = [{"periodic_lora": {"rank": 2, "stages": 2}}, {"lora": {"rank": 2}}]
    hybrid = attach(model, Recipe.from_dict({"name": "two", "layers": [{"attach": items}]}), seed=0)
    randomise(hybrid.root)
    hybrid.modules["periodic_lora"].children_by_site()[0].unload(0, 0.5)  # type: ignore[union-attr, operator]
    inputs = tiny_inputs("llama")
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_a_second_training_goes_on_and_loses_nothing(momentum: float, tmp_path: Path) -> None:
    hybrid = attach(tiny_bert(), recipe(stages=3, momentum=momentum), seed=0)
    train(hybrid, encoded_task(), PLAN)
    pairs = staged(hybrid).children_by_site()
    past = [pair.past_up @ pair.past_down for pair in pairs]  # type: ignore[operator]
    live = [pair.B.detach().clone() for pair in pairs]
    train(hybrid, encoded_task(), PLAN)
    for pair, before, b in zip(pairs, past, live, strict=True):
        assert torch.equal(pair.past_up @ pair.past_down, before)
        assert not torch.equal(pair.B, b)
    model = hybrid.model
    hybrid.save(tmp_path)
    hybrid.detach()
    again = load(model, tmp_path)
    assert [phase.name for phase in staged(again).phases()] == ["further"]
    train(again, encoded_task(), PLAN)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_a_training_does_not_jump_between_its_stages(
    momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each stage begins with is what the one before it ended with, and μ of it stays live."""
    changes: list[tuple[Tensor, Tensor, Tensor]] = []
    unload = PeriodicPair.unload

    def watched(pair: PeriodicPair, stage: int, share: float) -> None:
        before, live = pair.product().detach().clone(), (pair.B @ pair.A).detach().clone()
        unload(pair, stage, share)
        torch.testing.assert_close(pair.product(), before, atol=1e-5, rtol=1e-4)
        changes.append((before, live, (pair.B @ pair.A).detach()))

    monkeypatch.setattr(PeriodicPair, "unload", watched)
    hybrid = attach(tiny_bert(), recipe(stages=3, momentum=momentum), seed=0)
    train(hybrid, encoded_task(), PLAN)
    assert len(changes) == 2 * len(staged(hybrid).at)
    for _, live, stays in changes:
        torch.testing.assert_close(stays, momentum * live, atol=1e-6, rtol=1e-4)
