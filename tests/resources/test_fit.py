"""The linear algebra of predictions, on costs that are made up."""

from __future__ import annotations

import random
from itertools import product

import pytest

from autopeft.resources.fit import WITHIN, CostModel, Deviations, fit, fit_latency

BASE = {"step": 3.0, "layers": 20.0}
SHARED = {"hook:places": 0.5, "hook:values": 2e-3, "weight:weights": 1e-3}
OWN = {"hook/lora": 1.0, "hook/slow": 3.0, "weight/mask": 1.0}


def row(layers: int, method: str, size: int) -> dict[str, float]:
    found = {"step": 1.0, "layers": float(layers)}
    if method:
        way = method.partition("/")[0]
        what = ("places", "values") if way == "hook" else ("weights",)
        found |= {
            f"{method}:{name}": float(size * layers * (1 if name == "places" else 400)) for name in what
        }
    return found


def cost(features: dict[str, float]) -> float:
    total = 0.0
    for name, value in features.items():
        owner, colon, what = name.partition(":")
        shared = SHARED[f"{owner.partition('/')[0]}:{what}"] if colon else BASE[name]
        total += value * shared * OWN.get(owner, 1.0)
    return total


ROWS = [row(layers, method, size) for layers, method, size in product((1, 2, 6), ("", *OWN), (1, 3))]


def test_costs_without_noise_are_found_again() -> None:
    model = fit(ROWS, [cost(r) for r in ROWS])
    for new in (row(12, "hook/slow", 2), row(4, "weight/mask", 5), row(30, "", 1)):
        assert model(new) == pytest.approx(cost(new), rel=0.05)
    assert model.factors["hook/slow"] > 2 * model.factors["hook/lora"]
    assert model.error is not None
    assert model.error.share == 1.0


def test_noise_averages_out_over_methods() -> None:
    draw = random.Random(0)
    noisy = [cost(r) * draw.uniform(0.95, 1.05) for r in ROWS]
    model = fit(ROWS, noisy, check=False)
    many = {**row(6, "hook/lora", 2), **row(6, "hook/slow", 2), **row(6, "weight/mask", 2)}
    assert model(many) == pytest.approx(cost(many), rel=0.1)


def test_coefficients_are_never_negative() -> None:
    model = fit(ROWS[:6], [10.0, 9.0, 11.0, 8.0, 10.0, 9.5], check=False)
    assert min(model.coefficients.values()) >= 0
    assert min(model.factors.values()) >= 0


def test_a_method_that_was_never_measured_costs_what_others_of_its_way_do() -> None:
    model = fit(ROWS, [cost(r) for r in ROWS], check=False)
    known, new = row(6, "hook/lora", 2), row(6, "hook/new", 2)
    assert 0.5 * model(known) < model(new) < 3 * model(known)
    assert model(new) > model(row(6, "", 2))


def test_a_feature_that_was_never_measured_costs_nothing() -> None:
    assert CostModel({"step": 2.0})({"step": 1.0, "other": 5.0, "kv/x:places": 3.0}) == 2.0


def test_deviations() -> None:
    found = Deviations.of([1.0, 1.1, 1.5], [1.0, 1.0, 1.0])
    assert found.median == pytest.approx(0.1)
    assert found.worst == pytest.approx(0.5)
    assert found.share == pytest.approx(2 / 3)
    assert WITHIN == 0.2


def test_what_alone_shows_a_feature_is_not_left_out() -> None:
    rows = [*ROWS, {"step": 1.0, "embeddings": 1.0}]
    model = fit(rows, [cost(r) for r in ROWS] + [103.0])
    assert model.error is not None
    assert model.error.worst < 0.5


def test_a_forward_is_the_backbone_and_a_share_of_what_entries_take_in_a_step() -> None:
    own, longer = [0.0, 0.1, 0.2, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5]
    measured = [1.0 + 0.5 * o + 0.8 * x for o, x in zip(own, longer, strict=True)]
    model = fit_latency(own, longer, measured)
    assert model(0.3, 0.0) == pytest.approx(1.15, rel=0.02)
    assert model(0.0, 1.0) == pytest.approx(1.8, rel=0.02)
    assert model.error is not None
    assert model.error.worst < 0.02


def test_a_disturbed_forward_moves_the_others_little_and_the_share_stays_plausible() -> None:
    own = [0.001 * i for i in range(20)]
    measured = [1.0 + 0.4 * o for o in own[:-1]] + [3.0]
    model = fit_latency(own, [0.0] * 20, measured)
    assert model.bare == pytest.approx(1.0, rel=0.05)
    assert 0.2 < model.forward < 0.6
