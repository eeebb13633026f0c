"""Tables on a terminal of 80 columns: what one copies is whole."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.cells import cell_len
from support.documents import ROOT
from support.terminal import on_terminal

from autopeft.cli import console, main
from autopeft.runs.folder import load_run

RECORDED = ROOT / "tests/fixtures/runs"
NAMES = {
    "finished": "2026-01-31-142233-movie-sentences-1a2b3c",
    "fixed": "2026-02-01-090000-reviews-0f0f0f",
    "interrupted": "2026-02-02-235959-stsb-abcdef",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded runs under names as searches give them, with their backbone and data."""
    folder = tmp_path_factory.mktemp("place")
    for name, other in NAMES.items():
        shutil.copytree(RECORDED / name, folder / "runs" / other)
    shutil.copytree(RECORDED / "bert", folder / "bert")
    for file in ("reviews.csv", "space.yaml"):
        shutil.copy(RECORDED / file, folder / file)
    return folder


def lines_of(*words: str, place: Path) -> list[str]:
    lines = on_terminal(*words, cwd=place).splitlines()
    assert max(map(cell_len, lines)) <= 80, lines
    return [line.rstrip() for line in lines]


def test_names_of_runs_can_be_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of("runs", place=place)
    monkeypatch.chdir(place)
    for name in NAMES.values():
        (line,) = [line for line in lines if name in line]
        copied, state, *_ = line.split()
        assert load_run(copied).name == name
        assert state in ("finished", "unfinished")
    assert any("0.9259 ± 0.0000" in line for line in lines)
    assert "Left out at this width: " in " ".join(lines)


def test_one_run_with_its_trials_and_its_front(place: Path) -> None:
    lines = lines_of("runs", NAMES["finished"], place=place)
    for file in ("trials.jsonl", "finals.jsonl"):
        for line in (place / "runs" / NAMES["finished"] / file).read_text().splitlines():
            record = json.loads(line)
            if record["score"] is not None:
                assert any(f"{record['score']:.4f}" in shown for shown in lines), record["label"]
    assert any("LoRA rank 8" in line for line in lines)
    assert any(line.startswith("trial") and line.endswith("recipe") for line in lines)


NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+\.\d{4}")
SEARCH = ("search", "--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert")


@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("methods",),
        ("methods", "lora"),
        ("methods", "route"),
        ("tasks",),
        ("spaces", "--model", "bert"),
        ("spaces", "default", "--model", "bert"),
        ("count", "mam", "--model", "bert"),
        ("show", "unipelt", "--model", "bert"),
        (*SEARCH, "--budget", "50%", "--dry-run", "--max-length", "16"),
        ("evaluate", f"runs/{NAMES['fixed']}", "--text", "body", "--label", "verdict"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_number_is_broken(
    place: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal of 80 columns shows the numbers that a pipe has, those of what is left out excepted."""
    monkeypatch.chdir(place)
    assert main(list(words)) == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(console, "terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(list(words)) == 0
    narrow = capsys.readouterr().out
    there, seen = Counter(NUMBER.findall(piped)), Counter(NUMBER.findall(narrow))
    assert seen <= there
    if "Left out at this width" not in narrow:
        assert seen == there
    drawn = [part for part in narrow.split("\n\n") if "━" in part or "─" in part]
    assert drawn, "a terminal has a rule under the headers"
    assert all(cell_len(line) <= 80 for part in drawn for line in part.splitlines())
