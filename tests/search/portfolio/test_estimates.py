"""What is expected of a recipe: nearness, clusters, and intervals that hold what they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autopeft.search.portfolio.estimates import FAR, MOST, Target, estimates, nearness
from autopeft.search.portfolio.evidence import BackboneShare, Evidence, Key, Observation, Setting

SHARE = 0.005
HERE = Target(SHARE, 500)
TASKS = {"a": ("a1", "a2"), "b": ("b1", "b2"), "c": ("c1",), "d": ("d1",)}


def made(gains: dict[str, dict[str, float]], *, rows: tuple[int, ...] = (500,), seeds: int = 2) -> Evidence:
    """Evidence in which a recipe has a gain for each cluster, the same in all its trainings."""
    found = [
        Observation(Key(name, 0), Setting("m", task, n, seed), cluster, SHARE, gain)
        for name, by_cluster in gains.items()
        for cluster, gain in by_cluster.items()
        for task in TASKS[cluster]
        for n in rows
        for seed in range(seeds)
    ]
    return Evidence(tuple(found), {BackboneShare("m", SHARE): Key("lora", 0)}, {}, 60, 32, {})


def world(rng: np.random.Generator, spread: float, noise: float) -> tuple[dict[Key, float], Evidence]:
    """Recipes with true gains, their effects on clusters and tasks, and trainings with noise; the noise of
    plain LoRA is in all gains of a training alike."""
    true = {
        Key(f"r{i}", 0): float(rng.normal(0.0, 0.8) - (rng.gamma(2, 2) if i % 2 else 0)) for i in range(24)
    }
    found = []
    for cluster, tasks in TASKS.items():
        on_cluster = {key: rng.normal(0.0, spread) for key in true}
        for task in tasks:
            on_task = {key: rng.normal(0.0, spread / 2) for key in true}
            for n in (100, 500, 2000):
                for seed in range(2):
                    lora = rng.normal(0.0, noise)
                    found += [
                        Observation(
                            key, Setting("m", task, n, seed), cluster, SHARE,
                            gain + on_cluster[key] + on_task[key] + rng.normal(0.0, noise) - lora,
                        )
                        for key, gain in true.items()
                    ]  # fmt: skip
    return true, Evidence(tuple(found), {BackboneShare("m", SHARE): Key("lora", 0)}, {}, 60, 32, {})


# --- nearness ---


def test_nearness_is_one_here_and_falls_with_the_ratio_of_budgets_and_rows() -> None:
    assert nearness(SHARE, 500, HERE, 1920) == 1.0
    assert nearness(SHARE * 2, 500, HERE, 1920) == pytest.approx(nearness(SHARE / 2, 500, HERE, 1920))
    assert nearness(SHARE, 1000, HERE, 1920) == pytest.approx(nearness(SHARE, 250, HERE, 1920))
    assert nearness(SHARE * math.e**2, 500, HERE, 1920) == pytest.approx(FAR)


def test_rows_beyond_those_that_a_training_sees_are_no_further_away() -> None:
    far = Target(SHARE, 10**6)
    assert nearness(SHARE, 2000, far, 1920) == 1.0
    assert nearness(SHARE, 100, far, 1920) == nearness(SHARE, 100, Target(SHARE, 1920), 1920)


def test_far_evidence_says_nothing() -> None:
    found = made({"x": {"a": 1.0, "b": 1.0, "c": 1.0}})
    assert estimates(found, HERE)
    assert not estimates(found, Target(SHARE * 9, 500))
    assert not estimates(found, Target(SHARE, 50))


# --- clusters ---


def test_one_cluster_is_not_enough() -> None:
    assert not estimates(made({"x": {"a": 1.0}}), HERE)
    assert estimates(made({"x": {"a": 1.0, "b": 1.0}}), HERE)


def test_a_cluster_that_is_left_out_has_no_part() -> None:
    gains = {"x": {"a": 9.0, "b": 1.0, "c": 1.2}, "y": {"a": -9.0, "b": 0.0, "c": 0.3}}
    without = {n: {c: g for c, g in by.items() if c != "a"} for n, by in gains.items()}
    assert estimates(made(gains), HERE, leave_out=["a"]) == estimates(made(without), HERE)


def test_a_cluster_counts_once_however_many_trainings_it_has() -> None:
    few = estimates(made({"x": {"a": 2.0, "b": 0.0, "c": 1.0}}, seeds=1), HERE)[Key("x", 0)]
    many = estimates(made({"x": {"a": 2.0, "b": 0.0, "c": 1.0}}, seeds=40), HERE)[Key("x", 0)]
    assert many.observed == pytest.approx(few.observed, abs=0.05)
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.05)
    assert (many.clusters, many.tasks, many.trainings) == (3, 5, 200)


def test_fewer_clusters_have_wider_intervals() -> None:
    four = estimates(made({"x": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}}), HERE)[Key("x", 0)]
    two = estimates(made({"x": {"a": 1.0, "b": 0.0}}), HERE)[Key("x", 0)]
    assert two.high - two.low > 4 * (four.high - four.low)


def test_near_trainings_count_for_more() -> None:
    near = made({"x": {"a": 2.0, "b": 2.0, "c": 2.0}})
    far = made({"x": {"a": 0.0, "b": 0.0, "c": 0.0}}, rows=(100,))
    both = replace(near, observations=near.observations + far.observations)
    assert 1.5 < estimates(both, HERE)[Key("x", 0)].observed < 2.0
    assert estimates(both, Target(SHARE, 100))[Key("x", 0)].observed < 0.6


# --- what may be believed ---


def test_gains_are_drawn_towards_zero_and_uncertain_ones_more() -> None:
    steady = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0}
    shaky = {"a": 4.0, "b": -2.0, "c": 3.0, "d": -1.0}
    found = estimates(made({"steady": steady, "shaky": shaky, "none": dict.fromkeys(steady, 0.0)}), HERE)
    one, other = found[Key("steady", 0)], found[Key("shaky", 0)]
    assert 0 < other.gain < other.observed
    assert 0 < one.gain <= one.observed
    assert other.gain / other.observed < one.gain / one.observed
    assert one.lower_quartile > 0 > other.lower_quartile


def test_where_the_reference_was_not_trained_gains_say_nothing() -> None:
    found = made({"x": {"a": 3.0, "b": 2.0, "c": 2.5}, "y": {"a": 1.0, "b": 1.0}})
    known = estimates(found, HERE, reference=Key("y", 0))
    assert set(known) == {Key("x", 0), Key("lora", 0)}
    assert known[Key("x", 0)].observed == pytest.approx((2.0 + 1.0) / 2, abs=0.1), "in c it was not"
    assert known[Key("x", 0)].clusters == 2
    assert known[Key("lora", 0)].observed == pytest.approx(-1.0, abs=0.1), "what other gains are over"
    own = replace(found, references=dict.fromkeys(found.references, Key("y", 0)))
    assert estimates(own, HERE, reference=Key("y", 0))[Key("x", 0)].clusters == 3, "gains are over it"


def test_a_training_that_two_budgets_lead_to_counts_once() -> None:
    found = made({"x": {"a": 1.0, "b": 0.5}})
    far = tuple(replace(o, share=o.share / 3, gain=o.gain + 4.0) for o in found.observations)
    twice = estimates(replace(found, observations=(*far, *found.observations, *far)), HERE)
    assert twice == estimates(found, HERE)
    other = tuple(replace(o, recipe=1) for o in far)
    both = estimates(replace(found, observations=(*found.observations, *other)), HERE)[Key("x", 0)]
    assert both.trainings == 2 * twice[Key("x", 0)].trainings
    assert both.observed > twice[Key("x", 0)].observed


@pytest.mark.parametrize("spread", [0.2, 0.7, 1.5])
def test_intervals_hold_the_true_gain_and_the_best_is_not_oversold(spread: float) -> None:
    rng = np.random.default_rng(0)
    held, of_best, sold, worse = [], [], [], []
    for _ in range(25):
        true, found = world(rng, spread, noise=1.2)
        known = estimates(found, HERE)
        # Of what loses so much that its trainings are winsorised, the gain says no more than that it does.
        near = {key: gain for key, gain in true.items() if abs(gain) <= MOST / 2}
        held += [known[key].low <= gain <= known[key].high for key, gain in near.items()]
        worse += [known[key].gain < -1.5 for key, gain in true.items() if gain < -MOST]
        best = max(known, key=lambda key: known[key].lower_quartile)
        of_best.append(known[best].low <= true[best] <= known[best].high)
        sold.append(known[best].gain - true[best])
    assert np.mean(held) >= 0.94
    assert np.mean(worse) >= 0.9
    assert np.mean(of_best) >= 0.9
    assert np.mean(sold) < 0.15


def test_one_collapse_says_little_of_its_size() -> None:
    """Forty points of one training would be most of all variances."""
    small = made({"r": {"a": 1.0, "b": 0.5, "c": 1.5, "d": 1.0}})
    first, *others = small.observations
    found = {}
    for lost in (MOST, 40.0):
        evidence = replace(small, observations=(replace(first, gain=-lost), *others))
        (found[lost],) = estimates(evidence, HERE).values()
    assert found[40.0] == found[MOST]
    (whole,) = estimates(small, HERE).values()
    assert found[40.0].observed < whole.observed
