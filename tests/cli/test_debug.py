"""`autopeft debug` on jobs that really failed, and on one whose worker was really killed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search
from support.searching import Events

from autopeft.cli import main
from autopeft.errors import AutoPEFTError
from autopeft.runs.folder import RunFolder, load_run
from autopeft.runs.records import CountTable
from autopeft.search.api import search
from autopeft.search.controller.rerun import prepare_rerun
from autopeft.search.core.events import SearchInfo
from autopeft.search.core.jobs import Job


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return small_search(tmp_path, trials=2, steps=60, baselines="none", workers=0)


def files_of(run: RunFolder) -> dict[str, bytes]:
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


class BreakTokenizer(Events):
    """Spoils a file that no hash guards once the search has been prepared."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._file = Path(model) / "tokenizer.json"

    def on_start(self, info: SearchInfo) -> None:
        self._file.write_text('{"version": "1.0", "model": {"type": "no such thing"}}')


def fail(arguments: dict[str, Any]) -> RunFolder:
    with pytest.raises(AutoPEFTError, match="All 2 trials failed"):
        search(reporter=BreakTokenizer(arguments["model"]), **arguments)
    return load_run(arguments["out"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_it_gives_the_exception_that_the_log_has(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    run = fail({**arguments, "workers": workers})
    log = (run.logs / "trial-1.txt").read_text()
    assert log.startswith("trial-1: failed\n")
    recorded = traceback_of(log)
    assert "load_tokenizer" in recorded
    assert re.search(r"process: \d+ on .+\nversions: python .*transformers \d", log)
    before = files_of(run)
    capsys.readouterr()
    assert main(["debug", str(run.path), "trial-1"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"trial-1 of {run.name}: trial 1, seed 0, 60 steps")
    assert str(run.logs / "trial-1.txt") in err
    assert traceback_of(err).splitlines()[-1] == recorded.splitlines()[-1], "another exception or message"
    assert files_of(run) == before


def traceback_of(text: str) -> str:
    """The last traceback of a text, up to the line of the exception."""
    found = text[text.rindex("Traceback (most recent call last)") :]
    end = re.search(r"^[A-Za-z_.]+(Error|Exception)?: .*$", found, re.MULTILINE)
    assert end is not None, text
    return found[: end.end()]


@pytest.mark.slow
def test_pdb_opens_at_the_failing_line(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run, opened = fail(arguments), list[str]()

    def remember(traceback: Any) -> None:
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        opened.append(traceback.tb_frame.f_code.co_name)

    monkeypatch.setattr("pdb.post_mortem", remember)
    assert main(["debug", str(run.path), "0"]) == 1
    assert opened == []
    assert main(["debug", str(run.path), "0", "--pdb"]) == 1
    assert opened == ["loaded"], "not where the error was raised"


class Killed(Exception):  # noqa: N818
    """Ends the search once its worker was killed."""


class KillWorker(Events):
    """`kill -9` of the worker at its first news of a step; the search ends when the job is given again."""

    step = 0

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        if step and not self.step:
            self.step = step
            for pid in workers_of_this_process():
                os.kill(pid, signal.SIGKILL)

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        if job.attempt:
            raise Killed


def workers_of_this_process() -> list[int]:
    """Ray's workers under the raylet that this process has started."""
    parents, names = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue  # it ended meanwhile
    return [p for p, name in names.items() if "_Worker" in name and parents.get(parents[p]) == os.getpid()]


@pytest.mark.slow
def test_a_killed_worker_leaves_a_log_and_its_job_runs_again(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {**arguments, "trials": 1, "steps": 600, "fidelity": "none", "seed": 7}
    killer = KillWorker()
    with pytest.raises(Killed):
        search(reporter=killer, **{**job, "workers": 1})
    assert killer.step, "no worker was killed"
    run = load_run(job["out"])
    log = (run.logs / "trial-0.txt").read_text()
    assert log.startswith("trial-0: lost\n")
    step = re.search(r"^last step reported: (\d+), with loss \d", log, re.MULTILINE)
    assert step is not None
    assert killer.step <= int(step[1]) < 600
    peak = re.search(r"^peak memory of the process, as last reported: ([\d,]+) MB$", log, re.MULTILINE)
    assert peak is not None
    assert int(peak[1].replace(",", "")) > 100
    assert "it was SIGKILL" in log
    assert "The actor died unexpectedly" in log, "Ray's account is not kept"
    kept = {p.name for p in (run.logs / "ray").iterdir()}
    assert {"raylet.out", "gcs_server.out"} <= kept, "Ray's own logs are not kept"

    # The same job in a search that nobody disturbs
    (whole,) = search(**{**job, "out": tmp_path / "whole"}).trials
    before = files_of(run)
    first = prepare_rerun(run, "0", attempt=1)
    assert (first.job.seed, first.job.steps, first.job.attempt) == (7, 600, 0)
    result = first.run(lambda step, loss: None)
    assert result.scores == dict(whole.scores)
    assert result.train_loss == whole.train_loss
    capsys.readouterr()
    assert main(["debug", str(run.path), "trial-0", "--attempt", "1"]) == 0
    assert f"train loss {whole.train_loss:.6g}" in capsys.readouterr().out
    assert files_of(run) == before


@pytest.mark.slow
def test_a_job_of_a_finished_run_gives_what_it_gave(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials that were paused run from the start, the winner's test from its weights."""
    result = search(**{**arguments, "trials": 4, "steps": 120})
    run = load_run(arguments["out"])
    gone_on = [t for t in result.trials if t.state == "complete" and len(t.rungs) > 1]
    assert gone_on, "no trial went on from a rung"
    trial = gone_on[0]
    capsys.readouterr()
    assert main(["debug", str(run.path), str(trial.number)]) == 0
    out, err = capsys.readouterr()
    assert "went on from a checkpoint that is gone; here it is trained from the start" in err
    assert f"select {trial.score:.4f}, train loss {trial.train_loss:.6g}" in out

    test = next(p.stem for p in run.logs.glob("test-*.txt"))
    assert main(["debug", str(run.path), test]) == 0
    assert f"test {result.test[0]:.4f}" in capsys.readouterr().out
    (run.winner / "weights.safetensors").write_bytes(b"other weights")
    assert main(["debug", str(run.path), test]) == 2
    assert f"Run the job that trained them: {test.removeprefix('test-')}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_paused_trial_goes_on_from_its_checkpoint_while_that_is_there(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    class Stop(Events):
        """Ends the search in the middle of a trial that went on from a rung."""

        def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
            if job.files:
                raise Killed

    options = {**arguments, "trials": 4, "steps": 120}
    with pytest.raises(Killed):
        search(reporter=Stop(), **options)
    run = load_run(options["out"])
    (log,) = [p for p in run.logs.glob("*.txt") if p.read_text().startswith(f"{p.stem}: stopped")]
    again = prepare_rerun(run, log.name)
    assert again.job.files is not None
    assert again.notices == ()
    steps = list[int]()
    result = again.run(lambda step, loss: steps.append(step))
    assert min(steps) > 40, "it began anew"

    whole = search(**{**options, "out": tmp_path / "whole"})
    trial = next(t for t in whole.trials if t.number == again.job.number)
    assert (result.scores, result.train_loss) == (dict(trial.scores), trial.train_loss)


def test_misspelt_jobs_and_runs_are_bad_usage(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = fail(arguments)
    for words, said in (
        (["trail-1"], "Did you mean 'trial-1'"),
        (["7"], "the run had trial-0, trial-1."),
        (["trial-0", "--attempt", "3"], "has no attempt 3; it had 1."),
        (["logs/trial-0.txt", "--attempt", "2"], "has no attempt 2"),
    ):
        assert main(["debug", str(run.path), *words]) == 2
        assert said in capsys.readouterr().err
    data = Path(arguments["task"])
    data.write_text(data.read_text().replace("good", "bad"))
    assert main(["debug", str(run.path), "0"]) == 2
    assert "data of run changed" in capsys.readouterr().err
