"""Late prompt tuning: rows in front of a layer in the middle, made of what the layers below read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.nn import Summary, summarised, summary_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["LPT"]

Kind = Literal["npg", "appg", "mppg", "none"]


class LatePrompt(nn.Module):
    """The generator, or the table (length, d) where there is none."""

    down: nn.Linear | None
    up: nn.Linear | None

    def __init__(
        self, kind: Kind, width: int, length: int, bottleneck: int, dropout: float, summary: Summary
    ) -> None:
        super().__init__()
        self.kind, self.length, self.dropout, self.summary = kind, length, dropout, summary
        self.table = nn.Parameter(torch.randn(length, width)) if kind == "none" else None
        self.down = nn.Linear(width, bottleneck) if kind != "none" else None
        self.up = nn.Linear(bottleneck, width * (length if kind == "npg" else 1)) if kind != "none" else None

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.length),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return F.dropout(self._rows(x, call.context.text_mask), self.dropout, self.training)

    def _rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.table is not None or self.down is None or self.up is None:
            assert self.table is not None
            return self.table.expand(len(x), -1, -1)
        if self.kind == "npg":
            hidden = F.relu(self.down(summarised(x, mask, self.summary)))
            return self.up(hidden).view(len(x), self.length, -1)  # type: ignore[no-any-return]
        hidden = F.relu(self._pooled(self.down(x), mask))
        return self.up(hidden)  # type: ignore[no-any-return]

    def _pooled(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, tokens, m) → (batch, length, m): equal pieces of each text, padding left out."""
        pool = F.adaptive_max_pool1d if self.kind == "mppg" else F.adaptive_avg_pool1d
        real = [z] if mask is None else [row[seen.bool()][None] for row, seen in zip(z, mask, strict=True)]
        return torch.cat([pool(part.transpose(1, 2), self.length) for part in real]).transpose(1, 2)


@register("lpt")
class LPT:
    """H⁽ᵖ⁾ ← [G(H⁽ᵖ⁾); H⁽ᵖ⁾]: l rows in front of the text from layer p on, the layers below run without them.

    Liu et al. 2022, arXiv:2210.11292. G is `npg`, ReLU(h·W₁ + b₁)·W₂ + b₂ for [CLS] h with W₁ (d × m) and W₂
    (m × l·d); or `appg` and `mppg`, where W₁ maps all tokens, l equal pieces of which are averaged or have
    their largest values taken, padding left out, before ReLU and W₂ (m × d); or `none`, a trained table.
    Dropout acts on the rows. Defaults are those of the authors' code (xyltt/LPT, encoder-
    only/run_roberta.sh): npg, l = 5, m = 128, p half of the layers, dropout as in the backbone. Maps start as
    torch starts them, the table from N(0, 1). Decoders make the rows of the last token, which has read all of
    a text, as their decoder-only/run_gpt2.sh does; encoders behind which a decoder reads, of the mean. No
    gradient is needed below p, and what is computed there can be kept. A decoder's rows that are made of the
    text see all of it, which a language model must not. Not the identity at init; not mergeable.

    npg: d·m + m + m·l·d + l·d; appg, mppg: 2·d·m + m + d; none: l·d.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("layer",),
        default_sites=("layer",),
        level="model",
        sees_text=True,
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=5, ge=1, le=512, description="l")
        layer: int | None = Field(
            default=None, ge=1, le=1023, description="p, how many layers run without; null: half of them"
        )
        generator: Kind = Field(default="npg", description="what makes the rows")
        bottleneck: int = Field(default=128, ge=1, le=8192, description="m")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on the rows")

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.generator == "none":
            self.traits = replace(self.traits, sees_text=False)

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """Layer p of the stack that reads the text."""
        stack, layer = spec.stacks[0], self.config.layer
        if stack.layers < 2 or (layer or 1) >= stack.layers:
            raise MethodError(
                f"lpt with layer={layer} needs a layer behind so many, and {spec.family!r} has "
                f"{stack.layers} in its {stack.name}; p may be 1 to {max(1, stack.layers - 1)}."
            )
        place = stack.layers // 2 if layer is None else layer
        return tuple(s for s in sites if (s.stack, s.layer) == (stack.name, place))

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c, d = self.config, sites[0].out_features
        m, rows = c.bottleneck, c.length
        sizes = {"npg": d * m + m + m * rows * d + rows * d, "none": rows * d}
        n = sizes.get(c.generator, 2 * d * m + m + d)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        return LatePrompt(
            c.generator, sites[0].out_features, c.length, c.bottleneck, c.dropout, summary_of(spec)
        )
