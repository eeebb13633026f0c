"""Prompts that lie among the tokens: what follows them in positions, masks, outputs and generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import DECODERS, randomise, tiny_inputs, tiny_model
from transformers import PreTrainedModel

from autopeft.errors import CompositionError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

WORDS = [5, 9, 17]


def recipe(*slots: dict[str, Any], length: int = 3) -> Recipe:
    entry = {"p_tuning": {"length": length, "slots": list(slots), "encoder": "mlp"}}
    return Recipe.from_dict({"autopeft": 2, "name": "p", "model": [entry]})


def of_words(model: PreTrainedModel, made: Recipe) -> Hybrid:
    """The rows are the embeddings of real words."""
    hybrid = attach(model, made)
    module: Any = hybrid.modules["p_tuning"]
    module.deploy()
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        module.embedding.copy_(table[torch.tensor(WORDS)])
    return hybrid


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "mpnet"])
def test_rows_among_the_tokens_are_feeding_those_words_there(name: str) -> None:
    """Positions count on, whether the model or the caller makes them."""
    slots = ({"length": 1}, {"length": 1, "offset": 2}, {"length": 1, "anchor": "end", "offset": 1})
    model, inputs = tiny_model(name), tiny_inputs(name)
    ids = inputs["input_ids"]
    words = torch.tensor(WORDS)[:, None].expand(-1, 2)[..., None]
    longer = torch.cat([words[0], ids[:, :2], words[1], ids[:, 2:6], words[2], ids[:, 6:]], dim=1)
    states = model.base_model(input_ids=longer).last_hidden_state
    expected = states[:, [1, 2, 4, 5, 6, 7, 9]]
    of_words(model, recipe(*slots))
    torch.testing.assert_close(model.base_model(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    embeds = model.get_input_embeddings()(ids)
    given = model.base_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(given.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    if name in ("gpt2", "llama", "bert"):
        positions = torch.arange(7).expand(2, -1)
        placed = model.base_model(**inputs, position_ids=positions).last_hidden_state
        torch.testing.assert_close(placed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_in_a_text_that_is_padded_on_the_left(name: str) -> None:
    slots = ({"length": 2, "offset": 1}, {"length": 1, "anchor": "end", "offset": 2})
    model, ids = tiny_model(name), tiny_inputs(name)["input_ids"]
    of_words(model, recipe(*slots))
    alone = model(input_ids=ids[:1, 2:]).logits
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(together[:1, 2:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_generation_goes_on_from_a_cache_where_rows_lie_behind_the_first_tokens(name: str) -> None:
    model = tiny_model(name)
    randomise(attach(model, recipe({"length": 1}, {"length": 2, "offset": 2}), seed=0).root, std=0.5)
    inputs = {k: v for k, v in tiny_inputs(name, length=5).items() if k != "decoder_input_ids"}
    if not model.config.is_encoder_decoder:
        inputs["attention_mask"][0, :2] = 0
    settings: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(**inputs, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(**inputs, use_cache=False, **settings))


@pytest.mark.parametrize("masked", [True, False])
def test_rows_behind_more_tokens_than_a_text_has_move_while_it_grows(masked: bool) -> None:
    model = tiny_model("llama")
    randomise(attach(model, recipe({"length": 1}, {"length": 2, "offset": 4}), seed=0).root, std=0.5)
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    for tokens, fits in ((4, True), (3, False)):
        inputs = tiny_inputs("llama", length=tokens + 2 * masked)
        if masked:
            inputs["attention_mask"][0, :2] = 0
        else:
            del inputs["attention_mask"]
        plain = model.generate(**inputs, use_cache=False, **settings)
        if fits:
            assert torch.equal(model.generate(**inputs, use_cache=True, **settings), plain)
            continue
        with pytest.raises(CompositionError, match=r"first 4 tokens of a text that had 3, .*use_cache=False"):
            model.generate(**inputs, use_cache=True, **settings)


def test_a_prompt_at_the_end_of_a_text_that_grows_is_refused_a_cache() -> None:
    model = tiny_model("llama")
    attach(model, recipe({"length": 3, "anchor": "end"}), seed=0)
    inputs = tiny_inputs("llama")
    with pytest.raises(CompositionError, match="use_cache=False"):
        model.generate(**inputs, max_new_tokens=3, use_cache=True)
    assert model.generate(**inputs, max_new_tokens=3, use_cache=False, eos_token_id=None).shape == (2, 10)


_PACKED = {
    "prompt_tuning": {"prompt_tuning": {"length": 2}},
    "rows among the tokens": {
        "p_tuning": {"length": 2, "encoder": "mlp", "slots": [{"length": 2, "offset": 1}]}
    },
    "dept": {"dept": {"length": 2, "rank": 2}},
    "aprompt": {"aprompt": {"length": 2}},
    "smop": {"smop": {"length": 2}},
    "lpt": {"lpt": {"length": 2, "layer": 1}},
}


@pytest.mark.parametrize("item", _PACKED.values(), ids=_PACKED)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_several_texts_in_a_row_are_refused(name: str, item: dict[str, Any]) -> None:
    """transformers keeps them apart where positions begin again: all but the first would be without."""
    model, ids = tiny_model(name), tiny_inputs(name)["input_ids"]
    attach(model, Recipe.from_dict({"name": "p", "model": [item]}), seed=0)
    again = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2)
    with pytest.raises(CompositionError, match="give each text a row of its own"):
        model(input_ids=ids, position_ids=again, use_cache=False)
    plain = model(input_ids=ids, use_cache=False).logits
    on = torch.arange(7).expand(2, -1)
    assert torch.equal(model(input_ids=ids, position_ids=on, use_cache=False).logits, plain)


def test_prefixes_and_late_tables_stand_before_each_of_several_texts() -> None:
    prefix = {"layers": [{"attach": [{"prefix_tuning": {"length": 2}}]}]}
    table = {"model": [{"lpt": {"length": 2, "layer": 1, "generator": "none", "dropout": 0.0}}]}
    for body in (prefix, table):
        model, ids = tiny_model("llama"), tiny_inputs("llama")["input_ids"][:1]
        hybrid = attach(model, Recipe.from_dict({"name": "p", **body}), seed=0)
        randomise(hybrid.root, std=0.3)
        again = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
        packed = model(input_ids=ids, position_ids=again, use_cache=False).logits
        apart = [model(input_ids=part, use_cache=False).logits for part in (ids[:, :3], ids[:, 3:])]
        torch.testing.assert_close(packed, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-4)
