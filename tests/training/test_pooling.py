"""Which reading a probe prefers, and that heads start behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.training import encoded_task, tiny_bert
from torch import Tensor

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import MEAN_POOLING, pooled
from autopeft.tasks.encode import EncodedTask
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan, head_start, run_trial
from autopeft.training.checks import check_recipe
from autopeft.training.head_start import HeadFit, fitted_head, last_linear, start_head
from autopeft.training.pooling import PoolingFinding, better_pooling

PLAN = TrainingPlan(steps=1, batch_size=8)


def known_task(model: Any, pooling: Recipe | None, count: int = 200) -> EncodedTask:
    """Labels that a direction of the features with that reading tells."""
    data = encoded_task(train=count)
    read = head_start.head_features(model, str(last_linear(model)), data, PLAN, pooling)
    assert read is not None
    direction = torch.randn(read.inputs.shape[1], generator=torch.Generator().manual_seed(3))
    told = (read.inputs - read.inputs.mean(0)) / read.inputs.std(0).clamp_min(1e-6) @ direction
    labels = (told > 0).long().numpy()
    return replace(data, splits={**data.splits, "train": replace(data.train, labels=labels)})


@pytest.mark.parametrize(("pooling", "better"), [(None, "own"), (MEAN_POOLING, "mean")])
def test_the_reading_that_tells_the_labels_is_found(pooling: Recipe | None, better: str) -> None:
    model = tiny_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = known_task(model, pooling)
    found = better_pooling(model, data, PLAN, spec_of(model.config))
    assert found is not None
    assert found.pooling == better
    assert (found.mean < found.own) == (better == "mean")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert f"{found.mean:.3f}" in found.sentence()


@pytest.mark.parametrize("kind", ["token_classification", "question_answering"])
def test_heads_of_tokens_have_no_choice(kind: str) -> None:
    model, data = tiny_bert(), encoded_task()
    other = replace(data, task=replace(data.task, kind=kind))
    assert better_pooling(model, other, PLAN, spec_of(model.config)) is None
    with attach(model, MEAN_POOLING) as hybrid:
        with pytest.raises(CompositionError, match=f"models for {kind} read several"):
            check_recipe(hybrid, get_kind(kind))
        check_recipe(hybrid, get_kind("multi_label"))


@pytest.mark.parametrize("seed", [8, 10, 11])  # of others the mean saves more by chance
def test_labels_of_chance_leave_it_to_the_model(seed: int) -> None:
    model, data = tiny_bert(), encoded_task(train=60)
    labels = np.random.default_rng(seed).integers(0, 2, 60)
    data = replace(data, splits={**data.splits, "train": replace(data.train, labels=labels)})
    found = better_pooling(model, data, PLAN, spec_of(model.config))
    assert found is not None
    assert found.pooling == "own"
    constant = -np.mean(np.log(np.bincount(labels)[labels] / 60))
    assert found.own <= 1.05 * constant  # the best constant answer is among what is tried
    assert PoolingFinding("own", 0.5, 0.5).sentence().startswith("The head reads what the model gives it")


@pytest.mark.parametrize(("mean", "better"), [(0.98, "own"), (0.96, "mean")])
def test_the_mean_has_to_save_three_per_cent(
    monkeypatch: pytest.MonkeyPatch, mean: float, better: str
) -> None:
    model, data = tiny_bert(), encoded_task()
    losses = {None: 1.0, MEAN_POOLING.name: mean}

    def fitted(*given: Any) -> HeadFit:
        return HeadFit(None, losses[given[3] and given[3].name])

    monkeypatch.setattr("autopeft.training.pooling.fitted_head", fitted)
    found = better_pooling(model, data, PLAN, spec_of(model.config))
    assert found == PoolingFinding(better, 1.0, mean)  # type: ignore[arg-type]


def test_a_head_starts_behind_what_it_reads() -> None:
    """The fit is that of the mean's features, computed here from the bare model's last states."""
    model = tiny_bert()
    data = known_task(model, MEAN_POOLING)
    found = start_head(model, data, PLAN, alone=True, pooling=MEAN_POOLING)
    assert found is not None
    own = fitted_head(model, data, PLAN)
    assert own is None or own.probe is None or not torch.equal(own.probe.weight, found.weight)
    with attach(model, MEAN_POOLING):
        batch = data.train.collate(np.arange(16))
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    states = model.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    real = batch["attention_mask"][..., None]
    features: Tensor = (states * real).sum(1) / real.sum(1)
    expected = features @ found.weight.T + (0 if found.bias is None else found.bias)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_a_head_alone_is_alone_with_its_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def started(*_: Any, **told: Any) -> None:
        seen.append(told)

    monkeypatch.setattr("autopeft.training.head_start.start_head", started)
    plan, data = replace(PLAN, head_start="probe"), encoded_task()
    lora = Recipe.from_dict({"name": "l", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    for recipe in (Recipe(name="head"), lora):
        run_trial(tiny_bert(), pooled(recipe, "mean"), data, plan)
    assert [told["alone"] for told in seen] == [True, False]
    assert all(told["pooling"].methods == ("mean_pooling",) for told in seen)
