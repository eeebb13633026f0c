from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.search.optimization.hypervolume import (
    front_of,
    hypervolume,
    hypervolume_course,
    improvement,
    shortfall,
)

GRID = 12
# Whole numbers, so that unit cells can be counted exactly; some points do not beat the reference.
POINTS = st.lists(st.tuples(st.integers(-2, GRID), st.integers(0, GRID + 2)), max_size=8)
REFERENCE = (0, GRID)


def counted(points: list[tuple[int, int]]) -> int:
    """Unit cells (score from s to s + 1, size from d to d + 1) that some point dominates."""
    return sum(
        any(score >= s + 1 and size <= d for score, size in points) for s in range(GRID) for d in range(GRID)
    )


@given(POINTS)
def test_it_is_the_area_that_the_points_dominate(points: list[tuple[int, int]]) -> None:
    assert hypervolume(points, REFERENCE) == pytest.approx(counted(points))


@given(POINTS)
def test_the_course_is_the_hypervolume_of_each_beginning(points: list[tuple[int, int]]) -> None:
    course = hypervolume_course(points, REFERENCE)
    assert course == pytest.approx([counted(points[: i + 1]) for i in range(len(points))])
    assert course == sorted(course)


@given(POINTS, POINTS)
def test_an_improvement_is_the_difference_that_a_point_makes(
    new: list[tuple[int, int]], known: list[tuple[int, int]]
) -> None:
    found = improvement(np.array(new).reshape(-1, 2), known, REFERENCE)
    assert found.tolist() == pytest.approx([counted([*known, p]) - counted(known) for p in new])


@given(POINTS)
def test_the_front_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = [(int(score), int(size)) for score, size in front_of(points)]

    def beaten(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)

    assert set(front) == {p for p in points if not beaten(p)}
    assert len(front) == len(set(front))
    assert front == sorted(front, key=lambda p: p[1])


@given(POINTS, POINTS)
def test_the_shortfall_is_what_a_point_lacks_to_those_not_larger(
    new: list[tuple[int, int]], known: list[tuple[int, int]]
) -> None:
    lacking = [max([k - s for k, size in known if size <= d] + [0]) for s, d in new]
    assert shortfall(np.array(new).reshape(-1, 2), known).tolist() == lacking


def test_worked_by_hand() -> None:
    # 0.2 high from 10 to 30, then 0.5 high from 30 to 100; the third point is dominated.
    assert hypervolume([(0.7, 10), (1.0, 30), (0.9, 40)], (0.5, 100)) == pytest.approx(0.2 * 20 + 0.5 * 70)


def test_nothing_known() -> None:
    assert hypervolume([], (0.5, 100)) == 0
    assert hypervolume_course([], (0.5, 100)) == []
    assert improvement([(0.7, 10)], [], (0.5, 100)).tolist() == pytest.approx([0.2 * 90])
    assert shortfall([(0.7, 10)], []).tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for points, reference in (([(bad, 1)], (0, 2)), ([(1, bad)], (0, 2)), ([(1, 1)], (bad, 2))):
        with pytest.raises(ValueError, match="finite"):
            hypervolume(points, reference)
