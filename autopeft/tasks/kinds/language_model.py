"""What kinds of tasks have in common whose model is a language model: with one stack, or with two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_config, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.answers import EncodedWriting
from autopeft.tasks.kinds.conversations import asked_columns, conversation_columns, problems_of
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.likelihoods import predicting, read_alone
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.table import ColumnNames, Columns, Table
from autopeft.tasks.tokens import EncodedSplit

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split, SplitName

__all__ = ["UNKNOWN", "AnswersEncoder", "AnswersSchema", "DecoderHead", "LanguageEncoder", "LanguageHead"]


class LanguageEncoder(Encoder, ABC):
    """Tokens of what is asked and answered."""

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


class LanguageHead(Head):
    """The head that the backbone brings, which gives the likelihoods of tokens.

    Attributes:
        ahead: how many positions after its logits a learnt token stands (see `AnswerLoss`).
    """

    new_head = False
    pooled = False
    row_distribution = False
    ahead: ClassVar[int] = 1

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
        """See `Head.load_model`.

        Raises:
            UsageError: the backbone is of another architecture (see `refused`).
        """
        found = resolve_model(source) if isinstance(source, str) else source
        name = found.alias or found.path
        refused = self.refused(spec_of(unquantized(load_config(found), name)), name)
        if refused is not None:
            raise UsageError(refused)
        return super().load_model(found, names, seed=seed, dtype=dtype)

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The positions that predict a learnt token."""
        return predicting(batch["labels"], self.ahead) if "labels" in batch else None

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Only positions that predict a learnt token go through the vocabulary's projection."""
        read = self.reads(batch)
        return nullcontext() if read is None else read_alone(model, read)


class DecoderHead(LanguageHead):
    """The head of a decoder, which reads prompt and answer as one sequence."""

    auto_class = AutoModelForCausalLM
    peft_task_type = "CAUSAL_LM"
    hub_pipeline = "text-generation"
    causal = True

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """See `LanguageHead.reads`. Labels may go on behind the tokens that are read: what stands there is
        predicted, and predicts nothing."""
        read = super().reads(batch)
        return None if read is None else read[:, : batch["input_ids"].shape[1]]

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `Head.refused`: in layers that see both directions each token would see itself."""
        if all(stack.causal for stack in spec.stacks):
            return None
        if spec.encoder_decoder:
            return (
                f"{model!r} is an encoder-decoder, and {self.kind} is for decoders: sources with targets are "
                "learnt by it with --kind seq2seq (kind='seq2seq'); or take a decoder such as smollm2-135m "
                "(--model)."
            )
        return (
            f"{model!r} is no language model: its layers see the tokens that are to be predicted. Take a "
            "decoder such as smollm2-135m (--model)."
        )


UNKNOWN = 128
"""Most new tokens where nothing says how long answers are."""


class AnswersSchema(Schema):
    """Labels are the answers' texts."""

    learns = "answers"

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """See `conversation_columns`."""
        return conversation_columns(table, named)

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Shortest, longest and mean answer in letters."""
        if not len(labels):
            return ""
        letters = [len(answer) for answer in labels]
        return f"answers of {min(letters):,} to {max(letters):,} letters, mean {np.mean(letters):,.0f}"

    def alike(self, rows: Split) -> list[Input]:
        """What is asked, whatever its capitals and white space."""
        return [(" ".join(text.casefold().split()),) for text in rows.texts]

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of what is asked, and of the answers where there are some: their likelihood is told."""
        return asked_columns(table, named)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that ask nothing what is wrong with them."""
        return problems_of(table, columns, asked=True)


class AnswersEncoder(LanguageEncoder):
    """Tokens of rows whose labels are the texts of answers."""

    @abstractmethod
    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedWriting:
        """See `Encoder.encode`. Rows without labels may lack their answers; those that are there are scored
        all the same."""

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        """See `Encoder.encode_splits`: answers are written as long as the longest of the training rows."""
        found = {name: self.encode(split, tokenizer, max_length) for name, split in splits.items()}
        longest = found["train"].longest
        return {name: replace(split, longest=longest) for name, split in found.items()}

    def cut_rows(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> NDArray[np.bool_]:
        """Whether `encode` cuts each row, (rows,)."""
        found = self.encode(rows, tokenizer, max_length, labelled=False, cached=False)
        return np.asarray(found.row_cut > 0)

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """The answers (rows,) as objects."""
        found = np.empty(len(labels), dtype=object)
        found[:] = list(labels)
        return found

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """`max_new_tokens`, the tokens of the longest answer with the one that ends it."""
        return {"max_new_tokens": self.encode(rows, tokenizer, max_length).longest} if len(rows) else {}
