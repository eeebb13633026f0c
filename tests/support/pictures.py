"""Images that a tiny ViT can tell apart, in each layout, and the ViT in a folder with its image processor."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

LABELS = ("dark", "light")


def save_vit(folder: Path, *, seed: int = 0, size: int = 16, **changes: Any) -> Path:
    """Write a ViT of 3 layers, or of `changes`, for images of 16 × 16 in patches of 8; returns the folder."""
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(ViTConfig(**{**sizes, **changes}))
        for parameter in model.vit.parameters():
            torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.05)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}, do_convert_rgb=True).save_pretrained(folder)
    return folder


def picture(label: str, seed: int, *, width: int = 20, height: int = 18, mode: str = "RGB") -> Image.Image:
    """Noise that is dark or light."""
    draw = np.random.default_rng(seed)
    low, high = (0, 110) if label == "dark" else (140, 256)
    values = draw.integers(low, high, size=(height, width, 3), dtype=np.uint16).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def write_pictures(folder: Path, rows: int = 60, *, splits: tuple[str, ...] = ()) -> Path:
    """Write folders of labels, each image once, below those of splits where there are some."""
    draw = random.Random(0)
    for i in range(rows):
        label = LABELS[i % 2]
        place = folder / (splits[draw.randrange(len(splits))] if splits else "") / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(content(picture(label, i)))
    return folder
