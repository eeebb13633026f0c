"""A LoRA that comes near what a hybrid does where that is no change of a weight: least squares on rows.

Each batch runs through the model twice: with the hybrid, which leaves the output y* of every map that
something is to be fitted for, and without it, with the changes of weights that are exact. In the second run
every such map hands on y* in place of its own y, so that all maps are fed what the hybrid feeds them, and the
errors of one do not reach the next. ΔW·x ≈ y* − y is then solved for each map by itself.

That LoRA feeds its maps something else than the hybrid does, as its errors add up from layer to layer. So the
rows run through it once more, and each map is fitted anew to yield y* both from what the hybrid feeds it and
from what the first LoRA does.

Positions are weighted: what follows is normed, so that an error counts by its share of what a map yields.
Decoders make the first token of a text hundreds of times as large as the others (Sun et al. 2024,
arXiv:2402.17762); unweighted, its error would be all that is made small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autopeft.export.lora_factors import MapChanges, NotServable

if TYPE_CHECKING:
    from autopeft.hybrid import Hybrid

__all__ = ["Moments", "add_moments", "exchanged", "fitted", "in_parts", "moments"]

_BYTES = 2 << 30  # of the moments that are gathered in one pass
_RIDGE = 1e-3  # of the inputs' mean square
_ALIKE = 1e-3
_LEAST = 1e-6  # weight, where there is no position

Batch = Mapping[str, Tensor]


@dataclass
class Moments:
    """Weighted sums over the positions of text that a map has seen.

    Attributes:
        second: Σ w·x·xᵀ (in, in).
        cross: Σ w·(y* − y)·xᵀ (out, in).
        weight: Σ w.
    """

    second: Tensor
    cross: Tensor
    weight: float = 0.0

    @classmethod
    def of(cls, n_in: int, n_out: int) -> Moments:
        """Without positions."""
        return cls(
            torch.zeros(n_in, n_in, dtype=torch.float64), torch.zeros(n_out, n_in, dtype=torch.float64)
        )

    def add(self, x: Tensor, change: Tensor, weight: Tensor) -> None:
        """Take in positions, (n, in) and (n, out), with weights (n,)."""
        weighted = weight[:, None] * x
        self.second += (x.t() @ weighted).double().cpu()
        self.cross += (change.t() @ weighted).double().cpu()
        self.weight += float(weight.sum())

    def covariance(self) -> Tensor:
        """The inputs' second moment, made positive definite by a small multiple of the identity."""
        mean = self.second / max(_LEAST, self.weight)
        ridge = max(_RIDGE * float(mean.diagonal().mean()), torch.finfo(torch.float32).tiny)
        return mean + ridge * torch.eye(len(mean), dtype=torch.float64)


def fitted(found: Moments) -> Tensor:
    """ΔW (out, in) of least squares, in fp32."""
    cross = found.cross / max(_LEAST, found.weight)
    root = torch.linalg.cholesky(found.covariance())
    return torch.cholesky_solve(cross.t(), root).t().float()


@contextmanager
def exchanged(base: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, parameters of the base model have these values."""
    before = {name: base.get_parameter(name).data for name in tensors}
    try:
        for name, value in tensors.items():
            parameter = base.get_parameter(name)
            parameter.data = value.to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, data in before.items():
            base.get_parameter(name).data = data


def moments(
    hybrid: Hybrid,
    changes: MapChanges,
    weights: Mapping[str, Tensor],
    paths: Sequence[str],
    batches: Iterable[Batch],
    run: Callable[[Batch], object],
) -> dict[str, Moments]:
    """The moments of the maps `paths` (with something left, or others whose inputs matter), where they are
    fed what the hybrid feeds them.

    Args:
        weights: the base model's tensors with the exact changes in them, by name.
        batches: of text, in which `attention_mask` tells padding.
        run: a forward of the model.

    Raises:
        NotServable: what ends a region is not what the region yields.
    """
    found = {path: Moments.of(*_shape(hybrid, changes, path)) for path in paths}
    for batch in batches:
        _one_batch(hybrid, changes, weights, found, batch, run, None)
    return found


def add_moments(
    hybrid: Hybrid,
    changes: MapChanges,
    weights: Mapping[str, Tensor],
    found: Mapping[str, Moments],
    first: Mapping[str, Tensor],
    batches: Iterable[Batch],
    run: Callable[[Batch], object],
) -> None:
    """Add what the maps see where they are fed what a first fit feeds them.

    Args:
        weights: the base model's tensors with the exact changes and the first fit in them, by name.
        found: the moments that are added to, by path.
        first: ΔW (out, in) of the first fit, by path.
    """
    for batch in batches:
        _one_batch(hybrid, changes, weights, found, batch, run, first)


def in_parts(hybrid: Hybrid, changes: MapChanges, paths: Sequence[str]) -> Iterator[list[str]]:
    """Maps in parts whose moments fit into memory."""
    part: list[str] = []
    size = 0
    for path in paths:
        n_in, n_out = _shape(hybrid, changes, path)
        more = 8 * n_in * (n_in + n_out)
        if part and size + more > _BYTES:
            yield part
            part, size = [], 0
        part.append(path)
        size += more
    if part:
        yield part


def _shape(hybrid: Hybrid, changes: MapChanges, path: str) -> tuple[int, int]:
    """(in, out) of a whole map."""
    weight = hybrid.injection.base.get_parameter(f"{path}.weight")
    n_out, n_in = weight.shape[::-1] if changes.places[path].transposed else weight.shape
    return int(n_in), int(n_out)


@torch.no_grad()
def _one_batch(
    hybrid: Hybrid,
    changes: MapChanges,
    weights: Mapping[str, Tensor],
    gathered: Mapping[str, Moments],
    batch: Batch,
    run: Callable[[Batch], object],
    first: Mapping[str, Tensor] | None,
) -> None:
    """Take in one batch; without a `first` fit every map hands on what it yields with the hybrid."""
    base: nn.Module = hybrid.injection.base
    wanted: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path, rest in changes.rest.items():
            hooks.callback(base.get_submodule(rest.seen).register_forward_hook(_keep(wanted, path)).remove)
        run(batch)
    with hybrid.bare(), exchanged(base, weights), ExitStack() as hooks:
        for path in {*changes.rest, *gathered} if first is None else gathered:
            hook = _take(
                wanted.get(path), gathered.get(path), batch, None if first is None else first.get(path)
            )
            hooks.callback(base.get_submodule(path).register_forward_hook(hook).remove)
        for path, rest in changes.rest.items():
            if rest.seen != path and first is None:
                check = _same(wanted[path], rest.what)
                hooks.callback(base.get_submodule(rest.seen).register_forward_hook(check).remove)
        run(batch)


def _output(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _keep(kept: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        kept[path] = _output(output)

    return hook


def _take(
    wanted: Tensor | None, found: Moments | None, batch: Batch, first: Tensor | None
) -> Callable[..., Tensor]:
    """Take in what a map sees. Without a `first` fit ΔW it hands on what it yields with the hybrid."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        better = output if wanted is None else wanted
        if found is not None:
            x, y, before = (t.reshape(-1, t.shape[-1]) for t in (args[0], better, output))
            real = _real(batch, len(x))
            x, y, before = (t[real].float() for t in (x, y, before))
            if first is not None:
                before = before - x @ first.to(x).t()
            found.add(x, y - before, _weights(y))
        return output if first is not None else better

    return hook


def _weights(y: Tensor) -> Tensor:
    """What positions count, (n,), by what they yield (n, out): 1, and less where that is longer than the
    median."""
    size = y.pow(2).sum(1)
    some = size[size > 0]
    if not len(some):
        return torch.ones_like(size)
    middle = some.median()
    return torch.where(size > middle, middle / size, 1.0)


def _real(batch: Batch, positions: int) -> Tensor | slice:
    """Which of a batch's positions, row after row, are text and no padding."""
    masks = (batch.get(name) for name in ("attention_mask", "decoder_attention_mask"))
    mask = next((m for m in masks if m is not None and m.numel() == positions), None)
    return slice(None) if mask is None else mask.reshape(-1).bool()


def _same(wanted: Tensor, what: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen = _output(output)
        if seen.shape != wanted.shape or (seen - wanted).abs().max() > _ALIKE * (1 + wanted.abs().max()):
            raise NotServable(
                f"{what} acts on what a {type(module).__name__} yields, which is not what its last linear "
                "map yields, so that no LoRA can come near it."
            )

    return hook
