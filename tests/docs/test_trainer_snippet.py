"""The snippet of README.md that trains with `transformers.Trainer` trains as the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid.test_persistence import rows
from support.documents import block
from support.training import tiny_bert
from transformers import AutoModelForSequenceClassification

from autopeft.hybrid import HybridCallback, attach, load
from autopeft.recipe import Recipe
from autopeft.training.optimizer import PhaseOptimizer

RECIPE = Recipe.from_dict(
    {
        "name": "unlike-the-defaults",
        "layers": [{"attach": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}]}],
        "training": {
            "learning_rate": 3e-3,
            "warmup": 0.25,
            "schedule": "cosine",
            "weight_decay": 0.02,
            "groups": {"prefix_tuning": {"learning_rate": 2e-2}, "head": {"learning_rate": 5e-3}},
            "policies": [{"lora_plus": {"ratio": 4}}],
            "optimizer": {"betas": [0.9, 0.98]},
        },
    }
)


@pytest.mark.parametrize("recipe", [None, RECIPE], ids=["as it stands", "another recipe"])
def test_it_runs_as_it_stands_and_trains_as_the_recipe_says(
    recipe: Recipe | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda name, num_labels: tiny_bert(num_labels)
    )
    if recipe is not None:
        monkeypatch.setattr(Recipe, "named", lambda name: recipe)
    seen: list[list[tuple[str, float, float, Any]]] = []
    stepped = HybridCallback.on_optimizer_step

    def watched(self: HybridCallback, *args: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        seen.append([(g["name"], g["lr"], g["weight_decay"], g["betas"]) for g in groups])
        stepped(self, *args, **kwargs)

    monkeypatch.setattr(HybridCallback, "on_optimizer_step", watched)
    names: dict[str, Any] = {"rows": rows()}
    exec(compile(block("README.md", "trainer-snippet"), "README.md", "exec"), names)

    hybrid = attach(tiny_bert(), recipe or Recipe.named("unipelt"))
    steps = names["trainer"].state.max_steps
    assert len(seen) == steps > 4
    inner = hybrid.optimizer()
    ours = PhaseOptimizer(inner.param_groups, hybrid.recipe.training, steps)
    for step, groups in enumerate(seen):
        ours.schedule(step)
        expected = [(g["name"], g["lr"], g["weight_decay"], g["betas"]) for g in ours.inner.param_groups]
        assert [g[0] for g in groups] == [g[0] for g in expected]
        assert torch.allclose(torch.tensor([g[1] for g in groups]), torch.tensor([g[1] for g in expected]))
        assert [g[2:] for g in groups] == [g[2:] for g in expected]
    assert not [w for w in recwarn if "for_trainer" in str(w.message)]

    assert not names["hybrid"].attached
    with load(tiny_bert(), tmp_path / "mine") as loaded:
        assert loaded.recipe == hybrid.recipe
