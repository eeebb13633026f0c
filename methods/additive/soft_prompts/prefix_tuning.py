"""Prefix-tuning: trained keys and values in front of every attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Traits, register
from autopeft.nn import PerSite, PromptEncoder, PromptRows
from autopeft.spec import BackboneSpec, Site

__all__ = ["PrefixTuning"]


def _attention(site: Site) -> str:
    """The type of attention: self- or cross-attention of a stack."""
    return f"{site.stack}-{site.name}"


class PrefixModule(PerSite[PromptRows]):
    """Keys and values for each site, and the MLP of each type of attention that makes them."""

    def __init__(
        self,
        children: dict[str, PromptRows],
        sites: Sequence[Site],
        encoders: dict[str, PromptEncoder],
        dropout: float,
    ) -> None:
        super().__init__(children)
        self.sites = tuple(sites)
        self.encoders = nn.ModuleDict(encoders)
        self.dropout = dropout

    def _encoder(self, site: Site) -> PromptEncoder | None:
        key = _attention(site)
        return cast(PromptEncoder, self.encoders[key]) if key in self.encoders else None

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        rows: Tensor = self[site](self._encoder(site))
        if self.dropout:
            rows = nn.functional.dropout(rows, self.dropout, self.training)
        keys, values = rows[None].chunk(2, dim=-1)
        return keys, values

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The vectors that are learnt, and the MLPs that make keys and values of them (W₁, b₁, W₂, b₂)."""
        encoders = [cast(PromptEncoder, encoder) for encoder in self.encoders.values()]
        rows = [own.rows for own in self.children_by_site() if own.rows is not None]
        mlp = [p for encoder in encoders for p in encoder.down.parameters()]
        mlp += [p for own in self.children_by_site() if own.up is not None for p in own.up.parameters()]
        return {"rows": [*rows, *(encoder.embedding for encoder in encoders)], "mlp": mlp}

    def deploy(self) -> None:
        """Keep the keys and values, drop the MLPs that made them."""
        for site in self.sites:
            self[site].deploy(self._encoder(site))
        self.encoders = nn.ModuleDict()


@register("prefix_tuning")
class PrefixTuning:
    """Attn(Q, [P_k; K], [P_v; V]), P_k and P_v (length × kv) trained for each attention, seen by all queries.

    Li & Liang 2021, arXiv:2101.00190, §4.2–4.3. Bare: N(0, 0.02). With `reparameterization: mid`, the rows of
    all layers come from one MLP, P = W₂·tanh(W₁·E + b₁) + b₂ with E (length × d), W₁ (mid × d), W₂ (total
    width × mid), one for each type of attention (encoder, decoder, cross), which `deploy()` drops. Dropout
    acts on P. The parts `rows` (P or E) and `mlp` may learn at rates of their own. The prefix keys are not
    rotated under RoPE, and text keeps its positions. Not the identity at init; not mergeable.

    Deployed: 2·l·kv for each attention. Trained with the MLP: l·d + (d·mid + mid) + (mid·T + T) for each type
    of attention, T the sum of its 2·kv.
    """

    traits = Traits(
        injection="kv",
        sites=("attention", "cross_attention"),
        default_sites=("attention", "cross_attention"),
        stochastic=True,
        identity=False,
    )
    size_field: ClassVar[str] = "length"
    part_names: tuple[str, ...] = ("rows", "mlp")

    class Config(MethodConfig):
        length: int = Field(default=10, ge=1, le=4096, description="l")
        reparameterization: int | None = Field(default=None, ge=1, le=8192, description="width of the MLP")
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.reparameterization is None:
            self.part_names = ("rows",)

    def _hidden(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[str, int]:
        """The stack's width for each type of attention."""
        return {_attention(s): spec.stack(s.stack).hidden for s in sites}

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        mid = c.reparameterization
        unknown = next((s for s in sites if not s.kv_features), None)
        if unknown is not None:
            raise MethodError(
                f"prefix_tuning needs the width of keys and values at {unknown}, and {spec.family!r} has no "
                "site map that tells its k and v apart; use lora on 'qkv', adapters or prompt_tuning."
            )
        deployed = sum(PromptRows.size(c.length, 2 * s.kv_features) for s in sites)
        if mid is None:
            return ParameterCount(deployed, deployed)
        trained = sum(PromptRows.size(c.length, 2 * s.kv_features, mid=mid) for s in sites)
        trained += sum(PromptEncoder.size(c.length, h, mid) for h in self._hidden(sites, spec).values())
        return ParameterCount(deployed, trained)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        mid = c.reparameterization
        hidden = self._hidden(sites, spec) if mid is not None else {}
        rows = {s.key: PromptRows(c.length, 2 * s.kv_features, mid=mid) for s in sites}
        encoders = {key: PromptEncoder(c.length, h, cast(int, mid)) for key, h in hidden.items()}
        return PrefixModule(rows, sites, encoders, c.dropout)
