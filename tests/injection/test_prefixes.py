"""Prefixes of decoders, against the models' own code with the prefix in a cache and masks made by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from injection.test_traps import prefix_recipe
from support.families.decoders import DECODERS
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from autopeft.backbones import base_model_of, spec_of
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.undispatched import dispatching
from autopeft.method import Call, Context

LENGTH, ROWS = 12, 3  # longer than the windows of tiny models
KIN: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in DECODERS if name != "bloom"},
    "falcon by head": ("falcon", {"multi_query": False}),
    "falcon by group": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
CASES = [(name, attention) for name, (family, _) in KIN.items() for attention in DECODERS[family].attentions]


def prefixed(name: str, attention: str = "sdpa", **options: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name, attention=attention, **options)
    hybrid = attach(model, prefix_recipe(ROWS), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


def pairs(hybrid: Hybrid) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (1, rows, width) of each layer."""
    module, call = cast(Any, hybrid.modules["prefix_tuning"]), Call(Context())
    found = [module.key_value(s, torch.zeros(1, 1, 32), call) for s in hybrid.graph.sites()]
    return [(keys.detach(), values.detach()) for keys, values in found]


def masks(model: PreTrainedModel, fused: bool) -> Any:
    """Masks (1, 1, tokens, rows + tokens) in which all see the prefix, and of the text what they would."""
    at, window = torch.arange(LENGTH), spec_of(model.config).stacks[0].window
    causal = at[None] <= at[:, None]
    near = causal if window is None else causal & (at[None] > at[:, None] - window)

    def whole(seen: Tensor) -> Tensor:
        seen = torch.nn.functional.pad(seen, (ROWS, 0), value=True)[None, None]
        return seen if fused else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    if getattr(model.config, "layer_types", None) is None:
        return whole(near)
    return {"full_attention": whole(causal), "sliding_attention": whole(near)}


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_prefix_is_seen_from_everywhere_and_moves_nothing(name: str, attention: str) -> None:
    """The prefix lies in a cache that slides nowhere, and the text has the positions that it has without."""
    family, options = KIN[name]
    model, hybrid = prefixed(family, attention, **options)
    inputs = {"input_ids": tiny_inputs(family, length=LENGTH)["input_ids"]}
    got = logits(model, inputs)
    cache = DynamicCache()
    for index, pair in enumerate(pairs(hybrid)):
        heads = [t.view(1, ROWS, -1, 8).transpose(1, 2).expand(2, -1, -1, -1) for t in pair]
        cache.update(*heads, index)
    bare = tiny_model(family, attention=attention, **options)
    own = {"position_ids": torch.arange(LENGTH)[None], "cache": cache}
    expected = bare(**inputs, attention_mask=masks(model, attention == "sdpa"), **own).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, logits(bare, inputs), atol=1e-2)


def test_beside_a_prefix_bloom_counts_distances_and_none_to_the_prefix() -> None:
    model, hybrid = prefixed("bloom", "eager")
    ids = tiny_inputs("bloom", length=LENGTH)["input_ids"]
    read, made = [], []
    attention = cast(Any, base_model_of(model)).h[0].self_attention
    attention.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    attention.dense.register_forward_pre_hook(lambda m, args: made.append(args[0]))
    model(input_ids=ids)
    keys, values = (t[0].view(ROWS, 4, 8) for t in pairs(hybrid)[0])
    for row in range(2):
        fused = attention.query_key_value(read[0])[row].view(LENGTH, 4, 3, 8)
        for head in range(4):
            q, k, v = (fused[:, head, part] for part in range(3))
            slope = 2.0 ** (-8 * (head + 1) / 4)
            at = torch.arange(LENGTH)
            scores = q @ k.T / 8**0.5 + slope * (at[None] - at[:, None])
            scores = scores.masked_fill(at[None] > at[:, None], float("-inf"))
            front = q @ keys[:, head].T / 8**0.5
            weights = torch.cat([front, scores], dim=1).softmax(1)
            expected = weights @ torch.cat([values[:, head], v])
            torch.testing.assert_close(
                made[0][row].view(LENGTH, 4, 8)[:, head], expected, atol=1e-5, rtol=1e-4
            )


def test_the_forward_that_stands_in_for_blooms_is_its_own() -> None:
    model = tiny_model("bloom", attention="eager")
    inputs = tiny_inputs("bloom", pad=3)
    kwargs: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    expected, written = logits(model, inputs), model.generate(**inputs, **kwargs)
    own = dispatching(layer.self_attention for layer in cast(Any, base_model_of(model)).h)
    assert len(own) == 3
    assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(model.generate(**inputs, **kwargs), written)
