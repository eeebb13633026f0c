"""What the commands write holds no command to the terminal, whatever a stranger's file holds."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.report.sheet import Sheet

EVIL = "\x1b]0;title\x07a\x9b31mb\u202ec\ud800d"
SHOWN = "�]0;title�a�31mb�c�d"


def test_lines_tables_and_notices(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    notify(EVIL)
    say_sheet(Sheet((EVIL,), ((EVIL,),), title=EVIL, notes=(EVIL,)))
    captured = capsys.readouterr()
    assert captured.out.split() == [SHOWN] * 5
    assert captured.err.split() == [SHOWN]


def test_tables_on_a_terminal() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, width=120)
    console.print(Sheet((EVIL,), ((EVIL,),), title=EVIL, notes=(EVIL,)).rich())
    text = written.getvalue()
    assert text.count(SHOWN) == 4
    assert not set(text) & set("\x1b\x07\x9b\u202e\ud800")


def test_json_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    value = {EVIL: [EVIL, "é\t\n", 1.5]}
    say_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert not set(text) & set("\x1b\x07\x9b\u202e\ud800")
    assert "é" in text
