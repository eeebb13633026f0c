"""Features of a recipe for a linear model: what is there, how much of it, and the pairs in a layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.search.space.parameters import Parameter

__all__ = ["Features"]

_Array = NDArray[np.float64]
_Key = tuple[bool, Any]

# Positive sizes that span more than this are compared by their logarithm.
_SPAN = 4.0
_LAYER = re.compile(r"layer_(\d+)\.")


class Features:
    """Columns of values of a space, for the parameters that can vary.

    A category becomes one column for each choice, or one of −1 and 1 for two choices. A number becomes
    its place in its range, from −1 to 1 (by the logarithm, where the space says so or sizes span much), and
    that place squared; a size that may be 0 also gets a column that says whether it is there, and its
    place counts only then. Pairs are products of the columns (squares left out) of two parameters, unless
    these belong to different layers.

    Args:
        parameters: of the space.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._axes = [axis for p in parameters if (axis := _axis(p)) is not None]
        layers: list[int | None] = []
        owner: list[int] = []
        for i, axis in enumerate(self._axes):
            found = _LAYER.match(axis.name)
            owner += [i] * axis.width
            layers += [int(found[1]) if found else None] * axis.width
        own = np.array(owner, dtype=np.int64)
        place = np.array([-1 if layer is None else layer for layer in layers], dtype=np.int64)
        left, right = np.triu_indices(len(own), 1)
        near = (place[left] == place[right]) | (place[left] < 0) | (place[right] < 0)
        keep = near & (own[left] != own[right])
        self._left, self._right = left[keep], right[keep]

    def of(self, points: Sequence[Mapping[str, Any]]) -> tuple[_Array, _Array]:
        """Columns of single parameters, (n, d), and of pairs, (n, e)."""
        if not self._axes:
            return np.zeros((len(points), 0)), np.zeros((len(points), 0))
        blocks = [np.array([a.columns(point[a.name]) for point in points]) for a in self._axes]
        linear = [b.reshape(len(points), -1)[:, : a.width] for a, b in zip(self._axes, blocks, strict=True)]
        squares = [b.reshape(len(points), -1)[:, a.width :] for a, b in zip(self._axes, blocks, strict=True)]
        first = np.hstack(linear)
        return np.hstack([first, *squares]), first[:, self._left] * first[:, self._right]


class _Axis:
    """One parameter's columns: `width` linear ones, then squares."""

    def __init__(self, name: str, width: int, columns: Callable[[Any], tuple[float, ...]]) -> None:
        self.name, self.width, self.columns = name, width, columns


def _axis(p: Parameter) -> _Axis | None:
    if p.kind != "categorical":
        return None if p.low == p.high else _number(p.name, p.low, p.high, log=p.log)
    if len(p.choices) < 2:
        return None
    if p.ordered:
        sizes = dict(zip(map(_key, p.choices), p.sizes, strict=True))
        positive = [s for s in p.sizes if s > 0]
        log = min(p.sizes) >= 0 and len(positive) > 0 and max(positive) > _SPAN * min(positive)
        low = min(positive) if log else min(p.sizes)
        return _number(p.name, low, max(p.sizes), log=log, absent=min(p.sizes) == 0, sizes=sizes)
    return _category(p)


def _category(p: Parameter) -> _Axis:
    # Two choices differ by the same variance whether there are two of them or more.
    rows = np.eye(len(p.choices)) * math.sqrt(2) if len(p.choices) > 2 else np.array([[1.0], [-1.0]])
    table = {_key(choice): tuple(row.tolist()) for choice, row in zip(p.choices, rows, strict=True)}
    return _Axis(p.name, rows.shape[1], lambda value: table[_key(value)])


def _number(
    name: str,
    low: float,
    high: float,
    *,
    log: bool,
    absent: bool | None = None,
    sizes: Mapping[_Key, float] | None = None,
) -> _Axis:
    """A number's columns; `sizes` of choices, else the value itself is the size."""
    absent = low == 0 if absent is None else absent
    scale: Callable[[float], float] = math.log if log else float
    bottom, span = scale(low), scale(high) - scale(low)

    def columns(value: Any) -> tuple[float, ...]:
        size = float(value) if sizes is None else sizes[_key(value)]
        if absent and size == 0:
            return (-1.0, 0.0, 0.0)
        z = 2 * (scale(size) - bottom) / span - 1 if span else 0.0
        square = z * z - 1 / 3
        return (1.0, z, square) if absent else (z, square)

    return _Axis(name, 2 if absent else 1, columns)


def _key(value: Any) -> _Key:
    """Tells True from 1."""
    return isinstance(value, bool), value
