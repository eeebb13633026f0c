"""FAR: freeze the nodes of the FFN that fine-tuning hardly moves, and train the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import DataError, MethodError
from autopeft.method import Call, Interim, MethodConfig, ParameterCount, Phase, Traits, WeightTarget, register
from autopeft.nn import PerSite, TensorDeltas, top_entries
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["FAR", "learners"]


class RowDelta(nn.Module):
    """x ↦ Δ·x + β with Δ (out × in) and β (out) zero outside of k rows.

    `values` (k, in) and, where the map has one, `bias` (k,) start at zero; `index` (k,) holds the rising
    numbers of the rows, at first the first ones. Neither forward nor backward computes anything for other
    rows than these.
    """

    index: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, k: int, *, bias: bool) -> None:
        super().__init__()
        self.out_features = out_features
        self.values = nn.Parameter(torch.zeros(k, in_features))
        self.bias = nn.Parameter(torch.zeros(k)) if bias else None
        self.register_buffer("index", torch.arange(k))

    def hold(self, index: Tensor, values: Tensor, bias: Tensor | None) -> None:
        """Consist of copies of these values at these rows from now on."""
        order = index.argsort()
        self.index = index[order]
        self.values = nn.Parameter(values.detach()[order].clone())
        if self.bias is not None and bias is not None:
            self.bias = nn.Parameter(bias.detach()[order].clone())

    def check(self) -> None:
        """Raise DataError where the rows are none of the map's, as in a damaged file."""
        edges = self.index.new_tensor([-1]), self.index.new_tensor([self.out_features])
        around = torch.cat([edges[0], self.index, edges[1]])
        if not bool((around[1:] > around[:-1]).all()):
            raise DataError(
                f"The {len(self.index):,} rows of a change must rise and lie in [0, {self.out_features:,}), "
                "but they do not; the file that they were loaded from is damaged."
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, self.values, self.bias)
        if len(self.index) == self.out_features:
            return inner
        return inner.new_zeros(*x.shape[:-1], self.out_features).index_copy(-1, self.index, inner)

    def added_to(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A map's weight (out, in) and bias (out,) with the change in them: new tensors."""
        whole = weight.index_add(0, self.index, self.values.to(weight.dtype))
        if bias is None or self.bias is None:
            return whole, bias
        return whole, bias.index_add(0, self.index, self.bias.to(bias.dtype))


def learners(values: Tensor, k: int) -> Tensor:
    """Numbers (k,) of the rows of a change (out, in) that have the largest L1 norms, the largest first; of
    equal ones the first."""
    return top_entries([values.detach().float().abs().sum(dim=1)], k)


class FARModule(PerSite[RowDelta]):
    """Changes of some rows for each site, of all of them while it is primed, and of what else is trained.

    Attributes:
        chosen: whether the rows are those that priming chose. The first ones stand for them before, which is
            what priming without a step would choose.
    """

    def __init__(self, children: dict[str, RowDelta], rest: Sequence[TensorSpec], config: FAR.Config) -> None:
        super().__init__(children)
        self.rest = TensorDeltas(rest)
        self.config = config
        self.kept = [len(child.index) for child in self.children_by_site()]
        self.chosen = self.priming = False

    def side(self, site: Site) -> Literal["input", "output"]:
        self[site].check()
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        found: Tensor = self[site](x)
        return found

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self[site].added_to(weight, bias)

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.rest.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.rest.apply_to(str(target.tensor), current)

    def phases(self) -> list[Phase]:
        """`prime` and `train`, whose output is `nodes()`; one plain phase where the rows are chosen."""
        c = self.config
        if self.chosen:
            return [Phase("train")]
        return [
            Phase("prime", c.prime, begin=self.widen),
            Phase(
                "train",
                1 - c.prime,
                anew=c.rewind,
                begin=partial(self.narrow, keep=not c.rewind),
                output=self.nodes,
            ),
        ]

    def widen(self) -> None:
        """Train all rows from now on."""
        for child in self.children_by_site():
            v = child.values
            rows = torch.arange(child.out_features, device=v.device)
            child.hold(rows, v.new_zeros(len(rows), v.shape[1]), v.new_zeros(len(rows)))
        self.priming = True

    def narrow(self, *, keep: bool) -> None:
        """Hold the rows that moved furthest, with the values that they have come to, or with zeros."""
        for child, k in zip(self.children_by_site(), self.kept, strict=True):
            rows = learners(child.values, k).to(child.values.device)
            values, bias = child.values[rows], None if child.bias is None else child.bias[rows]
            if not keep:
                values, bias = torch.zeros_like(values), None if bias is None else torch.zeros_like(bias)
            child.hold(rows, values, bias)
        self.priming, self.chosen = False, True

    def settled(self, step: int, total: int) -> bool:
        """Once the rows are chosen."""
        return self.chosen

    def nodes(self) -> dict[str, list[int]]:
        """The rows that are held at each site (`encoder.0.up`)."""
        pairs = zip(self.at, self.children_by_site(), strict=True)
        return {key.replace("-", "."): child.index.cpu().tolist() for key, child in pairs}

    def deploy(self) -> None:
        """Hold the chosen rows alone, also in the midst of priming."""
        if self.priming:
            self.narrow(keep=True)
        self.chosen = True

    def finish(self) -> None:
        """A training that was stopped while it was primed leaves the rows that moved furthest so far."""
        self.deploy()


@register("far")
class FAR:
    """y_R = (W_R + V)·x + b_R + v for the rows R of each linear map of the FFN; all other rows are frozen.

    Vucetic et al. 2022, arXiv:2205.01541 (Freeze And Reconfigure). A node is a row of a map's weight with its
    entry of the bias. The share `prime` of the steps trains all nodes of the FFN's maps. Then each map keeps
    the share `retention` of its nodes, at least one: those whose rows have the largest ‖w − w₀‖₁, of equal
    ones the first. The other steps train these learners alone, and the other nodes return to W₀. V and v
    (k × in, k) start at zero and decay towards it. The learners go on from where priming has brought them,
    as all else that is trained does; with `rewind` everything starts from its first values instead.

    The paper splits a map in two and permutes the outputs back. Here the rows' change is added to the output
    of the whole frozen map: the same function, and no gradient of a frozen row is computed. Reconfigured are
    `up` and `down`, and in a gated FFN (Llama, T5 v1.1) `gate_proj` too, or the `sites` named. With `rest:
    trained` all else in its layers is trained too, attention and norms; embeddings stay frozen.

    The paper was read in notes. They have the norms, the order and one fine-tuning without a restart. Notes
    on the authors' next paper (arXiv:2208.02070) have priming over the first 10 % of the steps, and FAR at
    10 % with 41.4 of DistilBERT's 66.9 million parameters trained: all but nine tenths of the FFN, so that
    embeddings and the rest are trained there. Whether a share is of each map, as here, or of all together was
    not found.

    k·(in + 1) parameters for each map with a bias and k·in for others, k the nearest whole number to
    retention·out, and the sizes of the rest; while it is primed out·(in + 1), which no budget counts. Such a
    training cannot pause. One that is stopped before leaves the rows that moved furthest so far. Mergeable.
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}),
        sites=("up", "gate_proj", "down"),
        default_sites=("up", "gate_proj", "down"),
        mergeable=True,
        rowwise=True,
        phased=True,
    )
    size_field: ClassVar[str] = "retention"

    class Config(MethodConfig):
        retention: float = Field(default=0.1, gt=0, le=1, description="share of each map's nodes that learn")
        prime: float = Field(default=0.05, gt=0, lt=1, description="share of the steps that choose them")
        rewind: bool = Field(default=False, description="start from the first values once they are chosen")
        rest: Literal["frozen", "trained"] = Field(
            default="frozen", description="what is done with all else in its layers"
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.rest == "frozen":
            self.traits = replace(self.traits, ways=frozenset({"hook"}))

    def _kept(self, site: Site) -> int:
        return max(1, round(self.config.retention * site.out_features))

    def _rest(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        """All tensors of the layers of `sites` but those of these maps.

        Raises:
            MethodError: a map shares a tensor with another that is not among `sites`.
        """
        if self.config.rest == "frozen":
            return []
        layers, maps = {(s.stack, s.layer) for s in sites}, {(s.stack, s.layer, s.name) for s in sites}
        found = list[TensorSpec]()
        for t in spec.tensors:
            if (t.stack, t.layer) not in layers:
                continue
            apart = [name for name in t.maps if (t.stack, t.layer, name) not in maps]
            if apart and len(apart) < len(t.maps):
                raise MethodError(
                    f"far with rest: trained reconfigures a part of {t.name!r} and cannot train the other, "
                    f"{' and '.join(apart)}, beside it; name {' and '.join(t.maps)} in its sites, or leave "
                    "rest: frozen."
                )
            if apart or not t.maps:
                found.append(t)
        return found

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self._kept(s) * (s.in_features + s.bias) for s in sites)
        n += sum(t.size for t in self._rest(sites, spec))
        return ParameterCount(n, n)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Priming trains all nodes."""
        nodes = sum(s.out_features * (s.in_features + s.bias) for s in sites)
        return Interim(trained=nodes + sum(t.size for t in self._rest(sites, spec)))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        nodes = {s.key: RowDelta(s.in_features, s.out_features, self._kept(s), bias=s.bias) for s in sites}
        return FARModule(nodes, self._rest(sites, spec), self.config)
