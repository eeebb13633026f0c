"""Tiny encoders of images."""

from __future__ import annotations

from transformers import (
    ViTConfig,
    ViTForImageClassification,
)

from .record import Tiny

VISION = {
    "vit": Tiny(
        lambda: ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=8,
            patch_size=4,
            num_labels=3,
        ),
        ViTForImageClassification,
        modality="vision",
    ),
}
