"""Tokens of rows: made once per texts, tokenizer and length, kept on disk, served in bucketed batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.assets import cache_folder, intact, publish, warn_once
from autopeft.errors import AssetError, TaskError, UsageError
from autopeft.tasks.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BESIDE",
    "POSITION_MASK",
    "WINDOW_BATCHES",
    "EncodedSplit",
    "Indices",
    "check_length",
    "content_hash",
    "encode_texts",
    "keep_arrays",
    "mask_of",
    "no_use",
    "places_of",
    "ragged",
    "read_arrays",
    "tokens_of",
]

WINDOW_BATCHES = 50
BESIDE = "beside_"
"""What the name of a tensor in a batch begins with that a kind of task reads and no model takes."""
POSITION_MASK = f"{BESIDE}position_mask"
"""In batches without `attention_mask`: ones (B, L) at the positions of hidden states."""
_NOT_KEPT = "Tokens are not kept, and are made again each time"
_CHUNK = 1_000
_FORMAT = 1
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Tokens of one split, ragged: row i is `ids[offsets[i]:offsets[i + 1]]`.

    `types` are token type ids where the tokenizer has them, `labels` is `None` for texts without labels.
    `kind` is the name of the task's kind; one whose batches hold something else overrides `collate`.
    """

    by_token: ClassVar[tuple[str, ...]] = ("ids", "types")
    """Names of the arrays that have a value for each token, (tokens, …)."""
    by_row: ClassVar[tuple[str, ...]] = ("labels",)
    """Names of those that have one for each row, (rows, …)."""

    ids: NDArray[np.int32]
    offsets: Indices
    types: NDArray[np.int8] | None
    labels: NDArray[Any] | None
    kind: str
    pad_id: int
    pad_type: int
    max_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Indices:
        """Tokens of each row, special tokens included, shape (N,); batches are of rows of like length."""
        return np.diff(self.offsets)

    @property
    def truth(self) -> NDArray[Any] | None:
        """The labels as metrics take them, shape (N, …), where batches have others; `None` for texts without
        labels."""
        return self.labels

    @property
    def prompt_lengths(self) -> Indices:
        """Tokens of each row that a model reads before it writes an answer, shape (N,)."""
        return self.lengths

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens of all rows; labels are left out."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, *(() if self.types is None else (self.types,))):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def content(self, row: int) -> bytes:
        """What a model reads of a row; equal rows have equal bytes."""
        return np.ascontiguousarray(self.ids[self.offsets[row] : self.offsets[row + 1]]).tobytes()

    def copies(self) -> Indices:
        """The first of the rows that a model reads alike, for each row, (N,)."""
        first: dict[bytes, int] = {}
        digests = (hashlib.sha256(self.content(i)).digest() for i in range(len(self)))
        return np.array([first.setdefault(d, i) for i, d in enumerate(digests)], dtype=np.int64)

    @property
    def label_counts(self) -> Indices:
        """How many labels each row has, (N,): one, or as many as it has tokens that are learnt."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def labels_fingerprint(self) -> str:
        """SHA-256 of what is learnt of the rows beside their tokens; of nothing without labels."""
        labels = np.empty(0) if self.labels is None else self.labels
        return hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()

    def batch_indices(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        among: Indices | None = None,
    ) -> list[Indices]:
        """The rows of each batch that `batches` yields for the same arguments, in order.

        With `shuffle`, rows are permuted, sorted by length within windows of 50 batches, and the batches
        permuted, of the rows `among` where they are given; without, all rows are sorted, longest first.
        `drop_last` leaves out a batch with fewer rows.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be positive, but got {batch_size=}.")
        lengths = self.lengths
        if not shuffle:
            rows = np.argsort(-lengths, kind="stable")
            found = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        else:
            rng = np.random.default_rng(seed)
            rows = rng.permutation(len(lengths) if among is None else among)
            window = WINDOW_BATCHES * batch_size
            found = []
            for start in range(0, len(rows), window):
                part = rows[start : start + window]
                part = part[np.argsort(lengths[part], kind="stable")]
                found += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
            found = [found[i] for i in rng.permutation(len(found))]
        return [batch for batch in found if len(batch) == batch_size or not drop_last]

    def of_rows(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """What is kept of each row of the task, from what is kept of each sequence of this split, (N, …), in
        its order; that itself where a row is one sequence."""
        return outputs

    def order(self) -> Indices:
        """The row of each output of `batches(shuffle=False)`: `restored[split.order()] = outputs`."""
        return np.argsort(-self.lengths, kind="stable")

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """Padded batches of like length, every row once; order: see `batch_indices`, keys: see `collate`."""
        for rows in self.batch_indices(batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last):
            yield self.collate(rows, device=device)

    def offsets_of(self, stack: str) -> Indices:
        """Where the tokens of each row begin that a stack of the model reads, (rows + 1,): those in `ids`,
        but where rows have a side of their own for the decoder."""
        return self.offsets

    def layout(self, rows: Indices, stack: str = "encoder") -> tuple[Indices, NDArray[np.bool_]]:
        """Where the tokens of a batch come from and go to: the tokens' positions in `ids`, one row after the
        other, and which places of the padded batch (B, L) hold a token; those of a stack that has others."""
        offsets = self.offsets_of(stack)
        lengths = offsets[rows + 1] - offsets[rows]
        width = max(1, int(lengths.max()))
        inside = np.arange(width)[None, :] < lengths[:, None]
        return places_of(offsets, rows), inside

    def places(self, rows: Indices) -> Indices:
        """The positions in `ids` of the tokens of rows, one row after the other."""
        return places_of(self.offsets, rows)

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """The given rows as one batch, padded on the right.

        Keys: `input_ids` and `attention_mask` (B, L) int64, `token_type_ids` (B, L) where the tokenizer has
            them, `labels` (B, …) where there are labels, of the kind's type (int64 for class indices, float32
            for numbers), `task_id` (B,) zeros. L is the longest row's length.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        flat, inside = self.layout(chosen)
        ids = np.full(inside.shape, self.pad_id, dtype=np.int64)
        ids[inside] = self.ids[flat]
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
        }
        if self.types is not None:
            types = np.full(inside.shape, self.pad_type, dtype=np.int64)
            types[inside] = self.types[flat]
            batch["token_type_ids"] = torch.from_numpy(types)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[chosen])
        batch["task_id"] = torch.zeros(len(chosen), dtype=torch.int64)
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    def all_learnt(self) -> EncodedSplit:
        """The rows with every token learnt.

        Raises:
            UsageError: they are of another kind than language models learn.
        """
        raise UsageError(
            f"Of {self.kind} no tokens are learnt: --learn-all (learn_all=True) is for causal_lm."
        )

    def with_answers(
        self, rows: Sequence[int], answers: Sequence[Sequence[int]], room: int | None
    ) -> EncodedSplit:
        """Rows, one or several times, with these tokens in the place of their last answers.

        Args:
            room: tokens of a row at most, of which what is asked loses its beginning; `None` without limit.

        Raises:
            TaskError: nothing is learnt from what models of this kind write.
        """
        raise TaskError(
            f"Nothing is learnt from texts that models for {self.kind} write; take a decoder as a language "
            "model (--kind causal_lm), or a method that learns from labels."
        )

    def take(self, rows: Indices) -> Self:
        """The given rows as a split of their own, in that order; one that has more than `by_token` and
        `by_row` overrides it."""
        places = self.places(rows)
        arrays = {name: (getattr(self, name), places) for name in self.by_token}
        arrays |= {name: (getattr(self, name), rows) for name in self.by_row}
        taken: dict[str, Any] = {n: None if array is None else array[at] for n, (array, at) in arrays.items()}
        return replace(self, offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[rows])]), **taken)


def mask_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Which positions of a batch's hidden states stand for something, (B, L)."""
    return batch["attention_mask"] if "attention_mask" in batch else batch[POSITION_MASK]


def ragged(rows: Sequence[Any]) -> NDArray[Any]:
    """Rows of different lengths as an array of objects, (rows,)."""
    found = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        found[i] = row
    return found


def places_of(offsets: Indices, rows: Indices) -> Indices:
    """The positions of the tokens of rows, one row after the other; those of row i begin at `offsets[i]`."""
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.repeat(offsets[rows] - np.cumsum(lengths) + lengths, lengths)
    return starts + np.arange(len(starts))


def encode_texts(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    *,
    kind: str = "classification",
    cached: bool = True,
) -> EncodedSplit:
    """Tokenise texts without labels; `cached` reads and writes the cache on disk.

    Raises:
        UsageError: `max_length` is below 4 or beyond what the tokenizer's model takes, or the tokenizer has
            no padding token, or cannot encode the texts.
    """
    check_length(tokenizer, max_length)
    key = None
    if cached:
        rows = ([text, None if pairs is None else pairs[i]] for i, text in enumerate(texts))
        key = content_hash(f"{_FORMAT} {max_length} {fingerprint_of(tokenizer)}", rows)
    arrays = read_arrays(key, len(texts))
    if arrays is None:
        with_types = "token_type_ids" in tokenizer.model_input_names
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.int8]] = []
        for start in range(0, len(texts), _CHUNK):
            stop = start + _CHUNK
            encoded = tokens_of(
                tokenizer,
                texts[start:stop],
                None if pairs is None else pairs[start:stop],
                truncation=True,
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=with_types,
            )
            try:
                ids += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
                if with_types:
                    types += [np.asarray(row, dtype=np.int8) for row in encoded["token_type_ids"]]
            except OverflowError as error:
                raise no_use(tokenizer, f"a token or token type is too large ({error})") from error
        # A tokenizer without special tokens may give nothing for a text; one padding token keeps the row.
        ids = [row if len(row) else np.asarray([tokenizer.pad_token_id], dtype=np.int32) for row in ids]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
        arrays = {"ids": np.concatenate(ids), "offsets": offsets}
        if with_types:
            arrays["types"] = np.concatenate([row if len(row) else np.zeros(1, np.int8) for row in types])
        arrays = keep_arrays(key, len(texts), arrays)
    return EncodedSplit(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        types=arrays.get("types"),
        labels=None,
        kind=kind,
        pad_id=int(tokenizer.pad_token_id),
        pad_type=int(tokenizer.pad_token_type_id),
        max_length=max_length,
    )


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Look at what rows are cut to, before any is tokenised.

    Raises:
        UsageError: it is below 4 or beyond what the tokenizer's model takes, or there is no padding token.
    """
    if not 4 <= max_length <= tokenizer.model_max_length:
        raise UsageError(
            f"{max_length=} does not fit the tokenizer, which takes 4 to {tokenizer.model_max_length} tokens."
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(
            "The tokenizer has no padding token: set `tokenizer.pad_token = tokenizer.eos_token`."
        )


def tokens_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    target: bool = False,
    **options: Any,
) -> Any:
    """What a tokenizer makes of texts; `target` for what an encoder-decoder writes, which some tokenizers
    begin or end with other tokens than what it reads.

    Raises:
        UsageError: it stumbles over them, or over what its own files say.
    """
    try:
        if target:
            return tokenizer(text_target=list(texts), **options)
        return tokenizer(list(texts), None if pairs is None else list(pairs), **options)
    except BaseException as error:
        # Where its Rust panics, what comes is no `Exception`, and its class cannot be imported.
        panic = type(error).__name__ == "PanicException"
        if isinstance(error, MemoryError) or not (panic or isinstance(error, Exception)):
            raise
        raise no_use(tokenizer, str(error).strip().split("\n")[0] or type(error).__name__) from error


def no_use(tokenizer: PreTrainedTokenizerBase, why: str) -> UsageError:
    """The error for a tokenizer that does not do its work."""
    return UsageError(
        f"The tokenizer of {tokenizer.name_or_path!r:.300} cannot encode the texts: {why}. Is its "
        "tokenizer.json damaged?"
    )


# The cache on disk
# ------------------------------------------------------------------------------------------------------


def content_hash(header: str, rows: Iterable[Any]) -> str:
    """The hash that names the tokens of some rows in the cache.

    Args:
        header: what decides the tokens beside the rows: the format, the length, the tokenizer.
        rows: JSON-able values.
    """
    digest = hashlib.sha256(f"{header}\n".encode())
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def read_arrays(key: str | None, rows: int | None) -> dict[str, NDArray[Any]] | None:
    """The arrays of a key, mapped from disk; `None` without a key, and where they are absent or damaged.

    Args:
        key: a `content_hash`; `None` where the cache is not used.
        rows: how many there are; `None` where only the tokens say it.
    """
    if key is None:
        return None
    try:
        folder = cache_folder("encoded") / key
        if not intact(folder):
            return None
        arrays = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(folder.glob("*.npy"))}
    except AssetError as error:
        warn_once(f"{_NOT_KEPT}: {error}")
        return None
    except (OSError, ValueError, EOFError):
        return None
    if not {"ids", "offsets"} <= arrays.keys():
        return None
    offsets = arrays["offsets"]
    rows = len(offsets) - 1 if rows is None else rows
    if rows < 0 or len(offsets) != rows + 1 or offsets[-1] != len(arrays["ids"]):
        return None
    if np.any(np.diff(offsets) < 1):
        return None
    further = arrays.keys() - {"ids", "offsets"}
    if any(len(arrays[n]) != (rows if n.startswith("row_") else len(arrays["ids"])) for n in further):
        return None
    return arrays


def keep_arrays(
    key: str | None, rows: int | None, arrays: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Keep arrays on disk and map them from there, so that processes share them; themselves without a key,
    and where they cannot be kept.

    Args:
        key, rows: as in `read_arrays`.
        arrays: `ids` (tokens,) and `offsets` (rows + 1,); every further array has one value for each token,
        or
            one for each row where its name begins with `row_`.
    """
    if key is None:
        return arrays

    def fill(scratch: Path) -> None:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array, allow_pickle=False)

    try:
        publish(cache_folder("encoded") / key, fill)
    except (AssetError, OSError) as error:
        warn_once(f"{_NOT_KEPT}: {error}")
        return arrays
    return read_arrays(key, rows) or arrays
