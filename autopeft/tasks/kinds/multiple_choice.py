"""Multiple choice by language models: which answer to a question is the most probable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.errors import AutoPEFTError, TaskError, UsageError
from autopeft.tasks.kinds.choices import CHOICE_OF, CHOICES, LETTERS, ChoiceSchema, EncodedChoices, choices_of
from autopeft.tasks.kinds.class_metrics import ACCURACY
from autopeft.tasks.kinds.conversation_tokens import encode_conversations
from autopeft.tasks.kinds.conversations import Conversation, with_turns
from autopeft.tasks.kinds.language_model import DecoderHead, LanguageEncoder
from autopeft.tasks.kinds.likelihoods import AnswerLoss, row_likelihoods
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.scorer import Breakdown, Loss, Scorer
from autopeft.tasks.kinds.task_kind import TaskKind

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName
    from autopeft.tasks.tokens import EncodedSplit

__all__ = ["ACCURACY_NORM"]

_EXAMPLES = "examples"  # field of a split: conversations that stand before each question


def _normed(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """The choice whose log-likelihood is the highest for a byte of it."""
    return np.asarray([int(np.argmax(row[:, 0] / row[:, 1])) for row in outputs], dtype=np.int64)


def _accuracy_norm(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(np.mean(_normed(outputs) == labels))


ACCURACY_NORM = Metric(
    "accuracy_norm", 0, 1, "share of rows whose right choice has the highest log-likelihood for a byte",
    _accuracy_norm, ACCURACY.variance, raw=True,
)  # fmt: skip
"""`acc_norm` of EleutherAI's lm-evaluation-harness (Gao et al. 2021, doi:10.5281/zenodo.5371628), which
divides by the bytes of a choice; `accuracy` is its `acc`."""


class ChoiceEncoder(LanguageEncoder):
    """A sequence for each choice, with the question in each; choices are not listed in the question.

    The right choice is learnt as the answer to its question, as in instruction tuning: with the token that
    ends it, the others left aside.
    """

    tokenwise_trunk = False  # rows that are scored have several sequences

    def encode(  # type: ignore[override]  # rows of several sequences
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedChoices:
        """A sequence for each choice, without end tokens. See `encode_conversations`."""
        choices = rows.fields[CHOICES]
        turns = rows.fields.get(_EXAMPLES, [()] * len(rows))
        asked = [
            with_turns(_asked(question, choice), before)
            for question, own, before in zip(rows.texts, choices, turns, strict=True)
            for choice in own
        ]
        found = encode_conversations(asked, tokenizer, max_length, kind=self.kind, cached=cached, ended=False)
        starts = np.concatenate([[0], np.cumsum([len(own) for own in choices])]).astype(np.int64)
        sizes = np.asarray([len(c.encode()) for own in choices for c in own], dtype=np.int64)
        return choices_of(found, starts, sizes, self.label_array(rows.labels) if labelled else None)

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        """See `Encoder.encode_splits`: what is trained on are the right choices alone, as answers."""
        rows = splits["train"]
        right = zip(rows.texts, rows.fields[CHOICES], rows.labels, strict=True)
        asked = [_asked(question, choices[int(label)]) for question, choices, label in right]
        train = encode_conversations(asked, tokenizer, max_length, kind=self.kind)
        found: dict[SplitName, EncodedSplit] = {"train": train}
        for name, split in splits.items():
            if name != "train":
                found[name] = self.encode(split, tokenizer, max_length)
        return found

    def cut_rows(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> NDArray[np.bool_]:
        """Whether a sequence of a row is cut, (rows,)."""
        found = self.encode(rows, tokenizer, max_length, cached=False)
        cut = np.asarray(found.sequences.row_cut > 0)
        return np.asarray(np.logical_or.reduceat(cut, found.starts[:-1]))

    def asks(self, rows: Split) -> bool:
        """Each row does."""
        return True

    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with these questions and their right choices before each question."""
        right = zip(examples.texts, examples.fields[CHOICES], examples.labels, strict=True)
        turns = [_asked(question, choices[int(label)]) for question, choices, label in right]
        return replace(rows, fields={**rows.fields, _EXAMPLES: [turns] * len(rows)})

    def begin_alike(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The sequences of a row's choices begin with its question."""
        return batch[CHOICE_OF][:, 0] if CHOICE_OF in batch else None


class ChoiceHead(DecoderHead):
    """The head of a decoder; the hub counts models that choose as classifiers."""

    hub_pipeline = "text-classification"


class ChoiceScorer(Scorer):
    """Outputs are objects (rows,), each an array (choices, 2) of the log-likelihood of a choice's tokens
    given the question, without the token that ends it, and its bytes. Decisions are the choice of the highest
    log-likelihood."""

    metrics = (ACCURACY, ACCURACY_NORM)
    tempered = True

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        """That of the right choice as an answer."""
        return AnswerLoss()

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The place that is right most often; of equal ones the first."""
        counts = Counter(int(label) for label in labels)
        most = min(counts, key=lambda place: (-counts[place], place))
        return f"always choice {LETTERS[most]}", most

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """Log-likelihoods and bytes of the choices, (rows,) of arrays (choices, 2) in float64.

        Raises:
            UsageError: the rows were encoded to train on them, with their right choices alone.
        """
        if CHOICE_OF not in batch:
            raise UsageError(
                "Rows that were encoded to be trained on hold their right choices alone and cannot be "
                "scored; encode them with `Encoder.encode`."
            )
        losses = row_likelihoods(run(), batch["labels"])[:, 0]
        place, sizes = batch[CHOICE_OF].cpu().numpy().T
        both = np.stack([-losses, sizes.astype(np.float64)], axis=1)
        parts = np.split(both, np.flatnonzero(np.diff(place)) + 1)
        found = np.empty(len(parts), dtype=object)
        found[:] = parts
        return found

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The choice of the highest log-likelihood, of equal ones the first."""
        if outputs.dtype != object:
            return outputs
        return np.asarray([int(np.argmax(row[:, 0])) for row in outputs], dtype=np.int64)

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        whole = np.asarray(outputs).dtype == object
        if metric.raw and not whole:
            raise TaskError(
                f"{metric.name} takes the log-likelihoods of choices, but got predictions of shape "
                f"{np.shape(outputs)}."
            )
        if whole and not all(np.all(np.isfinite(row)) for row in outputs):
            raise AutoPEFTError("The predictions hold values that are not finite; they cannot be scored.")
        return super().compared(metric, outputs, labels)

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Cross-entropy of the right choice, where the choices' likelihoods are made to add up to 1."""
        if not len(outputs) or np.asarray(outputs).dtype != object:
            return None
        told = [
            float(logsumexp(row[:, 0]) - row[int(label), 0])
            for row, label in zip(outputs, labels, strict=True)
        ]
        return float(np.mean(told))

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Both accuracies by the number of choices beside that of guessing, and how often each place is right
        and chosen."""
        counts = np.asarray([len(row) for row in outputs])
        found, normed = self.decisions(outputs), _normed(outputs)
        by_count = tuple(
            (
                f"{n} choices",
                int((counts == n).sum()),
                float(np.mean((found == labels)[counts == n])),
                float(np.mean((normed == labels)[counts == n])),
                1 / int(n),
            )
            for n in np.unique(counts)
        )
        places = tuple(
            (LETTERS[i], int((labels == i).sum()), int((found == i).sum()), int((normed == i).sum()))
            for i in range(int(counts.max()))
        )
        headers = ("rows of", "rows", "accuracy", "accuracy_norm", "guessing")
        return (
            Breakdown("choices", "By the number of choices", headers, by_count),
            Breakdown("places", "Places of choices", ("place", "right", "chosen", "chosen by bytes"), places),
        )

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """`label`, the letter of the most likely choice, its `probability`, the `probabilities` of all
        choices by letter, which add up to 1, and their `log_likelihoods`."""
        sums = np.asarray(output, dtype=np.float64)[:, 0]
        shares = softmax(sums)
        best = int(np.argmax(sums))
        return {
            "label": LETTERS[best],
            "probability": float(shares[best]),
            "probabilities": {LETTERS[i]: float(share) for i, share in enumerate(shares)},
            "log_likelihoods": [float(value) for value in sums],
        }

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['label']}  {prediction['probability']:.4f}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "one of a row's choices"


def _asked(question: str, choice: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": choice}]


register_kind(
    TaskKind(
        "multiple_choice",
        "the right one of several answers, by their likelihoods under a language model",
        schema=ChoiceSchema(),
        encoder=ChoiceEncoder(),
        head=ChoiceHead(),
        scorer=ChoiceScorer(),
    )
)
