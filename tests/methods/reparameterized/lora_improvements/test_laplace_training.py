"""Laplace-LoRA in a training, in predictions and in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import randomise
from support.toy import configured, sites_of, toy_spec
from support.training import encoded_split, encoded_task, tiny_bert
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, conclude, predict, run_trial, train
from autopeft.training.forward import shortest_forward

Batch = dict[str, Tensor]


def _recipe(*items: dict[str, Any]) -> Recipe:
    attach_ = [{"laplace_lora": i} if "gate" not in i else i for i in items]
    return Recipe.from_dict({"name": "l", "layers": [{"attach": attach_}]})


PLAN = TrainingPlan(steps=6, batch_size=8, seed=1, device="cpu")


def _nll(scores: Any, labels: Any) -> float:
    return float(F.cross_entropy(torch.as_tensor(scores), torch.as_tensor(labels).long()))


def test_a_trial_trains_as_lora_and_predicts_with_its_posterior() -> None:
    data = encoded_task(train=40, select=11)
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def look(hybrid: Hybrid, scores: Any) -> None:
            found[name] = predict(hybrid.model, data.select)
            parameters = {k: v.detach().clone() for k, v in hybrid.root.named_parameters()}
            found[f"{name}-weights"] = [*parameters.values()]
            with torch.no_grad():
                batch = data.select.collate(range(11))
                found[f"{name}-bare"] = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits

        return look

    for name in ("laplace_lora", "lora"):
        recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": [{name: {"rank": 2}}]}]})
        outcome = run_trial(tiny_bert(), recipe, data, PLAN, keep=keep(name))
        assert np.isfinite(outcome.score)
    for mine, loras in zip(found["laplace_lora-weights"], found["lora-weights"], strict=True):
        assert torch.equal(mine, loras)
    assert torch.equal(found["laplace_lora-bare"], found["lora-bare"])
    nll = [_nll(found[n], data.select.labels) for n in ("laplace_lora", "lora")]
    assert np.isfinite(nll).all()
    assert not np.allclose(found["laplace_lora"], found["lora"], atol=1e-3)
    np.testing.assert_allclose(np.exp(found["laplace_lora"]).sum(-1), 1, atol=1e-5)


def test_uncertain_predictions_lower_the_loss_of_what_is_overfitted() -> None:
    """Trained to certainty on few rows with random labels, the mean is sure of itself elsewhere too."""
    data = encoded_task(train=12, select=60)
    data.train.labels[:] = np.arange(12) % 2  # type: ignore[index]
    plan = TrainingPlan(steps=120, batch_size=12, device="cpu")
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "training": {"learning_rate": 1e-2},
            "layers": [
                {"attach": [{"laplace_lora": {"rank": 4, "sites": ["q", "k", "v", "o", "up", "down"]}}]}
            ],
        }
    )
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        train(hybrid, data, plan)
        module: Any = hybrid.modules["laplace_lora"]
        uncertain = _nll(predict(hybrid.model, data.select), data.select.labels)
        module.before_step(0, 1)
        assert uncertain < _nll(predict(hybrid.model, data.select), data.select.labels) - 0.05


def test_while_it_trains_and_when_asked_to_stop_predictions_are_the_means() -> None:
    data = encoded_task(train=16, select=8)
    with attach(tiny_bert(), _recipe({"rank": 2}), seed=0) as hybrid:
        module: Any = hybrid.modules["laplace_lora"]
        train(hybrid, data, PLAN)
        assert module.samples == 1000
        seen = []
        train(hybrid, data, PLAN, should_stop=lambda: bool(seen.append(module.samples)))
        assert seen == [0] * PLAN.steps
        assert module.samples == 1000
        train(hybrid, data, PLAN, should_stop=lambda: True)
        assert module.samples == 0
        paused = train(hybrid, data, PLAN, until=3)
        assert module.samples == 0
        train(hybrid, data, PLAN, resume=paused.checkpoint)
        assert module.samples == 1000


def test_predictions_do_not_depend_on_the_batch_nor_on_shortcuts() -> None:
    split, data = encoded_split(11, seed=2), encoded_task(train=16)
    bert = tiny_bert()
    with attach(bert, _recipe({"rank": 2, "n_kfac": 16, "sites": ["q", "v", "down"]}), seed=0) as hybrid:
        randomise(hybrid.root, std=0.3)
        conclude(hybrid, data, PLAN)
        plain = predict(bert, split)
        np.testing.assert_allclose(predict(bert, split, batch_size=3), plain, atol=1e-5)
        forward = shortest_forward(hybrid, data, PLAN, dropout=False)
        assert forward.rows is not None
        np.testing.assert_allclose(predict(bert, split, forward=forward), plain, atol=1e-4)
        conclude(hybrid, data, PLAN, forward=forward, micro_rows=5)
        np.testing.assert_allclose(predict(bert, split), plain, atol=1e-3)


def test_a_regression_keeps_the_mean() -> None:
    data = encoded_task(train=16, select=8, kind="regression")
    with attach(tiny_bert(num_labels=1), _recipe({"rank": 2}), seed=0) as hybrid:
        train(hybrid, data, PLAN)
        assert hybrid.modules["laplace_lora"].samples == 0
        assert np.isfinite(predict(hybrid.model, data.select)).all()


@pytest.mark.parametrize("config", [{}, {"sub": "last_layer"}, {"n_kfac": 3}, {"samples": 0}])
def test_what_is_stored_beside_the_parameters_is_counted(config: dict[str, Any]) -> None:
    spec = toy_spec()
    method = configured("laplace_lora", rank=2, **config)
    sites = sites_of(method, spec)
    held = sum(b.numel() for n, b in method.build(sites, spec).named_buffers())
    assert method.parameter_count(sites, spec).state == held
    assert (held > 1) == bool(method.config.samples)


def test_a_small_file_cannot_ask_for_a_large_posterior(tmp_path: Path) -> None:
    model = tiny_bert()
    hybrid = attach(model, _recipe({"rank": 2, "n_kfac": 1}), seed=0)
    hybrid.save(tmp_path)
    hybrid.detach()
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("n_kfac: 1", "n_kfac: 4096"))
    with pytest.raises(DataError, match="describes"):
        load(model, tmp_path)


def test_a_model_that_is_cast_afterwards_has_its_curvature_in_fp32() -> None:
    data = encoded_task(train=16, select=8)
    with attach(tiny_bert(), _recipe({"rank": 2}), seed=0) as hybrid:
        hybrid.model.to(torch.bfloat16)
        train(hybrid, data, PLAN)
        module: Any = hybrid.modules["laplace_lora"]
        kinds = {b.dtype for n, b in module.named_buffers() if not n.endswith("precision")}
        assert kinds == {torch.float32}
        assert module.samples == 1000
        assert np.isfinite(predict(hybrid.model, data.select)).all()
