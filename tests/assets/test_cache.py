"""The cache: what lies in it is what was put there, and one that cannot be written costs time alone."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.permissions import modes_hold
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.assets import cache, cache_dir, cache_folder, intact, keep_model, publish, writable_folder
from autopeft.errors import AssetError
from autopeft.recipe import Recipe


def fill(folder: Path) -> None:
    (folder / "a").write_bytes(b"content")
    (folder / "b").write_bytes(b"more")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    publish(tmp_path / "kept", fill)
    return tmp_path / "kept"


def flip(folder: Path) -> None:
    """One bit, with the size and the times of before."""
    before = (folder / "a").stat()
    (folder / "a").write_bytes(b"cOntent")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut": lambda folder: (folder / "a").write_bytes(b"cont"),
    "gone": lambda folder: (folder / "b").unlink(),
    "one too many": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "no sums": lambda folder: (folder / "sha256.json").unlink(),
    "sums of nothing": lambda folder: (folder / "sha256.json").write_text("null"),
    "sums that are none": lambda folder: (folder / "sha256.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_as_it_was_put_there_is_made_anew(kept: Path, damage: str) -> None:
    DAMAGE[damage](kept)
    assert not intact(kept)
    publish(kept, fill)
    assert intact(kept)
    assert {p.name: p.read_bytes() for p in kept.iterdir() if p.name in "ab"} == {
        "a": b"content",
        "b": b"more",
    }


def test_files_are_read_once_while_they_stay_the_same(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = cache.sha256_of

    def counted(path: Path) -> str:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(cache, "sha256_of", counted)
    cache._VERIFIED.pop(kept, None)
    assert intact(kept)
    assert intact(kept)
    assert sorted(read) == ["a", "b"]
    (kept / "a").write_bytes(b"CONTENT")
    assert not intact(kept)


@pytest.mark.slow
def test_a_process_that_cannot_write_the_cache_has_one_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = f"""
import os, sys
os.environ["AUTOPEFT_CACHE"] = {str(tmp_path / "file")!r}
from autopeft.assets import writable_folder
folder = writable_folder("assets")
(folder / "kept").write_text("x")
assert writable_folder("assets") == folder
child = os.fork()
if not child:
    sys.exit()
os.waitpid(child, 0)
assert (folder / "kept").read_text() == "x", "a child that ends leaves it alone"
print(folder)
"""
    (tmp_path / "file").write_text("no folder")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("set AUTOPEFT_CACHE to another") == 1, done.stderr
    assert not Path(done.stdout.strip()).exists()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within, nothing below a folder can be written."""
    below = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for path in below:
        path.chmod(0o555)
    try:
        with modes_hold():
            yield
    finally:
        for path in below:
            path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SPARE", None)
    save_backbone(tmp_path / "model")
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "cache").mkdir()
    return tmp_path


# One leaves two layers alone, whose states are stored; what the other measures is kept.
RECIPES = tuple(
    Recipe.from_dict({"name": "x", **what})
    for what in (
        {"layers": [{"at": "last 1", "attach": [{"lora": {"rank": 2}}]}]},
        {"model": [{"fish_mask": {"keep": 20, "samples": 8}}]},
    )
)


def train(place: Path, out: str) -> list[Any]:
    """The scores of both recipes."""
    return [
        autopeft.train(
            task=str(place / "reviews.csv"),
            recipe=recipe,
            model=str(place / "model"),
            text="body",
            label="verdict",
            steps=4,
            max_length=16,
            batch_size=8,
            out=place / f"{out}-{i}",
        ).scores
        for i, recipe in enumerate(RECIPES)
    ]


def test_training_without_a_cache_that_can_be_written(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = {"encoded", "trunk", "measured"}
    with read_only(place / "cache"):
        without = train(place, "without")
        assert not list((place / "cache").iterdir())
    assert "Tokens are not kept" in caplog.text
    usual = train(place, "usual")
    assert {p.name for p in (place / "cache").iterdir()} >= kinds, "the caches that this is about"
    with read_only(place / "cache"):
        filled = train(place, "filled")
    (place / "cache").rename(place / "away")
    (place / "cache").write_text("no folder")
    unmade = train(place, "unmade")
    assert without == usual == filled == unmade


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_what_is_kept_of_private_texts_is_open_to_nobody_else(place: Path) -> None:
    """Also where an earlier version has left it open."""
    train(place, "first")
    folders = [path for path in (place / "cache").iterdir() if path.is_dir()]
    assert {path.name for path in folders} >= {"encoded", "trunk", "measured"}
    assert {path.name: mode_of(path) for path in folders} == {path.name: 0o700 for path in folders}
    for path in folders:
        path.chmod(0o755)
    train(place, "again")
    assert mode_of(place / "cache" / "encoded") == 0o700


@pytest.mark.usefixtures("usual_umask")
def test_packaged_models_are_open_to_others_and_what_is_sealed_stays_so(place: Path) -> None:
    assert mode_of(cache_folder(cache.PACKAGED)) == 0o755
    folder = cache_folder("encoded")
    folder.chmod(0o555)
    assert mode_of(cache_folder("encoded")) == 0o500


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.slow
def test_a_search_and_a_model_in_memory_without_a_cache(place: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(place / "model")
    given = (model, AutoTokenizer.from_pretrained(place / "model"))
    with read_only(place / "cache"):
        folder = keep_model(*given)
        assert not folder.is_relative_to(place / "cache")
        assert intact(folder)
        result = autopeft.search(
            task=str(place / "reviews.csv"), text="body", label="verdict", model=given, budget="20%",
            space="lora", trials=2, steps=4, confirm=1, confirm_seeds=1, baselines="head", max_length=16,
            batch_size=8, workers=0, out=place / "run",
        )  # fmt: skip
        assert not list((place / "cache").iterdir())
    assert result.baselines
    kept = keep_model(*given)
    assert kept.is_relative_to(place / "cache")
    with read_only(place / "cache"):
        assert keep_model(*given) == kept


def test_a_cache_that_cannot_be_made_is_named(place: Path) -> None:
    shutil.rmtree(place / "cache")
    (place / "cache").write_text("")
    with pytest.raises(AssetError, match="set AUTOPEFT_CACHE to another"):
        cache_folder("encoded")
    assert writable_folder("encoded").is_dir()
    assert cache_dir() == place / "cache"


def fill_deep(folder: Path) -> None:
    fill(folder)
    (folder / "below" / "more").mkdir(parents=True)
    (folder / "below" / "more" / "c").write_bytes(b"deep")
    (folder / "below" / "sha256.json").write_text("{}")


DEEP_DAMAGE: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "below" / "more" / "c").write_bytes(b"DEEP"),
    "gone": lambda folder: (folder / "below" / "sha256.json").unlink(),
    "one too many": lambda folder: (folder / "below" / "d").write_text(""),
    "a link to a folder": lambda folder: (folder / "below" / "d").symlink_to(folder.parent),
}


@pytest.mark.parametrize("damage", DEEP_DAMAGE)
def test_files_in_folders_are_sealed_as_well(tmp_path: Path, damage: str) -> None:
    kept = tmp_path / "kept"
    publish(kept, fill_deep)
    assert intact(kept)
    DEEP_DAMAGE[damage](kept)
    assert not intact(kept)
    publish(kept, fill_deep)
    assert intact(kept)


def test_a_folder_that_was_sealed_before_is_intact(tmp_path: Path) -> None:
    fill(tmp_path)
    sums = {name: cache.sha256_of(tmp_path / name) for name in "ab"}
    (tmp_path / "sha256.json").write_text(json.dumps(sums))
    assert intact(tmp_path)


def test_room_is_made_of_all_that_a_folder_takes(tmp_path: Path) -> None:
    (tmp_path / "old" / "below").mkdir(parents=True)
    (tmp_path / "old" / "below" / "large").write_bytes(os.urandom(1 << 20))
    assert cache.make_room(tmp_path, 1 << 19, 1 << 20)
    assert not list(tmp_path.iterdir())
