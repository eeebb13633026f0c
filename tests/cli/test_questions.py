"""Questions on texts on the command line: searched, scored and asked, from SQuAD's own JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run, run_here
from support.saved_model import save_backbone
from support.spans import write_questions

SMALL = (
    "--budget", "20%", "--effort", "quick", "--trials", "1", "--steps", "60", "--batch-size", "8",
    "--max-length", "16", "--workers", "0", "--baselines", "head", "--seed", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_questions(folder / "dev-v2.0.json", 120, empty=8)
    return folder


@pytest.mark.slow
def test_questions(place: Path) -> None:
    done = run(place, "search", "--task", "dev-v2.0.json", "--model", "bert", *SMALL, "--out", "spans")
    assert done.returncode == 0, done.stderr
    assert "squad_f1" in done.stdout
    assert "always the whole text" in done.stdout
    manifest = json.loads((place / "spans" / "manifest.json").read_text())
    assert manifest["data"]["kind"] == "question_answering"
    scored = run(place, "evaluate", "spans", "--split", "select", "--metric", "squad_exact_match")
    assert scored.returncode == 0, scored.stderr
    assert "without an answer" in scored.stdout
    pair = ("--text", "was the film good", "--text-pair", "the story was great")
    asked = run(place, "predict", "spans", *pair, "--json")
    assert asked.returncode == 0, asked.stderr
    (said,) = json.loads(asked.stdout)
    assert set(said) == {"text", "text_pair", "answer", "start", "end", "probability"}
    assert said["answer"] in said["text_pair"]
    plain = run(place, "predict", "spans", *pair)
    assert plain.stdout.startswith(said["answer"] or "(no answer)")


def test_an_answer_that_stands_elsewhere_is_one_sentence(place: Path) -> None:
    good = {"question": "who", "context": "Ann Bo", "answers": {"text": ["Bo"], "answer_start": [4]}}
    bad = {**good, "answers": {"text": ["Bo"], "answer_start": [3]}}
    (place / "bad.jsonl").write_text("\n".join(json.dumps(row) for row in [good, good, bad, good]) + "\n")
    done = run_here(place, "search", "--task", "bad.jsonl", "--model", "bert", *SMALL)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "row 3 says that the answer 'Bo' begins at letter 3 of its context, where ' B' stands" in line
