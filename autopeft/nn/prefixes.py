"""Trained keys and values in front of attentions: what prefix-tuning and P-tuning v2 share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from autopeft.nn.per_site import PerSite
from autopeft.nn.prompt_encoder import PromptEncoder, PromptRows
from autopeft.spec import Site

if TYPE_CHECKING:
    from autopeft.method import Call

__all__ = ["Prefixes", "type_of_attention"]


def type_of_attention(site: Site) -> str:
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
        key = type_of_attention(site)
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
