"""The bank: what is kept of trained hybrids, how recipes name it, and what of it cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.saved_model import save_backbone, write_reviews
from support.tiny import randomise, tiny_model

import autopeft
from autopeft import bank
from autopeft.assets import load_model
from autopeft.cli import main
from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

LORA: dict[str, Any] = {"name": "small", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def saved(folder: str, body: dict[str, Any] = LORA, seed: int = 1, backbone: str = "bert") -> Path:
    with attach(tiny_model(backbone), Recipe.from_dict(body), seed=seed) as hybrid:
        randomise(hybrid.root, seed=seed)
        hybrid.save(folder)
    return Path(folder)


def test_a_run_is_kept_with_a_record_of_what_it_is(here: Path) -> None:
    save_backbone(here / "model")
    write_reviews(here / "reviews.csv")
    trained = autopeft.train(
        task="reviews.csv", text="body", label="verdict", model="model", recipe=Recipe.from_dict(LORA),
        steps=2, batch_size=8, max_length=24, seed=3, out="run",
    )  # fmt: skip
    kept = bank.add("run")
    assert kept.name == "reviews_csv_small"
    assert bank.entry(kept.name) == kept
    assert (kept.task, kept.kind, kept.seed, kept.steps) == ("reviews.csv", "classification", 3, 2)
    assert (kept.metric, kept.select) == ("accuracy", trained.scores["select"])
    assert (kept.family, kept.rate, kept.run) == ("bert", trained.recipe.training.learning_rate, "run")
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert kept.backbone == manifest["backbone"]["sha256"]
    assert kept.origin == "folder"
    assert kept.data == manifest["data"]["source"]["sha256"]
    (entry,) = kept.entries
    assert (entry.method, entry.options) == ("lora", {"rank": 2})
    stored = load_file("run/winner/weights.safetensors")
    assert entry.shapes == {k: tuple(v.shape) for k, v in stored.items() if not k.startswith("head.")}
    shutil.rmtree("run")
    recipe = Recipe.from_dict(
        {"inputs": [f"bank:{kept.name}"], "layers": [{"attach": [{"lora": {"rank": 2}, "from": kept.name}]}]}
    )
    again = autopeft.train(
        task="reviews.csv", text="body", label="verdict", model="model", recipe=recipe, steps=2, batch_size=8,
        max_length=24, out="again",
    )  # fmt: skip
    assert again.recipe.inputs[kept.name].sha256 == kept.sha256
    save_backbone(here / "other", seed=1)
    with pytest.raises(DataError, match=rf"another backbone: on 'model' .*{str(kept.backbone)[:12]}"):
        attach(load_model("other"), recipe)
    assert json.loads(Path("again/manifest.json").read_text())["inputs"][kept.name]["sha256"] == kept.sha256


def test_entries_start_from_what_is_in_the_bank() -> None:
    source = load_file(saved("source") / "weights.safetensors")
    kept = bank.add("source", "first")
    named: dict[str, Any] = {"lora": {"rank": 2}, "from": "first"}
    for inputs in (
        ["bank:first"],
        {"first": "bank:first"},
        {"first": {"bank": "first", "sha256": kept.sha256}},
    ):
        recipe = Recipe.from_dict({"inputs": inputs, "layers": [{"attach": [named]}]})
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        with attach(tiny_model("bert"), recipe) as hybrid:
            assert hybrid.recipe.inputs["first"].sha256 == kept.sha256
            assert torch.equal(
                hybrid.modules["lora"].state_dict()["at.encoder-0-q.A"], source["encoder.0.q.lora.A"]
            )


def test_names_are_made_and_kept_apart() -> None:
    saved("source")
    assert [bank.add("source").name for _ in range(2)] == ["task_small", "task_small_2"]
    with pytest.raises(UsageError, match="in the bank already"):
        bank.add("source", "task_small")
    with pytest.raises(UsageError, match="no name for the bank"):
        bank.add("source", "../elsewhere")
    bank.remove("task_small")
    assert [kept.name for kept in bank.entries()] == ["task_small_2"]
    with pytest.raises(UsageError, match="task_small_2"):
        bank.entry("task_smal_2")
    assert not list(Path("bank").glob(".*")), "nothing half written is left"


def test_what_cannot_be_kept_is_said_and_leaves_nothing() -> None:
    with pytest.raises(UsageError, match="no run 'nowhere'"):
        bank.add("nowhere")
    folder = saved("source")
    (folder / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError):
        bank.add("source")
    assert not list(Path("bank").iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"name": 3}', '{"format": 1, "sha256": []}'])
def test_a_damaged_record_is_one_clear_sentence(content: str) -> None:
    saved("source")
    bank.add("source", "good")
    bank.add("source", "bad")
    Path("bank/bad/record.json").write_text(content)
    bad, good = bank.entries()
    assert isinstance(bad, bank.Damaged)
    assert "record.json" in bad.problem
    assert good.name == "good"
    with pytest.raises(UsageError, match="record"):
        bank.entry("bad")
    bank.remove("bad")


def test_weights_that_were_altered_are_refused_by_hash() -> None:
    saved("source")
    kept = bank.add("source", "first")
    recipe = Recipe.from_dict(
        {
            "inputs": {"first": {"bank": "first", "sha256": kept.sha256}},
            "layers": [{"attach": [{"lora": {"rank": 2}, "from": "first"}]}],
        }
    )
    shutil.copyfile(saved("other", seed=2) / "weights.safetensors", "bank/first/weights.safetensors")
    with pytest.raises(DataError, match="was altered"):
        attach(tiny_model("bert"), recipe)


def test_links_out_of_the_bank_are_not_followed(here: Path) -> None:
    outside = here.parent / f"{here.name}-outside"
    saved(str(outside))
    Path("bank").mkdir()
    Path("bank/first").symlink_to(outside)
    recipe = Recipe.from_dict(
        {"inputs": ["bank:first"], "layers": [{"attach": [{"lora": {"rank": 2}, "from": "first"}]}]}
    )
    with pytest.raises(DataError, match="leads out"):
        attach(tiny_model("bert"), recipe)
    with pytest.raises(DataError, match="leads out"):
        bank.entry("first")
    bank.remove("first")
    assert (outside / "weights.safetensors").exists()


def test_a_hybrid_of_another_family_is_refused() -> None:
    saved("source", backbone="roberta")
    bank.add("source", "first")
    recipe = Recipe.from_dict(
        {"inputs": ["bank:first"], "layers": [{"attach": [{"lora": {"rank": 2}, "from": "first"}]}]}
    )
    with pytest.raises(DataError, match=r"family 'roberta'.*this one is of 'bert'"):
        attach(tiny_model("bert"), recipe)


def test_hybrids_are_listed_from_their_records_alone() -> None:
    saved("source")
    bank.add("source", "h0")
    for i in range(1, 40):
        shutil.copytree("bank/h0", f"bank/h{i}")
    for path in Path("bank").glob("*/weights.safetensors"):
        path.unlink()
    assert [kept.name for kept in bank.entries() if isinstance(kept, bank.BankEntry)] == sorted(
        f"h{i}" for i in range(40)
    )


def test_the_command_adds_lists_shows_and_removes(capsys: pytest.CaptureFixture[str]) -> None:
    def autopeft_says(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        return "".join(capsys.readouterr())

    saved("source")
    capsys.readouterr()
    assert "is empty" in autopeft_says("bank", "list")
    assert "inputs: [bank:first]" in autopeft_says("bank", "add", "source", "--name", "first")
    assert "lora" in autopeft_says("bank")
    (listed,) = json.loads(autopeft_says("bank", "list", "--json"))
    assert listed["name"] == "first"
    assert "rank=2" in autopeft_says("bank", "show", "first")
    assert "needs a name" in autopeft_says("bank", "show", code=2)
    autopeft_says("bank", "remove", "first")
    assert not list(Path("bank").iterdir())
