"""The embedding adapter of CIAT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, Narrow, ParameterCount, Traits, register
from autopeft.nn import Activation, Bottleneck, Bottlenecks, NormedBottleneck
from autopeft.spec import BackboneSpec, Site

__all__ = ["EmbeddingAdapter"]


class EmbeddingAdapterModule(Bottlenecks[NormedBottleneck]):
    """A bottleneck for the embeddings of each stack."""

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](y)
        return out

    def parts(self) -> dict[str, list[nn.Parameter]]:
        norms = [p for child in self.children_by_site() for p in child.norm.parameters()]
        return {**super().parts(), "norms": norms}

    def decays(self) -> dict[nn.Parameter, float]:
        """Gains of norms do nothing at 1."""
        return {child.norm.weight: 1.0 for child in self.children_by_site()}


@register("embedding_adapter")
class EmbeddingAdapter:
    """e' = e + φ(LN(e)·W_dnᵀ + b_dn)·W_upᵀ + b_up; e are the embeddings of each stack.

    Zhu et al. 2021, arXiv:2104.08154 (CIAT), whose other adapters are `parallel_adapter`s beside attention
    and FFN (the recipe `ciat`). e is what the embedding layer yields: in the authors' Transformer before its
    dropout, with positions added. Where embeddings are tied to the output's, that stays as it is. LN (ε
    1e-6) is trained. W_dn (m × d) and W_up (d × m) are Glorot-uniform, biases zero, not the identity at
    init. Dropout sits on the bottleneck. Not mergeable. 2dm + m + d + 2d parameters for each stack.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        stochastic=True,
        rowwise=True,
        identity=False,
    )
    size_field: ClassVar[str] = "bottleneck"
    part_names: ClassVar[tuple[str, ...]] = ("down", "up", "norms")
    narrow: ClassVar[Narrow] = {"bottleneck": Bottleneck.by_width}

    class Config(MethodConfig):
        bottleneck: int = Field(default=64, ge=1, le=16_384, description="m; half of the width in CIAT")
        activation: Activation = "relu"
        dropout: float = Field(default=0.0, ge=0, lt=1, description="after the activation")

    def __init__(self, config: Config) -> None:
        self.config = config

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of a part at a site; `None` for a part that is no projection."""
        return Bottleneck.part_size(site.out_features, self.config.bottleneck, part)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(Bottleneck.size(s.out_features, self.config.bottleneck) + 2 * s.out_features for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        adapters = {
            s.key: NormedBottleneck(
                s.out_features,
                c.bottleneck,
                epsilon=1e-6,
                activation=c.activation,
                init="glorot",
                dropout=c.dropout,
            )
            for s in sites
        }
        return EmbeddingAdapterModule(adapters)
