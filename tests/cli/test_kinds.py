"""Each kind of task on the command line: searched or trained, scored, asked and talked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cloze import save_causal, save_masked
from support.commands import run
from support.language import save_encoder_decoder, write_pairs
from support.saved_model import save_backbone, write_reviews
from support.several_labels import write_labelled
from support.spans import write_questions
from support.words import write_tagged

from autopeft.cli import main

SMALL = (
    "--effort", "quick", "--trials", "1", "--steps", "6", "--batch-size", "8", "--workers", "0",
)  # fmt: skip
REVIEWS = ("--task", "data.csv", "--text", "body", "--label", "verdict", "--label-words", "no=bad,yes=good")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    return folder


def asked(place: Path, hybrid: str, *words: str) -> dict[str, Any]:
    (answer,) = json.loads(run(place, "predict", hybrid, *words, "--json").stdout)
    return dict(answer)


def kind_of(place: Path, name: str) -> str:
    return str(json.loads((place / name / "manifest.json").read_text())["data"]["kind"])


@pytest.mark.slow
def test_targets(place: Path) -> None:
    write_pairs(place / "pairs.jsonl", 120)
    save_encoder_decoder(place / "t5")
    small = (*SMALL, "--budget", "30%", "--max-length", "32", "--baselines", "lora,untuned,few-shot")
    done = run(place, "search", "--task", "pairs.jsonl", "--model", "t5", *small, "--out", "pairs")
    assert kind_of(place, "pairs") == "seq2seq"
    result = json.loads((place / "pairs" / "result.json").read_text())
    others = [found["name"] for found in result["baselines"]][1:]
    assert others == ["untuned backbone", "few-shot, 4 examples"]
    assert all(name in done.stdout for name in others)
    assert set(asked(place, "pairs", "--text", "what follows one", "--beams", "2")) == {"text", "answer"}
    talk = run(place, "chat", "pairs", text="what follows one\nwhat follows two\n")
    assert len(talk.stdout.splitlines()) == 2
    assert "--system" in run(place, "chat", "pairs", "--system", "be brief", code=2).stderr


@pytest.mark.slow
def test_label_words_of_an_encoder_and_of_a_decoder(place: Path) -> None:
    write_reviews(place / "data.csv", 160)
    save_masked(place / "masked")
    save_causal(place / "causal")
    more = ("--space", "lora", "--budget", "30%", "--max-length", "32", "--baselines", "lora,head,untuned")
    template = ("--template", "{text} . It was {mask} .")
    words = ("search", *REVIEWS, *template, "--model", "masked", *SMALL, *more, "--out", "cloze")
    done = run(place, *words)
    assert "'{text} . It was {mask} .'" in done.stdout
    assert "'bad' for 'no', 'good' for 'yes'" in done.stdout
    assert "untuned backbone" in done.stdout
    assert "head only" not in done.stdout
    assert kind_of(place, "cloze").startswith("classification?label_words=bad,good&template=%7Btext%7D")
    assert json.loads((place / "cloze" / "result.json").read_text())["counts"]["head"] == 0
    assert 0 <= json.loads(run(place, "evaluate", "cloze", "--json").stdout)["score"] <= 1
    assert set(asked(place, "cloze", "--text", "the good film")["probabilities"]) == {"no", "yes"}
    (place / "recipe.yaml").write_text("autopeft: 2\nname: r\nlayers:\n  - attach: [lora: {rank: 2}]\n")
    words = ("train", "--recipe", "recipe.yaml", *REVIEWS, "--model", "causal", "--steps", "3")
    assert "'{text} It was'" in run(place, *words, "--max-length", "32", "--out", "decoder").stderr


@pytest.mark.slow
def test_questions_on_texts_from_squads_own_json(place: Path) -> None:
    write_questions(place / "dev-v2.0.json", 120, empty=8)
    more = ("--budget", "20%", "--max-length", "16", "--baselines", "head", "--seed", "1", "--steps", "60")
    words = ("search", "--task", "dev-v2.0.json", "--model", "bert", *SMALL, *more, "--out", "spans")
    done = run(place, *words)
    assert "squad_f1" in done.stdout
    assert "always the whole text" in done.stdout
    assert kind_of(place, "spans") == "question_answering"
    scored = run(place, "evaluate", "spans", "--split", "select", "--metric", "squad_exact_match")
    assert "without an answer" in scored.stdout
    pair = ("--text", "was the film good", "--text-pair", "the story was great")
    said = asked(place, "spans", *pair)
    assert set(said) == {"text", "text_pair", "answer", "start", "end", "probability"}
    assert said["answer"] in said["text_pair"]
    assert run(place, "predict", "spans", *pair).stdout.startswith(said["answer"] or "(no answer)")


@pytest.mark.slow  # in one process: tests/tasks/kinds/test_token_classification.py
def test_tags_of_words(place: Path) -> None:
    write_tagged(place / "words.conll")
    more = ("--budget", "20%", "--max-length", "24", "--baselines", "head", "--out", "tags")
    done = run(place, "search", "--task", "words.conll", "--model", "bert", *SMALL, *more)
    assert "entity_f1" in done.stdout
    assert kind_of(place, "tags") == "token_classification"
    assert "Entities of each type" in run(place, "evaluate", "tags", "--split", "select").stdout
    tagged, text = run(place, "predict", "tags", "--text", "a good great film").stdout.rstrip().split("\t")
    assert text == "a good great film"
    assert [part.partition("/")[0] for part in tagged.split()] == text.split()


@pytest.mark.slow  # in one process: tests/tasks/kinds/test_multi_label.py
def test_several_labels(place: Path) -> None:
    write_labelled(place / "labels.csv")
    (place / "lora.yaml").write_text("autopeft: 2\nname: lora\nlayers: [{attach: [lora: {rank: 2}]}]\n")
    data = ("--task", "labels.csv", "--label", "praise,blame,film", "--model", "bert", "--max-length", "24")
    done = run(place, "train", "--recipe", "lora.yaml", *data, "--steps", "12", "--out", "several")
    assert "micro_f1" in done.stdout
    answer = asked(place, "several", "--text", "a great film")
    assert set(answer) == {"text", "labels", "probabilities", "logits"}


def test_a_row_that_does_not_fit_its_kind_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that rows may lack is refused alike; tests/tasks/kinds/ has each case."""
    monkeypatch.chdir(place)
    good, bad = '{"tokens": ["a", "b"], "tags": ["O", "O"]}\n', '{"tokens": ["a"], "tags": []}\n'
    Path("bad.jsonl").write_text((good * 2 + bad) * 9)
    assert main(["search", "--task", "bad.jsonl", "--model", "bert", *SMALL, "--budget", "20%"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rows 3, 6, 9, 12, 15 and 4 more" in line
