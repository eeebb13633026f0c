"""Dynamic ranks beside other methods, behind gates, and on a bf16 backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training import encoded_task, snapshot, tiny_bert

from autopeft.counting import count
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan
from autopeft.training.loop import train

PLAN = TrainingPlan(steps=12, batch_size=8, micro_batch=4, seed=3, device="cpu")
TOGETHER = Recipe.from_dict(
    {
        "name": "together",
        "layers": [
            {
                "attach": [
                    {"dylora": {"rank": 3}},
                    {"adalora": {"rank": 2, "interval": 1}},
                    {"sora": {"rank": 3, "threshold": 0.05, "sites": ["q", "up"]}},
                    {"parallel_adapter": {"bottleneck": 4}},
                ]
            }
        ],
        "model": ["bitfit"],
        "training": {"learning_rate": 1e-2},
    }
)
GATED = Recipe.from_dict(
    {
        "name": "gated",
        "layers": [
            {
                "attach": [
                    {
                        "gate": [
                            {"dylora": {"rank": 3, "deployed_rank": 2}},
                            {"adalora": {"rank": 2, "sites": ["v", "down"]}},
                            {"sora": {"rank": 3, "threshold": 0.05, "sites": ["o"]}},
                            {"prefix_tuning": {"length": 2}},
                        ]
                    },
                    {"serial_adapter": {"bottleneck": 4}},
                ]
            }
        ],
        "training": {"learning_rate": 1e-2},
    }
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", [TOGETHER, GATED], ids=lambda r: r.name)
def test_they_train_prune_and_come_back_beside_others(
    recipe: Recipe, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, data = tiny_bert().to(dtype), encoded_task()
    before = snapshot(model.base_model)
    hybrid = attach(model, recipe, seed=0)
    result = train(hybrid, data, PLAN)
    assert len(result.losses) == 12
    bound = count(recipe, hybrid.spec).deployed
    assert hybrid.counts().deployed < bound
    batch = data.test.collate(range(8))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    expected = model.eval()(**inputs).logits
    hybrid.save(tmp_path)
    hybrid.detach()
    assert all(torch.equal(v, before[k]) for k, v in snapshot(model.base_model).items())
    fresh = tiny_bert().to(dtype)
    again = load(fresh, tmp_path)
    assert again.counts().deployed == hybrid.counts().deployed
    exact = dtype == torch.float32
    torch.testing.assert_close(
        fresh.eval()(**inputs).logits, expected, atol=1e-5 if exact else 2e-2, rtol=1e-5 if exact else 2e-2
    )
