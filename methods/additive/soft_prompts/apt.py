"""Adaptive prefix tuning: prefixes whose tokens and layers have gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import Call, DecayTarget, Narrow, ParameterCount, register
from autopeft.nn import PrefixConfig, Prefixes, PrefixMethod, PromptRows, Summary, summarised, summary_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["APT"]

_GATE_STD = 0.02


class GatedRows(PromptRows):
    """The rows of one attention, with W (d, length) of their gates and λ, where it has these."""

    def __init__(self, site: Site, config: APT.Config) -> None:
        c = config
        super().__init__(c.length, 2 * site.kv_features, mid=c.reparameterization, std=c.std)
        gate = nn.Parameter(torch.randn(site.in_features, c.length) * _GATE_STD)
        self.gate = gate if c.token_gate else None
        self.scale = nn.Parameter(torch.ones(())) if c.layer_gate else None


class GatedPrefixes(Prefixes):
    """Prefixes whose keys and values are multiplied by λ·α.

    Args:
        summary: what of the attention's input α is made of.
    """

    def __init__(self, *args: Any, summary: Summary) -> None:
        super().__init__(*args)
        self.summary = summary

    def _own(self, site: Site) -> GatedRows:
        return cast(GatedRows, self[site])

    def gates(self, site: Site, x: Tensor, call: Call) -> Tensor | None:
        """α, (batch, length), for the attention's input x; `None` without token gates."""
        gate = self._own(site).gate
        if gate is None:
            return None
        if call.context.lost:
            raise CompositionError(
                f"apt at {site.path} does not know its text: this family hands nothing on to layers that are "
                "recomputed (then train without gradient checkpointing), or the model calls its layers "
                "directly; use `token_gate: false`, or p_tuning_v2."
            )
        text = summarised(call.rows.text(x), call.context.text_mask, self.summary)
        return torch.sigmoid(text.to(gate.dtype) @ gate)

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        keys, values = super().key_value(site, x, call)
        alpha, scale = self.gates(site, x, call), self._own(site).scale
        if scale is not None:
            keys, values = scale * keys, scale * values
        return (keys, values) if alpha is None else (alpha[..., None] * keys, alpha[..., None] * values)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        own = [cast(GatedRows, rows) for rows in self.children_by_site()]
        gates = [p for rows in own for p in (rows.gate, rows.scale) if p is not None]
        return {**super().parts(), "gates": gates}

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """λ towards one, where it changes nothing; all else towards zero."""
        scales = [cast(GatedRows, rows).scale for rows in self.children_by_site()]
        return {scale: 1.0 for scale in scales if scale is not None}


@register("apt")
class APT(PrefixMethod):
    """Attn(Q, [λ·α ⊙ P_k; K], [λ·α ⊙ P_v; V]): P-tuning v2 with a gate for each prefix token and each layer.

    Zhang et al. 2023, arXiv:2305.15212. α = sigmoid(h·W) in (0, 1), W (d × length), one number for each
    prefix token and text, h what the attention reads of the text (behind the norm on pre-norm backbones):
    `summary` is [CLS] (`first`) on encoders, the `last` token on decoders, which have read all of it there,
    and the `mean` on encoders behind which a decoder reads. λ is a scalar of each attention. `token_gate:
    false` and `layer_gate: false` leave one of them out; without both it is `p_tuning_v2`. With token
    gates prefixes are the text's own: of two stacks the encoder has them, and a decoder's see all of its
    text, which a language model must not. A gate at zero is no absent prefix: its keys still take part in the
    softmax. Not the identity at init; not mergeable.

    No code of the authors was found, and of the paper's text the introduction alone. It tells of a gate that
    gives each prefix token a weight, and of a weight in each layer that balances prefix and text. Notes on
    the paper say that the gate reads the hidden states of the layer before, and that P-tuning v2 is what it
    is compared with at equal lengths. The formula of α, what of the hidden states it reads, that α and λ
    multiply keys and values alike, and how both start are this project's: W is N(0, 0.02), so that α starts
    near ½, and λ is one and decays towards one. All else is as in P-tuning v2: length 4, no MLP, dropout 0.1,
    rows from N(0, `std`).

    2·l·kv + d·l + 1 parameters for each attention.
    """

    traits = replace(PrefixMethod.traits, sees_text=True)
    part_names: tuple[str, ...] = ("rows", "mlp", "gates")
    narrow: ClassVar[Narrow] = {"length": {**PrefixMethod.narrow["length"], "gate": (1,)}}

    class Config(PrefixConfig):
        length: int = Field(default=4, ge=1, le=4096, description="l")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on keys and values")
        std: float = Field(default=0.02, gt=0, le=1, description="of the normal that rows start from")
        token_gate: bool = Field(default=True, description="whether there is α")
        layer_gate: bool = Field(default=True, description="whether there is λ")
        summary: Summary | None = Field(default=None, description="what of a text α is made of")

        @model_validator(mode="after")
        def _has_gates(self) -> APT.Config:
            if not (self.token_gate or self.layer_gate):
                raise ValueError("apt without a gate is p_tuning_v2; take that, or switch a gate on")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.part_names = (*(name for name in self.part_names if name != "gates"), "gates")
        if not config.token_gate:
            self.traits = replace(self.traits, sees_text=False)

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """With token gates, the attentions of the stack that reads the text."""
        return tuple(s for s in sites if not self.config.token_gate or s.stack == spec.stacks[0].name)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        n = sum(s.in_features * c.length * c.token_gate + c.layer_gate for s in sites)
        return super().parameter_count(sites, spec) + ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        rows: dict[str, PromptRows] = {site.key: GatedRows(site, self.config) for site in sites}
        encoders = self._encoders(sites, spec)
        summary = self.config.summary or summary_of(spec)
        return GatedPrefixes(rows, sites, encoders, self.config.dropout, summary=summary)
