"""HiWi: an adapter that reads pretrained biases or weights and is hidden in them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import Activation, Bottleneck, PerSite
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["HiWi"]

_Altered = tuple[WeightTarget, tuple[int, ...]]


class HiddenAdapter(nn.Module):
    """Δ(θ₀) = f(θ₀·Dᵀ)·Uᵀ for one tensor θ₀ (…, n), D (r × n), U (n × r); once deployed, a parameter."""

    adapter: Bottleneck | None
    delta: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], rank: int, activation: Activation) -> None:
        super().__init__()
        self.shape = shape
        self.adapter = Bottleneck(shape[-1], rank, activation=activation, init="lora", bias=False)
        self.delta = None
        self.original: Tensor | None = None  # the backbone's own, which deploy() reads

    def forward(self, original: Tensor) -> Tensor:
        if self.adapter is None:
            return cast(Tensor, self.delta)
        # The backbone's tensor is a constant, whatever it requires.
        change: Tensor = self.adapter(original.detach().to(self.adapter.up.weight))
        return change

    def deploy(self) -> None:
        """Keep Δ as a parameter of its own and drop the adapter.

        Raises:
            MethodError: the adapter was trained, but never saw the backbone.
        """
        if self.adapter is None:
            return
        up = self.adapter.up.weight
        with torch.no_grad():
            if self.original is not None:
                delta = self(self.original).clone(memory_format=torch.contiguous_format)
            elif not up.any():
                delta = up.new_zeros(self.shape)
            else:
                raise MethodError("hiwi can only be deployed on the backbone that it reads; attach it first.")
        self.delta, self.adapter, self.original = nn.Parameter(delta), None, None


class HiWiModule(PerSite[HiddenAdapter]):
    """An adapter for each site's bias or weight."""

    def __init__(self, children: dict[str, HiddenAdapter], targets: dict[str, WeightTarget]) -> None:
        super().__init__(children)
        self.targets = targets
        self._site_of = {target.key: site for site, target in targets.items()}
        self._zero: set[str] = set()

    def _child(self, target: WeightTarget) -> HiddenAdapter:
        return cast(HiddenAdapter, self.at[self._site_of[target.key]])

    def weight_targets(self) -> Sequence[WeightTarget]:
        return list(self.targets.values())

    def initialise(self, target: WeightTarget, weight: Tensor) -> None:
        """Keep the backbone's tensor in view (no copy): deploying needs it.

        Raises:
            MethodError: every tensor is zero, as in a model that was never pretrained: nothing would train.
        """
        child = self._child(target)
        child.original = weight if child.adapter is not None else None
        if weight.is_meta or weight.any():
            self._zero.discard(target.key)
            return
        self._zero.add(target.key)
        if len(self._zero) == len(self.targets):
            raise MethodError(
                f"hiwi reads {target.key} and its like, which are all zero in this model: f(D·0) = 0, so "
                "that nothing would ever train; load pretrained weights, or use bitfit."
            )

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        change: Tensor = self._child(target)(original)
        return current + change.to(current.dtype)

    def up_parameters(self) -> list[nn.Parameter]:
        adapters = [c.adapter for c in self.children_by_site() if c.adapter is not None]
        return [cast(nn.Parameter, adapter.up.weight) for adapter in adapters]

    def deploy(self) -> None:
        """Keep the changes of the backbone's tensors, drop the adapters that made them."""
        for child in self.children_by_site():
            child.deploy()


@register("hiwi")
class HiWi:
    """b = b₀ + U·f(D·b₀), and each row w of a weight alike; a tensor has its own D (r × n) and U (n × r).

    Liao et al. 2023, arXiv:2305.16742. The adapter reads the pretrained tensor, a constant, where others read
    activations, and never what other methods make of that tensor: the changes add, and in a chain of weights
    it comes first. A tensor that is zero stays so: f(D·0) = 0. `target: bias` takes the
    bias of each site (n = out), `weight` its (out, in) weight row by row (n = in; which way round is our
    choice). D is Kaiming-uniform (a = √5), U zero: the identity at init. Neither map has a bias: the paper's
    trained shares, 0.28 % at r = 4 and 1.11 % at r = 16, leave no room for one. f is GELU by default: the
    adapter of a bias only ever sees that bias, so a ReLU that is dead at the start stays dead.

    Backbones without biases are refused in bias mode. Mergeable. `deploy()` keeps the changes, which are free
    at inference, and drops the adapters. Deployed, whatever r: out for each bias, in·out for each weight.
    Trained: 2·r·n for each. RoBERTa-large on up and down: 122,880 deployed, 245,760·r trained. On weights the
    result is larger than what trains.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        sites=LINEAR_SITES,
        default_sites=("up", "gate_proj", "down"),
        mergeable=True,
        pretrained=True,
        gateable=False,
        remade=True,
    )
    size_field: ClassVar[str] = "rank"

    class Config(MethodConfig):
        rank: int = Field(default=4, ge=1, le=1024, description="r, the width of the adapters")
        target: Literal["bias", "weight"] = Field(default="bias", description="what the adapters read")
        activation: Activation = Field(default="gelu", description="f, between the two maps")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _targets(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[str, _Altered]:
        """What is altered at each site, and its shape.

        Raises:
            MethodError: bias mode, and no site has a bias, or one that the recipe names has none of its own.
        """
        if self.config.target == "weight":
            return {s.key: (WeightTarget(site=s), (s.out_features, s.in_features)) for s in sites}
        in_layers = [t for t in spec.tensors if t.role == "bias" and t.site and t.layer is not None]
        biases = {(t.stack, t.layer, t.site): t for t in in_layers}
        found: dict[str, _Altered] = {}
        for site in sites:
            bias = biases.get((site.stack, site.layer, site.name))
            if bias is not None:
                found[site.key] = WeightTarget(tensor=bias.name), bias.shape
        without = sorted({s.name for s in sites if s.key not in found})
        if not found or (without and self.config.sites is not None):
            have = ", ".join(sorted({str(t.site) for t in biases.values()})) or "none of its sites"
            raise MethodError(
                f"hiwi reads the bias of each site, and {spec.family!r} has none of its own at "
                f"{', '.join(without)}; biases are at: {have}. Use `target: weight`, or lora."
            )
        return found

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        shapes = [shape for _, shape in self._targets(sites, spec).values()]
        stored = sum(torch.Size(shape).numel() for shape in shapes)
        return ParameterCount(stored, sum(2 * self.config.rank * shape[-1] for shape in shapes))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        found = self._targets(sites, spec)
        children = {key: HiddenAdapter(shape, c.rank, c.activation) for key, (_, shape) in found.items()}
        return HiWiModule(children, {key: target for key, (target, _) in found.items()})
