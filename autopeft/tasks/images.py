"""Images of a task: where their bytes are, and their pixels.

Images have a known format, one frame and 8 bits a channel: others would not mean the same to every reader.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.assets.images import needs_pillow
from autopeft.errors import DataError
from autopeft.foreign import read_plain

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "MOST_BYTES", "ImageFile", "image_of", "is_image", "problem_of"]

MOST_BYTES = 64 << 20
"""Of one image as it is stored."""

_FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
IMAGE_SUFFIXES: tuple[str, ...] = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class ImageFile:
    """An image as it is stored, in a file or in memory; nothing of it is decoded.

    Attributes:
        name: what it is called in messages and answers.
        digest: hex sha256 of its bytes.
        content: its bytes, where they do not lie in a file of their own.
        path: of that file.
    """

    name: str
    digest: str
    content: bytes | None = None
    path: str | None = None

    @classmethod
    def of_file(cls, path: Path, name: str | None = None) -> ImageFile:
        """An image in a file, whose bytes stay there.

        Raises:
            DataError: it cannot be read, is no plain file or is too large.
        """
        content = read_plain(path, MOST_BYTES, DataError)
        return cls(name or str(path), _digest(content), path=str(path.absolute()))

    @classmethod
    def of_bytes(cls, content: bytes, name: str) -> ImageFile:
        """An image in memory.

        Raises:
            DataError: it is too large.
        """
        if len(content) > MOST_BYTES:
            raise DataError(f"{name}: {len(content):,} bytes, and at most {MOST_BYTES:,} are read.")
        return cls(name, _digest(content), content=content)

    def __str__(self) -> str:
        return self.digest  # what hashes of rows are made of

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            DataError: its file is gone, or is another one than it was.
        """
        if self.content is not None:
            return self.content
        found = read_plain(Path(str(self.path)), MOST_BYTES, DataError)
        if _digest(found) != self.digest:
            raise DataError(f"{self.path} was changed since the data were read; begin anew.")
        return found

    def check(self) -> None:
        """Look at its header.

        Raises:
            DataError: it is none that would be decoded, see `pixels`.
        """
        with _told(self.name), _opened(self):
            pass

    def pixels(self) -> Image.Image:
        """The image as red, green and blue, 8 bits each, turned as its EXIF orientation says.

        Grey values and palettes are turned into colours. Transparency is left out, as transformers does.

        Raises:
            DataError: it is damaged or cut off, of an unknown format, has several frames, more than 8 bits a
                channel, or far more pixels than Pillow takes for an image.
        """
        from PIL import ImageOps

        with _told(self.name), _opened(self) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            # Without a copy where none is needed: the memory of a large image counts. Its file is closed.
            return image if image.mode == "RGB" else image.convert("RGB")


def is_image(value: Any) -> bool:
    """Whether a value of a table is an image: a file, bytes, what `datasets` stores, or one of Pillow's."""
    if isinstance(value, ImageFile | bytes):
        return True
    if isinstance(value, Mapping):
        return "bytes" in value and set(value) <= {"bytes", "path"}
    return type(value).__module__.startswith("PIL.") and hasattr(value, "tobytes")


def image_of(value: Any, name: str) -> ImageFile:
    """The image that a value of a table is; its bytes are not looked at.

    Raises:
        DataError: it is none, or names a file in place of bytes.
    """
    if isinstance(value, ImageFile):
        return value
    if isinstance(value, Mapping) and is_image(value):
        value = value["bytes"]
        if value is None:
            raise DataError(
                f"{name} names a file in place of bytes, which is not opened: a table holds the images "
                "themselves, or a folder holds them beside its metadata.csv."
            )
    if isinstance(value, bytes):
        return ImageFile.of_bytes(value, name)
    if is_image(value):
        from PIL import ImageOps

        # Without loss, turned as the EXIF orientation says that it still has: it is then what its file would
        # have been.
        with _told(name):
            made, turned = io.BytesIO(), ImageOps.exif_transpose(value)
            # PNG has no such colours.
            (turned.convert("RGB") if turned.mode in ("CMYK", "YCbCr") else turned).save(made, "PNG")
            return ImageFile.of_bytes(made.getvalue(), name)
    raise DataError(f"{name} is no image but {type(value).__name__}.")


def problem_of(value: Any, name: str) -> str | None:
    """Why a value cannot be read as an image, decoded as a whole; `None` where it can."""
    try:
        found = image_of(value, name)
        name = found.name
        found.pixels()
    except DataError as error:
        return str(error).removeprefix(f"{name}: ").rstrip(".")
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{name}: memory does not suffice to decode it.") from error
    # Decoders raise whatever their arithmetic does on what is damaged.
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{name}: cannot be decoded as an image ({first}).") from error


@contextmanager
def _opened(file: ImageFile) -> Iterator[Image.Image]:
    """The image with its header read and looked at, and nothing decoded."""
    needs_pillow()
    from PIL import Image, UnidentifiedImageError

    content = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are looked at here, and of damaged EXIF
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(_FORMATS))
        except UnidentifiedImageError as error:
            raise DataError(
                f"{file.name}: is no image of a known format; they can be {', '.join(_FORMATS)}."
            ) from error
        except Image.DecompressionBombError as error:
            raise DataError(f"{file.name}: {error}") from error
        with image:
            # A camera's JPEG may have further pictures behind its own: of another eye, or of the brightness.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise DataError(
                    f"{file.name}: is animated; save the frame that counts as an image of its own."
                )
            if image.mode not in _EIGHT_BITS:
                raise DataError(
                    f"{file.name}: its pixels are {image.mode!r}, with more than 8 bits a channel; scale "
                    "them to 8 bits, in the same way for all images."
                )
            yield image
