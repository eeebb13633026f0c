"""Tiny encoders of images, and the tower of texts beside one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from .record import VOCABULARY, Tiny

LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 3,
}
IMAGES: dict[str, Any] = {**LAYERS, "image_size": 8, "patch_size": 4}
TEXTS: dict[str, Any] = {
    **LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Tower(PreTrainedModel):
    """A tower with a head of one's own on what it pools: transformers has none for a tower by itself."""

    base_model_prefix = "tower"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.tower = AutoModel.from_config(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tower.get_input_embeddings()

    def forward(self, **inputs: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.classifier(self.tower(**inputs).pooler_output))


VISION = {
    "vit": Tiny(lambda: ViTConfig(**IMAGES), ViTForImageClassification, modality="vision"),
    "deit": Tiny(lambda: DeiTConfig(**IMAGES), DeiTForImageClassification, modality="vision"),
    "dinov2": Tiny(
        lambda: Dinov2Config(**IMAGES, mlp_ratio=2, layerscale_value=0.5),
        Dinov2ForImageClassification,
        modality="vision",
    ),
    "clip_vision_model": Tiny(lambda: CLIPVisionConfig(**IMAGES), Tower, modality="vision"),
    "siglip_vision_model": Tiny(lambda: SiglipVisionConfig(**IMAGES), Tower, modality="vision"),
    "clip_text_model": Tiny(lambda: CLIPTextConfig(**TEXTS), Tower),
}
