"""The scorer of a kind of task: what is minimised, what is kept of predictions, and how well they score.

It is asked in this order:

1. Before training: `class_weights` and `loss` say what is minimised, `metric_for` which metric counts where
   none was chosen, `check_metric` whether one fits, and `constant` what the best answer is that looks at no
   text.
2. While it trains and after: `outputs` keeps what is needed of each row of a batch, `decisions` makes of that
   what metrics compare with labels, and `score`, `row_loss` and `pseudo_values` compare. `trial_metric`
   stands for a metric that takes too long in trials, and `average` says how a hybrid that stands for several
   models predicts.
3. For readers: `breakdown` and `tell` say where predictions are wrong, `present` and `line` what one row's
   is, and `describe_labels` what a model predicts.

`names` are the names of the task's classes, empty for kinds without classes.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.errors import AutoPEFTError, TaskError, UsageError
from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds.metric import Metric, pseudo_values

if TYPE_CHECKING:
    from autopeft.tasks.kinds.generation import Generation
    from autopeft.tasks.split import Split

__all__ = ["Breakdown", "ClassWeights", "Loss", "Scorer", "WeightedLoss"]

ClassWeights = Literal["balanced"] | Sequence[float] | None
Entry: TypeAlias = str | int | float
# Of temperatures, as natural logarithms: what asks for more of them says nothing of its labels.
_COLDEST, _HOTTEST = -3.0, 7.0
_log = logging.getLogger("autopeft")


class Loss(ABC):
    """What is minimised, exact over micro-batches.

    `total` is the undivided sum of the losses of some rows and `weight` what the sum over the whole batch is
    divided by, so that Σ total(micro) / weight(batch) is the loss of the batch. A batch is all that the
    kind's encoder put into it (see `EncodedSplit.collate`): `labels` (rows, …), and what else there is of
    these rows.

    Attributes:
        in_units: whether predictions are numbers like the labels and the loss is in their unit's square, so
            that a head may begin at the labels' mean, in their unit.
    """

    in_units: ClassVar[bool] = False

    @abstractmethod
    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over what counts in these rows (rows, tokens, …), a scalar in fp32, differentiable.

        Args:
            logits: (rows, …), as the head's `logits_of` gives them.
        """

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        """What a batch's sum is divided by: its rows, its tokens, the sum of its rows' weights. Default: its
        rows."""
        return float(batch["labels"].shape[0])

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """How far apart the answers of two forwards of some rows are: a scalar in fp32, the sum of
        `autopeft.nn.symmetric_divergence` over what `total` counts. By default over the rows, whose logits
        are of classes, (rows, classes); of numbers (rows, 1) it is 0."""
        return symmetric_divergence(logits, others).sum()

    def mean(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.total(logits, batch) / self.weight(batch)

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A constant answer with absent classes floored at half a count. Without a floor a fit drives their
        logits towards -∞, and other rows may have them.

        Args:
            logits: (outputs,), which fit the labels.
            labels: (rows, …), each of one answer.
        """
        return logits

    def each(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of each row alone, (rows,): its sum divided by its own weight."""
        rows = range(len(batch["labels"]))
        return torch.stack(
            [self.mean(logits[i : i + 1], {k: v[i : i + 1] for k, v in batch.items()}) for i in rows]
        )


class WeightedLoss(Loss):
    """A loss in which classes may have weights.

    Args:
        class_weights: one positive factor for each class, in index order; `None` for none.
    """

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        self.class_weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        )

    def weights_on(self, device: torch.device) -> Tensor | None:
        """The weights (classes,) in float32."""
        return None if self.class_weights is None else self.class_weights.to(device)

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`; of logits of classes and class indices (rows,)."""
        there = torch.bincount(labels, minlength=len(logits)) > 0
        least = logits[there].logsumexp(0) + math.log(0.5 / (len(labels) + len(logits) / 2))
        return torch.where(there, logits, logits.clamp_min(least))


@dataclass(frozen=True)
class Breakdown:
    """A table about predictions.

    Attributes:
        name: by which it is found in data.
        title: above the table.
        headers: of the columns; in the first one are names.
        rows: as long as the headers; a number that is not defined is NaN.
    """

    name: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The table as data."""
        return {"columns": list(self.headers), "rows": [list(row) for row in self.rows]}


class Scorer(ABC):
    """See the top of this file. By default a prediction is a number.

    Attributes:
        kind: name of the kind of task that it is a part of, which is set when the kind is made.
        metrics: the kind's own, the default first; `register_metric` adds further ones.
        tempered: whether outputs are logits, which a temperature may divide.
        tells: whether predictions can be told beside their rows, as texts (see `tell`).
        writes: whether models answer with texts that they generate (see `autopeft.tasks.kinds.generative`).
    """

    kind: str = ""
    metrics: ClassVar[tuple[Metric, ...]]
    tempered: ClassVar[bool] = False
    tells: ClassVar[bool] = False
    writes: ClassVar[bool] = False

    # Before training
    # --------------------------------------------------------------------------------------------------

    def metric_for(self, names: Sequence[str]) -> str:
        """Name of the metric that counts for a task with these classes, where none was chosen."""
        return self.metrics[0].name

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """Refuse a metric of the kind that does not fit a task with these classes.

        Args:
            rows: of the task, where they are at hand.

        Raises:
            TaskError: it does not.
        """
        return

    def trial_metric(self, metric: Metric) -> Metric:
        """What trials of a search are scored by, and a training in its course: the metric itself, or where it
        compares generated texts the kind's own default. What is scored by it is never compared with scores of
        the metric."""
        return self.metrics[0] if metric.generated else metric

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """One positive factor per class, from `"balanced"` or a list of numbers; `None` for `None`.

        Raises:
            TaskError: the kind has no class weights, or these do not fit.
        """
        if asked is None:
            return None
        raise TaskError(f"Class weights are for classification, but the task is {self.kind}.")

    @abstractmethod
    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        """What is minimised."""

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The best answer that looks at no text: in words (`always 'no'`) and as a label, from the labels of
        the training rows. `None` for kinds that have none."""
        return None

    # Predictions
    # --------------------------------------------------------------------------------------------------

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """What is kept of each row of a batch, (rows, …); an array of objects where rows differ in length.

        Args:
            model: in eval mode.
            batch: without labels for texts that have none.
            run: gives the batch's logits. A kind that generates need not call it.
        """
        found: NDArray[Any] = run().float().cpu().numpy()
        return found

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor] | None:
        """The mean of a batch's logits over a dimension, as logits of the mean prediction: for models that
        stand for several (ensembles, posteriors). `None`: the log of the mean softmax, of a single column its
        mean."""
        return None

    def generation(self, use: Mapping[str, Any], **asked: Any) -> Generation | None:
        """How a saved hybrid writes, where nothing else was asked for; `None` where it writes nothing.

        Args:
            use: what the encoder's `use` said when the model was trained.

        Raises:
            UsageError: an option is out of range, or models of this kind write nothing and one was given.
        """
        given = sorted(name for name, value in asked.items() if value is not None)
        if given:
            raise UsageError(f"{', '.join(given)}: models for {self.kind} write no texts; leave this out.")
        return None

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Predictions as metrics compare them with labels: (rows, …) of the shape of the label array. By
        default the outputs themselves, of a single column its numbers (rows,).

        Decisions that are handed over come back unchanged.
        """
        return outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs

    # Scores
    # --------------------------------------------------------------------------------------------------

    def score(self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Score outputs, or decisions that were already taken.

        Raises:
            TaskError: the shapes do not fit.
            AutoPEFTError: a prediction is not finite.
        """
        return float(metric.score(*self.compared(metric, outputs, labels)))

    def by_task(self, outputs: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """The score of each task of a set by its name, in its own metric; empty for a single task."""
        return {}

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Predictions and labels as the metric takes them.

        Raises:
            TaskError, AutoPEFTError: see `score`.
        """
        found, truth = np.asarray(outputs), np.asarray(labels)
        if np.issubdtype(found.dtype, np.number) and not np.all(np.isfinite(found)):
            raise AutoPEFTError("The predictions hold values that are not finite; they cannot be scored.")
        if not metric.raw:
            found = self.decisions(found)
        fits = len(found) == len(truth) if metric.raw else found.shape == truth.shape
        if not fits or len(truth) == 0:
            raise TaskError(
                f"Cannot score predictions of shape {found.shape} against labels of shape {truth.shape}."
            )
        return found, truth

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Mean loss over rows of what `outputs` keeps, lower is better: finer than a score that counts rows.
        `None` where the kind has none; recipes are then ranked by their score."""
        return None

    def calibrated_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """`row_loss` at the temperature that makes it least on these rows (temperature scaling, Guo et al.
        2017), where outputs are logits; else `row_loss` itself.

        It says how well outputs tell labels apart, whatever their confidence: few training rows make models
        too sure, and by the plain loss a model that has hardly learnt is then better than one that is right
        more often.
        """
        plain = self.row_loss(outputs, labels)
        if plain is None or not self.tempered:
            return plain
        from scipy.optimize import minimize_scalar

        def at(log_temperature: float) -> float:
            loss = self.row_loss(np.asarray(outputs) / np.exp(log_temperature), labels)
            return np.inf if loss is None else loss

        found = minimize_scalar(at, bounds=(_COLDEST, _HOTTEST), method="bounded")
        return min(plain, float(found.fun))

    def pseudo_values(
        self,
        metric: Metric,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        text_ids: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """What each group of rows contributes to the score, (groups,); see
        `autopeft.tasks.kinds.metric.pseudo_values`. Empty where all rows have one text, and where the metric
        cannot score the rest of the rows.

        Args:
            text_ids: which of the different texts each row has, (rows,); `None` where all differ.

        Raises:
            TaskError, AutoPEFTError: see `score`.
        """
        found, truth = self.compared(metric, outputs, labels)
        if len(truth if text_ids is None else np.unique(text_ids)) < 2:
            return np.empty(0)
        try:
            if metric.by_row is None:
                parts = pseudo_values(metric.score, found, truth, text_ids)
            else:
                rows = np.asarray(metric.by_row(found, truth), dtype=np.float64)
                whole = metric.of_sums
                parts = pseudo_values(
                    lambda values, _: float(values.mean() if whole is None else whole(values.sum(axis=0))),
                    rows,
                    truth,
                    text_ids,
                )
        # Code of any package, at the end of a search whose training must not be lost.
        except Exception:
            _log.warning("what rows contribute to %s cannot be computed", metric.name, exc_info=True)
            return np.empty(0)
        return parts if bool(np.all(np.isfinite(parts))) else np.empty(0)

    # For readers
    # --------------------------------------------------------------------------------------------------

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Tables of where the outputs are right and wrong, beside a score; `class_breakdowns` helps kinds
        whose decisions are class indices."""
        return ()

    def tell(self, rows: Split, outputs: NDArray[Any], names: Sequence[str]) -> list[tuple[str, str]]:
        """Of each row, for a reader, what is right and what was predicted; equal texts where the prediction
        is right. For kinds that `tells`.

        Args:
            rows: with labels.
            outputs: of these rows.
        """
        return []

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The prediction for one row as JSON-able values; `output` is the row's of `outputs`. By default the
        `value`, a number."""
        return {"value": float(self.decisions(output[None])[0])}

    def line(self, prediction: Mapping[str, Any]) -> str:
        """A prediction of `present` in a few words, without tabs. It may hold the row's `text` too, as it
        came."""
        return f"{prediction['value']:.4f}"

    def describe_labels(self, names: Sequence[str]) -> str:
        """What a model of this kind predicts, for a model card."""
        return ", ".join(names)
