"""Ctrl-C and SIGTERM for real: exit codes in every phase of every long command, and what is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest
from support.interrupting import Command
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main
from autopeft.effort import EFFORTS
from autopeft.runs.folder import RunFolder, list_runs

SPACE = """
autopeft: 2
name: small
layers:
  - attach:
      - lora: {rank: {choice: [1, 2, 4, 8]}}
      - optional: ia3
training:
  learning_rate: {float: [1.0e-3, 1.0e-2], log: true}
"""
DATA = ("--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert")
SEARCH = (
    *("search", *DATA, "--space", "space.yaml", "--budget", "20%", "--max-length", "24", "--batch-size", "8"),
    *("--sampler", "random", "--fidelity", "none"),
)
# A job of this name, or any, takes for ever.
STUCK = """
import time
import autopeft.search.execution.worker as worker
plain = worker.run_job
def run_job(setup, job, on_step, should_stop, notes=None):
    if job.id.startswith({job!r}):
        print("stuck in", job.id, flush=True)
        while True:
            time.sleep(0.05)
            on_step(1, 0.5)
            if should_stop():
                raise worker._Stopped
    return plain(setup, job, on_step, should_stop, notes)
worker.run_job = run_job
"""
SLEEP = """
import time
import {module} as module
def stuck(*args, **more):
    print("stuck", flush=True)
    time.sleep(100)
module.{name} = stuck
"""

SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, *more):
        if name == "autopeft.cli.app":
            print("stuck", flush=True)
            time.sleep(100)
sys.meta_path.insert(0, Slow())
"""
SLOW_END = """
import sys, time
leave = sys.exit
def stuck(code):
    print("stuck", flush=True)
    time.sleep(0.5)
    leave(code)
sys.exit = stuck
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("material")
    save_backbone(place / "bert")
    write_reviews(place / "reviews.csv")
    (place / "space.yaml").write_text(SPACE)
    return place


@pytest.fixture
def start(material: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    place = tmp_path / "place"
    shutil.copytree(material, place)
    begun: list[Command] = []

    def begin(*words: str, patch: str = "") -> Command:
        begun.append(Command(place, *words, patch=patch))
        return begun[-1]

    yield begin
    for command in begun:
        command.kill()


def runs_of(command: Command, root: str = "runs") -> list[RunFolder]:
    return list_runs(command.log.parent / root)


Start = Callable[..., Command]
SAID = {SIGINT: "error: interrupted.", SIGTERM: "error: interrupted by SIGTERM."}


def both(always: Signals) -> pytest.MarkDecorator:
    """Ctrl-C and SIGTERM, one of them in the default run."""
    return pytest.mark.parametrize(
        "number", [pytest.param(n, marks=() if n == always else pytest.mark.slow) for n in (SIGINT, SIGTERM)]
    )


@pytest.mark.parametrize(
    ("job", "trials", "said"),
    [
        pytest.param(
            "trial-0",
            3,
            "Interrupted before any trial was trained to the end. Go on with: autopeft search --resume",
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(job, trials, "Interrupted. Go on with: autopeft search --resume", marks=marks)
            for job, trials, marks in (
                ("trial-1", 3, pytest.mark.slow),
                ("confirm-", 1, ()),
                ("baseline-", 1, pytest.mark.slow),
                ("test-", 1, pytest.mark.slow),
            )
        ),
    ],
)
def test_in_each_phase_of_a_search(
    start: Start, capsys: pytest.CaptureFixture[str], job: str, trials: int, said: str
) -> None:
    sizes = ("--trials", str(trials), "--steps", "10")
    baselines = ("--baselines", "head")
    command = start(*SEARCH, *sizes, *baselines, "--workers", "0", patch=STUCK.format(job=job))
    command.wait_for(lambda: "stuck in" in command.out)
    (run,) = runs_of(command)
    assert run.summary()["state"] == "running"
    root = str(run.path.parent)
    assert main(["runs", "--runs", root]) == 0
    assert " running " in capsys.readouterr().out
    assert main(["report", "latest", "--runs", root, "--out", str(run.path.parent / "r.html")]) == 0
    page = (run.path.parent / "r.html").read_text(encoding="utf-8")
    assert "This run is going on" in page
    assert command.ctrl_c() == 130, command.out
    assert said in command.out, command.out
    assert "Traceback" not in command.out
    assert "failed" not in command.out
    records = [*run.trials().records, *run.finals().records]
    cut = [r for r in records if r.failure == "stopped"]
    assert [r.state for r in cut] == ["interrupted"]
    capsys.readouterr()
    assert main(["runs", "latest", "--runs", root]) == 0
    table = capsys.readouterr().out
    assert " failed" not in table
    assert " interrupted " in table
    assert main(["report", "latest", "--runs", root, "--out", str(run.path.parent / "r.html")]) == 0
    page = (run.path.parent / "r.html").read_text(encoding="utf-8")
    assert "interrupted" in page
    assert "1 failed" not in page
    assert "This run is going on" not in page
    if job == "confirm-":
        assert run.result()["confirmed"] is False, "a finalist that was cut off is not confirmed"


@pytest.mark.slow
def test_the_sentence_that_is_printed_goes_on_with_the_search(start: Start) -> None:
    sizes = ("--trials", "3", "--steps", "10", "--baselines", "none")
    command = start(*SEARCH, *sizes, "--workers", "0", patch=STUCK.format(job="trial-1"))
    command.wait_for(lambda: "stuck in" in command.out)
    assert command.ctrl_c() == 130
    (line,) = [line for line in command.out.splitlines() if "Go on with: " in line]
    again = start(*line.split("Go on with: autopeft ")[1].split())
    assert again.end() == 0, again.out
    (run,) = runs_of(again)
    assert run.summary()["state"] == "finished"
    assert len(run.result()["test"]) == EFFORTS["quick"].seeds


@pytest.mark.slow
def test_a_second_ctrl_c_ends_what_does_not_heed_the_first(start: Start) -> None:
    patch = SLEEP.format(module="autopeft.search.execution.worker", name="run_job")
    command = start(*SEARCH, "--trials", "2", "--steps", "10", "--workers", "0", patch=patch)
    command.wait_for(lambda: "stuck" in command.out)
    os.killpg(command.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert command.ctrl_c() == 130, command.out
    assert "Go on with: autopeft search --resume" in command.out
    assert "Traceback" not in command.out
    (run,) = runs_of(command)
    assert run.summary()["state"] == "unfinished"


@pytest.mark.slow
def test_sigterm_ends_what_does_not_heed_it_and_the_results_are_written(start: Start) -> None:
    """As a scheduler would: nobody is there to press Ctrl-C again."""
    patch = STUCK.format(job="trial-1").replace("should_stop()", "False")
    sizes = ("--trials", "3", "--steps", "10", "--baselines", "none")
    command = start(*SEARCH, *sizes, "--workers", "0", patch=patch)
    command.wait_for(lambda: "stuck in" in command.out)
    assert command.terminate() == 143, command.out
    assert "Interrupted. Go on with: autopeft search --resume" in command.out
    assert "Traceback" not in command.out
    (run,) = runs_of(command)
    assert run.result()["interrupted"] is True
    assert (run.winner / "weights.safetensors").exists()
    assert [r.state for r in run.trials().records] == ["complete", "interrupted"]


@pytest.mark.slow
def test_with_grace_what_runs_comes_to_its_end(start: Start) -> None:
    last = "while True:\n            time.sleep(0.05)"
    patch = STUCK.format(job="trial-1").replace(last, "for _ in range(40):\n            time.sleep(0.05)")
    sizes = ("--trials", "3", "--steps", "10", "--baselines", "none", "--grace", "60")
    command = start(*SEARCH, *sizes, "--workers", "0", patch=patch)
    command.wait_for(lambda: "stuck in" in command.out)
    assert command.terminate() == 143, command.out
    (run,) = runs_of(command)
    assert [r.state for r in run.trials().records] == ["complete", "complete"], "and no third one is begun"
    assert run.result()["interrupted"] is True


@pytest.mark.slow
def test_workers_on_ray(start: Start) -> None:
    sizes = ("--trials", "400", "--steps", "20", "--workers", "1", "--baselines", "none")
    command = start(*SEARCH, *sizes)
    command.wait_for(lambda: "trial 0: 0." in command.out)
    assert command.ctrl_c() == 130, command.out
    assert "Interrupted. Go on with: autopeft search --resume" in command.out
    assert "error: interrupted." not in command.out, "it is said once"
    assert "failed" not in command.out
    (run,) = runs_of(command)
    assert not any(r.state == "failed" for r in run.trials().records)


@pytest.fixture(scope="module")
def trained(material: Path) -> Path:
    command = Command(material, "train", "--recipe", "mam", *DATA, "--steps", "5", "--out", "trained")
    assert command.end() == 0, command.out
    return material / "trained"


SMALL = ("--trials", "3", "--steps", "10")
# What is interrupted where, and the signal that the default run sends, if it does.
WHERE: dict[str, tuple[tuple[str, ...], str, Signals | None]] = {
    "imports": (("methods",), SLOW_IMPORT, SIGTERM),
    "data are loading": (
        (*SEARCH, "--workers", "0"),
        SLEEP.format(module="autopeft.training.task_loading", name="load_task"),
        None,
    ),
    "ray starts": (
        (*SEARCH, *SMALL, "--workers", "1"),
        SLEEP.format(module="autopeft.search.execution.ray_executor", name="cluster"),
        None,
    ),
    "train": (
        ("train", "--recipe", "mam", *DATA, "--steps", "10"),
        SLEEP.format(module="autopeft.training.fixed", name="train_hybrid"),
        None,
    ),
    "predict": (
        ("predict", "TRAINED", "--text", "good"), SLEEP.format(module="autopeft.hybrid", name="load"), None
    ),
    "evaluate": (
        ("evaluate", "TRAINED", "--text", "body", "--label", "verdict"),
        SLEEP.format(module="autopeft.hybrid", name="load"),
        None,
    ),
    "export": (
        ("export", "TRAINED", "-o", "exported"),
        SLEEP.format(module="autopeft.export.api", name="write_package"),
        None,
    ),
    "report": (
        ("report", "TRAINED"), SLEEP.format(module="autopeft.report.html.page", name="winner_of"), None
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("where", "number"),
    [
        pytest.param(where, number, marks=() if number == always else pytest.mark.slow)
        for where, (_, _, always) in WHERE.items()
        for number in (SIGINT, SIGTERM)
    ],
)
def test_a_command_that_is_interrupted_says_so_and_leaves_no_run(
    request: pytest.FixtureRequest, start: Start, where: str, number: Signals
) -> None:
    words, patch, _ = WHERE[where]
    if "TRAINED" in words:
        trained = str(request.getfixturevalue("trained"))
        words = tuple(trained if word == "TRAINED" else word for word in words)
    command = start(*words, patch=patch)
    command.wait_for(lambda: "stuck" in command.out)
    if where == "train":
        (run,) = runs_of(command)
        assert run.summary()["state"] == "running"
    assert command.interrupt(number) == 128 + number, command.out
    assert SAID[number] in command.out
    assert "Traceback" not in command.out
    assert runs_of(command) == []
    assert not list((command.log.parent / "runs").glob("*"))


HALF = """
import time
from transformers import PreTrainedModel
plain = PreTrainedModel.save_pretrained
def stuck(self, *args, **more):
    plain(self, *args, **more)
    print("stuck", flush=True)
    time.sleep(100)
PreTrainedModel.save_pretrained = stuck
"""


@pytest.fixture(scope="module")
def mergeable(material: Path) -> Path:
    (material / "lora.yaml").write_text("autopeft: 2\nname: lora\nlayers: [{attach: [lora]}]\n")
    command = Command(material, "train", "--recipe", "lora.yaml", *DATA, "--steps", "2", "--out", "mergeable")
    assert command.end() == 0, command.out
    return material / "mergeable"


@pytest.mark.slow
@both(SIGINT)
def test_an_export_that_is_not_whole_is_not_there(mergeable: Path, start: Start, number: Signals) -> None:
    command = start("export", "mergeable", "-o", "exported", "--as", "merged", patch=HALF)
    command.wait_for(lambda: "stuck" in command.out)
    assert command.interrupt(number) == 128 + number, command.out
    assert SAID[number] in command.out
    assert not (command.log.parent / "exported").exists()


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_signals_until_the_process_is_gone_do_not_change_its_exit_code(start: Start, number: Signals) -> None:
    """Python takes all handlers away some time before it ends."""
    command = start("methods", patch=SLOW_IMPORT)
    command.wait_for(lambda: "stuck" in command.out)
    while command.process.poll() is None:
        command.process.send_signal(number)
        time.sleep(0.001)
    assert command.process.returncode == 128 + number, command.out
    assert command.out.count(SAID[number]) == 1
    assert "Traceback" not in command.out


@pytest.mark.slow
def test_signals_when_a_command_has_ended_do_not_change_its_exit_code(start: Start) -> None:
    command = start("spaces", patch=SLOW_END)
    command.wait_for(lambda: "stuck" in command.out)
    while command.process.poll() is None:
        command.process.send_signal(SIGINT)
        time.sleep(0.001)
    assert command.process.returncode == 0, command.out
    assert "Traceback" not in command.out


@pytest.mark.slow
def test_a_swarm_of_ctrl_c_is_one(start: Start) -> None:
    sizes = ("--trials", "2", "--steps", "10", "--baselines", "none", "--workers", "0")
    command = start(*SEARCH, *sizes, patch=STUCK.format(job="trial-1"))
    command.wait_for(lambda: "stuck in" in command.out)
    for _ in range(50):
        os.killpg(command.process.pid, SIGINT)
        time.sleep(0.02)
    assert command.end() == 130, command.out
    assert "Traceback" not in command.out
    assert "Interrupted. Go on with: autopeft search --resume" in command.out
    (run,) = runs_of(command)
    assert run.trials().records[0].state == "complete"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--from", "nosuch"), "nosuch"),
        (("--workers", "1", "--address", "127.0.0.1:9"), "127.0.0.1:9"),
    ],
)
def test_an_error_before_anything_was_searched_leaves_no_run(
    start: Start, words: tuple[str, ...], said: str
) -> None:
    command = start(*SEARCH, "--trials", "2", "--steps", "10", *words)
    assert command.end() in (1, 2), command.out
    assert said in command.out
    assert runs_of(command) == []
    assert list((command.log.parent / "runs").glob("*")) == []
