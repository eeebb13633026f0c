"""Stages of a training: what a method that needs some returns from `phases()` (see `autopeft.method`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

__all__ = ["OuterStep", "Phase", "PhasePart"]

PhasePart = Literal["own", "others", "head"]


class OuterStep(Protocol):
    """One step of a bilevel problem, as a phase's `outer` sees it.

    The lower level is what the phase trains, on the rows that it does not hold out. The upper level are
    parameters that the declaring module leaves out of its `parameter_groups()` and trains itself, with an
    optimizer of its own, on the rows that are held out. Gradients come as lists, one tensor for each of the
    `wanted` parameters, zeros where the loss does not depend on it; their `.grad` is empty afterwards. They
    are of whole batches, however many rows go through the model at once.

    Attributes:
        parameters: of the lower level. `outer` may alter their values and must put them back.
        rates: the present learning rate of each.
    """

    @property
    def parameters(self) -> Sequence[nn.Parameter]: ...

    @property
    def rates(self) -> Sequence[float]: ...

    def lower(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradient of the loss of the batch that this step trains on, the modules' `loss_terms` included.

        All calls within a step draw the same random numbers.
        """

    def upper(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradient of the task's loss of a batch of held-out rows, which the next step has another of.

        All calls within a step draw the same random numbers, others than those of `lower`.
        """


@dataclass(frozen=True)
class Phase:
    """One stage. A module that needs stages returns them, in order, from `phases()`.

    Each phase starts a new optimizer and schedule over its own steps. Events fire only on the modules that
    the phase trains, with steps counted over the whole training, or from the latest phase that starts `anew`
    up to the next one.

    Attributes:
        name: unique in the training; names the output.
        share: its part of the plan's steps, relative to the other phases' shares.
        split: name of the data split it trains on.
        trains: which parameters: the declaring module's `own`, the `others` (all other entries, gates
            included) and the `head`.
        held_out: share of the split's rows, drawn with the plan's seed, that it does not train on.
        anew: what it trains starts from the values that it had before the first phase, buffers of the
            modules included. What `begin` makes of them stays.
        begin: called before the first step.
        outer: called in each step, between `before_step` and the lower level's own forward, with the step's
            bilevel problem; needs `held_out`.
        output: called without gradients after the last step; what it returns is the phase's output (a mask,
            a prompt).
    """

    name: str
    share: float = 1.0
    split: str = "train"
    trains: frozenset[PhasePart] = frozenset(("own", "others", "head"))
    held_out: float = 0.0
    anew: bool = False
    begin: Callable[[], None] | None = None
    outer: Callable[[OuterStep], None] | None = None
    output: Callable[[], Any] | None = None
