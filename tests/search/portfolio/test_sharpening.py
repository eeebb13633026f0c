"""A look at a task is used where the recorded tasks show that it helps, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autopeft.search.portfolio.estimates import Target
from autopeft.search.portfolio.evidence import BackboneShare, Evidence, Features, Key, Observation, Setting
from autopeft.search.portfolio.sharpening import (
    Finding,
    likeness,
    shifts,
    slope_of_first_steps,
    worth_of_likeness,
)

SHARE, LORA = 0.005, Key("lora", 0)
HERE = Target(SHARE, 500)
# Real names: tasks are looked up in their clusters.
TASKS = {
    "trec": "trec", "trec-fine": "trec", "movie-sentences": "rotten-tomatoes", "sms-spam": "sms-spam",
    "subjectivity": "rotten-tomatoes", "disaster-tweets": "disaster-tweets",
}  # fmt: skip


def made(slope: float, *, noise: float = 0.2, seed: int = 0) -> Evidence:
    """Gains that follow the first steps by `slope` beside what each recipe gains everywhere."""
    rng = np.random.default_rng(seed)
    found = []
    for task, cluster in TASKS.items():
        for i in range(20):
            step = float(rng.normal(i / 10, 0.7))
            gain = 0.2 * i + slope * (step - i / 10) + float(rng.normal(0, noise))
            found.append(Observation(Key(f"r{i}", 0), Setting("m", task, 500, 0), cluster, SHARE, gain, step))
    features = {
        Setting("m", task, 500, 0): Features(2 + i, 10.0 + 5 * i, 0.1 * i) for i, task in enumerate(TASKS)
    }
    return Evidence(tuple(found), {BackboneShare("m", SHARE): LORA}, {}, 60, 32, {}, features)


def test_a_finding_needs_four_clusters_and_more_than_chance() -> None:
    assert Finding({"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0}).helps
    assert not Finding({"a": 1.0, "b": 1.1, "c": 0.9}).helps
    assert not Finding({"a": 3.0, "b": -1.0, "c": 1.0, "d": 0.0}).helps
    assert not Finding({"a": -1.0, "b": -1.1, "c": -0.9, "d": -1.0}).helps
    assert not Finding({}).helps
    assert Finding({}).mean == 0.0


def test_first_steps_that_predict_are_found_and_others_are_not() -> None:
    found = slope_of_first_steps(made(1.5))
    assert found.helps
    assert found.mean == pytest.approx(1.5, abs=0.2)
    assert set(found.by_cluster) == {"trec", "rotten-tomatoes", "sms-spam", "disaster-tweets"}
    helped = [slope_of_first_steps(made(0.0, noise=1.0, seed=seed)).helps for seed in range(40)]
    assert sum(helped) <= 4


def test_what_is_left_out_has_no_part_in_the_slope() -> None:
    known = made(1.5)
    spoilt = tuple(replace(o, gain=99.0) if o.cluster == "trec" else o for o in known.observations)
    found = slope_of_first_steps(replace(known, observations=spoilt), leave_out=["trec"])
    assert set(found.by_cluster) == {"rotten-tomatoes", "sms-spam", "disaster-tweets"}
    assert found.mean == pytest.approx(1.5, abs=0.3)


def test_a_training_that_collapsed_counts_for_no_more_than_a_loss() -> None:
    known = made(0.0, noise=0.2)
    fallen = max((o for o in known.observations if o.setting.task == "sms-spam"), key=lambda o: o.first_step)  # type: ignore[arg-type,return-value]
    lost = {points: _with_gain(known, fallen, points) for points in (-10.0, -48.0)}
    slopes = [slope_of_first_steps(found).by_cluster for found in lost.values()]
    assert slopes[0] == slopes[1]


def _with_gain(known: Evidence, which: Observation, gain: float) -> Evidence:
    found = tuple(replace(o, gain=gain) if o is which else o for o in known.observations)
    return replace(known, observations=found)


def test_a_recipes_usual_first_step_moves_nothing() -> None:
    known = made(1.0)
    usual = {
        key: float(np.mean([o.first_step for o in known.observations if o.key == key]))  # type: ignore[misc]
        for key in {o.key for o in known.observations}
    }
    steps = {LORA: 0.5} | {key: 0.5 * float(np.exp(step)) for key, step in usual.items()}
    slope = Finding({"a": 2.0, "b": 2.0, "c": 2.0})
    assert all(abs(x) < 1e-9 for x in shifts(known, slope, steps, LORA).values())
    larger = {**steps, Key("r3", 0): steps[Key("r3", 0)] * np.e}
    assert shifts(known, slope, larger, LORA)[Key("r3", 0)] == pytest.approx(2.0)
    assert not shifts(known, slope, {}, LORA)


def test_likeness_is_largest_for_the_same_features() -> None:
    known = made(0.0)
    like = likeness(known, Features(2, 10.0, 0.0))
    assert max(like, key=like.__getitem__) == "trec"
    assert like["trec"] == pytest.approx(1.0)
    assert 0 < like["subjectivity"] < like["trec-fine"] < 1
    assert likeness(replace(known, features={}), Features(2, 10.0, 0.0)) == {}


def test_a_task_unlike_all_others_is_far_and_not_infinitely_far() -> None:
    """Recorded tasks of two classes say nothing of how far six are."""
    known = made(0.0)
    alike = {setting: Features(2, 10.0, 0.1) for setting in known.features}
    far = likeness(replace(known, features=alike), Features(50, 400.0, 0.9))
    assert set(far.values()) == {1e-3}
    near = likeness(replace(known, features=alike), Features(3, 12.0, 0.15))
    assert all(0.7 < value < 1 for value in near.values())
    apart = [Features(2 + i, 10.0, 0.1) for i in range(len(known.features))]
    strange = replace(known, features=dict(zip(known.features, apart, strict=True)))
    assert worth_of_likeness(strange, HERE).by_cluster, "estimates are made of far tasks too"


def test_likeness_that_says_nothing_is_not_used() -> None:
    assert not worth_of_likeness(made(0.0, noise=1.0), HERE).helps
    assert not worth_of_likeness(replace(made(0.0), features={}), HERE).helps
