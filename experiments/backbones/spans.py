"""Span corruption: what T5 is pretrained on (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DENSITY", "SPAN", "Rows", "Tokens", "blocks_of", "corrupted", "noise_spans"]

DENSITY, SPAN = 0.15, 3.0  # share of tokens that are taken out, and mean tokens of a span
Tokens = NDArray[np.int64]
Rows = list[list[int]]


def blocks_of(rows: Rows, length: int, end: int, rng: np.random.Generator) -> Tokens:
    """Texts in random order, one behind the other with the end token between them, in blocks (N, length).
    What is left at the end is left out."""
    order = rng.permutation(len(rows))
    stream = np.asarray([token for i in order for token in (*rows[int(i)], end)], dtype=np.int64)
    return stream[: len(stream) // length * length].reshape(-1, length)


def noise_spans(length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Beginning and end of each span that is taken out, in order. None touches another one, or the first
    token."""
    noise = min(max(round(length * DENSITY), 1), length - 1)
    count = min(max(round(noise / SPAN), 1), noise, length - noise)
    taken, kept = _parts(noise, count, rng), _parts(length - noise, count, rng)
    found, place = [], 0
    for before, gone in zip(kept, taken, strict=True):
        place += before
        found.append((place, place + gone))
        place += gone
    return found


def _parts(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """Whole numbers from 1 that add up to a total, each such list as likely as any other."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff([0, *cuts.tolist(), total]).tolist()


def corrupted(
    block: Tokens, sentinels: list[int], end: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Source and target of a block: spans are replaced by sentinels, and the target has each sentinel with
    what it stands for."""
    source, target, place = list[int](), list[int](), 0
    for sentinel, (start, stop) in zip(sentinels, noise_spans(len(block), rng), strict=False):
        source += [*block[place:start].tolist(), sentinel]
        target += [sentinel, *block[start:stop].tolist()]
        place = stop
    return [*source, *block[place:].tolist(), end], [*target, end]
