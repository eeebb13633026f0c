"""What a kind of task says of the texts that its models write; most kinds write none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.generation import Generation
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.tokens import EncodedSplit

if TYPE_CHECKING:
    from autopeft.tasks.kinds.writer import Written
    from autopeft.tasks.split import Split

__all__ = ["Writing"]

_INSTEAD = "take a decoder as a language model (--kind causal_lm), or a method that learns from labels"


class Writing:
    """The part of `TaskKind` that is about texts which models generate.

    Attributes:
        writes: whether its models answer with texts that they generate.
        turns: whether they read a conversation of several turns; else each message is answered by itself.
    """

    name: str
    metrics: ClassVar[tuple[Metric, ...]]
    default_metric: ClassVar[str]
    writes: ClassVar[bool] = False
    turns: ClassVar[bool] = True

    def trial_metric(self, metric: Metric) -> Metric:
        """What trials of a search are scored by, and a training in its course: the metric itself, or where it
        compares generated texts the kind's own default. What is scored by it is never compared with scores of
        the metric."""
        own = {known.name: known for known in self.metrics}
        return own[self.default_metric] if metric.generated else metric

    def generate(
        self,
        model: torch.nn.Module,
        split: EncodedSplit,
        rows: Sequence[int] | NDArray[np.int64],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
        told: Callable[[str], None] | None = None,
    ) -> list[str]:
        """What the model writes for some rows of a split.

        Args:
            told: is given what it writes for a single row piece by piece.

        Raises:
            TaskError: models of this kind write nothing.
        """
        raise TaskError(f"Models for {self.name} write no texts.")

    def sample(
        self,
        model: torch.nn.Module,
        split: EncodedSplit,
        rows: Sequence[int] | NDArray[np.int64],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
    ) -> list[Written]:
        """What the model writes for some rows of a split, with its tokens.

        Raises:
            TaskError: nothing is learnt from what models of this kind write.
        """
        raise TaskError(f"Nothing is learnt from texts that models for {self.name} write; {_INSTEAD}.")

    def with_written(
        self,
        split: EncodedSplit,
        rows: Sequence[int],
        written: Sequence[Sequence[int]],
        *,
        room: int | None = None,
    ) -> EncodedSplit:
        """Some rows of a split, one or several times, with these tokens as their answers.

        Args:
            room: tokens of a row at most, of which what is asked loses its beginning; `None` without limit.

        Raises:
            TaskError: nothing is learnt from what models of this kind write.
        """
        raise TaskError(f"Nothing is learnt from texts that models for {self.name} write; {_INSTEAD}.")

    def rewards(self, metric: Metric, texts: Sequence[str], labels: NDArray[Any]) -> NDArray[np.float64]:
        """The metric of each text beside the label of its row, (texts,).

        Raises:
            TaskError: the metric does not compare texts.
        """
        if not metric.generated:
            known = ", ".join(own.name for own in self.metrics if own.generated)
            raise TaskError(
                f"The reward of a text is the task's metric of it, but {metric.name} compares no texts: take "
                f"{f'{known}, or ' if known else ''}a metric of generated answers of your own (--metric)."
            )
        found = np.empty(len(texts), dtype=object)
        found[:] = list(texts)
        if metric.by_row is not None and metric.of_sums is None:
            return np.asarray(metric.by_row(found, labels), dtype=np.float64)
        alone = range(len(found))
        return np.asarray(
            [metric.score(found[i : i + 1], labels[i : i + 1]) for i in alone], dtype=np.float64
        )

    def with_texts(self, outputs: NDArray[Any], texts: Sequence[str]) -> NDArray[Any]:
        """What `outputs` keeps of rows, with what the model wrote for each.

        Raises:
            TaskError: models of this kind write nothing.
        """
        raise TaskError(f"Models for {self.name} write no texts.")

    def asked_row(self, messages: Sequence[Mapping[str, str]]) -> Split:
        """A conversation `{"role": …, "content": …}` whose answer is to be written, as a split of one row.

        Raises:
            UsageError: models of this kind write nothing.
        """
        raise UsageError(f"Models for {self.name} write no texts, so that nobody can talk with them.")

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """What a saved hybrid has to know of its training rows to be asked, as JSON-able values beside its
        labels; nothing for most kinds."""
        return {}

    def generation(self, use: Mapping[str, Any], **asked: Any) -> Generation:
        """How a saved hybrid writes, where nothing else was asked for.

        Raises:
            UsageError: an option is out of range, or models of this kind write nothing and one was given.
        """
        given = sorted(name for name, value in asked.items() if value is not None)
        if given and not self.writes:
            raise UsageError(f"{', '.join(given)}: models for {self.name} write no texts; leave this out.")
        return Generation(**{name: asked[name] for name in given})
