"""What a kind of task says of predictions: which they are, how well they score, and where they are wrong."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import AutoPEFTError, TaskError
from autopeft.tasks.kinds.breakdown import Breakdown
from autopeft.tasks.kinds.metric import Metric, pseudo_values

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["Scores"]

# Of temperatures, as natural logarithms: what asks for more of them says nothing of its labels.
_COLDEST, _HOTTEST = -3.0, 7.0
_log = logging.getLogger("autopeft")


class Scores(ABC):
    """The part of `TaskKind` that is about predictions and their scores; `outputs` is what it starts from.

    Attributes:
        tempered: whether outputs are logits, which a temperature may divide.
    """

    tempered: ClassVar[bool] = False

    @abstractmethod
    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Predictions as metrics compare them with labels: (rows, …) of the shape of `label_array`.

        Decisions that are handed over come back unchanged.
        """

    def score(self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Score outputs, or decisions that were already taken.

        Raises:
            TaskError: the shapes do not fit.
            AutoPEFTError: a prediction is not finite.
        """
        return float(metric.score(*self._scored(metric, outputs, labels)))

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
        found, truth = self._scored(metric, outputs, labels)
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

    def _scored(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Predictions and labels as the metric takes them."""
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
