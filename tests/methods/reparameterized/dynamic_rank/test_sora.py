from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autopeft.methods.reparameterized.dynamic_rank.sora import SoRAModule, shrunk
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn

from autopeft.backbones import spec_of_model
from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.recipe.format_1 import canonical_config
from autopeft.spec import BackboneSpec
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.loop import train

PLAN = TrainingPlan(steps=24, batch_size=8, seed=3, device="cpu")


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "sora",
            "layers": [{"attach": [{"sora": {"rank": 4, **config}}]}],
            "training": {
                "learning_rate": 1e-2, "weight_decay": 0.1, "schedule": "constant", "warmup": 0.0,
            },
        }
    )  # fmt: skip


def module_of(hybrid: Hybrid) -> SoRAModule:
    found = hybrid.modules["sora"]
    assert isinstance(found, SoRAModule)
    return found


def close_gates(module: Any, seed: int = 0) -> None:
    """Set about half of all gates to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in module.gates():
            gate.mul_(torch.rand(gate.shape, generator=generator) < 0.5)


# The proximal step
# ---------------------------------------------------------------------------------------------------


def test_the_proximal_step_has_the_values_of_its_formula() -> None:
    gate = torch.tensor([-2.0, -1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 1.25, 3.0])
    expected = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 2.0])
    assert torch.equal(shrunk(gate, 1.0), expected)
    # As in the authors' code: 1.5·ξ ends at 0 instead of 0.5·ξ.
    assert torch.equal(shrunk(gate, 1.0, reference=True), expected * (expected.abs() >= 1))
    assert torch.equal(shrunk(gate, 0.0), gate)
    assert torch.equal(shrunk(gate, 0.0, reference=True), gate)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6), st.floats(0, 1, width=32))
def test_it_is_the_minimiser_of_the_proximal_problem(values: list[float], threshold: float) -> None:
    gate = torch.tensor(values, dtype=torch.float64)

    def objective(g: Tensor) -> Tensor:
        return 0.5 * (g - gate) ** 2 + threshold * g.abs()

    best = objective(shrunk(gate, threshold))
    for other in (-0.3, -0.01, 0.01, 0.3):
        assert bool((objective(shrunk(gate, threshold) + other) >= best).all())


# Form and counts
# ---------------------------------------------------------------------------------------------------


@given(toy_specs, st.integers(1, 6))
def test_count_is_what_it_holds_with_all_gates_open(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, held_trained = counted("sora", spec, rank=rank)
    assert (deployed, trained) == (held, held_trained)


def test_it_starts_as_the_identity() -> None:
    module, sites = build("sora", toy_spec())
    x, y = torch.randn(3, sites[0].in_features), torch.randn(3, sites[0].out_features)
    assert not module.delta(sites[0], x, y, CALL).any()


def test_delta_merge_and_gate() -> None:
    module, sites = build("sora", toy_spec(), rank=3, alpha=6.0)
    randomise(module)
    site = sites[1]
    pair = module[site]
    x, y = torch.randn(5, site.in_features), torch.randn(5, site.out_features)
    product = pair.B @ torch.diag(pair.gate) @ pair.A
    torch.testing.assert_close(module.delta(site, x, y, CALL), 2 * x @ product.T)
    torch.testing.assert_close(module.delta(site, x, y, GATED), x @ product.T)
    weight = torch.randn(site.out_features, site.in_features)
    torch.testing.assert_close(module.merged(site, weight, None)[0], weight + 2 * product)


def test_the_pruned_and_folded_form_equals_the_gated_one() -> None:
    module, sites = build("sora", toy_spec(), rank=5)
    randomise(module)
    close_gates(module)
    with torch.no_grad():
        module[sites[2]].gate.zero_()
    xs = {s: torch.randn(3, s.in_features) for s in sites}
    ys = {s: torch.randn(3, s.out_features) for s in sites}
    expected = {s: module.delta(s, xs[s], ys[s], CALL) for s in sites}
    ranks = {s: int(module[s].gate.count_nonzero()) for s in sites}
    assert module.ranks() == {s.path: r for s, r in ranks.items()}
    module.deploy()
    assert module.gates() == []
    assert module.loss_terms(NO_STEP) is None
    for site in sites:
        torch.testing.assert_close(
            module.delta(site, xs[site], ys[site], CALL), expected[site], atol=1e-6, rtol=1e-5
        )
        assert module[site].A.shape == (ranks[site], site.in_features)
        assert module[site].B.shape == (site.out_features, ranks[site])
    assert len(set(ranks.values())) > 1
    assert module.ranks() == {s.path: r for s, r in ranks.items()}
    assert [set(g) for g in module.parameter_groups()] == [{"params"}]


def test_what_is_saved_is_what_acts(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe(), seed=0)
    randomise(hybrid.root)
    bound = count(hybrid.recipe, hybrid.spec).deployed
    assert hybrid.counts().deployed == bound
    close_gates(module_of(hybrid))
    expected = logits(model, inputs)
    ranks = module_of(hybrid).ranks()
    real = sum(ranks[s.path] * (s.in_features + s.out_features) for s in hybrid.graph.entries["sora"].sites)
    assert hybrid.counts().deployed == real < bound
    hybrid.save(tmp_path)
    state = load_file(tmp_path / "weights.safetensors")
    assert {k.removesuffix(".sora.A"): len(v) for k, v in state.items() if k.endswith(".A")} == ranks
    assert not any("gate" in k for k in state)
    fresh = tiny_model("bert")
    again = load(fresh, tmp_path)
    assert again.counts().deployed == real
    torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-5, rtol=1e-4)


# Training
# ---------------------------------------------------------------------------------------------------


def test_the_term_is_the_mean_absolute_gate() -> None:
    module, _ = build("sora", toy_spec(), rank=3, penalty=0.5)
    gates = torch.cat([g.detach() for g in module.gates()])
    term = module.loss_terms(NO_STEP)
    torch.testing.assert_close(term.detach(), 0.5 * gates.abs().mean())
    term.backward()
    for gate in module.gates():
        torch.testing.assert_close(gate.grad, 0.5 * gate.detach().sign() / len(gates))
    assert build("sora", toy_spec(), penalty=0.0)[0].loss_terms(NO_STEP) is None


def test_gates_have_a_group_of_their_own_without_decay() -> None:
    settings = recipe().to_dict()
    settings["training"]["groups"] = {"sora": {"learning_rate": 5e-3}}
    settings["training"]["policies"] = [{"lora_plus": {"ratio": 4}}]
    hybrid = attach(tiny_bert(), Recipe.from_dict(settings), seed=0)
    module = module_of(hybrid)
    groups = {g["name"]: g for g in hybrid.optimizer().param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "sora": (5e-3, 0.1),
        "sora.up": (2e-2, 0.1),
        "sora.gates": (5e-3, 0.0),
        "head": (1e-2, 0.1),
    }
    assert {id(p) for p in groups["sora.gates"]["params"]} == {id(g) for g in module.gates()}
    held = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in hybrid.trainable_parameters())


@pytest.mark.parametrize("reference", [False, True])
def test_every_step_is_adamw_and_then_the_threshold(reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[Tensor] = []
    after: list[Tensor] = []
    seen = SoRAModule.after_step

    def watched(self: SoRAModule, step: int, total: int) -> None:
        assert all(g.grad is not None for g in self.gates())
        before.append(torch.cat([g.detach() for g in self.gates()]))
        seen(self, step, total)
        after.append(torch.cat([g.detach() for g in self.gates()]))

    monkeypatch.setattr(SoRAModule, "after_step", watched)
    hybrid = attach(tiny_bert(), recipe(threshold=0.05, reference_threshold=reference), seed=0)
    start = torch.cat([g.detach().clone() for g in module_of(hybrid).gates()])
    train(hybrid, encoded_task(), PLAN)
    assert len(before) == PLAN.steps
    for raw, left in zip(before, after, strict=True):
        soft = raw.sign() * (raw.abs() - 0.05).clamp(min=0)
        if reference:
            soft = torch.where(soft.abs() < 0.05, 0.0, soft)
        torch.testing.assert_close(left, soft, atol=1e-7, rtol=1e-6)
    # The first step of Adam moves every gate by the learning rate: weight decay would show in it.
    moved = (before[0] - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), atol=1e-4, rtol=1e-3)
    assert int((after[-1] == 0).sum()) > int((after[5] == 0).sum()) > 0


def test_a_zero_gate_comes_back_only_by_a_step_larger_than_the_threshold() -> None:
    for rate, revives in ((0.004, False), (0.02, True)):
        module, _ = build("sora", toy_spec(layers=1), rank=2, threshold=0.01)
        optimizer = torch.optim.AdamW(module.gates(), lr=rate, weight_decay=0.0)
        with torch.no_grad():
            for gate in module.gates():
                gate.zero_()
        for step in range(5):
            for gate in module.gates():
                gate.grad = torch.full_like(gate, -1.0)
            optimizer.step()
            module.after_step(step, 5)
            assert all(bool((g > 0).all()) == revives for g in module.gates())
            assert all(bool(g.any()) == revives for g in module.gates())


def test_a_larger_threshold_leaves_fewer_ranks() -> None:
    left = []
    for threshold in (0.0, 0.01, 0.03, 0.1):
        hybrid = attach(tiny_bert(), recipe(threshold=threshold), seed=0)
        train(hybrid, encoded_task(), PLAN)
        left.append(sum(module_of(hybrid).ranks().values()))
        hybrid.detach()
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 4
    assert left[0] == 4 * 2 * 6


@pytest.mark.parametrize("shrinkage", [0.0, 0.385, 1.0])
def test_trainings_of_any_length_shrink_by_the_same_sum(shrinkage: float) -> None:
    """Gates that nothing else moves lose the sum, so that as many go out after 7 steps as after 700."""
    expected = math.erfc(shrinkage / math.sqrt(2))
    for steps in (7, 70, 700):
        torch.manual_seed(0)
        module, _ = build("sora", toy_spec(layers=1), rank=400, shrinkage=shrinkage)
        start = torch.cat([g.detach() for g in module.gates()])
        for step in range(steps):
            module.after_step(step, steps)
        left = torch.cat([g.detach() for g in module.gates()])
        torch.testing.assert_close(left, shrunk(start, shrinkage), atol=1e-4, rtol=0)
        share = float((left != 0).float().mean())
        assert share == pytest.approx(expected, abs=0.04)
    assert math.erfc(0.385 / math.sqrt(2)) == pytest.approx(0.7, abs=1e-3)


def test_the_total_is_shared_by_the_steps_of_the_loop_and_a_threshold_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[float] = []

    def watched(gate: Tensor, threshold: float, *, reference: bool = False) -> Tensor:
        used.append(threshold)
        return gate

    monkeypatch.setattr("autopeft.methods.reparameterized.dynamic_rank.sora.shrunk", watched)
    for options, expected in (({"shrinkage": 1.2}, 0.05), ({}, 0.385 / 24), ({"threshold": 3e-4}, 3e-4)):
        used.clear()
        hybrid = attach(tiny_bert(), recipe(**options), seed=0)
        train(hybrid, encoded_task(), PLAN)
        assert len(used) == PLAN.steps * len(module_of(hybrid).gates())
        assert used == pytest.approx([expected] * len(used))
        hybrid.detach()


def test_what_is_left_is_what_a_trial_counts() -> None:
    plan, ranks = replace(PLAN, steps=12), dict[str, int]()
    made = recipe(shrinkage=1.0)
    outcome = run_trial(
        tiny_bert(), made, encoded_task(), plan, keep=lambda h, _: ranks.update(module_of(h).ranks())
    )
    spec = spec_of_model(tiny_bert())[0]
    graph = build_graph(made, spec)
    sites = graph.entries["sora"].sites
    assert outcome.counts.deployed == sum(ranks[s.path] * (s.in_features + s.out_features) for s in sites)
    assert 0 < outcome.counts.deployed < graph.parameter_count().deployed


def test_recipes_of_format_1_keep_a_threshold_for_each_step() -> None:
    def config(text: str) -> Any:
        (entry,) = Recipe.from_yaml(f"autopeft: {text}").entries()
        return entry.item.method_config()

    body = "layers:\n- attach:\n  - sora"
    old, new = config(f"1\n{body}\n"), config(f"2\n{body}\n")
    assert (old.threshold, old.shrinkage) == (3e-4, None)
    assert (new.threshold, new.shrinkage) == (None, 0.385)
    assert config(f"1\n{body}: {{threshold: 0.01}}\n").threshold == 0.01
    assert config(f"2\n{body}: {{threshold: 3.0e-4}}\n") == old
    assert config(f"2\n{body}: {{sites: [q, v], threshold: 3.0e-4}}\n").sites == ("q", "v")
    staged = config(f"1\n{body}: {{stages: 3, final_threshold: 0.1}}\n")
    assert (staged.threshold, staged.shrinkage) == (3e-4, None)
    data = canonical_config("sora", old)
    assert "shrinkage" not in data
    assert canonical_config("sora", new)["shrinkage"] == 0.385


# The schedule
# ---------------------------------------------------------------------------------------------------


def _thresholds(**config: Any) -> list[float]:
    return configured("sora", **config).config.thresholds()  # type: ignore[no-any-return]


def test_thresholds_rise_linearly_in_themselves_their_exp_or_their_log() -> None:
    config = {"threshold": 0.1, "final_threshold": 0.9, "stages": 5}
    assert _thresholds(**config) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    inner = [math.exp(t) for t in _thresholds(**config, schedule="log")]
    assert [b - a for a, b in itertools.pairwise(inner)] == pytest.approx([inner[1] - inner[0]] * 4)
    inner = [math.log(t) for t in _thresholds(**config, schedule="exp")]
    assert [b - a for a, b in itertools.pairwise(inner)] == pytest.approx([inner[1] - inner[0]] * 4)
    assert _thresholds(threshold=0.0, final_threshold=7e-4, stages=7)[1] == pytest.approx(7e-4 / 6)
    assert _thresholds(final_threshold=7e-4, stages=3) == pytest.approx([3e-4, 5e-4, 7e-4])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"stages": 3}, "go together"),
        ({"final_threshold": 0.1}, "go together"),
        ({"stages": 3, "threshold": 0.2, "final_threshold": 0.1}, "below threshold=0.2"),
        ({"stages": 3, "threshold": 0.0, "final_threshold": 0.1, "schedule": "exp"}, "above 0"),
        ({"threshold": 0.1, "shrinkage": 1.0}, "not both"),
        ({"stages": 3, "final_threshold": 0.1, "shrinkage": 1.0}, "not both"),
        ({"shrinkage": None}, "either shrinkage says"),
    ],
)
def test_schedules_that_cannot_be_are_errors(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        configured("sora", **config)


def test_the_schedule_trains_in_stages_each_from_where_the_last_ended() -> None:
    hybrid = attach(tiny_bert(), recipe(threshold=0.0, final_threshold=0.2, stages=4), seed=0)
    module = module_of(hybrid)
    used, states = [], []

    def on_step(step: int, loss: float) -> None:
        used.append(module.threshold)
        states.append([g.detach().clone() for g in module.gates()])

    result = train(hybrid, encoded_task(), PLAN, on_step=on_step)
    assert used == pytest.approx([0.0] * 6 + [0.2 / 3] * 6 + [0.4 / 3] * 6 + [0.2] * 6)
    assert list(result.outputs) == [f"threshold-{i}" for i in range(1, 5)]
    left = [sum(ranks.values()) for ranks in result.outputs.values()]
    assert left[0] == 4 * 2 * 6
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]
    # No stage starts anew: gates move by no more than a step and a threshold.
    for one, two in itertools.pairwise(states):
        moved = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
        assert moved < 0.2 + 0.05


def test_only_the_schedule_has_phases() -> None:
    plain, scheduled = tiny_bert(), tiny_bert()
    attach(plain, recipe(), seed=0).callback()
    hybrid = attach(scheduled, recipe(final_threshold=0.2, stages=2), seed=0)
    with pytest.raises(UsageError, match="trains in phases"):
        hybrid.callback()


def test_dropout_acts_in_training_only() -> None:
    module, sites = build("sora", toy_spec(), rank=3, dropout=0.5)
    randomise(module)
    x, y = torch.randn(9, sites[0].in_features), torch.randn(9, sites[0].out_features)
    module.eval()
    assert torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    module.train()
    assert not torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    assert isinstance(module, nn.Module)
