"""Saved hybrids: what is on disk, and folders that come from strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import nn

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach, deployed_tensors, load
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
    deployed_tensors(hybrid.modules, hybrid.head())
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
    elif how in ("F4", "F6_E2M3"):
        _relabel(weights, "head.classifier.weight", how)
    elif how == "whole numbers":
        save_file({**state, "head.classifier.bias": torch.ones(2, dtype=torch.int32)}, weights)
    elif how == "2^63":
        _relabel(weights, "head.classifier.bias", "F32", [0, 2**63])
    else:
        text = (folder / "recipe.yaml").read_text()
        old, new = how.split("→")
        assert old in text
        (folder / "recipe.yaml").write_text(text.replace(old, new))


def _relabel(file: Path, name: str, dtype: str, shape: list[int] | None = None) -> None:
    """Let the header say something else of a tensor, whose bytes stay."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    told = header[name]
    header[name] = {**told, "dtype": dtype, "shape": told["shape"] if shape is None else shape}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "weights.safetensors is missing"),
        ("garbage", "no safetensors file"),
        ("cut", "other bytes than there are"),
        ("shape", "does not fit this model: encoder.0.q.lora.A"),
        ("extra", "not in the model"),
        ("labels", "number of labels"),
        ("F4", "dtype 'F4'"),
        ("F6_E2M3", "dtype 'F6_E2M3'"),
        ("whole numbers", "head.classifier.bias is I32 in the file"),
        ("2^63", "impossible shape"),
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


PRUNED = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"sora": {"rank": 4, "sites": ["q", "v"]}}]}]})


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A saved hybrid of which training left less than the recipe allows."""
    hybrid = attach(tiny_model("bert"), PRUNED, seed=0)
    randomise(hybrid.root)
    module: Any = hybrid.modules["sora"]
    with torch.no_grad():
        for i, gate in enumerate(module.gates()):
            gate[: i % 5] = 0.0
    return hybrid.save(tmp_path / "pruned")


def test_what_was_pruned_is_loaded_with_the_size_that_was_saved(pruned: Path) -> None:
    hybrid = load(tiny_model("bert"), pruned)
    held = sum(v.numel() for k, v in load_file(pruned / "weights.safetensors").items() if "sora" in k)
    counts = json.loads((pruned / "hybrid.json").read_text())["counts"]
    assert held == hybrid.counts().deployed == counts["deployed"] < hybrid.graph.parameter_count().deployed
    assert hybrid.counts().trained == hybrid.graph.parameter_count().trained


@pytest.mark.parametrize("key", ["encoder.0.q.sora.A", "encoder.0.q.sora.B"])
@pytest.mark.parametrize("shape", [(5, 32), (32, 5), (2, 32), (4, 0), (0, 0), (10**9, 0), (4,), ()])
def test_saved_sizes_that_cannot_be_are_refused(pruned: Path, key: str, shape: tuple[int, ...]) -> None:
    file = pruned / "weights.safetensors"
    state = load_file(file)
    if tuple(state[key].shape) == shape:
        return
    save_file({**state, key: torch.zeros(shape)}, file)
    model = tiny_model("bert")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match="does not fit this model"):
        load(model, pruned)
    assert model.state_dict().keys() == before.keys()


def test_a_small_file_cannot_ask_for_large_ranks(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.hybrid.store.SCAFFOLDING", 1000)
    _broken(pruned, "rank: 4→rank: 1000")
    with pytest.raises(DataError, match="smaller `reparameterization` or rank"):
        load(tiny_model("bert"), pruned)


def test_a_small_file_cannot_ask_for_a_large_scaffold(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.hybrid.store.SCAFFOLDING", 1000)
    _broken(saved, "reparameterization: 6→reparameterization: 8192")
    with pytest.raises(DataError, match="that only training needs"):
        load(tiny_model("bert"), saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml"])
def test_links_out_of_the_folder_are_not_followed(saved: Path, tmp_path: Path, name: str) -> None:
    (saved / name).rename(tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)
    with pytest.raises(UsageError, match="leads out of its folder"):
        load(tiny_model("bert"), saved)


def test_a_load_that_fails_at_its_end_leaves_the_head_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("bert", seed=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    class Interrupted(nn.Parameter):
        def copy_(self, *values: Any) -> Any:  # type: ignore[override]
            raise KeyboardInterrupt

    bias: Any = model.get_parameter("classifier.bias")
    bias.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        load(model, saved)
    bias.__class__ = nn.Parameter
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
