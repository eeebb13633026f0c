"""What is printed: foreign text cannot command the terminal, whatever its encoding."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main
from autopeft.cli.console import lasting, notify, one_line, say, say_json
from autopeft.report.sheet import Sheet

TRICKS = ("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e", "\ud800")


@pytest.mark.parametrize("trick", TRICKS)
def test_lines_hold_nothing_that_a_terminal_acts_on(trick: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a{trick}b\tc\nd")
    notify(f"a{trick}b")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "�" in text
        assert not set(trick) & set("\x1b\x9b\r\x08\x07\u202e\ud800") & set(text)
    assert out.endswith("b\tc\nd\n")
    assert one_line(f"a{trick}\n b") in ("a� b", "a�[2J b", "a�]0;title� b", "a�31m b", "a b")


def test_an_encoding_without_a_letter_is_no_error() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    say("größer – 日本", stream)
    assert stream.buffer.getvalue() == "größer ? ??\n".encode("latin-1")


def test_json_holds_foreign_text_as_it_is_and_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    value = {f"k{i}{trick}": [trick] for i, trick in enumerate(TRICKS)}
    say_json({**value, "plain": "ä"})
    out = capsys.readouterr().out
    assert json.loads(out) == {**value, "plain": "ä"}
    assert all(c.isprintable() or c == "\n" for c in out)
    assert '"plain": "ä"' in out


class Terminal(io.TextIOWrapper):
    """A terminal of another encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def test_json_says_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    say_json({"text": "日本", "label": "zły", "other": "ä"})
    assert json.loads(terminal.text()) == {"text": "日本", "label": "zły", "other": "ä"}


def test_a_terminal_that_lacks_characters_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["methods"]) == 0
    assert "lora" in terminal.text()


class Closed(io.StringIO):
    """A pipe whose reader takes so many lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left = lines

    def write(self, text: str) -> int:
        if self.left == 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.left -= text.count("\n")
        return super().write(text)


def test_progress_that_nobody_reads_is_said_once_and_stops_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe = Closed(2)
    stream = lasting(pipe)
    for i in range(5):
        say(f"line {i}", stream)
    assert pipe.getvalue() == "line 0\nline 1\n"
    (line,) = capsys.readouterr().err.splitlines()
    assert "Broken pipe" in line


def test_results_that_nobody_reads_have_an_exit_code_of_their_own() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    try:
        words = [sys.executable, "-m", "autopeft", "methods"]
        done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_search_goes_on_where_nobody_reads_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    data = ["--task", str(tmp_path / "reviews.csv"), "--text", "body", "--label", "verdict"]
    small = ["--space", "lora", "--budget", "20%", "--max-length", "24", "--trials", "2", "--steps", "2"]
    run = ["--model", str(tmp_path / "bert"), "--workers", "0", "--baselines", "head", "-o"]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Closed(1))
        patched.setattr("autopeft.cli.app._silence_stdout", lambda: None)
        assert main(["search", *data, *small, *run, str(tmp_path / "run")]) == 141
    assert capsys.readouterr().err.count("No more progress is shown") == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["interrupted"], result["test"] is None) == (False, False)
    assert len((tmp_path / "run" / "trials.jsonl").read_text().splitlines()) == 2


def test_tables_hold_nothing_that_a_terminal_acts_on() -> None:
    sheet = Sheet(
        ("a\x1b[1m", "b"),
        (("\x1b[31mred", "\x9b2J"),),
        title="t\x07",
        notes=("n\u202e",),
        right=frozenset({"a\x1b[1m"}),
    )
    for text in (sheet.plain(), sheet.markdown()):
        assert not set(text) & set("\x1b\x9b\x07\u202e")
        assert "�[31mred" in text
    assert sheet.right == {"a�[1m"}
    written = io.StringIO()
    Console(file=written, width=80).print(sheet.rich(sheet.layout(80)))
    assert not set(written.getvalue()) & set("\x1b\x9b\x07\u202e")


def test_labels_with_commands_are_shown_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way from a stranger's data to the summary before a training."""
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "bert")
    rows = [{"text": f"text {i}", "label": "\x1b[2Jyes" if i % 2 else "no\x9b31m"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", "bert", "--task", "data.jsonl", "--max-length", "16")
    assert main(("search", *options, "--space", "lora", "--budget", "20%", "--dry-run")) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x9b" not in out + err
    assert "[2Jyes" in out + err
