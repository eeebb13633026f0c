"""`autopeft recommend` as a user has it: a process of its own, with the evidence that is shipped."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from support.commands import run
from support.saved_model import save_backbone

from autopeft.recipe import Recipe


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_backbone(tmp_path / "model"))


@pytest.mark.slow
def test_it_prints_a_table_and_ends_with_a_command(model: str, tmp_path: Path) -> None:
    words = ("recommend", "--budget", "5%", "--model", model, "--rows", "300", "-o", "first.yaml")
    lines = run(tmp_path, *words).stdout.splitlines()
    assert lines[0].startswith(f"Recipes for {model} within 5%, 300 rows")
    assert "gain over LoRA" in lines[1]
    assert any(line.startswith("Recommended is ") for line in lines)
    following = shlex.split(lines[-1])
    assert following[:2] == ["autopeft", "search"]
    assert following[following.index("--from") + 1] == "first.yaml"
    assert Recipe.load(tmp_path / "first.yaml").entries()


@pytest.mark.slow
def test_as_data(model: str, tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, "recommend", "--budget", "5%", "--model", model, "--json").stdout)
    assert Recipe.from_dict(told["recipe"]).entries()
    assert told["rows"] == 2000
    assert told["choices"]


@pytest.mark.slow
def test_a_budget_for_nothing_is_told_in_a_sentence(model: str, tmp_path: Path) -> None:
    done = run(tmp_path, "recommend", "--budget", "3", "--model", model, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "budget 3" in done.stderr
