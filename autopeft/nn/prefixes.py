"""Trained keys and values in front of attentions: what prefix-tuning and P-tuning v2 share as modules and as
methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, Narrow, ParameterCount, Traits
from autopeft.nn.per_site import PerSite
from autopeft.nn.prompt_encoder import PromptEncoder, PromptRows
from autopeft.spec import BackboneSpec, Site

__all__ = ["PrefixConfig", "PrefixMethod", "Prefixes"]


def _type_of_attention(site: Site) -> str:
    """Self- or cross-attention of a stack: those of one type share an MLP."""
    return f"{site.stack}-{site.name}"


class Prefixes(PerSite[PromptRows]):
    """Keys and values for each site, and the MLP of each type of attention that makes them.

    Args:
        children: the rows (length, 2·kv) of each site, keys first.
        sites: the attentions, in the spec's order.
        encoders: the MLP of each type of attention; empty where rows are bare.
        dropout: on keys and values while training, drawn for each row of the batch, as both authors' code
            has it.
    """

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
        key = _type_of_attention(site)
        return cast(PromptEncoder, self.encoders[key]) if key in self.encoders else None

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        rows: Tensor = self[site](self._encoder(site))[None]
        if self.dropout and self.training:
            rows = nn.functional.dropout(rows.expand(x.shape[0], -1, -1), self.dropout)
        keys, values = rows.chunk(2, dim=-1)
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


class PrefixConfig(MethodConfig):
    """Length l, width of the MLP that makes the rows (`null`: there is none), dropout, and the deviation of
    the normal that weights start from, biases at zero (`null`: as `PromptEncoder` and `PromptRows` say)."""

    length: int = Field(default=10, ge=1, le=4096, description="l")
    reparameterization: int | None = Field(
        default=None, ge=1, le=8192, description="width of the MLP; null: bare rows"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on keys and values")
    std: float | None = Field(
        default=None, gt=0, le=1, description="of the normal that all weights start from"
    )


class PrefixMethod:
    """Base of methods that put trained keys and values in front of attentions.

    Deployed: 2·l·kv for each attention. Trained with the MLP: l·d + (d·mid + mid) + (mid·T + T) for each type
    of attention, T the sum of its 2·kv.
    """

    name: ClassVar[str]
    traits = Traits(
        ways=frozenset({"kv"}),
        sites=("attention", "cross_attention"),
        default_sites=("attention", "cross_attention"),
        stochastic=True,
        identity=False,
    )
    size_field: ClassVar[str] = "length"
    narrow: ClassVar[Narrow] = {"length": {"rows": (0,), "embedding": (0,)}}
    part_names: tuple[str, ...] = ("rows", "mlp")

    def __init__(self, config: Any) -> None:
        self.config = config
        if config.reparameterization is None:
            self.part_names = ("rows",)

    def _hidden(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[str, int]:
        """The stack's width for each type of attention."""
        return {_type_of_attention(s): spec.stack(s.stack).hidden for s in sites}

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        mid = c.reparameterization
        unknown = next((s for s in sites if not s.kv_features), None)
        if unknown is not None:
            raise MethodError(
                f"{self.name} needs the width of keys and values at {unknown}, and {spec.family!r} has no "
                "site map that tells its k and v apart, or an attention that takes no more of them; use "
                "lora, adapters or prompt_tuning."
            )
        deployed = sum(PromptRows.size(c.length, 2 * s.kv_features) for s in sites)
        if mid is None:
            return ParameterCount(deployed, deployed)
        trained = sum(PromptRows.size(c.length, 2 * s.kv_features, mid=mid) for s in sites)
        trained += sum(PromptEncoder.size(c.length, h, mid) for h in self._hidden(sites, spec).values())
        return ParameterCount(deployed, trained)

    def _encoders(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[str, PromptEncoder]:
        """The MLP of each type of attention."""
        c = self.config
        if c.reparameterization is None:
            return {}
        widths = self._hidden(sites, spec).items()
        return {key: PromptEncoder(c.length, h, c.reparameterization, std=c.std) for key, h in widths}

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        rows = {
            s.key: PromptRows(c.length, 2 * s.kv_features, mid=c.reparameterization, std=c.std) for s in sites
        }
        return Prefixes(rows, sites, self._encoders(sites, spec), c.dropout)
