"""Tokens of templates with texts: as of the whole text, and where they are too long the texts give way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cloze import TEMPLATES, WORDS, cloze_tokenizer
from transformers import PreTrainedTokenizerFast

from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.cloze import ClozeEncoder, EncodedCloze, word_tokens
from autopeft.tasks.kinds.verbaliser import LabelWords, Template
from autopeft.tasks.split import Split

TEXTS = ["the film was good", "a story", "the the the the the the the the the film"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


def encoded(
    template: str, tokenizer: PreTrainedTokenizerFast, most: int = 48, pairs: list[str] | None = None
) -> EncodedCloze:
    encoder = ClozeEncoder(LabelWords.parse(WORDS), Template.parse(template))
    rows = Split(TEXTS, pairs, [0] * len(TEXTS))
    first, again = (encoder.encode(rows, tokenizer, most) for _ in range(2))
    assert first.fingerprint == again.fingerprint, "read from the cache"
    assert np.array_equal(first.at, again.at)
    return first


def words_of(split: EncodedCloze, tokenizer: PreTrainedTokenizerFast, row: int) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(split.ids[split.offsets[row] : split.offsets[row + 1]]))


def byte_pairs(*, prefix: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has ` great` and `great`, and of `awful` pieces alone."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("g", "r"), ("e", "a"), ("gr", "ea"), ("grea", "t"), ("Ġ", "great"), ("b", "a"), ("ba", "d")]
    merges += [("Ġ", "bad"), ("a", "w"), ("Ġ", "aw")]
    vocabulary = ["<s>", "</s>", "<pad>", "<mask>", *letters, *(a + b for a, b in merges)]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(vocabulary)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=prefix)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=64,
    )


def test_what_is_measured_depends_on_the_words_of_the_labels() -> None:
    found = encoded(TEMPLATES["bert"], cloze_tokenizer())
    other = replace(found, words=found.words[::-1].copy())
    assert found.fingerprint == other.fingerprint
    assert found.labels_fingerprint != other.labels_fingerprint


def test_a_row_has_the_tokens_of_its_whole_text() -> None:
    tokenizer = cloze_tokenizer()
    found = encoded(TEMPLATES["bert"], tokenizer)
    for row, text in enumerate(TEXTS):
        assert words_of(found, tokenizer, row) == f"[CLS] {text} It was [MASK] . [SEP]"
        assert found.ids[found.offsets[row] + found.at[row]] == tokenizer.mask_token_id
    assert found.types is not None
    assert not found.types.any()
    batch = found.collate([1, 0])
    assert batch["beside_read_at"].tolist() == [5, 7]
    assert batch["beside_label_words"].tolist() == [tokenizer.convert_tokens_to_ids(["bad", "good"])] * 2


def test_a_decoders_row_ends_where_the_word_comes() -> None:
    for masked in (False, True):  # the second one ends each text with a token
        tokenizer = cloze_tokenizer(masked=masked)
        found = encoded(TEMPLATES["llama"], tokenizer)
        for row, text in enumerate(TEXTS):
            assert words_of(found, tokenizer, row) == f"[CLS] {text} It was"
        assert np.array_equal(found.at, found.lengths - 1)


def test_the_text_gives_way_and_the_template_stays() -> None:
    tokenizer = cloze_tokenizer()
    found = encoded(TEMPLATES["bert"], tokenizer, 9)
    assert [words_of(found, tokenizer, row) for row in range(3)] == [
        "[CLS] the film was It was [MASK] . [SEP]",
        "[CLS] a story It was [MASK] . [SEP]",
        "[CLS] the the the It was [MASK] . [SEP]",
    ]
    assert found.at.tolist() == [6, 5, 6]
    encoder = ClozeEncoder(LabelWords.parse(WORDS), Template.parse(TEMPLATES["bert"]))
    assert encoder.truncated(Split(TEXTS, None, [0] * 3), tokenizer, 9) == pytest.approx(2 / 3)
    with pytest.raises(TaskError, match=r"6 tokens.*max_length=6"):
        encoded(TEMPLATES["bert"], tokenizer, 6)


def test_of_a_pair_the_longer_text_gives_way_first() -> None:
    tokenizer = cloze_tokenizer()
    pairs = ["good film", "a a a a a a", "story"]
    found = encoded("{text} ? {mask} , {text_pair}", tokenizer, 11, pairs)
    assert [words_of(found, tokenizer, row) for row in range(3)] == [
        "[CLS] the film was good ? [MASK] , good film [SEP]",
        "[CLS] a story ? [MASK] , a a a a [SEP]",
        "[CLS] the the the the the ? [MASK] , story [SEP]",
    ]


def test_masks_and_ends_in_a_text_are_not_the_templates() -> None:
    tokenizer = cloze_tokenizer()
    encoder = ClozeEncoder(LabelWords.parse(WORDS), Template.parse(TEMPLATES["bert"]))
    texts = ["the [MASK] was [MASK]", "[SEP] {mask} [SEP]"]
    found = encoder.encode(Split(texts, None, [0, 1]), tokenizer, 48)
    assert found.at.tolist() == [7, len(found.ids[found.offsets[1] :]) - 3]
    with pytest.raises(UsageError, match="has no mask token"):
        encoded(TEMPLATES["bert"], cloze_tokenizer(masked=False))


def test_rows_that_are_taken_keep_their_places() -> None:
    found = encoded(TEMPLATES["bert"], cloze_tokenizer())
    some = found.take(np.asarray([2, 1]))
    assert some.at.tolist() == found.at[[2, 1]].tolist()
    assert some.collate([0])["beside_read_at"].tolist() == found.collate([2])["beside_read_at"].tolist()


@pytest.mark.parametrize("template", ["{text} It was {mask} .", "{text} It was", "{mask} {text}"])
def test_a_label_word_is_the_token_of_its_place(template: str) -> None:
    tokenizer = byte_pairs()
    found = word_tokens(LabelWords.parse("bad,great"), Template.parse(template), tokenizer)
    front = "" if template.startswith("{mask}") else "Ġ"
    assert tokenizer.convert_ids_to_tokens(list(found)) == [f"{front}bad", f"{front}great"]


def test_the_place_of_a_mask_that_takes_the_space_before_it() -> None:
    tokenizer = byte_pairs()
    encoder = ClozeEncoder(LabelWords.parse("bad,great"), Template.parse("{text} It was {mask} ."))
    found = encoder.encode(Split(TEXTS[:2], None, [0, 1]), tokenizer, 48)
    for row in range(2):
        ids = found.ids[found.offsets[row] : found.offsets[row + 1]]
        assert ids[found.at[row]] == tokenizer.mask_token_id
        assert ids.tolist() == tokenizer(f"{TEXTS[row]} It was <mask> .")["input_ids"]
    shorter = encoder.encode(Split(TEXTS, None, [0, 1, 0]), tokenizer, 24)
    for row in range(len(TEXTS)):
        ids = shorter.ids[shorter.offsets[row] : shorter.offsets[row + 1]]
        kept = "".join(tokenizer.convert_ids_to_tokens(ids))
        assert kept.endswith("ĠItĠwas<mask>Ġ.</s>"), kept
        assert len(ids) <= 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bad,awful", "The label word 'awful' is 4 tokens here ('Ġaw', 'f', 'u', 'l'), and one token is"),
        ("bad,very bad", "The label word 'very bad' is 6 tokens here"),
    ],
)
def test_a_word_of_several_tokens_is_refused_with_its_pieces(words: str, said: str) -> None:
    with pytest.raises(TaskError, match=re.escape(said)):
        word_tokens(LabelWords.parse(words), Template.parse("{text} {mask}"), byte_pairs())


def test_words_that_the_tokenizer_does_not_know_or_tell_apart() -> None:
    from tokenizers import normalizers

    tokenizer, template = cloze_tokenizer(), Template.parse("{text} {mask}")
    with pytest.raises(TaskError, match=r"'awful' is unknown to the model's tokenizer, which has '\[UNK\]'"):
        word_tokens(LabelWords.parse("awful,good"), template, tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TaskError, match="'good' and 'Good' are the same token"):
        word_tokens(LabelWords.parse("good,Good"), template, tokenizer)
