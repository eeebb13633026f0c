"""On a real backbone and task: what the shortcuts change is small beside what a seed changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autopeft.assets import load_tokenizer, resolve_model
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial

RECIPE = Recipe.from_dict(
    {
        "autopeft": 2,
        "name": "lora",
        "layers": [{"at": "3-5", "attach": [{"lora": {"rank": 8, "sites": ["q", "v"]}}]}],
        "training": {"learning_rate": 2e-3},
    }
)


@pytest.mark.slow
def test_the_final_score_is_the_same_within_the_noise_of_seeds() -> None:
    torch.set_num_threads(1)
    source = resolve_model("minilm")
    task = load_task("movie-sentences").subset(1600, 500, 100)
    model = task.task_kind.head.load_model(source, task.labels)
    data = encode(task, load_tokenizer(source))
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(4):
        for shortcuts in found:
            plan = TrainingPlan(steps=80, seed=seed, shortcuts=shortcuts)
            found[shortcuts].append(run_trial(model, RECIPE, data, plan).score)
    with_them, without = np.array(found[True]), np.array(found[False])
    assert with_them.mean() > 0.7, "nothing was learnt, so that equal scores mean little"
    assert np.abs(with_them - without).mean() < without.std(ddof=1)
    assert abs(with_them.mean() - without.mean()) < without.std(ddof=1)
