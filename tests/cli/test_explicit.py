"""What data have settled, from a training to a search that begins with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main
from autopeft.recipe import Recipe

DATA = (
    *("--task", "reviews.csv", "--text", "body", "--label", "verdict"),
    *("--model", "bert", "--max-length", "24"),
)
SENSITIVE = """\
autopeft: 2
name: sensitive
model:
  - sensitivity_tuning: {keep: 9%, rank: 2, batches: 2, batch_size: 8}
training: {learning_rate: 3.0e-3}
"""


def test_a_structure_is_found_written_out_and_searched_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    save_backbone(tmp_path / "bert", biases=0.02)
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "sensitive.yaml").write_text(SENSITIVE)

    def run(*argv: str) -> str:
        code = main(list(argv))
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out + told.err

    run("train", "--recipe", "sensitive.yaml", *DATA, "--steps", "2", "--batch-size", "8", "-o", "trained")
    said = run("export", "trained", "-o", "settled", "--as", "recipe")
    assert "recipe/recipe.yaml" in said
    assert "Left out, as no recipe can say it: " in said
    assert "single entries" in said
    recipe = Recipe.from_file("settled/recipe/recipe.yaml")
    assert "lora" in recipe.methods
    assert set(recipe.methods) <= {"lora", "bitfit"}
    counted = json.loads(run("count", "settled/recipe/recipe.yaml", "--model", "bert", "--json"))
    settled = json.loads((tmp_path / "trained" / "result.json").read_text())["counts"]
    assert 0 < counted["deployed"] <= settled["deployed"]
    search = ("search", "--budget", "30%", *DATA, "--trials", "2", "--steps", "2", "--workers", "0")
    planned = run(*search, "--space", "lora", "--from", "settled/recipe", "--dry-run")
    assert "settled/recipe" in planned
