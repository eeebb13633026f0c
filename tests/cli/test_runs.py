"""`autopeft runs` beside a run that is damaged, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run
from support.permissions import keeping_modes, modes_hold, sealed

from autopeft.cli import main

RECORDED = Path(__file__).parents[1] / "fixtures" / "runs"


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
    def autopeft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autopeft", *words], cwd=place, capture_output=True, text=True,
            timeout=120, preexec_fn=keeping_modes,
        )  # fmt: skip

    with sealed(place / "runs" / "theirs"):
        listed, rows = autopeft("runs"), autopeft("runs", "--json")
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


def test_what_was_exported_beside_the_runs_is_none_of_them(place: Path) -> None:
    names = sorted(path.name for path in (place / "runs").iterdir())
    manifest = json.loads((place / "runs" / "finished" / "manifest.json").read_text())
    exported = place / "runs" / "zz-export"
    exported.mkdir()
    (exported / "manifest.json").write_text(json.dumps({**manifest, "result": {}}))
    rows = json.loads(run(place, "runs", "--json").stdout)
    assert sorted(row["run"] for row in rows) == names
    assert " exported " in run(place, "runs", "runs/zz-export", "--runs", "elsewhere").stdout


def test_what_is_left_of_a_damaged_run_is_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for name in ("torn", "resultless"):
        assert main(["runs", name]) == 0
        shown = capsys.readouterr().out
        assert "damaged" in shown
        assert "trial 0" in shown
        assert main(["runs", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["trials"]
        assert (told["manifest"] is None) == (name == "torn")
        assert (told["result"] is None) == (name == "resultless")
    assert main(["report", "resultless", "--out", "report.html"]) == 0
    assert "result.json" in (place / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("report",),
        ("export", "-o", "out"),
        ("evaluate",),
        ("predict", "--text", "a"),
        ("search", "--resume"),
    ],
)
def test_a_damaged_run_is_refused_by_name_with_its_damage(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(place)

    def refused(name: str) -> str:
        last = words[-1] == "--resume"
        assert main([*words, name] if last else [words[0], name, *words[1:]]) == 2
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1
        return told

    assert "manifest.json' is not valid JSON" in refused("torn")
    with sealed(place / "runs" / "theirs"), modes_hold():
        assert "Permission denied" in refused("theirs" if words[0] == "report" else "runs/theirs")
