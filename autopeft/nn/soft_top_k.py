"""Soft weights of the k largest of some scores, by dual coordinate steps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["soft_top_k"]

_LOWEST = -1e9  # the score of what is not there; ten thousand times of it is a number in fp32 yet


def soft_top_k(
    scores: Tensor,
    k: Tensor,
    *,
    temperature: float,
    iterations: int,
    start: float | None = None,
    decay: float = 0.7,
    mask: Tensor | None = None,
) -> Tensor:
    """λ (batch, n) in [0, 1] in fp32 that maximises s·λ + ε·H(λ) under Σλ = k, with a gradient for s.

    Each iteration sets a = ε·ln k − ε·logsumexp((s + b)/ε), b = min(0, −(s + a)), from b = −s; then λ =
    exp((s + a + b)/ε). ε falls from `start` by `decay` in each iteration down to the `temperature`; without
    `start` it is that from the first. Lei et al. 2023, arXiv:2304.04947, as lucidrains/CoLT5-attention
    (colt5_attention/coor_descent.py) has it; other ports begin at b = 0, with the same limit. Σλ is k when
    the iterations have converged, which 20 of them need not. k = 1 gives the softmax of s/ε, and where k is
    all there is, λ is 1.

    Args:
        scores: s (batch, n).
        k: how many of each row, (batch,), at least 1.
        mask: (batch, n), 0 for what is not there.
    """
    with torch.autocast(scores.device.type, enabled=False):
        s = scores.float()
        there = torch.ones_like(s, dtype=torch.bool) if mask is None else mask.bool()
        s = s.masked_fill(~there, _LOWEST)
        eps = temperature if start is None else max(start, temperature)
        log_k, b = k.float().log()[:, None], -s
        b = b.masked_fill(~there, 0.0)
        a = torch.zeros_like(log_k)
        for _ in range(iterations):
            a = eps * (log_k - torch.logsumexp((s + b) / eps, dim=-1, keepdim=True))
            b = -torch.relu(s + a)
            last, eps = eps, max(eps * decay, temperature)
        found = torch.exp((s + a + b) / last)
        return torch.where(k[:, None] >= there.sum(-1, keepdim=True), 1.0, found) * there
