"""A trainable dense change of small backbone tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["TensorDeltas", "norms_around"]


class TensorDeltas(nn.Module):
    """θ = θ₀ + v for each of several named tensors, v of the tensor's shape and zero at init.

    Training v is training θ itself, except that weight decay pulls θ towards its pretrained value instead of
    zero.
    """

    def __init__(self, tensors: Iterable[TensorSpec]) -> None:
        super().__init__()
        shapes = {t.name: t.shape for t in tensors}
        self.names = tuple(shapes)
        self.values = nn.ParameterDict({self._key(n): torch.zeros(s) for n, s in shapes.items()})

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "-")

    def __getitem__(self, name: str) -> nn.Parameter:
        return cast(nn.Parameter, self.values[self._key(name)])

    def apply_to(self, name: str, current: Tensor) -> Tensor:
        """`current` plus this tensor's v, in the dtype of `current`."""
        return current + self[name].to(current.dtype)


def norms_around(sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
    """Gains and biases of the norms of the layers that sites are in; where these are all layers, of those
    outside of them as well (an embedding's, a final norm)."""
    layers = {(s.stack, s.layer) for s in sites}
    everywhere = all((s.name, i) in layers for s in spec.stacks for i in range(s.layers))
    norms = [t for t in spec.tensors if t.role in {"norm_weight", "norm_bias"}]
    return [t for t in norms if (t.stack, t.layer) in layers or (everywhere and t.layer is None)]
