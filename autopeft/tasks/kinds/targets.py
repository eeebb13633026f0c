"""Tokens of sources and targets, the two sides of a row that encoder-decoders read and write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.assets import warn_once
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.answers import ANSWER_CUT, IGNORED, PROMPT_CUT, EncodedWriting
from autopeft.tasks.tokens import (
    Indices,
    check_length,
    kept_arrays,
    places_of,
    tokens_of,
)

__all__ = ["EncodedTargets", "encode_targets"]

_FORMAT = 1
_CHUNK = 1_000


@dataclass(frozen=True, eq=False)
class EncodedTargets(EncodedWriting):
    """Tokens of sources, as `ids` and `offsets`, and of targets.

    Attributes:
        target_ids: tokens of all targets, one row after the other.
        target_offsets: where those of each row begin, (rows + 1,); rows without a target have none.

    `labels` are the numbers of tokens of the targets, (rows,) int64.
    """

    target_ids: NDArray[np.int32]
    target_offsets: Indices

    @property
    def lengths(self) -> Indices:
        """Tokens of source and target together, (rows,): what a row costs."""
        return np.diff(self.offsets) + np.diff(self.target_offsets)

    @property
    def prompt_lengths(self) -> Indices:
        """Tokens of each source, (rows,)."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """See `EncodedSplit.fingerprint`; of both sides, as a decoder's states depend on both."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for array in (self.target_ids, self.target_offsets):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def offsets_of(self, stack: str) -> Indices:
        """See `EncodedSplit.offsets_of`: a decoder reads the target, moved by one."""
        return self.target_offsets if stack == "decoder" else self.offsets

    def take(self, rows: Indices) -> EncodedTargets:
        """See `EncodedSplit.take`."""
        counts = np.diff(self.target_offsets)[rows]
        own = {
            "row_cut": self.row_cut[rows],
            "answers": self.answers[rows],
            "target_ids": self.target_ids[places_of(self.target_offsets, np.asarray(rows, dtype=np.int64))],
            "target_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        }
        return EncodedTargets(**{**vars(super().take(rows)), **own})

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """As `EncodedSplit.collate`; `labels` (B, T) int64 are the tokens of the targets, and -100 behind
        them. What the decoder reads is made of them by the model (see `Head.inputs`)."""
        chosen = np.asarray(rows, dtype=np.int64)
        batch = super().collate(chosen, device=device)
        flat, inside = self.layout(chosen, device, "decoder")
        labels = np.full(inside.shape, IGNORED, dtype=np.int64)
        labels[inside] = self.target_ids[flat]
        return {**batch, "labels": torch.from_numpy(labels).to(device, non_blocking=True)}


def encode_targets(
    sources: Sequence[str],
    targets: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    kind: str,
    cached: bool = True,
) -> EncodedTargets:
    """Tokenise sources and targets, each with the special tokens that the tokenizer gives its side.

    A target ends with the tokenizer's end token also where the tokenizer itself puts none there, or a model
    would never learn where to end. Either side is cut to `max_length` tokens, at the end that the tokenizer
    cuts, its special tokens kept; how many were is told once.

    Args:
        targets: empty for rows that have none.

    Raises:
        UsageError: see `encode_texts`.
    """
    check_length(tokenizer, max_length)
    assert tokenizer.pad_token_id is not None
    read = _side(sources, tokenizer, max_length, target=False, cached=cached)
    whole = [target for target in targets if target]
    written = _side(whole, tokenizer, max_length, target=True, cached=cached)
    there = np.asarray([bool(target) for target in targets], dtype=bool)
    counts, target_cut = np.zeros(len(there), dtype=np.int64), np.zeros(len(there), dtype=np.int8)
    counts[there], target_cut[there] = np.diff(written["offsets"]), written["row_cut"]
    row_cut = (PROMPT_CUT * read["row_cut"] + ANSWER_CUT * target_cut).astype(np.int8)
    _tell_cut(row_cut, max_length)
    answers = np.empty(len(targets), dtype=object)
    answers[:] = list(targets)
    return EncodedTargets(
        ids=read["ids"],
        offsets=read["offsets"],
        types=None,
        labels=counts,
        kind=kind,
        pad_id=int(tokenizer.pad_token_id),
        pad_type=0,
        max_length=max_length,
        row_cut=row_cut,
        answers=answers,
        tokenizer=tokenizer,
        longest=max(1, int(counts.max(initial=0))),
        target_ids=written["ids"],
        target_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _tell_cut(row_cut: NDArray[np.int8], max_length: int) -> None:
    for bit, side in ((PROMPT_CUT, "sources"), (ANSWER_CUT, "targets")):
        if cut := int(((row_cut & bit) > 0).sum()):
            warn_once(
                f"{cut:,} of {len(row_cut):,} {side} do not fit into {max_length} tokens and are cut; raise "
                "--max-length (max_length=…)."
            )


def _side(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, target: bool, cached: bool
) -> dict[str, NDArray[Any]]:
    """`ids`, `offsets` and `row_cut` (1 where it was) of one side of all rows."""
    if not texts:
        return {
            "ids": np.empty(0, np.int32),
            "offsets": np.zeros(1, np.int64),
            "row_cut": np.empty(0, np.int8),
        }
    arrays = kept_arrays(
        lambda: _content_hash(texts, tokenizer, max_length, target=target),
        len(texts),
        lambda: _tokenise(texts, tokenizer, max_length, target=target),
        cached=cached,
    )
    return {name: np.asarray(array) for name, array in arrays.items()}


def _content_hash(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, target: bool
) -> str:
    side = "targets" if target else "sources"
    languages = [str(getattr(tokenizer, name, None)) for name in ("src_lang", "tgt_lang")]
    begin = json.dumps([side, _FORMAT, max_length, fingerprint_of(tokenizer), languages])
    digest = hashlib.sha256(begin.encode() + b"\n")
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def _tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, target: bool
) -> dict[str, NDArray[Any]]:
    end = _missing_end(tokenizer) if target else []
    rows: list[list[int]] = []
    cut: list[bool] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        whole = tokens_of(tokenizer, chunk, None, target=target, truncation=False, verbose=False)["input_ids"]
        long = [i for i, ids in enumerate(whole) if len(ids) + len(end) > max_length]
        short = iter(())
        if long:
            most = max_length - len(end)
            short = iter(
                tokens_of(
                    tokenizer, [chunk[i] for i in long], None, target=target, truncation=True, max_length=most
                )["input_ids"]
            )
        places = set(long)
        rows += [[*(next(short) if i in places else ids), *end] for i, ids in enumerate(whole)]
        cut += [i in places for i in range(len(chunk))]
    # A tokenizer without special tokens may give nothing for a text; one padding token keeps the row.
    rows = [ids or [int(tokenizer.pad_token_id)] for ids in rows]
    return {
        "ids": np.concatenate([np.asarray(ids, dtype=np.int32) for ids in rows]),
        "offsets": np.concatenate([[0], np.cumsum([len(ids) for ids in rows])]).astype(np.int64),
        "row_cut": np.asarray(cut, dtype=np.int8),
    }


def _missing_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end token, where a tokenizer has one and puts none into targets."""
    end = tokenizer.eos_token_id
    if end is None or end in tokens_of(tokenizer, ["a"], None, target=True)["input_ids"][0]:
        return []
    return [int(end)]
