"""FISH-DIP: a sparse mask that moves to where the hardest examples want it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError, MethodError
from autopeft.method import Calibration, Interim, Objective, ParameterCount, Phase, Session, Traits, register
from autopeft.nn import GRADIENT_POWERS, ChosenEntries, KeepConfig, batch_gradients, ranked, reach_of
from autopeft.quantity import parse_quantity
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["FishDip"]

Batch = dict[str, Tensor]


_log = logging.getLogger("autopeft")


class MovingMask(ChosenEntries):
    """Values at all entries that were in a mask so far, of which those in the present mask train.

    Gradients outside the mask are zero, and what rests stays to the last bit, whatever the optimizer
    remembers of it or decays. Who moves the mask has the optimizer begin anew with `entries.values`, whose
    places then belong to other entries.

    Args:
        k: entries of a mask.
        bound: entries of all masks together, at most.
        name: of the method, as messages call it.

    Attributes:
        active: whether each place is in the mask, (bound,); `None` of a deployed form.
        bounded: whether some mask did not fit.
    """

    active: Tensor | None

    def __init__(self, tensors: Sequence[TensorSpec], k: int, bound: int, name: str) -> None:
        super().__init__(tensors, bound)
        self.k, self.bound, self.name = k, bound, name
        self.register_buffer("active", torch.zeros(bound, dtype=torch.bool))
        self.bounded = False
        self._resting: Tensor | None = None

    def clear(self) -> None:
        """Store nothing."""
        self.entries.index.fill_(-1)
        nn.init.zeros_(self.entries.values)
        self.bounded = False

    def move(self, mask: Tensor) -> None:
        """Make these positions the mask; they have to fit."""
        self.entries.extend(mask)
        assert self.active is not None
        self.active.copy_(torch.isin(self.entries.index, mask.to(self.entries.index)))

    def best(self, scores: Tensor) -> Tensor:
        """The k best entries; where they do not fit, the best of what is stored and of the new ones that do.

        Args:
            scores: of all entries, one tensor after another.

        Raises:
            AutoPEFTError: some score is not finite.
        """
        best, held = ranked([scores], self.k, self.name), self.entries.held
        new = best[~torch.isin(best, held)]
        free = len(self.entries.index) - len(held)
        if len(new) <= free:
            return best
        if not self.bounded:
            _log.warning(
                "%s stores %s entries at most and has no room for a whole new mask: it takes the best of "
                "those that it stores; raise `stored` for more.",
                self.name,
                f"{self.bound:,}",
            )
            self.bounded = True
        among = torch.cat([held, new[:free]]).sort().values
        return among[scores[among].argsort(descending=True, stable=True)[: self.k]]

    def begin(self) -> None:
        """Where a deployed form trains on, have room for further masks; what it stores is the present one."""
        if self.active is None:
            self.entries.hold(self.bound)
            self.active = self.entries.index >= 0

    def after_backward(self, step: int, total: int) -> None:
        gradient = self.entries.values.grad
        if gradient is not None and self.active is not None:
            gradient.masked_fill_(~self.active, 0.0)

    def before_update(self, step: int, total: int) -> None:
        self._resting = self.entries.values.detach().clone()

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        if self._resting is not None and self.active is not None:
            self.entries.values.copy_(torch.where(self.active, self.entries.values, self._resting))
        self._resting = None

    def deploy(self) -> None:
        """Keep the entries of all masks, without the places that are free."""
        self.entries.hold(len(self.entries.held))
        self.active = None

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.entries.hold(min(self.bound, shapes["entries.index"][0]))
        if self.active is None and "active" in shapes:  # a deployed form had trained on
            self.active = torch.zeros_like(self.entries.index, dtype=torch.bool)


def hardest_rows(
    batches: Iterable[Batch], losses: Callable[[Batch], Tensor], *, share: float, least: int, most: int
) -> list[Batch]:
    """The rows of largest loss, the hardest first, each as a batch of its own.

    They are `share` times as many as there are batches, from `least` to `most`, and all rows but one at most.
    Of equal losses the first rows are taken. Memory is that of `most` rows and of one batch.

    Args:
        batches: each row once.
        losses: gives the loss of each row of a batch.

    Raises:
        AutoPEFTError: the loss of a row is not finite.
    """
    kept: list[tuple[float, Batch]] = []
    count = rows = 0
    for batch in batches:
        found = losses(batch).cpu().tolist()
        if not all(map(math.isfinite, found)):
            raise AutoPEFTError(
                "The hardest rows cannot be found: the loss of a row is not finite; use fp32 and check the "
                "training data."
            )
        count, rows = count + 1, rows + len(found)
        threshold = kept[-1][0] if len(kept) == most else float("-inf")
        new = [(loss, _row(batch, i)) for i, loss in enumerate(found) if loss > threshold]
        kept = sorted([*kept, *new], key=lambda pair: -pair[0])[:most]  # stable: the first ones stay in front
    wanted = min(max(int(share * count), least), most, max(rows - 1, 1))
    return [row for _, row in kept[:wanted]]


def _row(batch: Batch, i: int) -> Batch:
    return {name: value[i : i + 1].clone() for name, value in batch.items()}


class FishDipModule(MovingMask):
    """A mask that follows the hardest rows."""

    calibration = Calibration(rows=None)

    def __init__(self, tensors: Sequence[TensorSpec], k: int, bound: int, config: FishDip.Config) -> None:
        super().__init__(tensors, k, bound, "fish_dip")
        self.config = config

    def measurement(self) -> dict[str, Any]:
        options = self.config.model_dump(include={"examples", "least", "most", "grad_type"})
        return {"reach": reach_of(self.k, self.entries.total), **options}

    def measure(self, base: nn.Module, batches: Iterable[Batch], objective: Objective) -> dict[str, Tensor]:
        """Rank the entries by the rows that are hardest before training."""
        parameters = [base.get_parameter(t.name) for t in self.entries.tensors]
        rows = self._hardest(batches, objective.losses)
        scores = self._scores(batch_gradients(parameters, rows, objective, self.name))
        return {"ranking": ranked([scores], self.measurement()["reach"], self.name)}

    def settle(self, measured: Mapping[str, Tensor]) -> None:
        """Make the best k the first mask; nothing else is stored yet."""
        self.clear()
        self.move(measured["ranking"][: self.k])

    def phases(self) -> list[Phase]:
        """One, whose output is how many entries are stored and whether `stored` has bounded a mask."""
        return [Phase("train", begin=self.begin, run=self.run, output=self.found)]

    def run(self, session: Session) -> None:
        """Take all steps, with another mask where it is time for one."""
        every = self.config.every
        while not session.over:
            if every is not None and (session.taken + 1) % every == 0:
                self.look(session)
            session.step()

    def look(self, session: Session) -> None:
        """Move the mask to where the rows that are hardest now want it."""
        wanted = [session.backbone[t.name] for t in self.entries.tensors]
        rows = self._hardest(session.batches(), lambda batch: session.losses(batch, training=True))
        scores = self._scores(session.gradients(row, wanted, training=True) for row in rows)
        self.move(self.best(scores))
        session.forget([self.entries.values])

    def found(self) -> dict[str, Any]:
        """The output of the phase."""
        return {"stored": len(self.entries.held), "bounded": self.bounded}

    def _hardest(self, batches: Iterable[Batch], losses: Callable[[Batch], Tensor]) -> list[Batch]:
        c = self.config
        return hardest_rows(batches, losses, share=c.examples, least=c.least, most=c.most)

    def _scores(self, rows: Iterable[Sequence[Tensor]]) -> Tensor:
        """Sum of the rows' squared (or absolute) gradients, over all entries one after another."""
        scores = torch.zeros(self.entries.total, device=self.entries.index.device)
        power, places = GRADIENT_POWERS[self.config.grad_type], self.entries.offsets.values()
        for gradients in rows:
            for (start, end), gradient in zip(places, gradients, strict=True):
                scores[start:end] += power(gradient.flatten().float())
            del gradient, gradients  # before the next ones are made
        return scores


@register("fish_dip")
class FishDip:
    """θ = θ₀ + scatter(idx, v), trained in a mask of k entries that is chosen anew every `every` steps.

    Das et al. 2023, arXiv:2311.03748. A mask holds the k entries of largest Σₙ (∂loss(xₙ, yₙ)/∂θ)² over the
    rows that are hardest at the time: those of largest loss among all training rows, `examples` times as many
    as a pass has batches, from `least` to `most`. The first mask is measured before training on the bare
    backbone in eval mode (on all rows, where a share of them trains), the others with what is attached and
    the draws of training, before steps 100, 200, …. Gradients outside the present mask are zero and its
    entries alone move: not even weight decay reaches the others, and the optimizer begins anew with each
    mask, as its moments are those of other entries. v is zero at init.

    The entries of all masks are stored. A budget counts the most that they may be, `stored`, by default four
    times `keep`. That bound is ours: where a new mask does not fit, it is the best k of what is stored and of
    those best new entries that fit, which is said once in the log and in the phase's output. With
    `every: null` the mask stays: FISH on the hardest rows.

    A row's loss is that of a batch of it alone, so that of a language model it is the mean over its learnt
    tokens. The authors divide a row's sum by its padded length when they look for the hardest rows, so that
    long targets rank higher. They train by Adafactor without first moment, at 1e-2 times the RMS of each
    tensor: `optimizer: {name: adafactor}` here, whose rate is not scaled. They end when 20 losses in a row
    are below 1e-6. `keep` is k, or a share of the base model, for the first and the later masks. A mask costs
    a pass over all rows without gradients, and for a moment gradients and scores of the whole backbone.
    The head is trained whole and counted apart. Mergeable. k to `stored` parameters, as the data have it (and
    as many indices, which are storage).
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        level="model",
        needs=frozenset({"calibration"}),
        mergeable=True,
        gateable=False,
        phased=True,
        data_dependent=True,
    )
    size_field: ClassVar[str] = "keep"

    class Config(KeepConfig):
        keep: int | str = Field(default="1%", description="a share such as '0.1%' or a count such as '30k'")
        stored: int | str | None = Field(
            default=None,
            description="most entries of all masks together, as `keep`; default: four times that",
        )
        every: int | None = Field(default=100, ge=1, description="steps from mask to mask; null: one mask")
        examples: float = Field(default=0.1, ge=0, le=1000, description="hard rows looked at, for each batch")
        least: int = Field(default=3, ge=1, le=100_000, description="at least so many of them")
        most: int = Field(default=25, ge=1, le=100_000, description="at most so many of them")
        grad_type: Literal["square", "absolute"] = "square"

        @field_validator("stored")
        @classmethod
        def _is_quantity_too(cls, value: int | str | None) -> int | str | None:
            return value if value is None else cls.checked(value)

        @model_validator(mode="after")
        def _in_order(self) -> FishDip.Config:
            if self.least > self.most:
                raise ValueError(f"least={self.least} is above most={self.most}")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def _sizes(self, spec: BackboneSpec) -> tuple[int, int]:
        """Entries of a mask, and of all of them at most."""
        k, total = self.config.count("fish_dip", spec.tensors, spec), sum(t.size for t in spec.tensors)
        if self.config.stored is None:
            return k, min(4 * k, total)
        bound = parse_quantity(self.config.stored).of(spec.parameters)
        if not k <= bound <= total:
            raise MethodError(
                f"fish_dip with stored={self.config.stored!r} stores {bound:,} entries of {spec.family!r}; "
                f"choose from the {k:,} of a mask to the {total:,} that there are."
            )
        return k, bound

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        bound = self._sizes(spec)[1]
        return ParameterCount(bound, bound)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Scores of all entries and the gradient of a row."""
        return Interim(held=2 * sum(t.size for t in spec.tensors))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return FishDipModule(spec.tensors, *self._sizes(spec), self.config)
