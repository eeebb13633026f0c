"""Masks of layers, and the sites and keys that they stand for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_config
from transformers import BertConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import RecipeError, SiteError
from autopeft.graph.layer_masks import WHOLE, LayerMasks
from autopeft.recipe import LayerBlock, resolve_layers
from autopeft.spec import BackboneSpec

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
DEEP = spec_of(BertConfig(**SMALL, num_hidden_layers=24))
T5 = spec_of(
    T5Config(vocab_size=50, d_model=32, num_layers=12, num_decoder_layers=3, d_ff=64, d_kv=8, num_heads=4)
)
SPECS = (DEEP, T5, spec_of(tiny_config("llama")), spec_of(tiny_config("vit")))
NAMES = st.frozensets(st.sampled_from(["q", "v", "ffn", "down", "cross_k", "attention_norm", "embeddings"]))


@given(spec=st.sampled_from(SPECS), names=NAMES, data=st.data())
def test_a_mask_stands_for_its_layers_sites_in_order(
    spec: BackboneSpec, names: frozenset[str], data: st.DataObject
) -> None:
    masks = LayerMasks(spec)
    layers = data.draw(st.sets(st.sampled_from(sorted(masks.bits))))
    mask = sum(masks.bits[place] for place in layers)
    expected = [s for s in spec.sites if s.name in names and (s.stack, s.layer) in layers]
    for _ in range(2):
        spread = masks.spread(names)
        assert list(spread.sites(mask)) == expected
        assert json.loads(f"[{spread.text(mask)}]") == sorted(s.key for s in expected)
        everywhere = [s for s in spec.sites if s.name in names]
        assert list(spread.sites(WHOLE)) == everywhere
        assert json.loads(f"[{spread.text(WHOLE)}]") == sorted(s.key for s in everywhere)


ATS = ["all", "0-2", "first 2", "last 3", [1], [0, 2], [11], "g1", "g3"]


@pytest.mark.parametrize("spec", [DEEP, T5])
@pytest.mark.parametrize("stack", ["all", "encoder", "decoder"])
@pytest.mark.parametrize("at", ATS, ids=str)
def test_masks_of_blocks(spec: BackboneSpec, stack: str, at: object) -> None:
    block = LayerBlock.model_validate({"at": at, "stack": stack, "attach": ({"method": "lora"},)})
    masks = LayerMasks(spec)
    depths = [s.layers for s in spec.stacks if stack in ("all", s.name)]
    if any(isinstance(block.at, tuple) and block.at[-1] >= depth for depth in depths) or (
        spec is T5 and stack != "encoder" and str(at)[0] == "g"
    ):
        with pytest.raises(RecipeError, match=r"does not exist|need at least 4 layers"):
            masks.mask(block.at, block.stack)
        return
    expected = {
        (s.name, i)
        for s in spec.stacks
        if stack in ("all", s.name)
        for i in resolve_layers(block.at, s.layers)
    }
    if not expected:
        with pytest.raises(SiteError, match="no stack 'decoder'"):
            masks.mask(block.at, block.stack)
        return
    for _ in range(2):
        mask = masks.mask(block.at, block.stack)
        assert {place for place, bit in masks.bits.items() if mask & bit} == expected
