"""A language model that answers: prompts as tokens or as messages, answers as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from autopeft.errors import UsageError
from autopeft.tasks.kinds.chat_templates import TurnEnd, turn_end
from autopeft.tasks.kinds.generation import Generation, generate, is_token

__all__ = ["Writer", "Written", "own_ends"]


class Written(NamedTuple):
    """An answer: its tokens, with the one that ends it where it came to its end, and its text."""

    tokens: tuple[int, ...]
    text: str


class Writer:
    """A model with its tokenizer, and what ends its answers.

    Args:
        model: in eval mode.
        most: new tokens at most, where nothing else is asked for.
        mean: of logits, where a hybrid stands for several models (see `autopeft.hybrid.predictive`).

    Raises:
        UsageError: the tokenizer's chat template is refused, or it has no padding token.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        most: int,
        mean: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise UsageError("The tokenizer has no padding token: set `tokenizer.pad_token`.")
        self.model, self.tokenizer, self.most, self._mean = model, tokenizer, most, mean
        self.end = turn_end(tokenizer, own_ends(model))
        self._known = 1 + max(tokenizer.get_vocab().values())

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
        told: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The answer to each prompt, without special tokens and white space at its ends.

        Args:
            prompts: tokens, at least one each.
            told: is given the answer to a single prompt piece by piece, as it is written.

        Raises:
            UsageError: the model cannot generate.
        """
        pieces = (
            _Pieces(self.tokenizer, told, self.end, self._known)
            if told is not None and how.beams == 1
            else None
        )
        found = self._generate(prompts, how, device, streamer=pieces)
        texts = [self._text(tokens) for tokens in found]
        if told is not None and how.beams > 1:  # none is the most probable before the end
            told(texts[0])
        return texts

    def sample(
        self, prompts: Sequence[Sequence[int]], how: Generation, *, device: str | torch.device = "cpu"
    ) -> list[Written]:
        """The answer to each prompt as `write` gives it, with its tokens.

        Raises:
            UsageError: the model cannot generate.
        """
        found = self._generate(prompts, how, device, ended=True)
        ends = set(self.end.tokens)
        return [
            Written(tuple(row), self._text([token for token in row if token not in ends])) for row in found
        ]

    def _generate(
        self, prompts: Sequence[Sequence[int]], how: Generation, device: str | torch.device, **told: Any
    ) -> list[list[int]]:
        return generate(
            self.model,
            prompts,
            how,
            most=self.most,
            ends=self.end.tokens,
            pad=int(self.tokenizer.pad_token_id),
            begin=self.tokenizer.bos_token_id,
            mean=self._mean,
            device=device,
            **told,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        # A model may have more tokens than its tokenizer. Tokenizers in Rust leave those out, and tokenizers
        # in Python raise whatever they stumble over.
        known = [token for token in tokens if token < self._known]
        text = str(self.tokenizer.decode(known, skip_special_tokens=True))
        text = text if self.end.text is None else text.partition(self.end.text)[0]
        # A tokenizer that decodes letters by itself may leave halves of surrogate pairs.
        return text.encode("utf-8", "replace").decode("utf-8").strip()


def own_ends(model: nn.Module) -> tuple[int, ...]:
    """The end tokens that a model's own generation configuration names. What is no token of the model is
    left out: it never comes."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = found if isinstance(found, (list, tuple)) else [found]
    return tuple(token for token in several if is_token(token, getattr(model, "config", None)))


class _Pieces(TextStreamer):  # type: ignore[misc]  # transformers gives streamers no types
    """Hands on a text in whole words, up to what ends it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, told: Callable[[str], None], end: TurnEnd, known: int
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._told, self._tokens, self._end, self._known = told, end.tokens, end.text, known
        self._held, self._over = "", False

    def put(self, value: Tensor) -> None:
        """See `TextStreamer`. What ends an answer need not be a special token."""
        left_out = (int(token) in self._tokens or int(token) >= self._known for token in value.flatten())
        if self.next_tokens_are_prompt or not any(left_out):
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """See `TextStreamer`. What may be the beginning of the end is held back."""
        if self._over:
            return
        text = self._held + text
        if self._end is not None:
            before, found, _ = text.partition(self._end)
            self._over = bool(found)
            keep = 0 if self._over or stream_end else len(self._end) - 1
            cut = len(before) - keep if not self._over else len(before)
            text, self._held = (before[: max(cut, 0)], "" if self._over else before[max(cut, 0) :])
        if text:
            self._told(text)
