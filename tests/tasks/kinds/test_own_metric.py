"""A user's own function scores; only the command line and Python can name it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.language import save_decoder, write_chats
from support.saved_model import save_backbone, small_search, write_reviews

import autopeft
from autopeft.cli import main
from autopeft.errors import AutoPEFTError, TaskError, UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.execution.logged_jobs import LoggedJobs
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.resume import SPACE, prepare_here, resume_command
from autopeft.tasks import load_task
from autopeft.tasks.kinds import function_of, get_metric, metric_name, own_metric, use_metric

RECIPE = Recipe.from_dict({"layers": [{"at": "all", "attach": ["lora"]}], "name": "r"})
MODULE = '''\
"""A metric of somebody's own."""

def letters(predictions, references):
    """Share of answers of the right length."""
    return sum(len(p) == len(r) for p, r in zip(predictions, references)) / len(references)

def equal(predictions, references):
    return sum(p == r for p, r in zip(predictions, references)) / len(references)

def fails(predictions, references):
    raise ZeroDivisionError("nothing there")
'''


def share(predictions: list[Any], references: list[Any]) -> float:
    """Percent of rows that are right."""
    return 100 * sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my_own_metrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_written_answers_are_scored_by_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "r.yaml").write_text(RECIPE.to_yaml())
    argv = ["train", "--recipe", "r.yaml", "--task", str(write_chats(place / "chats.jsonl")), "--steps", "2"]
    argv += ["--model", str(save_decoder(place / "llama")), "--max-length", "48", "-o", "run", "--json"]
    assert main([*argv, "--metric", "my_own_metrics:letters"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metric"], told["trial_metric"]) == ("my_own_metrics:letters", "likelihood")
    assert 0 <= told["test_mean"] <= 1
    manifest = json.loads((place / "run/manifest.json").read_text())
    assert manifest["arguments"]["metric"] == "my_own_metrics:letters"
    assert main(["evaluate", "run", "--metric", "my_own_metrics:letters", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(told["test_mean"])
    assert main([*argv[:-3], "--metric", "my_own_metrics:fails", "-o", "other"]) != 0
    assert "my_own_metrics:fails failed on" in capsys.readouterr().err


def test_other_kinds_are_scored_by_it(place: Path) -> None:
    found = autopeft.train(
        recipe=RECIPE, task=str(write_reviews(place / "reviews.csv")), label="verdict", text="body",
        model=str(save_backbone(place / "bert")), steps=1, max_length=24, metric=share,
    )  # fmt: skip
    again = autopeft.evaluate(found, metric="accuracy")
    assert found.scores["test"] == pytest.approx(100 * again.score)


def test_no_file_imports_it(place: Path) -> None:
    with pytest.raises(TaskError, match="give it again"):
        load_task(str(write_chats(place / "chats.jsonl")), metric="my_own_metrics:never_named")
    with pytest.raises(UsageError, match="no file decides what is imported"):
        SearchArguments(metric="my_own_metrics:never_named")
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    (folder.path / "space.yaml").write_text("autopeft: 2\nname: s\nlayers: [{at: all, attach: [lora]}]\n")
    said = {"task": "x", "budget": "1%", "metric": "my_own_metrics:letters"}
    (folder.path / "manifest.json").write_text(json.dumps({"arguments": said}))
    with pytest.raises(UsageError, match=r"does not decide what is imported: give it again, with --metric"):
        prepare_here(folder)


def test_a_job_is_debugged_with_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A search that was scored by it names it in its folder, which imports nothing."""
    given = small_search(place, trials=1, steps=2, metric=function_of("my_own_metrics:equal"))
    ready = prepare(SearchArguments(**{**given, "out": None}))
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    folder.write_json("manifest.json", ready.manifest())
    folder.write_text(SPACE, ready.space.text)
    recipe = RECIPE.to_dict()
    job = TrainJob("confirm-0-s1000", "confirm", "finalist 0", recipe, seed=1000, steps=2, splits=("select",))
    LoggedJobs(_Source(job), folder).next()
    assert main(["debug", "run", job.id]) == 2
    assert "give it again, with --metric" in capsys.readouterr().err
    assert main(["debug", "run", job.id, "--metric", "accuracy"]) == 2
    assert "only a function of your own is given again" in capsys.readouterr().err
    assert main(["debug", "run", job.id, "--metric", "my_own_metrics:fails"]) == 2
    assert "keeps its metric" in capsys.readouterr().err
    assert main(["debug", "run", job.id, "--metric", "my_own_metrics:equal"]) == 0
    assert "confirm-0-s1000 is complete: select " in capsys.readouterr().out


class _Source:
    """Hands out one job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def next(self) -> Job:
        return self._job


def test_the_command_that_goes_on_names_it() -> None:
    assert f"--metric {metric_name(share)}" in resume_command(Path("runs/x"), {"metric": share})
    assert "--metric" not in resume_command(Path("runs/x"), {"metric": "accuracy"})


def test_what_is_no_function_is_refused(place: Path) -> None:
    assert function_of("accuracy") == "accuracy"
    with pytest.raises(UsageError, match="cannot be imported"):
        function_of("no_such_module_here:f")
    with pytest.raises(UsageError, match=r"has no function 'leters'\. .*letters"):
        function_of("my_own_metrics:leters")


def test_it_travels_and_a_later_one_takes_its_place() -> None:
    metric = pickle.loads(pickle.dumps(own_metric(share, generated=False)))
    assert metric.score(np.array([1, 0]), np.array([1, 1])) == 50.0
    assert not metric.built_in, "the code may change unseen: no score of it is kept for other searches"
    assert metric.summary == "Percent of rows that are right."
    use_metric(metric)
    other = use_metric(own_metric(share, generated=True))
    assert get_metric(metric.name) is other
    with pytest.raises(AutoPEFTError, match="TypeError"):
        own_metric(lambda p, r: None, generated=False).score(np.array([1]), np.array([1]))  # type: ignore[arg-type,return-value]
