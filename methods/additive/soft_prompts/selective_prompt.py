"""Selective prompt tuning: a search for the layers in front of which prompts are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import DataError, MethodError
from autopeft.method import Call, MethodConfig, OuterStep, ParameterCount, Phase, Slot, Traits, register
from autopeft.nn import Summary, kronecker_sum, summarised, summary_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["SelectivePrompt"]


_STD = 0.05  # of the factors of Kronecker products


class StackedMaps(nn.Module):
    """x ↦ x·Wᵢ + bᵢ for `count` places i; with `shared` one W for all of them.

    W (rows × columns) is dense, or a sum of n Kronecker products of `rules` (n × n) and `weight`. Dense maps
    and biases start as torch's linear maps, factors from N(0, 0.05).
    """

    rules: nn.Parameter | None

    def __init__(self, count: int, rows: int, columns: int, n: int | None, *, shared: bool) -> None:
        super().__init__()
        copies, bound = 1 if shared else count, rows**-0.5
        self.shared, self.rules = shared, None
        if n is None:
            self.weight = nn.Parameter(torch.empty(copies, rows, columns).uniform_(-bound, bound))
        else:
            self.rules = nn.Parameter(torch.empty(copies, n, n, n).normal_(std=_STD))
            self.weight = nn.Parameter(torch.empty(copies, n, rows // n, columns // n).normal_(std=_STD))
        self.bias = nn.Parameter(torch.empty(count, columns).uniform_(-bound, bound))

    @staticmethod
    def size(count: int, rows: int, columns: int, n: int | None, *, shared: bool) -> int:
        """Parameters."""
        one = rows * columns if n is None else rows * columns // n + n**3
        return one * (1 if shared else count) + count * columns

    def forward(self, place: int, x: Tensor) -> Tensor:
        """(…, columns) for x (…, rows)."""
        copy = 0 if self.shared else place
        weight: Tensor = self.weight[copy]
        if self.rules is not None:
            weight = kronecker_sum(self.rules[copy], weight)
        return x @ weight + self.bias[place]

    @torch.no_grad()
    def keep(self, places: Tensor) -> None:
        """Drop all places but these, in this order."""
        self.bias = nn.Parameter(self.bias[places].clone())
        if self.shared:
            return
        self.weight = nn.Parameter(self.weight[places].clone())
        if self.rules is not None:
            self.rules = nn.Parameter(self.rules[places].clone())


class SelectivePrompts(nn.Module):
    """Generators in front of layers, all of which a search has, and of which K stay.

    Attributes:
        gates: α of every layer while it searches, (layers,); empty when the layers are found.
        layer_index: which of the sites have a generator, in order.
        down, up: the generators' maps, in the order of `layer_index`.
    """

    layer_index: Tensor

    def __init__(
        self, sites: Sequence[Site], keep: int, summary: Summary, config: SelectivePrompt.Config
    ) -> None:
        super().__init__()
        self.config, self.keep, self.summary = config, keep, summary
        self.sites = tuple(site.key for site in sites)
        self.numbers = tuple(site.layer for site in sites)
        count, d = len(sites), sites[0].out_features
        m, n, shared = config.bottleneck, config.phm_dim, config.shared
        self.down = StackedMaps(count, d, m, n, shared=shared)
        self.up = StackedMaps(count, m, config.length * d, n, shared=shared)
        self.gates = nn.Parameter(torch.zeros(count if count > keep else 0))
        self.register_buffer("layer_index", torch.arange(count))
        self._optimizer: torch.optim.Adam | None = None
        self._read: tuple[Tensor, int, list[str]] | None = None

    @property
    def searching(self) -> bool:
        """Whether the layers are not found yet."""
        return len(self.gates) > 0

    # Acting
    # --------------------------------------------------------------------------------------------------

    def slots(self, site: Site) -> Sequence[Slot]:
        """The first generator puts rows in, the others make them anew."""
        there = self._there()
        if site.key not in there:
            return ()
        return (Slot(self.config.length, renews=site.key != there[0]),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        i = self._there().index(site.key)
        text = summarised(x, call.context.text_mask, self.summary)
        made: Tensor = self.up(i, F.relu(self.down(i, text))).view(len(x), self.config.length, -1)
        made = F.dropout(made, self.config.dropout, self.training)
        if not self.searching:
            return made
        gate = self.gates[i].sigmoid()
        return gate * made if call.carried is None else (1 - gate) * call.carried.to(made.dtype) + gate * made

    def _there(self) -> list[str]:
        """The sites that have a generator; raises DataError where a damaged file names some wrongly."""
        index = self.layer_index
        if self._read is None or self._read[0] is not index or self._read[1] != index._version:
            places = index.cpu().tolist()
            if places != sorted(set(places) & set(range(len(self.sites)))):
                raise DataError("The saved layers of a prompt (selective_prompt) are damaged; save it again.")
            self._read = index, index._version, [self.sites[place] for place in places]
        return self._read[2]

    # Training
    # --------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """`search` and `retrain`, whose outputs are the layers; one plain phase where they are found."""
        if not self.searching:
            return [Phase("train")]
        c = self.config
        return [
            Phase(
                "search",
                c.search,
                held_out=c.held_out,
                begin=self._begin,
                outer=self._step_gates,
                output=self._layers,
            ),
            Phase("retrain", 1 - c.search, anew=True, begin=self._choose, output=self._layers),
        ]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The generators; the gates are trained on held-out rows."""
        return [{"params": [*self.down.parameters(), *self.up.parameters()]}]

    def _begin(self) -> None:
        self._optimizer = torch.optim.Adam(
            [self.gates], lr=self.config.gate_learning_rate, betas=(0.5, 0.999)
        )

    def _step_gates(self, step: OuterStep) -> None:
        """A step of the gates along the gradient of the loss on held-out rows, at the present generators."""
        assert self._optimizer is not None
        (self.gates.grad,) = step.upper([self.gates])
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _best(self) -> Tensor:
        """The places with the largest gates, in order; of equal ones the lowest."""
        ranked = self.gates.detach().argsort(descending=True, stable=True)
        return ranked[: self.keep].sort().values

    def _layers(self) -> list[int | None]:
        """The layers that a prompt is made in front of; in a search those that would be."""
        places = self._best() if self.searching else self.layer_index
        return [self.numbers[place] for place in places.cpu().tolist()]

    @torch.no_grad()
    def _choose(self) -> None:
        """Keep the generators with the largest gates, with the values that they have, and no gates."""
        self._hold(self._best())
        self.gates = nn.Parameter(self.gates[:0].clone())

    def _hold(self, places: Tensor) -> None:
        self.layer_index = self.layer_index[places].clone()
        self.down.keep(places)
        self.up.keep(places)
        self._optimizer = None

    def settled(self, step: int, total: int) -> bool:
        """Once the layers are found: a search goes on to its end."""
        return not self.searching

    def finish(self) -> None:
        """A training that was asked to stop while it searched has found what it has found."""
        if self.searching:
            self._choose()

    def remarks(self) -> list[str]:
        """Where the prompts are, if that was found."""
        found, there = ", ".join(map(str, self._layers())), len(self.sites)
        if self.searching or len(self.layer_index) == there:
            return []
        return [f"Prompts are made in front of {found} of the {there} layers, counted from 0."]

    # Saving
    # --------------------------------------------------------------------------------------------------

    def deploy(self) -> None:
        """All that is there acts, the gates of an unfinished search too."""
        self._optimizer = None

    @torch.no_grad()
    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        (count,), (gates,) = shapes["layer_index"], shapes["gates"]
        if self.searching and (count, gates) == (self.keep, 0):
            self._choose()


@register("selective_prompt")
class SelectivePrompt:
    """pᵢ = (1 − τᵢ)·p′ᵢ₋₁ + τᵢ·Gᵢ(Hᵢ) in front of each layer i: rows that K of the layers make anew.

    Zhu and Tan 2023, arXiv:2310.20127 (SPT). Gᵢ(H) = ReLU(h·W₁ + b₁)·W₂ + b₂ is LPT's generator (`lpt`), l
    rows of one vector h of what the layer reads, with W₁ (d × m) and W₂ (m × l·d). p′ᵢ₋₁ is what layer i − 1
    has made of its rows; there are none in front of the first. The share `search` of the steps is a bilevel
    problem: all layers have a generator and τᵢ = σ(αᵢ). All that the recipe trains learns from one part of
    the rows, and α, with an Adam of its own (β = 0.5, 0.999), from those that are held out, along the
    gradient at the present generators (first-order DARTS, arXiv:1806.09055). Then the `keep` layers with the
    largest α have τ = 1 and the others 0: these generators and the gates go. The other steps train what is
    left from its first values, on all rows. Where there are no more layers than `keep`, all have τ = 1 and
    nothing is searched for.

    Rows enter in front of the first chosen layer. The layers below run without them, and what is computed
    there can be kept. With `phm_dim` each W is a sum of n Kronecker products. With `shared` one W₁ and one W₂
    serve all layers, each with biases of its own. Dropout acts on what is made.

    No code was found, and of the paper the abstract alone could be read. A survey tells that a gate chooses
    between rows handed on and new ones; the formula of the mixing is this project's reading of it. SPT-DARTS,
    the paper's own search, corrects DARTS in a way that no text we found tells, and is not built.
    What is not of the gates has the defaults of `lpt`, and h is what it is there. Maps start as torch starts
    them, factors of Kronecker products from N(0, 0.05) (`idpg`), α at 0.

    A decoder's rows see all of the text, which a language model must not. Such a training cannot pause; one
    that is stopped while it searches keeps the best layers so far. Not the identity at init; not mergeable.
    Trained: d·m + m + m·l·d + l·d for each layer, and its gate; deployed: those of K layers.
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
        phased=True,
        data_dependent=True,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=5, ge=1, le=512, description="l")
        keep: int = Field(default=4, ge=1, le=1024, description="K, the layers that a prompt is made for")
        bottleneck: int = Field(default=128, ge=1, le=8192, description="m")
        phm_dim: int | None = Field(
            default=None, ge=1, le=128, description="n, of the Kronecker products; null: dense maps"
        )
        shared: bool = Field(default=False, description="one W₁ and one W₂ for all layers")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on the rows")
        search: float = Field(default=0.5, gt=0, lt=1, description="share of the steps that search")
        held_out: float = Field(
            default=0.5, gt=0, lt=1, description="share of the rows that gates learn from"
        )
        gate_learning_rate: float = Field(default=1e-2, gt=0, le=1, description="of α")

    def __init__(self, config: Config) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """The layers of the stack that reads the text."""
        return tuple(site for site in sites if site.stack == spec.stacks[0].name)

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        c, widths = self.config, {site.out_features for site in sites}
        width, *others = widths
        if others:
            raise MethodError(
                f"selective_prompt carries rows from layer to layer, and those of {spec.family!r} have "
                f"several widths, {sorted(widths)}; use idpg."
            )
        if c.phm_dim is not None and (width % c.phm_dim or c.bottleneck % c.phm_dim):
            raise MethodError(
                f"selective_prompt with phm_dim={c.phm_dim} cuts the bottleneck, {c.bottleneck}, and the "
                f"width of the layers, {width}, into as many blocks; choose one that divides both."
            )
        return width

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c, d, layers = self.config, self._width(sites, spec), len(sites)
        kept = min(c.keep, layers)
        deployed, trained = (
            StackedMaps.size(k, d, c.bottleneck, c.phm_dim, shared=c.shared)
            + StackedMaps.size(k, c.bottleneck, c.length * d, c.phm_dim, shared=c.shared)
            for k in (kept, layers)
        )
        return ParameterCount(deployed, trained + (layers if layers > kept else 0))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        self._width(sites, spec)
        return SelectivePrompts(sites, self.config.keep, summary_of(spec), self.config)
