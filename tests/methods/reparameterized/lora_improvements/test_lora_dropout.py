from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from autopeft.methods.reparameterized.lora_improvements.lora_dropout import LoRADropoutModule
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from support.training import encoded_split, encoded_task, tiny_bert
from torch import Tensor

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach, load, predictive
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training import TrainingPlan, evaluate, predict, run_trial
from autopeft.training.contexts import training_mode
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient


@given(toy_specs, st.integers(1, 8))
def test_count_is_loras(spec: BackboneSpec, rank: int) -> None:
    config = {"rank": rank, "sites": ("q", "v", "down")}
    deployed, trained, held, held_trained = counted("lora_dropout", spec, ensemble=3, **config)
    assert deployed == trained == held == held_trained == counted("lora", spec, **config)[0]


def _one(**config: Any) -> tuple[Any, Any, Tensor]:
    """A module on one square site, in train mode, and its ΔW."""
    module, sites = build("lora_dropout", toy_spec(layers=1, hidden=200), rank=4, sites=("q",), **config)
    randomise(module)
    return module.train(), sites[0], module.scale * module[sites[0]].product().detach()


def _acting(module: Any, site: Any, call: Any = CALL) -> Tensor:
    """ΔW as one forward has it, (out, in): token j of the input is the j-th unit vector."""
    delta: Tensor = module.delta(site, torch.eye(200), torch.zeros(200, 200), call)
    return delta.detach().T


def _kept(acting: Tensor) -> tuple[Tensor, Tensor]:
    """Which input and output features act."""
    return acting.any(dim=0), acting.any(dim=1)


def test_whole_input_and_output_features_are_dropped_and_nothing_is_rescaled() -> None:
    torch.manual_seed(0)
    module, site, change = _one(dropout=0.3)
    acting = _acting(module, site)
    m_a, m_b = _kept(acting)
    for kept in (m_a, m_b):
        assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.13)  # four deviations
    torch.testing.assert_close(acting, change * m_b[:, None] * m_a)
    share = float((acting != 0).float().mean())
    assert share == pytest.approx(float(m_a.float().mean() * m_b.float().mean()))
    assert share == pytest.approx(0.49, abs=0.13)


def test_one_mask_for_all_tokens_and_rows_of_a_forward_and_another_for_the_next() -> None:
    torch.manual_seed(0)
    module, site, _ = _one(dropout=0.5)
    x = torch.randn(1, 1, 200).expand(3, 7, 200)
    first, second = (module.delta(site, x, torch.zeros_like(x), CALL) for _ in range(2))
    torch.testing.assert_close(first, first[:1, :1].expand_as(first))
    assert not torch.allclose(first, second)
    shares = [float((_acting(module, site) != 0).float().mean()) for _ in range(200)]
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.01)


def test_masked_features_get_no_gradient_and_every_rank_does() -> None:
    torch.manual_seed(0)
    module, site, _ = _one(dropout=0.5)
    x, upstream = torch.randn(64, 200), torch.randn(64, 200)
    state = torch.get_rng_state()
    m_a, m_b = _kept(_acting(module, site))
    torch.set_rng_state(state)
    (module.delta(site, x, torch.zeros_like(x), CALL) * upstream).sum().backward()
    a, b = module[site].A.grad, module[site].B.grad
    assert torch.equal(a.any(dim=0), m_a)
    assert torch.equal(b.any(dim=1), m_b)
    assert a.any(dim=1).all()
    assert b.any(dim=0).all()


def test_evaluation_is_lora_or_its_mean_under_the_masks() -> None:
    torch.manual_seed(0)
    module, site, change = _one(dropout=0.3, expected=False)
    state = torch.get_rng_state()
    assert torch.equal(_acting(module.eval(), site), _acting(module, site))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(_acting(module, site), change)
    torch.testing.assert_close(_acting(module, site, GATED), change / module.scale)
    mean, _, _ = _one(dropout=0.3)
    mean.load_state_dict(module.state_dict())
    torch.testing.assert_close(_acting(mean.eval(), site), 0.49 * change)
    mean.train()
    draws = torch.stack([_acting(mean, site) for _ in range(400)]).mean(0)
    slope = float((draws * change).sum() / change.pow(2).sum())
    assert slope == pytest.approx(0.49, abs=0.01)


@pytest.mark.parametrize("expected", [False, True])
def test_merged_weight_equals_evaluation(expected: bool) -> None:
    module, site, _ = _one(expected=expected)
    weight = torch.randn(200, 200)
    merged, bias = module.eval().merged(site, weight, None)
    torch.testing.assert_close(merged, weight + _acting(module, site))
    assert bias is None
    down, up, scale = module.as_lora(site)
    torch.testing.assert_close(scale * up @ down, _acting(module, site))


def test_without_dropout_it_is_lora() -> None:
    module, sites = build("lora_dropout", toy_spec(), rank=3, alpha=5.0, dropout=0.0)
    lora, _ = build("lora", toy_spec(), rank=3, alpha=5.0)
    randomise(module)
    lora.load_state_dict(module.state_dict())
    x, y = torch.randn(2, 4, 6), torch.zeros(2, 4, 6)
    for call in (CALL, GATED):
        torch.testing.assert_close(
            module.train().delta(sites[0], x, y, call), lora.delta(sites[0], x, y, call)
        )


# On a model


def _recipe(**config: Any) -> Recipe:
    item = {"lora_dropout": {"rank": 3, "sites": ["q", "down"], **config}}
    return Recipe.from_dict({"name": "d", "layers": [{"attach": [item]}]})


def _attached(model: Any, **config: Any) -> Hybrid:
    hybrid = attach(model, _recipe(**config), seed=0)
    randomise(hybrid.root, std=0.3)
    return hybrid


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_recomputation_draws_the_same_masks(name: str, reentrant: bool) -> None:
    """Two forwards are open at once, so that the masks of the second are drawn between the first's and its
    recomputation."""
    sites = ["qkv", "down"] if name == "gpt2" else ["q", "down"]
    model = tiny_model(name)
    hybrid = _attached(model, sites=sites)
    module: Any = hybrid.modules["lora_dropout"]
    draws: list[Tensor] = []
    plain_masks = module.masks

    def masks(site: Any, device: torch.device) -> Any:
        found = plain_masks(site, device)
        draws.append(torch.cat(found))
        return found

    module.masks = masks
    inputs = tiny_inputs(name, pad=2)

    def gradients(seed: int) -> list[Tensor]:
        draws.clear()
        hybrid.root.zero_grad()
        torch.manual_seed(seed)
        with training_mode(model, [module], dropout=False):
            first, second = model(**inputs).logits, model(**inputs).logits
            assert not torch.allclose(first, second)
            (first.pow(2).mean() + 0.5 * second.sin().mean()).backward()
        return [p.grad.clone() for p in hybrid.root.parameters() if p.grad is not None]

    plain, places = gradients(1), len(draws)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    again = gradients(1)
    assert len(draws) == 2 * places, "nothing was recomputed"
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients(2), plain, strict=True))


def _members(hybrid: Hybrid, n: int, device: torch.device) -> list[list[tuple[Tensor, Tensor]]]:
    """The masks of each member, site by site."""
    module: Any = hybrid.modules["lora_dropout"]
    found = []
    for member in range(n):
        module.choose(member)
        found.append([module.masks(site, device) for site in hybrid.graph.entries["lora_dropout"].sites])
    module.choose(None)
    return found


def test_the_ensemble_is_the_mean_of_as_many_explicit_loras() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    hybrid = _attached(model, ensemble=3)
    single = logits(model, inputs)
    got = predictive(model, lambda: logits(model, inputs))
    assert torch.equal(got, predictive(model, lambda: logits(model, inputs)))
    assert torch.equal(logits(model, inputs), single), "a bare forward is the model without masks"
    explicit = []
    for masks in _members(hybrid, 3, torch.device("cpu")):
        plain = tiny_model("bert")
        item = {"lora": {"rank": 3, "sites": ["q", "down"]}}
        lora = attach(plain, Recipe.from_dict({"name": "l", "layers": [{"attach": [item]}]}), seed=0)
        pairs: Any = (lora.modules["lora"], hybrid.modules["lora_dropout"])
        children = zip(*(p.children_by_site() for p in pairs), masks, strict=True)
        with torch.no_grad():
            for mine, masked, (m_a, m_b) in children:
                mine.A.copy_(masked.A * m_a)
                mine.B.copy_(masked.B * m_b[:, None])
        explicit.append(logits(plain, inputs).softmax(-1))
    assert not torch.allclose(explicit[0], explicit[1], atol=1e-3)
    torch.testing.assert_close(got.exp(), torch.stack(explicit).mean(0), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(got.exp(), single.softmax(-1), atol=1e-3)


def test_masks_of_members_come_from_the_seed() -> None:
    hybrid = _attached(tiny_model("bert"), ensemble=2)
    cpu = torch.device("cpu")
    first, second = _members(hybrid, 2, cpu)
    again = _members(_attached(tiny_model("bert"), ensemble=2), 1, cpu)[0]
    other = _members(_attached(tiny_model("bert"), ensemble=2, seed=1), 1, cpu)[0]
    for i, pair in enumerate(first):
        assert all(torch.equal(a, b) for a, b in zip(pair, again[i], strict=True))
        assert not torch.equal(torch.cat(pair), torch.cat(second[i]))
        assert not torch.equal(torch.cat(pair), torch.cat(other[i]))
    assert not torch.equal(first[0][0], first[2][0]), "sites have masks of their own"


def test_predictions_are_the_ensembles_in_every_batch() -> None:
    bert, split = tiny_bert(), encoded_split(11, seed=2)
    hybrid = _attached(bert, ensemble=4)
    bert.train()
    got = predict(bert, split, batch_size=3)
    bert.eval()
    expected = []
    with torch.no_grad():
        for row in range(len(split)):
            batch = split.collate([row])
            ids, mask = batch["input_ids"], batch["attention_mask"]
            expected.append(predictive(bert, lambda i=ids, m=mask: bert(i, m).logits).numpy())  # type: ignore[misc]
    assert np.allclose(got, np.concatenate(expected), atol=1e-5)
    hybrid.detach()
    _attached(bert, ensemble=0)
    assert not np.allclose(got, predict(bert, split), atol=1e-2)


def test_scores_are_the_ensembles_of_four_by_default_and_the_same_each_time() -> None:
    split, found = encoded_split(11, seed=2), []
    for options in ({}, {}, {"ensemble": 4}, {"ensemble": 0}, {"seed": 1}):
        bert = tiny_bert()
        with _attached(bert, **options):
            found.append(predict(bert, split))
            assert np.array_equal(predict(bert, split), found[-1])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[3], atol=1e-2)
    assert not np.allclose(found[0], found[4], atol=1e-5)


def test_a_trial_is_scored_with_the_ensemble_and_so_is_what_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int | None] = []
    choose = LoRADropoutModule.choose

    def watched(self: LoRADropoutModule, member: int | None) -> None:
        chosen.append(member)
        choose(self, member)

    monkeypatch.setattr(LoRADropoutModule, "choose", watched)
    data, plan = encoded_task(), TrainingPlan(steps=4, batch_size=8, device="cpu")
    outcome = run_trial(tiny_bert(), _recipe(), data, plan, keep=lambda hybrid, _: hybrid.save(tmp_path))
    assert chosen == [0, 1, 2, 3, None], "one batch of select"
    bert = tiny_bert()
    load(bert, tmp_path)
    chosen.clear()
    assert evaluate(bert, data.splits["select"], data.task.metric) == outcome.scores["select"]
    assert chosen == [0, 1, 2, 3, None]


def test_files_of_format_1_keep_the_mean_under_the_masks() -> None:
    split, found = encoded_split(11, seed=2), []
    for form, options in ((1, ""), (2, ": {ensemble: 0}"), (2, "")):
        bert = tiny_bert()
        made = Recipe.from_yaml(f"autopeft: {form}\nlayers:\n- attach:\n  - lora_dropout{options}\n")
        with attach(bert, made, seed=0) as hybrid:
            randomise(hybrid.root, std=0.3)
            found.append(predict(bert, split))
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], atol=1e-2)


def test_without_dropout_one_model_is_enough() -> None:
    module, _ = build("lora_dropout", toy_spec(), dropout=0.0)
    assert module.members == 0
    assert configured("lora_dropout", dropout=0.0).traits.mergeable


def test_an_ensemble_cannot_be_merged() -> None:
    model = tiny_model("bert")
    hybrid = _attached(model, ensemble=2)
    with pytest.raises(UsageError, match=r"lora_dropout cannot be folded.*`ensemble: 0`"):
        hybrid.merge()
    assert not configured("lora_dropout").traits.mergeable
    assert configured("lora_dropout", ensemble=0).traits.mergeable


# Several draws of a step


def _step(hybrid: Hybrid, owners: list[Any], state: Tensor) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one step whose draws begin at a state of the generator."""
    batch = encoded_task().train.collate(range(6))
    batch.pop("task_id", None)
    gradient = Gradient(Forward(hybrid.model), CrossEntropy(None), micro_rows=6, device=torch.device("cpu"))
    hybrid.root.zero_grad()
    torch.set_rng_state(state)
    with training_mode(hybrid.model, hybrid.modules.values(), dropout=False):
        loss = gradient.accumulate(batch, owners, [])
    return loss, [p.grad.clone() for p in hybrid.root.parameters() if p.grad is not None]


def test_the_loss_of_a_step_is_the_mean_over_its_draws() -> None:
    """Also where two entries have some: the forwards are those of the larger number."""
    each = (("q", 2), ("down", 3))
    items = [{"lora_dropout": {"rank": 3, "sites": [site], "draws": n}} for site, n in each]
    hybrid = attach(tiny_bert(), Recipe.from_dict({"layers": [{"attach": items}]}), seed=0)
    randomise(hybrid.root, std=0.3)
    torch.manual_seed(5)
    start, single = torch.get_rng_state(), list[tuple[float, list[Tensor]]]()
    for _ in range(3):  # each draw goes on where the one before ended
        single.append(_step(hybrid, [], torch.get_rng_state()))
    loss, found = _step(hybrid, list(hybrid.modules.values()), start)
    assert len({round(one, 6) for one, _ in single}) == 3
    assert loss == pytest.approx(sum(one for one, _ in single) / 3, rel=1e-5)
    for i, gradient in enumerate(found):
        mean = torch.stack([gradients[i] for _, gradients in single]).mean(0)
        torch.testing.assert_close(gradient, mean, atol=1e-6, rtol=1e-4)


def test_without_masks_or_with_one_draw_there_is_one_forward() -> None:
    for config in ({}, {"draws": 4, "dropout": 0.0}):
        module, _ = build("lora_dropout", toy_spec(), **config)
        assert not hasattr(module, "loss_terms")
    module, _ = build("lora_dropout", toy_spec(), draws=4)
    asked: list[int] = []
    step: Any = SimpleNamespace(average=asked.append)
    assert module.train().loss_terms(step) is None
    module.eval().loss_terms(step)
    assert asked == [4]
