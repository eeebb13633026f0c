"""A LoRA that comes near what a hybrid does where that is no change of a weight: least squares on rows.

Each batch runs through the model twice: with the hybrid, which leaves the output y* of every map that
something is to be fitted for, and without it, with the changes of weights that are exact. In the second run
every such map hands on y* in place of its own y, so that all maps are fed what the hybrid feeds them, and the
errors of one do not reach the next. ΔW·x ≈ y* − y is then solved for each map by itself.

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

__all__ = ["Moments", "exchanged", "fitted", "moments"]

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
    """The moments of the maps `paths`, which are those with something left and others whose inputs matter.

    Args:
        weights: the base model's tensors with the exact changes in them, by name.
        batches: of text, in which `attention_mask` tells padding.
        run: a forward of the model.

    Raises:
        NotServable: what ends a region is not what the region yields.
    """
    found = {}
    rows = list(batches)
    for part in _parts(hybrid, changes, paths):
        gathered = {path: Moments.of(*_shape(hybrid, changes, path)) for path in part}
        for batch in rows:
            _one_batch(hybrid, changes, weights, gathered, batch, run)
        found.update(gathered)
    return found


def _shape(hybrid: Hybrid, changes: MapChanges, path: str) -> tuple[int, int]:
    """(in, out) of a whole map."""
    weight = hybrid.injection.base.get_parameter(f"{path}.weight")
    n_out, n_in = weight.shape[::-1] if changes.places[path].transposed else weight.shape
    return int(n_in), int(n_out)


def _parts(hybrid: Hybrid, changes: MapChanges, paths: Sequence[str]) -> Iterator[list[str]]:
    """The maps in parts whose moments fit into memory."""
    part: list[str] = []
    size = 0
    for path in paths:
        n_in, n_out = _shape(hybrid, changes, path)
        size += 8 * n_in * (n_in + n_out)
        if part and size > _BYTES:
            yield part
            part, size = [], 8 * n_in * (n_in + n_out)
        part.append(path)
    if part:
        yield part


@torch.no_grad()
def _one_batch(
    hybrid: Hybrid,
    changes: MapChanges,
    weights: Mapping[str, Tensor],
    gathered: Mapping[str, Moments],
    batch: Batch,
    run: Callable[[Batch], object],
) -> None:
    base: nn.Module = hybrid.injection.base
    wanted: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path, rest in changes.rest.items():
            hooks.callback(base.get_submodule(rest.seen).register_forward_hook(_keep(wanted, path)).remove)
        run(batch)
    with hybrid.bare(), exchanged(base, weights), ExitStack() as hooks:
        for path in {*changes.rest, *gathered}:
            hook = _replace(wanted.get(path), gathered.get(path), batch)
            hooks.callback(base.get_submodule(path).register_forward_hook(hook).remove)
        for path, rest in changes.rest.items():
            if rest.seen != path:
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


def _replace(wanted: Tensor | None, found: Moments | None, batch: Batch) -> Callable[..., Tensor]:
    """Take in what a map sees, and hand on what it yields with the hybrid."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        handed = output if wanted is None else wanted
        if found is not None:
            x, y, before = (t.reshape(-1, t.shape[-1]) for t in (args[0], handed, output))
            real = _real(batch, len(x))
            x, y, before = (t[real].float() for t in (x, y, before))
            found.add(x, y - before, _weights(y))
        return handed

    return hook


def _weights(y: Tensor) -> Tensor:
    """What positions count, (n,), by what they yield (n, out): 1, and less where that is longer than the
    median."""
    size = y.pow(2).sum(1)
    if not len(size):
        return size
    middle = size.median()
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
