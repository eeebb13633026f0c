"""Random generators that start from a seed and names, for what is drawn anew instead of being saved."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_of"]


def generator_of(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator of its own for each seed and names (a site, a tensor, a number).

    It draws the same in every process and for models on every device, and leaves torch's global generator
    alone.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
