"""Saved hybrids: what is on disk, and folders that come from strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import logits, randomise, tiny_inputs, tiny_model

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach, deployed_state, load
from autopeft.recipe import Recipe

RECIPE = Recipe.from_dict(
    {
        "name": "x",
        "layers": [
            {
                "attach": [
                    {
                        "gate": [
                            {"lora": {"rank": 2}},
                            {"prefix_tuning": {"length": 2, "reparameterization": 6}},
                        ]
                    },
                    {"lora": {"rank": 1, "sites": ["up"]}, "as": "mine"},
                ]
            }
        ],
        "model": [{"prompt_tuning": {"length": 3}}],
    }
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model("bert")
    hybrid = attach(model, RECIPE, seed=0)
    randomise(hybrid.root)
    hybrid.save(tmp_path / "hybrid")
    return tmp_path / "hybrid"


def test_keys_name_stack_layer_site_and_entry(saved: Path) -> None:
    keys = set(load_file(saved / "weights.safetensors"))
    assert {
        "encoder.0.q.lora.A",
        "encoder.2.up.mine.B",
        "encoder.1.attention.prefix_tuning.rows",
        "encoder.1.attention.gate.gates.prefix_tuning.weight",
        "encoder.embeddings.prompt_tuning.table",
        "head.classifier.weight",
    } - keys <= {"encoder.embeddings.prompt_tuning.table"}
    assert not any("mlp" in k or "encoder_" in k for k in keys)
    assert json.loads((saved / "hybrid.json").read_text())["counts"]["deployed"] == sum(
        v.numel() for k, v in load_file(saved / "weights.safetensors").items() if not k.startswith("head.")
    )
    assert sorted(p.name for p in saved.iterdir()) == ["hybrid.json", "recipe.yaml", "weights.safetensors"]


def test_saving_does_not_change_the_hybrid() -> None:
    hybrid = attach(tiny_model("bert"), RECIPE, seed=0)
    before = {k: v.clone() for k, v in hybrid.root.state_dict().items()}
    deployed_state(hybrid)
    after = hybrid.root.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_saving_again_replaces_the_files(saved: Path) -> None:
    model = tiny_model("bert")
    hybrid = load(model, saved)
    randomise(hybrid.root, seed=8)
    expected = logits(model, tiny_inputs("bert"))
    hybrid.save(saved)
    fresh = tiny_model("bert")
    load(fresh, saved)
    torch.testing.assert_close(logits(fresh, tiny_inputs("bert")), expected)


def _broken(folder: Path, how: str) -> None:
    weights = folder / "weights.safetensors"
    state = load_file(weights)
    if how == "missing":
        weights.unlink()
    elif how == "garbage":
        weights.write_bytes(b"\x80\x04not safetensors")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif how == "shape":
        save_file({**state, "encoder.0.q.lora.A": torch.zeros(5, 32)}, weights)
    elif how == "extra":
        save_file({**state, "encoder.9.q.lora.A": torch.zeros(2, 32)}, weights)
    elif how == "labels":
        save_file({**state, "head.classifier.weight": torch.zeros(7, 32)}, weights)
    else:
        text = (folder / "recipe.yaml").read_text()
        old, new = how.split("→")
        assert old in text
        (folder / "recipe.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "weights.safetensors is missing"),
        ("garbage", "not a readable safetensors file"),
        ("cut", "not a readable safetensors file"),
        ("shape", "does not fit this model: encoder.0.q.lora.A"),
        ("extra", "not in the model"),
        ("labels", "number of labels"),
        ("rank: 2→rank: 1000", "do not belong together"),
        ("reparameterization: 6→reparameterization: 4000000", "8192"),
        ("rank: 2→rank: 3", "do not belong together"),
        ("lora:→lra:", "Did you mean 'lora'"),
    ],
)
def test_folders_that_do_not_fit_are_refused_and_the_model_is_unchanged(
    saved: Path, how: str, says: str
) -> None:
    _broken(saved, how)
    model = tiny_model("bert")
    before: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((DataError, UsageError), match=says):
        load(model, saved)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_small_file_cannot_ask_for_a_large_scaffold(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.hybrid.store._SCAFFOLDING", 1000)
    _broken(saved, "reparameterization: 6→reparameterization: 8192")
    with pytest.raises(DataError, match="that only training needs"):
        load(tiny_model("bert"), saved)
