"""A saved hybrid brings back the labels that its model answered with."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.saved_model import save_backbone
from support.tiny import randomise
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import autopeft
from autopeft.errors import DataError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe

RECIPE = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
NAMES = {0: "ham", 1: "spam", 2: "[/]neither"}


def named(folder: Path, **options: Any) -> BertForSequenceClassification:
    given = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}, **options}
    found = AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True, **given)
    model: BertForSequenceClassification = found
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone in `bert`, and a hybrid on it, whose head answers with names, in `saved`."""
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    model = named(folder / "bert", problem_type="single_label_classification")
    hybrid = attach(model, RECIPE, seed=0)
    randomise(hybrid.root, std=0.5)
    randomise(model.classifier, std=0.5)
    hybrid.save(folder / "saved")
    model.save_pretrained(folder / "by-model")
    return folder


def fresh(place: Path, labels: int = 3) -> BertForSequenceClassification:
    found = AutoModelForSequenceClassification.from_pretrained(
        place / "bert", num_labels=labels, ignore_mismatched_sizes=True
    )
    model: BertForSequenceClassification = found
    return model.eval()


@pytest.mark.parametrize("folder", ["saved", "by-model"])
def test_labels_come_back_and_go_with_the_hybrid(place: Path, folder: str) -> None:
    model = fresh(place)
    before = copy.deepcopy(model.config.to_dict())
    with load(model, place / folder) as hybrid:
        config = model.config
        assert config.id2label == NAMES
        assert config.label2id == {"ham": 0, "spam": 1, "[/]neither": 2}
        assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
        tokenizer = AutoTokenizer.from_pretrained(place / "bert")
        texts = ["the film was good", "a dull story"]
        asked = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)
        with torch.no_grad():
            best = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(1)
        expected = [NAMES[int(i)] for i in best]
        assert [answer["label"] for answer in asked] == expected
        found = autopeft.predict(hybrid, texts, tokenizer=tokenizer)
        assert [answer["label"] for answer in found] == expected
    assert model.config.to_dict() == before


def test_what_is_saved_again_has_them_too(place: Path, tmp_path: Path) -> None:
    load(fresh(place), place / "saved").save(tmp_path)
    again = load(fresh(place), tmp_path)
    assert again.model.config.id2label == NAMES


def test_a_merged_model_keeps_them(place: Path, tmp_path: Path) -> None:
    merged = load(fresh(place), place / "saved").merge()
    assert merged.config.id2label == NAMES
    merged.save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.id2label == NAMES


def test_another_number_of_labels_is_refused_before_anything_changes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(place, 2)
    before = fingerprint(model)
    monkeypatch.setattr("autopeft.hybrid.loading.attach", lambda *_, **__: pytest.fail("it was attached"))
    with pytest.raises(
        DataError, match=r"head of 3 labels \(ham, spam, \[/\]neither\), and the model one of 2"
    ):
        load(model, place / "saved")
    assert changed(before, fingerprint(model)) == []


def test_names_that_nobody_gave_replace_no_others(place: Path, tmp_path: Path) -> None:
    attach(fresh(place), RECIPE, seed=0).save(tmp_path)
    model = named(place / "bert")
    load(model, tmp_path)
    assert model.config.id2label == NAMES


def test_a_regression_stays_one(place: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(place / "bert", num_labels=1, problem_type="regression")
    attach(BertForSequenceClassification(config), RECIPE, seed=0).save(tmp_path)
    model = fresh(place, 1)
    assert model.config.problem_type is None
    load(model, tmp_path)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id2label": ["ham", "spam", "eggs"]}, "are no names of labels"),
        ({"id2label": {"x": "ham", "1": "spam", "2": "eggs"}}, "are no names of labels"),
        ({"id2label": {"0": "ham", "1": 3, "2": "eggs"}}, "are no names of labels"),
        ({"problem_type": ["regression"]}, "are no names of labels"),
    ],
)
def test_a_manifest_of_a_stranger_is_read_with_care(
    place: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    shutil.copytree(place / "saved", tmp_path / "odd")
    file = tmp_path / "odd" / "hybrid.json"
    table = json.loads(file.read_text())
    table["config"] |= change
    file.write_text(json.dumps(table))
    model = fresh(place)
    before = fingerprint(model)
    with pytest.raises(DataError, match=says):
        load(model, tmp_path / "odd")
    file.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        load(model, tmp_path / "odd")
    assert changed(before, fingerprint(model)) == []


def test_what_the_trainer_saves_brings_them_back(place: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "bert")
    data: Any = [{**tokenizer("the film was good"), "labels": i % 3} for i in range(6)]
    model = named(place / "bert")
    hybrid = attach(model, RECIPE, seed=0)
    args = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    given = {"args": args, "train_dataset": data, "processing_class": tokenizer}
    Trainer(model, **given, **hybrid.for_trainer()).train()
    restored = load(fresh(place), tmp_path / "checkpoint-2")
    assert restored.model.config.id2label == NAMES
    assert restored.model.config.problem_type == "single_label_classification"

    resumed = load(fresh(place), tmp_path / "checkpoint-1")
    Trainer(resumed.model, **given, **resumed.for_trainer()).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )
    assert resumed.model.config.id2label == NAMES
