"""`task_route`: children mixed by weights of each task, which all sites share (MOELoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    alters_weights,
    check_learn_together,
    mixed,
)
from autopeft.composition.registry import register
from autopeft.devices import full_precision
from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, WeightTarget, required_tasks, task_numbers
from autopeft.spec import Site

__all__ = ["TaskRoute"]


class TaskRouteOptions(CompositionOptions):
    """See `autopeft.composition.task_route`."""

    tasks: list[str] | None = Field(default=None, description="their names; default: those trained on")
    vector: int = Field(default=64, ge=1, le=4096, description="dₜ, size of the vector of a task")


@register("task_route")
class TaskRoute(nn.Module):
    """δ = Σᵢ wᵢ·δᵢ with w = softmax(W·e), e the vector of the row's task: one w for each task, which all
    sites share.

    Liu et al. 2024, arXiv:2310.18339 (MOELoRA, in the form that their script runs), over any children. Each e
    is N(0, 1), W is uniform in ±1/√dₜ, without bias: tasks begin with different weights. Children keep their
    own scales. The authors' scale is α/r with the rank r of all experts together: a child of rank r/E has
    alpha α/E. Their table has a row that no task has, and further tables that get no gradient; here there is
    neither. Written out for one task, LoRAs are one LoRA (see `autopeft.hybrid.of_task`). T·dₜ + E·dₜ
    parameters for T tasks and E children.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "children mixed by weights of each task, which all sites share (MOELoRA)"
    traits: ClassVar[CompositionTraits] = CompositionTraits(copies=True, several=True)
    Options = TaskRouteOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__()
        self.tasks, self.order = required_tasks("task_route", options["tasks"]), [c.name for c in children]
        self.vectors = nn.Embedding(len(self.tasks), options["vector"])
        self.gate = nn.Linear(options["vector"], len(children), bias=False)

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        required_tasks("task_route", options["tasks"])
        check_learn_together("task_route", children)
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("task_route", child)
            if child.ways & {"kv", "prompt"}:
                raise CompositionError(
                    f"{child.label} adds rows to a sequence, and task_route mixes what is added at a "
                    "position; "
                    "list it beside, take a switch for prefixes, or adapters or LoRAs."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        tasks = required_tasks("task_route", options["tasks"])
        n = (len(tasks) + len(children)) * int(options["vector"])
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> TaskRoute:
        return cls(children, options)

    def weights(self) -> Tensor:
        """w of each task, (tasks, children), in fp32."""
        with full_precision(self.gate.weight.device):
            return torch.softmax(self.gate(self.vectors.weight).float(), dim=-1)

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        numbers, _ = task_numbers("task_route", self.tasks, len(x), call)
        w = self.weights().to(y.dtype)[numbers]
        return mixed(w.view(len(x), *[1] * (y.ndim - 2), -1), self.order, children, x, y, call)

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A task_route holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        raise CompositionError("A task_route holds no methods on keys and values.")
