"""Stratified splits and subsets that depend on the rows and the seed alone.

Order comes from sha256 over seed and text, never from a random generator whose stream may change between
versions: a split can be repeated years later, and does not depend on the order of the rows in the file.
Rows with equal texts stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from autopeft.errors import DataError
from autopeft.tasks.copies import Input, normal_form

__all__ = ["SELECT_LIMIT", "cut", "stratified_order"]

SELECT_LIMIT = 2_000


def stratified_order(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    strata: Sequence[int],
    seed: int,
    alike: Sequence[Input] | None = None,
    *,
    near: bool = False,
) -> list[int]:
    """Row indices in a seeded order whose every prefix has nearly the shares of the strata of the whole.

    `strata` has one for each row (`Schema.strata`). The i-th of a stratum's n rows sits at (i + ½)/n, so a
    prefix of share p holds p·n of it, rounded. Rows with equal pair and equal text, or equal values of
    `alike` where that is given (`Schema.alike`), are neighbours, under the stratum of the first; with
    `near` also those whose values have one normal form (see `autopeft.tasks.copies`).
    """
    seconds: Sequence[str | None] = pairs or [None] * len(texts)
    together: dict[Input, list[int]] = defaultdict(list)
    for index, key in enumerate(_keys(texts, pairs, alike, near)):
        together[key].append(index)
    # Groups whose rows have one text, as `alike` tells them apart, have one digest: their values order them.
    groups: dict[tuple[bytes, Input], list[int]] = {}
    for rows in together.values():
        named = {json.dumps([seed, texts[i], seconds[i]]) for i in rows}
        digest = min(hashlib.sha256(name.encode()).digest() for name in named)
        groups[digest, () if alike is None else min(alike[i] for i in rows)] = rows
    members: dict[int, list[tuple[bytes, Input]]] = defaultdict(list)
    for name, rows in groups.items():
        members[strata[rows[0]]].append(name)
    keyed: list[tuple[float, tuple[bytes, Input]]] = []
    for names in members.values():
        for place, name in enumerate(sorted(names)):
            keyed.append(((place + 0.5) / len(names), name))
    return [row for _, name in sorted(keyed) for row in groups[name]]


def cut(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    strata: Sequence[int],
    sizes: Sequence[int],
    seed: int,
    alike: Sequence[Input] | None = None,
    *,
    near: bool = False,
) -> list[list[int]]:
    """Cut parts of about `sizes` rows off; returns their row indices and, last, those of the rest, ascending.

    Rows that are alike (see `stratified_order`) never end up in different parts, so a part may be larger than
    asked by the last group.

    Raises:
        DataError: nothing would be left.
    """
    order = stratified_order(texts, pairs, strata, seed, alike, near=near)
    every = _keys(texts, pairs, alike, near)
    keys = [every[i] for i in order]
    parts: list[list[int]] = []
    start = 0
    for size in sizes:
        stop = min(start + size, len(order))
        while 0 < stop < len(order) and keys[stop] == keys[stop - 1]:
            stop += 1
        parts.append(sorted(order[start:stop]))
        start = stop
    rest = sorted(order[start:])
    if not rest or any(size > 0 and not part for size, part in zip(sizes, parts, strict=True)):
        raise DataError(
            f"{len(set(keys))} different rows are too few to be split into train, select and test; "
            "at least 10 are needed."
        )
    return [*parts, rest]


def _keys(
    texts: Sequence[str], pairs: Sequence[str] | None, alike: Sequence[Input] | None, near: bool
) -> list[Input]:
    """Of each row what those that stay together have in common."""
    keys = alike or list(zip(texts, *(() if pairs is None else (pairs,)), strict=True))
    return [tuple(map(normal_form, key)) for key in keys] if near else list(keys)
