"""What kinds of tasks have in common whose model is a language model: with one stack, or with two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_config, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.tasks.kinds.contract import TaskKind
from autopeft.tasks.kinds.likelihoods import AnswerLoss, predicting, read_alone
from autopeft.tasks.kinds.loss import Loss
from autopeft.tasks.table import RawRows

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["LanguageModel"]


class LanguageModel(TaskKind):
    """A kind that trains the likelihood of answers, with the head that the backbone brings.

    Attributes:
        ahead: how many positions after its logits a learnt token stands (see `AnswerLoss`).
    """

    new_head = False
    pooled = False
    row_distribution = False
    ahead: ClassVar[int] = 1

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """The answers as they are."""
        return (), [list(part.labels) for part in parts]

    # Model
    # --------------------------------------------------------------------------------------------------

    def num_labels(self, names: Sequence[str]) -> int:
        """None: the vocabulary is the backbone's."""
        return 0

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing is set."""
        return {}

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """`None`: a configuration does not say what is done with a backbone."""
        return None

    def load_model(
        self,
        source: ModelSource | str,
        names: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PreTrainedModel:
        """See `TaskKind.load_model`.

        Raises:
            UsageError: the backbone is of another architecture (see `refused`).
        """
        found = resolve_model(source) if isinstance(source, str) else source
        name = found.alias or found.path
        refused = self.refused(spec_of(unquantized(load_config(found), name)), name)
        if refused is not None:
            raise UsageError(refused)
        return super().load_model(found, names, seed=seed, dtype=dtype)

    # Training
    # --------------------------------------------------------------------------------------------------

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        return float(np.mean(self.cut_rows(rows, tokenizer, max_length))) if len(rows) else 0.0

    @abstractmethod
    def cut_rows(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> NDArray[np.bool_]:
        """Whether `encode` cuts each row, (rows,)."""

    def with_examples(
        self, rows: Split, examples: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Split | None:
        """Examples stand before what is asked; `None` where a row or an example is a text that nobody asked
        for."""
        if not self.asks(rows) or not self.asks(examples):
            return None
        left, order = np.arange(len(rows)), list[int]()
        found = rows.take([])
        for count in range(len(examples), -1, -1):
            if not len(left):
                break
            last = examples.take(range(len(examples) - count, len(examples)))
            part = self._before(rows.take(left), last)
            fits = ~self.cut_rows(part, tokenizer, max_length) | (count == 0)
            taken = part.take(np.flatnonzero(fits))
            found = found.joined(taken) if order else taken
            order += left[fits].tolist()
            left = left[~fits]
        return found.take(np.argsort(order))

    @abstractmethod
    def asks(self, rows: Split) -> bool:
        """Whether each row asks for its answer."""

    @abstractmethod
    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with all of these examples before what is asked."""

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return AnswerLoss(self.ahead)

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The positions that predict a learnt token."""
        return predicting(batch["labels"], self.ahead) if "labels" in batch else None

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Only positions that predict a learnt token go through the vocabulary's projection."""
        read = self.reads(batch)
        return nullcontext() if read is None else read_alone(model, read)
