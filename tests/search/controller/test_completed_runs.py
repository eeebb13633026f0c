from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.checkpoints import FolderCheckpoints
from autopeft.search.controller.completed_runs import KnownRuns
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.baseline_cache import KeptScores


def job(name: str, kind: Any = "baseline", splits: tuple[str, ...] = ("select",)) -> Job:
    return TrainJob(name, kind, name, {"name": name}, seed=3, steps=5, splits=splits)


def record(name: str, kind: Any = "baseline", **more: Any) -> TrialRecord:
    options: dict[str, Any] = {"state": "complete", "scores": {"select": 0.5}, "job": name, **more}
    return TrialRecord(kind, name, options.pop("state"), {"name": name}, seed=3, steps=5, **options)


class Keys:
    def of(
        self, recipe: Any, seed: int, steps: int, precision: str, rank_by: str, *, metric: str | None
    ) -> Any:
        return (recipe["name"], seed, steps, precision, rank_by, metric)


class Cache:
    def __init__(self) -> None:
        self.held: dict[Any, KeptScores] = {}

    def get(self, key: Any) -> KeptScores | None:
        return self.held.get(key)

    def put(self, key: Any, run: KeptScores, seconds: float) -> None:
        self.held[key] = run


def known(
    folder: Path, cache: Any = None, rank_by: str = "score", place: str = "", checkpoints: Any = None
) -> KnownRuns:
    checkpoints = checkpoints or FolderCheckpoints(folder / "files")
    return KnownRuns(RunFolder(folder), checkpoints, Keys(), cache or Cache(), rank_by, place)  # type: ignore[arg-type]


def test_only_finished_runs_of_an_earlier_process_count(tmp_path: Path) -> None:
    folder, checkpoints = RunFolder(tmp_path), FolderCheckpoints(tmp_path / "files")
    for line in (
        record("good", counts={"deployed": 5}, seconds=2.0, train_loss=0.3),
        record("failed", state="failed", scores={}, error="no"),
        record("", scores={"select": 0.1}),
        {**asdict(record("odd")), "scores": {"select": "high"}},
        record("confirm-1-s1000", kind="confirm"),
        record("confirm-2-s1000", kind="confirm"),
    ):
        folder.append_line("finals.jsonl", line)
    with (tmp_path / "finals.jsonl").open("a") as file:
        file.write('{"job": "torn", "state": "comp')
    checkpoints.put("confirm-1-s1000", {"weights": b"1"})
    past = known(tmp_path, checkpoints=checkpoints)
    found = past.recall(job("good"))
    assert found is not None
    assert (found.scores, found.seconds, found.counts) == ({"select": 0.5}, 2.0, {"deployed": 5})
    assert past.recall(job("good", splits=("select", "test"))) is None
    assert all(past.recall(job(name)) is None for name in ("failed", "", "odd", "torn", "new"))
    # A finalist without its weights is trained again: it may have to be tested.
    assert past.recall(job("confirm-1-s1000", kind="confirm")) is not None
    assert past.recall(job("confirm-2-s1000", kind="confirm")) is None
    kept = [line["job"] for line in folder.lines("finals.jsonl")]
    assert kept == ["good", "confirm-1-s1000", "confirm-2-s1000"]


def test_the_first_record_may_be_torn(tmp_path: Path) -> None:
    """What is written next does not go on in its line."""
    folder = RunFolder.create("t", "k", root=tmp_path, out=None)
    finals = folder.path / "finals.jsonl"
    finals.write_text('{"job": "torn", "state": "comp')
    known(folder.path)
    assert finals.read_text() == ""


def test_a_run_of_another_recipe_or_seed_or_length_is_not_the_jobs(tmp_path: Path) -> None:
    """A baseline's candidates may be others where another version goes on."""
    folder = RunFolder(tmp_path)
    folder.append_line("finals.jsonl", record("baseline-0-0-s3"))
    past = known(tmp_path)
    asked = job("baseline-0-0-s3")
    assert past.recall(replace(asked, recipe={"name": "baseline-0-0-s3"})) is not None
    for other in ({"recipe": {"name": "another"}}, {"seed": 4}, {"steps": 6}):
        assert past.recall(replace(asked, **other)) is None


def test_what_is_run_again_is_recorded_again_and_the_last_one_counts(tmp_path: Path) -> None:
    """A finalist whose weights are gone is trained again: its scores are then those of the new weights."""
    folder, checkpoints = RunFolder(tmp_path), FolderCheckpoints(tmp_path / "files")
    folder.append_line("finals.jsonl", record("confirm-1-s3", kind="confirm"))
    again = record("confirm-1-s3", kind="confirm", scores={"select": 0.7})
    folder.append_line("finals.jsonl", again)
    checkpoints.put("confirm-1-s3", {"weights": b"1"})
    found = known(tmp_path, checkpoints=checkpoints).recall(job("confirm-1-s3", kind="confirm"))
    assert found is not None
    assert found.scores == {"select": 0.7}
    assert len(folder.finals().records) == 1


def test_baselines_alone_are_shared_between_searches(tmp_path: Path) -> None:
    cache: Any = Cache()
    kept = known(tmp_path, cache, "score")
    scores = {"select": 0.6, "test": 0.7}
    kept.remember(record("lora", scores=scores, pseudo_values=[0.6, 0.8], counts={"deployed": 7}))
    kept.remember(record("confirm-1", kind="confirm"))
    assert kept.recall(replace(job("lora"), precision="bf16")) is None, "scores in bf16 are others"
    kept.remember(record("failed", state="failed"))
    kept.remember(record("again", kept=True))
    assert list(cache.held) == [("lora", 3, 5, "fp32", "score", None)]
    found = kept.recall(job("lora"))
    assert found is not None
    assert (found.scores, found.pseudo_values) == ({"select": 0.6}, ())
    assert found.counts == {"deployed": 7}, "what a data-dependent method left, not what its recipe says"
    both = kept.recall(job("lora", splits=("select", "test")))
    assert both is not None
    assert both.pseudo_values == (0.6, 0.8)
    assert kept.recall(job("lora", kind="confirm")) is None
    cache.held[("lora", 3, 5, "fp32", "score", None)] = KeptScores({"select": 0.6})
    assert kept.recall(job("lora", splits=("select", "test"))) is None


def test_what_a_baseline_took_is_known_and_its_times_in_the_same_place_alone(tmp_path: Path) -> None:
    cache: Any = Cache()
    took = {"step_time": 0.5, "latency": 0.1, "memory": 7e6, "file": 900}
    known(tmp_path, cache, "score", "one CPU").remember(record("lora", measured=took))
    here = known(tmp_path, cache, "score", "one CPU").recall(job("lora"))
    elsewhere = known(tmp_path, cache, "score", "two CPUs").recall(job("lora"))
    assert here is not None
    assert here.measured == took
    assert elsewhere is not None
    assert elsewhere.measured == {"memory": 7e6, "file": 900}
    known(tmp_path, cache, "score").remember(record("lora", measured=took))
    anywhere = known(tmp_path, cache, "score").recall(job("lora"))
    assert anywhere is not None
    assert anywhere.measured == {"memory": 7e6, "file": 900}, "a cluster's machines are not told apart"


def test_what_a_baseline_is_ranked_by_is_shared_too(tmp_path: Path) -> None:
    cache: Any = Cache()
    for rank_by in ("loss", "calibrated-loss"):
        kept = known(tmp_path, cache, rank_by)
        kept.remember(record("lora", merits={"5": -0.4}))
        assert list(cache.held)[-1] == ("lora", 3, 5, "fp32", rank_by, None)
        assert kept.recall(job("lora")) is None, "it was not ranked by its score"
        found = kept.recall(replace(job("lora"), rank_by=rank_by))
        assert found is not None
        assert found.rank == -0.4
