"""Diff pruning: a dense difference, pruned by an L0 penalty to the entries that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from autopeft.method import Interim, ParameterCount, Traits, register
from autopeft.nn import DiffPruningConfig, GatedEntries
from autopeft.spec import BackboneSpec, Site

__all__ = ["UDiffPruning"]


@register("u_diff_pruning")
class UDiffPruning:
    """θ = θ₀ + z·w while it searches, z hard-concrete gates with locations a; then θ = θ₀ + scatter(idx, v).

    Guo et al. 2021, arXiv:2012.07463, without the groups (`s_diff_pruning` has them). The share `search` of
    the steps trains w, zero at first, and a, 5 at first, for every entry of the base model, embeddings and
    norms included, with the loss plus λ·Σ P(z > 0). z = clamp(s·(r − l) + l, 0, 1) with
    s = sigmoid(log u − log(1 − u) + a); each step draws one u for each entry, and evaluation has u = ½. w
    trains at `search_rate` times the recipe's rate, a by the same optimizer at the constant rate
    `location_learning_rate`, without decay and clipped by itself.

    λ and the rate of a are the authors' for searches of n ≥ 3,207 steps, as in their README (3 epochs of CoLA
    in batches of 8; on SST-2 they have the same for 25,257). In a shorter one both are √(3207/n) times as
    large (own), so that noise moves a as far as in theirs and the penalty weighs as much against it. As they
    are they would close no gate in a short search: the gradient of the penalty at a = 5, 8·10⁻¹⁰, is below
    Adam's ε, and a gate that has no other gradient leaves 1 in step 159.

    Then idx are the k entries with the largest |z·w| at u = ½, of all tensors together, the head left out;
    where fewer gates are open, those with the largest |w| follow. v (k) starts at their w, without gates, and
    the other steps train it at the recipe's rate with a new optimizer and schedule; head and other methods go
    on from where they are. (The authors' code ranks by the gates that the last step drew, and the head's
    entries among the others; it bisects a threshold. Its head trains at the rates of w and v.) `keep` is k,
    or a share of the whole base model.

    Mergeable. k parameters (and k indices, which are storage). What the search needs is not counted: w and a
    in fp32 for each entry of the base model, and of both the gradient and the optimizer's state (by Adam 32
    bytes an entry, 4.3 GB for 135 million), which is freed when the entries are chosen. Draws and gates are
    made again where they are needed. Such a training cannot pause. One that is stopped before leaves the
    largest changes as they are.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        level="model",
        mergeable=True,
        stochastic=True,
        gateable=False,
        phased=True,
    )
    size_field: ClassVar[str] = "keep"
    Config = DiffPruningConfig

    def __init__(self, config: DiffPruningConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self.config.count("u_diff_pruning", spec.tensors, spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """The search trains w and a of every entry."""
        return Interim(trained=2 * sum(t.size for t in spec.tensors))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        k = self.config.count("u_diff_pruning", spec.tensors, spec)
        return GatedEntries(spec.tensors, k, self.config)
