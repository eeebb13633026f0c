"""Tokens and batches: every row once, bucketed, padded right, cached by content, mapped back to rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.saved_model import save_backbone
from transformers import PreTrainedTokenizerBase

from autopeft.assets import cache_dir, load_tokenizer, resolve_model
from autopeft.errors import UsageError
from autopeft.tasks import Source, Split, Task
from autopeft.tasks.encode import EncodedSplit, encode, encode_texts
from autopeft.tasks.kinds import Encoder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve_model("minilm"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> Path:
    """An empty cache (the tokenizer comes first, from the common one)."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    return tmp_path


def ragged(lengths: list[int]) -> EncodedSplit:
    """A split whose row i holds `lengths[i]` times the token i + 1."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = np.arange(len(lengths))
    return EncodedSplit(ids, offsets, None, labels, "classification", 0, 0, 64)


def small_task(texts: list[str], pairs: list[str] | None = None, kind: str = "classification") -> Task:
    labels = (
        [i % 2 for i in range(len(texts))] if kind == "classification" else [i / 7 for i in range(len(texts))]
    )
    split = Split(texts, pairs, labels)  # type: ignore[arg-type]
    splits = {"train": split, "select": split, "test": split}
    names = ("a", "b") if kind == "classification" else ()
    return Task("t", kind, names, splits, "accuracy", None, Source("file", "t", ""))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=300),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_row_is_served_once(lengths: list[int], batch_size: int, shuffle: bool, seed: int) -> None:
    split = ragged(lengths)
    batches = list(split.batches(batch_size, shuffle=shuffle, seed=seed))
    rows = torch.cat([batch["labels"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        widths = batch["attention_mask"].sum(dim=1)
        assert widths.tolist() == [lengths[i] for i in batch["labels"]]
        assert batch["input_ids"].shape[1] == widths.max()
        expected = (batch["labels"] + 1)[:, None] * batch["attention_mask"]
        assert torch.equal(batch["input_ids"], expected)
        assert batch["task_id"].tolist() == [0] * len(widths)
    indices = split.batch_indices(batch_size, shuffle=shuffle, seed=seed)
    assert [batch["labels"].tolist() for batch in batches] == [rows.tolist() for rows in indices]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=100), st.integers(1, 9))
def test_outputs_map_back_to_rows(lengths: list[int], batch_size: int) -> None:
    split = ragged(lengths)
    outputs = torch.cat([b["input_ids"][:, 0] for b in split.batches(batch_size, shuffle=False)]).numpy()
    restored = np.empty_like(outputs)
    restored[split.order()] = outputs
    assert restored.tolist() == list(range(1, len(lengths) + 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_taken_rows_are_the_same_rows(lengths: list[int], random: Random) -> None:
    split = ragged(lengths)
    rows = np.asarray(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    few = split.take(rows)
    assert len(few) == len(rows)
    whole, part = split.collate(rows), few.collate(range(len(rows)))
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[key], part[key]) for key in whole)


def test_copies_are_rows_of_equal_tokens() -> None:
    split = ragged([3, 5, 3])
    assert split.copies().tolist() == [0, 1, 2]
    assert split.take(np.array([1, 0, 1, 2, 0])).copies().tolist() == [0, 1, 0, 3, 1]


def test_batches_are_bucketed_and_differ_by_seed() -> None:
    lengths = np.random.default_rng(0).integers(4, 64, size=2_000).tolist()
    split = ragged(lengths)

    def padding(seed: int) -> float:
        batches = list(split.batches(32, shuffle=True, seed=seed))
        return 1 - sum(lengths) / sum(b["input_ids"].numel() for b in batches)

    assert padding(0) < 0.05
    orders = [np.concatenate(split.batch_indices(32, shuffle=True, seed=s)).tolist() for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    widths = [lengths[rows[0]] for rows in split.batch_indices(32, shuffle=True, seed=0)]
    assert widths != sorted(widths)


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    split = ragged([5] * 70)
    for shuffle in (False, True):
        assert [len(rows) for rows in split.batch_indices(32, shuffle=shuffle, drop_last=True)] == [32, 32]
    with pytest.raises(UsageError, match="batch_size=0"):
        split.batch_indices(0)


@pytest.mark.usefixtures("cache")
def test_tokens_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["A fine film.", "Short", "word " * 100]
    pairs = ["Really?", "a longer second text", "x"]
    task = small_task(texts, pairs)
    encoded = encode(task, tokenizer, 16)
    batch = encoded.test.collate([2, 0, 1])
    theirs = tokenizer(
        [texts[i] for i in (2, 0, 1)], [pairs[i] for i in (2, 0, 1)],
        truncation=True, max_length=16, padding=True, return_tensors="pt",
    )  # fmt: skip
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[key], theirs[key])
    assert batch["labels"].tolist() == [0, 0, 1]
    assert batch["labels"].dtype == torch.int64
    assert encoded.train.collate([0])["input_ids"].shape == (1, int(encoded.train.lengths[0]))
    assert (
        encode(small_task(texts, kind="regression"), tokenizer, 16).test.collate([1])["labels"].dtype
        == torch.float32
    )


def test_the_cache_is_read_and_named_by_content(
    cache: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one text", "another text"]
    first = encode_texts(texts, None, tokenizer, 16)
    folders = list((cache / "encoded").iterdir())
    assert [p.name[:1] != "." for p in folders] == [True]
    encode_texts(texts, None, tokenizer, 32)
    encode_texts(texts, ["a", "b"], tokenizer, 16)
    assert len(list((cache / "encoded").iterdir())) == 3
    monkeypatch.setattr("autopeft.tasks.tokens.tokens_of", lambda *_, **__: pytest.fail("tokenised again"))
    again = encode_texts(texts, None, tokenizer, 16)
    assert np.array_equal(first.ids, again.ids)


@pytest.mark.usefixtures("cache")
def test_a_damaged_cache_is_made_again(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["one text", "another text"]
    first = encode_texts(texts, None, tokenizer, 16)
    expected = np.array(first.ids)
    for damage in (b"", b"\x93NUMPY damaged"):
        (next((cache_dir() / "encoded").iterdir()) / "ids.npy").write_bytes(damage)
        assert np.array_equal(encode_texts(texts, None, tokenizer, 16).ids, expected)
    np.save(next((cache_dir() / "encoded").iterdir()) / "offsets.npy", np.array([0, 1]))
    assert np.array_equal(encode_texts(texts, None, tokenizer, 16).ids, expected)
    file = next((cache_dir() / "encoded").iterdir()) / "ids.npy"
    other = np.load(file)
    other[0] += 1  # as many bytes, and another token
    np.save(file, other)
    assert np.array_equal(encode_texts(texts, None, tokenizer, 16).ids, expected)


def test_lengths_that_do_not_fit_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="max_length=1024 does not fit"):
        encode_texts(["a"], None, tokenizer, 1024)
    with pytest.raises(UsageError, match="max_length=2 does not fit"):
        encode_texts(["a"], None, tokenizer, 2)


def _without_unknown(told: Any) -> None:
    told["model"]["vocab"].pop("[UNK]")


def _beyond_32_bits(told: Any) -> None:
    told["model"]["vocab"]["film"] = 2**32 - 1


def _types_beyond_8_bits(told: Any) -> None:
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 300}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {},
    }


def _replacing(pattern: str, content: str) -> Callable[[Any], None]:
    rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    return lambda told: told.update(normalizer=rule)


BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "no word for the unknown": (_without_unknown, "cannot encode the texts: .*UNK"),
    "a token beyond 32 bits": (_beyond_32_bits, "a token or token type is too large"),
    "a type beyond 8 bits": (_types_beyond_8_bits, "a token or token type is too large"),
    "a pattern at which its Rust panics": (
        _replacing("(( *[a-z ]+)+)+$(?<=z)", ""),
        "cannot encode the texts: .*retry",
    ),
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("case", BROKEN)
def test_a_tokenizer_that_stumbles_over_its_own_files_is_one_sentence(tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    file = save_backbone(tmp_path / "model") / "tokenizer.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    texts = ["a dull", ("the film was good " * 7)[:-1], "zebra"]
    with pytest.raises(UsageError, match=words) as caught:
        encode_texts(texts, None, tokenizer, 16)
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)
    if case.startswith(("no word", "a pattern", "letters")):
        with pytest.raises(UsageError, match=words):
            Encoder().truncated(Split(texts, None, [0] * len(texts)), tokenizer, 16)


def test_what_ends_the_process_is_no_fault_of_a_tokenizer(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for end in (KeyboardInterrupt, SystemExit, MemoryError):
        monkeypatch.setattr(type(tokenizer), "__call__", Mock(side_effect=end))
        with pytest.raises(end):
            Encoder().truncated(Split(["a text"], None, [0]), tokenizer, 16)
