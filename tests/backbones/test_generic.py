"""The generic resolver leaves out what it cannot be sure of; nothing is misplaced or fails in a forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise
from transformers import (
    AlbertConfig,
    AlbertModel,
    CLIPConfig,
    MobileBertConfig,
    PersimmonConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    SwinConfig,
    ViTMSNConfig,
    ViTMSNModel,
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
