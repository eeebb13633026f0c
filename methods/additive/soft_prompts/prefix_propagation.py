"""Prefix propagation: rows in front of the text that every layer adds a trained vector to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.spec import BackboneSpec, Site

__all__ = ["PrefixPropagation"]

_STD = 0.02


class PropagatedPrefix(nn.Module):
    """E (length, d) for each layer."""

    def __init__(self, length: int, sites: Sequence[Site], dropout: float) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        layers = [site for site in sites if site.layer is not None]
        self.rows = nn.ParameterDict(
            {s.key: nn.Parameter(torch.randn(length, s.in_features) * _STD) for s in layers}
        )

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.length),) if site.layer is None else ()

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return x.new_zeros(1, self.length, x.shape[-1])

    def side(self, site: Site) -> Literal["input"] | None:
        return None if site.layer is None else "input"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        rows = self.rows[site.key].expand(len(x), -1, -1)
        return call.rows.spread(F.dropout(rows, self.dropout, self.training), x, call.owner)


@register("prefix_propagation")
class PrefixPropagation:
    """H⁽ⁱ⁾[:l] ← H⁽ⁱ⁾[:l] + E⁽ⁱ⁾ in front of each layer i: l rows that start as zeros and read the text.

    Li et al. 2023, arXiv:2305.12086. The rows stand in front of the text with word embeddings of zero, to
    which the backbone adds positions and types and which its norm takes as any others. Each layer adds its
    own E (l × d), and changes the rows as it changes the text: they attend to it, which the keys of prefix-
    tuning do not. Defaults are those of the authors' code (MonliH/prefix-propagation, run_script/): l = 8,
    dropout 0.1 on E, drawn for each row of the batch, no MLP. E is N(0, 0.02), as the backbone starts what it
    has no weights for. Text models of one direction are refused: rows in front would never see the text. The
    head reads the text, as with the authors' `--use_offset_pool_tok`; without it theirs reads the first row.
    Their Longformer looks at the rows from everywhere, as all attention does here; a kernel in their place is
    not built. Half of what p_tuning_v2 has. Not the identity at init; not mergeable.

    l·d parameters for each layer.
    """

    traits = Traits(
        ways=frozenset({"prompt", "hook"}),
        sites=("embeddings", "layer"),
        default_sites=("embeddings", "layer"),
        level="model",
        rowwise=True,
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=8, ge=1, le=4096, description="l")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on E")

    def __init__(self, config: Config) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """The layers of the stack that reads the text."""
        return tuple(s for s in sites if s.stack == spec.stacks[0].name)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        if spec.stacks[0].causal:
            raise MethodError(
                f"prefix_propagation lets rows in front read the text, which {spec.family!r} hides from them "
                "as a decoder; use prefix_tuning or p_tuning_v2."
            )
        names = {site.name for site in sites}
        if names != {"embeddings", "layer"}:
            raise MethodError(
                f"prefix_propagation needs the embeddings, where its rows enter, and layers, but has "
                f"{', '.join(sorted(names))}; leave `sites` out, or take a backbone whose layers are known."
            )
        n = sum(self.config.length * site.in_features for site in sites if site.layer is not None)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return PropagatedPrefix(self.config.length, sites, self.config.dropout)
