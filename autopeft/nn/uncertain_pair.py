"""Low-rank pairs that know the curvature of their factors and can be watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from autopeft.nn.kronecker_curvature import KroneckerCurvature, softmax_root
from autopeft.nn.low_rank import LowRankPair

__all__ = ["SeenPair", "UncertainPair", "logit_covariance", "observe_curvature"]


@dataclass(frozen=True)
class SeenPair:
    """One call of a pair, y = B·z with z = A·x: x, z, and something at z and at y, zeros that want a gradient
    or that gradient; all (rows, …, features)."""

    x: Tensor
    z: Tensor
    at_z: Tensor
    at_y: Tensor


class UncertainPair(LowRankPair):
    """A low-rank pair with the curvatures `posterior_A` over A and `posterior_B` over B, their small sides
    the rank, of which the other factor has at most `curvature_rank`.

    Between `record` and `forget` its calls, without dropout, are in `seen`.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, dropout: float, curvature_rank: int
    ) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        self.posterior_A = KroneckerCurvature(rank, in_features, curvature_rank)
        self.posterior_B = KroneckerCurvature(rank, out_features, curvature_rank)
        self.seen: list[SeenPair] = []
        self._recording = False

    def record(self) -> None:
        """Keep calls from now on."""
        self._recording, self.seen = True, []

    def forget(self) -> None:
        """Keep none, nor those that were kept."""
        self._recording, self.seen = False, []

    def forward(self, x: Tensor) -> Tensor:
        if not self._recording:
            return super().forward(x)
        z = F.linear(x, self.A)
        # Added zeros get the gradient of what they are added to, whatever else requires one.
        at_z = torch.zeros_like(z, requires_grad=True)
        z = z + at_z
        y = F.linear(z, self.B)
        at_y = torch.zeros_like(y, requires_grad=True)
        self.seen.append(SeenPair(x.detach(), z.detach(), at_z, at_y))
        return y + at_y


def _joined(calls: Sequence[SeenPair]) -> SeenPair:
    """Several calls for the same rows as one, (rows, positions, features), in fp32."""

    def all_of(name: str) -> Tensor:
        tensors: list[Tensor] = [getattr(call, name) for call in calls]
        return torch.cat([t.reshape(len(t), -1, t.shape[-1]).float() for t in tensors], dim=1)

    return SeenPair(*(all_of(f.name) for f in fields(SeenPair)))


def observe_curvature(pairs: Sequence[UncertainPair], logits: Tensor) -> None:
    """Add a batch's share of the generalised Gauss-Newton matrix to both factors of every curvature.

    `logits` (rows, classes) are those of the forward that the pairs have recorded; the loss is cross-entropy.
    """
    reached = []
    for seen in _gradients(pairs, logits, softmax_root(logits.detach())):
        for pair, call in zip(pairs, seen, strict=True):
            pair.posterior_A.add_small(call.at_z.flatten(0, 1))
            pair.posterior_B.add_large(call.at_y.flatten(0, 1))
        reached.append([call.at_y.any(dim=-1) for call in seen])
    for pair, call, masks in zip(pairs, seen, zip(*reached, strict=True), strict=True):
        read = torch.stack(masks).any(dim=0)
        pair.posterior_A.add_large(call.x[read])
        pair.posterior_B.add_small(call.z[read])


def logit_covariance(pairs: Sequence[UncertainPair], logits: Tensor, precision: Tensor) -> Tensor:
    """J·Σ·Jᵀ (rows, classes, classes) of the logits (rows, classes) of the forward that the pairs have
    recorded, Σ⁻¹ = H + p·I over their factors, block by block."""
    rows, classes = logits.shape
    columns = torch.eye(classes, dtype=logits.dtype, device=logits.device).expand(rows, -1, -1)
    jacobians = [
        [(call.at_z.mT @ call.x, call.z.mT @ call.at_y) for call in seen]
        for seen in _gradients(pairs, logits, columns)
    ]
    total = torch.zeros(rows, classes, classes, device=logits.device)
    for pair, of_classes in zip(pairs, zip(*jacobians, strict=True), strict=True):
        of_a, of_b = (torch.stack(part, dim=1) for part in zip(*of_classes, strict=True))
        total += pair.posterior_A.covariance(of_a, precision)
        total += pair.posterior_B.covariance(of_b, precision)
    return total


def _gradients(pairs: Sequence[UncertainPair], logits: Tensor, columns: Tensor) -> Iterator[list[SeenPair]]:
    """For each column (rows, classes) of (rows, classes, columns), what each pair has seen, and the gradient
    of column·logits at its maps' outputs."""
    probes = [probe for pair in pairs for call in pair.seen for probe in (call.at_z, call.at_y)]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    for column in columns.unbind(dim=-1):
        found = iter(torch.autograd.grad(logits, probes, column, **options) if probes else ())
        yield [_joined([replace(c, at_z=next(found), at_y=next(found)) for c in pair.seen]) for pair in pairs]
