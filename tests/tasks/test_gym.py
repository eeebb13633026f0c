"""Procedural tasks by name: what is refused, and with reasoning-gym its rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder

import autopeft
import autopeft.tasks.gym as gym
from autopeft.errors import DataError, TaskError
from autopeft.tasks import SPLIT_NAMES, Rows, Task, cluster_of, load_task
from autopeft.tasks.gym import parse_gym

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs the extra autopeft[gym]"
)
FEW = Rows(24, 3, 3)
UNKNOWN = {"unknown": "chain_sums", "names": ["chain_sum"]}
SMALL = "gym:chain_sum?min_terms=2&max_terms=2&max_digits=1"


def prompts(task: Task) -> list[list[str]]:
    return [list(task.splits[name].texts) for name in SPLIT_NAMES]


def test_names_that_mean_the_same_are_equal() -> None:
    one = parse_gym("gym:chain_sum?min_terms=2&max_terms=3")
    assert one == parse_gym("gym:chain_sum?max_terms=3&min_terms=2")
    assert one.name == "gym:chain_sum?max_terms=3&min_terms=2"
    assert parse_gym("gym:chain_sum").name == "gym:chain_sum"
    assert cluster_of("gym:chain_sum?max_terms=3") == cluster_of("gym:chain_sum") == "gym:chain_sum"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:", "names no procedural task"),
        ("gym:../chain_sum", "names no procedural task"),
        ("gym:chain_sum?", "names no procedural task"),
        ("gym:chain_sum?max_terms", "is no parameter"),
        ("gym:chain_sum?max_terms=2&max_terms=3", "stands there twice"),
        ("gym:chain_sum?max_terms=1000001", "up to 1,000,000"),
        ("gym:chain_sum?max_terms=1e99", "up to 1,000,000"),
        ("gym:chain_sum?max_terms=nan", "up to 1,000,000"),
        ("gym:chain_sum?max_terms=__import__('os')", "up to 1,000,000"),
        ("gym:chain_sum?max_terms=" + "1" * 500, "up to 500 letters"),
        ("gym:chain_sum?" + "&".join(f"p{i}=1" for i in range(21)), "up to 20"),
        ("gym:chain_sum?seed=3", "--seed"),
        ("gym:chain_sum?size=3", "--train-rows"),
    ],
)
def test_names_that_are_refused_before_anything_runs(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.subprocess, "run", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(TaskError, match=said):
        load_task(name)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise gym.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gym.importlib.metadata, "version", missing)
    with pytest.raises(TaskError, match=r"pip install 'autopeft\[gym\]'"):
        load_task("gym:chain_sum")
    with pytest.raises(TaskError, match="columns of its own"):
        load_task("gym:chain_sum", text="question")


class Child:
    """In place of the process that makes rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any, code: int = 0) -> None:
        self.asked: dict[str, Any] = {}
        text = answer if isinstance(answer, str) else json.dumps(answer)

        def run(command: list[str], **options: Any) -> Any:
            self.asked = json.loads(options["input"])
            return gym.subprocess.CompletedProcess(command, code, text, "first\nMemoryError\n")

        monkeypatch.setattr(gym.importlib.metadata, "version", lambda name: "0.1.25")
        monkeypatch.setattr(gym.subprocess, "run", run)


@pytest.mark.parametrize(
    ("answer", "code", "error", "said"),
    [
        ({"refused": UNKNOWN}, 0, TaskError, "Did you mean 'chain_sum'"),
        ("{", 0, DataError, "MemoryError"),
        ("", 1, DataError, "MemoryError"),
        ({"rows": {"train": [[0, 0, "a", "b"]], "select": [], "test": []}}, 0, DataError, "too few"),
    ],
)
def test_what_the_process_says(
    answer: Any, code: int, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Child(monkeypatch, answer, code)
    with pytest.raises(error, match=said):
        load_task("gym:chain_sums")


def test_a_process_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.importlib.metadata, "version", lambda name: "0.1.25")
    monkeypatch.setattr(gym, "_SECONDS", 0.01)
    with pytest.raises(DataError, match="--train-rows"):
        load_task("gym:chain_sum")


def test_rows_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        name: [[seed, i, f"{name} {i}?", str(i)] for i in range(9)]
        for seed, name in enumerate(("test", "select", "train"))
    }
    child = Child(monkeypatch, {"rows": rows})
    task = load_task("gym:chain_sum?max_terms=3", seed=7, made=Rows(9, None, 9))
    assert child.asked == {
        "name": "chain_sum",
        "parameters": {"max_terms": "3"},
        "seed": 7,
        "wanted": {"train": 9, "select": 1_000, "test": 9},
    }
    assert task.kind == "causal_lm"
    assert task.splits["select"].texts[1] == "select 1?"
    assert task.splits["select"].labels[1] == "1"
    assert task.splits["select"].fields["generator"][1] == [1, 1]
    assert task.source.name == "gym:chain_sum?max_terms=3"
    assert "0.1.25" in str(task.source.licence)
    with pytest.raises(TaskError, match="Up to 100,000 rows"):
        load_task("gym:chain_sum", made=Rows(100_001))


@installed
def test_splits_share_no_prompt_and_come_from_seeds_of_their_own() -> None:
    task = load_task(SMALL)
    assert task.metric == "exact_match"
    train, select, test = prompts(task)
    found = [*train, *select, *test]
    assert len(found) == len(set(found)) == 200, "all sums and differences of two digits"
    assert min(map(len, (train, select, test))) >= 10
    seeds = [{row[0] for row in task.splits[name].fields["generator"]} for name in SPLIT_NAMES]
    assert [len(part) for part in seeds] == [1, 1, 1]
    assert len(set().union(*seeds)) == 3
    for prompt, answer in zip(test, task.splits["test"].labels, strict=True):
        assert eval(prompt.split(":")[1].removesuffix("=")) == int(answer)


@installed
def test_rows_are_the_same_for_a_seed_and_fewer_begin_more() -> None:
    few, many, other = (
        load_task("gym:chain_sum", made=rows, seed=seed)
        for rows, seed in ((FEW, 0), (Rows(40, 6, 6), 0), (FEW, 1))
    )
    for name in SPLIT_NAMES:
        assert many.splits[name].texts[: len(few.splits[name])] == few.splits[name].texts
    assert [len(few.splits[name]) for name in SPLIT_NAMES] == [24, 3, 3]
    assert few.source.sha256 != other.source.sha256
    assert few.source.sha256 == "40d39da88e4a6e0f376112ae7ffeec27b89343009e38836d5a07b24acc895778"


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:chain_sum?max_term=2", "Did you mean 'max_terms'"),
        ("gym:chain_sum?max_terms=2.5", "whole number"),
        ("gym:chain_sum?min_terms=0", "must be positive"),
        ("gym:spell_backward?data_file=1", "cannot be set"),
        ("gym:chain_sum?min_terms=1000000&max_terms=1000000", "longer than 20,000 letters"),
        ("gym:graph_color", "only a verifier"),
    ],
)
def test_parameters_that_the_generator_refuses(name: str, said: str) -> None:
    with pytest.raises((TaskError, DataError), match=said):
        load_task(name, made=FEW)


@installed
@pytest.mark.slow
def test_a_run_finds_its_rows_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    name = "gym:chain_sum?max_terms=3"
    options: dict[str, Any] = {"model": str(save_decoder(tmp_path / "llama")), "max_length": 32, "seed": 2}
    run = tmp_path / "run"
    found = autopeft.search(
        task=name, budget="5%", trials=1, steps=4, confirm=1, confirm_seeds=1, baselines="none", workers=0,
        train_rows=60, select_rows=12, test_rows=12, out=str(run), **options,
    )  # fmt: skip
    told = json.loads((run / "manifest.json").read_text())["data"]
    assert told["rows"] == told["rows_before_limits"] == {"train": 60, "select": 12, "test": 12}
    again = autopeft.evaluate(run)
    assert again.rows == 12
    assert again.score == pytest.approx(found.test_mean)
    rows = load_task(name, made=Rows(60, 12, 12), seed=2)
    assert rows.source.sha256 == told["source"]["sha256"]
