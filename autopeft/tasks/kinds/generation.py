"""Texts that a language model writes: prompts in batches, padded on the left, token after token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from autopeft.assets import warn_once
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid.modules import ROOT
from autopeft.hybrid.prediction import predictive, several_models

__all__ = ["Generation", "generate", "room_of"]


@dataclass(frozen=True)
class Generation:
    """How texts are generated.

    Attributes:
        max_new_tokens: tokens of a text at most; `None`: as many as the longest answer to be learnt had.
        temperature: 0 takes the most probable token each time; above 0 tokens are drawn, from logits that are
            divided by it.
        top_p: tokens are drawn among the most probable ones that have this probability together.
        seed: of the draws.

    Raises:
        UsageError: a value is out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is at least 1, but got {self.max_new_tokens}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is a number from 0, but got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p lies above 0, at most 1, but got {self.top_p}.")


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    *,
    most: int,
    ends: Sequence[int],
    pad: int,
    begin: int | None = None,
    mean: Callable[[Tensor, int], Tensor] | None = None,
    device: str | torch.device = "cpu",
    streamer: Any = None,
) -> list[list[int]]:
    """The tokens that a model writes behind each prompt, up to what ends an answer, which is left out.

    Prompts are padded on the left, and their positions count from their own first token. Keys and values of
    earlier tokens are kept where all that is attached works so. Else each token reads the whole row anew:
    under a composition that looks at the sequence as a whole, and where a hybrid stands for several models,
    whose mean distribution is written from (see `autopeft.hybrid.predictive`).

    Args:
        model: in eval mode.
        prompts: tokens, at least one each.
        most: new tokens at most, where `how` does not say.
        ends: tokens that end an answer.
        pad: token that the rows are filled with.
        begin: token that stays in front of a prompt that is cut.
        mean: see `predictive`.
        streamer: is told each token of a single prompt (a `BaseStreamer` of transformers).

    Raises:
        UsageError: the model cannot generate.
    """
    live: Any = model
    if not getattr(live, "can_generate", lambda: False)():
        raise UsageError(f"{type(model).__name__} cannot generate: it is no language model.")
    new = how.max_new_tokens or most
    prompts, new = _within(prompts, new, room_of(model), begin)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    config = GenerationConfig(
        max_new_tokens=new,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        **_sampling(how),
    )
    written = _run(live, {"input_ids": ids, "attention_mask": mask}, config, mean, streamer)[:, width:]
    return [_ended(row, ends) for row in written.tolist()]


def room_of(model: nn.Module) -> int | None:
    """Tokens that a model has positions for, those of attached prompts left out; `None` without a limit."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    attached: list[Any] = list(getattr(model, ROOT, nn.Module()).children())
    return max(2, limit - sum(int(part.length) for part in attached if hasattr(part, "prompt")))


def _within(
    prompts: Sequence[Sequence[int]], new: int, room: int | None, begin: int | None
) -> tuple[list[list[int]], int]:
    """Prompts and number of new tokens that fit the model's positions together. New tokens take half of them
    at most, and a prompt that is too long beside them loses its beginning."""
    if room is None:
        return [list(row) for row in prompts], new
    new = min(new, max(1, room // 2))
    longest, found, cut = room - new, [], 0
    for row in prompts:
        kept = [*row[:1]] if begin is not None and row[0] == begin and longest > 1 else []
        whole = len(row) <= longest
        cut += not whole
        found.append(list(row) if whole else [*kept, *row[len(row) - longest + len(kept) :]])
    if cut:
        warn_once(
            f"Prompts of more than {longest} tokens lose their beginning: the model has {room} positions, of "
            f"which answers take up to {new}."
        )
    return found, new


def _sampling(how: Generation) -> dict[str, Any]:
    if not how.temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}


def _ended(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to the first that ends an answer."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


def _run(model: Any, inputs: dict[str, Tensor], config: GenerationConfig, mean: Any, streamer: Any) -> Tensor:
    root = getattr(model, ROOT, None)
    several = root is not None and any(map(several_models, root.modules()))
    if not several:
        try:
            if streamer is not None:  # what was told cannot be taken back: the cache is tried before
                _call(model, inputs, config, cached=True, new=2)
            return _call(model, inputs, config, cached=True, streamer=streamer)
        except CompositionError:  # what looks at the whole sequence says so at the second token
            pass
    with _mean_of_models(model, mean) if several else nullcontext():
        return _call(model, inputs, config, cached=False, streamer=streamer)


def _call(
    model: Any,
    inputs: dict[str, Tensor],
    config: GenerationConfig,
    *,
    cached: bool,
    new: int | None = None,
    streamer: Any = None,
) -> Tensor:
    """One call of transformers' `generate`. What the model's own configuration says of it (penalties, beams,
    …) is left out: it would fill in what is not said here."""
    own, said = model.generation_config, GenerationConfig(**{**config.to_diff_dict(), "use_cache": cached})
    if new is not None:
        said.max_new_tokens = new
    model.generation_config = said
    try:
        found: Tensor = model.generate(**inputs, streamer=streamer)
    finally:
        model.generation_config = own
    return found


@contextmanager
def _mean_of_models(model: Any, mean: Any) -> Iterator[None]:
    """Within, a forward gives the logits of its last position on the mean over what the hybrid stands for."""
    plain, own = model.forward, vars(model).get("forward")

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []

        def run() -> Tensor:
            outputs.append(plain(*args, **kwargs))
            logits: Tensor = outputs[-1].logits[:, -1]
            return logits

        logits = predictive(model, run, mean=mean)
        outputs[-1].logits = logits[:, None]
        return outputs[-1]

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
