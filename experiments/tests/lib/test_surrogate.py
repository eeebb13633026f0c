"""Regressions on recorded trials, and their noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lib.surrogate import MODELS, features, fit, means, noise_of


def test_regressions_are_ranked_by_what_they_say_of_unseen_recipes(space: Any, rows: Any) -> None:
    fits = fit(rows, 80, space.spec, folds=4, rounds=1)
    assert [f.rank for f in fits] == sorted((f.rank for f in fits), reverse=True)
    assert {f.model for f in fits} == set(MODELS)
    assert fits[0].rank > 0.85
    assert fits[0].r2 > 0.7


def test_a_recording_of_noise_predicts_nothing(space: Any, rows: Any) -> None:
    rng = np.random.default_rng(1)
    drawn = [{**row, "scores": {"80": float(rng.normal())}} for row in rows if row["seed"] == 0]
    assert fit(drawn, 80, space.spec, folds=4, rounds=1)[0].rank < 0.4


def test_features_tell_recipes_apart_by_what_is_in_them(space: Any) -> None:
    layers = [{"at": [0, 2], "attach": [{"lora": {"rank": 4, "sites": ["q", "v"]}}]}]
    found = features({"layers": layers}, space.spec)
    assert found["lora rank"] == pytest.approx(math.log1p(4))
    assert found["lora layers"] == 2
    assert (found["lora in layer 0"], found["lora in layer 2"]) == (1, 1)
    assert "lora in layer 1" not in found
    assert found["lora at q"] == 1
    assert "lora at k" not in found
    assert "lora learning rate" not in found
    rates = {"learning_rate": 1e-3, "groups": {"lora": {"learning_rate": 1e-2}}}
    found = features({"layers": layers, "training": rates}, space.spec)
    assert (found["learning rate"], found["lora learning rate"]) == pytest.approx((2.0, 3.0))


def test_noise_is_that_of_the_repeats_and_of_one_training_at_every_step(
    ground: Any, rows: Any, noise: float
) -> None:
    assert noise_of(rows, (40, 80)) == pytest.approx([noise, noise], rel=0.2)
    row, rng = rows[0], np.random.default_rng(0)
    true = ground.surrogate.score(row["recipe"], row["hash"])
    drawn = [ground.surrogate.measured(row["recipe"], row["hash"], rng) for _ in range(400)]
    off = np.array([[d[step] - true[step] for step in (40, 80)] for d in drawn])
    assert off[:, 0] == pytest.approx(off[:, 1])
    assert off.std() == pytest.approx(noise, rel=0.4)
    assert abs(off.mean()) < noise / 2


def test_repeats_count_as_one_recipe_with_their_mean(rows: Any) -> None:
    recipes, scores = means(rows, (40, 80))
    assert len(recipes) == len(scores) == len({row["hash"] for row in rows})
    first = [row["scores"]["80"] for row in rows if row["hash"] == rows[0]["hash"]]
    assert len(first) >= 3
    assert scores[0, 1] == pytest.approx(np.mean(first))
