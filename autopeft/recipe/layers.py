"""The layers of a block (`at:`): `all`, `"0-5"`, `[0, 2, 4]`, `first 2`, `last 4`, `last 50%` or a group
`g1` … `g4`.
"""

from __future__ import annotations

import re
from typing import Any

from autopeft.errors import RecipeError, near

__all__ = ["At", "normalise_at", "resolve_layers", "spindle_sizes"]

At = str | tuple[int, ...]

_RANGE = re.compile(r"(\d{1,4})\s*-\s*(\d{1,4})")
_EDGE = re.compile(r"(first|last)\s+(\d{1,4})")
_SHARE = re.compile(r"(first|last)\s+(\d{1,3})\s*%")
_GROUP = re.compile(r"g([1-4])")
_FURTHEST = 9999
_FORMS = "all, '0-5' (inclusive, from 0), [0, 2, 4], 'first 2', 'last 4', 'last 50%' or g1, g2, g3, g4"


def normalise_at(value: Any) -> At:
    """The canonical form of an `at` value: a word or a sorted tuple of layer indices.

    Raises:
        RecipeError: it has none of the forms.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, int) and abs(v) > _FURTHEST for v in value):
            raise RecipeError(
                f"A layer index is beyond {_FURTHEST:,}, and no model has so many; write {_FORMS}."
            )
        bad = [v for v in value if isinstance(v, bool) or not isinstance(v, int) or v < 0]
        if bad or not value:
            raise RecipeError(f"{list(value)!r} is not a list of layer indices from 0; write {_FORMS}.")
        if len(set(value)) < len(value):
            raise RecipeError(f"{list(value)!r} names a layer twice; a second block may cover a layer again.")
        return tuple(sorted(value))
    if not isinstance(value, str):
        raise RecipeError(f"{value!r} does not name layers; write {_FORMS}.")
    text = " ".join(value.split())
    bounds, edge, share = _RANGE.fullmatch(text), _EDGE.fullmatch(text), _SHARE.fullmatch(text)
    if bounds:
        low, high = int(bounds[1]), int(bounds[2])
        if low > high:
            raise RecipeError(f"{value!r} runs backwards; write '{high}-{low}'.")
        return f"{low}-{high}"
    if edge:
        if int(edge[2]) == 0:
            raise RecipeError(f"{value!r} names no layer; write '{edge[1]} 1' or more.")
        return f"{edge[1]} {int(edge[2])}"
    if share:
        if not 1 <= int(share[2]) <= 100:
            raise RecipeError(
                f"{value!r} is no share of the layers; write '{share[1]} 1%' to '{share[1]} 100%'."
            )
        return f"{share[1]} {int(share[2])}%"
    if text == "all" or _GROUP.fullmatch(text):
        return text
    raise RecipeError(
        f"{value!r} does not name layers.{near(text, ('all', 'first 2', 'last 4'))} Write {_FORMS}."
    )


def spindle_sizes(n: int) -> tuple[int, int, int, int]:
    """Sizes of the four consecutive groups of `n` layers, near 1 : 2 : 2 : 1 (S4, arXiv:2301.01821).

    The outer groups get n/6 rounded (half down, at least 1); the inner two share the rest, the first
    of them taking the odd one: 12 → 2, 4, 4, 2; 24 → 4, 8, 8, 4; 6 → 1, 2, 2, 1; 9 → 1, 4, 3, 1.

    Raises:
        RecipeError: there are fewer than 4 layers.
    """
    if n < 4:
        raise RecipeError(
            f"Groups g1 to g4 need at least 4 layers, but this stack has {n}; write layer indices."
        )
    outer = max(1, (n + 2) // 6)
    inner = n - 2 * outer
    return outer, inner - inner // 2, inner // 2, outer


def resolve_layers(at: At, n: int) -> tuple[int, ...]:
    """The 0-based indices that `at` (canonical) means in a stack of `n` layers. A share is rounded to whole
    layers, half up, to one at least.

    Raises:
        RecipeError: it names a layer that the stack does not have.
    """
    if isinstance(at, tuple):
        beyond = [i for i in at if i >= n]
        if beyond:
            raise RecipeError(
                f"Layer {beyond[0]} of at={list(at)} does not exist: the stack has layers 0 to {n - 1}."
            )
        return at
    bounds, edge, share = _RANGE.fullmatch(at), _EDGE.fullmatch(at), _SHARE.fullmatch(at)
    group = _GROUP.fullmatch(at)
    if bounds:
        low, high = int(bounds[1]), int(bounds[2])
        if high >= n:
            raise RecipeError(f"Layer {high} of at={at!r} does not exist: the stack has layers 0 to {n - 1}.")
        return tuple(range(low, high + 1))
    if edge:
        k = int(edge[2])
        if k > n:
            raise RecipeError(f"at={at!r} asks for {k} layers, but the stack has {n}.")
        return tuple(range(k) if edge[1] == "first" else range(n - k, n))
    if share:
        k = max(1, (n * int(share[2]) + 50) // 100)
        return tuple(range(k) if share[1] == "first" else range(n - k, n))
    if group:
        sizes, g = spindle_sizes(n), int(group[1]) - 1
        start = sum(sizes[:g])
        return tuple(range(start, start + sizes[g]))
    return tuple(range(n))
