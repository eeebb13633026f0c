"""Tokens of rows of words, and which of them stand for a word.

The words of a row are joined by spaces and tokenised as a text, and a word's first token is the first one
that the tokenizer places on it. For tokenizers such as BERT's that is what `is_split_into_words` and
`word_ids` give. Those that join the space to the word behind it (GPT-2, RoBERTa, Llama, T5) give a word the
tokens that it has inside a text, which `is_split_into_words` needs `add_prefix_space` for, and many do not
have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.assets import warn_once
from autopeft.errors import UsageError
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.answers import IGNORED
from autopeft.tasks.kinds.tags import Tags, ragged
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    Indices,
    encode_texts,
    kept_arrays,
    tokens_of,
)

__all__ = ["COUNTS", "PLACES", "EncodedWords", "encode_words"]

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

    word_places: NDArray[np.int32]
    counts: Indices
    tags: NDArray[np.object_] | None

    @property
    def truth(self) -> NDArray[Any] | None:
        """The tags of the words of each row, (rows,) objects (`Tags`)."""
        return self.tags

    def take(self, rows: Indices) -> EncodedWords:
        """See `EncodedSplit.take`."""
        plain = super().take(rows)
        own = {
            "word_places": self.word_places[self.places(rows)],
            "counts": self.counts[rows],
            "tags": None if self.tags is None else self.tags[rows],
        }
        return EncodedWords(**{**vars(plain), **own})

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
        flat, inside = self.layout(chosen, device)
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


def encode_words(
    words: Sequence[Sequence[str]],
    tags: Sequence[Tags] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    kind: str,
    cached: bool = True,
) -> EncodedWords:
    """Tokenise rows of words. Words whose first token lies beyond `max_length`, and words that the tokenizer
    makes nothing of, have no place; it is said how many those are.

    Raises:
        UsageError: see `encode_texts`; or the tokenizer does not tell where its tokens stand in a text.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} does not tell which word a token is of; tags of words need a "
            "tokenizer with a tokenizer.json."
        )
    texts = [" ".join(row) for row in words]
    plain = encode_texts(texts, None, tokenizer, max_length, kind=kind, cached=cached)
    arrays = kept_arrays(
        lambda: _content_hash(words, tokenizer, max_length),
        len(words),
        lambda: {
            "ids": np.asarray(plain.ids),
            "offsets": np.asarray(plain.offsets),
            "places": _places(words, texts, tokenizer, max_length, np.asarray(plain.offsets)),
        },
        cached=cached,
    )
    places = np.asarray(arrays["places"])
    counts = np.asarray([len(row) for row in words], dtype=np.int64)
    seen = np.add.reduceat((places != _NONE).astype(np.int64), np.asarray(plain.offsets)[:-1])
    _tell_unseen(int(counts.sum() - seen.sum()), int(counts.sum()), max_length)
    return EncodedWords(
        **{**vars(plain), "labels": None if tags is None else seen},
        word_places=places,
        counts=counts,
        tags=None if tags is None else ragged(list(tags)),
    )


def _tell_unseen(unseen: int, words: int, max_length: int) -> None:
    if unseen:
        warn_once(
            f"{unseen:,} of {words:,} words have no token within {max_length} tokens: they are neither "
            "learnt nor scored, and get no tag. Raise --max-length (max_length=…) where rows are longer."
        )


def _content_hash(words: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    digest = hashlib.sha256(f"words {_FORMAT} {max_length} {fingerprint_of(tokenizer)}\n".encode())
    for row in words:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()


def _places(
    words: Sequence[Sequence[str]],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    offsets: Indices,
) -> NDArray[np.int32]:
    """The word whose first token each token is, (tokens,)."""
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
                found[offsets[row] : offsets[row] + len(own)] = _first_tokens(words[row], own, special)
    return found


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
