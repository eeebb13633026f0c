from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autopeft.methods.reparameterized.dynamic_rank.autolora import AutoLoRAModule, surviving
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, counted, toy_spec, toy_specs
from support.training import encoded_task, stop_after, tiny_bert
from torch import Tensor

from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.loop import train

PLAN = TrainingPlan(steps=12, batch_size=8, seed=3, device="cpu", shortcuts=False)


def recipe(*others: Any, **config: Any) -> Recipe:
    config = {"rank": 4, "selection_learning_rate": 0.1, **config}
    return Recipe.from_dict(
        {
            "name": "autolora",
            "layers": [{"attach": [{"autolora": config}, *others]}],
            "training": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0},
        }
    )


def module_of(hybrid: Hybrid) -> AutoLoRAModule:
    found = hybrid.modules["autolora"]
    assert isinstance(found, AutoLoRAModule)
    return found


def spread(module: AutoLoRAModule, seed: int = 0) -> None:
    """Selection variables of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for selection in module.selections():
            selection.copy_(torch.randn(selection.shape, generator=generator))


# Form and counts
# ---------------------------------------------------------------------------------------------------


@given(toy_specs, st.integers(1, 6))
def test_count_is_what_the_search_holds_and_an_upper_bound(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, held_trained = counted("autolora", spec, rank=rank)
    assert (deployed, trained) == (held, held_trained)
    module, sites = build("autolora", spec, rank=rank)
    spread(module)
    ranks = module.ranks()
    module.restart()
    real = sum(p.numel() for p in module.parameters())
    assert real == sum(ranks[s.path] * (s.in_features + s.out_features) for s in sites) <= deployed
    assert all(1 <= r <= rank for r in ranks.values())


def test_delta_merge_and_gate() -> None:
    module, sites = build("autolora", toy_spec(), rank=3, alpha=6.0)
    site = sites[1]
    x, y = torch.randn(5, site.in_features), torch.randn(5, site.out_features)
    assert not module.delta(site, x, y, CALL).any()
    assert all(torch.equal(c, torch.ones(3)) for c in module.selections())
    randomise(module)
    spread(module)
    pair = module[site]
    weights = pair.selection.exp() / pair.selection.exp().sum()
    terms = [weights[j] * torch.outer(pair.B[:, j], pair.A[j]) for j in range(3)]
    product = torch.stack(terms).sum(0)
    torch.testing.assert_close(module.delta(site, x, y, CALL), 2 * x @ product.T)
    torch.testing.assert_close(module.delta(site, x, y, GATED), x @ product.T)
    weight = torch.randn(site.out_features, site.in_features)
    torch.testing.assert_close(module.merged(site, weight, None)[0], weight + 2 * product)
    module.deploy()
    torch.testing.assert_close(module.delta(site, x, y, CALL), 2 * x @ product.T)
    assert module.selections() == []


def test_at_first_the_sum_is_a_kth_of_lora() -> None:
    module, sites = build("autolora", toy_spec(), rank=5)
    lora, _ = build("lora", toy_spec(), rank=5)
    randomise(module)
    with torch.no_grad():
        for pair, plain in zip(module.children_by_site(), lora.children_by_site(), strict=True):
            pair.selection.fill_(1.0)
            plain.A.copy_(pair.A)
            plain.B.copy_(pair.B)
    x, y = torch.randn(3, sites[0].in_features), torch.randn(3, sites[0].out_features)
    torch.testing.assert_close(
        5 * module.delta(sites[0], x, y, CALL), lora.delta(sites[0], x, y, CALL), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("rescale", [True, False])
def test_the_retrained_form_is_lora_at_its_init_with_the_alpha_that_it_had(rescale: bool) -> None:
    module, sites = build("autolora", toy_spec(hidden=200), rank=6, alpha=12.0, rescale=rescale)
    randomise(module)
    spread(module)
    ranks = module.ranks()
    assert len(set(ranks.values())) > 1
    before = {s: module[s].A.detach().clone() for s in sites}
    module.restart()
    for site in sites:
        pair = module[site]
        assert pair.A.shape == (ranks[site.path], site.in_features)
        assert pair.B.shape == (site.out_features, ranks[site.path])
        assert not pair.B.any()
        bound = site.in_features**-0.5
        assert float(pair.A.detach().abs().max()) <= bound
        assert float(pair.A.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        # Drawn anew: of so many numbers in single precision a few may meet by chance.
        assert float(torch.isin(pair.A.detach(), before[site]).float().mean()) < 0.01
    randomise(module)
    loaded, _ = build("autolora", toy_spec(hidden=200), rank=6, alpha=12.0, rescale=rescale)
    loaded.deploy()
    loaded.resize({key: tuple(value.shape) for key, value in module.state_dict().items()})
    loaded.load_state_dict(module.state_dict())
    for site in sites:
        scale = 12.0 / ranks[site.path] if rescale else 2.0
        x, y = torch.randn(3, site.in_features), torch.randn(3, site.out_features)
        product = module[site].B @ module[site].A
        for form in (module, loaded):
            torch.testing.assert_close(form.delta(site, x, y, CALL), scale * x @ product.T)
            torch.testing.assert_close(form.delta(site, x, y, GATED), x @ product.T)
            assert form.as_lora(site)[2] == pytest.approx(scale)
            weight = torch.randn(site.out_features, site.in_features)
            torch.testing.assert_close(form.merged(site, weight, None)[0], weight + scale * product)


def test_recipes_of_format_1_keep_the_scale_when_ranks_fall() -> None:
    old, new = (Recipe.from_yaml(f"autopeft: {form}\nlayers:\n- attach:\n  - autolora\n") for form in (1, 2))
    assert [r.to_dict()["layers"][0]["attach"] for r in (old, new)] == [
        [{"autolora": {"rescale": False}}],
        ["autolora"],
    ]
    assert old.hash() != new.hash()


# Training
# ---------------------------------------------------------------------------------------------------


def test_a_trial_searches_and_retrains_from_scratch_beside_another_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, states, kept = tiny_bert(), {}, {}

    def watch(event: str) -> None:
        real = getattr(AutoLoRAModule, event)

        def watched(self: AutoLoRAModule) -> None:
            states[event] = {k: v.detach().clone() for k, v in model.state_dict().items()}
            real(self)

        monkeypatch.setattr(AutoLoRAModule, event, watched)

    watch("begin")
    watch("restart")

    def keep(hybrid: Hybrid, scores: Any) -> None:
        kept.update({k: v.detach().clone() for k, v in model.state_dict().items()})
        kept["counts"] = hybrid.counts()
        kept["ranks"] = module_of(hybrid).ranks()
        kept["bound"] = count(hybrid.graph, hybrid.spec)

    mixed = recipe({"serial_adapter": {"bottleneck": 4}}, "ia3")
    outcome = run_trial(model, mixed, encoded_task(), PLAN, keep=keep)
    first, second = states["begin"], states["restart"]
    own = {k for k in first if "autopeft.autolora" in k}
    selections = {k for k in own if k.endswith("selection")}
    assert len(selections) == 4
    assert {k for k in first if not torch.equal(first[k], second[k])} == selections
    assert {k for k in kept if k in first and k not in own and not torch.equal(first[k], kept[k])} == {
        k for k in first if k.startswith("classifier") or ("autopeft" in k and k not in own)
    }
    ranks = outcome.train.outputs["search"]
    assert outcome.train.outputs["retrain"] == ranks == kept["ranks"]
    assert any(r < 4 for r in ranks.values())
    assert kept["counts"].trained == kept["bound"].trained
    assert kept["bound"].deployed - kept["counts"].deployed == sum((4 - r) * 32 for r in ranks.values())
    assert outcome.train.steps == 12


def test_the_config_says_how_long_and_on_what_it_searches() -> None:
    module, _ = build("autolora", toy_spec(), search=0.75, held_out=0.4, selection_learning_rate=0.02)
    first, second = module.phases()
    assert (first.name, first.share, first.held_out, first.anew) == ("search", 0.75, 0.4, False)
    assert (second.name, second.share, second.held_out, second.anew) == ("retrain", 0.25, 0.0, True)
    assert second.outer is None
    module.begin()
    (group,) = module.meta.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.5, 0.999), 0)


def test_a_method_with_a_schedule_beside_it_runs_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaLoRA cuts its ranks over the retraining, as if there had been no search before."""
    mixed = recipe({"adalora": {"rank": 2, "initial_rank": 4, "interval": 1, "sites": ["k"]}})
    hybrid = attach(tiny_bert(), mixed, seed=0)
    kept: list[int] = []
    refreshed: list[int] = []
    real = hybrid.refresh

    def refresh() -> None:
        refreshed.append(len(kept))
        real()

    monkeypatch.setattr(hybrid, "refresh", refresh)
    other: Any = hybrid.modules["adalora"]
    train(
        hybrid,
        encoded_task(),
        replace(PLAN, steps=24),
        on_step=lambda step, loss: kept.append(int(other.kept.sum())),
    )
    assert kept[:12] == kept[12:]
    assert (kept[0], kept[-1]) == (8, 4)
    assert refreshed == [12]


def test_a_step_of_the_search_costs_five_passes_on_the_rows_of_its_levels() -> None:
    model, data = tiny_bert(), encoded_task()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    with attach(model, recipe(search=0.5), seed=0) as hybrid:
        train(hybrid, data, replace(PLAN, steps=6))
    assert len(seen) == 3 * 5 + 3
    for first, upper, ahead, behind, step in zip(*(seen[i:15:5] for i in range(5)), strict=True):
        assert torch.equal(first, ahead)
        assert torch.equal(first, behind)
        assert torch.equal(first, step)
        rows, others = ({tuple(r[r != 0].tolist()) for r in ids} for ids in (first, upper))
        assert rows.isdisjoint(others)


def test_nothing_but_select_moves_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all terms stay, and the second phase is the training of a LoRA of rank k on all rows, bitwise."""
    starts: list[dict[str, Tensor]] = []
    real = AutoLoRAModule.restart

    def restart(self: AutoLoRAModule) -> None:
        assert all(torch.equal(c, torch.ones(4)) for c in self.selections())
        assert all(c.grad is None for c in self.selections())
        assert any(pair.B.any() for pair in self.children_by_site()) is False, "B is as at first again"
        real(self)
        starts.append({k: v.detach().clone() for k, v in self.state_dict().items()})

    monkeypatch.setattr(AutoLoRAModule, "restart", restart)
    monkeypatch.setattr(AutoLoRAModule, "select", lambda self, step: None)
    data, model = encoded_task(), tiny_bert()
    with attach(model, recipe(), seed=0) as hybrid:
        head = [p.detach().clone() for p in hybrid.head_parameters()]
        found = train(hybrid, data, PLAN)
    assert set(found.outputs["search"].values()) == {4}
    with torch.no_grad():
        for parameter, value in zip(hybrid.head_parameters(), head, strict=True):
            parameter.copy_(value)
    plain = recipe().to_dict()
    plain["layers"] = [{"attach": [{"lora": {"rank": 4}}]}]
    with attach(model, Recipe.from_dict(plain), seed=0) as lora:
        lora.modules["lora"].load_state_dict(starts[0])
        losses = train(lora, data, replace(PLAN, steps=6)).losses
    assert found.losses[6:] == losses


def test_micro_batches_give_the_same_search() -> None:
    found = []
    for micro_batch in (None, 3):
        hybrid = attach(tiny_bert(), recipe(search=0.9), seed=0)
        selections = module_of(hybrid).selections()
        train(hybrid, encoded_task(), replace(PLAN, steps=4, micro_batch=micro_batch))
        found.append(torch.cat([c.detach() for c in selections]))
    assert not torch.equal(found[0], torch.ones_like(found[0]))
    torch.testing.assert_close(found[0], found[1], atol=2e-2, rtol=0)


@pytest.mark.parametrize("dropout", [False, True])
def test_it_repeats_bitwise(dropout: bool) -> None:
    results = []
    for _ in range(2):
        plan = replace(PLAN, dropout=dropout)
        with attach(tiny_bert(), recipe(dropout=0.3), seed=0) as hybrid:
            results.append(train(hybrid, encoded_task(), plan))
    assert results[0].losses == results[1].losses
    assert results[0].outputs == results[1].outputs


def test_a_backbone_in_16_bits() -> None:
    model = tiny_bert().to(torch.bfloat16)
    hybrid = attach(model, recipe(), seed=0)
    module = module_of(hybrid)
    selections = module.selections()
    result = train(hybrid, encoded_task(), PLAN)
    assert all(c.isfinite().all() and len(c.unique()) > 1 for c in selections)
    assert all(p.dtype is torch.float32 for p in module.parameters())
    assert all(torch.tensor(result.losses).isfinite())


def test_a_search_that_is_stopped_leaves_the_weighted_sum(tmp_path: Path) -> None:
    hybrid = attach(model := tiny_bert(), recipe(), seed=0)
    result = train(hybrid, encoded_task(), PLAN, should_stop=stop_after(3))
    assert (result.steps, result.stopped) == (3, "asked")
    module = module_of(hybrid)
    assert len(module.selections()) == 4
    assert hybrid.counts().deployed == count(hybrid.graph, hybrid.spec).deployed
    ids = encoded_task().select.collate([0, 1])
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    expected = model(**inputs).logits
    hybrid.save(tmp_path)
    load(fresh := tiny_bert(), tmp_path)
    torch.testing.assert_close(fresh(**inputs).logits, expected, atol=1e-6, rtol=1e-5)


def test_the_found_ranks_are_saved_and_loaded_and_train_on(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe(), seed=0)
    module = module_of(hybrid)
    spread(module)
    module.restart()
    randomise(hybrid.root)
    ranks = module.ranks()
    assert len(set(ranks.values())) > 1
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    state = load_file(tmp_path / "weights.safetensors")
    assert {k.removesuffix(".autolora.A"): len(v) for k, v in state.items() if k.endswith(".A")} == ranks
    assert not any("selection" in k for k in state)
    fresh = tiny_model("bert")
    again = load(fresh, tmp_path)
    assert module_of(again).ranks() == ranks
    torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-6, rtol=1e-6)
    assert [p.name for p in module_of(again).phases()] == ["train"]


def test_what_is_found_trains_on_without_a_search() -> None:
    hybrid = attach(tiny_bert(), recipe(), seed=0)
    first = train(hybrid, encoded_task(), PLAN)
    before = [pair.A.detach().clone() for pair in module_of(hybrid).children_by_site()]
    second = train(hybrid, encoded_task(), PLAN)
    assert list(second.outputs) == []
    assert module_of(hybrid).ranks() == first.outputs["retrain"]
    after = [pair.A.detach() for pair in module_of(hybrid).children_by_site()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_where_it_cannot_train_it_says_so() -> None:
    with pytest.raises(UsageError, match="trains in phases"):
        attach(tiny_bert(), recipe(), seed=0).callback()


def test_the_largest_term_stays_whatever_the_authors_threshold_says() -> None:
    """c/Σc says nothing of negative sums and of zero."""
    for c, stays in (([-1.0, -3.0], [True, True]), ([0.0, 0.0], [True, False])):
        assert surviving(torch.tensor(c), reference=True).tolist() == stays


def test_dropout_acts_in_training_only() -> None:
    module, sites = build("autolora", toy_spec(), rank=3, dropout=0.5)
    randomise(module)
    x, y = torch.randn(9, sites[0].in_features), torch.randn(9, sites[0].out_features)
    module.eval()
    assert torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    module.train()
    assert not torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
