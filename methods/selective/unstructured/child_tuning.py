"""Child-tuning: only a part of the parameters, the child network, gets a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from autopeft.errors import UsageError, near
from autopeft.method import MethodConfig, Traits, register

__all__ = ["ChildTuningF"]


@register("child_tuning_f")
class ChildTuningF:
    """g ← g·m/p with m ~ Bernoulli(p) for every entry of every gradient, drawn anew in each step.

    Xu et al. 2021, arXiv:2109.05687, the task-free variant. A training policy: it places nothing and has no
    parameters. It acts on all that the recipe trains, the head included, or on the entries, parts and
    compositions in `on` alone (`on: [lora]` makes a child of a LoRA). As in the authors' code gradients are
    clipped before, and the optimizer sees the masked ones, so that its moments are those of the child. The
    mean over draws is the gradient itself; it regularises and saves no storage: all that trains is counted
    as ever. The authors use p from 0.2 to 0.4.
    """

    traits = Traits(level="training")

    class Config(MethodConfig):
        p: float = Field(default=0.3, gt=0, lt=1, description="share of the entries that keep their gradient")
        on: tuple[str, ...] | None = Field(default=None, description="names of groups; all by default")

    def __init__(self, config: Config) -> None:
        self.config = config

    def acts_on(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether some group is among those named.

        Raises:
            UsageError: a name is that of no group.
        """
        names = [str(group.get("name", "")) for group in groups]
        unknown = [own for own in self.config.on or () if not any(_is_of(name, own) for name in names)]
        if unknown:
            raise UsageError(
                f"child_tuning_f was to act `on` {unknown[0]!r}, and nothing that trains is called so."
                f"{near(unknown[0], names)} There are: {', '.join(names)}."
            )
        return any(True for _ in self._parameters(groups))

    def before_update(self, groups: Sequence[Mapping[str, Any]], step: int, total: int) -> None:
        """Mask the gradients, which are clipped already."""
        for parameter in self._parameters(groups):
            if parameter.grad is not None:
                kept = torch.rand_like(parameter.grad, dtype=torch.float32) < self.config.p
                parameter.grad.mul_(kept).div_(self.config.p)

    def _parameters(self, groups: Sequence[Mapping[str, Any]]) -> Iterator[nn.Parameter]:
        on = self.config.on
        for group in groups:
            name = str(group.get("name", ""))
            if on is None or any(_is_of(name, own) for own in on):
                yield from group["params"]


def _is_of(group: str, name: str) -> bool:
    """Whether a group is of an entry, a part or a composition."""
    return group == name or group.startswith(f"{name}.")
