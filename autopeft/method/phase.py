"""Stages of a training: what a method that needs some returns from `phases()` (see `autopeft.method`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

__all__ = ["OuterStep", "Phase", "PhasePart", "Sample", "Session"]

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

    def ahead(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The values of `parameters` after one step of the lower level's optimizer with these gradients,
        which are not clipped. Values and what the optimizer remembers stay as they are."""


@dataclass(frozen=True)
class Sample:
    """What a model has written for a row of a phase.

    Attributes:
        row: its number in the split.
        tokens: of what was written, the one that ends it included where it came to an end.
        text: the same as text.
        reward: of the text, higher is better (see `Session.write`).
    """

    row: int
    tokens: tuple[int, ...]
    text: str
    reward: float


class Session(Protocol):
    """A phase as its `run` sees it, with everything attached as it is at the moment.

    Gradients and losses are those of the task alone, without the modules' `loss_terms`. They are asked for in
    eval mode unless `training` is given; then modules draw, and the backbone's dropout where the recipe has
    it. What requires gradients is afterwards as it was.

    Attributes:
        steps: how many optimizer steps the phase has.
        taken: how many of them have been taken, those before a pause of the training included.
        over: whether no step is left, or the training is to end.
        rows: of a batch, as the plan has it.
        backbone: the backbone's own parameters, named from the base model; they are not trained.
    """

    @property
    def steps(self) -> int: ...

    @property
    def taken(self) -> int: ...

    @property
    def over(self) -> bool: ...

    @property
    def rows(self) -> int: ...

    @property
    def backbone(self) -> Mapping[str, nn.Parameter]: ...

    def step(self, batch: Mapping[str, Tensor] | None = None) -> bool:
        """Take the next step as any phase does, events included; `False`, and nothing happens, where it is
        `over`.

        Args:
            batch: what it trains on in place of the next rows.
        """

    def write(
        self,
        rows: int | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        most: int | None = None,
    ) -> list[Sample]:
        """What the model writes now to the rows that the phase trains on, one text each, drawn with torch's
        generators in eval mode. The reward of a text is the task's metric of it beside the row's label, so
        that a metric of one's own is a reward of one's own.

        Args:
            rows: so many of them by lot, none of them twice; by default all.
            temperature: logits are divided by it; 0 takes the most probable token.
            top_p: draws among the most probable tokens that have this probability together.
            most: tokens of a text; by default those of the longest label.

        Raises:
            TaskError: models for the task write no texts, or its metric does not compare texts.
        """

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The rows of samples as a batch in which what was written stands in the label's place, to learn
        from. Names that begin with `FEATURE` may be added to tell modules something of the rows."""

    def batches(self, rows: int | None = None) -> Iterator[dict[str, Tensor]]:
        """The rows that the phase trains on, each once, in an order drawn from the plan's seed.

        Args:
            rows: of a batch; by default the plan's.
        """

    def losses(self, batch: Mapping[str, Tensor], *, training: bool = False) -> Tensor:
        """The loss of each row of a batch, (rows,), without gradients."""

    def gradients(
        self, batch: Mapping[str, Tensor], wanted: Sequence[nn.Parameter], *, training: bool = False
    ) -> list[Tensor]:
        """Gradient of the batch's loss for each of the `wanted` parameters, of the backbone or of a module;
        zeros where the loss does not depend on it. Their `.grad` is empty afterwards."""

    def forget(self, parameters: Sequence[nn.Parameter]) -> None:
        """Have the optimizer start anew with these parameters: it drops the moments and the count of steps
        that it keeps for them. Learning rates go on."""


@dataclass(frozen=True)
class Phase:
    """One stage. A module that needs stages returns them, in order, from `phases()`.

    Where several entries have phases, those of one follow those of the other, in the order of the recipe and
    with equal parts of the steps. Meanwhile the other stays as it is: at its start before its own phases, as
    they left it afterwards.

    Each phase starts a new optimizer and schedule over its own steps. Events fire only on the modules that
    the phase trains. For the declaring module they count the steps of its own phases, for entries without
    phases those of the whole training: from the latest phase that starts them `anew`, up to the next one.

    Attributes:
        name: unique in the training; names the output.
        share: its part of the plan's steps, relative to the other phases' shares.
        split: name of the data split it trains on.
        trains: which parameters: the declaring module's `own`, the `others` (all other entries without phases
            of their own, gates included) and the `head`.
        held_out: share of the split's rows, drawn with the plan's seed, that it does not train on.
        anew: what it trains starts from the values that it had before the entry's first phase, or, where this
            is the name of an earlier one, before that; buffers of the modules included. What `begin` makes of
            them stays.
        begin: called before the first step.
        outer: called in each step, between `before_step` and the lower level's own forward, with the step's
            bilevel problem; needs `held_out`.
        run: takes the place of the loop: it is handed the phase as a `Session` and takes its steps itself, up
            to all of them.
        resumes: whether a training that was paused in it can go on: all that it has to know is in parameters
            and buffers, and in how many steps were taken. Else a pause leaves no checkpoint.
        output: called without gradients after the last step; what it returns is the phase's output (a mask,
            a prompt).
    """

    name: str
    share: float = 1.0
    split: str = "train"
    trains: frozenset[PhasePart] = frozenset(("own", "others", "head"))
    held_out: float = 0.0
    anew: bool | str = False
    begin: Callable[[], None] | None = None
    outer: Callable[[OuterStep], None] | None = None
    run: Callable[[Session], None] | None = None
    resumes: bool = True
    output: Callable[[], Any] | None = None
