"""What a method's module may take part in beside the forward: calibration, merging, what follows training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from autopeft.spec import Site

__all__ = [
    "Calibration",
    "Concludes",
    "Ensembles",
    "Explicit",
    "LimitsTexts",
    "Merges",
    "Objective",
    "Placement",
    "Posterior",
    "Prepares",
    "Resizes",
    "Settles",
    "WritesOut",
    "WrittenOut",
]


class Objective(Protocol):
    """What calibration may ask of the model: the task's loss and the scores behind it.

    `objective(batch)` is the mean loss over the batch (a scalar), `objective.logits(batch)` the model's
    output scores (batch, classes), or (batch, 1) for regression; both are differentiable.
    Each runs one forward of the attached model on a batch with labels. `objective.losses(batch)` is the loss
    of each row alone (batch,), without gradients. `objective.gradients(batch, wanted)` is the gradient of the
    mean loss for each of the `wanted` parameters, which require grad, in fp32; zeros where it does not depend
    on one. These two are of the whole batch, however many rows go through the model at once.

    Attributes:
        model: the whole model, task head included.
    """

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: dict[str, Tensor]) -> Tensor: ...

    def logits(self, batch: dict[str, Tensor]) -> Tensor: ...

    def losses(self, batch: dict[str, Tensor]) -> Tensor: ...

    def gradients(self, batch: dict[str, Tensor], wanted: Sequence[nn.Parameter]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Calibration:
    """How a module that calibrates wants to see data: its `calibration`, where it is not the default.

    Attributes:
        rows: examples of a batch; `None` for as many as a training step has.
        attached: whether what the recipe attaches acts meanwhile, as it is before training; what is measured
            is then this recipe's alone, and not kept. Else the base model is bare.
        training: whether the backbone draws (its dropout) as in training; else it is in eval mode.
    """

    rows: int | None = 1
    attached: bool = False
    training: bool = False


@runtime_checkable
class Prepares(Protocol):
    """Needs calibration before training (`needs` holds `calibration`): it measures, then settles.

    `measure` gets the base model (tensor names of the spec are relative to it), batches of training examples
    with labels, and the task's `Objective`. A pass over the batches has each example once. In the package's
    own training another pass may follow, in another order; what else calls `prepare` may give one pass. The
    model is bare and the batches are single examples, where a `calibration` does not say otherwise. It must
    leave the model as it was: values,
    gradients and what requires grad. What it returns depends on backbone, head, data, `calibration` and
    `measurement` alone, so it is kept and used again by later trials.

    `measurement` returns what else `measure` depends on, as JSON values: the config without the entry's size.
    `settle` takes what was measured and makes the module ready to train, from any earlier state.
    """

    def measurement(self) -> dict[str, Any]: ...

    def measure(
        self, base: nn.Module, batches: Iterable[dict[str, Tensor]], objective: Objective
    ) -> dict[str, Tensor]: ...

    def settle(self, measured: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Resizes(Protocol):
    """Has a deployed size that training settles (`data_dependent`): ranks that are pruned, say.

    `deploy()` keeps exactly what acts, so that the module's function stays as it was. `resize` is called on
    the deployed form of a fresh module before saved tensors are filled in. `shapes` holds the saved shape for
    each key of its state, with the number of dimensions that the tensor has; the module then has tensors of
    these shapes, with any values. What its config forbids it leaves as it is, and loading is refused.
    """

    def deploy(self) -> None: ...

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None: ...


@dataclass(frozen=True)
class Placement:
    """A method at one site, as a recipe may say it.

    Attributes:
        method: the method's name.
        stack, layer, site: where; `site` is the site's name.
        options: of the method, without the names of sites.
        listed: the option that has these.
    """

    method: str
    stack: str
    layer: int
    site: str
    options: Mapping[str, Any] = field(default_factory=dict)
    listed: str = "sites"


class Explicit(NamedTuple):
    """What an entry has settled: as placements, and in words what no recipe can say."""

    placements: tuple[Placement, ...]
    left: tuple[str, ...] = ()


@runtime_checkable
class Settles(Protocol):
    """Can say what data have settled in it, which ranks or where, as plain entries of a recipe.

    `explicit` gets the sites of the entry. The plain entries start anew: they are of the structure that was
    found and have none of its values.
    """

    def explicit(self, sites: Sequence[Site]) -> Explicit: ...


@dataclass(frozen=True)
class WrittenOut:
    """An entry for one task, in the place of one for several.

    Attributes:
        method, options: of the entry, which stands where the other did.
        tensors: the state of its module at the same sites.
    """

    method: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@runtime_checkable
class WritesOut(Protocol):
    """Makes of the number of a task what it does for that task, as a plain entry. `written_out` gets the
    sites of the entry too."""

    def written_out(self, task: int, sites: Sequence[Site]) -> WrittenOut: ...


@runtime_checkable
class Merges(Protocol):
    """Can be folded into a linear site: returns the new (out, in) weight and bias for this site.

    At a norm the weight is its gain (out,). A bias may also come back where the backbone has none: a linear
    map then gets one, and what is added behind a norm goes into the biases of the maps that read it.
    """

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class LimitsTexts(Protocol):
    """Takes texts of `longest_text` tokens at most, with what is written behind them."""

    longest_text: int


@runtime_checkable
class Ensembles(Protocol):
    """Stands for several models at test time, whose output distributions are averaged.

    `members` is how many (0: one, alone). After `choose(i)` the module acts in eval mode as member i, for any
    i ≥ 0, the same in every forward; after `choose(None)` as without an ensemble.
    """

    members: int

    def choose(self, member: int | None) -> None: ...


@runtime_checkable
class Concludes(Protocol):
    """Learns something more when training has ended, `finish` included: the curvature at what was found.

    `conclude` gets an iterator over batches that hold each row of *train* that was trained on once, and the
    task's `Objective`, in eval mode. A module with a number `conclusion_rows` gets so many of these rows,
    drawn by the training's seed. It starts from any earlier state, leaves values, gradients and what requires
    grad of the model as they were, and keeps what it learned in buffers of a fixed shape, which are saved and
    do not count as parameters, or in parameters of its own that never train. A training that was paused or
    was asked to stop is not concluded; `before_step` tells of one that goes on.
    """

    def conclude(self, batches: Iterable[dict[str, Tensor]], objective: Objective) -> None: ...


@runtime_checkable
class Posterior(Protocol):
    """Has a normal distribution over parameters, under which the logits of the linearised model are normal.

    `samples` is how many draws of the logits a prediction averages (0: there is none yet, or none wanted).
    `covariance` gives J·Σ·Jᵀ (rows, classes, classes) for the logits (rows, classes) of a forward in eval
    mode within `recording()`, gradients on, and may be asked once for it.
    """

    @property
    def samples(self) -> int: ...

    def recording(self) -> AbstractContextManager[None]: ...

    def covariance(self, logits: Tensor) -> Tensor: ...
