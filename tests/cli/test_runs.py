"""`autopeft runs` beside a run that is damaged, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.permissions import keeping_modes, sealed

RECORDED = Path(__file__).parents[1] / "fixtures" / "runs"


def autopeft(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autopeft", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=keeping_modes,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the runs `finished`, `interrupted`, `torn` (its manifest is cut), `resultless` (its
    result is no JSON) and `theirs`."""
    for name in ("finished", "interrupted"):
        shutil.copytree(RECORDED / name, tmp_path / "runs" / name)
    for name in ("torn", "resultless", "theirs"):
        shutil.copytree(RECORDED / "finished", tmp_path / "runs" / name)
    (tmp_path / "runs" / "torn" / "manifest.json").write_bytes(b'{"task": "ss')
    (tmp_path / "runs" / "resultless" / "result.json").write_bytes(b"\x00")
    return tmp_path


def test_damaged_runs_stand_in_the_list(place: Path) -> None:
    with sealed(place / "runs" / "theirs"):
        listed = autopeft("runs", folder=place)
        rows = autopeft("runs", "--json", folder=place)
    assert (listed.returncode, rows.returncode) == (0, 0), listed.stderr + rows.stderr
    assert "Traceback" not in listed.stderr + rows.stderr
    states = {row["run"]: row["state"] for row in json.loads(rows.stdout)}
    assert states == {
        "finished": "finished",
        "interrupted": states["interrupted"],
        "torn": "damaged",
        "resultless": "damaged",
        "theirs": "damaged",
    }
    assert states["interrupted"] in ("interrupted", "unfinished")
    for said in ("torn is damaged: ", "not valid JSON", "theirs is damaged: ", "Permission denied"):
        assert said in listed.stdout


def test_what_is_left_of_a_damaged_run_is_shown(place: Path) -> None:
    for name in ("torn", "resultless"):
        found = autopeft("runs", name, folder=place)
        assert found.returncode == 0, found.stderr
        assert "damaged" in found.stdout
        assert "trial 0" in found.stdout
        told = json.loads(autopeft("runs", name, "--json", folder=place).stdout)
        assert told["trials"]
        assert (told["manifest"] is None) == (name == "torn")
        assert (told["result"] is None) == (name == "resultless")
    report = autopeft("report", "resultless", "--out", "report.html", folder=place)
    assert report.returncode == 0, report.stderr
    assert "result.json" in (place / "report.html").read_text()


def test_a_damaged_run_is_refused_by_name_with_its_damage(place: Path) -> None:
    for words in (
        ("report", "torn"),
        ("export", "torn", "-o", "out"),
        ("evaluate", "torn"),
        ("predict", "torn", "--text", "a"),
        ("search", "--resume", "torn"),
        ("debug", "torn", "trial-0"),
    ):
        found = autopeft(*words, folder=place)
        assert found.returncode == 2, found.stdout + found.stderr
        assert "manifest.json' is not valid JSON" in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
    with sealed(place / "runs" / "theirs"):
        for words in (("report", "theirs"), ("export", "runs/theirs", "-o", "out"), ("evaluate", "theirs")):
            found = autopeft(*words, folder=place)
            assert found.returncode == 2, found.stdout + found.stderr
            assert "Permission denied" in found.stderr
            assert len(found.stderr.strip().splitlines()) == 1
