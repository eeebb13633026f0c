"""Image processors: what turns images into the pixels that a backbone takes, by its own settings.

They run on Pillow and NumPy, whatever else is installed, so that a model sees the same pixels everywhere.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModelForImageClassification, PretrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from autopeft.assets.making import making_model
from autopeft.assets.models import PROCESSOR, ModelSource, load_config, loaded, resolve_model
from autopeft.assets.quiet import quiet_transformers
from autopeft.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageProcessor", "image_processor_of", "load_image_processor", "needs_pillow"]

_NEAR = 1e-5
_NO_LIMIT = int(1e30)  # as transformers has it for tokenizers
_RAW = {"do_rescale": False, "do_normalize": False}


@dataclass(frozen=True)
class ImageProcessor:
    """A model's image processor, and what is known of the images that it makes.

    Attributes:
        inner: of transformers.
        shape: channels, height and width of what it makes, whatever the image.
        positions: of the hidden states that the backbone makes of an image: its patches, and what it adds.
        scale, offset: (channels,), which turn bytes into what the model takes; `None` where the processor
            does more than that, and what it makes is kept in fp32.
    """

    inner: Any
    shape: tuple[int, int, int]
    positions: int
    scale: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None

    model_max_length = _NO_LIMIT  # images have no tokens that could be cut

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the pixels."""
        import PIL

        decisive = [self.inner.to_dict(), self.shape, self.scale is None, PIL.__version__]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def dtype(self) -> type[np.generic]:
        """Of what `__call__` gives."""
        return np.float32 if self.scale is None else np.uint8

    def __call__(self, image: Image.Image) -> NDArray[Any]:
        """An RGB image as (channels, height, width): bytes, or what the model takes where there is no
        `scale`.

        Raises:
            ValueError: the processor does not make of it what it makes of others.
        """
        made = _made(self.inner, image, **({} if self.scale is None else _RAW))
        if made.shape != self.shape:
            raise ValueError(f"{made.shape} in place of {self.shape}")
        return made.astype(self.dtype, copy=False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it where the model lies."""
        self.inner.save_pretrained(str(folder))


def needs_pillow() -> None:
    """Raises `UsageError` where Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError(
            "Images are decoded with Pillow, which is not installed: pip install 'autopeft[images]'."
        )


def load_image_processor(source: ModelSource | str) -> ImageProcessor:
    """The backbone's own image processor. Remote code is never run.

    Raises:
        UsageError: there is no usable one, or the backbone does not take what it makes.
    """
    needs_pillow()
    found = source if isinstance(source, ModelSource) else resolve_model(source)
    folder, where = Path(found.path), found.alias or found.path
    if folder.is_dir() and not (folder / PROCESSOR).is_file():
        raise UsageError(
            f"The folder {where} has no {PROCESSOR}, which says how images are made ready: save the "
            "model's image processor there with `save_pretrained`."
        )
    config = load_config(found)
    with quiet_transformers():
        inner = loaded(
            lambda: AutoImageProcessor.from_pretrained(found.path, backend="pil", trust_remote_code=False),
            found,
            "image processor",
        )
    return image_processor_of(inner, config, where)


def image_processor_of(inner: BaseImageProcessor, config: PretrainedConfig, where: str) -> ImageProcessor:
    """An image processor, checked against a backbone with this configuration.

    Args:
        where: whose it is, for messages.

    Raises:
        UsageError: it makes nothing that the backbone takes.
    """
    from PIL import Image

    try:
        draw = np.random.default_rng
        tries = [  # of two shapes, to see whether what is made has one
            Image.fromarray(draw(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8))
            for width, height in ((48, 48), (64, 40))
        ]
        with np.errstate(all="ignore"):  # what is not finite is refused below
            made = [_made(inner, image) for image in tries]
            scale, offset = _affine(inner, tries, made)
    # What a stranger's settings say surfaces as whatever the processor's arithmetic stumbles over.
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(f"The image processor of {where!r} makes nothing of an image: {first}") from error
    shapes = {image.shape for image in made}
    if len(shapes) > 1 or made[0].ndim != 3 or not all(bool(np.isfinite(image).all()) for image in made):
        raise UsageError(
            f"The image processor of {where!r} makes images of several sizes, or of no size, or of values "
            f"that are not finite ({', '.join(map(str, sorted(shapes)))}); a task needs one size. Mend its "
            f"{PROCESSOR}."
        )
    shape = (int(made[0].shape[0]), int(made[0].shape[1]), int(made[0].shape[2]))
    return ImageProcessor(inner, shape, _positions(config, shape, where), scale, offset)


def _made(inner: BaseImageProcessor, image: Any, **options: Any) -> NDArray[Any]:
    """A processor's output for one image."""
    return np.asarray(inner(image, return_tensors="np", **options)["pixel_values"][0])


def _affine(
    inner: Any, images: list[Any], made: list[NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
    """Scale and offset by channel that make of a processor's bytes what it makes itself, if they do."""
    raw = [_made(inner, image, **_RAW) for image in images]
    if any(part.dtype != np.uint8 for part in raw):
        return None, None
    factor = float(inner.rescale_factor) if inner.do_rescale else 1.0
    ones = np.ones(raw[0].shape[0])
    mean, std = (inner.image_mean * ones, inner.image_std * ones) if inner.do_normalize else (0 * ones, ones)
    scale, offset = (factor / std).astype(np.float32), (-mean / std).astype(np.float32)
    for part, whole in zip(raw, made, strict=True):
        again = part * scale[:, None, None] + offset[:, None, None]
        if not np.allclose(again, whole, rtol=_NEAR, atol=_NEAR):
            return None, None
    return scale, offset


def _positions(config: PretrainedConfig, shape: tuple[int, int, int], where: str) -> int:
    """Positions of the last hidden states that a backbone makes of an image, found without weights."""
    with torch.device("meta"), quiet_transformers():
        with making_model(repr(where)):
            model = AutoModelForImageClassification.from_config(copy.deepcopy(config))
        try:
            output = model(pixel_values=torch.empty(1, *shape), output_hidden_states=True)
            states = output.hidden_states[-1]
        # A model refuses other sizes and channels than its own in many ways.
        except Exception as error:
            first = str(error).strip().split("\n")[0] or type(error).__name__
            size = " × ".join(map(str, shape))
            raise UsageError(
                f"{where!r} does not take the images that its {PROCESSOR} makes ({size}): {first}"
            ) from error
    return int(states.shape[1] if states.ndim == 3 else states[0, 0].numel())
