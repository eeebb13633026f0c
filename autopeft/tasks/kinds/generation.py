"""Texts that a language model writes, token after token: behind prompts, or to what its encoder reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PretrainedConfig

from autopeft.assets import warn_once
from autopeft.errors import UsageError
from autopeft.graph import build_graph, is_rowwise_in, is_rowwise_on_logits
from autopeft.hybrid.caching import generates_from_cache
from autopeft.hybrid.modules import ROOT
from autopeft.hybrid.prediction import predictive, stands_for_several
from autopeft.method import LimitsTexts, reserved_rows

__all__ = [
    "CACHES",
    "LEAST",
    "Generation",
    "beginning",
    "generate",
    "is_token",
    "length_alike",
    "longest_prompt",
    "read_once",
    "room_of",
]

_MOST_BEAMS = 100


@dataclass(frozen=True)
class Generation:
    """How texts are generated.

    Attributes:
        max_new_tokens: tokens of a text at most; `None`: as many as the longest answer to be learnt had.
        temperature: 0 takes the most probable token each time; above 0 tokens are drawn, from logits that are
            divided by it.
        top_p: tokens are drawn among the most probable ones that have this probability together.
        seed: of the draws.
        beams: texts that are followed side by side, of which the most probable is taken; 1 for none.

    Raises:
        UsageError: a value is out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    beams: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is at least 1, but got {self.max_new_tokens}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is a number from 0, but got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p lies above 0, at most 1, but got {self.top_p}.")
        if not 1 <= self.beams <= _MOST_BEAMS:
            raise UsageError(f"beams is from 1 to {_MOST_BEAMS}, but got {self.beams}.")
        if self.beams > 1 and self.temperature:
            raise UsageError(
                f"Beams follow the most probable texts and draw nothing, but got beams={self.beams} and "
                f"temperature={self.temperature}; leave one of them out."
            )


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
    """The tokens that a model writes behind each prompt, with the one that ends the answer where it came to
    its end.

    Prompts are padded on the left, and their positions count from their own first token. What all of them
    begin with is read once, where what is attached acts position by position. An encoder reads them padded on
    the right, and its decoder begins as the model's own configuration says (`decoder_start_token_id`,
    `forced_bos_token_id`). Keys and values of earlier tokens are kept where all that is attached works so.
    Else each token reads the whole row anew: under a composition that looks at the sequence as a whole, under
    a prompt that depends on the text or moves with its end (see `generates_from_cache`), and where a hybrid
    stands for several models, from whose mean distribution is written (see `predictive`).

    Args:
        model: in eval mode.
        prompts: tokens, at least one each.
        most: new tokens at most, where `how` does not say.
        ends: tokens that end an answer.
        pad: token that the rows are filled with.
        begin: token that stays in front of a prompt that is cut.
        mean: see `predictive`.
        streamer: is told each token of a single prompt (a `BaseStreamer` of transformers); not of beams.

    Raises:
        UsageError: the model cannot generate.
    """
    live: Any = model
    if not getattr(live, "can_generate", lambda: False)():
        raise UsageError(f"{type(model).__name__} cannot generate: it is no language model.")
    new, room = how.max_new_tokens or most, room_of(model)
    encodes, several = is_encoder_decoder(model), stands_for_several(model)
    fitted = _fit_apart(prompts, new, room) if encodes else _fit_together(prompts, new, room, begin)
    if min((own for _, own in fitted), default=new) < new:
        warn_once(f"Some answers get fewer than {new} tokens: the model has {room} positions.")
    options: dict[str, Any] = {
        "num_beams": how.beams,
        "pad_token_id": pad,
        "eos_token_id": list(ends) or None,
    }
    options["do_sample"] = bool(how.temperature)
    if how.temperature:
        options |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    if encodes:
        options |= beginning(live.config, live.generation_config)
        if "decoder_start_token_id" not in options:
            raise UsageError(
                f"{type(model).__name__} does not know what its decoder begins with; set "
                "decoder_start_token_id in its config.json."
            )

    found: dict[int, list[int]] = {}
    for limit in sorted({own for _, own in fitted}):  # what a row gets does not depend on the others
        rows = [i for i, (_, own) in enumerate(fitted) if own == limit]
        texts = [fitted[i][0] for i in rows]
        width, shortest = max(map(len, texts)), min(map(len, texts))
        cached = not several and generates_from_cache(model, 1 if encodes else shortest)

        # Rows are filled behind the tokens that all begin with, an encoder's at their end.
        alike = length_alike(model, texts) if cached and not encodes and how.beams == 1 else 0
        ids, mask = [], []
        for row in texts:
            at, more = len(row) if encodes else alike, width - len(row)
            ids.append([*row[:at], *[pad] * more, *row[at:]])
            mask.append([*[1] * at, *[0] * more, *[1] * (len(row) - at)])
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            **(read_once(model, texts[0][:alike], len(texts), device) if alike else {}),
        }

        # What the model's own configuration says of generation (penalties, beams, …) is left out: it would
        # fill in what is not said here.
        config = GenerationConfig(max_new_tokens=limit, **options)
        own = live.generation_config
        live.generation_config = GenerationConfig(**{**config.to_diff_dict(), "use_cache": cached})
        try:
            with _mean_of_models(model, mean, inputs["input_ids"]) if several else nullcontext():
                written = live.generate(**inputs, streamer=streamer)
        finally:
            live.generation_config = own
        for i, tokens in zip(rows, written[:, 1 if encodes else width :].cpu().tolist(), strict=True):
            stop = next((k for k, token in enumerate(tokens) if token in ends), len(tokens))
            found[i] = tokens[: stop + 1]
    return [found[i] for i in range(len(fitted))]


def is_encoder_decoder(model: Any) -> bool:
    """Whether prompts go to an encoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def beginning(config: PretrainedConfig, generation: GenerationConfig) -> dict[str, Any]:
    """The tokens that a decoder begins with, as far as its configurations name any.

    Raises:
        UsageError: one of them is no token of the model.
    """
    found = {}
    for name, places in (
        ("decoder_start_token_id", (generation, config)),
        ("forced_bos_token_id", (generation,)),
    ):
        token = next((t for t in (getattr(place, name, None) for place in places) if t is not None), None)
        if token is None:
            continue
        if not is_token(token, config):
            raise UsageError(
                f"The model's decoder would begin with {name}={token!r:.40}, and its tokens are 0 to "
                f"{(_vocabulary(config) or 1) - 1}: mend its generation_config.json or config.json."
            )
        found[name] = token
    return found


def is_token(token: Any, config: Any) -> TypeGuard[int]:
    """Whether something is the number of a token of the model with this configuration."""
    size = _vocabulary(config)
    whole = isinstance(token, int) and not isinstance(token, bool) and token >= 0
    return whole and (size is None or token < size)


def _vocabulary(config: Any) -> int | None:
    """How many tokens a model knows, where its configuration says so."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = getattr(text, "vocab_size", None)
    return found if isinstance(found, int) else None


def _fit_apart(prompts: Sequence[Sequence[int]], new: int, room: int | None) -> list[tuple[list[int], int]]:
    """Prompts and numbers of new tokens that fit the positions of an encoder and of a decoder, each by
    itself. A prompt that is too long keeps its last token, which ends it."""
    if room is None:
        return [(list(row), new) for row in prompts]
    if cut := sum(len(row) > room for row in prompts):
        warn_once(f"{cut:,} texts of more than {room} tokens lose their end: the model has {room} positions.")
    found = [list(row) if len(row) <= room else [*row[: room - 1], row[-1]] for row in prompts]
    return [(row, min(new, room - 1)) for row in found]


def room_of(model: nn.Module) -> int | None:
    """Tokens that a model has positions for, those of attached prompts left out, and that what is attached
    takes; `None` without a limit."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [limit] if isinstance(limit, int) else []
    root: Any = getattr(model, ROOT, None)
    if root is not None:
        spec = root.spec
        limits = limits if spec.max_positions is None else [spec.max_positions]
        at_embeddings = [s for s in spec.sites if s.name == "embeddings" and s.stack == spec.stacks[0].name]
        prompts = [part for part in root.children() if hasattr(part, "prompt")]
        rows = sum(reserved_rows(part, at_embeddings) for part in prompts)
        limits = [limit - rows for limit in limits]
        limits += [part.longest_text for part in root.children() if isinstance(part, LimitsTexts)]
    return max(2, min(limits)) if limits else None


def longest_prompt(model: nn.Module, new: int) -> int | None:
    """Tokens of a prompt that a model reads whole before it writes up to `new` more; `None` without a limit.
    Of a decoder's positions new tokens take half at most where a prompt wants the rest."""
    room = room_of(model)
    if room is None or is_encoder_decoder(model):
        return room
    return room - min(new, max(1, room // 2))


def _fit_together(
    prompts: Sequence[Sequence[int]], new: int, room: int | None, begin: int | None
) -> list[tuple[list[int], int]]:
    """Prompts and numbers of new tokens that fit the model's positions together. A prompt that is too long
    beside its new tokens leaves them half of the positions, and loses its beginning where it has more than
    the other half."""
    if room is None:
        return [(list(row), new) for row in prompts]
    least = min(new, max(1, room // 2))
    longest, found, cut = room - least, [], 0
    for row in prompts:
        kept = [*row[:1]] if begin is not None and row[0] == begin and longest > 1 else []
        whole = len(row) <= longest
        cut += not whole
        fitting = list(row) if whole else [*kept, *row[len(row) - longest + len(kept) :]]
        found.append((fitting, min(new, room - len(fitting))))
    if cut:
        warn_once(
            f"Prompts of more than {longest} tokens lose their beginning: the model has {room} positions, of "
            f"which answers take up to {least}."
        )
    return found


@contextmanager
def _mean_of_models(model: Any, mean: Any, read: Tensor) -> Iterator[None]:
    """Within, a forward gives the logits of its last position on the mean over what the hybrid stands for.
    Each of the models has an encoder of its own, which reads `read` (B, L) again."""
    plain, own = model.forward, vars(model).get("forward")

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []
        encoded = kwargs.pop("encoder_outputs", None)
        if encoded is not None:  # beams of a row are neighbours
            kwargs["input_ids"] = read.repeat_interleave(len(encoded[0]) // len(read), dim=0)

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


# What several prompts begin with is read once: one row's keys and values stand for all
# ------------------------------------------------------------------------------------------------------


LEAST = 8
"""Tokens that prompts have to have in common."""

CACHES = ("cache", "past_key_values")
"""What transformers calls keys and values of earlier tokens, later and earlier."""


def length_alike(model: nn.Module, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, and something follows in each; 0 where they are few, or where
    what is attached does not act position by position, so that each row has to be read whole."""
    most = min(map(len, prompts)) - 1
    if len(prompts) == 1 or most < LEAST:
        return 0
    rows = torch.tensor([list(row[:most]) for row in prompts])
    found = int((rows == rows[:1]).all(dim=0).long().cumprod(dim=0).sum())
    return found if found >= LEAST and _may_share(model) else 0


def _may_share(model: Any) -> bool:
    """Prompts are filled up behind what they begin with. So positions must be given, and a window of
    attention would reach less far back."""
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None and getattr(
        config, "use_sliding_window", True
    )
    if windowed or "position_ids" not in signature(model.base_model.forward).parameters:
        return False
    root: Any = getattr(model, ROOT, None)
    if root is None:
        return True
    graph = build_graph(root.recipe, root.spec)
    if any(entry.traits.changes_length for entry in graph.entries.values()):
        return False
    return is_rowwise_on_logits(graph) and all(
        is_rowwise_in(graph, stack.name, layer) for stack in root.spec.stacks for layer in range(stack.layers)
    )


@torch.no_grad()
def read_once(model: Any, tokens: Sequence[int], rows: int, device: str | torch.device) -> dict[str, Any]:
    """The keys and values of these tokens for so many rows, as transformers' `generate` takes them; nothing
    where the model keeps none."""
    base = model.base_model
    name = next((n for n in CACHES if n in signature(base.forward).parameters), None)
    if name is None:
        return {}
    cache = DynamicCache(config=model.config)
    base(input_ids=torch.tensor([list(tokens)], device=device), use_cache=True, **{name: cache})
    if cache.get_seq_length() != len(tokens):
        return {}
    cache.batch_repeat_interleave(rows)
    return {name: cache}
