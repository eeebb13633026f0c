"""Pixels are what plain transformers makes of images, and are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import content, picture, save_vit
from transformers import AutoImageProcessor

from autopeft.assets import ImageProcessor, load_image_processor
from autopeft.errors import DataError
from autopeft.tasks import pixels
from autopeft.tasks.images import ImageFile
from autopeft.tasks.pixels import EncodedImages, encode_images

FILES = [
    ImageFile.of_bytes(content(picture(label, i, width=20 + i, mode=mode)), f"{i}.png")
    for i, (label, mode) in enumerate([("dark", "RGB"), ("light", "L"), ("dark", "RGBA"), ("light", "P")])
]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def processor(vit: Path) -> ImageProcessor:
    return load_image_processor(str(vit))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(processor: ImageProcessor, **options: Any) -> EncodedImages:
    return encode_images(FILES, processor, kind="image_classification", **options)


@pytest.mark.parametrize("cached", [True, False])
def test_batches_are_what_the_processor_makes(
    cached: bool, vit: Path, processor: ImageProcessor, cache: Path
) -> None:
    plain: Any = AutoImageProcessor.from_pretrained(str(vit), backend="pil")
    wanted = plain([file.pixels() for file in FILES], return_tensors="pt")["pixel_values"]
    split = encoded(processor, cached=cached)
    assert split.pixels.dtype == np.uint8
    batch = split.collate([2, 0])
    torch.testing.assert_close(batch["pixel_values"], wanted[[2, 0]], rtol=1e-5, atol=1e-5)
    assert batch["beside_position_mask"].tolist() == [[1] * 5] * 2  # four patches and the class token
    assert "labels" not in batch
    assert split.lengths.tolist() == [5] * 4
    assert (cache / "encoded").exists() == cached


def test_pixels_are_made_once(
    processor: ImageProcessor, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded(processor)

    def fill(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(pixels, "_fill", fill)
    again = encoded(processor)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.fingerprint == again.fingerprint
    with pytest.raises(AssertionError, match="made again"):
        encode_images(FILES[:2], processor, kind="image_classification")


def test_rows_are_taken_and_named_by_what_they_hold(processor: ImageProcessor, cache: Path) -> None:
    split = encoded(processor)
    some = split.take(np.array([3, 1]))
    assert np.array_equal(some.pixels, split.pixels[[3, 1]])
    assert some.offsets.tolist() == [0, 5, 10]
    assert some.fingerprint != split.fingerprint
    assert len(split.take(np.array([0, 1, 2, 3, 0]))) == 5
    assert split.take(np.array([2, 0, 2])).copies().tolist() == [0, 1, 0]


def test_without_a_plain_scale_floats_are_kept(processor: ImageProcessor, cache: Path) -> None:
    split = encode_images(
        FILES, ImageProcessor(processor.inner, processor.shape, 5), kind="image_classification"
    )
    assert split.pixels.dtype == np.float32
    torch.testing.assert_close(
        split.collate([1])["pixel_values"],
        encoded(processor).collate([1])["pixel_values"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_damaged_image_is_named(processor: ImageProcessor, cache: Path) -> None:
    bad = ImageFile.of_bytes(content(picture("dark", 5))[:-100], "cat/7.png")
    with pytest.raises(DataError, match=r"cat/7\.png: cannot be decoded"):
        encode_images([FILES[0], bad], processor, kind="image_classification")
