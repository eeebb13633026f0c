"""The generic resolver leaves out what it cannot be sure of; nothing is misplaced or fails in a forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertGenerationConfig,
    CLIPConfig,
    Data2VecTextConfig,
    MobileBertConfig,
    MptConfig,
    PersimmonConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    SwinConfig,
    ViTMSNConfig,
    ViTMSNModel,
    XGLMConfig,
    XLMConfig,
)

from autopeft.backbones import spec_of
from autopeft.backbones.generic import generic_map
from autopeft.errors import SiteError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION: dict[str, Any] = {k: v for k, v in SIZES.items() if k != "vocab_size"} | {
    "image_size": 8,
    "patch_size": 4,
}


def layers(*items: Any) -> Recipe:
    return Recipe.from_dict({"name": "x", "layers": [{"attach": list(items)}]})


def names(config: PreTrainedConfig) -> set[str]:
    return set(spec_of(config).site_names())


def test_a_layer_that_holds_attention_and_ffn_side_by_side_is_not_taken_for_the_ffn() -> None:
    config = AlbertConfig(embedding_size=16, **SIZES)
    ffn: Any = generic_map(AlbertModel(config)).stacks[0].sites["ffn"]
    assert (ffn.entry, ffn.exit) == ("albert_layers.0.ffn", "albert_layers.0.ffn_output")


def test_an_expert_is_not_the_ffn_of_its_layer() -> None:
    config = Qwen2MoeConfig(
        num_key_value_heads=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        **SIZES,
    )
    found = names(config)
    assert {"q", "attention"} <= found
    assert not {"ffn", "up", "gate_proj", "down"} & found


def test_a_sub_layer_of_another_width_is_left_out() -> None:
    config = MobileBertConfig(embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, **SIZES)
    assert "attention" not in names(config)


@pytest.mark.parametrize(
    "config",
    [
        SwinConfig(embed_dim=8, depths=[2, 2], num_heads=[2, 2], image_size=32, window_size=2),
        CLIPConfig(text_config=SIZES, vision_config=VISION),
    ],
    ids=["stages", "two towers"],
)
def test_what_is_not_one_stack_of_layers_is_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(SiteError, match="not one stack of layers"):
        spec_of(config)


def test_a_prefix_wants_to_know_keys_from_values() -> None:
    spec = spec_of(PersimmonConfig(**SIZES))
    with pytest.raises(UsageError, match="width of keys and values"):
        build_graph(layers({"prefix_tuning": {"length": 2}}), spec)


def test_images_take_modules_of_layers_but_no_prompt() -> None:
    model = ViTMSNModel(ViTMSNConfig(**VISION)).eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bare = model(pixel_values=pixels).last_hidden_state
    with attach(model, layers("lora", {"prefix_tuning": {"length": 2}}), seed=0) as hybrid:
        randomise(hybrid.root)
        assert not torch.allclose(model(pixel_values=pixels).last_hidden_state, bare)
    with pytest.raises(SiteError, match="finds none of its sites"):
        attach(model, Recipe.from_dict({"name": "x", "model": ["prompt_tuning"]}))


MPT = MptConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_seq_len=32)
XGLM = XGLMConfig(
    vocab_size=50, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=32
)


@pytest.mark.parametrize(
    ("config", "causal"),
    [
        (MPT, True),
        (XGLM, True),
        (BertGenerationConfig(**SIZES), False),
        (BertGenerationConfig(**SIZES, is_decoder=True), True),
        (PersimmonConfig(**SIZES), True),
    ],
)
def test_which_way_its_layers_look_is_told_without_a_flag_on_them(
    config: PreTrainedConfig, causal: bool
) -> None:
    (stack,) = spec_of(config).stacks
    assert (stack.name, stack.causal) == (("decoder", True) if causal else ("encoder", False))
    model = AutoModel.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    last = ids.clone()
    last[0, -1] = 9
    with torch.no_grad():
        first, other = (model(input_ids=i).last_hidden_state[:, :-1] for i in (ids, last))
    assert torch.allclose(first, other, atol=1e-6) == causal


def test_an_ffn_that_adds_the_residual_itself_ends_at_its_last_map() -> None:
    model = AutoModel.from_config(MPT).eval()
    adapter = {"serial_adapter": {"sites": ["ffn"], "bottleneck": 4, "variant": "houlsby"}}
    with attach(model, layers(adapter), seed=0) as hybrid:
        place = hybrid.injection.places["decoder-0-ffn"]
        assert (place.entry, place.exit) == ("blocks.0.ffn.up_proj", "blocks.0.ffn.down_proj")


def test_a_list_of_attentions_is_no_list_of_layers() -> None:
    config = XLMConfig(vocab_size=50, emb_dim=32, n_layers=2, n_heads=4)
    assert {"q", "k", "v", "o"} <= names(config)
    assert "layer" not in names(config)
    with pytest.raises(UsageError, match="finds none of its sites"):
        build_graph(Recipe.from_dict({"name": "x", "model": ["mean_pooling"]}), spec_of(config))


def test_positions_that_begin_behind_that_of_padding_are_fewer() -> None:
    config = Data2VecTextConfig(**SIZES, max_position_embeddings=20, pad_token_id=1)
    assert spec_of(config).max_positions == 18
