from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import randomise, tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from torch import nn
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

X = torch.randn(2, 5, 6)


def test_defaults_are_those_of_the_authors_code() -> None:
    """THUDM/P-tuning, LAMA: three times three rows, an LSTM of two layers, d/2 in either direction."""
    module, sites = build("p_tuning", toy_spec(hidden=8))
    assert module.prompt(sites[0], X, CALL).shape == (1, 9, 8)
    lstm = module.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional, lstm.dropout) == (4, 2, True, 0.0)
    assert [type(part) for part in module.mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [part.out_features for part in module.mlp if isinstance(part, nn.Linear)] == [8, 8]


@given(
    toy_specs,
    st.integers(1, 6),
    st.sampled_from(("lstm", "mlp")),
    st.none() | st.integers(1, 7),
    st.integers(1, 3),
)
def test_counts_are_what_it_holds(
    spec: BackboneSpec, length: int, encoder: str, hidden: int | None, layers: int
) -> None:
    deployed, trained, held, held_trained = counted(
        "p_tuning", spec, length=length, encoder=encoder, hidden=hidden, layers=layers
    )
    assert (deployed, trained) == (held, held_trained)


def test_count_of_the_papers_encoder() -> None:
    """d = 768: the LSTM 8(dh + h² + 2h) + 8(2h·h + h² + 2h) with h = d/2, the MLP 2(d² + d)."""
    spec = spec_of(BertConfig())
    method = configured("p_tuning")
    d, h = 768, 384
    encoder = 8 * (d * h + h * h + 2 * h) + 8 * (3 * h * h + 2 * h) + 2 * (d * d + d)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert (count.deployed, count.trained) == (9 * d, 9 * d + encoder)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_rows_equal_pefts_encoder_on_copied_weights(encoder: str) -> None:
    peft = pytest.importorskip("peft")
    module, sites = build("p_tuning", toy_spec(), length=4, encoder=encoder, hidden=5)
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=4,
        token_dim=6,
        num_transformer_submodules=1,
        num_attention_heads=1,
        num_layers=1,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=5,
    )
    theirs = peft.PromptEncoder(config)
    theirs.embedding.weight.data.copy_(module.embedding.data)
    theirs.mlp_head.load_state_dict(module.mlp.state_dict())
    if encoder == "lstm":
        theirs.lstm_head.load_state_dict(module.lstm.state_dict())
    ours, expected = module.prompt(sites[0], X, CALL), theirs(torch.arange(4)[None])
    assert torch.equal(ours, expected)
    upstream = torch.randn(ours.shape)
    (ours * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.equal(module.embedding.grad, theirs.embedding.weight.grad)
    for own, other in zip(module.mlp.parameters(), theirs.mlp_head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_the_whole_model_equals_pefts(encoder: str) -> None:
    peft = pytest.importorskip("peft")
    ours, base, inputs = tiny_model("gpt2"), tiny_model("gpt2"), tiny_inputs("gpt2", pad=2)
    settings = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=7,
    )
    theirs: Any = peft.get_peft_model(base, settings).eval()
    entry = {"p_tuning": {"length": 4, "encoder": encoder, "hidden": 7}}
    hybrid = attach(ours, Recipe.from_dict({"autopeft": 2, "name": "p", "model": [entry]}))
    module: Any = randomise(hybrid.root) or hybrid.modules["p_tuning"]
    encoder_of = theirs.prompt_encoder["default"]
    encoder_of.embedding.weight.data.copy_(module.embedding.data)
    encoder_of.mlp_head.load_state_dict(module.mlp.state_dict())
    if encoder == "lstm":
        encoder_of.lstm_head.load_state_dict(module.lstm.state_dict())
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_what_is_deployed_is_the_prompt_itself(encoder: str, tmp_path: Any) -> None:
    """Bit for bit, and without the encoder, which dropout no longer disturbs."""
    entry = {"p_tuning": {"length": 3, "encoder": encoder, "dropout": 0.5}}
    recipe = Recipe.from_dict({"autopeft": 2, "name": "p", "model": [entry]})
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    hybrid = attach(model, recipe, seed=0)
    expected = model(**inputs).logits
    hybrid.root.train()
    hybrid.save(tmp_path)
    fresh = tiny_model("bert")
    loaded = load(fresh, tmp_path)
    assert torch.equal(fresh(**inputs).logits, expected)
    assert [n for n, _ in loaded.root.named_parameters()] == ["p_tuning.embedding"]


def test_dropout_acts_between_the_layers_of_the_lstm() -> None:
    module, sites = build("p_tuning", toy_spec(), dropout=0.25)
    first, second = (module.eval().prompt(sites[0], X, CALL) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (module.train().prompt(sites[0], X, CALL) for _ in range(2))
    assert not torch.equal(first, second)
    assert module.lstm.dropout == 0.25


def test_gradients_reach_the_lstm() -> None:
    module, sites = build("p_tuning", toy_spec())
    module.prompt(sites[0], X, CALL).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_slots_must_hold_the_rows() -> None:
    slots = [{"length": 3}, {"length": 2, "anchor": "end"}]
    assert [s.length for s in configured("p_tuning", length=5, slots=slots).config.slots] == [3, 2]
    with pytest.raises(ValidationError, match="do not hold 6 rows"):
        configured("p_tuning", length=6, slots=slots)
