"""Tokens of templates with the texts of rows in them, and where in each row a word is predicted.

A row is rendered and tokenised as a whole, so that its tokens are those of the text that a reader would see.
Where it is too long, tokens of its texts are left out from their ends, of the longer text first; those of the
template stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from autopeft.errors import TaskError, UsageError
from autopeft.injection.frames import reading
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.verbaliser import MASK, LabelWords, Template
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    check_length,
    kept_arrays,
    no_use,
    tokens_of,
)

__all__ = [
    "LABEL_WORDS",
    "READ_AT",
    "EncodedCloze",
    "cut_rows",
    "encode_cloze",
    "label_logits",
    "read_in",
    "read_words",
    "word_tokens",
]

_CHUNK = 1_000
_FORMAT = 1
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EncodedCloze(EncodedSplit):
    """Tokens of rows in which one word is predicted.

    Attributes:
        at: the token of each row at which it is, counted from the row's first, (rows,) int64: the mask, or
            the last token, whose logits are of the next one.
        words: tokens of the label words, (classes,) int64.
    """

    at: Indices
    words: Indices

    @property
    def labels_fingerprint(self) -> str:
        """See `EncodedSplit.labels_fingerprint`: of the labels, their words and where these are predicted."""
        digest = hashlib.sha256(super().labels_fingerprint.encode())
        for array in (self.words, self.at):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """See `EncodedSplit.collate`; beside it `READ_AT` (B,) and `LABEL_WORDS` (B, classes), int64."""
        batch = super().collate(rows, device=device)
        chosen = np.asarray(rows, dtype=np.int64)
        words = np.broadcast_to(self.words, (len(chosen), len(self.words))).copy()
        told = {READ_AT: torch.from_numpy(self.at[chosen]), LABEL_WORDS: torch.from_numpy(words)}
        return {**batch, **{key: value.to(device, non_blocking=True) for key, value in told.items()}}

    def take(self, rows: Indices) -> EncodedCloze:
        """See `EncodedSplit.take`."""
        found = super().take(rows)
        assert isinstance(found, EncodedCloze)
        return replace(found, at=self.at[rows])


def encode_cloze(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    words: LabelWords,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    kind: str,
    cached: bool = True,
) -> EncodedCloze:
    """Put texts into the template and tokenise them, without labels; `cached` reads and writes the cache on
    disk.

    Raises:
        TaskError: a label word is not one token of its own, or the template leaves no room for a text.
        UsageError: see `encode_texts`; or the tokenizer has no mask token, or does not say where tokens come
            from.
    """
    check_length(tokenizer, max_length)
    _check_tokenizer(tokenizer, template)
    tokens = word_tokens(words, template, tokenizer)
    arrays = kept_arrays(
        lambda: _content_hash(texts, pairs, template, tokenizer, max_length),
        len(texts),
        lambda: _tokenise(texts, pairs, template, tokenizer, max_length),
        cached=cached,
    )
    assert tokenizer.pad_token_id is not None
    return EncodedCloze(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        types=arrays.get("types"),
        labels=None,
        kind=kind,
        pad_id=int(tokenizer.pad_token_id),
        pad_type=int(tokenizer.pad_token_type_id),
        max_length=max_length,
        at=np.asarray(arrays["row_at"], dtype=np.int64),
        words=np.asarray(tokens, dtype=np.int64),
    )


def cut_rows(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> NDArray[np.bool_]:
    """Whether `encode_cloze` leaves out tokens of each row, (rows,)."""
    _check_tokenizer(tokenizer, template)
    found = _tokenise(texts, pairs, template, tokenizer, max_length)
    return np.asarray(found["row_cut"] > 0)


def word_tokens(words: LabelWords, template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token of each label word in its place in the template.

    Raises:
        TaskError: one is not a single token there, is unknown to the tokenizer, or two are the same token.
    """
    before, space = template.before_word()
    front = _plain_ids(tokenizer, before)
    found: dict[int, str] = {}
    for word in words.words:
        whole = _plain_ids(tokenizer, before + space + word)
        tokens = whole[len(front) :] if whole[: len(front)] == front else whole
        if len(tokens) != 1:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise TaskError(
                f"The label word {word!r} is {len(tokens)} tokens here ({_listed(pieces)}), and one "
                "token is predicted. Take a word that its tokenizer has whole, such as a shorter or more "
                "common one."
            )
        if tokens[0] == tokenizer.unk_token_id:
            raise TaskError(
                f"The label word {word!r} is unknown to the model's tokenizer, which has "
                f"{tokenizer.unk_token!r} for it; take a word that it knows."
            )
        if tokens[0] in found:
            raise TaskError(
                f"The label words {found[tokens[0]]!r} and {word!r} are the same token for this model; take "
                "words that it tells apart."
            )
        found[tokens[0]] = word
    return tuple(found)


def _listed(pieces: Sequence[Any]) -> str:
    return ", ".join(repr(str(piece)) for piece in pieces[:8]) + (", …" if len(pieces) > 8 else "") or "none"


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text without what begins and ends each row."""
    if not text:
        return []
    found = tokens_of(tokenizer, [text], None, add_special_tokens=False, padding=False, truncation=False)
    return [int(token) for token in found["input_ids"][0]]


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    name = repr(tokenizer.name_or_path)[:300]
    if template.masked and tokenizer.mask_token_id is None:
        raise UsageError(
            f"The tokenizer of {name} has no mask token, so that {{mask}} cannot be put into texts; take a "
            "masked language model (--model), or for a decoder a template that ends where the word comes."
        )
    if not tokenizer.is_fast:
        raise UsageError(
            f"The tokenizer of {name} does not say which letters a token is of, which templates need; take a "
            "model with a tokenizer.json."
        )


def _content_hash(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> str:
    told = [_FORMAT, max_length, str(template), fingerprint_of(tokenizer)]
    digest = hashlib.sha256(f"cloze {json.dumps(told)}\n".encode())
    for index, text in enumerate(texts):
        digest.update(json.dumps([text, None if pairs is None else pairs[index]]).encode() + b"\n")
    return digest.hexdigest()


def _tokenise(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, NDArray[Any]]:
    rows: list[_Row] = []
    for start in range(0, len(texts), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows += _rendered(texts[part], None if pairs is None else pairs[part], template, tokenizer)
    kept = [row.within(max_length) for row in rows]
    cut = [len(row.ids) > len(less.ids) for row, less in zip(rows, kept, strict=True)]
    found: dict[str, NDArray[Any]] = {
        "offsets": np.concatenate([[0], np.cumsum([len(row.ids) for row in kept])]).astype(np.int64),
        "row_at": np.asarray([row.place for row in kept], dtype=np.int64),
        "row_cut": np.asarray(cut, dtype=np.int8),
    }
    try:
        found["ids"] = np.concatenate([np.asarray(row.ids, dtype=np.int32) for row in kept])
        if all(row.types is not None for row in kept):
            found["types"] = np.concatenate([np.asarray(row.types, dtype=np.int8) for row in kept])
    except OverflowError as error:
        raise no_use(tokenizer, f"a token or token type is too large ({error})") from error
    return found


def _rendered(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Row]:
    """Tokens of the template with each row's texts in it, however many."""
    with_types = "token_type_ids" in tokenizer.model_input_names
    mask = str(tokenizer.mask_token) if template.masked else ""
    seconds: Sequence[str] = [""] * len(texts) if pairs is None else pairs
    rendered = [
        template.render(text=text, text_pair=second, **{MASK: mask})
        for text, second in zip(texts, seconds, strict=True)
    ]
    told = tokens_of(
        tokenizer,
        [text for text, _ in rendered],
        None,
        truncation=False,
        padding=False,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=with_types,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    types = told["token_type_ids"] if with_types else [None] * len(rendered)
    rows = [
        _Row(ids, letters, of_row, places)
        for ids, letters, of_row, (_, places) in zip(
            told["input_ids"], told["offset_mapping"], types, rendered, strict=True
        )
    ]
    if template.masked:
        return [row.at_mask(tokenizer) for row in rows]
    added = told["special_tokens_mask"]
    return [row.ended(tokenizer, of_row) for row, of_row in zip(rows, added, strict=True)]


@dataclass(frozen=True)
class _Row:
    """Tokens of a rendered row, where each comes from in it, and where its fields are; `mask` is the token of
    its mask, `None` where the word comes behind the last token."""

    ids: Sequence[int]
    letters: Sequence[tuple[int, int]]
    types: Sequence[int] | None
    places: Mapping[str, tuple[int, int]]
    mask: int | None = None

    @property
    def place(self) -> int:
        """The token at which the word is predicted."""
        return len(self.ids) - 1 if self.mask is None else self.mask

    def at_mask(self, tokenizer: PreTrainedTokenizerBase) -> _Row:
        """The row with the place of the template's mask; a text may have others."""
        end = self.places[MASK][1]
        found = [
            i
            for i, (token, (_, stop)) in enumerate(zip(self.ids, self.letters, strict=True))
            if token == tokenizer.mask_token_id and stop == end
        ]
        if len(found) != 1:
            raise no_use(tokenizer, f"it does not make one token of its mask {tokenizer.mask_token!r}")
        return replace(self, mask=found[0])

    def ended(self, tokenizer: PreTrainedTokenizerBase, added: Sequence[int]) -> _Row:
        """The row without what the tokenizer puts behind texts, so that the word follows its last token;
        `added` is 1 for tokens that it puts around them."""
        last = max((i for i, by_it in enumerate(added) if not by_it), default=-1)
        if last < 0:
            raise no_use(tokenizer, "it makes no token of a text")
        return self._with(range(last + 1))

    def within(self, most: int) -> _Row:
        """The row with at most so many tokens.

        Raises:
            TaskError: the template alone has as many.
        """
        over = len(self.ids) - most
        if over <= 0:
            return self
        held = [self._tokens_in(field) for field in self.places if field != MASK]
        rest = len(self.ids) - sum(map(len, held))
        if rest >= most:
            raise TaskError(
                f"The template alone has {rest} tokens, so that no text fits into max_length={most} "
                "(--max-length); allow longer rows, or shorten the template."
            )
        left_out: set[int] = set()
        for _ in range(over):
            left_out.add(max(held, key=len).pop())
        return self._with([i for i in range(len(self.ids)) if i not in left_out])

    def _tokens_in(self, field: str) -> list[int]:
        """Tokens of a field's text; one that reaches into what follows it is the template's."""
        begin, end = self.places[field]
        return [i for i, (_, stop) in enumerate(self.letters) if begin < stop <= end]

    def _with(self, kept: Sequence[int]) -> _Row:
        """The row with these of its tokens, the mask among them."""
        return replace(
            self,
            ids=[self.ids[i] for i in kept],
            letters=[self.letters[i] for i in kept],
            types=None if self.types is None else [self.types[i] for i in kept],
            mask=None if self.mask is None else kept.index(self.mask),
        )


# Logits of the label words at one position of each row, of all that a language model predicts
# ------------------------------------------------------------------------------------------------------


READ_AT, LABEL_WORDS = f"{BESIDE}read_at", f"{BESIDE}label_words"
"""What a batch has of these: (B,), the place of a row's token among the row's own, and (B, classes)."""


def read_in(batch: Mapping[str, Tensor]) -> Tensor:
    """Where the token of each row is that is read, (B, L), padding before rows counted."""
    mask = batch["attention_mask"]
    position = mask.argmax(dim=1) + batch[READ_AT]
    return torch.arange(mask.shape[1], device=mask.device) == position[:, None]


def label_logits(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (B, classes) of the label words, of those (B, L, vocabulary) of all positions; what `read_words`
    has picked already stays.

    Raises:
        UsageError: they are of neither form.
    """
    if logits.shape == batch[LABEL_WORDS].shape:
        return logits
    if logits.shape[:2] != batch["attention_mask"].shape or logits.ndim != 3:
        raise UsageError(
            f"A language model has logits of its whole vocabulary at each position, but got the shape "
            f"{tuple(logits.shape)} for {tuple(batch['attention_mask'].shape)} tokens; take another model."
        )
    return logits[read_in(batch)].gather(1, batch[LABEL_WORDS])


@contextmanager
def read_words(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the vocabulary's projection computes the read position of each row and the label words alone:
    logits are (B, classes). Where something acts on its logits, it computes the whole vocabulary there, and
    the label words are picked afterwards. Of a model that predicts by no such map of its own (DeBERTa's
    multiplies by the embeddings) all logits are computed, for `label_logits` to pick from.

    Raises:
        UsageError: the model has no such projection.
    """
    project = getattr(model, "get_output_embeddings", lambda: None)()
    if project is None:
        raise UsageError(
            f"{type(model).__name__} has no projection to a vocabulary: it is no language model."
        )
    config: Any = model.config
    if project.weight.shape[0] < config.get_text_config().vocab_size:
        yield
        return
    positions, words = read_in(batch), batch[LABEL_WORDS][0]

    def narrowed(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][positions], *args[1:])

    def picked(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[:, words]

    with reading(positions), _only(project, words) as few:
        handles = [project.register_forward_pre_hook(narrowed)]
        if not few:
            handles.append(project.register_forward_hook(picked))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _only(project: nn.Module, words: Tensor) -> Iterator[bool]:
    """Within, the projection computes these words alone, where it is a plain linear map and nobody waits for
    its logits; whether it does."""
    plain = type(project) is nn.Linear and "forward" not in vars(project) and not project._forward_hooks
    if not plain:
        yield False
        return

    def forward(hidden: Tensor) -> Tensor:
        weight: Any = project.weight
        bias: Any = project.bias
        return F.linear(hidden, weight[words], None if bias is None else bias[words])

    project.forward = forward
    try:
        yield True
    finally:
        del project.forward
