"""Images that somebody sent, in folders and in Parquet, and image processors of models that somebody sent."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from support.pictures import LABELS, content, picture, save_vit

from autopeft.assets import load_image_processor
from autopeft.tasks import get_kind, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.summary import summarise

from .. import mutate
from ..canary import MODULE, PICKLE
from ..folders import Edit, Files, edit, linked, piped, put, read, told, write
from ..surface import Call, First

SHARE = 0.5

_DATA, _MODEL, _SETTINGS = "pictures", "model", "preprocessor_config.json"
_KINDS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "PPM": ".ppm"}
_PATHS = (
    *("../outside/secret.csv", "../../outside/secret.csv", "/etc/passwd", "/dev/zero", "~/x.png"),
    *("a/../../x.png", "https://example.org/x.png", "zip://x.png::y.zip", "", " ", "metadata.csv"),
    *("a\x00b.png", "x" * 5000, "..", "."),
)  # fmt: skip


@cache
def _model() -> Files:
    with tempfile.TemporaryDirectory() as place:
        return read(save_vit(Path(place), num_hidden_layers=1))


@cache
def _valid() -> Files:
    """Twenty images in each format, by label."""
    kinds = list(_KINDS)
    return {
        f"{LABELS[i % 2]}/{i}{_KINDS[kind]}": content(picture(LABELS[i % 2], i, width=12, height=10), kind)
        for i, kind in enumerate(kinds[j // 4 % len(kinds)] for j in range(24))
    }


def use() -> None:
    """What is done with images and a model that somebody sent: all are decoded and looked at."""
    processor = load_image_processor(_MODEL)
    task = load_task("data.parquet" if Path("data.parquet").exists() else _DATA)
    if task.kind != "image_classification":
        return
    encoded = encode(task, processor)
    summarise(task, processor, 128)  # type: ignore[arg-type]
    for split in encoded.splits.values():
        if len(split):
            split.collate(range(min(4, len(split))))
    kind = get_kind(task.kind)
    table = kind.asked_table(Path(_DATA)) if Path(_DATA).exists() else None
    if table is not None:
        from autopeft.tasks.table import ColumnNames

        kind.unanswerable(table, kind.text_columns(table, ColumnNames()))


def hostile(random: Random, folder: Path) -> Call:
    model, images = dict(_model()), dict(_valid())
    if random.random() < 0.3:
        edit(random, model, random.choice((_SETTINGS, _SETTINGS, "config.json")))
    for name in random.sample(sorted(images), random.choice((0, 0, 1, 1, 2))):
        images[name] = _damaged(random, images[name])
    if random.random() < 0.3:
        images = {f"{random.choice(('train', 'test'))}/{name}": data for name, data in images.items()}
    if random.random() < 0.3:
        images["metadata.csv"] = _metadata(random, sorted(images))
    if random.random() < 0.2:
        write(folder, {"data.parquet": _table(random, images)})
    _write(folder, images, model)
    if random.random() < 0.1:
        _move(random, folder / _DATA, sorted(images))
    return use


def _damaged(random: Random, data: bytes) -> bytes:
    kind = random.randrange(6)
    if kind == 0:
        return data[: random.randrange(len(data))]
    if kind == 1:
        return _png(random.choice((0, 1, 8_000, 100_000, 2**31 - 1)), random.choice((1, 8_000, 2**31 - 1)))
    if kind == 2:
        return random.choice((b"", b"x", PICKLE, b"<svg/>", b"GIF89a", b"P5 99999 99999 255\n", b"RIFF"))
    found = bytearray(data)
    for _ in range(mutate.many(random, 20)):
        found[random.randrange(len(found))] = random.randrange(256)
    return bytes(found)


def _metadata(random: Random, names: list[str]) -> bytes:
    rows = [(name, LABELS[i % 2]) for i, name in enumerate(names)]
    for _ in range(random.randint(0, 2)):
        rows[random.randrange(len(rows))] = (random.choice(_PATHS), "dark")
    head = random.choice(("file_name,label", "file_name,label", "file_name", "name,label", "image,file_name"))
    return mutate.bytes_of("\n".join([head, *(f'"{name}",{label}' for name, label in rows)]) + "\n")


def _table(random: Random, images: Files) -> bytes:
    rows = [
        {"bytes": None if random.random() < 0.05 else data, "path": random.choice(_PATHS[:6])}
        for data in images.values()
    ]
    labels = [random.choice((0, 1)) for _ in rows]
    noted = {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
        }
    }
    table = pa.table({"image": rows, "label": labels})
    if random.random() < 0.5:
        table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    made = io.BytesIO()
    parquet.write_table(table, made)
    return made.getvalue()


def _move(random: Random, data: Path, names: list[str]) -> None:
    place = data / random.choice(names)
    place.unlink(missing_ok=True)
    what = random.choice(
        ("../../outside/secret.csv", "../../../outside/secret.csv", "/dev/zero", ".", "pipe")
    )
    os.mkfifo(place) if what == "pipe" else place.symlink_to(what)


def _write(folder: Path, images: Files, model: Files) -> None:
    (folder / _DATA).mkdir()
    (folder / _MODEL).mkdir()
    write(folder / _DATA, images)
    write(folder / _MODEL, model)


def _png(width: int, height: int, data: bytes = b"\0" * 99) -> bytes:
    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# First cases
# ----------------------------------------------------------------------------------------------------------


def _with(
    image: bytes | None = None, *, model: Edit | None = None, also: Callable[[Path], object] | None = None
) -> First:
    """One image among valid ones, the model changed, or what else is done to the folder of both."""

    def made(folder: Path) -> Call:
        files, images = dict(_model()), dict(_valid())
        if image is not None:
            images["dark/0.png"] = image
        if model is not None:
            model(files)
        _write(folder, images, files)
        if also is not None:
            also(folder)
        return use

    return made


def _settings(**values: Any) -> Edit:
    return told(_SETTINGS, lambda found: found.update(values))


def _metadata_with(name: str) -> First:
    rows = f'file_name,label\ndark/0.png,a\n"{name}",b\n'
    return _with(also=lambda folder: (folder / _DATA / "metadata.csv").write_bytes(mutate.bytes_of(rows)))


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 99
    exif[0x010E] = "x" * 60_000
    return content(picture("dark", 0), "JPEG", exif=exif)


def _large() -> bytes:
    """The most pixels that are decoded, all alike."""
    return content(Image.new("RGB", (5_600, 5_600)))


def _compressed_text() -> bytes:
    return _png(4, 4).replace(b"IEND", b"zTXt", 1)


FIRST: dict[str, First] = {
    "valid": _with(),
    "a bomb of pixels": _with(_png(60_000, 60_000)),
    "more pixels than there can be": _with(_png(2**31 - 1, 2**31 - 1)),
    "no pixels": _with(_png(0, 0)),
    "as many pixels as are decoded": _with(_large()),
    "pixels as narrow as a thread": _with(_png(30_000_000, 1)),
    "an animation": _with(
        content(picture("dark", 0), "GIF", save_all=True, append_images=[picture("light", 1)] * 50)
    ),
    "an image cut off": _with(content(picture("dark", 0))[:-40]),
    "16 bits": _with(content(Image.new("I;16", (9, 9)))),
    "a pickle": _with(PICKLE),
    "PostScript": _with(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(EXECUTED) (w) file closefile\n"),
    "a drawing": _with(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>"),
    "EXIF of nonsense": _with(_exif()),
    "chunks of another name": _with(_compressed_text()),
    "metadata that leave the folder": _metadata_with("../../outside/secret.csv"),
    "metadata from the top": _metadata_with("/etc/passwd"),
    "metadata at another host": _metadata_with("https://example.org/x.png"),
    "metadata of a null": _metadata_with("a\x00b"),
    "metadata of themselves": _metadata_with("metadata.csv"),
    "an image linked from outside": _with(
        also=lambda f: linked("dark/0.png", "../../../outside/secret.csv")(f / _DATA)
    ),
    "an image that is a pipe": _with(also=lambda f: piped("dark/0.png")(f / _DATA)),
    "an image that is a device": _with(also=lambda f: linked("dark/0.png", "/dev/zero")(f / _DATA)),
    "a size of 10^8": _with(model=_settings(size=10**8)),
    "a size of 10^8 by its sides": _with(model=_settings(size={"height": 10**8, "width": 10**8})),
    "a size below none": _with(model=_settings(size={"height": -1, "width": -1})),
    "a size that is a text": _with(model=_settings(size="x" * 10_000)),
    "a crop of 10^8": _with(model=_settings(do_center_crop=True, crop_size=10**8)),
    "padding of 10^8": _with(model=_settings(do_pad=True, pad_size={"height": 10**8, "width": 10**8})),
    "a filter that is none": _with(model=_settings(resample=77)),
    "a mean that is a text": _with(model=_settings(image_mean="x")),
    "a mean of 10^5 channels": _with(model=_settings(image_mean=[0.5] * 10**5)),
    "a spread of none": _with(model=_settings(image_std=[0, 0, 0])),
    "a factor that is no number": _with(model=_settings(rescale_factor="1/255")),
    "a processor that is code": _with(model=_settings(image_processor_type=f"{MODULE}.Thing")),
    "code for its processor": _with(
        model=_settings(image_processor_type="Thing", auto_map={"AutoImageProcessor": f"{MODULE}.Thing"})
    ),
    "another model's processor": _with(model=_settings(image_processor_type="SamImageProcessor")),
    "settings of brackets": _with(model=put(_SETTINGS, b"[" * 100_000)),
    "settings that are null": _with(model=put(_SETTINGS, b"null")),
    "settings linked from outside": _with(
        also=lambda f: linked(_SETTINGS, "../../outside/secret.jsonl")(f / _MODEL)
    ),
    "settings that are a pipe": _with(also=lambda f: piped(_SETTINGS)(f / _MODEL)),
    "patches of one pixel in 10^6": _with(
        model=told("config.json", lambda found: found.update(image_size=10**6, patch_size=1))
    ),
    "patches of none": _with(model=told("config.json", lambda found: found.update(patch_size=0))),
}
