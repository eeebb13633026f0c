"""`autopeft chat` and streamed answers of `autopeft predict`, as real processes on pipes and terminals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import run
from support.language import save_decoder, write_chats
from support.saved_model import save_backbone, write_reviews
from support.terminal import CONTROL, on_terminal
from support.training import lora_recipe

import autopeft
from autopeft.cli import main

RECIPE = lora_recipe()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has learnt which number follows which."""
    folder = tmp_path_factory.mktemp("place")
    task, model = str(write_chats(folder / "chats.jsonl")), str(save_decoder(folder / "llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        autopeft.train(
            recipe=RECIPE, task=task, model=model, steps=150, max_length=48, out=str(folder / "run")
        )
    return folder


def test_lines_of_a_pipe_are_answered(place: Path) -> None:
    lines = ("what follows one", "", "/reset", "what follows three", "/nonsense", "/exit", "what follows two")
    done = run(place, "chat", "run", text="\n".join(lines) + "\n")
    assert done.stdout.splitlines() == ["two", "four"]
    assert "/nonsense" in done.stderr


@pytest.mark.slow
def test_old_turns_are_dropped_and_it_says_so(place: Path) -> None:
    options = ("--system", "be brief", "--max-length", "30")
    done = run(place, "chat", "run", *options, text="what follows one\n" * 6)
    assert len(done.stdout.splitlines()) == 6
    assert "30 tokens" in done.stderr


def test_who_writes_nothing_cannot_be_talked_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert, task = str(save_backbone(tmp_path / "bert")), str(write_reviews(tmp_path / "reviews.csv"))
    options = {"label": "verdict", "text": "body", "model": bert, "steps": 1, "max_length": 24}
    autopeft.train(recipe=RECIPE, task=task, **options, out=str(tmp_path / "run"))  # type: ignore[arg-type]
    assert main(["chat", str(tmp_path / "run")]) == 2
    assert "classification" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "run"), "--text", "a", "--max-new-tokens", "3"]) == 2
    assert "max_new_tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_an_answer_on_a_terminal_is_streamed_and_the_same_in_a_pipe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = on_terminal("predict", "run", "--text", "what follows one", cwd=place)
    assert shown.splitlines() == ["two"]
    monkeypatch.chdir(place)
    assert main(["predict", "run", "--text", "what follows one", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out == "two\twhat follows one\n"


@pytest.mark.slow
def test_on_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(place: Path) -> None:
    ours, theirs = pty.openpty()
    long = ["--max-new-tokens", "30", "--temperature", "50"]  # drawn evenly: it seldom ends
    process = subprocess.Popen(
        [sys.executable, "-m", "autopeft", "chat", "run", *long],
        cwd=place, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def wait_for(what: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        nonlocal seen
        until = time.monotonic() + 120
        while what not in seen:
            assert time.monotonic() < until, seen
            if not select.select([ours], [], [], 1.0)[0]:
                meanwhile()
                continue
            with suppress(OSError):
                seen += CONTROL.sub("", os.read(ours, 4096).decode(errors="replace"))

    pressed = 0

    def interrupt() -> None:
        nonlocal pressed
        pressed += 1
        process.send_signal(signal.SIGINT)

    try:
        wait_for("> ")
        for _ in range(2):
            seen = ""
            interrupt()  # where nothing is written it ends nothing
            # A signal just before Python begins to wait for a line is seen with the next one.
            wait_for("leaves", interrupt)
        assert pressed < 12, "the second one was heard only after a while"
        os.write(ours, b"what follows one\n")
        wait_for("> ")
        seen = ""
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(ours)
