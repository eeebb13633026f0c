"""A logistic regression on one low-rank pair with a posterior, for exact comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from support.tiny import randomise
from support.toy import CALL, build, toy_spec


class Logistic:
    """W₀x + s·B·A·x summed over positions, (rows, 6) or (rows, positions, 6) → (rows, 6)."""

    def __init__(self, **config: Any) -> None:
        spec = toy_spec(layers=1)
        self.module, sites = build("laplace_lora", spec, sites=("q",), **{"rank": 2, "n_kfac": 6, **config})
        self.site = sites[0]
        self.pair: Any = self.module[self.site]
        randomise(self.module, std=0.5)
        self.base = torch.randn(6, 6, generator=torch.Generator().manual_seed(8))

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        y = x @ self.base.T
        y = y + self.module.delta(self.site, x, y, CALL)
        return y if y.ndim == 2 else y.sum(1)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch["labels"])

    def conclude(self, x: Tensor, batch_size: int = 4) -> None:
        labels = torch.arange(len(x)) % 6
        parts = zip(x.split(batch_size), labels.split(batch_size), strict=True)
        self.module.conclude(({"x": a, "labels": b} for a, b in parts), self)

    def covariance(self, x: Tensor) -> Tensor:
        with self.module.recording():
            found: Tensor = self.module.covariance(self.logits({"x": x}))
        return found

    def curvature(self, name: str) -> Tensor:
        """H over a factor's entries, its small side first."""
        return dense(getattr(self.pair, f"posterior_{name}"))

    def jacobian(self, name: str, x: Tensor) -> Tensor:
        """J (6, entries) of a row's logits, in the same order."""
        factor, scale = getattr(self.pair, name), self.module.scale
        other = self.pair.B if name == "A" else self.pair.A

        def run(flat: Tensor) -> Tensor:
            w = flat.view_as(factor) if name == "A" else flat.view(factor.shape[1], factor.shape[0]).T
            delta = other @ w if name == "A" else w @ other
            y: Tensor = (x @ (self.base + scale * delta).T).reshape(-1, 6).sum(0)
            return y

        start = factor if name == "A" else factor.T
        found: Tensor = torch.func.jacrev(run)(start.detach().reshape(-1))
        return found


def dense(curvature: Any) -> Tensor:
    """S ⊗ L of a `KroneckerCurvature`."""
    q, u = curvature.small_basis, curvature.large_basis
    small = q @ curvature.small_values.diag() @ q.T
    return torch.kron(small, u @ curvature.large_values.diag() @ u.T)


def inputs_of(*shape: int, seed: int = 0) -> Tensor:
    """Random inputs (*shape, 6)."""
    return torch.randn(*shape, 6, generator=torch.Generator().manual_seed(seed))
