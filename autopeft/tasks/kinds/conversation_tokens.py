"""Tokens of conversations, and which of them are learnt.

A tokenizer with a chat template renders a conversation by it (see `chat_templates`). Without one the messages
follow one another, a line apart, each answer with the end token behind it.

A conversation is cut into what is asked and what is answered, and no token stands in two parts: a model that
answers has the tokens of the question before it, whatever the answer begins with. A part of what a template
renders has the tokens that it has behind the part before it, so that a conversation has the tokens that a
server gives a model; tokenizers of Llama 2's kind mark the beginning of a text that is read by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autopeft.assets import warn_once
from autopeft.errors import DataError
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.chat_templates import ChatTemplate, template_of
from autopeft.tasks.kinds.conversations import Conversation
from autopeft.tasks.tokens import (
    EncodedSplit,
    Indices,
    check_length,
    content_hash,
    keep_arrays,
    ragged,
    read_arrays,
    tokens_of,
)

__all__ = [
    "ANSWER_CUT",
    "IGNORED",
    "PROMPT_CUT",
    "EncodedConversations",
    "EncodedPrompts",
    "encode_conversations",
]

IGNORED = -100
"""Label of a token that is not learnt, as transformers has it."""
_FORMAT = 2
_CHUNK = 1_000
PROMPT_CUT, ANSWER_CUT = 1, 2
"""Of `EncodedPrompts.row_cut`."""
_SOME_ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class EncodedPrompts(EncodedSplit):
    """Tokens of rows to which a model writes answers.

    Attributes:
        row_cut: of each row 0 where it is whole, else the sum of 1 where what is asked was cut, and 2 where
            the answer was.
        answers: the last answer of each row as a text, (rows,) objects; empty where it has none.
        tokenizer: what the tokens are of.
        longest: tokens of an answer that is written, at most, where nothing else is asked for.
    """

    by_row = (*EncodedSplit.by_row, "row_cut", "answers")

    row_cut: NDArray[np.int8]
    answers: NDArray[np.object_]
    tokenizer: PreTrainedTokenizerBase
    longest: int

    @property
    def truth(self) -> NDArray[Any]:
        """The answers, (rows,) objects."""
        return self.answers

    def prompt(self, row: int) -> list[int]:
        """The tokens of a row that a model reads before it writes the answer."""
        start = int(self.offsets[row])
        return [int(token) for token in self.ids[start : start + int(self.prompt_lengths[row])]]


@dataclass(frozen=True, eq=False)
class EncodedConversations(EncodedPrompts):
    """Tokens of conversations.

    Attributes:
        learnt: whether each token is, (tokens,).
        prompts: tokens of each row before its last answer, (rows,); all of them where it has none.

    `labels` are the numbers of learnt tokens, (rows,) int64. A row whose answer was cut has lost its prompt
    before, as far as it could, and its `row_cut` is 2.
    """

    by_token = (*EncodedPrompts.by_token, "learnt")
    by_row = (*EncodedPrompts.by_row, "prompts")

    learnt: NDArray[np.bool_]
    prompts: Indices

    @property
    def prompt_lengths(self) -> Indices:
        """See `EncodedSplit.prompt_lengths`."""
        return self.prompts

    @property
    def labels_fingerprint(self) -> str:
        """See `EncodedSplit.labels_fingerprint`: of which tokens are learnt."""
        return hashlib.sha256(np.ascontiguousarray(self.learnt).tobytes()).hexdigest()

    def all_learnt(self) -> EncodedConversations:
        """See `EncodedSplit.all_learnt`; nothing predicts the first token of a row."""
        if self.kind != "causal_lm":
            super().all_learnt()
        learnt = np.ones(len(self.ids), dtype=np.bool_)
        learnt[self.offsets[:-1]] = False
        return replace(self, learnt=learnt, labels=np.diff(self.offsets) - 1)

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """As `EncodedSplit.collate`; `labels` (B, L) int64 are the tokens that are learnt, each at its own
        place (not moved by one), and -100 elsewhere."""
        batch = super().collate(rows, device=device)
        flat, inside = self.layout(np.asarray(rows, dtype=np.int64))
        labels = np.full(inside.shape, IGNORED, dtype=np.int64)
        labels[inside] = np.where(self.learnt[flat], self.ids[flat], IGNORED)
        return {**batch, "labels": torch.from_numpy(labels).to(device, non_blocking=True)}

    def with_answers(
        self, rows: Sequence[int], answers: Sequence[Sequence[int]], room: int | None
    ) -> EncodedConversations:
        """Rows, one or several times, with these tokens in the place of their last answers. They alone are
        learnt, and the texts of the answers stay those of the rows. A row of more than `room` tokens loses
        the beginning of what is asked, but for one token."""
        prompts = [self.prompt(int(row)) for row in rows]
        if room is not None:
            both = zip(prompts, answers, strict=True)
            prompts = [prompt[-max(1, room - len(answer)) :] for prompt, answer in both]
        pairs = list(zip(prompts, answers, strict=True))
        lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        chosen = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            ids=np.asarray([t for prompt, answer in pairs for t in (*prompt, *answer)], dtype=np.int32),
            offsets=offsets,
            labels=np.asarray([len(answer) for answer in answers], dtype=np.int64),
            max_length=max(self.max_length, *lengths),
            learnt=np.asarray(
                [k >= len(p) for p, a in pairs for k in range(len(p) + len(a))], dtype=np.bool_
            ),
            row_cut=self.row_cut[chosen],
            prompts=np.asarray([len(prompt) for prompt in prompts], dtype=np.int64),
            answers=self.answers[chosen],
        )


def encode_conversations(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    kind: str,
    cached: bool = True,
    asked: bool = False,
    ended: bool = True,
) -> EncodedConversations:
    """Tokenise conversations, whose answers are learnt with the token that ends them.

    A row beyond `max_length` loses the beginning of what stands before its last answer (a token of it stays,
    and so does a token that begins the text); an answer that does not fit even so loses its end. The first
    token of a row is never learnt, as nothing predicts it.

    Args:
        asked: whether rows need no answer, as the model is to give it; a plain text is then gone on with.
        ended: whether answers have the token, or what the template writes, that ends them.

    Raises:
        UsageError: see `encode_texts`; or the tokenizer's chat template cannot render a row.
        DataError: no row has a token to be learnt.
    """
    check_length(tokenizer, max_length)
    template = template_of(tokenizer)
    key = None
    if cached:
        what = "answers" if ended else "answers without ends"
        header = f"{what} {_FORMAT} {max_length} {fingerprint_of(tokenizer)}"
        key = content_hash(header, chain([template], conversations))
    arrays = read_arrays(key, len(conversations))
    if arrays is None:
        arrays = _tokenise(conversations, tokenizer, template, max_length, ended=ended)
        arrays = keep_arrays(key, len(conversations), arrays)
    ids, offsets, learnt = (np.asarray(arrays[name]) for name in ("ids", "offsets", "learnt"))
    counts = np.add.reduceat(np.asarray(learnt, dtype=np.int64), offsets[:-1])
    if not counts.any() and not asked:
        raise DataError(f"None of {len(counts):,} rows has a token to be learnt within {max_length} tokens.")
    if cut := int((np.asarray(arrays["row_cut"]) == ANSWER_CUT).sum()):
        warn_once(
            f"{cut:,} of {len(counts):,} answers do not fit into {max_length} tokens and lose their end; "
            "raise --max-length (max_length=…)."
        )
    # A prompt goes up to the last token that is not learnt; the first token of a row never is.
    plain, lengths = np.flatnonzero(~learnt), np.diff(offsets)
    last = plain[np.searchsorted(plain, offsets[1:]) - 1]
    prompts = np.asarray(last + 1 - offsets[:-1], dtype=np.int64)
    longest = max(1, int((lengths - prompts).max()))
    if asked:
        # All of a plain text is a prompt, without the token that ends it.
        texts = np.asarray([messages[0]["role"] == "assistant" for messages in conversations])
        ends = ids[offsets[1:] - 1] == tokenizer.eos_token_id
        prompts = np.where(texts, np.maximum(lengths - ends, 1), prompts)
    answers = [m[-1]["content"] if m[-1]["role"] == "assistant" else "" for m in conversations]
    return EncodedConversations(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        types=None,
        labels=counts,
        kind=kind,
        pad_id=int(tokenizer.pad_token_id),
        pad_type=0,
        max_length=max_length,
        learnt=arrays["learnt"],
        row_cut=arrays["row_cut"],
        prompts=prompts,
        answers=ragged(answers),
        tokenizer=tokenizer,
        longest=longest,
    )


# Parts of a conversation
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A text of a conversation that is learnt or not; an end token may follow it."""

    text: str
    learnt: bool = False
    ended: bool = False


def _parts(
    messages: Conversation, tokenizer: PreTrainedTokenizerBase, template: str | None, *, ended: bool
) -> list[_Part]:
    if messages[-1]["role"] != "assistant":  # what any answer has before it
        some = {"role": "assistant", "content": _SOME_ANSWER}
        return _parts([*messages, some], tokenizer, template, ended=ended)[:-1]
    if template is None or messages[0]["role"] == "assistant":
        return _joined(messages, ended=ended and tokenizer.eos_token_id is not None)
    parts = _rendered_parts(messages, ChatTemplate(tokenizer, template))
    if not ended:
        # Without what the template writes behind the answer; one that writes the answer otherwise keeps it.
        before, found, _ = parts[-1].text.partition(messages[-1]["content"].strip())
        parts[-1] = _Part(before + found, parts[-1].learnt) if found else parts[-1]
    return parts


def _joined(messages: Conversation, *, ended: bool) -> list[_Part]:
    """The messages one after the other, an answer with the end token unless it is an example's. A line break
    parts them where neither has white space there, and no end token stands between them; it belongs to the
    prompt. Answers of weight 0, as examples have, are not learnt."""
    parts: list[_Part] = []
    for message in messages:
        text, answer = message["content"], message["role"] == "assistant"
        learnt = answer and bool(message.get("weight", 1))
        if parts and not parts[-1].ended and not parts[-1].text[-1].isspace() and not text[0].isspace():
            if parts[-1].learnt:
                text = "\n" + text
            else:
                parts[-1] = _Part(parts[-1].text + "\n")
        parts.append(_Part(text, learnt, ended and answer and not message.get("example")))
    return parts


def _rendered_parts(messages: Conversation, template: ChatTemplate) -> list[_Part]:
    """What the template writes before each answer, and the answer with what ends it."""
    parts: list[_Part] = []
    done = ""
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:k], prompt=True)
        after = template.render(messages[: k + 1], prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise template.refused(
                messages,
                "it writes a conversation otherwise once the next message is there, so that no text tells "
                "the prompt from the answer",
            )
        answer = after.removeprefix(before)
        # White space behind what ends a turn is the template's; where nothing else ends it, it does.
        bare = answer.rstrip()
        if len(bare) > len(message["content"].rstrip()):
            answer = bare
        parts += [_Part(before.removeprefix(done)), _Part(answer, learnt=bool(message.get("weight", 1)))]
        done = before + answer
    return parts


# Tokens
# ------------------------------------------------------------------------------------------------------


def _tokenise(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    max_length: int,
    *,
    ended: bool,
) -> dict[str, NDArray[Any]]:
    """`ids`, `offsets`, `learnt` and `row_cut` of conversations within `max_length` tokens."""
    # The token that the tokenizer itself puts before a text, if any.
    begin = list(tokenizer("a")["input_ids"])[:1]
    if tokenizer.bos_token_id is None or begin != [tokenizer.bos_token_id]:
        begin = []
    rows: list[list[int]] = []
    masks: list[list[bool]] = []
    cuts: list[int] = []
    for start in range(0, len(conversations), _CHUNK):
        chunk = conversations[start : start + _CHUNK]
        parts = [_parts(messages, tokenizer, template, ended=ended) for messages in chunk]
        rendered = [template is not None and messages[0]["role"] != "assistant" for messages in chunk]
        tokens = _tokens_of_parts(parts, rendered, tokenizer)
        for row, whole in zip(parts, rendered, strict=True):
            ids = [] if whole else list(begin)
            learnt = [False] * len(ids)
            for part in row:
                new = list(next(tokens))
                if part.ended:
                    new.append(int(tokenizer.eos_token_id))
                ids += new
                learnt += [part.learnt] * len(new)
            if not ids:  # a tokenizer may give nothing for a text; one padding token keeps the row
                ids, learnt = [int(tokenizer.pad_token_id)], [False]
            over = len(ids) - max_length
            cut = 0
            if over > 0:
                answer = next((i for i in range(len(ids) - 1, -1, -1) if not learnt[i]), -1) + 1
                kept = 1 if ids[0] == tokenizer.bos_token_id else 0
                # One token has to stand before the answer, or its first would be predicted by nothing.
                gone = min(over, max(answer - max(kept, 1), 0))
                ids, learnt = ids[:kept] + ids[kept + gone :], learnt[:kept] + learnt[kept + gone :]
                cut = ANSWER_CUT if gone < over else PROMPT_CUT
            rows.append(ids[:max_length])
            masks.append([False, *learnt[1:max_length]])
            cuts.append(cut)
    return {
        "ids": np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]),
        "offsets": np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        "learnt": np.concatenate([np.asarray(mask, dtype=np.bool_) for mask in masks]),
        "row_cut": np.asarray(cuts, dtype=np.int8),
    }


def _tokens_of_parts(
    rows: Sequence[Sequence[_Part]], rendered: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Tokens of each part, row by row. A part of a rendered row has those that it has behind the part before
    it, unless a token would stand in both: then its own."""
    flat = [part.text for row in rows for part in row]
    joined = (row for row, whole in zip(rows, rendered, strict=True) if whole)
    pairs = [before.text + part.text for row in joined for before, part in pairwise(row)]
    found = tokens_of(tokenizer, flat + pairs, None, add_special_tokens=False, verbose=False)["input_ids"]
    alone, behind = iter(found[: len(flat)]), iter(found[len(flat) :])
    for row, whole in zip(rows, rendered, strict=True):
        before: list[int] = []
        for place in range(len(row)):
            own = list(next(alone))
            both = list(next(behind)) if whole and place else before + own
            yield both[len(before) :] if both[: len(before)] == before else own
            before = own
