"""Specs from configs alone: sites, shapes and counts of every family."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny import ARCHITECTURES, tiny_config, tiny_model
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    Dinov2Config,
    DistilBertConfig,
    GPT2Config,
    LEDConfig,
    MBartConfig,
    MPNetConfig,
    OlmoConfig,
    OPTConfig,
    PersimmonConfig,
    PreTrainedConfig,
    RobertaConfig,
    RoFormerConfig,
    T5Config,
    T5EncoderModel,
)

from autopeft.backbones import Slice, hidden_of_head, layout_of, on_meta, spec_of, spec_of_model
from autopeft.errors import SiteError


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_real_base_model(name: str) -> None:
    config = tiny_config(name)
    base = AutoModel.from_config(config)
    spec = spec_of(config)
    assert spec.parameters == sum(p.numel() for p in base.parameters())
    assert sum(t.size for t in spec.tensors) == spec.parameters
    named = dict(base.named_parameters())
    assert all(tuple(named[t.name].shape) == t.shape for t in spec.tensors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_has_the_sites_of_its_stack(name: str) -> None:
    spec = spec_of(tiny_config(name))
    for stack in spec.stacks:
        assert stack.layers == 3
        first = {s.name for s in spec.sites if s.stack == stack.name and s.layer == 0}
        assert {
            "q",
            "k",
            "v",
            "o",
            "up",
            "down",
            "attention",
            "ffn",
            "layer",
            "attention_norm",
            "ffn_norm",
        } <= first
        assert all(
            {s.name for s in spec.sites if s.stack == stack.name and s.layer == i} == first for i in (1, 2)
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_of_the_embeddings_are_told_apart_from_those_behind_the_layers(name: str) -> None:
    outside = {t.name: t for t in spec_of(tiny_config(name)).tensors if t.layer is None}
    embedding = {n for n, t in outside.items() if t.site == "embeddings"}
    norms = {n for n in embedding if outside[n].role in ("norm_weight", "norm_bias")}
    expected = {
        "gpt2": {"wte.weight"},
        "llama": {"embed_tokens.weight"},
        "t5": set(),  # its table is shared and lies outside of both stacks
        "bart": {
            f"{stack}.{part}"
            for stack in ("encoder", "decoder")
            for part in ("embed_positions.weight", "layernorm_embedding.weight", "layernorm_embedding.bias")
        },
    }.get(name, {n for n in outside if n.startswith("embeddings.")})
    assert embedding == expected
    assert all(outside[n].stack is not None for n in embedding)
    behind = {"gpt2": "ln_f", "llama": "norm", "vit": "layernorm"}
    assert not any(n.startswith(behind.get(name, "-")) for n in norms)
    of_one = 2 if name in ("bert", "roberta", "distilbert", "mpnet", "electra") else 0
    assert len(norms) == (4 if name == "bart" else of_one)


def test_the_norm_behind_the_layers_is_none_of_the_embeddings() -> None:
    """mBART has both beside its layers."""
    tensors = spec_of(MBartConfig(encoder_layers=2, decoder_layers=2)).tensors
    found = {t.name: t.site for t in tensors if t.layer is None and t.name.startswith("decoder.")}
    assert (
        found["decoder.layernorm_embedding.weight"] == found["decoder.embed_positions.weight"] == "embeddings"
    )
    assert found["decoder.layer_norm.weight"] is None


def test_what_lies_behind_the_layers_is_none_of_the_embeddings_of_a_decoder_around_both() -> None:
    """OPT has table, positions, layers, norm and projections in one module."""
    tensors = spec_of(OPTConfig(num_hidden_layers=2, word_embed_proj_dim=16)).tensors
    names = ("embed_tokens", "embed_positions", "project_in")
    assert {t.name for t in tensors if t.site == "embeddings"} == {f"decoder.{n}.weight" for n in names}


@pytest.mark.parametrize("name", ["bert", "albert", "siglip_vision_model", "vit", "gpt2"])
def test_tensors_of_the_pooler_are_at_its_site(name: str) -> None:
    pooler = {"siglip_vision_model": "head.", "gpt2": "-"}.get(name, "pooler.")
    tensors = spec_of(tiny_config(name)).tensors
    assert {t.name for t in tensors if t.site == "pooler"} == {
        t.name for t in tensors if t.name.startswith(pooler)
    }
    assert any(t.site == "pooler" for t in tensors) == (name != "gpt2")
    assert all((t.stack, t.layer) == (None, None) for t in tensors if t.site == "pooler")


@pytest.mark.parametrize(
    ("name", "offset"), [("gemma", 1.0), ("gemma2", 1.0), ("gemma3_text", 1.0), ("llama", 0.0)]
)
def test_gains_of_norms_inside_and_behind_the_layers_have_their_offset(name: str, offset: float) -> None:
    tensors = {t.name: t for t in spec_of(tiny_config(name)).tensors}
    gains = {n for n, t in tensors.items() if t.role == "norm_weight"}
    assert {"norm.weight", "layers.0.input_layernorm.weight"} <= gains
    assert {n: t.offset for n, t in tensors.items()} == {n: offset * (n in gains) for n in tensors}


def test_known_sizes() -> None:
    minilm = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    assert spec_of(minilm).parameters == 22_713_216
    assert spec_of(BertConfig()).parameters == 109_482_240


def test_grouped_query_attention_has_narrow_keys() -> None:
    spec = spec_of(tiny_config("llama"))
    assert spec.find("decoder", 0, "k").out_features == 16  # type: ignore[union-attr]
    assert spec.find("decoder", 0, "q").out_features == 32  # type: ignore[union-attr]
    assert spec.find("decoder", 0, "attention").kv_features == 16  # type: ignore[union-attr]


def test_fused_projection_has_parts_and_a_whole() -> None:
    layout = layout_of(tiny_model("gpt2").base_model)
    places = {p.site.name: p for p in layout.stacks[0].places if p.site.layer == 0}
    parts = [Slice(start, 32) for start in (0, 32, 64)]
    assert [places[n].out_slice for n in ("q", "k", "v", "qkv")] == [*parts, None]
    assert [places[n].site.fused for n in ("q", "k", "v", "qkv")] == [True, True, True, False]
    assert all(places[n].transposed for n in ("q", "o", "up", "down"))
    assert places["qkv"].site.out_features == 96


def test_gated_t5_has_a_gate_projection() -> None:
    assert "gate_proj" not in spec_of(T5Config()).site_names()
    gated = spec_of(T5Config(feed_forward_proj="gated-gelu"))
    assert gated.find("encoder", 0, "gate_proj") is not None
    assert gated.find("decoder", 0, "up") is not None


def test_a_task_model_without_pooler_keeps_the_share_and_loses_the_tensors() -> None:
    config = RobertaConfig()
    whole, task = spec_of(config), spec_of(config, AutoModelForSequenceClassification)
    assert whole.pooler
    assert not task.pooler
    assert task.parameters == whole.parameters
    assert {t.name for t in whole.tensors} - {t.name for t in task.tensors} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def test_encoder_without_its_decoder() -> None:
    spec, _ = spec_of_model(T5EncoderModel(tiny_config("t5")))
    assert [s.name for s in spec.stacks] == ["encoder"]
    assert spec.parameters == spec_of(tiny_config("t5")).parameters


@pytest.mark.parametrize(
    ("config", "sites"),
    [
        (OlmoConfig(num_hidden_layers=2), {"q", "k", "v", "o", "up", "down", "attention", "ffn"}),
        (PersimmonConfig(num_hidden_layers=2), {"qkv", "o", "up", "down", "attention", "ffn"}),
        (RoFormerConfig(num_hidden_layers=2), {"q", "k", "v", "o", "attention"}),
    ],
)
def test_generic_resolver(config: object, sites: set[str]) -> None:
    spec = spec_of(config)  # type: ignore[arg-type]
    assert spec.generic
    assert sites <= set(spec.site_names())
    assert all(s.pre_norm is None for s in spec.sites)


def test_a_family_without_map_is_refused_with_what_has_one() -> None:
    with pytest.raises(SiteError, match=r"no site map for the encoder-decoder family 'led'.*bert.*t5"):
        spec_of(LEDConfig())


def test_misspelt_site_names_near_matches() -> None:
    with pytest.raises(SiteError, match="Did you mean 'attention'"):
        spec_of(BertConfig()).require_name("atention")


def test_heads_without_width_are_no_heads() -> None:
    config = T5Config(d_model=8, d_kv=0, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    assert [stack.head_dim for stack in spec_of(config).stacks] == [None, None]


def test_last_states_are_as_wide_as_they_leave_the_stack() -> None:
    small = OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    projected = OPTConfig(**{**small.to_diff_dict(), "word_embed_proj_dim": 16})
    spec = spec_of(projected)
    assert (spec.stacks[0].hidden, spec.stacks[0].states) == (32, 16)
    assert spec.logits is not None
    assert spec.logits.hidden == 16
    assert spec_of(BertConfig(num_hidden_layers=1)).stacks[0].states == 768


@pytest.mark.parametrize(
    ("config", "auto_class", "hidden"),
    [
        (BertConfig(num_hidden_layers=1), AutoModelForSequenceClassification, ()),
        (BertConfig(num_hidden_layers=1), AutoModelForMaskedLM, ()),
        (DistilBertConfig(n_layers=1), AutoModelForSequenceClassification, ("pre_classifier",)),
        (RobertaConfig(num_hidden_layers=1), AutoModelForSequenceClassification, ("classifier.dense",)),
        (MPNetConfig(num_hidden_layers=1), AutoModelForSequenceClassification, ("classifier.dense",)),
        (MPNetConfig(num_hidden_layers=1), AutoModelForTokenClassification, ()),
        (GPT2Config(n_layer=1), AutoModelForSequenceClassification, ()),
    ],
)
def test_the_hidden_layers_of_a_head_are_what_is_before_its_last_map(
    config: PreTrainedConfig, auto_class: Any, hidden: tuple[str, ...]
) -> None:
    model = on_meta(config, auto_class)
    names = [f"{name}.{kind}" for name in hidden for kind in ("weight", "bias")]
    assert list(hidden_of_head(model)) == names
    logits = spec_of_model(model)[0].logits
    assert logits is not None
    assert logits.deep == bool(hidden)


def test_what_is_read_in_pretraining_alone_is_not_altered() -> None:
    spec = spec_of(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
    assert not any("mask_token" in tensor.name for tensor in spec.tensors)
    assert any("cls_token" in tensor.name for tensor in spec.tensors)
