"""What began from a bank is whole without it: a start, a frozen part, a merge and a fusion."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.saved_model import reviews_in
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft import bank
from autopeft.assets import load_model
from autopeft.hybrid import load
from autopeft.recipe import Recipe

ADAPTER: dict[str, Any] = {"serial_adapter": {"bottleneck": 4}}
LORA: dict[str, Any] = {"lora": {"rank": 2}}
TEXTS = ["a good film", "a dull book that I could not end"]
GIVEN: dict[str, Any] = {"task": "reviews.csv", "text": "body", "label": "verdict", "model": "model"}
ITEMS: dict[str, list[Any]] = {
    "a start": [{**LORA, "from": "lora_a"}],
    "a frozen part": [{**ADAPTER, "from": "adapter_a", "frozen": True}, LORA],
    "a merge": [{**ADAPTER, "from": ["adapter_a", "adapter_b"], "merge": "ties"}],
    "merged LoRAs": [{**LORA, "from": ["lora_a", "lora_b"], "merge": "svd"}],
    "a fusion": [
        {"fuse": [{**ADAPTER, "as": f"on_{n}", "from": f"adapter_{n}", "frozen": True} for n in ("a", "b")]}
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a backbone, rows, and a bank of two adapters and two LoRAs."""
    folder = tmp_path_factory.mktemp("place")
    with reviews_in(folder):
        for name, item in (("adapter", ADAPTER), ("lora", LORA)):
            for seed, which in enumerate("ab"):
                _train(f"{name}_{which}", [item], seed=seed)
                bank.add(f"{name}_{which}", f"{name}_{which}")
        yield folder


def _train(out: str, items: list[Any], seed: int = 0) -> Any:
    inputs = [f"bank:{n}" for n in ("adapter_a", "adapter_b", "lora_a", "lora_b") if n in str(items)]
    tree = {"name": "r", "inputs": inputs, "layers": [{"attach": items}], "training": {"learning_rate": 0.02}}
    recipe = Recipe.from_dict({key: value for key, value in tree.items() if value})
    return autopeft.train(
        **GIVEN, recipe=recipe, steps=6, batch_size=8, max_length=16, seed=seed, precision="fp32", out=out
    )


@pytest.mark.parametrize("what", ITEMS)
def test_what_was_exported_answers_without_the_bank(
    what: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    out = tmp_path / "run"
    trained = _train(str(out), ITEMS[what])
    batch = AutoTokenizer.from_pretrained("model")(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = trained.hybrid.model.eval()(**batch).logits
    autopeft.export(out, tmp_path / "exported")
    one = what in ("a start", "merged LoRAs")
    if one:
        autopeft.export(out, tmp_path / "served", format="lora")
    shutil.copytree("model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert not Path("bank").exists()
    for folder in (out / "winner", tmp_path / "exported"):
        with load(load_model("model", seed=3), folder) as hybrid, torch.no_grad():
            assert {ref.method for ref in hybrid.recipe.entries()} <= {"serial_adapter", "lora"}
            torch.testing.assert_close(hybrid.model.eval()(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    if one:
        plain = AutoModelForSequenceClassification.from_pretrained("model", num_labels=2)
        with torch.no_grad():
            found = PeftModel.from_pretrained(plain, "served/lora").eval()(**batch).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
