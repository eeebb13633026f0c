"""Label words on the command line: searched, resumed, scored and asked, and refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cloze import save_causal, save_masked
from support.commands import run, run_here
from support.saved_model import save_backbone, write_reviews

TASK = ("--task", "data.csv", "--text", "body", "--label", "verdict", "--label-words", "no=bad,yes=good")
SMALL = (
    "--budget", "30%", "--effort", "quick", "--space", "lora", "--trials", "2", "--steps", "6",
    "--batch-size", "8", "--max-length", "32", "--workers", "0", "--baselines", "lora,head,untuned",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_reviews(folder / "data.csv", 160)
    save_masked(folder / "bert")
    save_causal(folder / "llama")
    save_backbone(folder / "headless")
    return folder


@pytest.mark.slow
def test_a_search_and_what_it_found(place: Path) -> None:
    template = ("--template", "{text} . It was {mask} .")
    done = run(place, "search", *TASK, *template, "--model", "bert", *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "'{text} . It was {mask} .'" in done.stdout
    assert "'bad' for 'no', 'good' for 'yes'" in done.stdout
    assert "untuned backbone" in done.stdout
    assert "head only" not in done.stdout
    manifest = json.loads((place / "run" / "manifest.json").read_text())
    assert manifest["data"]["kind"].startswith("classification?label_words=bad,good&template=%7Btext%7D")
    assert json.loads((place / "run" / "result.json").read_text())["counts"]["head"] == 0
    scored = run(place, "evaluate", "run", "--json")
    assert scored.returncode == 0, scored.stderr
    assert 0 <= json.loads(scored.stdout)["score"] <= 1
    asked = run(place, "predict", "run", "--text", "the good film", "--json")
    assert asked.returncode == 0, asked.stderr
    assert set(json.loads(asked.stdout)[0]["probabilities"]) == {"no", "yes"}


@pytest.mark.slow
def test_a_decoder_is_trained(place: Path) -> None:
    (place / "recipe.yaml").write_text("autopeft: 2\nname: r\nlayers:\n  - attach: [lora: {rank: 2}]\n")
    done = run(
        place, "train", "--recipe", "recipe.yaml", *TASK, "--model", "llama", "--steps", "3", "--max-length",
        "32", "--out", "trained",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "'{text} It was'" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(("--model", "headless"), "have no head that predicts tokens", marks=pytest.mark.slow),
        (("--model", "bert", "--template", "{text} {masc}"), "unknown field {masc}"),
    ],
)
def test_a_refusal_is_one_sentence(place: Path, options: tuple[str, ...], said: str) -> None:
    done = run_here(place, "search", *TASK, *options, *SMALL)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert said in line
