"""Tokens of sources and targets: special tokens, cuts, lengths, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import pairs, side_tokenizer, word_tokenizer

from autopeft.errors import UsageError
from autopeft.tasks.kinds.seq2seq import EncodedTargets, TargetEncoder
from autopeft.tasks.split import Split

PAD, END = 0, 3


def encode_targets(
    sources: list[str], targets: list[str], tokenizer: Any, max_length: int, *, cached: bool = False
) -> EncodedTargets:
    return TargetEncoder().encode(Split(sources, None, targets), tokenizer, max_length, cached=cached)


def encoded(rows: int = 6, *, most: int = 20, **changes: Any) -> EncodedTargets:
    return encode_targets(*pairs(rows), side_tokenizer(**changes), most)


def words(ids: Any) -> str:
    return str(side_tokenizer().decode([int(i) for i in ids]))


def test_each_side_has_its_own_tokens() -> None:
    rows, (sources, targets) = encoded(), pairs(6)
    for i in range(6):
        assert words(rows.ids[rows.offsets[i] : rows.offsets[i + 1]]) == f"{sources[i]} </s>"
        start, stop = rows.target_offsets[i], rows.target_offsets[i + 1]
        assert words(rows.target_ids[start:stop]) == f"{targets[i]} </s>"
        assert rows.prompt(i) == rows.ids[rows.offsets[i] : rows.offsets[i + 1]].tolist()
    assert rows.truth.tolist() == targets
    assert rows.longest == 3
    assert not rows.row_cut.any()


def test_labels_are_the_targets_and_nothing_behind_them() -> None:
    rows = encoded()
    batch = rows.collate([1, 0])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "task_id"}
    assert batch["labels"][0].tolist() == [*rows.target_ids[3:5].tolist(), -100]
    assert batch["labels"][1].tolist() == rows.target_ids[:3].tolist()
    assert batch["input_ids"][1, -2:].tolist() == [PAD, PAD], "the shorter source is padded on the right"
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0]


def test_a_tokenizer_that_ends_no_target_is_helped() -> None:
    plain = encode_targets(["what"], ["one two"], word_tokenizer(None), 20)
    assert words(plain.target_ids) == "one two </s>"
    assert words(plain.ids) == "what", "a source is as the tokenizer has it"


def test_the_tokenizer_s_own_side_for_targets_is_taken() -> None:
    """mBART's tokenizers have another language there."""
    from tokenizers import processors

    class Sided(type(side_tokenizer())):  # type: ignore[misc]
        def _switch_to_target_mode(self) -> None:
            self.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<|start|> $A </s>", special_tokens=[("<|start|>", 4), ("</s>", END)]
            )

        def _switch_to_input_mode(self) -> None:
            self.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="$A <|end|>", special_tokens=[("<|end|>", 5)]
            )

    own = side_tokenizer()
    tokenizer = Sided(tokenizer_object=own.backend_tokenizer, pad_token="<pad>", eos_token="</s>")
    tokenizer._switch_to_input_mode()
    rows = encode_targets(["what", "is"], ["one", "two two"], tokenizer, 20)
    assert words(rows.ids) == "what <|end|> is <|end|>"
    assert words(rows.target_ids) == "<|start|> one </s> <|start|> two two </s>"


def test_either_side_is_cut_and_that_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sources = ["what is one", "what " * 9, "what", "what " * 7]
    targets = ["one", "two", "three " * 8, "four " * 5]
    rows = encode_targets(sources, targets, side_tokenizer(), 5)
    assert rows.row_cut.tolist() == [0, 1, 2, 3]
    assert np.diff(rows.offsets).tolist() == [4, 5, 2, 5]
    assert np.diff(rows.target_offsets).tolist() == [2, 2, 5, 5]
    assert words(rows.ids[4:9]) == "what what what what </s>", "its end stays"
    told = [record.getMessage() for record in caplog.records]
    assert any("2 of 4 sources do not fit into 5 tokens" in line for line in told)
    assert any("2 of 4 targets do not fit into 5 tokens" in line for line in told)


def test_batches_are_of_rows_that_cost_alike() -> None:
    sources = ["what", "what is is is is", "what is", "what is is"]
    targets = ["one two three four five one", "one", "one", "one two three"]
    rows = encode_targets(sources, targets, side_tokenizer(), 20)
    assert rows.lengths.tolist() == [2 + 7, 6 + 2, 3 + 2, 4 + 4]
    assert [batch.tolist() for batch in rows.batch_indices(2)] == [[0, 1], [3, 2]]
    assert rows.order().tolist() == [0, 1, 3, 2]


def test_rows_may_lack_their_target() -> None:
    rows = encode_targets(["what", "is"], ["", "one"], side_tokenizer(), 20)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 2]
    assert rows.collate([0, 1])["labels"][0].tolist() == [-100, -100]
    assert rows.collate([0])["labels"].tolist() == [[-100]]
    none = encode_targets(["what"], [""], side_tokenizer(), 20)
    assert none.collate([0])["labels"].tolist() == [[-100]]
    assert none.longest == 1


def test_a_part_is_what_it_was_in_the_whole() -> None:
    rows = encoded(8)
    part = rows.take(np.asarray([5, 2]))
    whole, taken = rows.collate([5, 2]), part.collate([0, 1])
    assert all(torch.equal(taken[key], whole[key]) for key in whole)
    assert part.truth.tolist() == [rows.truth[5], rows.truth[2]]
    assert part.fingerprint != rows.fingerprint
    assert rows.take(np.arange(8)).fingerprint == rows.fingerprint


def test_a_stack_has_its_own_side() -> None:
    rows = encoded(6)
    assert rows.offsets_of("encoder") is rows.offsets
    assert rows.offsets_of("decoder") is rows.target_offsets
    flat, inside = rows.layout(np.asarray([1, 0]), stack="decoder")
    assert flat.tolist() == [3, 4, 0, 1, 2]
    assert inside.tolist() == [[True, True, False], [True, True, True]]


def test_other_targets_are_other_rows() -> None:
    """States of a decoder depend on them, and so does what is kept of them."""
    sources, targets = pairs(6)
    other = encode_targets(sources, targets[::-1], side_tokenizer(), 20)
    assert other.fingerprint != encoded().fingerprint


def test_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    first, again = (encode_targets(*pairs(6), side_tokenizer(), 20, cached=True) for _ in range(2))
    kept = sorted(p.name for p in (tmp_path / "encoded").iterdir())
    assert len(kept) == 2, "one for each side"
    assert again.fingerprint == first.fingerprint == encoded().fingerprint
    encode_targets(*pairs(6), side_tokenizer(), 5, cached=True)
    assert len(list((tmp_path / "encoded").iterdir())) == 4
    swapped = encode_targets(*pairs(6)[::-1], side_tokenizer(), 20, cached=True)
    assert swapped.fingerprint != first.fingerprint, "a text is not the same as a source and as a target"


def test_a_length_that_no_model_takes_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 4 to 64 tokens"):
        encoded(most=65)
