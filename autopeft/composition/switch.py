"""`switch`: a child for each task of a set."""

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
)
from autopeft.composition.registry import register
from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, WeightTarget, required_tasks, task_numbers
from autopeft.spec import Site

__all__ = ["Switch", "check_one_for_each", "child_of_each_row"]


class SwitchOptions(CompositionOptions):
    """See `autopeft.composition.switch`."""

    tasks: list[str] | None = Field(
        default=None, description="names, in the order of the children; default: those trained on"
    )


@register("switch")
class Switch(nn.Module):
    """δ of the child of the row's task: the i-th child is that of the i-th task.

    So hybrids that were trained apart, each on a task, are one hybrid: their entries start `from:` inputs,
    frozen or not. Where one child is written, there is one like it for each task. Rows of a task do not touch
    the other children, which get no gradient from them. A child that is not at a site adds nothing there for
    its task. Where one task has prefixes each has some, and batches of several tasks need equal lengths. No
    parameters.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "a child for each task of a set"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        ordered=True, copies=True, several=True, for_each_task=True
    )
    Options = SwitchOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__()
        self.tasks, self.order = required_tasks("switch", options["tasks"]), [c.name for c in children]

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        check_one_for_each("switch", children, options)
        check_learn_together("switch", children)
        without = [child.label for child in children if "kv" not in child.ways]
        if 0 < len(without) < len(children):
            raise CompositionError(
                f"Of a switch each child has prefixes or none has, but {', '.join(without)} has none: list "
                "prefixes in a switch of their own."
            )
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("switch", child)
            if "prompt" in child.ways:
                raise CompositionError(
                    f"{child.label} adds rows to the sequence, outside of any site where a switch could "
                    "choose; take prefix_tuning, or list the prompt beside the switch."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        return ParameterCount(0, 0)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Switch:
        return cls(children, options)

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        numbers, there = task_numbers("switch", self.tasks, len(x), call)
        return child_of_each_row(self.order, children, numbers, there, x, y, call)

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A switch holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        numbers, there = task_numbers("switch", self.tasks, len(x), call)
        own = {self.order.index(child.name): child for child in children}
        pairs = {task: own[task].key_value(x, call) for task in there if task in own}
        if len(pairs) < len(there) or len({keys.shape[1] for keys, _ in pairs.values()}) > 1:
            raise CompositionError(
                f"The tasks of this batch have prefixes of different lengths at {site.path}, or some have "
                "none there; give each task prefixes in the same layers, and take homogeneous "
                "batches, or one "
                "length."
            )
        keys, values = (part.expand(len(x), -1, -1) for part in pairs[there[0]])
        for task in there[1:]:
            its = (numbers == task)[:, None, None]
            keys, values = torch.where(its, pairs[task][0], keys), torch.where(its, pairs[task][1], values)
        return keys, values


def check_one_for_each(kind: str, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
    """Check that there is a child for each task.

    Raises:
        CompositionError: there are more or fewer, or the tasks are not named.
    """
    tasks = required_tasks(kind, options["tasks"])
    if len(tasks) != len(children):
        raise CompositionError(
            f"A {kind} has a child for each task, but got {len(children)} for the {len(tasks)} tasks "
            f"{', '.join(tasks)}; write one child, of which each task has a copy, or one for each."
        )


def child_of_each_row(
    order: Sequence[str],
    children: Sequence[Child],
    numbers: Tensor,
    there: Sequence[int],
    x: Tensor,
    y: Tensor,
    call: Call,
) -> Tensor:
    """δ of the child that each row chooses, in the shape of y; zeros where that child is not here.

    Args:
        order: the names of all children.
        numbers: (rows,), which of them.
        there: the numbers that some row has. Other children are not computed.
    """
    own = {order.index(child.name): child for child in children}
    if len(there) == 1 and there[0] in own:
        return own[there[0]].delta(x, y, call)
    total = torch.zeros_like(y)
    for number in there:
        if number in own:
            its = (numbers == number).view(-1, *[1] * (y.ndim - 1))
            total = torch.where(its, own[number].delta(x, y, call), total)
    return total
