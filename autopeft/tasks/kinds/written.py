"""What kinds of tasks have in common whose models answer with a text of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.errors import TaskError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.answers import IGNORED, EncodedWriting
from autopeft.tasks.kinds.breakdown import Breakdown
from autopeft.tasks.kinds.conversations import asked_columns, conversation_columns, problems_of
from autopeft.tasks.kinds.generated import (
    CHRF,
    EXACT_MATCH,
    LAST_NUMBER,
    ROUGE_1,
    ROUGE_2,
    ROUGE_L,
    check_installed,
)
from autopeft.tasks.kinds.generation import Generation
from autopeft.tasks.kinds.language_model import LanguageModel
from autopeft.tasks.kinds.likelihoods import LIKELIHOOD, TOKEN_ACCURACY, row_likelihoods, token_loss
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.writer import Writer, Written
from autopeft.tasks.table import ColumnNames, Columns, Table
from autopeft.tasks.tokens import EncodedSplit

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["UNKNOWN", "WrittenAnswers"]

UNKNOWN = 128
"""Most new tokens where nothing says how long answers are."""
_COLUMNS = 3  # of `row_likelihoods`
_ANSWERED = np.dtype([("likelihoods", np.float64, (_COLUMNS,)), ("answer", np.object_)])
_MOST = 1 << 20  # that a manifest can say


class WrittenAnswers(LanguageModel):
    """Labels are the answers' texts; outputs are (rows, 3): the negative log-likelihood of a row's learnt
    tokens, their number, and how many of them are the most probable. Where the model wrote answers, they are
    (rows,) of `likelihoods` and `answer`. Decisions are what it wrote."""

    metrics = (LIKELIHOOD, TOKEN_ACCURACY, EXACT_MATCH, LAST_NUMBER, ROUGE_1, ROUGE_2, ROUGE_L, CHRF)
    default_metric = LIKELIHOOD.name
    learns = "answers"
    writes = True

    # Data
    # --------------------------------------------------------------------------------------------------

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """See `conversation_columns`."""
        return conversation_columns(table, named)

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """All rows are alike."""
        return [0] * len(labels)

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Shortest, longest and mean answer in letters."""
        if not len(labels):
            return ""
        letters = [len(answer) for answer in labels]
        return f"answers of {min(letters):,} to {max(letters):,} letters, mean {np.mean(letters):,.0f}"

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """See `TaskKind.check_metric`, and `check_installed`."""
        super().check_metric(metric, names, rows)
        check_installed(metric)

    def alike(self, rows: Split) -> list[Input]:
        """What is asked, whatever its capitals and white space."""
        return [(" ".join(text.casefold().split()),) for text in rows.texts]

    # Training
    # --------------------------------------------------------------------------------------------------

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
        """See `TaskKind.encode`. Rows without labels may lack their answers; those that are there are scored
        all the same."""

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        """See `TaskKind.encode_splits`: answers are written as long as the longest of the training rows."""
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

    # Scores
    # --------------------------------------------------------------------------------------------------

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """See `row_likelihoods`; zeros where no row has an answer."""
        labels = batch["labels"]
        if not bool((labels[:, self.ahead :] != IGNORED).any()):
            return np.zeros((len(labels), _COLUMNS))
        return row_likelihoods(run(), labels, self.ahead)

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
        """The last answer of each row as the model writes it, without white space at its ends."""
        if not isinstance(split, EncodedWriting):
            raise TaskError(f"Answers are written to rows of {self.name}, but got {type(split).__name__}.")
        writer = Writer(model, split.tokenizer, most=split.longest, mean=self.average())
        prompts = [split.prompt(int(row)) for row in rows]
        return writer.write(prompts, how, device=device, told=told)

    def sample(
        self,
        model: torch.nn.Module,
        split: EncodedSplit,
        rows: Sequence[int] | NDArray[np.int64],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
    ) -> list[Written]:
        """The last answer of each row as the model writes it."""
        if not isinstance(split, EncodedWriting):
            raise TaskError(f"Answers are written to rows of {self.name}, but got {type(split).__name__}.")
        writer = Writer(model, split.tokenizer, most=split.longest, mean=self.average())
        return writer.sample([split.prompt(int(row)) for row in rows], how, device=device)

    def with_texts(self, outputs: NDArray[Any], texts: Sequence[str]) -> NDArray[Any]:
        """See `TaskKind.with_texts`: (rows,) of `likelihoods` and `answer`."""
        found = np.empty(len(outputs), dtype=_ANSWERED)
        found["likelihoods"], found["answer"] = outputs, list(texts)
        return found

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """What the model wrote, (rows,); outputs without texts come back unchanged."""
        found: NDArray[Any] = outputs["answer"] if outputs.dtype == _ANSWERED else outputs
        return found

    def _scored(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        found = np.asarray(outputs)
        if metric.generated and found.dtype not in (_ANSWERED, np.dtype(object)):
            raise TaskError(
                f"{metric.name} compares generated answers, but none were written: predict with "
                "generation=Generation()."
            )
        return super()._scored(metric, found if metric.generated else _likelihoods(found), labels)

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Mean loss over the learnt tokens of all rows."""
        return token_loss(_likelihoods(np.asarray(outputs))) if len(outputs) else None

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Of generated answers both metrics, the mean length and the number of empty ones."""
        if outputs.dtype != _ANSWERED:
            return ()
        found = self.decisions(outputs)
        letters = [float(np.mean([len(str(text)) for text in texts])) for texts in (found, labels)]
        row: tuple[str | int | float, ...] = (
            "all rows", EXACT_MATCH.score(found, labels), ROUGE_L.score(found, labels), *letters,
            sum(not text for text in found),
        )  # fmt: skip
        headers = ("answers", EXACT_MATCH.name, ROUGE_L.name, "letters", "letters expected", "empty")
        return (Breakdown("answers", "Generated answers", headers, (row,)),)

    # Use
    # --------------------------------------------------------------------------------------------------

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of what is asked, and of the answers where there are some: their likelihood is told."""
        return asked_columns(table, named)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that ask nothing what is wrong with them."""
        return problems_of(table, columns, asked=True)

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """`max_new_tokens`, the tokens of the longest answer with the one that ends it."""
        return {"max_new_tokens": self.encode(rows, tokenizer, max_length).longest} if len(rows) else {}

    def generation(self, use: Mapping[str, Any], **asked: Any) -> Generation:
        """See `TaskKind.generation`."""
        known = use.get("max_new_tokens")
        if isinstance(known, int) and not isinstance(known, bool) and 0 < known <= _MOST:
            asked = {**asked, "max_new_tokens": asked.get("max_new_tokens") or known}
        return super().generation(use, **asked)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `answer` that was written, if any, and of an answer that was there the `loss` of a token, the
        `perplexity` and the number of `tokens`."""
        found = np.asarray(output)[None]
        told: dict[str, Any] = {"answer": str(found["answer"][0])} if found.dtype == _ANSWERED else {}
        likelihoods = _likelihoods(found)
        if likelihoods[0, 1] or not told:
            loss = token_loss(likelihoods)
            told |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": int(likelihoods[0, 1])}
        return told

    def line(self, prediction: Mapping[str, Any]) -> str:
        """The answer on one line, or the loss where none was written."""
        if "answer" in prediction:
            return " ".join(str(prediction["answer"]).split())
        return f"loss {prediction['loss']:.4f}  perplexity {prediction['perplexity']:.4g}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "the tokens of an answer"


def _likelihoods(outputs: NDArray[Any]) -> NDArray[Any]:
    """The likelihoods (rows, 3) among outputs.

    Raises:
        TaskError: there are none.
    """
    found: NDArray[Any] = outputs["likelihoods"] if outputs.dtype == _ANSWERED else outputs
    if np.ndim(found) != 2 or np.shape(found)[1] != _COLUMNS:
        raise TaskError(
            f"A language model is scored by the likelihoods of its answers, (rows, {_COLUMNS}), but got "
            f"predictions of shape {np.shape(found)}."
        )
    return found
