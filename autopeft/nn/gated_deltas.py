"""Dense deltas behind hard-concrete gates, and the search of diff pruning that closes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from autopeft.devices import generator
from autopeft.method import LossStep, shortened
from autopeft.nn.searched_entries import SearchConfig, SearchedEntries
from autopeft.nn.tensor_deltas import TensorDeltas
from autopeft.spec import TensorSpec

__all__ = ["DiffPruningConfig", "GatedDeltas", "GatedEntries", "HardConcrete"]

Joint = Literal["sum", "product"]
_EDGE = 1e-4  # from which u stays away at either end, as in the authors' code
_PIECE = 1 << 18  # entries whose gates are there together
_SEEDS = 1 << 62  # from which the seed of a draw is taken
_CLOSED = 1e-20  # what |w| is multiplied by where a gate is closed; the smallest open gate is about 1e-7
_STEPS = 3207  # of the search in the authors' README: 3 epochs of CoLA's 8,551 rows in batches of 8


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

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log u − log(1 − u) of fresh u, of a tensor's shape."""
        return torch.empty_like(like).uniform_(generator=generator).clamp_(_EDGE, 1 - _EDGE).logit_()

    def __call__(self, location: Tensor, noise: Tensor | None = None) -> Tensor:
        """z; without noise that of u = ½."""
        s = torch.sigmoid(location if noise is None else location + noise)
        return (s * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def open(self, location: Tensor) -> Tensor:
        """P(z > 0) = sigmoid(a − log(−l/r))."""
        return torch.sigmoid(location - math.log(-self.low / self.high))


@dataclass(frozen=True)
class _Gates:
    """The gates of one tensor's entries, made from seeds as often as they are needed.

    Attributes:
        seeds: of the noise of the entries' gates, and of that of the tensor's gate where it has one; none
            where gates are those of u = ½.
    """

    gate: HardConcrete
    seeds: tuple[int, ...]

    def noise(self, locations: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor | None]]]:
        """Pieces of the flattened entries, each with the noise of its gates and that of the tensor's."""
        entries, *tensor = locations
        flat = entries.detach().view(-1)
        sources = [generator(flat.device, seed) for seed in self.seeds]
        beside: list[Tensor | None] = [None for _ in tensor]
        if sources:
            beside = [
                self.gate.noise(a.detach(), source) for a, source in zip(tensor, sources[1:], strict=True)
            ]
        for start in range(0, len(flat), _PIECE):
            part = slice(start, start + _PIECE)
            yield part, [self.gate.noise(flat[part], sources[0]) if sources else None, *beside]

    def opened(self, locations: Sequence[Tensor], noise: Sequence[Tensor | None]) -> Tensor:
        """z, or z·z_g, of locations with their noise."""
        first, *others = (self.gate(a, n) for a, n in zip(locations, noise, strict=True))
        return first * others[0] if others else first


class _Added(torch.autograd.Function):
    """θ + z·w, or θ + z·z_g·w, whose backward gives ∂L/∂θ to w as it is (see `GatedDeltas`)."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, gates: _Gates, w: Tensor, *locations: Tensor) -> Tensor:
        flat, differences, (entries, *tensor) = current.reshape(-1), w.view(-1), locations
        found = torch.empty_like(flat)
        for part, noise in gates.noise(locations):
            z = gates.opened([entries.view(-1)[part], *tensor], noise)
            torch.add(flat[part], (z * differences[part]).to(flat.dtype), out=found[part])
        ctx.dtype, ctx.others = w.dtype, len(locations)
        return found.view(current.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return (gradient, None, gradient.to(ctx.dtype), *(None for _ in range(ctx.others)))


class GatedDeltas(TensorDeltas):
    """θ = θ₀ + z·w for each of several tensors, z the gates of a location a for each entry; with `grouped`
    θ₀ + z·z_g·w, z_g the gate of a location for each tensor.

    w starts at zero and all locations at `location`. Noise is drawn by `draw` alone and acts until the next
    one; without noise gates are those of u = ½.

    Of a step on a whole backbone nothing is kept that can be made again: a draw is seeds, and the gates of
    some entries at a time are made of them in the forward, and once more for the gradients. These are all
    functions of ∂L/∂θ, which a backward leaves in the place of the gradient of w; `complete_gradients` makes
    those of w and of the locations of it. (By autograd alone noise, s, s', z, the change and P(z > 0) would
    be kept, each of the size of the backbone, and two gradients in place of one while there are activations.)
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
        self._seeds: dict[str, tuple[int, ...]] = {}

    @property
    def _held(self) -> tuple[nn.ParameterDict, ...]:
        return self.locations, self.shared

    def draw(self) -> None:
        """Draw every gate anew."""
        each = 1 + bool(len(self.shared))
        seeds = iter(torch.randint(_SEEDS, (each * len(self.locations),), device="cpu").tolist())
        self._seeds = {key: tuple(next(seeds) for _ in range(each)) for key in self.locations}

    def all_locations(self) -> list[nn.Parameter]:
        """a of every entry, then of every tensor where those have some."""
        return [a for held in self._held for a in held.parameters()]

    def differences(self) -> list[nn.Parameter]:
        """w of every tensor."""
        return list(self.values.parameters())

    def _of(self, name: str, *, drawn: bool) -> tuple[_Gates, list[Tensor]]:
        """A tensor's gates, and the locations of its entries and of itself."""
        key = self._key(name)
        seeds = self._seeds.get(key, ()) if drawn else ()
        return _Gates(self.gate, seeds), [held[key] for held in self._held if key in held]

    def added_to(self, name: str, current: Tensor, *, drawn: bool = False) -> Tensor:
        """`current` with z·w of a tensor added, in its dtype; `drawn` for the gates of the latest draw."""
        gates, locations = self._of(name, drawn=drawn)
        return cast(Tensor, _Added.apply(current, gates, self[name], *locations))  # type: ignore[no-untyped-call]

    def change(self, name: str) -> Tensor:
        """z·w of a tensor at u = ½, without gradients."""
        with torch.no_grad():
            return self.added_to(name, torch.zeros_like(self[name]))

    def complete_gradients(self, penalty: float = 0.0, joint: Joint = "sum") -> None:
        """After a backward in the gates of the latest draw: give w and the locations their gradients, those
        of `penalty` times the `expected` number of open gates added."""
        for name in self.names:
            gates, locations = self._of(name, drawn=True)
            if self[name].grad is not None or penalty:
                _complete(gates, [self[name], *locations], penalty, joint)

    @torch.no_grad()
    def expected(self, joint: Joint = "sum") -> Tensor:
        """Σ P(z > 0) over entries and tensors; or, with `product`, Σ P(z > 0)·P(z_g > 0) over entries, which
        is how many are expected to differ. Without a gradient: `complete_gradients` adds it."""
        entries = {key: self._sum(a) for key, a in self.locations.items()}
        tensors = {key: self._sum(a) for key, a in self.shared.items()}
        if joint == "product" and tensors:
            return torch.stack([entries[key] * tensors[key] for key in entries]).sum()
        return torch.stack([*entries.values(), *tensors.values()]).sum()

    def _sum(self, location: Tensor) -> Tensor:
        return torch.stack([self.gate.open(part).sum() for part in location.view(-1).split(_PIECE)]).sum()


def _complete(gates: _Gates, held: Sequence[Tensor], penalty: float, joint: Joint) -> None:
    """The gradients of one tensor's w, a and, where it has one, a_g: of ∂L/∂θ in the place of that of w, or
    of the penalty alone."""
    (w, *locations), upstream = held, held[0].grad
    found = [upstream, *(torch.zeros_like(a) for a in locations)]
    for part, noise in gates.noise(locations):
        # Entries one after the other; a_g is one for all of them.
        leaves = [p.detach().view(-1)[part] if i < 2 else p.detach() for i, p in enumerate(held)]
        own = [leaf.requires_grad_() for leaf in leaves]
        sums = []
        with torch.enable_grad():
            if upstream is not None:
                sums.append((gates.opened(own[1:], noise) * own[0] * upstream.view(-1)[part]).sum())
            if penalty:
                sums.append(penalty * _expected(gates.gate, own[1:], joint, share=len(own[0]) / w.numel()))
            total = torch.stack(sums).sum()
        for i, g in enumerate(torch.autograd.grad(total, own, allow_unused=True)):
            into = found[i]
            if into is None or g is None:
                continue
            if i == 0:
                into.view(-1)[part] = g
            else:
                (into.view(-1)[part] if i == 1 else into).add_(g)
    for location, gradient in zip(locations, found[1:], strict=True):
        location.grad = gradient


def _expected(gate: HardConcrete, locations: Sequence[Tensor], joint: Joint, share: float) -> Tensor:
    """The expected number of open gates of some of a tensor's entries, `share` of all, and of its own."""
    entries, *tensor = (gate.open(a).sum() for a in locations)
    if not tensor:
        return entries
    return entries * tensor[0] if joint == "product" else entries + share * tensor[0]


class DiffPruningConfig(SearchConfig):
    """Options of both variants of diff pruning.

    `penalty` and `location_learning_rate` are those of a search of 3,207 steps or more, and larger in a
    shorter one (`shortened`): with λ = 1.25e-7 the penalty's gradient is below Adam's ε, so that no gate
    would leave 1 in the first 158 steps.
    """

    penalty: float = Field(
        default=1.25e-7, ge=0, le=1, description="λ, of each gate that is open, in a search of 3,207 steps"
    )
    low: float = Field(default=-1.5, ge=-100, lt=0, description="l, to which gates are stretched below")
    high: float = Field(default=1.5, gt=1, le=100, description="r, to which they are stretched above")
    location: float = Field(default=5.0, ge=-20, le=20, description="a at first; large ones are open")
    location_learning_rate: float = Field(
        default=0.1, gt=0, le=10, description="of a, at all steps of a search of 3,207 steps"
    )
    search_rate: float = Field(
        default=0.2, gt=0, le=10, description="learning rate of w, times that of v, which is the recipe's"
    )


class GatedEntries(SearchedEntries):
    """The entries whose gated change is largest at the end of a search with an L0 penalty."""

    def __init__(
        self,
        tensors: Sequence[TensorSpec],
        k: int,
        config: DiffPruningConfig,
        *,
        grouped: bool = False,
        joint: Joint = "sum",
    ) -> None:
        super().__init__(tensors, k, config.search, rewinds=False)
        self.config, self._grouped, self._joint = config, grouped, joint
        self._penalty = config.penalty

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

    def applied(self, name: str, current: Tensor) -> Tensor:
        assert self.gated is not None
        return self.gated.added_to(name, current, drawn=self.training)

    def scores(self, name: str) -> Tensor:
        """|z·w|; of closed gates |w|, made so small that they follow the others."""
        assert self.gated is not None
        change, w = self.change(name).abs(), self.gated[name].detach().abs()
        return torch.where(change > 0, change, _CLOSED * w)

    def start(self, name: str) -> Tensor:
        """w without its gates."""
        assert self.gated is not None
        return self.gated[name]

    def before_step(self, step: int, total: int) -> None:
        """Draw the gates, which all rows of a step share; `total` says how long the search is, and so λ."""
        if self.gated is not None:
            self._penalty = self.config.penalty * shortened(_STEPS, self.share * total)
            self.gated.draw()

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """λ times the expected number of open gates, whose gradient comes after the backward."""
        gated, penalty = self.gated, self._penalty
        return penalty * gated.expected(self._joint) if gated is not None and penalty else None

    def after_backward(self, step: int, total: int) -> None:
        """Make the gradients of w and a of what the backward has left."""
        if self.gated is not None:
            self.gated.complete_gradients(self._penalty, self._joint)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """w at a share of the recipe's rate; the locations at a constant rate of their own, without decay and
        clipped by themselves."""
        if self.gated is None:
            return super().parameter_groups()
        locations = {
            "name": "locations",
            "params": self.gated.all_locations(),
            "lr": self.config.location_learning_rate,
            "meant_for": _STEPS,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
            "clip": "group",
        }
        return [{"params": self.gated.differences(), "lr_factor": self.config.search_rate}, locations]
