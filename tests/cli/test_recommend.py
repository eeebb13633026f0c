"""`autopeft recommend` as a user has it: a process of its own, with the evidence that is shipped."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.saved_model import save_backbone

from autopeft.recipe import Recipe


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_backbone(tmp_path / "model"))


def run(*argv: str, cwd: Path, code: int = 0) -> tuple[str, str]:
    environment = {**os.environ, "AUTOPEFT_CACHE": str(cwd / "cache"), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "recommend", *argv],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_it_prints_a_table_and_ends_with_a_command(model: str, tmp_path: Path) -> None:
    out, _ = run("--budget", "5%", "--model", model, "--rows", "300", "-o", "first.yaml", cwd=tmp_path)
    lines = out.splitlines()
    assert lines[0].startswith(f"Recipes for {model} within 5%, 300 rows")
    assert "gain over LoRA" in lines[1]
    assert any(line.startswith("Recommended is ") for line in lines)
    assert lines[-2] == "Search on from there:"
    words = shlex.split(lines[-1])
    assert words[:2] == ["autopeft", "search"]
    assert words[words.index("--from") + 1] == "first.yaml"
    assert Recipe.load(tmp_path / "first.yaml").entries()


@pytest.mark.slow
def test_as_data(model: str, tmp_path: Path) -> None:
    told = json.loads(run("--budget", "5%", "--model", model, "--json", cwd=tmp_path)[0])
    assert Recipe.from_dict(told["recipe"]).entries()
    assert told["rows"] == 2000
    assert told["choices"]


@pytest.mark.slow
def test_a_budget_for_nothing_is_told_in_a_sentence(model: str, tmp_path: Path) -> None:
    out, err = run("--budget", "3", "--model", model, cwd=tmp_path, code=2)
    assert out == ""
    assert err.startswith(
        "error: There is nothing to recommend: no recipe of the portfolio fits the budget 3"
    )
    assert "Traceback" not in err
