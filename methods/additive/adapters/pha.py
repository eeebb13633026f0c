"""PHA: adapters of the decoder written from a prototype of the task (prototype-based HyperAdapter)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import (
    Call,
    LossStep,
    MethodConfig,
    ParameterCount,
    Traits,
    WrittenOut,
    register,
    required_tasks,
    task_numbers,
)
from autopeft.nn import (
    ACTIVATIONS,
    Bottleneck,
    PerSite,
    TaskGenerator,
    bottleneck_shapes,
    rows_through,
    summarised,
)
from autopeft.spec import BackboneSpec, Site

__all__ = ["PHA", "instance_loss", "prototype_loss"]

_HEARS = "cross_k"
_ENCODER_GAIN = 1e-4


def instance_loss(features: Tensor, tasks: Tensor, temperature: float) -> Tensor | None:
    """−mean over the other rows p of a row's task of log [exp(s_ap) / Σ_{c≠a} exp(s_ac)], the mean over the
    rows a that have one; s are cosines over the temperature. `None` where no row has one."""
    unit = nn.functional.normalize(features, dim=-1)
    scores = unit @ unit.T / temperature
    self_ = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    logs = scores.masked_fill(self_, -torch.inf).log_softmax(dim=-1)
    same = (tasks[:, None] == tasks) & ~self_
    having = same.any(dim=-1)
    if not bool(having.any()):
        return None
    of_row = logs.masked_fill(~same, 0).sum(-1) / same.sum(-1).clamp(min=1)
    return -of_row[having].mean()


def prototype_loss(features: Tensor, prototypes: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """−(s_a,t(a) − log Σ_{t≠t(a)} exp(s_a,t)), the mean over rows a: the own prototype is left out of the
    sum, as in the authors' code."""
    unit, kinds = (nn.functional.normalize(v, dim=-1) for v in (features, prototypes))
    scores = unit @ kinds.T / temperature
    own = torch.zeros_like(scores, dtype=torch.bool).scatter(1, tasks[:, None], True)
    return (scores.masked_fill(own, -torch.inf).logsumexp(-1) - scores[own]).mean()


class PHAModule(nn.Module):
    """Adapters of the encoder, the generator of the decoder's, and the retriever that the contrasts train."""

    def __init__(
        self, own: dict[str, Bottleneck], generator: TaskGenerator, width: int, config: PHA.Config
    ) -> None:
        super().__init__()
        self.own, self.generator, self.config = PerSite(own), generator, config
        self.names = required_tasks("pha", config.tasks)
        self.retriever = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.vector)
        )
        self._heard: tuple[Tensor, Tensor] | None = None  # pooled states and tasks of the last forward

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return x

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        if site.name == _HEARS:
            self._hear(x, call)
            return torch.zeros_like(y)
        if site.stack == "encoder":
            out: Tensor = self.own[site](x)
            return out
        numbers, there = task_numbers("pha", self.names, len(x), call)
        present = torch.tensor(there, device=x.device)
        which = None if len(there) == 1 else torch.searchsorted(present, numbers)
        return rows_through(x, self.generator(site, present), which, ACTIVATIONS["relu"])

    def _hear(self, states: Tensor, call: Call) -> None:
        """Keep the mean of the encoder's last states (rows, positions, width) for the contrasts."""
        if self.training and torch.is_grad_enabled() and not call.context.further:
            need = "The contrasts of pha are told which positions are padding by"
            pooled = summarised(states, call.context.told(need, source=True), "mean")
            # A layer that is recomputed for its gradient comes by once more, in the middle of backward.
            if torch._C._current_graph_task_id() == -1:
                self._heard = pooled, task_numbers("pha", self.names, len(states), call)[0]

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """The two contrasts of the last forward, times their factor."""
        heard, self._heard = self._heard, None
        if heard is None or not (self.config.contrast and len(self.retriever)):
            return None
        pooled, tasks = heard
        features, temperature = self.retriever(pooled), self.config.temperature
        total = prototype_loss(features, self.generator.tasks, tasks, temperature)
        among = instance_loss(features, tasks, temperature)
        return self.config.contrast * (total if among is None else total + among)

    def deploy(self) -> None:
        """Keep no retriever, which acts on the loss alone."""
        self.retriever = nn.Sequential()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_heard": None}  # of which no copy could be made, as it is in a graph

    @torch.no_grad()
    def written_out(self, task: int, sites: Sequence[Site]) -> WrittenOut:
        """The adapters of one task: `parallel_adapter`s of both stacks."""
        tensors: dict[str, Tensor] = {}
        for site in sites:
            if site.name == _HEARS:
                continue
            if site.stack == "encoder":
                found = self.own[site].state_dict()
            else:
                of_task = torch.tensor([task], device=self.generator.tasks.device)
                found = {name: value[0] for name, value in self.generator(site, of_task).items()}
            tensors |= {f"at.{site.key}.{name}": value for name, value in found.items()}
        options = {"bottleneck": self.config.bottleneck, "scale": 1.0, "input": "normed"}
        return WrittenOut("parallel_adapter", options, tensors)


@register("pha")
class PHA:
    """y' = y + φ(x·W_dnᵀ + b_dn)·W_upᵀ + b_up beside each FFN; in the decoder W and b are written from the
    task's prototype.

    Zhao et al. 2023, arXiv:2310.11670 (prototype-based HyperAdapter), on backbones of an encoder and a
    decoder; x is what the FFN reads. The encoder's adapters are shared by all tasks, Xavier-uniform with
    gain 1e-4. The decoder's are θ = U·I + b, I made from the prototype kₜ and a vector of the layer by one
    `TaskGenerator` for all layers, whose maps are torch's and whose heads begin close to zero: near the
    identity, not exactly. While training, a retriever f = ReLU(p·W₁ + b₁)·W₂ + b₂ reads the mean p of the
    encoder's last states, and two contrasts, each times `contrast`, pull rows of a task together and towards
    its prototype (`instance_loss`, `prototype_loss`); f does not enter the adapters. Batches of several
    tasks, drawn by their sizes, are what is published: the sampler by temperature is commented out in the
    authors' code. Retrieval for a task that was not trained on is not in their code and not here. Nor are
    the ordinary adapters that their decoder makes and never uses.

    Written out for one task (`autopeft.hybrid.of_task`) it is `parallel_adapter`s. With A = 2dm + d + m:
    L_e·A + L_d·t + (2t+1)h + (h+1)q + 2q + (q+1)·A + T·t parameters for T tasks, and (d+1)h + (h+1)t of the
    retriever while training. T5-base, m 64, 8 tasks: 7,766,336 trained.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=("ffn", _HEARS),
        default_sites=("ffn", _HEARS),
        needs=frozenset({"several_tasks", "encoder_decoder"}),
        identity=False,
        gateable=False,
        batch_terms=True,
    )
    size_field: ClassVar[str] = "bottleneck"

    class Config(MethodConfig):
        bottleneck: int = Field(default=64, ge=1, le=16_384, description="m, in both stacks")
        tasks: tuple[str, ...] | None = Field(default=None, description="names; default: those trained on")
        vector: int = Field(default=64, ge=1, le=4_096, description="t, of prototypes and layers")
        hidden: int = Field(default=128, ge=1, le=16_384, description="h, of projector and retriever")
        width: int = Field(default=64, ge=1, le=4_096, description="q, of what heads read")
        contrast: float = Field(default=0.1, ge=0, le=100, description="factor of each contrast")
        temperature: float = Field(default=0.1, gt=0, le=10, description="of the contrasts")

    def __init__(self, config: Config) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """Of the sites that read the encoder's states the first one."""
        hears = [site for site in sites if site.name == _HEARS][:1]
        return tuple(site for site in sites if site.name != _HEARS or site in hears)

    def _generated(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if site.name == "ffn" and site.stack == "decoder"]

    def _own(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if site.name == "ffn" and site.stack == "encoder"]

    def _heard(self, sites: Sequence[Site]) -> int:
        """The width of the encoder's states."""
        return next(site.in_features for site in sites if site.name == _HEARS)

    def _shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        return bottleneck_shapes(site.in_features, self.config.bottleneck)

    def _options(self) -> dict[str, Any]:
        c = self.config
        tasks = len(required_tasks("pha", c.tasks))
        return {"heads": "stack", "tasks": tasks, "vector": c.vector, "hidden": c.hidden, "width": c.width}

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        retriever = (self._heard(sites) + 1) * c.hidden + (c.hidden + 1) * c.vector
        n = sum(Bottleneck.size(site.in_features, c.bottleneck) for site in self._own(sites))
        n += TaskGenerator.size(self._generated(sites), self._shapes, **self._options())
        return ParameterCount(n, n + retriever)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        own = {site.key: Bottleneck(site.in_features, self.config.bottleneck) for site in self._own(sites)}
        for adapter in own.values():
            for linear in (adapter.down, adapter.up):
                nn.init.xavier_uniform_(linear.weight, gain=_ENCODER_GAIN)
        generator = TaskGenerator(
            self._generated(sites), self._shapes, std=None, epsilon=1e-6, **self._options()
        )
        return PHAModule(own, generator, self._heard(sites), self.config)
