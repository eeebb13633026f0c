"""Site maps of encoders of images, and of the tower of texts beside one."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.backbones.maps.records import FamilyMap, Linear, Norm, Region, Sites, StackMap

__all__ = ["VISION"]

_VIT_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attention", "attention.o_proj", "layernorm_before", "pre", attends=True),
    "q": Linear("attention.q_proj"),
    "k": Linear("attention.k_proj"),
    "v": Linear("attention.v_proj"),
    "o": Linear("attention.o_proj"),
    "attention_norm": Norm("layernorm_before"),
    "ffn": Region("mlp", "mlp", "layernorm_after", "pre"),
    "up": Linear("mlp.fc1"),
    "down": Linear("mlp.fc2"),
    "ffn_norm": Norm("layernorm_after"),
}

# What a sub-layer yields is scaled before it is added.
_DINOV2_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attention", "layer_scale1", "norm1", "pre", attends=True),
    "q": Linear("attention.q_proj"),
    "k": Linear("attention.k_proj"),
    "v": Linear("attention.v_proj"),
    "o": Linear("attention.o_proj"),
    "attention_norm": Norm("norm1"),
    "ffn": Region("mlp", "layer_scale2", "norm2", "pre"),
    "up": Linear("mlp.fc1", instead="mlp.up_proj"),
    "gate_proj": Linear("mlp.gate_proj"),
    "down": Linear("mlp.fc2", instead="mlp.down_proj"),
    "ffn_norm": Norm("norm2"),
}

_CLIP_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("self_attn", "self_attn.out_proj", "layer_norm1", "pre", attends=True),
    "q": Linear("self_attn.q_proj"),
    "k": Linear("self_attn.k_proj"),
    "v": Linear("self_attn.v_proj"),
    "o": Linear("self_attn.out_proj"),
    "attention_norm": Norm("layer_norm1"),
    "ffn": Region("mlp", "mlp", "layer_norm2", "pre"),
    "up": Linear("mlp.fc1"),
    "down": Linear("mlp.fc2"),
    "ffn_norm": Norm("layer_norm2"),
}


def _vision(layers: str, sites: Sites, norm: str, pooler: str | None = None) -> FamilyMap:
    stack = StackMap("encoder", "", layers, sites, "embeddings", norm=norm)
    return FamilyMap((stack,), modality="vision", pooler=pooler, past=("embeddings.mask_token",))


VISION: Mapping[str, FamilyMap] = {
    "vit": _vision("layers", _VIT_SITES, "layernorm", "pooler"),
    "deit": _vision("layers", _VIT_SITES, "layernorm", "pooler"),
    "dinov2": _vision("encoder.layer", _DINOV2_SITES, "layernorm"),
    "clip_vision_model": _vision("encoder.layers", _CLIP_SITES, "post_layernorm"),
    "siglip_vision_model": _vision("encoder.layers", _CLIP_SITES, "post_layernorm", "head"),
    # It has no language model's head, though it reads from left to right.
    "clip_text_model": FamilyMap(
        (
            StackMap(
                "encoder",
                "",
                "encoder.layers",
                _CLIP_SITES,
                "embeddings.token_embedding",
                causal=True,
                norm="final_layer_norm",
            ),
        )
    ),
}
