"""IDPG: prompts that are generated for each text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import BARE, Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.nn import Summary, kronecker_sum, summarised, summary_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["IDPG"]

Deeper = Literal["previous", "sentence"]

_numbers = itertools.count(1)


class Generator(nn.Module):
    """GELU(f·W₁ + b₁)·W₂ for f (batch, d), W₁ (d × m) and W₂ (m × l·d) sums of n Kronecker products."""

    def __init__(self, width: int, bottleneck: int, rows: int, n: int, dropout: float) -> None:
        super().__init__()
        self.down_rules = nn.Parameter(torch.empty(n, n, n))
        self.down = nn.Parameter(torch.empty(n, width // n, bottleneck // n))
        self.bias = nn.Parameter(torch.empty(bottleneck))
        self.up_rules = nn.Parameter(torch.empty(n, n, n))
        self.up = nn.Parameter(torch.empty(n, bottleneck // n, rows * width // n))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05)
        self.rows, self.dropout = rows, nn.Dropout(dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """(batch, l, d)."""
        hidden = nn.functional.gelu(feature @ kronecker_sum(self.down_rules, self.down) + self.bias)
        made: Tensor = self.dropout(hidden) @ kronecker_sum(self.up_rules, self.up)
        return made.view(len(feature), self.rows, -1)


class IDPGModule(nn.Module):
    """One generator, and for each place of a prompt the bias (l, d) that comes to what it makes.

    Attributes:
        key: under which its f(x) lies in `Context.features`, apart from that of other entries.
    """

    def __init__(
        self, generator: Generator, sites: Sequence[Site], slot: Slot, feature: Summary, deeper: Deeper
    ) -> None:
        super().__init__()
        self.key = f"idpg.{next(_numbers)}"
        self.generator = generator
        width = sites[0].out_features
        self.biases = nn.ParameterDict(
            {site.key: nn.Parameter(torch.empty(slot.length, width).uniform_(-0.5, 0.5)) for site in sites}
        )
        self.slot, self.feature, self.deeper = slot, feature, deeper

    def slots(self, site: Site) -> Sequence[Slot]:
        return (self.slot,) if site.name == "embeddings" else ()

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        states = call.context.features[BARE].to(x.dtype)
        sentence = self.generator.dropout(summarised(states, call.context.text_mask, self.feature))
        call.context.features[self.key] = sentence
        return self._rows(site, sentence)

    def _rows(self, site: Site, feature: Tensor) -> Tensor:
        rows: Tensor = self.generator(feature) + self.biases[site.key]
        return rows

    def side(self, site: Site) -> Literal["output"] | None:
        return None if site.name == "embeddings" else "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        if self.deeper == "sentence":
            feature = call.context.features[self.key].to(y.dtype)
        else:
            feature = summarised(call.rows.text(y), call.context.text_mask, self.feature)
        return call.rows.spread(self._rows(site, feature), y, call.owner)


@register("idpg")
class IDPG:
    """Rows P = G(f(x)) + B among the token embeddings, and P⁽ⁱ⁾ = G(fᵢ) + Bᵢ added to them behind layer i.

    Wu et al. 2022, arXiv:2204.04497 (M-IDPG-PHM). G(f) = GELU(f·W₁ + b₁)·W₂ with W₁ (d × m), W₂ (m × l·d),
    each a sum of `phm_dim` = n Kronecker products of S (n × n) and R; with n = 1 S is a scale. f(x) is what
    the frozen backbone, run once more without the prompt, makes of [CLS], fᵢ what layer i makes of it
    (`deeper: sentence` takes f(x) there too); the last layer has none, whose rows no head reads. B, Bᵢ
    (l × d) belong to the place, G to all. Defaults are those of the authors' code (CSerxy/IDPG, IDPG-PHM.sh):
    l = 5, m = n = 16, dropout 0.1 on f(x) and in front of W₂, not on fᵢ, rows right behind [CLS]. R, S, b₁
    are N(0, 0.05), B uniform in ±0.5. `sites: [embeddings]` is the variant of one layer. `feature` is `first`
    on encoders; on decoders, which read their text at its end, the `last` token, and where a decoder reads
    the encoder, so that it has no [CLS], the `mean`. There the rows stand in front. A decoder's prompt sees
    all of its text, which a language model must not. Not the identity at init; not mergeable.

    d·m/n + n³ + m + m·l·d/n + n³ + l·d for each place. Each forward takes two.
    """

    traits = Traits(
        ways=frozenset({"prompt", "hook"}),
        sites=("embeddings", "layer"),
        default_sites=("embeddings", "layer"),
        level="model",
        sees_text=True,
        features=frozenset({BARE}),
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=5, ge=1, le=512, description="l")
        bottleneck: int = Field(default=16, ge=1, le=4096, description="m")
        phm_dim: int = Field(default=16, ge=1, le=128, description="n")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on f(x), and in front of W₂")
        feature: Summary | None = Field(default=None, description="what stands for a text")
        deeper: Deeper = Field(default="previous", description="what the prompts behind layers are made of")

    def __init__(self, config: Config) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """The layers of the stack that reads the text, without the last one."""
        first = spec.stacks[0]
        return tuple(s for s in sites if s.stack == first.name and s.layer != first.layers - 1)

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        if not any(site.name == "embeddings" for site in sites):
            raise MethodError("idpg puts its rows in at the embeddings; name 'embeddings' among its `sites`.")
        # It reads the last states, which are wider than embeddings where a projection lies in between.
        c, widths = self.config, {spec.stacks[0].states, *(site.out_features for site in sites)}
        width = widths.pop()
        if widths or width % c.phm_dim or c.bottleneck % c.phm_dim:
            raise MethodError(
                f"idpg with phm_dim={c.phm_dim} cuts the bottleneck, {c.bottleneck}, and the width of its "
                f"places and states, {sorted({width, *widths})}, into as many blocks; choose one that "
                "divides both, on a backbone whose embeddings are as wide as its layers."
            )
        return width

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        d, c = self._width(sites, spec), self.config
        n, m, rows = c.phm_dim, c.bottleneck, c.length
        count = d * m // n + n**3 + m + m * rows * d // n + n**3 + len(sites) * rows * d
        return ParameterCount(count, count)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        d, c, natural = self._width(sites, spec), self.config, summary_of(spec)
        slot = Slot(c.length, offset=1 if natural == "first" else 0)
        generator = Generator(d, c.bottleneck, c.length, c.phm_dim, c.dropout)
        return IDPGModule(generator, sites, slot, c.feature or natural, c.deeper)
