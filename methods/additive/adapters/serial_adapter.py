"""The serial (bottleneck) adapter, Houlsby's, Pfeiffer's and Bapna's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import Call, Linear, MethodConfig, Narrow, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import Activation, Bottleneck, Bottlenecks, NormedBottleneck, TensorDeltas, norms_around
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["SerialAdapter"]

Variant = Literal["houlsby", "pfeiffer", "bapna", "hyperformer"]


class SerialAdapterModule(Bottlenecks[Bottleneck]):
    """A bottleneck for each site, fed by the sub-layer's output, and deltas of the norms that it trains."""

    def __init__(
        self, children: dict[str, Bottleneck], norms: Sequence[TensorSpec], scale: float, variant: Variant
    ) -> None:
        super().__init__(children)
        self.norms = TensorDeltas(norms)
        self.scale = scale
        self.variant = variant

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the adapter is fed: y (Houlsby, Bapna, Hyperformer) or u = norm(y + residual) (Pfeiffer;
        pre-norm: no norm), with y as the layer adds it."""
        if self.variant != "pfeiffer":
            return y
        if call.residual is None:
            raise CompositionError(
                f"serial_adapter (variant pfeiffer) reads the residual stream around {site}, which this "
                "backbone does not offer; variant houlsby reads the sub-layer's output alone."
            )
        added = y if site.multiplier == 1 else y * site.multiplier
        u = added.to(call.residual.dtype) + call.residual
        return (u if call.norm is None else call.norm(u)).to(y.dtype)

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](self.reads(site, x, y, call))
        return out if call.gated or self.scale == 1 else out * self.scale

    def parts(self) -> dict[str, list[nn.Parameter]]:
        own = [child.norm for child in self.children_by_site() if isinstance(child, NormedBottleneck)]
        norms = [p for norm in (*own, self.norms) for p in norm.parameters()]
        return {**super().parts(), "norms": norms}

    def decays(self) -> dict[nn.Parameter, float]:
        """Gains of norms of its own do nothing at 1."""
        return {c.norm.weight: 1.0 for c in self.children_by_site() if isinstance(c, NormedBottleneck)}

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.norms.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.norms.apply_to(str(target.tensor), current)


@register("serial_adapter")
class SerialAdapter:
    """z' = z + s·f(u), f(u) = φ(u·W_dnᵀ + b_dn)·W_upᵀ + b_up; z is a sub-layer's output, before the residual.

    `houlsby` (2019, arXiv:1902.00751): u = z, after attention, cross-attention and FFN; weights from a normal
    of std 1e-3 truncated at two deviations, GELU; gains and biases of all norms of its layers are trained too
    (`train_norms`), as zero-initialised deltas. So is the norm of the embeddings, by the entry that sits in
    the first layer (`embeddings_norm`): the authors' code trains every LayerNorm of BERT (adapter-bert,
    modeling.py). Embeddings without a norm (GPT-2, Llama, T5, ViT) have nothing to train there. `pfeiffer`
    (AdapterFusion 2021, arXiv:2005.00247), the default: after the FFN only, u = LN(z + h) with h the residual
    stream and LN the layer's own frozen norm, u = z + h on pre-norm layers; N(0, 0.02), ReLU. `bapna` (2019,
    arXiv:1909.08478, as AdapterSoup's authors have it, arXiv:2302.07027): after the FFN only, u = LN(z) with
    a LayerNorm of its own that is trained; N(0, 0.02), ReLU. Of AdapterSoup there is no code: this is that of
    the same author's paper before it (hierarchical-domain-adaptation, modeling_gpt2.py), whose norm is one
    for all adapters of a layer. `hyperformer` (2021, arXiv:2106.04489): what `hyperformer` is once it is
    written out for one task, after attention and FFN, f followed by a LayerNorm of its own, tanh form of
    GELU, N(0, 0.02) here, with the norms trained that `hyperformer` trains. Biases start at zero. Close to
    the identity at init, not exactly (`hyperformer`: not at all). Behind a gate the gate takes the place of
    s. Not mergeable.

    W_dn (m × d), W_up (d × m): 2dm + m + d parameters for each site (2dm without biases), and those of the
    trained norms: 2·2d in a layer of BERT and 2d in its embeddings, 2d in a layer of Llama (RMSNorm has no
    bias), 2d for each site of `bapna` and `hyperformer`.
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}),
        sites=("attention", "cross_attention", "ffn"),
        default_sites=("ffn",),
        stochastic=True,
        rowwise=True,
        identity=False,
    )
    size_field: ClassVar[str] = "bottleneck"
    part_names: tuple[str, ...] = ("down", "up", "norms")
    narrow: ClassVar[Narrow] = {"bottleneck": Bottleneck.by_width}
    linear_in: Linear = Bottleneck.linear_in

    class Config(MethodConfig):
        variant: Variant = "pfeiffer"
        bottleneck: int = Field(default=64, ge=1, le=16384, description="m")
        scale: float = Field(default=1.0, gt=0, le=100, description="s")
        activation: Activation | None = Field(
            default=None, description="default: gelu (houlsby), gelu_tanh (hyperformer), relu"
        )
        bias: bool = True
        dropout: float = Field(default=0.0, ge=0, lt=1, description="after the activation")
        train_norms: bool | None = Field(
            default=None, description="default: in variants houlsby and hyperformer"
        )
        embeddings_norm: bool = Field(
            default=True, description="with trained norms, that of the embeddings too"
        )

        @model_validator(mode="after")
        def _others_sit_on_ffn(self) -> SerialAdapter.Config:
            others = [s for s in self.sites or () if s != "ffn"]
            if self.variant in ("pfeiffer", "bapna") and others:
                raise ValueError(
                    f"variant {self.variant!r} sits on 'ffn' only, but got sites {others}; 'houlsby' takes "
                    "them"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        trains_norms = config.variant in ("houlsby", "hyperformer")
        if config.train_norms is not None:
            trains_norms = config.train_norms
        if trains_norms or config.variant == "hyperformer":  # whose norm comes last
            self.linear_in = {}
        if not trains_norms:
            own_norms = config.variant in ("bapna", "hyperformer")
            self.part_names = ("down", "up", "norms") if own_norms else ("down", "up")
            self.traits = replace(self.traits, ways=frozenset({"hook"}))

    @property
    def default_sites(self) -> tuple[str, ...]:
        """Where this variant sits when the recipe names no sites."""
        if self.config.variant == "hyperformer":
            return ("attention", "ffn")
        return self.traits.sites if self.config.variant == "houlsby" else self.traits.default_sites

    def _norms(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        if "weight" not in self.traits.ways:
            return []
        if self.config.variant == "hyperformer":
            return norms_around(sites, spec)
        layers = {(s.stack, s.layer) for s in sites}
        norms = [t for t in spec.tensors if t.role in {"norm_weight", "norm_bias"}]
        # They make the input of the first layer; so several entries, each in its layers, train them once.
        first = [t for t in norms if t.site == "embeddings" and (t.stack, 0) in layers]
        return [
            *(first if self.config.embeddings_norm else ()),
            *(t for t in norms if (t.stack, t.layer) in layers),
        ]

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of a part at a site; `None` for a part that is no projection."""
        return Bottleneck.part_size(site.in_features, self.config.bottleneck, part, bias=self.config.bias)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        unknown = next((s for s in sites if s.pre_norm is None), None)
        if c.variant == "pfeiffer" and unknown is not None:
            raise CompositionError(
                f"serial_adapter (variant pfeiffer) reads the residual stream around {unknown}, and "
                f"{spec.family!r} has no "
                "site map that says where its norms are; use variant houlsby, or parallel_adapter."
            )
        n = sum(Bottleneck.size(s.in_features, c.bottleneck, bias=c.bias) for s in sites)
        n += sum(2 * s.in_features for s in sites if c.variant in ("bapna", "hyperformer"))
        n += sum(t.size for t in self._norms(sites, spec))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        houlsby = c.variant == "houlsby"
        kinds: dict[str, Callable[..., Bottleneck]] = {
            "bapna": NormedBottleneck,
            "hyperformer": partial(NormedBottleneck, after=True),
        }
        bottleneck = kinds.get(c.variant, Bottleneck)
        activation: Activation = {"houlsby": "gelu", "hyperformer": "gelu_tanh"}.get(c.variant, "relu")  # type: ignore[assignment]
        adapters = {
            s.key: bottleneck(
                s.in_features,
                c.bottleneck,
                activation=c.activation or activation,
                init="houlsby" if houlsby else "bert",
                bias=c.bias,
                dropout=c.dropout,
            )
            for s in sites
        }
        return SerialAdapterModule(adapters, self._norms(sites, spec), c.scale, c.variant)
