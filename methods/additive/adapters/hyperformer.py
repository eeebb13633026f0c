"""Hyperformer: adapters of all tasks, written by hypernetworks from a vector of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import (
    Call,
    MethodConfig,
    ParameterCount,
    Traits,
    WeightTarget,
    WrittenOut,
    register,
    required_tasks,
    task_numbers,
)
from autopeft.nn import (
    ACTIVATIONS,
    TaskGenerator,
    TensorDeltas,
    bottleneck_shapes,
    norms_around,
    rows_through,
)
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["Hyperformer"]

_EPSILON = 1e-5


class HyperformerModule(nn.Module):
    """The generator, and deltas of the norms that are trained."""

    def __init__(
        self, generator: TaskGenerator, norms: Sequence[TensorSpec], config: Hyperformer.Config
    ) -> None:
        super().__init__()
        self.generator, self.norms = generator, TensorDeltas(norms)
        self.config, self.names = config, required_tasks("hyperformer", config.tasks)

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        numbers, there = task_numbers("hyperformer", self.names, len(y), call)
        written = self.generator(site, torch.tensor(there, device=y.device))
        which = None if len(there) == 1 else torch.searchsorted(torch.tensor(there, device=y.device), numbers)
        found = rows_through(y, written, which, ACTIVATIONS["gelu_tanh"])
        found = nn.functional.layer_norm(found, found.shape[-1:], eps=_EPSILON)
        rows = (-1, *[1] * (y.ndim - 2), y.shape[-1])
        gain, bias = (
            (written[name] if which is None else written[name][which]).view(rows)
            for name in ("norm.weight", "norm.bias")
        )
        branch: Tensor = found * gain + bias
        return branch

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.norms.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.norms.apply_to(str(target.tensor), current)

    @torch.no_grad()
    def written_out(self, task: int, sites: Sequence[Site]) -> WrittenOut:
        """The adapters of one task: `serial_adapter` of the variant `hyperformer`."""
        tensors = {
            f"at.{site.key}.{name}": value[0]
            for site in sites
            for name, value in self.generator(
                site, torch.tensor([task], device=self.generator.tasks.device)
            ).items()
        }
        tensors |= {f"norms.{name}": value for name, value in self.norms.state_dict().items()}
        options = {"variant": "hyperformer", "bottleneck": self.config.bottleneck}
        options |= {"sites": list(dict.fromkeys(site.name for site in sites))}
        return WrittenOut("serial_adapter", {**options, "train_norms": self.config.train_norms}, tensors)


@register("hyperformer")
class Hyperformer:
    """y' = y + LN_{g,b}(φ(y·W_dnᵀ + b_dn)·W_upᵀ + b_up) behind attention and FFN, all of it written from a
    vector of the task.

    Karimi Mahabadi et al. 2021, arXiv:2106.04489. W_dn (m × d), W_up (d × m), their biases, and gain g and
    bias b of the LN are θ = U·I + b₀, I made of the task's vector by a `TaskGenerator`. `heads: site` (the
    paper's Hyperformer): each site has maps U of its own. `stack` (Hyperformer++): one set of maps for each
    stack, which are told the layer and the place by vectors. `place` (what the authors' hyperformer.json
    sets): one set for attentions and one for FFNs of a stack, told the layer. g is used as it is, without 1
    + g. φ is the tanh form of GELU. Maps are N(0, 0.01), their biases zero, vectors N(0, 1): the branch
    begins with a deviation of about 0.11 for each feature, whatever the adapter's weights are. Not the
    identity.

    Gains and biases of norms are trained too, for all tasks together (`train_norms`), as zero-initialised
    deltas: those of the layers that it sits in, and final ones where these are all layers. Batches of one
    task are what is published; those of several give the same. Written out for one task
    (`autopeft.hybrid.of_task`) it is `serial_adapter` of the variant `hyperformer`. Not mergeable: the LN
    stands in the way.

    With H = (q+1)(2dm + d + m) + 2(q+1)d: for each stack `stack` has (3t+1)h + (h+1)q + 2q + L·t + 2t + H
    parameters, `place` (2t+1)h + (h+1)q + 2q + L·t + 2H; `site` has 2L·H in each stack and (t+1)h + (h+1)q
    once. T·t for T tasks, and the norms. T5-base, m 24, 8 tasks: 5,163,440, 10,241,760 and 122,296,128, and
    47,616 for norms.
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}),
        sites=("attention", "ffn"),
        default_sites=("attention", "ffn"),
        needs=frozenset({"several_tasks"}),
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "bottleneck"

    class Config(MethodConfig):
        heads: Literal["site", "place", "stack"] = "site"
        bottleneck: int = Field(default=24, ge=1, le=16_384, description="m")
        tasks: tuple[str, ...] | None = Field(default=None, description="names; default: those trained on")
        vector: int = Field(default=64, ge=1, le=4_096, description="t, of task, layer and place")
        hidden: int = Field(default=128, ge=1, le=16_384, description="h, of the projector")
        width: int = Field(default=64, ge=1, le=4_096, description="q, of what heads read")
        train_norms: bool = Field(default=True, description="gains and biases of norms")

    def __init__(self, config: Config) -> None:
        self.config = config
        if not config.train_norms:
            self.traits = replace(self.traits, ways=frozenset({"hook"}))

    def _options(self) -> dict[str, Any]:
        c = self.config
        tasks = len(required_tasks("hyperformer", c.tasks))
        return {"heads": c.heads, "tasks": tasks, "vector": c.vector, "hidden": c.hidden, "width": c.width}

    def _shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        d = site.out_features
        return {**bottleneck_shapes(d, self.config.bottleneck), "norm.weight": (d,), "norm.bias": (d,)}

    def _norms(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        return norms_around(sites, spec) if self.config.train_norms else []

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = TaskGenerator.size(sites, self._shapes, **self._options())
        n += sum(t.size for t in self._norms(sites, spec))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        generator = TaskGenerator(sites, self._shapes, **self._options())
        return HyperformerModule(generator, self._norms(sites, spec), self.config)
