"""A look at a task: the features, and the first steps of the recipes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import load_tokenizer, resolve_model
from autopeft.counting import Budget
from autopeft.hybrid import attach
from autopeft.search.portfolio.choices import members
from autopeft.search.portfolio.evidence import Key
from autopeft.search.portfolio.task_probe import _batches, _first_step, probe_task
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training.forward import Forward
from autopeft.training.modes import evaluation_mode
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=1, seed=3, device="cpu", head_start="probe")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, EncodedTask]:
    place = tmp_path_factory.mktemp("probed")
    source = resolve_model(str(save_backbone(place / "model")))
    task = load_task(write_reviews(place / "data.csv", rows=400), text="body", label="verdict")
    model = task.task_kind.load_model(source, task.labels)
    return model, encode(task, load_tokenizer(source), 24)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


def test_features_are_the_tasks(data: tuple[Any, EncodedTask]) -> None:
    model, encoded = data
    found = probe_task(model, encoded, [], PLAN).features
    assert found.classes == 2
    assert found.tokens == pytest.approx(float(encoded.train.lengths.mean()))
    assert 0.0 <= found.head <= 1.0


def test_a_head_that_knows_the_labels_saves_most_of_the_loss(data: tuple[Any, EncodedTask]) -> None:
    """The verdict follows from one word, which even an untrained backbone's features tell."""
    assert probe_task(*data, [], PLAN).features.head > 0.3


def test_the_model_is_afterwards_as_it_was(data: tuple[Any, EncodedTask]) -> None:
    model, encoded = data
    recipes = members(attached_spec(model), Budget.parse("10%"))[:4]
    before = fingerprint(model)
    assert probe_task(model, encoded, recipes, PLAN).first_steps
    assert changed(before, fingerprint(model)) == []


def attached_spec(model: Any) -> Any:
    from autopeft.backbones import spec_of_model

    return spec_of_model(model)[0]


def test_a_first_step_is_what_a_small_step_of_the_signs_saves(data: tuple[Any, EncodedTask]) -> None:
    """To first order the loss falls by as much when each parameter moves by rate · sign."""

    encoded = data[1]
    model = copy.deepcopy(data[0])
    with torch.no_grad():
        model.classifier.weight *= 100  # gradients that are far above rounding
    member = next(m for m in members(attached_spec(model), Budget.parse("10%")) if m.template == "dora")
    rate = member.recipe.training.learning_rate
    batches, loss = _batches(encoded.train, PLAN.seed, torch.device("cpu")), encoded.task.loss()
    rows = sum(float(loss.weight(batch["labels"])) for batch in batches)
    found = _first_step(model, member.recipe, encoded, batches, PLAN.seed)
    with attach(model, member.recipe, seed=PLAN.seed) as hybrid, evaluation_mode(model), torch.enable_grad():
        own = [p for p in hybrid.root.parameters() if p.requires_grad]
        forward = Forward(model, kind=encoded.task.task_kind)

        def total() -> torch.Tensor:
            parts = [loss.total(forward(batch).float(), batch["labels"]) for batch in batches]
            return torch.stack(parts).sum().double() / rows

        before = total()
        gradients = torch.autograd.grad(before, own, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(own, gradients, strict=True):
                if gradient is not None:
                    parameter -= rate * gradient.sign()  # type: ignore[operator]
            saved = float(before - total())
    assert found == pytest.approx(saved, rel=0.1)


def test_rates_scale_the_first_step_and_time_ends_it(data: tuple[Any, EncodedTask]) -> None:
    model, encoded = data
    pair = [m for m in members(attached_spec(model), Budget.parse("10%")) if m.template == "lora"][:2]
    steps = probe_task(model, encoded, pair, PLAN).first_steps
    slow, fast = (m.recipe.training.learning_rate for m in pair)
    assert steps[Key("lora", 1)] / steps[Key("lora", 0)] == pytest.approx(fast / slow)  # type: ignore[operator]
    said: list[str] = []
    assert not probe_task(model, encoded, pair, PLAN, said.append, seconds=-1.0).first_steps
    assert "2 recipes are not measured" in said[-1]
