"""The cost of a step of each kind of task: both sides see the same rows, and a whole run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "step_by_kind"
Import = Callable[[str], Any]
Script = Callable[..., str]
OPTIONS = {"rows": 64, "batch_size": 8, "max_length": 24, "steps": 2, "drop": 1, "rank": 2, "seed": 0}


@pytest.mark.slow
def test_both_sides_train_the_same_maps_and_start_from_the_same_loss(load: Import, tmp_path: Path) -> None:
    run = load("run")
    bench = run.make_bench(argparse.Namespace(**OPTIONS), "token_classification", tmp_path)
    model = run._with_peft(bench, 3)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    maps = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trained if "lora_" in n}
    assert maps == {"query", "value"}
    assert {n.split("layer.")[1].split(".")[0] for n in trained if "lora_" in n} == {"3", "4", "5"}
    assert {"classifier.modules_to_save.default.weight"} <= {n.split("model.")[-1] for n in trained}
    assert set(bench.rows.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    ours, theirs = run.ours(bench, 3), run.trainer(bench, 3)
    assert ours.loss == pytest.approx(theirs.loss, rel=0.05)
    assert len(ours.ms) == len(theirs.ms) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "length", "columns", "head"),
    [
        ("question_answering", 24, {"start_positions", "end_positions"}, "qa_outputs"),
        ("image_classification", 24, {"labels"}, "classifier"),
        pytest.param("multiple_choice", 64, {"labels"}, "", marks=pytest.mark.slow),  # SmolLM2
    ],
)
def test_labels_of_other_kinds_reach_the_trainer(
    load: Import, tmp_path: Path, kind: str, length: int, columns: set[str], head: str
) -> None:
    run, options = load("run"), {**OPTIONS, "max_length": length}
    bench = run.make_bench(argparse.Namespace(**options), kind, tmp_path / "model")
    assert columns == set(bench.rows.column_names) & {"labels", "start_positions", "end_positions"}
    trained = [n for n, p in run._with_peft(bench, 3).named_parameters() if p.requires_grad]
    assert any(head in name for name in trained)
    ours, theirs = run.ours(bench, 3), run.trainer(bench, 3)
    assert ours.loss == pytest.approx(theirs.loss, rel=0.05)


@pytest.mark.slow
def test_steps_of_every_kind(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    words = [w for name, value in OPTIONS.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    script(*words, "--repeats", "1", "--out", str(out))
    rows = json.loads(out.read_text())["measured"]
    assert [row["kind"] for row in rows[::2]] == list(_kinds())
    assert all(list(row["sides"]) == ["ours", "trainer"] for row in rows)
    script("--tables", "--out", str(out))
    script(*words, "--repeats", "1", "--kinds", "regression", "--out", str(out))
    again = json.loads(out.read_text())["measured"]
    assert [row["kind"] for row in again] == [row["kind"] for row in rows]
    assert [row["kind"] for row, new in zip(rows, again, strict=True) if row != new] == ["regression"] * 2


def _kinds() -> list[str]:
    import runpy

    path = Path(__file__).parents[1] / FOLDER / "settings.py"
    return list(runpy.run_path(str(path))["SETTINGS"])
