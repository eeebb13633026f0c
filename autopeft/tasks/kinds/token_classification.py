"""Token classification: a tag for each word of a row, such as the entities in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from autopeft.errors import AutoPEFTError, TaskError
from autopeft.tasks.kinds.answers import IGNORED
from autopeft.tasks.kinds.class_metrics import class_breakdowns
from autopeft.tasks.kinds.classification import weights_of_classes
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.scorer import Breakdown, ClassWeights, Loss, Scorer, WeightedLoss, floored_classes
from autopeft.tasks.kinds.tag_schema import WORDS, TagSchema, parted, tagged
from autopeft.tasks.kinds.tags import (
    ENTITY_F1,
    OUTSIDE,
    TAG_ACCURACY,
    TAG_F1,
    UNSEEN,
    Tags,
    entities,
    entity_types,
    outside_of,
    ragged,
    spell_entities,
)
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.kinds.words import COUNTS, PLACES, EncodedWords, encode_words

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

__all__ = ["TagLoss"]


class TagEncoder(Encoder):
    """Tokens of words, with the tag of each word at its first token."""

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedWords:
        """See `Encoder.encode` and `encode_words`."""
        tags = list(rows.labels) if labelled else None
        return encode_words(rows.fields[WORDS], tags, tokenizer, max_length, kind=self.kind, cached=cached)

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """The rows' `Tags`, (rows,) objects."""
        return ragged(labels)


class TagHead(Head):
    """One output for each tag, at each token."""

    auto_class = AutoModelForTokenClassification
    pooled = False
    row_distribution = False
    peft_task_type = "TOKEN_CLS"
    hub_pipeline = "token-classification"

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `Head.refused`."""
        if not spec.encoder_decoder:
            return None
        return (
            f"{model!r} is an encoder-decoder, and {self.kind} gives a tag to each word that it reads: "
            "take an encoder such as BERT or RoBERTa, or a decoder (--model)."
        )

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """See `Head`; the class of the model alone tells this kind."""
        return tuple(str(label) for _, label in sorted((config.id2label or {}).items()))


class TagLoss(WeightedLoss):
    """Cross-entropy of the tag of each word at its first token, optionally weighted by tag; the divisor is
    the words, or the sum of their weights: the loss of transformers for labels that are -100 elsewhere."""

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of logits (…, tags) and labels (…), such as (B, L)."""
        return self._losses(logits, batch["labels"]).sum()

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`; of tags (words,)."""
        return floored_classes(logits, labels)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each place (…), 0 where there is no word."""
        flat = logits.float().flatten(0, -2)
        return F.cross_entropy(
            flat,
            labels.flatten(),
            weight=self.weights_on(logits.device),
            ignore_index=IGNORED,
            reduction="none",
        ).view(labels.shape)

    def _weights(self, labels: Tensor) -> Tensor:
        there = labels != IGNORED
        if self.class_weights is None:
            return there.float()
        return self.class_weights.to(labels.device)[labels.clamp(min=0)] * there

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        """The words, or their weights; 1 where there are none, and nothing is lost."""
        return float(self._weights(batch["labels"]).sum()) or 1.0

    def each(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each row the mean over its words; 0 where it has none."""
        found = self._losses(logits, batch["labels"]).flatten(1).sum(1)
        weights = self._weights(batch["labels"]).flatten(1).sum(1)
        return found / torch.where(weights > 0, weights, torch.ones_like(weights))


class TagScorer(Scorer):
    """Outputs are objects (rows,), each an array (words, tags) of logits, all -∞ for words of which the model
    saw no token. Decisions are objects (rows,), each an array (words,) of the tag of the largest logit, or
    -1.

    Words that the model did not see are left out of scores, as where labels are aligned with tokens.
    """

    metrics = (ENTITY_F1, TAG_F1, TAG_ACCURACY)
    tempered = True
    tells = True

    def metric_for(self, names: Sequence[str]) -> str:
        """F1 of entities where tags spell them, else of the tags."""
        return ENTITY_F1.name if spell_entities(names) else TAG_F1.name

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """Raises `TaskError` for F1 of entities where tags spell none."""
        if metric == ENTITY_F1 and not spell_entities(names):
            shown = ", ".join(map(repr, names[:6]))
            raise TaskError(
                f"metric={ENTITY_F1.name!r} needs tags that spell entities (B-PER, I-PER, O), but the task "
                f"has {shown}; use {TAG_F1.name} or {TAG_ACCURACY.name}."
            )

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """See `Scorer.class_weights`; each word counts."""
        return weights_of_classes(asked, [tag for row in labels for tag in row], names)

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The tag that most words have; of equal ones the first."""
        counts = Counter(tag for row in labels for tag in row)
        most = min(counts, key=lambda tag: (-counts[tag], tag))
        return f"always {names[most]!r}", most

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return TagLoss(class_weights)

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """Logits of the words at their first tokens, (rows,) of arrays (words, tags) in float32."""
        logits = run().float().cpu().numpy()
        places, counts = batch[PLACES].cpu().numpy(), batch[COUNTS].cpu().numpy()
        found = []
        for own, at, words in zip(logits, places, counts, strict=True):
            row = np.full((int(words), own.shape[-1]), -np.inf, dtype=np.float32)
            row[at[at >= 0]] = own[at >= 0]
            found.append(row)
        return ragged(found)

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The tag of the largest logit of each word, -1 for words that the model did not see."""
        return ragged([_decided(np.asarray(row)) for row in outputs])

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The words that the model saw; a single tag in the place of a row's is that of all its words. A
        function of the user's takes tags by name."""
        if len(outputs) != len(labels) or not len(labels):
            raise TaskError(f"Cannot score the tags of {len(outputs)} rows against those of {len(labels)}.")
        if not all(isinstance(tags, Tags) for tags in labels):
            raise TaskError(
                f"{metric.name} scores the tags of words, but got labels such as {labels[0]!r:.80}."
            )
        found, truth = [], []
        for row, tags in zip(outputs, labels, strict=True):
            own = np.full(len(tags), row) if np.ndim(row) == 0 else _decided(np.asarray(row))
            if len(own) != len(tags):
                raise TaskError(f"Cannot score {len(own)} tags against those of {len(tags)} words.")
            seen = np.flatnonzero(own != UNSEEN)
            found.append(own[seen])
            truth.append(tags.at(seen))
        if metric.own:
            return _named(found, labels), _named(truth, labels)
        return ragged(found), ragged(truth)

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Cross-entropy of the tags of words that the model saw, all words alike."""
        told = [
            logsumexp(seen, axis=1) - seen[np.arange(len(seen)), truth]
            for seen, truth in _seen_logits(outputs, labels)
        ]
        losses = np.concatenate(told) if told else np.empty(0)
        return float(losses.mean()) if len(losses) else None

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Precision, recall, F1 and support of each type of entity, where tags spell entities, and the same
        of each tag with the words of each tag by what was predicted."""
        found, truth = self.compared(TAG_ACCURACY, outputs, labels)
        rows = np.repeat(np.arange(len(truth)), [len(row) for row in truth])
        said, there = (
            np.concatenate([np.asarray(r, dtype=np.int64) for r in part]) for part in (found, truth)
        )
        tables = class_breakdowns(said, there, names)
        return (*_by_type(said, there, rows, names), *tables) if spell_entities(names) else tables

    def tell(self, rows: Split, outputs: NDArray[Any], names: Sequence[str]) -> list[tuple[str, str]]:
        """Of each row the words with their tags, right and predicted, where these are not outside; `?` for
        words that the model did not see, in both."""
        found, none = [], names[outside_of(names)]
        for words, truth, row in zip(rows.fields[WORDS], rows.labels, outputs, strict=True):
            own = _decided(np.asarray(row))
            told = [
                tagged(
                    words, ["?" if o == UNSEEN else names[t] for t, o in zip(tags, own, strict=True)], none
                )
                for tags in (truth, own)
            ]
            found.append((told[0], told[1]))
        return found

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `tags` of the words in order, and their `probabilities`; `None` for words that the model did
        not see."""
        logits = np.asarray(output, dtype=np.float64)
        shares = [softmax(row) if there else None for row, there in zip(logits, _seen(logits), strict=True)]
        return {
            "tags": [None if share is None else names[int(np.argmax(share))] for share in shares],
            "probabilities": [None if share is None else float(np.max(share)) for share in shares],
        }

    def line(self, prediction: Mapping[str, Any]) -> str:
        """The words with their tags, as far as these are not `O`; the tags alone where the words are not at
        hand."""
        tags = ["?" if tag is None else str(tag) for tag in prediction["tags"]]
        words = parted(prediction.get("text"))
        return tagged(words, tags, OUTSIDE) if len(words) == len(tags) else " ".join(tags)

    def describe_labels(self, names: Sequence[str]) -> str:
        """A tag for each word, of these."""
        return f"a tag for each word: {', '.join(names)}"


def _decided(row: NDArray[Any]) -> NDArray[np.int64]:
    """The tag of each word of a row of `outputs`; decisions as they are."""
    if row.ndim != 2:
        return row.astype(np.int64)
    seen = _seen(row)
    if not np.isfinite(row[seen]).all():
        raise AutoPEFTError("The predictions hold values that are not finite; they cannot be scored.")
    return np.where(seen, row.argmax(axis=1), UNSEEN)


def _seen(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the model saw a token of each word, (words,)."""
    return np.asarray(~np.isneginf(logits).all(axis=1))


def _named(rows: Sequence[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Rows of tags by name, (rows,) objects."""
    return ragged([[tags.names[int(tag)] for tag in row] for row, tags in zip(rows, labels, strict=True)])


def _seen_logits(
    outputs: NDArray[Any], labels: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Of each row the logits (words, tags) and tags of the words that the model saw; none of rows of
    decisions."""
    for row, tags in zip(outputs, labels, strict=True):
        logits = np.asarray(row, dtype=np.float64)
        if logits.ndim == 2 and len(logits) == len(tags):
            seen = _seen(logits)
            yield logits[seen], np.asarray(tags, dtype=np.int64)[seen]


def _by_type(
    said: NDArray[Any], there: NDArray[Any], rows: NDArray[Any], names: Sequence[str]
) -> tuple[Breakdown, ...]:
    """Precision, recall, F1 and support of the entities of each type."""
    found, truth = ({tuple(e) for e in entities(tags, rows, names).tolist()} for tags in (said, there))
    table: list[tuple[str | int | float, ...]] = []
    for i, name in enumerate(entity_types(names)):
        ours, theirs = ({e for e in part if e[2] == i} for part in (found, truth))
        right = len(ours & theirs)
        precision = right / len(ours) if ours else np.nan
        recall = right / len(theirs) if theirs else np.nan
        both = len(ours) + len(theirs)
        table.append((name, precision, recall, 2 * right / both if both else np.nan, len(theirs)))
    headers = ("type", "precision", "recall", "F1", "support")
    return (Breakdown("entities", "Entities of each type", headers, tuple(table)),)


register_kind(
    TaskKind(
        "token_classification",
        "a tag for each word: entities, parts of speech",
        schema=TagSchema(),
        encoder=TagEncoder(),
        head=TagHead(),
        scorer=TagScorer(),
    )
)
