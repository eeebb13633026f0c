"""docs/run-folder.md describes every file that a run leaves, and the folders of the cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documents import ROOT, code_in, table
from support.saved_model import save_backbone, write_reviews

from autopeft.assets.cache import PACKAGED
from autopeft.search.api import search
from autopeft.search.planning import probes

PAGE = "docs/run-folder.md"
RECORDED = ROOT / "tests/fixtures/runs"


def patterns() -> list[str]:
    return [name for row in table(PAGE, "files") for name in code_in(row["file"])]


def matches(pattern: str, path: str) -> bool:
    """Whether a path is what the pattern describes: `<x>` is any name and `…` any path."""
    parts = re.split(r"(<\w+>|…)", pattern)
    meant = [".+" if p == "…" else "[^/]+" if p.startswith("<") else re.escape(p) for p in parts]
    return re.fullmatch("".join(meant), path) is not None


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def undescribed(found: set[str]) -> list[str]:
    return sorted(f for f in found if not any(matches(p, f) for p in patterns()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny search was run: its folder `run` and its `cache`."""
    found = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(found / "cache"))
        patch.setattr(probes, "_LEAST", 0)  # the tiny backbone is measured as a large one is
        search(
            task=str(write_reviews(found / "data.csv")), text="body", label="verdict", budget="20%",
            space="lora", model=str(save_backbone(found / "model")), trials=2, steps=4, confirm=1,
            confirm_seeds=1, baselines="head", max_length=16, batch_size=8, workers=0, out=str(found / "run"),
        )  # fmt: skip
    return found


def test_every_file_of_a_search_is_described(place: Path) -> None:
    found = files_in(place / "run")
    assert undescribed(found) == []
    plain = {p for p in patterns() if "<" not in p and "…" not in p and not p.startswith(".")}
    assert plain - found == {"gates.jsonl", "journal.log.lock", "report.html"}  # of another strategy; of none
    assert {f for f in found if f.startswith("logs/trial-")}


@pytest.mark.parametrize("run", ["finished", "fixed", "interrupted"])
def test_every_file_of_a_recorded_run_is_described(run: str) -> None:
    found = files_in(RECORDED / run)
    assert undescribed(found) == []
    assert len(found) >= 6


def test_the_folders_of_the_cache_are_described(place: Path) -> None:
    named = {name.rstrip("/") for row in table(PAGE, "cache") for name in code_in(row["folder"])}
    assert {p.name for p in (place / "cache").iterdir() if p.is_dir()} <= named
    assert PACKAGED in named
