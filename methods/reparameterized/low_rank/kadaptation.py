"""KAdaptation: Kronecker sums of shared slow and own fast weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, ParameterCount, register
from autopeft.method.low_rank import LowRankMethod
from autopeft.nn import LowRankKronecker, PerSite, require_blocks
from autopeft.spec import BackboneSpec, Site

__all__ = ["KAdaptation"]

Form = Literal["rank_one", "full"]


class SlowWeights(nn.Module):
    """n rules (n × n), each aᵢ·bᵢ with aᵢ (n × 1) and bᵢ (1 × n) of U(−0.01, 0.01), or a matrix of its own
    that starts as such a product: the scale c is made for rules of that size."""

    def __init__(self, n: int, form: Form) -> None:
        super().__init__()
        a, b = (torch.empty(shape).uniform_(-0.01, 0.01) for shape in ((n, n, 1), (n, 1, n)))
        self.factors = nn.ParameterList((a, b) if form == "rank_one" else (a @ b,))

    @staticmethod
    def size(n: int, form: Form) -> int:
        """Parameters: 2·n², or n³."""
        return 2 * n**2 if form == "rank_one" else n**3

    def forward(self) -> Tensor:
        """The rules, (n, n, n)."""
        factors: list[Tensor] = list(self.factors)
        return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


class KAdaptationModule(PerSite[LowRankKronecker]):
    """Fast weights for each site, slow weights for each name of a site, an offset for each layer."""

    def __init__(
        self, children: dict[str, LowRankKronecker], sites: Sequence[Site], config: KAdaptation.Config
    ) -> None:
        super().__init__(children)
        names = sorted({s.name for s in sites})
        self.slow = nn.ModuleDict({name: SlowWeights(config.phm_dim, config.rules) for name in names})
        self.offsets = nn.ParameterDict({key: torch.zeros(width) for key, width in _offsets(sites)})
        self.scale, self.dropout = config.scale, config.dropout
        for fast in self.children_by_site():
            nn.init.zeros_(fast.right)

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def change(self, site: Site) -> Tensor:
        """Σᵢ Aᵢ ⊗ (uᵢ·vᵢ), (out, in), not yet scaled."""
        return self[site].matrix(self.slow[site.name]())

    def offset(self, site: Site) -> Tensor:
        """b, (out)."""
        return cast(Tensor, self.offsets[_offset_key(site)])

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        change = self.change(site)
        if self.dropout:
            change = nn.functional.dropout(change, self.dropout, self.training)
        return nn.functional.linear(x, change if call.gated else change * self.scale, self.offset(site))

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        offset = self.offset(site)
        return weight + self.scale * self.change(site), offset if bias is None else bias + offset

    def parts(self) -> dict[str, list[nn.Parameter]]:
        fast = [p for own in self.children_by_site() for p in own.parameters()]
        return {"fast": fast, "slow": list(self.slow.parameters()), "offsets": list(self.offsets.values())}

    def up_parameters(self) -> list[nn.Parameter]:
        """v of every site, the factor that is zero at init."""
        return [fast.right for fast in self.children_by_site()]


def _offset_key(site: Site) -> str:
    return f"{site.stack}-{site.layer}-{site.out_features}"


def _offsets(sites: Sequence[Site]) -> Iterator[tuple[str, int]]:
    """Key and width of each offset."""
    return iter({_offset_key(s): s.out_features for s in sites}.items())


@register("kadaptation")
class KAdaptation(LowRankMethod):
    """y = (W₀ + c·dropout(ΔW))·x + b₀ + b, ΔW = Σᵢ Aᵢ ⊗ (uᵢ·vᵢ), i = 1…n.

    He et al. 2023, arXiv:2203.16329. The slow weights Aᵢ (n × n) are shared by all layers, both stacks of T5
    included, one set for q and one for v (for each name of a site); each is a column times a row, as in the
    authors' code, or `full`. The fast weights uᵢ (out/n × r) and vᵢ (r × in/n) are each site's own. The
    offset b (out) is one for each layer, shared by all its sites (q and v); where widths differ (grouped
    queries), one for each. Dropout acts on the entries of ΔW. The authors have n = 32, c = 160, dropout 0.5
    and r = 1, the defaults here. n must divide all widths.

    u is Glorot-uniform, v and b are zero, the slow weights' factors U(−0.01, 0.01), of whose products `full`
    ones start: exactly the identity at init. The authors' code zeroes u too, so that u, v and the slow
    weights never get a gradient, and reads q's fast weights at v; neither is done here. Behind a gate the
    gate takes the place of c. Mergeable, b into the bias; a map without a bias gets one.

    r·(in + out) parameters for each site, out for each offset and 2n² (n³ if `full`) for each set: 50,176 for
    ViT-B.
    """

    traits = replace(LowRankMethod.traits, shifts=True)
    part_names = ("fast", "slow", "offsets")
    change_rank = None  # an offset comes with it, and Kronecker products are of a high rank

    class Config(MethodConfig):
        rank: int = Field(default=1, ge=1, le=64, description="r, of the fast weights")
        phm_dim: int = Field(default=32, ge=1, le=128, description="n, a divisor of all widths")
        scale: float = Field(default=160.0, gt=0, le=4096, description="c")
        dropout: float = Field(default=0.5, ge=0, lt=1, description="of the entries of ΔW")
        rules: Form = Field(default="rank_one", description="form of the slow weights")

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        require_blocks("kadaptation", c.phm_dim, sites)
        n = sum(LowRankKronecker.size(s.out_features, s.in_features, c.rank) for s in sites)
        n += sum(width for _, width in _offsets(sites))
        n += len({s.name for s in sites}) * SlowWeights.size(c.phm_dim, c.rules)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        fast = {s.key: LowRankKronecker(c.phm_dim, s.out_features, s.in_features, c.rank) for s in sites}
        return KAdaptationModule(fast, sites, c)
