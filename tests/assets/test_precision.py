from __future__ import annotations

from typing import Any

import pytest
import torch
from support.classifiers import classifier, encoded_rows_task

from autopeft.assets import dtype_of
from autopeft.assets.precision import keep_head_exact
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, run_trial

ITEMS: dict[str, tuple[str, Any]] = {
    "lora": ("layers", {"lora": {"rank": 2}}),
    "dora": ("layers", {"dora": {"rank": 2}}),
    "adapters": (
        "layers",
        {"chain": [{"serial_adapter": {"bottleneck": 4}}, {"parallel_adapter": {"bottleneck": 4}}]},
    ),
    "prefix": ("layers", {"prefix_tuning": {"length": 2}}),
    "gate": ("layers", {"gate": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}]}),
    "prompt": ("model", {"prompt_tuning": {"length": 2}}),
    "bitfit": ("model", "bitfit"),
    "fish": ("model", {"fish_mask": {"keep": "2%", "samples": 4}}),
    "fish-dip": ("model", {"fish_dip": {"keep": "2%", "every": 2}}),
    "child-d": ("model", {"child_tuning_d": {"rest": "frozen"}}),
    "sam": ("model", {"sam": {"keep": "2%", "batches": 3, "score": "g2_over_h"}}),
}


def test_names_are_checked() -> None:
    assert dtype_of("bf16") == torch.bfloat16
    with pytest.raises(UsageError, match="Did you mean 'fp32'"):
        dtype_of("fp23")


@pytest.mark.parametrize("case", ITEMS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_backbone_in_bf16_trains_modules_and_head_in_fp32(case: str, name: str) -> None:
    level, item = ITEMS[case]
    body = [{"at": "all", "attach": [item]}] if level == "layers" else [item]
    recipe = Recipe.from_dict({"autopeft": 2, "name": case, level: body})
    plan, task = TrainingPlan(steps=4, batch_size=8, max_length=16), encoded_rows_task(name)
    model = classifier(name)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    keep_head_exact(model)
    seen: list[Any] = []
    half = run_trial(
        model, recipe, task, plan,
        keep=lambda hybrid, scores: seen.extend(p.dtype for p in hybrid.trainable_parameters()),
    )  # fmt: skip
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in model.base_model.parameters()} == {torch.bfloat16}
    full = run_trial(classifier(name), recipe, task, plan)
    assert half.train.losses != full.train.losses
    assert half.train.losses == pytest.approx(full.train.losses, abs=0.02)
