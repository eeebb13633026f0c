"""Exact hypervolume of recipes in two objectives: a score that should be high, a size that should be low.

The hypervolume of a set of points is the area that they dominate down to a reference point: of all
(score, size) with a score above the reference's and a size below its, the part that some point matches or
beats in both (Zitzler and Thiele 1998). Points that do not beat the reference in both add nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autopeft.search.optimization.pareto import nondominated, order

__all__ = ["front_of", "hypervolume", "hypervolume_course", "improvement", "shortfall"]

_Array = NDArray[np.float64]


def front_of(points: Iterable[Sequence[float]]) -> _Array:
    """The points (score, size) that no other matches or beats in both, by size; of equal ones a single one.

    Returns:
        (k, 2); sizes and scores both rise strictly.

    Raises:
        ValueError: a number is not finite.
    """
    return _rows(nondominated(_rows(points).tolist(), lambda point: order(*point)))


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Area that `points` (score, size) dominate down to `reference` (score, size).

    Raises:
        ValueError: a number is not finite.
    """
    front, (base, limit) = front_of(points), _rows([reference])[0]
    if not len(front):
        return 0.0
    heights = np.maximum(front[:, 0] - base, 0.0)
    widths = np.diff(np.minimum(np.append(front[:, 1], limit), limit))
    return float(np.sum(heights * widths))


def hypervolume_course(points: Iterable[Sequence[float]], reference: Sequence[float]) -> list[float]:
    """Hypervolume after the first point, the first two, and so on; it never falls.

    Raises:
        ValueError: a number is not finite.
    """
    reached, front, course = 0.0, _rows([]), []
    for point in _rows(points):
        reached += float(improvement([point], front, reference)[0])
        front = front_of(np.vstack([front, point]))
        course.append(reached)
    return course


def improvement(points: ArrayLike, known: ArrayLike, reference: Sequence[float]) -> _Array:
    """By how much each of `points` alone would raise the hypervolume of `known`.

    Args:
        points: (m, 2) of score and size.
        known: (n, 2) of score and size; n may be 0.

    Returns:
        (m,), not negative.

    Raises:
        ValueError: a number is not finite.
    """
    candidates, front, (base, limit) = _rows(points), front_of(_rows(known)), _rows([reference])[0]
    # The best known score is a step function of the size: strip j lasts from edge j to edge j + 1.
    edges = np.concatenate([[-np.inf], np.minimum(front[:, 1], limit), [limit]])
    floor = np.concatenate([[base], np.maximum(front[:, 0], base)])
    starts = np.maximum(edges[:-1], candidates[:, 1:])
    widths = np.maximum(edges[1:] - starts, 0.0)
    return np.asarray(np.sum(widths * np.maximum(candidates[:, :1] - floor, 0.0), axis=1))


def shortfall(points: ArrayLike, known: ArrayLike) -> _Array:
    """What each of `points` (m, 2) lacks in score to the best of `known` (n, 2) that is not larger.

    Returns:
        (m,): 0 for points on or above the front, and for those smaller than every known one.
    """
    candidates, front = _rows(points), front_of(_rows(known))
    best = np.concatenate([[-np.inf], front[:, 0]])
    place = np.searchsorted(front[:, 1], candidates[:, 1], side="right")
    return np.asarray(np.maximum(best[place] - candidates[:, 0], 0.0))


def _rows(points: ArrayLike | Iterable[Sequence[float]]) -> _Array:
    rows = points if isinstance(points, np.ndarray) else np.array(list(points), dtype=np.float64)  # type: ignore[arg-type]
    rows = np.asarray(rows, dtype=np.float64).reshape(-1, 2)
    if not np.all(np.isfinite(rows)):
        raise ValueError("Scores and sizes must be finite; leave failed trials out.")
    return rows
