"""What `autopeft train` shows: a bar on a terminal, plain lines in a pipe, the result alone on stdout."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.saved_model import save_backbone, write_reviews
from support.terminal import CONTROL, beside_terminal

from autopeft.cli.train_progress import BarReporter, LineReporter
from autopeft.tasks.summary import DataSummary
from autopeft.training.events import TrainInfo

INFO = TrainInfo(
    recipe="[/]odd",
    task="reviews.csv",
    model="minilm",
    metric="accuracy",
    steps=200,
    run="runs/x",
    data=DataSummary((("train", "96 rows"),), ("test has 12 rows: scores on so few differ by chance.",)),
)


def follow(reporter: LineReporter | BarReporter) -> None:
    reporter.on_start(INFO)
    reporter.on_phase("calibration", 0)
    reporter.on_phase("search of autolora", 100)
    for step in range(1, 201):
        reporter.on_step(step, 2.0 / step, None if step == 1 else 200.0 - step)
        if step % 80 == 0:
            reporter.on_score(step, 0.5 + step / 1000)
    reporter.on_phase("scoring", 0)


def test_a_pipe_gets_a_line_for_each_tenth_phase_and_score() -> None:
    out = io.StringIO()
    follow(LineReporter(out))
    lines = out.getvalue().splitlines()
    for said in ("[/]odd", "reviews.csv", "minilm", "200 steps", "96 rows", "12 rows", "runs/x"):
        assert any(said in line for line in lines[:4]), said
    assert [line.split()[1] for line in lines if "loss" in line] == [f"{n}/200" for n in range(20, 201, 20)]
    for said in (
        "calibration",
        "autolora: 100 steps",
        "step 20/200  loss 0.1000  left 3 min 00 s",
        "scoring",
    ):
        assert sum(said in line for line in lines) == 1, said
    assert lines[lines.index("step 80/200  select 0.5800") + 1].startswith("step 100/200")


@pytest.mark.parametrize("steps", [1, 3, 10, 57])
def test_the_last_step_has_its_line_and_none_has_two(steps: int) -> None:
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.on_start(TrainInfo("r", "t", "m", "accuracy", steps, "x", DataSummary()))
    for step in range(1, steps + 1):
        reporter.on_step(step, 1.0, 1.0)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("step ")]
    assert lines[-1].startswith(f"step {steps}/{steps}  ")
    assert len(set(lines)) == len(lines) <= 12


def test_the_bar_fits_a_narrow_terminal_and_says_all() -> None:
    out = io.StringIO()
    reporter = BarReporter(Console(file=out, force_terminal=True, width=80, legacy_windows=False))
    with reporter.showing():
        follow(reporter)
    shown = CONTROL.sub("", out.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, shown)) <= 80
    for line in (
        "calibration …",
        "search of autolora: 100 steps",
        "step 160/200  select 0.6600",
        "scoring …",
    ):
        assert line in [text.strip() for text in shown]
    last = shown[-1]
    assert "200/200" in last
    assert "loss 0.0100" in last
    assert "select 0.6600" in last
    assert any("recipe [/]odd" in line for line in shown)


def test_an_error_leaves_the_cursor_below_the_bar() -> None:
    out = io.StringIO()
    reporter = BarReporter(Console(file=out, force_terminal=True, width=80, legacy_windows=False))

    def fails() -> None:
        with reporter.showing():
            reporter.on_start(INFO)
            reporter.on_step(1, 1.0, None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


# The real command
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    return folder


WORDS = (
    *("train", "-r", "lora.yaml", "-t", "reviews.csv", "--text", "body", "--label", "verdict"),
    *("-m", "bert", "--steps", "20", "--eval-every", "10", "--max-length", "16"),
)
RECIPE = "autopeft: 2\nname: mine\nlayers:\n- attach: [lora]\ntraining: {learning_rate: 2.0e-2}\n"


@pytest.mark.slow
def test_in_a_pipe_stdout_has_the_result_alone(place: Path) -> None:
    (place / "lora.yaml").write_text(RECIPE)
    words = [sys.executable, "-m", "autopeft", *WORDS, "-o", "piped"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    steps = [line for line in lines if re.match(r"step \d+/20  loss \d", line)]
    assert len(steps) == 10
    assert [line[:20] for line in lines if "  select " in line] == [
        "step 10/20  select 0",
        "step 20/20  select 0",
    ]
    assert "training: 20 steps" in lines
    assert "\x1b" not in done.stderr + done.stdout
    assert "step " not in done.stdout.partition("Loss: ")[0]
    result = json.loads((place / "piped" / "result.json").read_text())
    first, last = result["history"]["first_loss"], result["history"]["last_loss"]
    assert f"Loss: {first:.4f} over the first tenth of the steps, {last:.4f} over the last." in done.stdout
    for words in (f"{result['test_mean']:.4f}", "always 'no'", "Kept in ", "winner/ (weights and head)"):
        assert words in done.stdout


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(place: Path) -> None:
    (place / "lora.yaml").write_text(RECIPE)
    out, text = beside_terminal(*WORDS, "-o", "shown", "--json", cwd=place)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if "━" in line]
    assert re.search(r"━ +20/20 +loss \d\.\d{4} +select \d\.\d{4}", bars[-1])
    assert "step 10/20" in text
    assert "training: 20 steps" in lines
    assert json.loads(out) == json.loads((place / "shown" / "result.json").read_text())
