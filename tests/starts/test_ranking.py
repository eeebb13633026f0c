"""Hybrids of the bank ranked as starts for a task."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.saved_model import reviews_in, save_backbone
from support.tiny import randomise

import autopeft
from autopeft import bank
from autopeft.assets import load_model
from autopeft.cli import main
from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.starts import ranking
from autopeft.starts.ranking import rank, starting_from

LORA: dict[str, Any] = {"lora": {"rank": 4}}
GIVEN: dict[str, Any] = {"text": "body", "label": "verdict", "model": "model"}


def write_lengths(path: str) -> None:
    """A task of the same texts with labels that their words do not tell."""
    draw = random.Random(0)
    with Path("reviews.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([head, *([text, draw.choice(("yes", "no"))] for text, _ in rows)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, a task, and a bank: a LoRA of this task, and one of noise."""
    folder = tmp_path_factory.mktemp("place")
    with reviews_in(folder):
        write_lengths("noise.csv")
        recipe = Recipe.from_dict(
            {"name": "r", "layers": [{"attach": [LORA]}], "training": {"learning_rate": 0.03}}
        )
        for task, steps in (("reviews", 200), ("noise", 10)):
            autopeft.train(
                task=f"{task}.csv", recipe=recipe, steps=steps, batch_size=16, max_length=24, out=task,
                head_start="random", **GIVEN,
            )  # fmt: skip
            bank.add(task, task)
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder to work in."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def saved(name: str, *items: Any, model: str = "model") -> None:
    with attach(load_model(model), Recipe.from_dict({"layers": [{"attach": list(items)}]})) as hybrid:
        randomise(hybrid.root)
        hybrid.save(f"saved/{name}")
    bank.add(f"saved/{name}", name)


def test_what_was_trained_on_the_task_is_the_best_start(here: Path) -> None:
    found = rank(task="reviews.csv", **GIVEN)
    assert [start.name for start in found.starts] == ["reviews", "noise"]
    best, worst = found.starts
    assert best.score > max(found.bare, worst.score) + 0.1
    assert (best.methods, best.task, found.rows, found.skipped) == (("lora",), "reviews.csv", 64, ())


def test_what_does_not_fit_is_left_out_with_a_sentence(here: Path) -> None:
    save_backbone(here / "large", num_hidden_layers=4)
    saved("larger", LORA, model="large")
    saved("masks", {"far": {"retention": 0.5}})
    saved("altered", LORA)
    saved("broken", LORA)
    saved("gated", {"gate": [LORA, "ia3"]})
    for name in ("altered", "broken"):
        weights = Path(f"bank/{name}/weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    Path("bank/broken/record.json").write_text("[]")
    found = rank(task="reviews.csv", **GIVEN)
    assert {start.name for start in found.starts} == {"reviews", "noise", "gated"}
    told = {name: [line for line in found.skipped if name in line] for name in ("larger", "masks", "altered")}
    assert all(len(lines) == 1 for lines in told.values()), found.skipped
    assert "was altered" in told["altered"][0]
    assert any("broken" in line and "record" in line for line in found.skipped)
    assert len(found.skipped) == 4


def test_the_recipe_that_is_ranked_is_one_to_start_from(here: Path) -> None:
    saved("two", {"gate": [{**LORA, "as": "small"}, "ia3"]}, "ia3")
    recipe = starting_from(bank.entry("two"))
    assert [entry.item.start for entry in recipe.entries()] == [("two.small",), ("two.ia3",), ("two.ia3_2",)]
    model = load_model("model")
    before = fingerprint(model)
    with attach(model, Recipe.from_dict(recipe.to_dict())) as hybrid:
        for name, module in hybrid.modules.items():
            assert name == "gate" or any(bool(p.abs().sum() > 0) for p in module.parameters())
    assert not changed(before, fingerprint(model))


def test_ranking_reads_few_rows_and_leaves_the_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    score = ranking.log_evidence

    def counted(features: torch.Tensor, labels: torch.Tensor) -> float:
        read.append(len(features))
        return score(features, labels)

    monkeypatch.setattr(ranking, "log_evidence", counted)
    first, second = (rank(task="reviews.csv", **GIVEN) for _ in range(2))
    assert set(read) == {64}
    assert len(read) == 6, "the bare backbone and both hybrids, twice"
    assert first == second


def test_the_command_ranks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--text", "body", "--label", "verdict", "--model", "model"]
    assert main(["bank", "rank", "--task", "reviews.csv", *words]) == 0
    told = capsys.readouterr().out
    assert told.index("reviews ") < told.index("noise ")
    assert main(["bank", "rank", "--task", "reviews.csv", *words, "--json"]) == 0
    assert [start["name"] for start in json.loads(capsys.readouterr().out)["starts"]] == ["reviews", "noise"]
    for wrong in (["bank", "rank"], ["bank", "rank", "reviews", "--task", "reviews.csv", *words]):
        assert main(wrong) == 2
        assert "--task" in "".join(capsys.readouterr())


def test_what_cannot_be_ranked_is_said(here: Path) -> None:
    for name in ("reviews", "noise"):
        bank.remove(name)
    with pytest.raises(UsageError, match="bank is empty"):
        rank(task="reviews.csv", **GIVEN)
