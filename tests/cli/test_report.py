"""`autopeft report` from outside."""

from __future__ import annotations

import json
import os
import webbrowser
from pathlib import Path

import pytest
import typer.main
from transformers import BertConfig

from autopeft.cli import main
from autopeft.cli.app import app
from autopeft.report.html.load import read_run
from autopeft.report.html.words import reproduction
from autopeft.runs.folder import RunFolder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run of a fixed recipe."""
    BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    ).save_pretrained(tmp_path / "bert")
    folder = RunFolder(tmp_path / "runs" / "2026-01-31-120000-toy-1a2b3c")
    folder.path.mkdir(parents=True)
    folder.write_json(
        "manifest.json", {"kind": "train", "task": "toy", "model": str(tmp_path / "bert"), "arguments": {}}
    )
    recipe = {"layers": [{"attach": [{"lora": {"rank": 2}}]}]}
    folder.write_json("result.json", {"kind": "train", "recipe": recipe, "test_mean": 0.5, "metric": "f1"})
    return tmp_path / "runs"


def test_the_latest_run_in_its_own_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--runs", str(runs)]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file == runs / "2026-01-31-120000-toy-1a2b3c" / "report.html"
    assert "lora · rank 2" in file.read_text(encoding="utf-8")


def test_a_run_by_part_of_its_name_into_a_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(shown.append(url)) or True)
    out = tmp_path / "with space.html"
    assert main(["report", "1a2b3c", "--runs", str(runs), "--out", str(out), "--open"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert shown == [out.as_uri()]
    shown.clear()
    assert main(["report", "1a2b3c", "--runs", str(runs), "--out", str(out)]) == 0
    assert shown == []
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert main(["report", "1a2b3c", "--runs", str(runs), "--out", str(out), "--open"]) == 0
    assert "No browser" in capsys.readouterr().err


def test_what_is_no_report_is_not_written_over(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = runs.iterdir()
    (tmp_path / "notes.html").write_text("<!doctype html>\n<title>notes</title>")
    (tmp_path / "link.html").symlink_to("notes.html")
    (tmp_path / "dangling.html").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.html")
    mine = [tmp_path / f"{name}.html" for name in ("notes", "link", "dangling", "pipe")]
    for path in (run / "manifest.json", *mine):
        before = path.read_bytes() if path.is_file() else os.lstat(path)
        assert main(["report", "--runs", str(runs), "--out", str(path)]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert f"{str(path)!r} is there already and is no report" in said
        assert "choose another --out, or remove it" in said
        assert (path.read_bytes() if path.is_file() else os.lstat(path)) == before


def test_a_report_is_written_anew(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what stands in its place in the run's own folder, as an earlier version may have left it."""
    out, (run,) = tmp_path / "report.html", runs.iterdir()
    assert main(["report", "--runs", str(runs), "--out", str(out)]) == 0
    out.write_text(out.read_text(encoding="utf-8") + "older", encoding="utf-8")
    own = run / "report.html"
    for words, path in ((["--out", str(out)], out), ([], own), (["--out", str(own)], own)):
        if path == own:
            own.write_text("older")
        assert main(["report", "--runs", str(runs), *words]) == 0
        assert not path.read_text(encoding="utf-8").endswith("older")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["report", "nothing"], "no run 'nothing'"),
        (["report", "--out", "."], "is a folder"),
        (["report", "--model", "./elsewhere"], None),
    ],
)
def test_bad_usage_is_one_sentence(
    runs: Path, argv: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backbone that is not found costs the drawing, not the report."""
    assert main([*argv, "--runs", str(runs)]) == (0 if message is None else 2)
    err = capsys.readouterr().err
    assert (message or "") in err
    assert "Traceback" not in err


def test_the_command_that_repeats_a_run_is_one_of_ours(runs: Path) -> None:
    """Every option that it writes exists."""
    from autopeft.search.planning.arguments import SearchArguments

    options = SearchArguments.declared()
    kinds = {
        "stand_in": False,
        "shortcuts": False,
        "portfolio": False,
        "time": "30m",
        "class_weights": [1.0, 2.0],
    }
    arguments = {
        name: kinds.get(name, "7" if name != "seed" else 7) for name, option in options.items() if option.cli
    }
    folder = RunFolder(next(runs.iterdir()))
    (folder.path / "manifest.json").write_text(json.dumps({"task": "toy", "arguments": arguments}))
    (folder.path / "result.json").unlink()
    text = dict(reproduction(read_run(folder)))["Search again"]
    flags = {word for word in text.split() if word.startswith("--")}
    search = typer.main.get_command(app).commands["search"]  # type: ignore[attr-defined]
    known = {flag for p in search.params for flag in (*p.opts, *p.secondary_opts)}
    assert len(flags) > 15
    assert flags <= known
