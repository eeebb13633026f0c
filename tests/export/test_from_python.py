"""Folders of hybrids that were saved from Python: what is known of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM
from support.language import save_decoder, write_chats
from support.saved_model import save_backbone
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

import autopeft
from autopeft.assets import model_name
from autopeft.cli import main
from autopeft.errors import UsageError
from autopeft.export.manifest import Card
from autopeft.export.package import find_saved, load_saved
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

OTHER: dict[str, Any] = {"problem_type": "other", "id2label": {}}
LORA = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})


def named(folder: Path, **labels: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        save_backbone(folder / "bert"), ignore_mismatched_sizes=True, **labels
    )


def test_what_is_known_of_one(tmp_path: Path) -> None:
    model = named(tmp_path, num_labels=3)
    hybrid = attach(model, LORA, seed=0)
    saved = find_saved(hybrid.save(tmp_path / "saved"))
    card = saved.card
    assert (saved.folder, saved.weights) == (tmp_path / "saved", tmp_path / "saved")
    assert card.model == str((tmp_path / "bert").resolve())
    assert (card.kind, card.metric, card.max_length) == ("classification", "accuracy", 64)
    assert card.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert card.result["counts"]["deployed"] == hybrid.counts().deployed
    exported = autopeft.export(saved, tmp_path / "out", format="autopeft")
    assert Card.read(exported.folder) == card
    text = (exported.folder / "README.md").read_text()
    assert "Source: not recorded (saved from Python)." in text
    assert "None" not in text


def test_regression_is_told_from_classes(tmp_path: Path) -> None:
    model = named(tmp_path, num_labels=1, problem_type="regression")
    assert find_saved(attach(model, LORA, seed=0).save(tmp_path / "saved")).card.kind == "regression"


def test_a_language_model_s_is_exported_for_peft(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    recipe = Recipe.from_dict({"layers": [{"attach": [{"lora": {"rank": 2, "sites": ["qkv"]}}]}]})
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root)
    model.save_pretrained(tmp_path / "saved")
    exported = autopeft.export(tmp_path / "saved", tmp_path / "out", format="peft")
    opened = AutoPeftModelForCausalLM.from_pretrained(exported.folder / "peft").eval()
    inputs = tiny_inputs("gpt2")
    found, expected = opened(**inputs).logits, logits(model.eval(), inputs)
    assert float((found - expected).detach().abs().max()) < 1e-4


def test_a_language_model_s_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Live, saved, exported: it answers, says how likely an answer is, and can be talked with."""
    model = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))
    hybrid = attach(model, LORA, seed=0)
    randomise(hybrid.root)
    hybrid.model.eval()
    saved = hybrid.save(tmp_path / "saved")
    card = find_saved(saved).card
    assert (card.kind, card.metric, card.labels, card.max_length) == ("causal_lm", "likelihood", (), 64)
    asked = {"max_new_tokens": 4}
    (live,) = autopeft.predict(hybrid, "what follows two", **asked)
    assert isinstance(live["answer"], str)
    assert autopeft.chat(hybrid, **asked).say("what follows two") == live["answer"]
    task = str(write_chats(tmp_path / "chats.jsonl"))
    score = autopeft.evaluate(hybrid, task=task).score
    hybrid.detach()
    exported = autopeft.export(saved, tmp_path / "out", format="autopeft").folder
    for folder in (saved, exported):
        assert autopeft.predict(folder, "what follows two", **asked) == [live]
        assert autopeft.evaluate(folder, task=task).score == pytest.approx(score)
    assert main(["predict", str(saved), "--text", "what follows two", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.split("\t")[0].strip() == " ".join(live["answer"].split())


def test_a_model_of_no_kind_s_is_not_asked(tmp_path: Path) -> None:
    save_backbone(tmp_path / "bert")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert")
    saved = find_saved(attach(model, LORA, seed=0).save(tmp_path / "saved"))
    with pytest.raises(UsageError, match="No kind of task has models like BertForMaskedLM"):
        load_saved(saved)


def test_a_backbone_without_a_name_has_to_be_named(tmp_path: Path) -> None:
    attach(tiny_model("bert"), LORA, seed=0).save(tmp_path / "saved")
    with pytest.raises(UsageError, match="names no backbone, as its model was made from a configuration"):
        autopeft.export(tmp_path / "saved", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "not what a saved hybrid has"),
        ({"config": ["a list"]}, "not what a saved hybrid has"),
        ({"config": {"id2label": {"x": "y"}}}, "not what a saved hybrid has"),
        ({"config": {**OTHER, "max_position_embeddings": float("inf")}}, "not what a saved hybrid has"),
        ({"architecture": "load_model", "config": OTHER}, "has no model 'load_model'"),
        ({"architecture": "os.system", "config": OTHER}, "has no model 'os.system'"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = attach(named(tmp_path), LORA, seed=0).save(tmp_path / "saved")
    told = {**json.loads((folder / "hybrid.json").read_text()), **change}
    (folder / "hybrid.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    with pytest.raises(UsageError, match=says):
        autopeft.export(folder, tmp_path / "out")


def test_a_name_is_what_a_model_is_found_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some-one--a-model" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name(str(snapshot)) == "some-one/a-model"
    assert model_name("models--some-one--a-model") == str(tmp_path.resolve() / "models--some-one--a-model")
    assert (model_name("bert-base-uncased"), model_name("")) == ("bert-base-uncased", "")
