"""A kind of task from a package of its own: loads, trains, compares, predicts, exports and searches, and
nothing in this package knows of it."""

from __future__ import annotations

import csv
import importlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.installing import environment, install
from support.registries import keep
from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone

from autopeft.assets import load_tokenizer, resolve_model
from autopeft.backbones import spec_of_model
from autopeft.cli import main
from autopeft.errors import DataError, TaskError
from autopeft.recipe import Recipe
from autopeft.search.selection.baseline_cache import RunKeys
from autopeft.search.selection.significance import ScoredSplit, compare
from autopeft.tasks import Task, get_kind, get_metric, kind_names, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import registry
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.calibration import TaskObjective

PLUGIN = Path(__file__).parent / "ordinal"
RECIPE = """\
autopeft: 2
name: pair
layers:
  - at: all
    attach:
      - lora: {rank: 4, sites: [q, v, up]}
training: {learning_rate: 2.0e-2}
"""
SPACE = """\
autopeft: 2
name: small
layers:
  - at: all
    attach:
      - lora: {rank: {choice: [1, 2, 4, 8]}}
training: {learning_rate: {float: [1.0e-3, 1.0e-2], log: true}}
"""
SEARCH = """\
from autopeft.search.api import search

if __name__ == "__main__":
    search(
        task="ratings.csv", text="body", label="stars", budget="5%", space="space.yaml", model="bert",
        trials=2, steps=5, workers=1, max_length=24, batch_size=16, confirm=1, confirm_seeds=2,
        baselines="head", out="found",
    )
"""
STARS = ("1 star", "2 stars", "3 stars", "4 stars")


def write_ratings(path: Path, rows: int = 160) -> Path:
    """A CSV with `body` and `stars`: the more of the words are good, the more stars."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "stars"])
        for i in range(rows):
            good = 2 * (i % 4)
            words = [*draw.choices(NEUTRAL, k=3), *draw.choices(GOOD, k=good), *draw.choices(BAD, k=6 - good)]
            draw.shuffle(words)
            writer.writerow([" ".join(words), STARS[i % 4]])
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed by pip into a folder."""
    return install(PLUGIN, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def plugged(installed: Path) -> Iterator[None]:
    """The registry as a process finds it in which the package is installed, and as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        keep(patch, registry.KINDS, registry.METRICS)
        patch.setattr(registry, "_BY_KIND", {k: dict(v) for k, v in registry._BY_KIND.items()})
        patch.setattr(registry.KINDS, "_loaded", False)
        patch.setattr(registry.METRICS, "_loaded", False)
        yield
    sys.modules.pop("autopeft_ordinal", None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_ratings(folder / "ratings.csv")
    (folder / "pair.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def task(plugged: None, place: Path) -> Task:
    return load_task(str(place / "ratings.csv"), text="body", label="stars")


def trial(task: Task, place: Path, seed: int = 0, micro_batch: int | None = None, steps: int = 120) -> Any:
    source = resolve_model(str(place / "bert"))
    model = task.task_kind.head.load_model(source, task.labels, seed=seed)
    data = encode(task, load_tokenizer(source), 24)
    plan = TrainingPlan(
        steps=steps, batch_size=16, micro_batch=micro_batch, max_length=24, seed=seed, device="cpu"
    )
    return run_trial(model, Recipe.from_yaml(RECIPE), data, plan, splits=("select", "test"))


def test_it_is_found_and_claims_its_data(task: Task, place: Path) -> None:
    assert "ordinal" in kind_names()
    assert (task.kind, task.labels, task.metric, task.num_labels) == ("ordinal", STARS, "kappa", 3)
    counts = [np.bincount(split.labels).tolist() for split in task.splits.values()]
    assert counts == [[32] * 4, [4] * 4, [4] * 4]
    assert set(np.bincount(task.subset(train=40).splits["train"].labels)) == {10}
    options: dict[str, Any] = {"text": "body", "label": "stars", "class_weights": "balanced"}
    named = load_task(str(place / "ratings.csv"), kind="classification", **options)
    assert (named.kind, named.metric) == ("classification", "accuracy")
    by_metric = load_task(str(place / "ratings.csv"), text="body", label="stars", metric="within_one")
    assert by_metric.kind == "ordinal"
    with pytest.raises(TaskError, match="but the task is ordinal"):
        load_task(str(place / "ratings.csv"), **options)
    with pytest.raises(TaskError, match="metric='kappa' is for ordinal, but the task is classification"):
        load_task("trec", metric="kappa")
    with pytest.raises(DataError, match="no number of stars"):
        load_task("trec", kind="ordinal")


def test_it_trains(task: Task, place: Path) -> None:
    outcome = trial(task, place)
    losses = outcome.train.losses
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert outcome.scores["test"] > 0.8
    assert outcome.counts.head == 32 * 3 + 3


def test_micro_batches_add_up(task: Task, place: Path) -> None:
    whole, parts = (trial(task, place, micro_batch=m, steps=8).train.losses for m in (None, 5))
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("metric", ["kappa", "within_one"])
def test_scores_are_compared(task: Task, metric: str) -> None:
    split = ScoredSplit.of(replace(task, metric=metric))
    assert (split.rows, split.classes) == (16, (4, 4, 4, 4))
    found = compare({1: 0.75, 2: 0.7, 3: 0.72}, {1: 0.2, 2: 0.25, 3: 0.22}, split, name="LoRA")
    assert found.low is not None
    assert found.high is not None
    assert -1 < found.low < 0.5 < found.high < 2
    large = ScoredSplit(metric, 1600, tuple(400 for _ in STARS), np.tile(split.labels, 100))  # type: ignore[arg-type]
    clear = compare({1: 0.75, 2: 0.74, 3: 0.76}, {1: 0.5, 2: 0.52, 3: 0.51}, large, name="LoRA")
    assert clear.within_noise is False


def test_the_variance_without_a_formula_is_near_that_of_drawn_rows(plugged: None) -> None:
    rng, kappa = np.random.default_rng(0), get_metric("kappa")
    assert kappa.variance is None
    labels = rng.integers(0, 4, (200, 300))
    predictions = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, 4, labels.shape))
    scores = [kappa.score(p, y) for p, y in zip(predictions, labels, strict=True)]
    split = ScoredSplit("kappa", 300, labels=labels[0])
    assert math.sqrt(split.variance(float(np.mean(scores)))) == pytest.approx(np.std(scores), rel=0.25)


def test_its_own_mean_counts_for_ensembles(plugged: None) -> None:
    mean = get_kind("ordinal").scorer.average({})
    assert mean is not None
    logits = torch.tensor([[[0.0, 2.0]], [[0.0, -2.0]]])
    assert torch.allclose(mean(logits, 0), torch.zeros(1, 2), atol=1e-6)


def test_its_loss_reaches_calibration(task: Task, place: Path) -> None:
    batch = {"labels": torch.tensor([3, 0])}
    objective = TaskObjective(torch.nn.Identity(), task.loss(), lambda _: torch.zeros(2, 3))
    assert float(objective(batch)) == pytest.approx(3 * math.log(2))


def test_what_other_packages_compute_is_not_kept(task: Task, place: Path) -> None:
    source = resolve_model(str(place / "bert"))
    model = task.task_kind.head.load_model(source, task.labels)
    recipe = Recipe.from_yaml(RECIPE).to_dict()
    spec, plan = spec_of_model(model)[0], TrainingPlan(steps=3)
    assert RunKeys(task, source, spec, plan).of(recipe, 0, 3) is None
    built_in = replace(task, kind="classification", metric="accuracy")
    assert RunKeys(built_in, source, spec, plan).of(recipe, 0, 3) is not None
    assert RunKeys(replace(built_in, metric="kappa"), source, spec, plan).of(recipe, 0, 3) is None


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_from_the_command_line(
    plugged: None, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(place / "cache"))
    data = ("--task", "ratings.csv", "--text", "body", "--label", "stars")
    made = said(
        capsys, "train", "--recipe", "pair.yaml", *data, "--model", "bert", "--steps", "120", "-o", "run",
        "--max-length", "24", "--metric", "within_one",
    )  # fmt: skip
    assert made["metric"] == "within_one"
    assert json.loads((place / "run/manifest.json").read_text())["data"]["kind"] == "ordinal"
    again = said(capsys, "evaluate", "run")
    assert again["score"] == pytest.approx(made["test_mean"], abs=1e-6)

    said(capsys, "export", "run", "-o", "exported", "--as", "peft")
    config = json.loads((place / "exported/peft/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert "1 star, 2 stars, 3 stars, 4 stars" in (place / "exported/README.md").read_text()
    texts = ("--text", "the film was good fine great good fine great", "--text", "dull poor bad film")
    first, second = said(capsys, "predict", "exported", *texts, "--model", "bert")
    assert STARS.index(first["rating"]) >= 2 > STARS.index(second["rating"])
    assert list(first["at_least"]) == list(STARS[1:])
    assert main(["predict", "exported", *texts, "--model", "bert"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{first['rating']}\t{texts[1]}"

    # Other data, in which a class is missing, is scored in the order that the head knows.
    rows = (place / "ratings.csv").read_text().splitlines()
    (place / "fewer.csv").write_text("\n".join(row for row in rows if "2 stars" not in row) + "\n")
    other = said(capsys, "evaluate", "exported", "--model", "bert", "--task", "fewer.csv", *data[2:])
    assert 0.3 < other["score"] <= 1
    assert main(["tasks"]) == 0
    assert "ordinal (one of several classes that have an order)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_search_with_it(installed: Path, place: Path) -> None:
    """In processes of their own: the workers find the kind as this process does."""
    plugged = environment(installed, AUTOPEFT_CACHE=str(place / "cache"))
    (place / "program.py").write_text(SEARCH)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=place, env=plugged, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "found/result.json").read_text())
    assert result["comparisons"][0]["low"] is not None
    assert json.loads((place / "found/manifest.json").read_text())["data"]["metric"] == "kappa"
    unplugged = subprocess.run(
        [sys.executable, "-m", "autopeft", "predict", "found", "--text", "good", "--model", "bert"],
        cwd=place, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert unplugged.returncode == 2
    assert "unknown kind of task 'ordinal'" in " ".join(unplugged.stderr.split())


def test_the_module_registers_nothing_twice(plugged: None) -> None:
    get_kind("ordinal")
    module = sys.modules["autopeft_ordinal"]
    with pytest.raises(TaskError, match="already a kind of task 'ordinal', by autopeft_ordinal"):
        importlib.reload(module)
