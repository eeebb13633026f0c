"""Means with their intervals."""

from __future__ import annotations

import math

import pytest
from lib.intervals import interval, stratified


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)


def test_strata_vary_inside_alone() -> None:
    mean, half = stratified([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    # Two variances of 1/3, weights of a half, four degrees of freedom.
    assert (mean, half) == pytest.approx((7.0, 2.776445 * math.sqrt(1 / 6)), rel=1e-5)
    assert stratified([[1.0, 2.0, 3.0]]) == pytest.approx(interval([1.0, 2.0, 3.0]))
    assert stratified([[1.0, 1.0], [3.0, 3.0]], [3, 1]) == (1.5, 0.0)
    assert stratified([[1.0], [3.0, 4.0]])[1] == math.inf


def test_one_variance_of_all_groups_has_all_their_degrees_of_freedom() -> None:
    groups = [[1.0, 3.0], [10.0, 10.0], [5.0]]
    mean, half = stratified(groups, [2, 1, 1], pooled=True)
    assert mean == pytest.approx((2 * 2 + 10 + 5) / 4)
    variance = (2.0 + 0.0) / 2
    error = math.sqrt(variance * (0.25 / 2 + 0.0625 / 2 + 0.0625))
    assert half == pytest.approx(4.302652729696142 * error)  # Student's t, two degrees
    assert stratified([[1.0], [2.0]], pooled=True)[1] == math.inf
    alike = [[1.0, 2.0, 3.0]]
    assert stratified(alike, pooled=True) == pytest.approx(stratified(alike))


def test_strata_of_a_higher_level_are_wider() -> None:
    groups = [[1.0, 2.0, 3.0], [4.0, 4.5, 6.0]]
    assert stratified(groups, level=0.99)[1] > stratified(groups)[1]
