"""A head that starts from a probe: fitted as it should be, on training rows alone, left alone in doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support.classifiers import classifier
from support.tiny import tiny_model
from support.training import encoded_task
from torch import Tensor, nn

from autopeft.assets.heads import head_names
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedTask
from autopeft.tasks.kinds import Loss, get_kind
from autopeft.training import TrainingPlan, head_start, run_trial
from autopeft.training.head_start import fit_head, last_linear, start_head

PLAN = TrainingPlan(steps=2, max_length=16, seed=5, device="cpu", head_start="probe")
CROSS_ENTROPY = get_kind("classification").scorer.loss(())
SQUARES = get_kind("regression").scorer.loss(())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def rows(count: int, noise: float, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Features of unlike scales, and classes that follow from them up to noise."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 12, generator=random) * torch.logspace(-2, 2, 12) + 3.0
    true = torch.randn(12, classes, generator=torch.Generator().manual_seed(99))
    logits = (features - 3.0) / torch.logspace(-2, 2, 12) @ true
    return features, (logits + noise * torch.randn(count, classes, generator=random)).argmax(1)


def right(probe: Any, features: Tensor, labels: Tensor) -> float:
    logits = features @ probe.weight.T + (0 if probe.bias is None else probe.bias)
    return float((logits.argmax(1) == labels).float().mean())


# The fit
# ---------------------------------------------------------------------------------------------------------


def test_it_is_the_penalised_logistic_regression() -> None:
    features, labels = rows(300, 2.0)
    probe = fit_head(features, labels, CROSS_ENTROPY, outputs=3).probe
    assert probe is not None
    inputs = (features - features.mean(0)) / features.std(0)
    other = LogisticRegression(C=1 / (probe.strength * len(labels)), tol=1e-8, max_iter=5000)
    expected = other.fit(inputs.numpy(), labels.numpy()).predict_proba(inputs.numpy())
    found = (features @ probe.weight.T + probe.bias).softmax(1)  # type: ignore[operator]
    assert float((found - torch.from_numpy(expected)).abs().max()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_more_noise_and_fewer_rows_want_more_penalty(seed: int) -> None:
    clear = fit_head(*rows(1000, 0.1, seed), CROSS_ENTROPY, outputs=3).probe
    noisy = fit_head(*rows(1000, 4.0, seed), CROSS_ENTROPY, outputs=3).probe
    few = fit_head(*rows(60, 1.0, seed), CROSS_ENTROPY, outputs=3).probe
    assert clear is not None
    assert noisy is not None
    assert few is not None
    assert clear.strength < noisy.strength
    assert clear.strength < few.strength
    assert right(clear, *rows(500, 0.1, seed + 100)) > 0.93
    assert right(few, *rows(500, 1.0, seed + 100)) > 0.6


def test_rows_that_say_nothing_leave_the_head_alone() -> None:
    found = []
    for seed in range(10):
        features, _ = rows(100, 1.0, seed)
        labels = torch.randint(0, 3, (100,), generator=torch.Generator().manual_seed(1000 + seed))
        found.append(fit_head(features, labels, CROSS_ENTROPY, outputs=3).probe)
    assert found == [None] * 10


def test_the_scale_of_features_is_nothing() -> None:
    features, labels = rows(300, 1.0)
    one, other = (
        fit_head(f, labels, CROSS_ENTROPY, outputs=3).probe for f in (features, features * 1000 - 7)
    )
    assert one is not None
    assert other is not None
    assert one.strength == other.strength
    answers = [f @ p.weight.T + p.bias for f, p in ((features, one), (features * 1000 - 7, other))]
    torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)


def test_weights_of_classes_count() -> None:
    features, labels = rows(600, 3.0, classes=2)
    keep = (labels == 0) | (torch.arange(600) % 10 == 0)  # one class is rare
    features, labels = features[keep], labels[keep]
    plain = fit_head(features, labels, CROSS_ENTROPY, outputs=2).probe
    even = fit_head(
        features, labels, get_kind("classification").scorer.loss((), [1.0, 10.0]), outputs=2
    ).probe
    assert plain is not None
    assert even is not None
    rare = labels == 1
    assert right(even, features[rare], labels[rare]) > right(plain, features[rare], labels[rare]) + 0.2


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4, 1e8])
def test_a_regression_in_any_unit(scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=random)
    true = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    labels = scale * (features @ true + 4 + 0.1 * torch.randn(200, generator=random))
    probe = fit_head(features, labels, SQUARES, outputs=1).probe
    assert probe is not None
    torch.testing.assert_close(probe.weight[0] / scale, true, rtol=0.05, atol=0.05)
    assert float(probe.bias / scale) == pytest.approx(4, abs=0.1)  # type: ignore[operator]
    short = probe.shortened(0.1)
    assert float(short.weight.norm()) / scale == pytest.approx(0.1 * float(labels.std()) / scale, rel=0.02)
    mean = features @ short.weight[0] + short.bias
    assert float(mean.mean()) == pytest.approx(float(labels.mean()), rel=0.01)


def test_copies_of_a_row_are_held_out_together() -> None:
    """With labels of chance each row four times looks as if it could be foretold."""
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 200, generator=random), torch.arange(60) % 2
    often, copies = (features.repeat(4, 1), labels.repeat(4)), torch.arange(60).repeat(4)
    assert fit_head(*often, CROSS_ENTROPY, outputs=2).probe is not None, "so that the test says something"
    assert fit_head(*often, CROSS_ENTROPY, outputs=2, copies=copies).probe is None
    folds = head_start._folds(often[1], copies).view(4, 60)
    assert bool((folds == folds[0]).all())
    assert torch.bincount(folds[0][labels == 0]).tolist() == [6] * 5, "each class over all folds"


def test_a_class_that_the_rows_lack_is_as_improbable_as_so_many_rows_can_tell() -> None:
    features, labels = rows(300, 0.5)
    probe = fit_head(features, labels, CROSS_ENTROPY, outputs=4).probe
    assert probe is not None
    assert probe.mean.log_softmax(0)[3] == pytest.approx(np.log(0.5 / 302), abs=0.01)
    several = torch.stack([labels == 0, labels == 1, torch.zeros_like(labels)], dim=1).float()
    loss = get_kind("multi_label").scorer.loss(())
    probe = fit_head(features, several, loss, outputs=3).probe
    assert probe is not None
    assert probe.mean[2] == pytest.approx(-np.log(601), abs=0.01)


def test_a_head_does_not_start_as_a_memory_of_rows_that_come_several_times() -> None:
    model, data = classifier("bert"), encoded_task(train=40)
    chance = replace(data.train, labels=np.arange(40) % 2)
    for rows_ in (np.tile(np.arange(40), 6), np.repeat(np.arange(3), 10)):
        train = chance.take(rows_)
        assert start_head(model, replace(data, splits={**data.splits, "train": train}), PLAN) is None


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e5, 1e8, 1e14])
def test_a_regression_that_a_probe_cannot_foretell_begins_at_the_mean(scale: float) -> None:
    """From 0, no short training leads to numbers as large as prices."""
    model, data = tiny_model("bert", num_labels=1), encoded_task(train=60, kind="regression")
    chance = np.random.default_rng(0).normal(4.0, 0.5, 60).astype(np.float32) * scale
    data = replace(data, splits={**data.splits, "train": replace(data.train, labels=chance)})
    last = model.get_submodule(str(last_linear(model)))
    drawn = last.weight.detach().clone()
    assert start_head(model, data, PLAN) is None
    assert last.bias.item() == pytest.approx(float(chance.mean()), rel=1e-3)
    torch.testing.assert_close(last.weight, drawn * float(chance.std()), rtol=1e-3, atol=0.0)
    again = tiny_model("bert", num_labels=1)
    start_head(again, data, PLAN)  # from disk
    assert torch.equal(again.get_submodule(str(last_linear(again))).bias, last.bias)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARES])
def test_no_map_is_made_of_features_that_are_not_finite(loss: Loss) -> None:
    """The training that follows says what is wrong."""
    features, labels = rows(60, 0.5, classes=2)
    features[7, 1] = float("nan")
    fit = fit_head(features, labels if loss is CROSS_ENTROPY else labels.float(), loss, outputs=2)
    assert fit.probe is None
    assert fit.loss == float("inf")


def test_without_a_bias() -> None:
    features, labels = rows(300, 0.5, classes=2)
    probe = fit_head(features - features.mean(0), labels, CROSS_ENTROPY, outputs=2, bias=False).probe
    assert probe is not None
    assert probe.bias is None
    assert right(probe, features - features.mean(0), labels) > 0.85


def test_a_column_that_never_varies_has_no_part() -> None:
    features, labels = rows(300, 0.5)
    features[:, 3] = 7.0
    probe = fit_head(features, labels, CROSS_ENTROPY, outputs=3).probe
    assert probe is not None
    assert bool(torch.isfinite(probe.weight).all())
    assert right(probe, features, labels) > 0.7


# The head of a model
# ---------------------------------------------------------------------------------------------------------


def known_task(model: Any, kind: str = "classification", count: int = 300) -> EncodedTask:
    """A task whose labels follow from the frozen features."""
    data = encoded_task(train=count, kind=kind)
    name = last_linear(model)
    assert name is not None
    read = head_start.head_features(model, name, data, PLAN)
    assert read is not None
    features = read.inputs
    direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(3))
    told = (features - features.mean(0)) / features.std(0).clamp_min(1e-6) @ direction
    labels = told.numpy().astype(np.float32) if kind == "regression" else (told > 0).long().numpy()
    splits: Any = {**data.splits, "train": replace(data.splits["train"], labels=labels)}
    return replace(data, splits=splits)


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra", "gpt2", "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_of_the_head_alone_is_set(family: str) -> None:
    model = classifier(family)
    data, before = known_task(model), tensors(model)
    name = last_linear(model)
    found = start_head(model, data, PLAN)
    assert found is not None
    changed = {key for key, value in tensors(model).items() if not torch.equal(value, before[key])}
    assert changed <= {f"{name}.weight", f"{name}.bias"}
    assert f"{name}.weight" in changed
    assert name is not None
    assert name.split(".")[0] in head_names(model)
    assert torch.equal(model.get_parameter(f"{name}.weight"), found.weight)
    assert not any(module._forward_hooks for module in model.modules())


def test_it_is_a_good_start() -> None:
    from autopeft.training import evaluate

    model = classifier("bert")
    data = known_task(model)
    drawn = evaluate(model, data.train, "accuracy")
    start_head(model, data, PLAN, alone=True)
    assert evaluate(model, data.train, "accuracy") > max(drawn, 0.85)


def test_beside_modules_its_weights_are_short() -> None:
    model = classifier("bert")
    data = known_task(model)
    whole = start_head(model, data, PLAN, alone=True)
    short = start_head(model, data, PLAN)
    assert whole is not None
    assert short is not None
    drawn = model.config.initializer_range * model.config.hidden_size**0.5
    assert float(short.weight.norm(dim=1).mean()) == pytest.approx(3 * drawn * whole.unit, rel=1e-4)
    assert float(whole.weight.norm(dim=1).mean()) > 3 * drawn * whole.unit
    torch.testing.assert_close(
        nn.functional.normalize(short.weight, dim=1), nn.functional.normalize(whole.weight, dim=1)
    )
    read = head_start.head_features(model, last_linear(model) or "", data, PLAN)
    assert read is not None
    features = read.inputs
    for found in (whole, short):
        assert found.bias is not None
        mean = (features @ found.weight.T + found.bias).mean(0)
        torch.testing.assert_close(mean, found.mean, rtol=1e-3, atol=1e-4)


def test_weights_that_are_short_stay() -> None:
    probe = head_start.Probe(torch.tensor([[3.0, 4.0]]), None, 1.0, torch.zeros(1))
    assert torch.equal(probe.shortened(5.0).weight, probe.weight)
    torch.testing.assert_close(probe.shortened(2.5).weight, probe.weight / 2)


def test_only_training_rows_count_and_no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("bert")
    data = known_task(model)
    first = start_head(model, data, PLAN)
    assert first is not None
    monkeypatch.setattr(head_start, "head_features", lambda *_: pytest.fail("it was measured again"))
    other = {**data.splits, "select": data.splits["test"], "test": data.splits["select"]}
    nn.init.normal_(model.classifier.weight)  # type: ignore[operator, union-attr]
    again = start_head(model, replace(data, splits=other), replace(PLAN, seed=77))
    assert again is not None
    assert torch.equal(again.weight, first.weight)
    monkeypatch.undo()


def test_other_rows_or_labels_are_fitted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    model = classifier("bert")
    data = known_task(model)
    first = start_head(model, data, PLAN)
    turned = replace(data.train, labels=1 - data.train.labels)  # type: ignore[operator]
    other = start_head(model, replace(data, splits={**data.splits, "train": turned}), PLAN)
    assert first is not None
    assert other is not None
    torch.testing.assert_close(other.weight, first.weight.flip(0), rtol=0.05, atol=0.02)


def test_of_many_rows_some_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(head_start, "_MOST_ROWS", 200)
    seen: list[int] = []
    fit = head_start.fit_head
    monkeypatch.setattr(head_start, "fit_head", lambda f, *a, **k: seen.append(len(f)) or fit(f, *a, **k))
    model = classifier("bert")
    assert start_head(model, known_task(model, count=300), PLAN, alone=True) is not None
    assert seen == [200]


def test_labels_of_chance_leave_the_head_as_it_was_drawn() -> None:
    model = classifier("bert")
    data, kept = encoded_task(train=40), tensors(model)
    labels = np.random.default_rng(0).permutation(np.arange(40) % 2)
    splits: Any = {**data.splits, "train": replace(data.train, labels=labels)}
    for _ in range(2):  # fitted, then known
        assert start_head(model, replace(data, splits=splits), PLAN) is None
        assert all(torch.equal(value, kept[key]) for key, value in tensors(model).items())


def test_three_rows_are_too_few() -> None:
    model = classifier("bert")
    assert start_head(model, encoded_task(train=3), PLAN) is None


def test_a_trial_starts_there_and_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("bert")
    data, before = known_task(model), tensors(model)
    started: list[Any] = []
    monkeypatch.setattr(
        "autopeft.training.head_start.start_head", lambda *a, **k: started.append(start_head(*a, **k))
    )
    recipe = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    probed = run_trial(model, recipe, data, PLAN, splits=("train",))
    drawn = run_trial(model, recipe, data, replace(PLAN, head_start="random"), splits=("train",))
    assert len(started) == 1
    assert started[0] is not None
    assert probed.score > drawn.score
    assert all(torch.equal(value, before[key]) for key, value in tensors(model).items())


def test_weights_are_short_where_modules_train_and_long_where_the_head_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = classifier("bert")
    data = known_task(model)
    started: list[Any] = []
    monkeypatch.setattr(
        "autopeft.training.head_start.start_head", lambda *a, **k: started.append(start_head(*a, **k))
    )
    lora = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    for recipe in (lora, Recipe(name="bare")):
        run_trial(model, recipe, data, PLAN, splits=("train",))
    short, whole = (float(found.weight.norm(dim=1).mean()) for found in started)
    drawn = model.config.initializer_range * model.config.hidden_size**0.5
    assert short == pytest.approx(3 * drawn * started[0].unit, rel=1e-4)
    assert whole > 1.2 * short


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match=r"one of probe, random, but got 'prope'. Did you mean 'probe'"):
        replace(PLAN, head_start="prope")
