"""Tags of words, and several labels, on the command line: searched or trained, scored and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run, run_here
from support.saved_model import save_backbone
from support.several_labels import write_labelled
from support.words import write_tagged

LORA = """\
autopeft: 2
name: lora
layers:
  - at: all
    attach:
      - lora: {rank: 2}
"""
SMALL = (
    "--budget", "20%", "--effort", "quick", "--trials", "1", "--steps", "6", "--batch-size", "8",
    "--max-length", "24", "--workers", "0", "--baselines", "head",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_tagged(folder / "words.conll")
    write_labelled(folder / "labels.csv")
    return folder


@pytest.mark.slow  # in one process: tests/tasks/kinds/test_token_classification.py
def test_words(place: Path) -> None:
    done = run(place, "search", "--task", "words.conll", "--model", "bert", *SMALL, "--out", "tags")
    assert done.returncode == 0, done.stderr
    assert "entity_f1" in done.stdout
    manifest = json.loads((place / "tags" / "manifest.json").read_text())
    assert manifest["data"]["kind"] == "token_classification"
    scored = run(place, "evaluate", "tags", "--split", "select")
    assert scored.returncode == 0, scored.stderr
    assert "Entities of each type" in scored.stdout
    asked = run(place, "predict", "tags", "--text", "a good great film")
    assert asked.returncode == 0, asked.stderr
    tagged, text = asked.stdout.rstrip("\n").split("\t")
    assert text == "a good great film"
    assert [part.partition("/")[0] for part in tagged.split()] == text.split()


def test_a_row_whose_tags_do_not_fit_is_one_sentence(place: Path) -> None:
    good, bad = '{"tokens": ["a", "b"], "tags": ["O", "O"]}\n', '{"tokens": ["a"], "tags": []}\n'
    (place / "bad.jsonl").write_text((good * 2 + bad) * 9)
    done = run_here(place, "search", "--task", "bad.jsonl", "--model", "bert", *SMALL)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "another number of tags than there are words in rows 3, 6, 9, 12, 15 and 4 more" in line


@pytest.mark.slow  # in one process: tests/tasks/kinds/test_multi_label.py
def test_several_labels(place: Path) -> None:
    (place / "lora.yaml").write_text(LORA)
    data = ("--task", "labels.csv", "--label", "praise,blame,film", "--model", "bert", "--max-length", "24")
    done = run(place, "train", "--recipe", "lora.yaml", *data, "--steps", "12", "--out", "several")
    assert done.returncode == 0, done.stderr
    assert "micro_f1" in done.stdout
    asked = run(place, "predict", "several", "--text", "a great film", "--json")
    assert asked.returncode == 0, asked.stderr
    assert set(json.loads(asked.stdout)[0]) == {"text", "labels", "probabilities", "logits"}
