"""Texts with spans taken out, from which the whole texts are learnt.

Spans and sentinels are those of T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4). The target is the
original text, as in the objective that its section 3.3.1 calls BERT-style: it teaches a small model to copy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["DENSITY", "SPAN", "Rows", "Tokens", "corrupted", "noise_spans", "places_of"]

DENSITY, SPAN = 0.15, 3.0  # share of tokens that are taken out, and mean tokens of a span
Tokens = NDArray[np.int64]
Rows = list[list[int]]
_POOL = 50  # batches whose texts are sorted by length


def places_of(lengths: Tokens, size: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """The places of texts of about the same length in batches (size,), in random order; each place at most
    once. What is left at the end is left out."""
    order = rng.permutation(len(lengths))
    pool = size * _POOL
    for first in range(0, len(order), pool):
        own = order[first : first + pool]
        own = own[np.argsort(lengths[own], kind="stable")]
        whole = own[: len(own) // size * size].reshape(-1, size)
        yield from whole[rng.permutation(len(whole))]


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
    text: Tokens, sentinels: list[int], end: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Source and target of a text: spans are replaced by sentinels, and the target is the whole text."""
    source, place = list[int](), 0
    for sentinel, (start, stop) in zip(sentinels, noise_spans(len(text), rng), strict=False):
        source += [*text[place:start].tolist(), sentinel]
        place = stop
    return [*source, *text[place:].tolist(), end], [*text.tolist(), end]
