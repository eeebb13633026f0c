"""SSF: scaling and shifting features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import (
    Call,
    DecayTarget,
    Linear,
    MethodConfig,
    ParameterCount,
    Traits,
    WeightTarget,
    register,
)
from autopeft.nn import PerSite
from autopeft.spec import LINEAR_SITES, NORM_SITES, BackboneSpec, Site, TensorSpec

__all__ = ["SSF"]

_PARTS = tuple(name for name in LINEAR_SITES if name != "qkv")  # a fused projection is scaled part by part


class ScaleShift(nn.Module):
    """γ and β of one output, (width): γ from N(1, 0.02), β from N(0, 0.02); without a `shift` β is zero."""

    def __init__(self, width: int, *, shift: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(width))
        self.shift = nn.Parameter(0.02 * torch.randn(width)) if shift else None

    def of_features(self, y: Tensor) -> Tensor:
        """What is added to y (…, width): (γ − 1) ⊙ y + β."""
        change = (self.scale - 1) * y
        return change if self.shift is None else change + self.shift

    def of_rows(self, weight: Tensor, offset: float = 0.0) -> Tensor:
        """What is added to a weight (width, …) for outputs γ times as large, where what multiplies is the
        weight and `offset` (see `TensorSpec`)."""
        more = (self.scale - 1).view(-1, *[1] * (weight.ndim - 1))
        change = more * weight
        return change + more * offset if offset else change


class SSFModule(PerSite[ScaleShift]):
    """γ and β for each site, and for each module outside the layers, which act on its weight and bias."""

    def __init__(self, children: dict[str, ScaleShift], outer: Sequence[TensorSpec]) -> None:
        super().__init__(children)
        self.outer_tensors = tuple(t.name for t in outer)
        self._offsets = {t.name: t.offset for t in outer}
        widths = {_owner(t.name): t.shape[0] for t in outer}
        biased = {_owner(t.name) for t in outer if t.name.endswith(".bias")}
        self.outer = nn.ModuleDict({o: ScaleShift(w, shift=o in biased) for o, w in widths.items()})

    def _all(self) -> list[ScaleShift]:
        return [*self.children_by_site(), *(cast(ScaleShift, own) for own in self.outer.values())]

    def parts(self) -> dict[str, list[nn.Parameter]]:
        shifts = [own.shift for own in self._all() if own.shift is not None]
        return {"scale": [own.scale for own in self._all()], "shift": shifts}

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """γ multiplies what the backbone yields: towards one; β is added to it: towards zero."""
        return {own.scale: 1.0 for own in self._all()}

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self[site].of_features(y)

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.outer_tensors]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        name = str(target.tensor)
        own = cast(ScaleShift, self.outer[_owner(name)])
        if name.endswith(".bias"):
            change = own.of_features(original)
        else:
            change = own.of_rows(original, self._offsets[name])
        return current + change.to(current.dtype)

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = self[site]
        shifted = own.shift if bias is None else bias + own.of_features(bias)
        return weight + own.of_rows(weight), shifted


def _owner(tensor: str) -> str:
    """The module that a tensor belongs to, as a key without dots."""
    return tensor.rpartition(".")[0].replace(".", "-")


_LINEAR_IN: Linear = {"scale": 1.0, "shift": 0.0}


@register("ssf")
class SSF:
    """y' = γ ⊙ y + β after every linear map and every norm; y is what the map or norm yields.

    Lian et al. 2022, arXiv:2210.08823. γ is N(1, 0.02), β N(0, 0.02), as in the authors' code: close to the
    identity, not exactly; weight decay pulls γ to one, β to zero. By default it sits at all linear maps and
    norms of the layers; that of the FFN's first map comes before the activation. An entry that does so in all
    layers is the whole method, and takes in what lies outside of the layers too (`outer`): norms of
    embeddings, final norms and the patch embedding of images, for which γ and β act on the pretrained weight
    and bias: the same as long as no other method alters these. A final norm without a bias (RMSNorm) is
    scaled only. Left out are pooler and head. On families without a site map the norms have no sites and
    nothing lies outside.

    In a `sum` γ scales what the map yields (with what BitFit or DoRA make of its weights), not what others
    add to that; to scale what LoRA adds as well, put `lora` before `ssf` into a `chain`. Behind a gate
    `outer` must be false. Mergeable: W ← diag(γ)·W, b ← γ ⊙ b + β, gain and bias of a norm alike; a map
    without a bias gets one, and the β of a norm without a bias goes into the biases of the maps that read it
    (b ← b + W·β). 2·out parameters for each map or norm: 2·(7d + d_ff) in a layer of ViT or BERT; 205,824
    for ViT-B.
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}),
        sites=(*LINEAR_SITES, *NORM_SITES),
        default_sites=(*_PARTS, *NORM_SITES),
        mergeable=True,
        shifts=True,
        rowwise=True,
        identity=False,
    )

    part_names = ("scale", "shift")
    linear_in: Linear = _LINEAR_IN

    class Config(MethodConfig):
        outer: bool = Field(
            default=True, description="with all default sites of all layers, also what lies outside of them"
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.outer:  # what lies outside of the layers is at no site
            self.linear_in = {}
        else:
            self.traits = replace(self.traits, ways=frozenset({"hook"}))

    def _outer(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        """Weights and biases of the norms and of the patch embedding outside the layers."""
        whole = {s.key for s in spec.sites if s.name in self.traits.default_sites}
        if not self.config.outer or spec.generic or not whole <= {s.key for s in sites}:
            return []
        outside = [t for t in spec.tensors if t.layer is None and t.site != "pooler"]
        convolutions = {_owner(t.name) for t in outside if t.role == "weight" and len(t.shape) > 2}
        norms = {_owner(t.name) for t in outside if t.role == "norm_weight"}
        return [t for t in outside if _owner(t.name) in norms | convolutions]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(2 * s.out_features for s in sites)
        n += sum(t.shape[0] for t in self._outer(sites, spec))  # γ with the weight, β with the bias
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        scales = {s.key: ScaleShift(s.out_features) for s in sites}
        return SSFModule(scales, self._outer(sites, spec))
