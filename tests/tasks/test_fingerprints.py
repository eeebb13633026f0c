"""Tokens are kept under a hash of what decides them, and nothing is hashed where none are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone
from transformers import AddedToken, AutoTokenizer, BertweetTokenizer

from autopeft.tasks import tokens
from autopeft.tasks.encode import encode_texts
from autopeft.tasks.fingerprints import fingerprint_of

WORDS = ("hello</w>", "HTTPURL</w>", "@USER</w>", "@b@@", "@joe</w>", "@", "he@@", "llo</w>")
MERGES = ("h e", "l l", "ll o</w>", "@ j")


def python_tokenizer(folder: Path, merges: tuple[str, ...] = MERGES, **options: Any) -> BertweetTokenizer:
    """One without a backend in Rust."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, codes = folder / "vocab.txt", folder / "bpe.codes"
    vocabulary.write_text("".join(f"{word} 1\n" for word in WORDS))
    codes.write_text("".join(f"{merge} 1\n" for merge in merges))
    return BertweetTokenizer(str(vocabulary), str(codes), model_max_length=128, **options)


def added(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("hello", lstrip=True)])


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Any], object]]] = {
    "a rule": ({"normalization": True}, lambda tokenizer: None),
    "a rule that is set later": ({}, lambda tokenizer: setattr(tokenizer, "normalization", True)),
    "the order of merges": ({"merges": MERGES[::-1]}, lambda tokenizer: None),
    "an added token": ({}, added),
    "what becomes of special tokens": ({}, lambda t: setattr(t, "split_special_tokens", True)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_tokens_is_in_the_hash_of_a_tokenizer_in_python(change: str, tmp_path: Path) -> None:
    options, alter = CHANGES[change]
    plain, other = python_tokenizer(tmp_path / "a"), python_tokenizer(tmp_path / "b", **options)
    assert not plain.is_fast
    alter(other)
    assert fingerprint_of(other) != fingerprint_of(plain)


def test_where_a_tokenizer_lies_and_what_it_has_read_is_not(tmp_path: Path) -> None:
    plain, other = python_tokenizer(tmp_path / "a"), python_tokenizer(tmp_path / "b", padding_side="left")
    other("hello")
    assert fingerprint_of(other) == fingerprint_of(plain)


def test_two_rules_do_not_share_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    for normalization in (False, True):
        tokenizer = python_tokenizer(tmp_path / "a", normalization=normalization)
        assert encode_texts(["@joe"], None, tokenizer, 16).ids.tolist() == tokenizer("@joe")["input_ids"]


def test_an_added_token_changes_the_hash_of_one_in_rust(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path / "model"))
    before = fingerprint_of(tokenizer)
    assert fingerprint_of(tokenizer) == before
    tokenizer.add_tokens(["splendid"])
    assert fingerprint_of(tokenizer) != before


def test_nothing_is_hashed_where_no_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise AssertionError("it takes long")

    monkeypatch.setattr(tokens, "fingerprint_of", refuse)
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path / "model"))
    assert len(encode_texts(["good"], None, tokenizer, 16, cached=False).ids)
