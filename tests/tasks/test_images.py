"""Images are decoded under limits: what is refused, and what pixels come of the rest."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pictures import content, picture

from autopeft.errors import DataError
from autopeft.tasks import images
from autopeft.tasks.images import ImageFile, image_of, is_image, problem_of


def file(data: bytes) -> ImageFile:
    return ImageFile.of_bytes(data, "it.png")


def refused(data: bytes) -> str:
    with pytest.raises(DataError) as error:
        file(data).pixels()
    assert str(error.value).startswith("it.png: ")
    return str(error.value)


def png(width: int, height: int) -> bytes:
    """A PNG that says its size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM"])
def test_known_formats_become_red_green_and_blue(kind: str) -> None:
    image = picture("light", 0)
    found = file(content(image, kind)).pixels()
    assert (found.mode, found.size) == ("RGB", image.size)
    assert abs(np.asarray(found, float) - np.asarray(image, float)).mean() < (
        30 if kind in ("JPEG", "WEBP", "GIF") else 1e-9
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_pixels_are_turned_into_colours(mode: str) -> None:
    image = picture("dark", 1, mode=mode)
    assert np.array_equal(np.asarray(file(content(image)).pixels()), np.asarray(image.convert("RGB")))


def test_exif_turns_the_image() -> None:
    image = picture("dark", 2, width=20, height=10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    found = file(content(image, "PNG", exif=exif)).pixels()
    assert found.size == (10, 20)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_an_image_of_pillow_is_what_its_file_is(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    stored = content(picture("light", 3, mode=mode), "JPEG", exif=exif)
    opened = image_of(Image.open(io.BytesIO(stored)), "it.png")
    assert opened.pixels().size == (18, 20)
    assert np.array_equal(np.asarray(opened.pixels()), np.asarray(file(stored).pixels()))


def test_the_first_picture_of_a_camera_counts() -> None:
    both = [picture("light", seed) for seed in (4, 5)]
    stored = content(both[0], "MPO", save_all=True, append_images=both[1:])
    assert Image.open(io.BytesIO(stored)).n_frames == 2
    alone = content(both[0], "JPEG")
    assert np.array_equal(np.asarray(file(stored).pixels()), np.asarray(file(alone).pixels()))


def test_more_pixels_than_an_image_has_are_refused_before_any_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert "pixels" in refused(png(100_000, 50_000))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no image of a known format"),
        (b"GIF89a", "no image|cannot be decoded"),
        (content(picture("dark", 3))[:-200], "cannot be decoded"),
        (content(picture("dark", 3), "TIFF"), "no image of a known format"),
        (content(Image.fromarray(np.zeros((9, 9), np.uint16))), "more than 8 bits a channel"),
        (
            content(picture("dark", 4), "GIF", save_all=True, append_images=[picture("light", 5)]),
            "is animated",
        ),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
        (png(10, 10), "cannot be decoded"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, why: str) -> None:
    import re

    assert re.search(why, refused(data))


def test_a_file_may_not_be_large_or_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content(picture("dark", 6)))
    found = ImageFile.of_file(path, "a.png")
    assert found.content is None
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest() == str(found)
    assert found.pixels().size == (20, 18)
    path.write_bytes(content(picture("light", 6)))
    with pytest.raises(DataError, match="was changed"):
        found.pixels()
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="at most 10 bytes"):
        ImageFile.of_file(path)
    with pytest.raises(DataError, match="at most 10 are read"):
        file(b"x" * 11)


def test_values_of_tables() -> None:
    data, image = content(picture("dark", 7)), picture("dark", 7)
    for value in ({"bytes": data, "path": "x.png"}, {"bytes": data}, data, file(data), image):
        assert is_image(value)
        assert np.array_equal(np.asarray(image_of(value, "row 1").pixels()), np.asarray(image))
    for value in ("x.png", 3, None, {"path": "x.png"}, {"bytes": data, "more": 1}, [data]):
        assert not is_image(value)
    with pytest.raises(DataError, match="row 1 names a file in place of bytes"):
        image_of({"bytes": None, "path": "/etc/passwd"}, "row 1")
    with pytest.raises(DataError, match="row 1 is no image but str"):
        image_of("x.png", "row 1")


def test_problems_are_told_without_the_name() -> None:
    assert problem_of(content(picture("dark", 8)), "row 3") is None
    assert str(problem_of(b"x", "row 3")).startswith("is no image of a known format")
