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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from autopeft.errors import TaskError, UsageError
from autopeft.injection.frames import reading
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.verbaliser import EXAMPLES, MASK, LabelWords, Template
from autopeft.tasks.tokens import (
    BESIDE,
    EncodedSplit,
    Indices,
    check_length,
    content_hash,
    keep_arrays,
    no_use,
    read_arrays,
    tokens_of,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = [
    "LABEL_WORDS",
    "READ_AT",
    "ClozeEncoder",
    "EncodedCloze",
    "check_pairs",
    "label_logits",
    "named_template",
    "read_in",
    "read_words",
    "word_tokens",
]

_CHUNK = 1_000
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class EncodedCloze(EncodedSplit):
    """Tokens of rows in which one word is predicted.

    Attributes:
        at: the token of each row at which it is, counted from the row's first, (rows,) int64: the mask, or
            the last token, whose logits are of the next one.
        words: tokens of the label words, (classes,) int64.
    """

    by_row = (*EncodedSplit.by_row, "at")

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


class ClozeEncoder(Encoder):
    """Tokens of a template with the texts of rows in it, and where the label word is predicted.

    Args:
        words: label words, one for each class.
        template: that texts are put in; `None` where it is not known yet.
    """

    def __init__(self, words: LabelWords, template: Template | None) -> None:
        super().__init__()
        self.words, self.template = words, template

    def facts(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The template and the label words."""
        words = ", ".join(
            f"{word!r} for {name!r}" for name, word in zip(names, self.words.words, strict=True)
        )
        return [("template", repr(str(named_template(self.template)))), ("label words", words)]

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedCloze:
        """See `Encoder.encode`.

        Raises:
            TaskError: a label word is not one token of its own, the template is left open or leaves no room
                for a text, or the rows have not as many texts as it.
            UsageError: see `encode_texts`; or the tokenizer has no mask token, or does not say where tokens
                come from.
        """
        template = named_template(self.template)
        check_pairs(template, pairs=rows.pairs is not None)
        check_length(tokenizer, max_length)
        _check_tokenizer(tokenizer, template)
        words = word_tokens(self.words, template, tokenizer)
        key = None
        if cached:
            told = [_FORMAT, max_length, str(template), fingerprint_of(tokenizer)]
            pairs = rows.pairs
            texts = ([text, None if pairs is None else pairs[i]] for i, text in enumerate(rows.texts))
            key = content_hash(f"cloze {json.dumps(told)}", texts)
        arrays = read_arrays(key, len(rows))
        if arrays is None:
            arrays = _tokenise(rows, template, tokenizer, max_length)
            arrays = keep_arrays(key, len(rows), arrays)
        return EncodedCloze(
            ids=arrays["ids"],
            offsets=arrays["offsets"],
            types=arrays.get("types"),
            labels=self.label_array(rows.labels) if labelled else None,
            kind=self.kind,
            pad_id=int(tokenizer.pad_token_id),
            pad_type=int(tokenizer.pad_token_type_id),
            max_length=max_length,
            at=np.asarray(arrays["row_at"], dtype=np.int64),
            words=np.asarray(words, dtype=np.int64),
        )

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        """Share of rows whose texts are cut; the template never is."""
        if not len(rows):
            return 0.0
        template = named_template(self.template)
        check_pairs(template, pairs=rows.pairs is not None)
        word_tokens(self.words, template, tokenizer)  # before anything is trained
        _check_tokenizer(tokenizer, template)
        return float(np.mean(_tokenise(rows, template, tokenizer, max_length)["row_cut"] > 0))


def named_template(template: Template | None) -> Template:
    """A template that is not left open.

    Raises:
        TaskError: it is.
    """
    if template is None:
        raise TaskError(
            f"Label words stand in a template, and none is named: write {EXAMPLES[True, False]!r} for a "
            f"masked language model, or {EXAMPLES[False, False]!r} for a decoder (--template)."
        )
    return template


def check_pairs(template: Template, *, pairs: bool) -> None:
    """Compare the template with rows that are pairs of texts, or not.

    Raises:
        TaskError: it has not as many texts.
    """
    if template.of_pairs != pairs:
        have, has = ("two texts", "no {text_pair}") if pairs else ("one text", "a {text_pair}")
        raise TaskError(
            f"The rows have {have} each, but the template {str(template)!r} has {has}; write for example "
            f"{EXAMPLES[template.masked, pairs]!r} (--template)."
        )


def word_tokens(words: LabelWords, template: Template, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token of each label word in its place in the template.

    Raises:
        TaskError: one is not a single token there, is unknown to the tokenizer, or two are the same token.
    """
    before, space = template.before_word()
    # Without what begins and ends each row; some tokenizers make nothing of an empty text.
    options = {"add_special_tokens": False, "padding": False, "truncation": False}
    front = list(tokens_of(tokenizer, [before], None, **options)["input_ids"][0]) if before else []
    texts = [before + space + word for word in words.words]
    found: dict[int, str] = {}
    for word, whole in zip(
        words.words, tokens_of(tokenizer, texts, None, **options)["input_ids"], strict=True
    ):
        tokens = list(whole[len(front) :] if list(whole[: len(front)]) == front else whole)
        if len(tokens) != 1:
            pieces = [repr(str(piece)) for piece in tokenizer.convert_ids_to_tokens(tokens[:8])]
            shown = ", ".join([*pieces, *(["…"] if len(tokens) > 8 else [])]) or "none"
            raise TaskError(
                f"The label word {word!r} is {len(tokens)} tokens here ({shown}), and one token is "
                "predicted. Take a word that its tokenizer has whole, such as a shorter or more common one."
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
        found[int(tokens[0])] = word
    return tuple(found)


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


def _tokenise(
    rows: Split, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, NDArray[Any]]:
    """`ids`, `offsets`, and `types` where the tokenizer has them, of rendered rows within `max_length`
    tokens; of each row the token at which the word is predicted (`row_at`), and whether texts lost some
    (`row_cut`).

    Raises:
        TaskError: the template alone has as many tokens.
        UsageError: the tokenizer cannot encode the rows.
    """
    with_types = "token_type_ids" in tokenizer.model_input_names
    mask = str(tokenizer.mask_token) if template.masked else ""
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    at: list[int] = []
    cut: list[bool] = []
    for start in range(0, len(rows), _CHUNK):
        texts = rows.texts[start : start + _CHUNK]
        seconds = [""] * len(texts) if rows.pairs is None else rows.pairs[start : start + _CHUNK]
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
        for i, (_, places) in enumerate(rendered):
            tokens, ends = told["input_ids"][i], [stop for _, stop in told["offset_mapping"][i]]
            kept = list(range(len(tokens)))

            # The token at which the word is predicted: the template's mask, as a text may have others; or the
            # last one, without what the tokenizer puts behind texts.
            if template.masked:
                masks = [
                    k for k in kept if tokens[k] == tokenizer.mask_token_id and ends[k] == places[MASK][1]
                ]
                if len(masks) != 1:
                    raise no_use(tokenizer, f"it does not make one token of its mask {mask!r}")
                read = masks[0]
            else:
                read = max((k for k in kept if not told["special_tokens_mask"][i][k]), default=-1)
                if read < 0:
                    raise no_use(tokenizer, "it makes no token of a text")
                kept = kept[: read + 1]

            # Texts lose tokens from their ends, the longer one first. A token that reaches into what follows
            # a text is the template's.
            over = len(kept) - max_length
            if over > 0:
                fields = [place for field, place in places.items() if field != MASK]
                held = [[k for k in kept if begin < ends[k] <= end] for begin, end in fields]
                rest = len(kept) - sum(map(len, held))
                if rest >= max_length:
                    raise TaskError(
                        f"The template alone has {rest} tokens, so that no text fits into "
                        f"max_length={max_length} (--max-length); allow longer rows, or shorten the template."
                    )
                left_out = {max(held, key=len).pop() for _ in range(over)}
                kept = [k for k in kept if k not in left_out]
            at.append(kept.index(read))
            cut.append(over > 0)
            try:
                ids.append(np.asarray([tokens[k] for k in kept], dtype=np.int32))
                if with_types:
                    types.append(np.asarray([told["token_type_ids"][i][k] for k in kept], dtype=np.int8))
            except OverflowError as error:
                raise no_use(tokenizer, f"a token or token type is too large ({error})") from error
    found: dict[str, NDArray[Any]] = {
        "ids": np.concatenate(ids),
        "offsets": np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        "row_at": np.asarray(at, dtype=np.int64),
        "row_cut": np.asarray(cut, dtype=np.int8),
    }
    return {**found, "types": np.concatenate(types)} if with_types else found


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

    def computed(hidden: Tensor) -> Tensor:
        weight: Any = project.weight
        bias: Any = project.bias
        return F.linear(hidden, weight[words], None if bias is None else bias[words])

    # A plain linear map whose logits nobody waits for computes the label words alone.
    plain = type(project) is nn.Linear and "forward" not in vars(project) and not project._forward_hooks
    handles = [project.register_forward_pre_hook(narrowed)]
    if plain:
        project.forward = computed
    else:
        handles.append(project.register_forward_hook(picked))
    try:
        with reading(positions):
            yield
    finally:
        for handle in handles:
            handle.remove()
        if plain:
            del project.forward
