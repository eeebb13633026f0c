from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.saved_model import save_backbone
from support.tiny import randomise

from autopeft.assets import load_model, resolve_model
from autopeft.errors import UsageError
from autopeft.export.manifest import Card
from autopeft.export.package import find_saved, load_saved, write_package
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks.encode import encode_texts
from autopeft.training import predict

RECIPE = {
    "name": "mixed",
    "layers": [
        {"attach": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2, "reparameterization": 4}}]}
    ],
}
TEXTS = ["the film was good", "a dull story", "the the film"]


def manifest(model: str, sha256: str | None) -> dict[str, Any]:
    return {
        "task": "reviews.csv",
        "model": model,
        "backbone": {"path": model, "alias": None, "origin": "folder", "sha256": sha256},
        "data": {
            "name": "reviews.csv",
            "kind": "classification",
            "labels": ["no", "yes"],
            "metric": "accuracy",
            "source": {"name": "reviews.csv", "origin": "file", "notice": None},
        },
        "training": {"max_length": 16},
    }


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def run(tmp_path: Path, backbone: Path) -> Path:
    """A run folder with a trained hybrid, and its logits as `logits.npy`."""
    source = resolve_model(str(backbone))
    folder = tmp_path / "run"
    hybrid = attach(load_model(source, seed=7), Recipe.from_dict(RECIPE), seed=3)
    randomise(hybrid.root)
    for parameter in hybrid.head_parameters():
        torch.nn.init.normal_(parameter)
    hybrid.save(folder / "winner")
    (folder / "manifest.json").write_text(json.dumps(manifest(str(backbone), source.sha256)))
    (folder / "result.json").write_text(
        json.dumps({"test_mean": 0.75, "test_sd": 0.01, "counts": {"deployed": 9}})
    )
    shutil.copy(folder / "winner" / "recipe.yaml", folder)
    np.save(folder / "logits.npy", logits_of(hybrid, source.path))
    return folder


def logits_of(hybrid: Any, path: str) -> Any:
    from autopeft.assets import load_tokenizer

    return predict(hybrid.model.eval(), encode_texts(TEXTS, None, load_tokenizer(path), 16, cached=False))


def test_an_exported_hybrid_predicts_the_same(run: Path, tmp_path: Path, backbone: Path) -> None:
    exported = write_package(find_saved(run), tmp_path / "out")
    shutil.rmtree(run / "winner")
    hybrid, tokenizer = load_saved(find_saved(exported))
    found = predict(hybrid.model, encode_texts(TEXTS, None, tokenizer, 16, cached=False))
    np.testing.assert_allclose(found, np.load(run / "logits.npy"), atol=1e-6)
    assert Recipe.from_file(exported / "recipe.yaml") == Recipe.from_dict(RECIPE)


def test_the_card_survives_the_export(run: Path, tmp_path: Path) -> None:
    before = find_saved(run).card
    exported = write_package(find_saved(run), tmp_path / "out")
    assert Card.read(exported) == before
    card = (exported / "README.md").read_text()
    assert "0.7500 ± 0.0100" in card
    assert "reviews.csv" in card


def test_another_backbone_is_refused(run: Path, tmp_path: Path) -> None:
    other = save_backbone(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="not the one that this hybrid was trained on"):
        load_saved(find_saved(run), model=str(other))


def test_a_backbone_that_moved_is_found_by_its_new_place(run: Path, tmp_path: Path, backbone: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(backbone, moved)
    hybrid, _ = load_saved(find_saved(run), model=str(moved))
    np.testing.assert_allclose(logits_of(hybrid, str(moved)), np.load(run / "logits.npy"), atol=1e-6)


def test_a_full_folder_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not an empty folder"):
        write_package(find_saved(run), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"kind": "classification"}}, "not a manifest of a trained hybrid"),
        ({"training": {}}, "not a manifest of a trained hybrid"),
        ({"data": {"kind": "poetry", "labels": [], "metric": "accuracy"}}, "unknown kind of task 'poetry'"),
        ({"data": ["a list"]}, "not a manifest of a trained hybrid"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(run: Path, change: dict[str, Any], message: str) -> None:
    whole = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(UsageError, match=message):
        find_saved(run)


def test_a_manifest_that_is_no_json_is_one_sentence(run: Path) -> None:
    (run / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        find_saved(run)


def test_a_run_without_weights_says_so(run: Path) -> None:
    shutil.rmtree(run / "winner")
    with pytest.raises(UsageError, match="no trained weights"):
        find_saved(run)


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor an exported hybrid"):
        find_saved(tmp_path)
