"""Dense deltas behind hard-concrete gates, and the search of diff pruning that closes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import LossStep
from autopeft.nn.searched_entries import SearchConfig, SearchedEntries
from autopeft.nn.tensor_deltas import TensorDeltas
from autopeft.spec import TensorSpec

__all__ = ["DiffPruningConfig", "GatedDeltas", "GatedEntries", "HardConcrete"]

_EDGE = 1e-4  # from which u stays away at either end, as in the authors' code


@dataclass(frozen=True)
class HardConcrete:
    """Gates z = clamp(s·(r − l) + l, 0, 1) of locations a, s = sigmoid(log u − log(1 − u) + a), u uniform.

    Louizos et al. 2018, arXiv:1712.01312, at temperature 1. With l below 0 and r above 1 a gate is exactly 0
    or exactly 1 with some probability.

    Attributes:
        low: l.
        high: r.
    """

    low: float = -1.5
    high: float = 1.5

    def noise(self, like: Tensor) -> Tensor:
        """log u − log(1 − u) of fresh u, of a tensor's shape."""
        return torch.empty_like(like).uniform_().clamp_(_EDGE, 1 - _EDGE).logit()

    def __call__(self, location: Tensor, noise: Tensor | None = None) -> Tensor:
        """z; without noise that of u = ½."""
        s = torch.sigmoid(location if noise is None else location + noise)
        return (s * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def open(self, location: Tensor) -> Tensor:
        """P(z > 0) = sigmoid(a − log(−l/r))."""
        return torch.sigmoid(location - math.log(-self.low / self.high))


class GatedDeltas(TensorDeltas):
    """θ = θ₀ + z·w for each of several tensors, z the gates of a location a for each entry; with `grouped`
    θ₀ + z·z_g·w, z_g the gate of a location for each tensor.

    w starts at zero and all locations at `location`. Noise is drawn by `draw` alone and acts until the next
    one; without noise gates are those of u = ½.
    """

    def __init__(
        self, tensors: Iterable[TensorSpec], gate: HardConcrete, location: float, *, grouped: bool
    ) -> None:
        tensors = tuple(tensors)
        super().__init__(tensors)
        self.gate = gate
        self.locations = nn.ParameterDict({self._key(t.name): torch.full(t.shape, location) for t in tensors})
        shared = tensors if grouped else ()
        self.shared = nn.ParameterDict({self._key(t.name): torch.full((1,), location) for t in shared})
        self._noise: dict[tuple[int, str], Tensor] = {}

    @property
    def _held(self) -> tuple[nn.ParameterDict, ...]:
        return self.locations, self.shared

    @torch.no_grad()
    def draw(self) -> None:
        """Draw every gate anew."""
        self._noise = {
            (i, k): self.gate.noise(a) for i, held in enumerate(self._held) for k, a in held.items()
        }

    def all_locations(self) -> list[nn.Parameter]:
        """a of every entry, then of every tensor where those have some."""
        return [a for held in self._held for a in held.parameters()]

    def differences(self) -> list[nn.Parameter]:
        """w of every tensor."""
        return list(self.values.parameters())

    def gates(self, name: str, *, drawn: bool) -> Tensor:
        """z, or z·z_g, of a tensor's entries."""
        key = self._key(name)
        noise = self._noise if drawn else {}
        each = [self.gate(held[key], noise.get((i, key))) for i, held in enumerate(self._held) if key in held]
        return each[0] if len(each) == 1 else each[0] * each[1]

    def change(self, name: str, *, drawn: bool = False) -> Tensor:
        """z·w of a tensor; `drawn` for the gates of the latest draw."""
        return self.gates(name, drawn=drawn) * self[name]

    def expected(self, joint: Literal["sum", "product"] = "sum") -> Tensor:
        """Σ P(z > 0) over entries and tensors; or, with `product`, Σ P(z > 0)·P(z_g > 0) over entries, which
        is how many are expected to differ."""
        entries = {key: self.gate.open(a).sum() for key, a in self.locations.items()}
        tensors = {key: self.gate.open(a).sum() for key, a in self.shared.items()}
        if joint == "product" and tensors:
            return torch.stack([entries[key] * tensors[key] for key in entries]).sum()
        return torch.stack([*entries.values(), *tensors.values()]).sum()


class DiffPruningConfig(SearchConfig):
    """Options of both variants of diff pruning."""

    penalty: float = Field(default=1.25e-7, ge=0, le=1, description="λ, of each gate that is open")
    low: float = Field(default=-1.5, ge=-100, lt=0, description="l, to which gates are stretched below")
    high: float = Field(default=1.5, gt=1, le=100, description="r, to which they are stretched above")
    location: float = Field(default=5.0, ge=-20, le=20, description="a at first; large ones are open")
    location_learning_rate: float = Field(default=0.1, gt=0, le=10, description="of a, at all steps")


class GatedEntries(SearchedEntries):
    """The entries whose gated change is largest at the end of a search with an L0 penalty."""

    def __init__(
        self,
        tensors: Sequence[TensorSpec],
        k: int,
        config: DiffPruningConfig,
        *,
        grouped: bool = False,
        joint: Literal["sum", "product"] = "sum",
    ) -> None:
        super().__init__(tensors, k, config.search, rewinds=False)
        self.config, self._grouped, self._joint = config, grouped, joint

    def deltas(self) -> GatedDeltas:
        c = self.config
        gate = HardConcrete(c.low, c.high)
        return GatedDeltas(self.entries.tensors, gate, c.location, grouped=self._grouped)

    @property
    def gated(self) -> GatedDeltas | None:
        """The dense deltas, while they are there."""
        return cast(GatedDeltas | None, self.dense)

    def change(self, name: str) -> Tensor:
        assert self.gated is not None
        return self.gated.change(name)

    def acting(self, name: str) -> Tensor:
        assert self.gated is not None
        return self.gated.change(name, drawn=self.training)

    def start(self, name: str) -> Tensor:
        """w without its gates."""
        assert self.gated is not None
        return self.gated[name]

    def before_step(self, step: int, total: int) -> None:
        """Draw the gates, which all rows of a step share."""
        if self.gated is not None:
            self.gated.draw()

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """λ times the expected number of open gates."""
        gated, penalty = self.gated, self.config.penalty
        return penalty * gated.expected(self._joint) if gated is not None and penalty else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """w, and the locations at a constant rate of their own, without decay and clipped by themselves."""
        if self.gated is None:
            return super().parameter_groups()
        locations = {
            "name": "locations",
            "params": self.gated.all_locations(),
            "lr": self.config.location_learning_rate,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
            "clip": "group",
        }
        return [{"params": self.gated.differences()}, locations]
