from __future__ import annotations

import numpy as np
import pytest

from autopeft.search.optimization.samplers.regression import Features
from autopeft.search.space.parameters import Parameter

ON = Parameter("layer_0.on", "categorical", (True, False))
OTHER = Parameter("layer_1.on", "categorical", (True, False))
SIZE = Parameter("size", "categorical", ("hidden/1", "hidden/4", 1, 0), sizes=(16, 4, 1, 0))
KIND = Parameter("kind", "categorical", ("a", "b", None))
RATE = Parameter("rate", "float", low=1e-4, high=1e-2, log=True)
COUNT = Parameter("count", "int", low=2, high=6)


def columns(parameter: Parameter, *values: object) -> list[list[float]]:
    single, pairs = Features([parameter]).of([{parameter.name: v} for v in values])
    assert pairs.shape == (len(values), 0)
    return single.tolist()


def test_sizes_go_by_the_logarithm_and_absence_has_a_column_of_its_own() -> None:
    found = columns(SIZE, 0, 1, "hidden/4", "hidden/1")
    assert [row[0] for row in found] == [-1, 1, 1, 1]
    assert [row[1] for row in found] == pytest.approx([0, -1, 0, 1])
    assert [row[2] for row in found] == pytest.approx([0, 2 / 3, -1 / 3, 2 / 3])


def test_numbers_go_by_their_place_in_the_range() -> None:
    assert [row[0] for row in columns(RATE, 1e-4, 1e-3, 1e-2)] == pytest.approx([-1, 0, 1])
    assert [row[0] for row in columns(COUNT, 2, 3, 6)] == pytest.approx([-1, -0.5, 1])


def test_sizes_that_span_little_go_as_they_are() -> None:
    scale = Parameter("scale", "categorical", (1.0, 2.0, 4.0), sizes=(1.0, 2.0, 4.0))
    assert [row[0] for row in columns(scale, 1.0, 2.0, 4.0)] == pytest.approx([-1, -1 / 3, 1])
    signed = Parameter("signed", "categorical", (-1, 0, 1), sizes=(-1, 0, 1))
    assert [row[0] for row in columns(signed, -1, 1)] == pytest.approx([-1, 1])


def test_categories_are_all_equally_far_from_each_other() -> None:
    for parameter in (KIND, ON):
        rows = np.array(columns(parameter, *parameter.choices))
        distances = [np.sum((a - b) ** 2) for i, a in enumerate(rows) for b in rows[:i]]
        assert distances == pytest.approx([4.0] * len(distances))


def test_true_and_one_are_two_choices() -> None:
    odd = Parameter("odd", "categorical", (1, True, "x"))
    assert columns(odd, 1) != columns(odd, True)


def test_pairs_are_those_of_two_parameters_that_meet_in_a_layer() -> None:
    single, pairs = Features([ON, OTHER, SIZE]).of([{"layer_0.on": True, "layer_1.on": False, "size": 1}])
    assert single.shape == (1, 2 + 3)
    # Each switch with presence and with size; not the switches of two layers, nor a size with its presence.
    assert sorted(pairs[0].tolist()) == sorted([1.0, -1.0, -1.0, 1.0])
    there, away = (
        Features([ON, OTHER, SIZE]).of([{"layer_0.on": on, "layer_1.on": True, "size": "hidden/1"}])[1][0]
        for on in (True, False)
    )
    assert np.sum(there != away) == 2


def test_parameters_of_a_single_value_have_no_column() -> None:
    single, pairs = Features(
        [Parameter("a", "categorical", ("x",)), Parameter("b", "int", low=3, high=3)]
    ).of([{"a": "x", "b": 3}])
    assert single.shape == pairs.shape == (1, 0)


def test_sizes_that_are_all_equal_tell_nothing() -> None:
    same = Parameter("same", "categorical", ("hidden/8", 4), sizes=(4, 4))
    assert columns(same, "hidden/8") == columns(same, 4)
