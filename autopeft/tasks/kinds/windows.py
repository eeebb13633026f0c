"""Tokens of questions and contexts: a context that does not fit is read in windows that overlap.

As in the published script of BERT and its successor in transformers (`run_qa`): each window has the question
and a part of the context, and neighbouring windows share a third of `max_length` (128 of 384), or half of
what a window holds of the context where that is less. A window that does not hold the answer whole points to
its first token.
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
from autopeft.tasks.kinds.spans import Answers, RowWindows, places_of_answer
from autopeft.tasks.kinds.tags import ragged
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    Indices,
    check_length,
    kept_arrays,
    no_use,
    tokens_of,
)

__all__ = ["CONTEXT_PLACES", "EncodedWindows", "cut_questions", "encode_windows"]

CONTEXT_PLACES = f"{BESIDE}context_places"
"""Key of a batch (see `EncodedWindows.collate`)."""
_FORMAT = 1
_CHUNK = 500
_NONE = -1


@dataclass(frozen=True, eq=False)
class EncodedWindows(EncodedSplit):
    """Tokens of windows, in the order of the rows that they are of; a row has one or several.

    Attributes:
        begins, ends: the letters of the context that each token stands for, -1 for tokens of anything else,
            (tokens,) each.
        sources: the row that each window is of, (windows,), from 0 without gaps.
        contexts: of the rows, (rows,) objects.
        answers: `Answers` of the rows, (rows,) objects; `None` without labels.
        null: whether no answer may be given.

    `labels` are the first and the last token of the answer in each window, (windows, 2) int64, 0 where it is
    not in there; `None` without answers.
    """

    begins: NDArray[np.int32]
    ends: NDArray[np.int32]
    sources: Indices
    contexts: NDArray[np.object_]
    answers: NDArray[np.object_] | None
    null: bool

    @property
    def truth(self) -> NDArray[Any] | None:
        """The answers of the rows, (rows,) objects (`Answers`)."""
        return self.answers

    def of_rows(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """See `EncodedSplit.of_rows`: (rows,) objects (`RowWindows`)."""
        parts: list[list[Any]] = [[] for _ in self.contexts]
        for row, window in zip(self.sources.tolist(), outputs, strict=True):
            parts[row].append(window)
        return ragged(
            [RowWindows(c, tuple(own), self.null) for c, own in zip(self.contexts, parts, strict=True)]
        )

    def take(self, rows: Indices) -> EncodedWindows:
        """See `EncodedSplit.take`; of windows."""
        plain, places = super().take(rows), self.places(rows)
        kept, sources = np.unique(self.sources[rows], return_inverse=True)
        own = {
            "begins": self.begins[places],
            "ends": self.ends[places],
            "sources": sources.astype(np.int64),
            "contexts": self.contexts[kept],
            "answers": None if self.answers is None else self.answers[kept],
            "null": self.null,
        }
        return EncodedWindows(**{**vars(plain), **own})

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """As `EncodedSplit.collate`, of windows; `labels` (B, 2) int64 are the first and the last token of
        the answer. `CONTEXT_PLACES` (B, L, 2) int64 are the letters of the context that a token stands for,
        and -1 at tokens of anything else."""
        batch = super().collate(rows, device=device)
        flat, inside = self.layout(np.asarray(rows, dtype=np.int64), device)
        places = np.full((*inside.shape, 2), _NONE, dtype=np.int64)
        places[inside] = np.stack([self.begins[flat], self.ends[flat]], axis=1)
        return {**batch, CONTEXT_PLACES: torch.from_numpy(places).to(device, non_blocking=True)}


def encode_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Answers] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    null: bool,
    kind: str,
    cached: bool = True,
) -> EncodedWindows:
    """Tokenise questions with their contexts. A question has a quarter of `max_length` at most, the rest of
    it is cut; how many were, and how many answers no window holds, is told once.

    Raises:
        UsageError: see `encode_texts`; or the tokenizer does not tell where its tokens stand in a text, or
            `max_length` leaves no room for both texts.
    """
    _check(tokenizer, max_length)
    assert tokenizer.pad_token_id is not None
    arrays = kept_arrays(
        lambda: _content_hash(questions, contexts, tokenizer, max_length),
        None,
        lambda: _tokenise(questions, contexts, tokenizer, max_length),
        cached=cached,
    )
    sources = np.asarray(arrays["row_source"], dtype=np.int64)
    found = EncodedWindows(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        types=arrays.get("types"),
        labels=None,
        kind=kind,
        pad_id=int(tokenizer.pad_token_id),
        pad_type=int(tokenizer.pad_token_type_id),
        max_length=max_length,
        begins=np.asarray(arrays["begins"]),
        ends=np.asarray(arrays["ends"]),
        sources=sources,
        contexts=ragged(list(contexts)),
        answers=None if answers is None else ragged(list(answers)),
        null=null,
    )
    _tell_cut(int(np.asarray(arrays["row_cut"]).sum()), len(sources), max_length)
    return found if answers is None else _labelled(found, answers)


def _check(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in a text; spans of a text "
            "need a tokenizer with a tokenizer.json."
        )
    check_length(tokenizer, max_length)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if max_length < special + 2:
        raise UsageError(
            f"{max_length=} leaves no room for a question and its context beside {special} special tokens; "
            f"give at least {special + 2}."
        )


def _labelled(found: EncodedWindows, answers: Sequence[Answers]) -> EncodedWindows:
    """The split with the places of the first answer of each row."""
    spans = np.stack([found.begins, found.ends], axis=1).astype(np.int64)
    labels = np.zeros((len(found), 2), dtype=np.int64)
    for window, row in enumerate(found.sources.tolist()):
        if answers[row]:
            start, text = answers[row][0]
            own = spans[found.offsets[window] : found.offsets[window + 1]]
            labels[window] = places_of_answer(own, start, start + len(text))
    held = np.zeros(len(answers), dtype=bool)
    np.logical_or.at(held, found.sources, labels[:, 1] > 0)
    lost = sum(bool(own) and not there for own, there in zip(answers, held, strict=True))
    if lost:
        warn_once(
            f"{lost:,} of {len(answers):,} answers stand whole in no window of {found.max_length} tokens and "
            "are not learnt; raise --max-length (max_length=…)."
        )
    return EncodedWindows(**{**vars(found), "labels": labels})


def _tell_cut(cut: int, windows: int, max_length: int) -> None:
    if cut:
        warn_once(
            f"The questions of {cut:,} of {windows:,} windows have more than {_question_tokens(max_length)} "
            f"tokens, a quarter of {max_length}, and are cut; raise --max-length (max_length=…)."
        )


def _question_tokens(max_length: int) -> int:
    return max(1, max_length // 4)


# Tokens
# ------------------------------------------------------------------------------------------------------


def _content_hash(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    digest = hashlib.sha256(f"windows {_FORMAT} {max_length} {fingerprint_of(tokenizer)}\n".encode())
    for pair in zip(questions, contexts, strict=True):
        digest.update(json.dumps(pair).encode() + b"\n")
    return digest.hexdigest()


def cut_questions(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[str], NDArray[np.bool_]]:
    """The questions within a quarter of `max_length` tokens, and which were cut, (rows,).

    Raises:
        UsageError: the tokenizer cannot encode them.
    """
    most, found = _question_tokens(max_length), list(questions)
    cut = np.zeros(len(found), dtype=bool)
    keep = most
    long = list(range(len(found)))
    while long and keep:
        told = tokens_of(
            tokenizer, [found[i] for i in long], None, add_special_tokens=False,
            return_offsets_mapping=True, verbose=False,
        )["offset_mapping"]  # fmt: skip
        over = [(i, spans) for i, spans in zip(long, told, strict=True) if len(spans) > most]
        for i, spans in over:
            found[i], cut[i] = found[i][: spans[keep - 1][1]], True
        # What is left of a text may have more tokens than it had within it; then less is left.
        long, keep = [i for i, _ in over], keep // 2
    for i in long:
        found[i] = ""
    return found, cut


def _tokenise(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, NDArray[Any]]:
    tokens_of(tokenizer, [max(contexts, key=len)], None, verbose=False)  # tried alone, see there
    asked, cut = cut_questions(questions, tokenizer, max_length)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - _question_tokens(max_length)
    stride = max(0, min(max_length // 3, room // 2))
    with_types = "token_type_ids" in tokenizer.model_input_names
    parts: list[dict[str, list[NDArray[Any]]]] = []
    sources: list[NDArray[np.int64]] = []
    for start in range(0, len(asked), _CHUNK):
        encoded = tokens_of(
            tokenizer,
            asked[start : start + _CHUNK],
            contexts[start : start + _CHUNK],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=with_types,
            verbose=False,
        )
        parts.append(_windows(encoded, tokenizer, with_types=with_types))
        sources.append(np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64) + start)
    rows = np.concatenate(sources)
    joined = {name: [array for part in parts for array in part[name]] for name in parts[0]}
    arrays: dict[str, NDArray[Any]] = {name: np.concatenate(own) for name, own in joined.items()}
    arrays["offsets"] = np.concatenate([[0], np.cumsum([len(own) for own in joined["ids"]])]).astype(np.int64)
    return {**arrays, "row_source": rows, "row_cut": cut[rows]}


def _windows(encoded: Any, tokenizer: PreTrainedTokenizerBase, *, with_types: bool) -> dict[str, Any]:
    """Of each window its `ids`, `begins` and `ends`, and `types` where the tokenizer has them."""
    found: dict[str, list[NDArray[Any]]] = {"ids": [], "begins": [], "ends": []}
    if with_types:
        found["types"] = []
    for i, ids in enumerate(encoded["input_ids"]):
        # A tokenizer may give nothing for both texts; one padding token keeps the window.
        of_context = np.asarray([s == 1 for s in encoded.sequence_ids(i)] or [False])
        spans = np.asarray(encoded["offset_mapping"][i] or [(0, 0)], dtype=np.int64).reshape(-1, 2)
        there = of_context & (spans[:, 1] > spans[:, 0])
        try:
            found["ids"].append(np.asarray(ids or [tokenizer.pad_token_id], dtype=np.int32))
            if with_types:
                found["types"].append(np.asarray(encoded["token_type_ids"][i] or [0], dtype=np.int8))
        except OverflowError as error:
            raise no_use(tokenizer, f"a token or token type is too large ({error})") from error
        for name, column in (("begins", 0), ("ends", 1)):
            found[name].append(np.where(there, spans[:, column], _NONE).astype(np.int32))
    return found
