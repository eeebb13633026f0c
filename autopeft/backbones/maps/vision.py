"""Site maps of encoders of images."""

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

VISION: Mapping[str, FamilyMap] = {
    "vit": FamilyMap(
        (StackMap("encoder", "", "layers", _VIT_SITES, "embeddings", norm="layernorm"),),
        modality="vision",
        pooler="pooler",
    ),
}
