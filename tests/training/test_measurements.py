from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from support.classifiers import classifier, encoded_rows_task
from support.tiny import randomise

from autopeft.assets.heads import reset_head
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan
from autopeft.training.calibration import prepare

PLAN = TrainingPlan(steps=2, max_length=16, seed=5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def recipe(keep: int = 30, samples: int = 6, layers: Any = ()) -> Recipe:
    mask = {"fish_mask": {"keep": keep, "samples": samples}}
    return Recipe.from_dict({"autopeft": 2, "name": "m", "layers": list(layers), "model": [mask]})


class Passes:
    """Counts the forwards of a model."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.register_forward_hook(self._seen)

    def _seen(self, *_: Any) -> None:
        self.count += 1


def mask(model: Any, made: Recipe, plan: TrainingPlan = PLAN, task: Any = None) -> list[int]:
    with attach(model, made, seed=0) as hybrid:
        randomise(hybrid.root)  # what is attached must not matter
        prepare(hybrid, task or encoded_rows_task("bert"), plan)
        module: Any = hybrid.modules["fish_mask"]
        found: list[int] = module.entries.index.tolist()
        return found


def test_masks_of_all_sizes_and_companions_are_measured_once(tmp_path: Path) -> None:
    model = classifier("bert")
    passes = Passes(model)
    first = mask(model, recipe())
    assert passes.count == 6
    assert mask(model, recipe()) == first
    prefix = {"at": "all", "attach": [{"prefix_tuning": {"length": 3}}, {"lora": {"rank": 2}}]}
    assert mask(model, recipe(layers=[prefix])) == first
    assert set(first) < set(mask(model, recipe(keep=80)))
    assert passes.count == 6
    assert len(list(tmp_path.glob("measured/*.safetensors"))) == 1


def test_it_is_measured_on_the_bare_backbone() -> None:
    model, off = classifier("bert"), TrainingPlan(steps=2, max_length=16, seed=5, shortcuts=False)
    prefix = {"at": "all", "attach": [{"prefix_tuning": {"length": 3}}, {"lora": {"rank": 2}}]}
    assert mask(model, recipe(layers=[prefix]), off) == mask(model, recipe(), off)


def test_what_it_depends_on_is_measured_anew() -> None:
    model = classifier("bert")
    passes = Passes(model)
    mask(model, recipe())
    changes: list[Any] = [
        lambda: mask(model, recipe(samples=4)),
        lambda: mask(model, recipe(), TrainingPlan(steps=2, max_length=16, seed=6)),
        lambda: mask(model, recipe(), task=encoded_rows_task("bert", 30)),
        lambda: (reset_head(model, 9), mask(model, recipe())),
    ]
    for change in changes:
        before = passes.count
        change()
        assert passes.count > before


def test_a_batch_of_the_plans_size_is_part_of_what_it_depends_on() -> None:
    """Where a method measures such batches, and nowhere else."""
    model = classifier("bert")
    passes = Passes(model)
    child = Recipe.from_dict({"name": "c", "model": [{"child_tuning_d": {"rest": "frozen"}}]})

    def measured(made: Recipe, batch_size: int) -> int:
        before, plan = passes.count, TrainingPlan(steps=2, max_length=16, seed=5, batch_size=batch_size)
        with attach(model, made, seed=0) as hybrid:
            prepare(hybrid, encoded_rows_task("bert"), plan)
        return passes.count - before

    first = measured(child, 8)
    assert first > 0
    assert measured(child, 8) == 0
    assert 0 < measured(child, 16) < first
    assert measured(recipe(), 8) == 6
    assert measured(recipe(), 16) == 0


def test_a_damaged_file_is_measured_anew_and_the_plan_can_turn_it_off(tmp_path: Path) -> None:
    model = classifier("bert")
    passes = Passes(model)
    first = mask(model, recipe())
    (file,) = tmp_path.glob("measured/*.safetensors")
    file.write_bytes(b"\xff" * 40)
    assert mask(model, recipe()) == first
    assert passes.count == 12
    assert mask(model, recipe(), TrainingPlan(steps=2, max_length=16, seed=5, shortcuts=False)) == first
    assert passes.count == 18


def test_the_model_is_as_before() -> None:
    model = classifier("gpt2")
    before = {n: p.clone() for n, p in model.named_parameters()}
    prefix = {"at": "all", "attach": [{"prefix_tuning": {"length": 3}}]}
    with attach(model, recipe(layers=[prefix]), seed=0) as hybrid:
        inputs = encoded_rows_task("gpt2").train.collate([0, 1])
        ids, attended = inputs["input_ids"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=attended).logits
        prepare(hybrid, encoded_rows_task("gpt2"), PLAN)
        # The mask is chosen, its values are zero, and the prefix acts again.
        assert torch.equal(model(input_ids=ids, attention_mask=attended).logits, logits)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("offset", [-1, -8])
def test_a_measurement_that_was_damaged_is_made_anew(
    tmp_path: Path, offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier("bert")
    passes = Passes(model)
    first = mask(model, recipe())
    (file,) = tmp_path.glob("measured/*.safetensors")
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(bytes(content))
    assert mask(model, recipe()) == first
    assert passes.count == 12
    assert "is damaged and is made anew" in caplog.text
    assert mask(model, recipe()) == first
    assert passes.count == 12, "it was kept again"


def test_a_disk_without_room_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("autopeft.training.measurements.save_file", full)
    first = mask(classifier("bert"), recipe())
    assert mask(classifier("bert"), recipe()) == first
    assert "A measurement is not kept" in caplog.text
