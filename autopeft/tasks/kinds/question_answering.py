"""Extractive question answering: which part of a text answers a question, as in SQuAD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering

from autopeft.errors import TaskError
from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.questions import QuestionSchema
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.scorer import Breakdown, Loss, Scorer
from autopeft.tasks.kinds.spans import (
    SQUAD_EXACT_MATCH,
    SQUAD_F1,
    WHOLE,
    Answers,
    RowWindows,
    Whole,
    squad_plain,
)
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.kinds.windows import CONTEXT_PLACES, WindowEncoder
from autopeft.tasks.tokens import ragged

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

__all__ = ["SpanLoss"]

_NONE = "(no answer)"
_ENDS = 2  # of an answer: where it begins and where it ends


class SpanHead(Head):
    """Two outputs at each token: scores of an answer's beginning and of its end."""

    auto_class = AutoModelForQuestionAnswering
    outputs = _ENDS
    pooled = False
    row_distribution = False
    probed = False
    peft_task_type = "QUESTION_ANS"
    hub_pipeline = "question-answering"

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `Head.refused`."""
        if not spec.encoder_decoder:
            return None
        return (
            f"{model!r} is an encoder-decoder, and {self.kind} finds an answer in the text that it reads: "
            "take an encoder such as BERT or RoBERTa, or a decoder (--model)."
        )

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """See `Head`; the class of the model alone tells this kind."""
        return ()

    def logits_of(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of beginning and end at each position, (B, L, 2)."""
        if hasattr(output, "start_logits"):
            return torch.stack([output.start_logits, output.end_logits], dim=-1)
        return torch.stack(list(output[:_ENDS]), dim=-1)

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """All positions: an answer is found among those of the context, the first one stands for none, and
        the loss compares the right one with every other, of the question and of padding too."""
        return torch.ones_like(batch["attention_mask"], dtype=torch.bool)


class SpanLoss(Loss):
    """The mean of the cross-entropies of an answer's first and last token over all positions of the batch,
    padding included; the divisor is the windows. It is the loss of transformers for labels inside the batch,
    as `EncodedWindows` has them; of others the share that transformers leaves out is 0 here."""

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of logits (B, L, 2) and labels (B, 2)."""
        return self.each(logits, batch).sum()

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Over the windows, of each the mean of both ends, over all positions as in `total`."""
        return symmetric_divergence(logits.transpose(1, 2), others.transpose(1, 2)).mean(dim=1).sum()

    def each(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each window, (B,)."""
        length = logits.shape[1]
        labels = batch["labels"].clamp(0, length)
        return F.cross_entropy(logits.float(), labels, ignore_index=length, reduction="none").mean(dim=1)


class SpanScorer(Scorer):
    """Outputs are objects (rows,), each the `RowWindows` of a row. Decisions are objects (rows,), the texts
    of the answers, empty where none is given.

    What is predicted are windows (see `EncodedWindows`); `outputs` keeps of each an array (tokens, 4), and
    `EncodedSplit.of_rows` puts those of a row together.
    """

    metrics = (SQUAD_F1, SQUAD_EXACT_MATCH)
    tells = True

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The whole text of each row, or no answer where that scores more on these rows."""
        truth = ragged(list(labels))
        whole = self.score(SQUAD_F1, ragged([WHOLE] * len(truth)), truth)
        if np.mean([not answers for answers in labels]) > whole:
            return "always no answer", ""
        return "always the whole text", WHOLE

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return SpanLoss()

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor] | None:
        """The log of the mean softmax over positions."""
        return _log_mean

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """Of each window (tokens, 4) in float64: the logits of beginning and end, and the letters of the
        context that a token stands for."""
        logits = run().double().cpu().numpy()
        places = batch[CONTEXT_PLACES].cpu().numpy()
        lengths = batch["attention_mask"].sum(dim=1).cpu().tolist()
        both = np.concatenate([logits, places], axis=-1)
        return ragged([own[:length] for own, length in zip(both, lengths, strict=True)])

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The text of the best span of each row."""
        return ragged([row.answer.text if isinstance(row, RowWindows) else row for row in outputs])

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Texts and `Answers`; a function of the user's takes lists of acceptable texts."""
        if len(outputs) != len(labels) or not len(labels):
            raise TaskError(
                f"Cannot score the answers of {len(outputs)} rows against those of {len(labels)}."
            )
        if not all(isinstance(answers, Answers) for answers in labels):
            raise TaskError(
                f"{metric.name} scores answers in a text, but got labels such as {labels[0]!r:.80}."
            )
        pairs = zip(self.decisions(outputs), labels, strict=True)
        found = ragged([a.context if isinstance(said, Whole) else str(said) for said, a in pairs])
        return found, ragged([answers.texts for answers in labels]) if metric.own else ragged(list(labels))

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Mean over all windows, each over its own tokens."""
        if not all(isinstance(row, RowWindows) for row in outputs):
            return None
        told = [loss for row, own in zip(outputs, labels, strict=True) for loss in row.losses(own)]
        return float(np.mean(told)) if told else None

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Both metrics, and how often no answer is given, of all rows and of those with and without one."""
        found, truth = self.compared(SQUAD_F1, outputs, labels)
        there = np.asarray([bool(answers) for answers in truth])
        groups = [("all rows", np.ones(len(truth), dtype=bool))]
        if not there.all():
            groups += [("with an answer", there), ("without an answer", ~there)]
        table = tuple(
            (
                name,
                int(mask.sum()),
                SQUAD_F1.score(found[mask], truth[mask]),
                SQUAD_EXACT_MATCH.score(found[mask], truth[mask]),
                int(sum(not text for text in found[mask])),
            )
            for name, mask in groups
            if mask.any()
        )
        headers = ("rows", "number", SQUAD_F1.name, SQUAD_EXACT_MATCH.name, "no answer given")
        return (Breakdown("answers", "Answers", headers, table),)

    def tell(self, rows: Split, outputs: NDArray[Any], names: Sequence[str]) -> list[tuple[str, str]]:
        """Of each row the acceptable answer that was found, or the first, and what was found."""
        told = []
        for answers, said in zip(rows.labels, self.decisions(outputs), strict=True):
            right = next((t for t in answers.texts if squad_plain(t) == squad_plain(said)), None)
            expected = _line(answers.texts[0] if right is None else right)
            told.append((expected, _line(said) if right is None else expected))
        return told

    def present(self, output: Any, names: Sequence[str]) -> dict[str, Any]:
        """The `answer`, the letters `start` to `end` of the context where it stands, and its `probability`;
        an empty answer without letters where none is given."""
        found = output.answer
        start, end = (None, None) if found.start < 0 else (found.start, found.stop)
        return {"answer": found.text, "start": start, "end": end, "probability": found.probability}

    def line(self, prediction: Mapping[str, Any]) -> str:
        """The answer on one line."""
        return f"{_line(prediction['answer'])}  {prediction['probability']:.4f}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "a part of a text"


def _line(text: Any) -> str:
    return " ".join(str(text).split()) or _NONE


def _log_mean(logits: Tensor, dim: int) -> Tensor:
    """Of logits (…, L, 2) over the dimension `dim`."""
    return torch.logsumexp(F.log_softmax(logits, dim=-2), dim=dim) - math.log(logits.shape[dim])


register_kind(
    TaskKind(
        "question_answering",
        "which part of a text answers a question, as in SQuAD",
        schema=QuestionSchema(),
        encoder=WindowEncoder(),
        head=SpanHead(),
        scorer=SpanScorer(),
    )
)
