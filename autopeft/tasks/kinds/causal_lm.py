"""Language models: answers to prompts, or texts, of which each token is predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_config, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.answers import EncodedAnswers, encode_conversations
from autopeft.tasks.kinds.contract import Loss, TaskKind
from autopeft.tasks.kinds.conversations import (
    conversation_columns,
    problems_of,
    read_conversations,
    sureness,
    with_turns,
)
from autopeft.tasks.kinds.likelihoods import (
    LIKELIHOOD,
    TOKEN_ACCURACY,
    AnswerLoss,
    read_alone,
    row_likelihoods,
    token_loss,
)
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["CausalLM"]

_COLUMNS = 3  # of `row_likelihoods`


@register_kind("causal_lm")
class CausalLM(TaskKind):
    """Labels are the answers' texts; outputs are (rows, 3): the negative log-likelihood of a row's learnt
    tokens, their number, and how many of them are the most probable. There are no decisions: all metrics take
    outputs."""

    summary = "an answer to a prompt, or a text, by a language model"
    metrics = (LIKELIHOOD, TOKEN_ACCURACY)
    default_metric = LIKELIHOOD.name
    auto_class = AutoModelForCausalLM
    new_head = False
    pooled = False
    peft_task_type = "CAUSAL_LM"
    hub_pipeline = "text-generation"

    # Data
    # --------------------------------------------------------------------------------------------------

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims lists of messages, prompts with answers, and texts that have no column beside them."""
        return sureness(tables, named)

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """See `conversation_columns`."""
        return conversation_columns(table, named)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """See `read_conversations`."""
        return read_conversations(table, columns)

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """The answers as they are."""
        return (), [list(part.labels) for part in parts]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """All rows are alike."""
        return [0] * len(labels)

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Shortest, longest and mean answer in letters."""
        if not len(labels):
            return ""
        letters = [len(answer) for answer in labels]
        return f"answers of {min(letters):,} to {max(letters):,} letters, mean {np.mean(letters):,.0f}"

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
            UsageError: the backbone reads texts in both directions, so that each token would see itself.
        """
        found = resolve_model(source) if isinstance(source, str) else source
        name = found.alias or found.path
        if not all(stack.causal for stack in spec_of(unquantized(load_config(found), name)).stacks):
            raise UsageError(
                f"{name!r} is no language model: its layers see the tokens that are to be predicted. Take a "
                "decoder such as smollm2-135m (--model)."
            )
        return super().load_model(found, names, seed=seed, dtype=dtype)

    # Training
    # --------------------------------------------------------------------------------------------------

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedAnswers:
        """See `encode_conversations`. Rows are labelled in any case: they are what is scored."""
        messages = rows.fields["messages"]
        return encode_conversations(messages, tokenizer, max_length, kind=self.name, cached=cached)

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        return float(np.mean(self.cut_rows(rows, tokenizer, max_length))) if len(rows) else 0.0

    def cut_rows(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> NDArray[np.bool_]:
        """Whether `encode` cuts each row, (rows,)."""
        return np.asarray(self.encode(rows, tokenizer, max_length, cached=False).row_cut > 0)

    def with_examples(
        self, rows: Split, examples: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Split | None:
        """Examples are earlier turns of the conversation; `None` where a row or an example is a text that
        nobody asked for."""
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

    def asks(self, rows: Split) -> bool:
        """Whether each row asks for its answer."""
        return all(messages[0]["role"] != "assistant" for messages in rows.fields["messages"])

    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with all of these examples before what is asked."""
        turns = examples.fields["messages"]
        messages = [with_turns(own, turns) for own in rows.fields["messages"]]
        return replace(rows, fields={**rows.fields, "messages": messages})

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """The answers (rows,) as objects."""
        found = np.empty(len(labels), dtype=object)
        found[:] = list(labels)
        return found

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return AnswerLoss()

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Only positions that predict a learnt token go through the vocabulary's projection."""
        return read_alone(model, batch["labels"]) if "labels" in batch else nullcontext()

    # Scores
    # --------------------------------------------------------------------------------------------------

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """See `row_likelihoods`."""
        return row_likelihoods(run(), batch["labels"])

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The outputs, as no metric of this kind compares decisions."""
        return outputs

    def score(self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """See `TaskKind.score`.

        Raises:
            TaskError: the outputs are not (rows, 3).
        """
        if np.ndim(outputs) != 2 or np.shape(outputs)[1] != _COLUMNS:
            raise TaskError(
                f"A language model is scored by the likelihoods of its answers, (rows, {_COLUMNS}), but got "
                f"predictions of shape {np.shape(outputs)}."
            )
        return super().score(metric, outputs, labels)

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Mean loss over the learnt tokens of all rows."""
        return token_loss(np.asarray(outputs)) if len(outputs) else None

    # Use
    # --------------------------------------------------------------------------------------------------

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of `columns`, answers included: it is they whose likelihood is asked."""
        return conversation_columns(table, named)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that are no conversations what is wrong with them."""
        return problems_of(table, columns)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `loss` of a token of the answers, their `perplexity` and the number of `tokens`."""
        loss = token_loss(np.asarray(output)[None])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": int(output[1])}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"loss {prediction['loss']:.4f}  perplexity {prediction['perplexity']:.4g}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "the tokens of an answer"
