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
    from autopeft.tasks.split import Split

__all__ = ["Writing"]


class Writing:
    """The part of `TaskKind` that is about texts which models generate.

    Attributes:
        writes: whether its models answer with texts that they generate.
        turns: whether they read a conversation of several turns; else each message is answered by itself.
    """

    name: ClassVar[str]
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
