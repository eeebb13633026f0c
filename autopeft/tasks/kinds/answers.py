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
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    kept_arrays,
    tokens_of,
)

__all__ = ["ANSWER_CUT", "IGNORED", "PROMPT_CUT", "EncodedAnswers", "EncodedWriting", "encode_conversations"]

IGNORED = -100
"""Label of a token that is not learnt, as transformers has it."""
_FORMAT = 2
_CHUNK = 1_000
PROMPT_CUT, ANSWER_CUT = 1, 2
"""Of `EncodedWriting.row_cut`."""
_SOME_ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class EncodedWriting(EncodedSplit):
    """Tokens of rows to which a model writes answers.

    Attributes:
        row_cut: of each row 0 where it is whole, else the sum of 1 where what is asked was cut, and 2 where
            the answer was.
        answers: the last answer of each row as a text, (rows,) objects; empty where it has none.
        tokenizer: what the tokens are of.
        longest: tokens of an answer that is written, at most, where nothing else is asked for.
    """

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
class EncodedAnswers(EncodedWriting):
    """Tokens of conversations.

    Attributes:
        learnt: whether each token is, (tokens,).
        prompts: tokens of each row before its last answer, (rows,); all of them where it has none.

    `labels` are the numbers of learnt tokens, (rows,) int64. A row whose answer was cut has lost its prompt
    before, as far as it could, and its `row_cut` is 2.
    """

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

    def take(self, rows: Indices) -> EncodedAnswers:
        """See `EncodedSplit.take`."""
        plain = super().take(rows)
        own = {
            "learnt": self.learnt[self.places(rows)],
            "row_cut": self.row_cut[rows],
            "prompts": self.prompts[rows],
            "answers": self.answers[rows],
        }
        return EncodedAnswers(**{**vars(plain), **own})

    def all_learnt(self) -> EncodedAnswers:
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
        flat, inside = self.layout(np.asarray(rows, dtype=np.int64), device)
        labels = np.full(inside.shape, IGNORED, dtype=np.int64)
        labels[inside] = np.where(self.learnt[flat], self.ids[flat], IGNORED)
        return {**batch, "labels": torch.from_numpy(labels).to(device, non_blocking=True)}

    def with_answers(
        self, rows: Sequence[int], answers: Sequence[Sequence[int]], room: int | None
    ) -> EncodedAnswers:
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
) -> EncodedAnswers:
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
    assert tokenizer.pad_token_id is not None
    template = template_of(tokenizer)
    arrays = kept_arrays(
        lambda: _content_hash(conversations, tokenizer, template, max_length, ended=ended),
        len(conversations),
        lambda: _tokenise(conversations, tokenizer, template, max_length, ended=ended),
        cached=cached,
    )
    counts = np.add.reduceat(np.asarray(arrays["learnt"], dtype=np.int64), arrays["offsets"][:-1])
    if not counts.any() and not asked:
        raise DataError(f"None of {len(counts):,} rows has a token to be learnt within {max_length} tokens.")
    _tell_cut(np.asarray(arrays["row_cut"]), max_length)
    answers = np.empty(len(conversations), dtype=object)
    answers[:] = [m[-1]["content"] if m[-1]["role"] == "assistant" else "" for m in conversations]
    offsets = np.asarray(arrays["offsets"])
    prompts = _prompts(np.asarray(arrays["learnt"]), offsets)
    longest = max(1, int((np.diff(offsets) - prompts).max()))
    if asked:
        prompts = _continued(prompts, conversations, np.diff(offsets), arrays, tokenizer)
    return EncodedAnswers(
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
        answers=answers,
        tokenizer=tokenizer,
        longest=longest,
    )


def _tell_cut(row_cut: NDArray[np.int8], max_length: int) -> None:
    if cut := int((row_cut == ANSWER_CUT).sum()):
        warn_once(
            f"{cut:,} of {len(row_cut):,} answers do not fit into {max_length} tokens and lose their end; "
            "raise --max-length (max_length=…)."
        )


def _prompts(learnt: NDArray[np.bool_], offsets: Indices) -> Indices:
    """Tokens of each row up to the last that is not learnt, (rows,); the first token of a row never is."""
    plain = np.flatnonzero(~learnt)
    last = plain[np.searchsorted(plain, offsets[1:]) - 1]
    return np.asarray(last + 1 - offsets[:-1], dtype=np.int64)


def _continued(
    prompts: Indices,
    conversations: Sequence[Conversation],
    lengths: Indices,
    arrays: Mapping[str, NDArray[Any]],
    tokenizer: PreTrainedTokenizerBase,
) -> Indices:
    """The same, but all of a plain text without the token that ends it."""
    plain = np.asarray([messages[0]["role"] == "assistant" for messages in conversations])
    ends = np.asarray(arrays["ids"])[np.asarray(arrays["offsets"])[1:] - 1] == tokenizer.eos_token_id
    return np.where(plain, np.maximum(lengths - ends, 1), prompts)


def _content_hash(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    max_length: int,
    *,
    ended: bool,
) -> str:
    what = "answers" if ended else "answers without ends"
    digest = hashlib.sha256(f"{what} {_FORMAT} {max_length} {fingerprint_of(tokenizer)}\n".encode())
    digest.update(json.dumps(template).encode() + b"\n")
    for messages in conversations:
        digest.update(json.dumps(messages).encode() + b"\n")
    return digest.hexdigest()


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
    found = list(_rendered_parts(messages, ChatTemplate(tokenizer, template)))
    return found if ended else [*found[:-1], _bare(found[-1], messages[-1]["content"])]


def _bare(part: _Part, answer: str) -> _Part:
    """The part of an answer without what a template writes behind it; a template that writes the answer
    otherwise keeps it."""
    before, found, _ = part.text.partition(answer.strip())
    return _Part(before + found, part.learnt) if found else part


def _joined(messages: Conversation, *, ended: bool) -> list[_Part]:
    """The messages one after the other, an answer with the end token unless it is an example's. A line break
    parts them where neither has white space there, and no end token stands between them; it belongs to the
    prompt."""
    parts: list[_Part] = []
    for message in messages:
        text, answer = message["content"], message["role"] == "assistant"
        learnt = answer and _is_learnt(message)
        if parts and not parts[-1].ended and not parts[-1].text[-1].isspace() and not text[0].isspace():
            if parts[-1].learnt:
                text = "\n" + text
            else:
                parts[-1] = _Part(parts[-1].text + "\n")
        parts.append(_Part(text, learnt, ended and answer and not message.get("example")))
    return parts


def _is_learnt(message: dict[str, Any]) -> bool:
    """Whether an answer is; those of weight 0, as examples have, are not."""
    return bool(message.get("weight", 1))


def _rendered_parts(messages: Conversation, template: ChatTemplate) -> Iterator[_Part]:
    """What the template writes before each answer, and the answer with what ends it."""
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
        yield _Part(before.removeprefix(done))
        yield _Part(answer, learnt=_is_learnt(message))
        done = before + answer


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
    begin = _beginning(tokenizer)
    rows: list[tuple[list[int], list[bool], int]] = []
    for start in range(0, len(conversations), _CHUNK):
        chunk = conversations[start : start + _CHUNK]
        parts = [_parts(messages, tokenizer, template, ended=ended) for messages in chunk]
        rendered = [template is not None and messages[0]["role"] != "assistant" for messages in chunk]
        tokens = _tokens_of_parts(parts, rendered, tokenizer)
        for row, whole in zip(parts, rendered, strict=True):
            rows.append(_cut(*_row(row, tokens, tokenizer, [] if whole else begin), tokenizer, max_length))
    lengths = [len(ids) for ids, _, _ in rows]
    return {
        "ids": np.concatenate([np.asarray(ids, dtype=np.int32) for ids, _, _ in rows]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "learnt": np.concatenate([np.asarray(learnt, dtype=np.bool_) for _, learnt, _ in rows]),
        "row_cut": np.asarray([cut for _, _, cut in rows], dtype=np.int8),
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


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer itself puts before a text, if any."""
    begin = tokenizer.bos_token_id
    found = list(tokenizer("a")["input_ids"])[:1]
    return found if begin is not None and found == [begin] else []


def _row(
    parts: Sequence[_Part], tokens: Iterator[list[int]], tokenizer: PreTrainedTokenizerBase, begin: list[int]
) -> tuple[list[int], list[bool]]:
    """Tokens of a row, and whether each is learnt."""
    ids, learnt = list(begin), [False] * len(begin)
    for part in parts:
        new = list(next(tokens))
        if part.ended:
            new.append(int(tokenizer.eos_token_id))
        ids += new
        learnt += [part.learnt] * len(new)
    # A tokenizer may give nothing for a text; one padding token keeps the row.
    return (ids, learnt) if ids else ([int(tokenizer.pad_token_id)], [False])


def _cut(
    ids: list[int], learnt: list[bool], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[bool], int]:
    """A row within `max_length` tokens, and what was cut of it."""
    over = len(ids) - max_length
    cut = 0
    if over > 0:
        answer = next((i for i in range(len(ids) - 1, -1, -1) if not learnt[i]), -1) + 1
        kept = 1 if ids[0] == tokenizer.bos_token_id else 0
        # One token has to stand before the answer, or its first would be predicted by nothing.
        gone = min(over, max(answer - max(kept, 1), 0))
        ids, learnt = ids[:kept] + ids[kept + gone :], learnt[:kept] + learnt[kept + gone :]
        cut = ANSWER_CUT if gone < over else PROMPT_CUT
    ids, learnt = ids[:max_length], learnt[:max_length]
    return ids, [False, *learnt[1:]], cut
