"""Merging where the backbone has no place for what is merged: biases that linear maps and norms lack."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, snapshot, tiny_inputs, tiny_model
from transformers import LlamaForCausalLM, PreTrainedModel

from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

LORA = {"lora": {"rank": 2, "sites": ["q", "down"]}}


def _attached(model: PreTrainedModel, *items: Any, extra: tuple[Any, ...] = ()) -> Hybrid:
    body = {"autopeft": 2, "name": "m", "layers": [{"attach": list(items)}], "model": list(extra)}
    hybrid = attach(model, Recipe.from_dict(body), seed=0)
    randomise(hybrid.root)
    return hybrid


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_everything_that_merges_merges_together(name: str) -> None:
    """Norm shifts reach the biases of maps that other methods have changed as well."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    items = [LORA, "ssf", "ia3", {"kadaptation": {"phm_dim": 4, "scale": 4}}, {"dora": {"sites": ["k"]}}]
    hybrid = _attached(model, *items)
    expected = logits(model, inputs)
    assert not torch.allclose(expected, logits(tiny_model(name), inputs), atol=1e-2)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=5e-5, rtol=1e-4)


def test_what_is_merged_is_not_merged_again() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = _attached(model, LORA)
    expected = logits(hybrid.merge(), inputs)
    with pytest.raises(UsageError, match="in the backbone's weights already"):
        hybrid.merge()
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_chain_hands_a_new_bias_on(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name)
    chain = [{"kadaptation": {"phm_dim": 4, "scale": 4, "sites": ["q"]}}, {"ssf": {"sites": ["q", "v"]}}]
    hybrid = _attached(model, {"chain": chain})
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


def test_the_norm_before_cross_attention_is_read_by_its_queries_alone() -> None:
    model, inputs = tiny_model("t5"), tiny_inputs("t5")
    before = set(model.state_dict())
    hybrid = _attached(model, {"ssf": {"sites": ["cross_attention_norm"]}})
    expected = logits(model, inputs)
    merged = hybrid.merge()
    queries = {f"decoder.block.{i}.layer.1.EncDecAttention.q.bias" for i in range(3)}
    assert set(merged.state_dict()) - before == queries
    torch.testing.assert_close(logits(merged, inputs), expected, atol=3e-5, rtol=1e-4)


def test_no_bias_is_made_where_none_is_needed() -> None:
    model = tiny_model("llama")
    before = set(model.state_dict())
    merged = _attached(model, LORA, "ia3", {"dora": {"sites": ["k"]}}).merge()
    assert set(merged.state_dict()) == before


def test_a_llama_with_new_biases_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    merged = _attached(model, {"ssf": {"sites": ["q", "v", "attention_norm"]}}).merge()
    expected = logits(merged, inputs)
    assert merged.config.attention_bias
    assert not merged.config.mlp_bias
    o_bias = merged.get_parameter("model.layers.0.self_attn.o_proj.bias")
    assert not o_bias.any()  # the flag brings it along
    assert merged.get_parameter("model.layers.0.self_attn.k_proj.bias").any()  # reads the norm
    assert (
        o_bias.requires_grad == merged.get_parameter("model.layers.0.self_attn.o_proj.weight").requires_grad
    )
    merged.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), expected)


def test_new_biases_that_no_config_names_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="autopeft"):
        _attached(tiny_model("t5"), "ssf").merge()
        assert "T5ForConditionalGeneration biases" in caplog.text
        assert "Hybrid.save" in caplog.text
        caplog.clear()
        _attached(tiny_model("bert"), "ssf").merge()
        _attached(tiny_model("llama"), "ssf").merge()
        assert caplog.text == ""


def test_biases_are_like_their_weights_in_dtype() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    merged = _attached(model, "ssf").merge()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


def test_a_norm_whose_readers_are_not_known_is_refused_and_nothing_changes() -> None:
    model = tiny_model("llama")
    hybrid = _attached(model, {"ssf": {"sites": ["ffn_norm"]}})
    before = snapshot(model)
    for name in ("up", "gate_proj"):
        del hybrid.injection.places[f"decoder-1-{name}"]
    with pytest.raises(CompositionError, match=r"decoder\.1\.ffn_norm has no bias"):
        hybrid.merge()
    assert hybrid.attached
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_was_set_while_it_was_attached_stays_when_it_is_merged() -> None:
    """The Trainer writes its tokenizer's padding token into the config."""
    for end, padding in (("merge", 5), ("detach", None)):
        model = tiny_model("llama")
        model.config.pad_token_id = None
        hybrid = _attached(model, LORA)
        model.config.pad_token_id = 5
        model.config.id2label = {0: "no", 1: "yes"}
        getattr(hybrid, end)()
        assert model.config.pad_token_id == padding
        assert (model.config.id2label == {0: "no", 1: "yes"}) == (end == "merge")
        assert model.config._attn_implementation == tiny_model("llama").config._attn_implementation
