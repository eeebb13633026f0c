"""A word's tag stands at its first token, whatever the tokenizer makes of the words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.small_tokenizers import bytes_with_spaces, sentence_pieces, word_pieces

from autopeft.errors import UsageError
from autopeft.tasks.kinds.tags import Tags
from autopeft.tasks.kinds.token_classification import EncodedWords, TagEncoder
from autopeft.tasks.split import Split

WORDS = [
    ["unhappy", "Ann", "can't", "stay"],
    ["stay"],
    ["happy", "unhappy", "\u200b", "!", "stay", "Ann", "Ann"],
]
NAMES = ("O", "B", "I")
TAGS = [Tags([1, 0, 2, 0], NAMES), Tags([0], NAMES), Tags([0, 1, 1, 0, 0, 2, 1], NAMES)]


def encode_words(
    words: list[list[str]], tags: list[Tags] | None, tokenizer: Any, max_length: int, *, cached: bool = False
) -> EncodedWords:
    rows = Split([" ".join(row) for row in words], None, tags or [None] * len(words), {"words": words})
    return TagEncoder().encode(rows, tokenizer, max_length, labelled=tags is not None, cached=cached)


@pytest.mark.parametrize(
    "make", [word_pieces, lambda: bytes_with_spaces(prefix=True)], ids=["pieces", "bytes"]
)
def test_words_have_the_tokens_and_places_that_transformers_gives_them(make: Any) -> None:
    tokenizer = make()
    data = encode_words(WORDS, TAGS, tokenizer, 64)
    for i, words in enumerate(WORDS):
        row = slice(data.offsets[i], data.offsets[i + 1])
        encoded = tokenizer(words, is_split_into_words=True)
        ids = encoded.word_ids()
        assert data.ids[row].tolist() == encoded["input_ids"]
        # -1 but at each word's first token
        first = [-1 if w is None or w in ids[:at] else w for at, w in enumerate(ids)]
        assert data.word_places[row].tolist() == first


@pytest.mark.parametrize("make", [bytes_with_spaces, sentence_pieces])
def test_words_have_the_tokens_that_they_have_in_a_text(make: Any) -> None:
    tokenizer = make()
    data = encode_words(WORDS, TAGS, tokenizer, 64)
    for i, words in enumerate(WORDS):
        row = slice(data.offsets[i], data.offsets[i + 1])
        assert data.ids[row].tolist() == tokenizer(" ".join(words))["input_ids"]
        places = data.word_places[row]
        assert sorted(places[places >= 0]) == list(range(len(words)))
        for at, word in zip(np.flatnonzero(places >= 0), places[places >= 0], strict=True):
            text = tokenizer.convert_ids_to_tokens(int(data.ids[row][at])).lstrip("Ġ▁")
            assert words[word].startswith(text) or text == "<unk>" or not words[word].isascii()


def test_batches_have_a_label_for_each_word_and_none_elsewhere() -> None:
    data = encode_words(WORDS, TAGS, word_pieces(), 32)
    batch = data.collate([2, 0])
    labels, places = batch["labels"], batch["beside_word_places"]
    # BERT's tokenizer makes nothing of the third word of the last row.
    assert labels[0][labels[0] != -100].tolist() == [0, 1, 0, 0, 2, 1]
    assert places[0][places[0] != -1].tolist() == [0, 1, 3, 4, 5, 6]
    assert labels[1][labels[1] != -100].tolist() == [1, 0, 2, 0]
    assert torch.equal(labels != -100, places != -1)
    assert batch["beside_word_counts"].tolist() == [7, 4]
    assert bool((batch["attention_mask"][labels != -100] == 1).all())
    taken = data.take(np.array([2, 0])).collate([0, 1])
    assert all(torch.equal(taken[key], batch[key]) for key in batch)
    plain = encode_words(WORDS, None, word_pieces(), 32)
    assert plain.truth is None
    assert "labels" not in plain.collate([0])


def test_words_beyond_the_length_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    data = encode_words(WORDS, TAGS, word_pieces(), 6)
    assert data.label_counts.tolist() == [3, 1, 3]
    assert "5 of 12 words have no token within 6 tokens" in caplog.text


def test_the_fingerprint_of_labels_knows_the_place_of_each() -> None:
    first = encode_words(WORDS, TAGS, word_pieces(), 32)
    moved = [Tags([0, 1, 2, 0], NAMES), *TAGS[1:]]
    second = encode_words(WORDS, moved, word_pieces(), 32)
    assert first.fingerprint == second.fingerprint
    assert first.labels_fingerprint != second.labels_fingerprint


def test_tokens_are_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    first, again = (encode_words(WORDS, TAGS, word_pieces(), 32, cached=True) for _ in range(2))
    assert (first.word_places == again.word_places).all()
    assert (first.ids == again.ids).all()


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="need a tokenizer with"):
        encode_words(WORDS, TAGS, Slow(), 32)
