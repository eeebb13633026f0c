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
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.likelihoods import predicting, read_alone
from autopeft.tasks.tokens import EncodedSplit

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split, SplitName

__all__ = ["UNKNOWN", "AnswersEncoder", "DecoderHead", "LanguageEncoder", "LanguageHead"]


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
    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with all of these examples before what is asked."""


class LanguageHead(Head):
    """The head that the backbone brings, which gives the likelihoods of tokens.

    Attributes:
        ahead: how many positions after its logits a learnt token stands (see `AnswerLoss`).
    """

    new_head = False
    outputs = 0  # the vocabulary is the backbone's
    pooled = False
    row_distribution = False
    ahead: ClassVar[int] = 1

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
        """The positions that predict a learnt token. Labels may go on behind the tokens that a decoder reads:
        what stands there is predicted, and predicts nothing."""
        if "labels" not in batch:
            return None
        read = predicting(batch["labels"], self.ahead)
        return read[:, : batch["input_ids"].shape[1]] if self.causal else read

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


class AnswersEncoder(LanguageEncoder):
    """Tokens of rows whose labels are the texts of answers. Rows without labels may lack their answers; those
    that are there are scored all the same.

    `encode` gives an `EncodedPrompts`.
    """

    label_type = object

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        """See `Encoder.encode_splits`: answers are written as long as the longest of the training rows."""
        found: dict[SplitName, Any] = super().encode_splits(splits, tokenizer, max_length)
        return {name: replace(split, longest=found["train"].longest) for name, split in found.items()}

    def cut_rows(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> NDArray[np.bool_]:
        """Whether `encode` cuts each row, (rows,)."""
        found: Any = self.encode(rows, tokenizer, max_length, labelled=False, cached=False)
        return np.asarray(found.row_cut > 0)

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """`max_new_tokens`, the tokens of the longest answer with the one that ends it."""
        found: Any = self.encode(rows, tokenizer, max_length) if len(rows) else None
        return {} if found is None else {"max_new_tokens": found.longest}
