"""Hybrids saved from Python in the hands of the command line, each in a process of its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run
from support.saved_model import save_backbone, write_reviews
from support.tiny import randomise
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import load_task

RECIPE = Recipe.from_dict(
    {
        "name": "pair",
        "layers": [{"attach": [{"lora": {"rank": 4, "sites": ["q", "v", "up"]}}]}],
        "training": {"learning_rate": 2e-2},
    }
)
LABELS = {0: "no", 1: "yes"}
TEXT = "the film was good"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    return folder


@pytest.fixture(scope="module")
def hybrid(place: Path) -> Hybrid:
    """Trained by the Trainer from a backbone that was named by a relative path, and saved in three ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tokenizer = AutoTokenizer.from_pretrained("bert")
        model = AutoModelForSequenceClassification.from_pretrained(
            "bert", id2label=LABELS, label2id={v: k for k, v in LABELS.items()}
        )
        with (place / "reviews.csv").open() as file:
            found = [(row["body"], int(row["verdict"] == "yes")) for row in csv.DictReader(file)]
        encoded = [{**tokenizer(text, truncation=True), "labels": label} for text, label in found]
        live = attach(model, RECIPE, seed=0)
        args = TrainingArguments(
            "out", max_steps=2, save_strategy="no", use_cpu=True, report_to=[], disable_tqdm=True
        )
        data: Any = encoded
        trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, **live.for_trainer())
        trainer.train()
        randomise(live.root, std=0.5)
        randomise(model.classifier, std=0.5)
        live.save("saved")
        trainer.save_model("trainer")
        model.eval()
    return live


def logits_of(hybrid: Hybrid, place: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(place / "bert")
    with torch.no_grad():
        found: torch.Tensor = hybrid.model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    return found


@pytest.mark.parametrize("folder", ["saved", pytest.param("trainer", marks=pytest.mark.slow)])
def test_they_are_exported_and_asked(
    folder: str, hybrid: Hybrid, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(run(place, "export", folder, "-o", str(tmp_path / "out"), "--json").stdout)
    assert sorted(told["files"]) == [
        "README.md",
        "hybrid.json",
        "manifest.json",
        "peft/README.md",
        "peft/adapter_config.json",
        "peft/adapter_model.safetensors",
        "recipe.yaml",
        "weights.safetensors",
    ]
    expected = logits_of(hybrid, place, [TEXT])
    (answer,) = json.loads(run(place, "predict", str(tmp_path / "out"), "--text", TEXT, "--json").stdout)
    assert answer["label"] == LABELS[int(expected.argmax())]
    assert answer["logits"] == pytest.approx(expected[0].tolist(), abs=1e-4)

    monkeypatch.chdir(tmp_path / "out" / "peft")  # where the backbone's relative path leads nowhere
    blocks = Path("README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    tokenizer = AutoTokenizer.from_pretrained(place / "bert")
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.split("```")[0], names)
        with torch.no_grad():
            found = names["model"].eval()(**tokenizer([TEXT], return_tensors="pt")).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_they_are_scored_on_a_task_that_is_named(hybrid: Hybrid, place: Path) -> None:
    assert "--task" in run(place, "evaluate", "saved", code=2).stderr
    columns = ["--text", "body", "--label", "verdict", "--split", "train", "--json"]
    scored = json.loads(run(place, "evaluate", "saved", "--task", "reviews.csv", *columns).stdout)
    task = load_task(str(place / "reviews.csv"), text="body", label="verdict")
    rows = task.splits["train"]
    texts = [str(text) for text in rows.texts]
    right = logits_of(hybrid, place, texts).argmax(1) == torch.tensor([int(x) for x in rows.labels])
    assert scored["score"] == pytest.approx(float(right.float().mean()), abs=1e-6)
    assert 0.0 < scored["score"] < 1.0
