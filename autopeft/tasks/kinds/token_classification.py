"""Token classification: a tag for each word of a row, such as the entities in a sentence."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from autopeft.assets import warn_once
from autopeft.errors import AutoPEFTError, TaskError, UsageError
from autopeft.nn import symmetric_divergence
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.class_metrics import class_breakdowns
from autopeft.tasks.kinds.classification import CLASSIFICATION
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.scorer import Breakdown, ClassWeights, Loss, Scorer, WeightedLoss
from autopeft.tasks.kinds.tags import (
    ENTITY_F1,
    OUTSIDE,
    TAG_ACCURACY,
    TAG_F1,
    UNSEEN,
    WORDS,
    Tags,
    TagSchema,
    entities,
    entity_types,
    outside_of,
    parted,
    spell_entities,
    tagged,
)
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    Indices,
    content_hash,
    encode_texts,
    keep_arrays,
    ragged,
    read_arrays,
    tokens_of,
)

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

__all__ = ["COUNTS", "PLACES", "EncodedWords", "TagEncoder", "TagLoss"]


PLACES, COUNTS = f"{BESIDE}word_places", f"{BESIDE}word_counts"
"""Keys of a batch (see `EncodedWords.collate`)."""
_FORMAT = 1
_CHUNK = 1_000
_NONE = -1


@dataclass(frozen=True, eq=False)
class EncodedWords(EncodedSplit):
    """Tokens of rows of words.

    Attributes:
        word_places: the word whose first token each token is, else -1, (tokens,).
        counts: words of each row, (rows,).
        tags: of the words of each row, (rows,) objects; `None` without tags.

    `labels` are the numbers of words that have a token, (rows,) int64; `None` without tags.
    """

    by_token = (*EncodedSplit.by_token, "word_places")
    by_row = (*EncodedSplit.by_row, "counts", "tags")

    word_places: NDArray[np.int32]
    counts: Indices
    tags: NDArray[np.object_] | None

    @property
    def truth(self) -> NDArray[Any] | None:
        """The tags of the words of each row, (rows,) objects (`Tags`)."""
        return self.tags

    @property
    def label_counts(self) -> Indices:
        """The words of each row that have a token, (rows,)."""
        places = np.asarray(self.word_places != _NONE, dtype=np.int64)
        return np.asarray(np.add.reduceat(places, self.offsets[:-1]))

    @property
    def labels_fingerprint(self) -> str:
        """See `EncodedSplit.labels_fingerprint`: of the tag of each word and its place."""
        told = [] if self.tags is None else [list(row) for row in self.tags]
        digest = hashlib.sha256(json.dumps(told).encode())
        digest.update(np.ascontiguousarray(self.word_places).data)
        return digest.hexdigest()

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """As `EncodedSplit.collate`. `labels` (B, L) int64, where there are tags, are those of words at their
        first tokens, and -100 elsewhere. `PLACES` (B, L) int64 are the words whose first tokens stand
        there, and -1 elsewhere; `COUNTS` (B,) int64 are the words of the rows."""
        batch = super().collate(rows, device=device)
        chosen = np.asarray(rows, dtype=np.int64)
        flat, inside = self.layout(chosen)
        places = np.full(inside.shape, _NONE, dtype=np.int64)
        places[inside] = self.word_places[flat]
        own = {PLACES: torch.from_numpy(places), COUNTS: torch.from_numpy(self.counts[chosen])}
        if self.tags is not None:
            labels = np.full(inside.shape, IGNORED, dtype=np.int64)
            for row, index in enumerate(chosen):
                there = places[row] != _NONE
                labels[row, there] = np.asarray(self.tags[index], dtype=np.int64)[places[row, there]]
            own["labels"] = torch.from_numpy(labels)
        return {**batch, **{key: value.to(device, non_blocking=True) for key, value in own.items()}}


class TagEncoder(Encoder):
    """Tokens of words, with the tag of each word at its first token.

    The words of a row are joined by spaces and tokenised as a text, and a word's first token is the first one
    that the tokenizer places on it. For tokenizers such as BERT's that is what `is_split_into_words` and
    `word_ids` give. Those that join the space to the word behind it (GPT-2, RoBERTa, Llama, T5) give a word
    the tokens that it has inside a text, which `is_split_into_words` needs `add_prefix_space` for, and many
    do not have."""

    label_type = object

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedWords:
        """See `Encoder.encode`. Words whose first token lies beyond `max_length`, and words that the
        tokenizer makes nothing of, have no place; a warning says how many those are.

        Raises:
            UsageError: see `encode_texts`; or the tokenizer does not tell where its tokens stand in a text.
        """
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} does not tell which word a token is of; tags of words need a "
                "tokenizer with a tokenizer.json."
            )
        words = rows.fields[WORDS]
        texts = [" ".join(row) for row in words]
        plain = encode_texts(texts, None, tokenizer, max_length, kind=self.kind, cached=cached)
        offsets = np.asarray(plain.offsets)
        key = None
        if cached:
            key = content_hash(f"words {_FORMAT} {max_length} {fingerprint_of(tokenizer)}", map(list, words))
        arrays = read_arrays(key, len(words))
        if arrays is None:
            found = np.full(int(offsets[-1]), _NONE, dtype=np.int32)
            for start in range(0, len(texts), _CHUNK):
                chunk = tokens_of(
                    tokenizer,
                    texts[start : start + _CHUNK],
                    None,
                    truncation=True,
                    max_length=max_length,
                    padding=False,
                    return_offsets_mapping=True,
                    return_special_tokens_mask=True,
                )
                spans = zip(chunk["offset_mapping"], chunk["special_tokens_mask"], strict=True)
                for row, (own, special) in enumerate(spans, start=start):
                    if own:  # a text may have no token; a padding token then keeps its row
                        found[offsets[row] : offsets[row] + len(own)] = _first_tokens(
                            words[row], own, special
                        )
            arrays = {"ids": np.asarray(plain.ids), "offsets": offsets, "places": found}
            arrays = keep_arrays(key, len(words), arrays)
        places = np.asarray(arrays["places"])
        counts = np.asarray([len(row) for row in words], dtype=np.int64)
        seen = np.add.reduceat((places != _NONE).astype(np.int64), offsets[:-1])
        if unseen := int(counts.sum() - seen.sum()):
            warn_once(
                f"{unseen:,} of {int(counts.sum()):,} words have no token within {max_length} tokens: they "
                "are neither learnt nor scored, and get no tag. Raise --max-length (max_length=…) where "
                "rows are longer."
            )
        return EncodedWords(
            **{**vars(plain), "labels": seen if labelled else None},
            word_places=places,
            counts=counts,
            tags=ragged(list(rows.labels)) if labelled else None,
        )


def _first_tokens(
    words: Sequence[str], spans: Sequence[tuple[int, int]], special: Sequence[int]
) -> NDArray[np.int32]:
    """Of each token of a row the word that it is the first token of, else -1.

    Args:
        spans: where each token stands in the joined words, (tokens, 2); a token may begin with the space.
        special: 1 for tokens that stand for no part of the text.
    """
    lengths = np.asarray([len(word) for word in words])
    starts = np.concatenate([[0], np.cumsum(lengths[:-1] + 1)])
    begins, ends = np.asarray(spans, dtype=np.int64).reshape(-1, 2).T
    found = np.full(len(begins), _NONE, dtype=np.int32)
    # The space before a word is the word's: tokens begin with it, or are that alone.
    word = np.searchsorted(starts - 1, begins, side="right") - 1
    real = (np.asarray(special) == 0) & (ends > begins)
    _, first = np.unique(word[real], return_index=True)
    at = np.flatnonzero(real)[first]
    found[at] = word[at]
    return found


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

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Over the words, with the weights of their tags."""
        return (symmetric_divergence(logits, others) * self._weights(batch["labels"])).sum()

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
        return CLASSIFICATION.scorer.class_weights(asked, [tag for row in labels for tag in row], names)

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
        losses = []
        for row, tags in zip(outputs, labels, strict=True):
            logits = np.asarray(row, dtype=np.float64)
            if logits.ndim == 2 and len(logits) == len(tags):  # decisions have none
                seen = _seen(logits)
                logits, truth = logits[seen], np.asarray(tags, dtype=np.int64)[seen]
                losses.append(logsumexp(logits, axis=1) - logits[np.arange(len(logits)), truth])
        flat = np.concatenate(losses) if losses else np.empty(0)
        return float(flat.mean()) if len(flat) else None

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
        if not spell_entities(names):
            return tables
        spelled, wanted = ({tuple(e) for e in entities(tags, rows, names).tolist()} for tags in (said, there))
        by_type: list[tuple[str | int | float, ...]] = []
        for i, name in enumerate(entity_types(names)):
            ours, theirs = ({e for e in part if e[2] == i} for part in (spelled, wanted))
            right, both = len(ours & theirs), len(ours) + len(theirs)
            precision = right / len(ours) if ours else np.nan
            recall = right / len(theirs) if theirs else np.nan
            by_type.append((name, precision, recall, 2 * right / both if both else np.nan, len(theirs)))
        headers = ("type", "precision", "recall", "F1", "support")
        return (Breakdown("entities", "Entities of each type", headers, tuple(by_type)), *tables)

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
