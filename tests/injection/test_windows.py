"""What stands in front of a text is where it should be for texts that are longer than a sliding window."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from support.cases import recipe_of
from support.families.decoders import DECODERS
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from transformers import PreTrainedModel

from autopeft.backbones import embedded_words, spec_of
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.caching import generates_from_cache
from autopeft.recipe import Recipe

WINDOW, LENGTH, ROWS = 4, 12, 3
SLIDING = tuple(n for n in DECODERS if spec_of(DECODERS[n].config()).stacks[0].window == WINDOW)
ATTENTIONS = [(n, a) for n in SLIDING for a in DECODERS[n].attentions]


def attached(name: str, *items: Any, level: str = "model", **options: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name, **options)
    body = [{"at": "all", "attach": list(items)}] if level == "layers" else list(items)
    hybrid = attach(model, Recipe.from_dict({"autopeft": 2, "name": "w", level: body}), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


def test_families_with_windows_are_tried() -> None:
    assert {"mistral", "qwen2", "gemma2", "gemma3_text", "phi3", "starcoder2"} <= set(SLIDING)


@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
@pytest.mark.parametrize("pad", [0, 5])
def test_prompt_rows_are_as_tokens_in_front_of_the_text(name: str, attention: str, pad: int) -> None:
    """Also behind padding on the left: a window counts positions, whatever lies there."""
    model, hybrid = attached(name, {"prompt_tuning": {"length": ROWS}}, attention=attention)
    bare = tiny_model(name, attention=attention)
    ids = tiny_inputs(name, length=ROWS + LENGTH)["input_ids"]
    words = tiny_inputs(name, batch=1, length=ROWS, seed=7)["input_ids"].expand(2, -1)
    ids[:, :ROWS] = words
    with torch.no_grad():
        hybrid.root.get_parameter("prompt_tuning.table").copy_(
            embedded_words(cast(Any, bare.base_model))[words[0]]
        )
    expected = logits(bare, {"input_ids": ids})[:, ROWS:]
    text = torch.cat([ids.new_zeros(2, pad), ids[:, ROWS:]], dim=1)
    mask = torch.cat([ids.new_zeros(2, pad), torch.ones_like(ids[:, ROWS:])], dim=1)
    got = logits(model, {"input_ids": text, "attention_mask": mask})[:, pad:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SLIDING)
def test_texts_are_written_on_alike_with_padding_and_without_cache(name: str) -> None:
    model, _ = attached(name, {"prompt_tuning": {"length": ROWS}})
    ids = tiny_inputs(name, batch=1, length=LENGTH)["input_ids"]
    padded = {
        "input_ids": torch.cat([ids.new_zeros(1, 5), ids], dim=1),
        "attention_mask": torch.cat([ids.new_zeros(1, 5), torch.ones_like(ids)], dim=1),
    }
    kwargs: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    plain = model.generate(input_ids=ids, use_cache=False, **kwargs)[:, LENGTH:]
    for cached in (True, False):
        assert torch.equal(model.generate(**padded, use_cache=cached, **kwargs)[:, LENGTH + 5 :], plain)


LATE = {"lpt": {"length": 3, "dropout": 0.0, "generator": "none"}}


@pytest.mark.parametrize("name", SLIDING)
def test_rows_in_front_of_a_layer_are_seen_from_everywhere(name: str) -> None:
    """With a mask (a padded batch) and without, below the window's length and above it."""
    for length in (2, 3, LENGTH):
        for attention in DECODERS[name].attentions:
            model, _ = attached(name, LATE, attention=attention)
            bare = logits(model, {"input_ids": tiny_inputs(name, length=length)["input_ids"]})
            padded = logits(model, tiny_inputs(name, length=length, pad=5), length=length)
            torch.testing.assert_close(padded, bare, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SLIDING)
def test_rows_in_front_of_a_layer_would_slide_out_of_its_cache(name: str) -> None:
    model, hybrid = attached(name, LATE)
    assert not generates_from_cache(model, LENGTH)
    inputs = {"input_ids": tiny_inputs(name, length=LENGTH)["input_ids"]}
    with pytest.raises(UsageError, match="slide out of the window"):
        model.generate(**inputs, max_new_tokens=2, use_cache=True)
    hybrid.detach()
    attach(model, recipe_of("prompt"), seed=0)
    assert generates_from_cache(model, LENGTH)
