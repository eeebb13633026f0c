"""Tokens of questions and contexts: a context that does not fit is read in windows that overlap.

As in the published script of BERT and its successor in transformers (`run_qa`): each window has the question
and a part of the context, and neighbouring windows share a third of `max_length` (128 of 384), or half of
what a window holds of the context where that is less. A window that does not hold the answer whole points to
its first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.assets import warn_once
from autopeft.errors import UsageError
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.questions import NULL
from autopeft.tasks.kinds.spans import Answers, RowWindows, places_of_answer
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    Indices,
    check_length,
    content_hash,
    keep_arrays,
    no_use,
    ragged,
    read_arrays,
    tokens_of,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["CONTEXT_PLACES", "EncodedWindows", "WindowEncoder", "cut_questions"]

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
        flat, inside = self.layout(np.asarray(rows, dtype=np.int64))
        places = np.full((*inside.shape, 2), _NONE, dtype=np.int64)
        places[inside] = np.stack([self.begins[flat], self.ends[flat]], axis=1)
        return {**batch, CONTEXT_PLACES: torch.from_numpy(places).to(device, non_blocking=True)}


class WindowEncoder(Encoder):
    """Windows of questions with their contexts; a sequence for each window."""

    label_type = object

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedWindows:
        """See `Encoder.encode`. A question has a quarter of `max_length` at most, and the rest of it is cut;
        warnings say how many were, and how many answers no window holds.

        Raises:
            UsageError: see `encode_texts`; or the tokenizer does not tell where its tokens stand in a text,
            or
                `max_length` leaves no room for both texts.
        """
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} does not tell where its tokens stand in a text; spans of a text "
                "need a tokenizer with a tokenizer.json."
            )
        check_length(tokenizer, max_length)
        special = tokenizer.num_special_tokens_to_add(pair=True)
        if max_length < special + 2:
            raise UsageError(
                f"{max_length=} leaves no room for a question and its context beside {special} special "
                f"tokens; give at least {special + 2}."
            )
        contexts = rows.pairs or []
        key = None
        if cached:
            header = f"windows {_FORMAT} {max_length} {fingerprint_of(tokenizer)}"
            key = content_hash(header, zip(rows.texts, contexts, strict=True))
        arrays = read_arrays(key, None)
        if arrays is None:
            arrays = _tokenise(rows.texts, contexts, tokenizer, max_length, room=max_length - special)
            arrays = keep_arrays(key, None, arrays)
        sources = np.asarray(arrays["row_source"], dtype=np.int64)
        if cut := int(np.asarray(arrays["row_cut"]).sum()):
            warn_once(
                f"The questions of {cut:,} of {len(sources):,} windows have more than "
                f"{max(1, max_length // 4)} tokens, a quarter of {max_length}, and are cut; raise "
                "--max-length (max_length=…)."
            )
        begins, ends, offsets = np.asarray(arrays["begins"]), np.asarray(arrays["ends"]), arrays["offsets"]
        labels = None
        if labelled:
            # The places of the first answer of each row, which is the one that is learnt.
            spans = np.stack([begins, ends], axis=1).astype(np.int64)
            labels = np.zeros((len(sources), 2), dtype=np.int64)
            for window, row in enumerate(sources.tolist()):
                if rows.labels[row]:
                    start, text = rows.labels[row][0]
                    own = spans[offsets[window] : offsets[window + 1]]
                    labels[window] = places_of_answer(own, start, start + len(text))
            held = np.zeros(len(rows), dtype=bool)
            np.logical_or.at(held, sources, labels[:, 1] > 0)
            lost = sum(bool(own) and not there for own, there in zip(rows.labels, held, strict=True))
            if lost:
                warn_once(
                    f"{lost:,} of {len(rows):,} answers stand whole in no window of {max_length} tokens and "
                    "are not learnt; raise --max-length (max_length=…)."
                )
        # Rows that are asked about say whether no answer may be given; those with answers show it.
        null = rows.fields.get(NULL) or [any(isinstance(a, Answers) and a.null for a in rows.labels)]
        return EncodedWindows(
            ids=arrays["ids"],
            offsets=offsets,
            types=arrays.get("types"),
            labels=labels,
            kind=self.kind,
            pad_id=int(tokenizer.pad_token_id),
            pad_type=int(tokenizer.pad_token_type_id),
            max_length=max_length,
            begins=begins,
            ends=ends,
            sources=sources,
            contexts=ragged(list(contexts)),
            answers=ragged(list(rows.labels)) if labelled else None,
            null=bool(null[0]),
        )

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        """Share of rows whose question is cut; contexts are read in windows and never are."""
        if not len(rows):
            return 0.0
        return float(cut_questions(rows.texts, tokenizer, max_length)[1].mean())

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """`null`, where no answer may be given."""
        return {NULL: True} if any(answers.null for answers in rows.labels) else {}


def cut_questions(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[str], NDArray[np.bool_]]:
    """The questions within a quarter of `max_length` tokens, and which were cut, (rows,).

    Raises:
        UsageError: the tokenizer cannot encode them.
    """
    most, found = max(1, max_length // 4), list(questions)
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
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    room: int,
) -> dict[str, NDArray[Any]]:
    """`ids`, `offsets`, `begins` and `ends` of all windows, and `types` where the tokenizer has them; of each
    window the row that it is of (`row_source`) and whether its question was cut (`row_cut`).

    Args:
        room: tokens of a question and its context at most, together.
    """
    tokens_of(tokenizer, [max(contexts, key=len)], None, verbose=False)  # tried alone, see there
    shortened, cut = cut_questions(questions, tokenizer, max_length)
    room -= max(1, max_length // 4)
    stride = max(0, min(max_length // 3, room // 2))
    with_types = "token_type_ids" in tokenizer.model_input_names
    flat: dict[str, list[NDArray[Any]]] = {"ids": [], "begins": [], "ends": []}
    if with_types:
        flat["types"] = []
    sources: list[NDArray[np.int64]] = []
    for start in range(0, len(shortened), _CHUNK):
        encoded = tokens_of(
            tokenizer,
            shortened[start : start + _CHUNK],
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
        sources.append(np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64) + start)
        for i, ids in enumerate(encoded["input_ids"]):
            # A tokenizer may give nothing for both texts; one padding token keeps the window.
            of_context = np.asarray([s == 1 for s in encoded.sequence_ids(i)] or [False])
            spans = np.asarray(encoded["offset_mapping"][i] or [(0, 0)], dtype=np.int64).reshape(-1, 2)
            there = of_context & (spans[:, 1] > spans[:, 0])
            try:
                flat["ids"].append(np.asarray(ids or [tokenizer.pad_token_id], dtype=np.int32))
                if with_types:
                    flat["types"].append(np.asarray(encoded["token_type_ids"][i] or [0], dtype=np.int8))
            except OverflowError as error:
                raise no_use(tokenizer, f"a token or token type is too large ({error})") from error
            for name, column in (("begins", 0), ("ends", 1)):
                flat[name].append(np.where(there, spans[:, column], _NONE).astype(np.int32))
    rows = np.concatenate(sources)
    arrays: dict[str, NDArray[Any]] = {name: np.concatenate(own) for name, own in flat.items()}
    arrays["offsets"] = np.concatenate([[0], np.cumsum([len(own) for own in flat["ids"]])]).astype(np.int64)
    return {**arrays, "row_source": rows, "row_cut": cut[rows]}
