"""A router: weights of experts that depend on the input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from autopeft.devices import full_precision

__all__ = ["Router"]


class Router(nn.Module):
    """p = softmax(W·u) in fp32, one weight for each expert; W (experts × width) is N(0, 0.02), without bias.

    With `top_k` all but the k largest weights of a row become exactly 0, and with `renormalize` those left
    sum to 1. Soft weights and top-k without renormalisation: Zadouri et al. 2024, arXiv:2309.05444;
    renormalised top-k and the loss: Li et al. 2024, arXiv:2404.15159. W may be orthogonal (`init`), and while
    it trains `noise` = σ multiplies each logit by 1 + σ·ε, ε ~ N(0, 1), through which no gradient goes, and
    `dropout` sets logits to 0: Choi et al. 2023, ACL:2023.emnlp-main.884 §2.3.

    The load-balance loss of a forward is E·Σₑ fₑ·Pₑ, with fₑ the share of rows that keep expert e and Pₑ its
    mean weight before the choice: k where both are uniform. Padding counts in neither.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        top_k: int | None = None,
        renormalize: bool = True,
        balanced: bool = False,
        init: Literal["normal", "orthogonal"] = "normal",
        noise: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        if init == "orthogonal":
            nn.init.orthogonal_(self.weight)
        else:
            nn.init.normal_(self.weight, std=0.02)
        self.top_k, self.renormalize, self.balanced = top_k, renormalize, balanced
        self.noise, self.dropout = noise, dropout
        self._loss: Tensor | None = None

    @staticmethod
    def size(width: int, experts: int) -> int:
        """Parameters: E·width."""
        return experts * width

    def forward(self, u: Tensor, mask: Tensor | None = None, *, counted: bool = True) -> Tensor:
        """Weights (…, experts) in fp32 of u (…, width); `mask` (…) is 0 for rows that the loss leaves out.
        Of a forward that is not `counted` there is no loss."""
        with full_precision(u.device):
            p = torch.softmax(self._perturbed(nn.functional.linear(u.float(), self.weight.float())), dim=-1)
        if self.top_k is None:
            return p
        chosen = torch.zeros_like(p).scatter(-1, p.topk(self.top_k, dim=-1).indices, 1.0)
        if self.balanced and self.training and counted:
            loss = _imbalance(p, chosen, mask)
            # A layer that is recomputed for its gradient comes by once more, in the middle of backward.
            if torch._C._current_graph_task_id() == -1:
                self._loss = loss
        kept = p * chosen
        return kept / kept.sum(dim=-1, keepdim=True) if self.renormalize else kept

    def _perturbed(self, logits: Tensor) -> Tensor:
        if self.noise and self.training:
            logits = logits + self.noise * torch.randn_like(logits) * logits.detach()
        return nn.functional.dropout(logits, self.dropout, self.training) if self.dropout else logits

    def take_loss(self) -> Tensor | None:
        """The load-balance loss of the last forward in training mode, once."""
        loss, self._loss = self._loss, None
        return loss

    def __getstate__(self) -> dict[str, Any]:
        # A tensor inside a graph can be neither copied nor pickled.
        return {**self.__dict__, "_loss": None}


def _imbalance(p: Tensor, chosen: Tensor, mask: Tensor | None) -> Tensor:
    rows, kept = p.flatten(0, -2), chosen.flatten(0, -2)
    if mask is None:
        return p.shape[-1] * (kept.mean(0) * rows.mean(0)).sum()
    weights = mask.to(p.dtype).expand(p.shape[:-1]).reshape(-1, 1)
    total = weights.sum().clamp(min=1)
    share, mean = (kept * weights).sum(0) / total, (rows * weights).sum(0) / total
    return p.shape[-1] * (share * mean).sum()
