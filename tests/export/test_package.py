from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.saved_model import save_backbone
from support.tiny import randomise

from autopeft.assets import load_model, resolve_model
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.export.formats import Ready
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


@pytest.mark.parametrize("told", [{"alias": "minilm", "origin": "package"}, {"origin": "hub"}])
def test_where_a_backbone_with_a_name_lay_stays_here(run: Path, tmp_path: Path, told: dict[str, str]) -> None:
    whole = json.loads((run / "manifest.json").read_text())
    there = {**whole["backbone"], **told, "path": "/home/somebody/.cache/it"}
    (run / "manifest.json").write_text(json.dumps({**whole, "backbone": there}))
    exported = write_package(find_saved(run), tmp_path / "out")
    assert all("somebody" not in path.read_text(errors="replace") for path in exported.iterdir())
    assert Card.read(exported).backbone == {k: v for k, v in there.items() if k != "path"}


def test_another_backbone_is_refused(run: Path, tmp_path: Path) -> None:
    other = save_backbone(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="not the one that this hybrid was trained on"):
        load_saved(find_saved(run), model=str(other))


@pytest.mark.parametrize("relative", [True, False])
def test_where_a_run_that_moved_looked_for_its_backbone_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    name = "bert" if relative else str(tmp_path / "bert")
    whole = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**whole, "model": name}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"was begun with the backbone .*bert.* --model"):
        load_saved(find_saved(run))


def test_a_backbone_that_moved_is_found_by_its_new_place(run: Path, tmp_path: Path, backbone: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(backbone, moved)
    hybrid, _ = load_saved(find_saved(run), model=str(moved))
    np.testing.assert_allclose(logits_of(hybrid, str(moved)), np.load(run / "logits.npy"), atol=1e-6)


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=str)
def test_what_is_cut_short_leaves_nothing(
    run: Path, tmp_path: Path, there: bool, error: BaseException
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def cut_short(folder: Path) -> None:
        assert not (out / "manifest.json").exists(), "it would speak of what is not whole yet"
        assert not (out / "README.md").exists()
        folder.mkdir()
        (folder / "half").write_text("ha")
        raise error

    expected = AutoPEFTError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_package(find_saved(run), out, name="merged", ready=Ready(cut_short, "## Use"))
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert out.exists() is there
    assert list(out.glob("*")) == []
    assert write_package(find_saved(run), out) == out


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
        (
            {"data": {"kind": "classification", "labels": []}},
            "not a manifest of a trained hybrid: KeyError..metric",
        ),
        ({"training": {}}, "not a manifest of a trained hybrid"),
        ({"training": {"max_length": float("inf")}}, "not a manifest of a trained hybrid"),
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
    with pytest.raises(UsageError, match="nested too deeply"):
        find_saved(run)


def test_a_run_without_weights_says_so(run: Path) -> None:
    shutil.rmtree(run / "winner")
    with pytest.raises(UsageError, match="no trained weights"):
        find_saved(run)


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor an exported hybrid"):
        find_saved(tmp_path)


SECRET = "nobody is to see this"


@pytest.mark.parametrize("name", ["recipe.yaml", "hybrid.json", "weights.safetensors", "README.md"])
def test_links_are_neither_exported_nor_read(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (run / "winner" / name).unlink(missing_ok=True)
    (run / "winner" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="leads out of its folder"):
        write_package(find_saved(run), tmp_path / "out")
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert all(SECRET.encode() not in p.read_bytes() for p in written)
    if name in ("recipe.yaml", "weights.safetensors"):
        with pytest.raises(UsageError, match="leads out of its folder"):
            load_saved(find_saved(run))


@pytest.mark.parametrize("name", ["manifest.json", "result.json", "winner"])
def test_links_of_the_run_itself_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of its folder"):
        find_saved(run)


def test_an_export_of_a_run_within_its_folder_keeps_links(run: Path, tmp_path: Path) -> None:
    (run / "winner").rename(run / "kept")
    (run / "winner").symlink_to("kept")
    exported = write_package(find_saved(run), tmp_path / "out")
    assert not any(p.is_symlink() for p in exported.iterdir())
    hybrid, _ = load_saved(find_saved(exported))
    assert hybrid.attached


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_exported_files_have_the_mode_of_new_files(run: Path, tmp_path: Path, umask: int, mode: int) -> None:
    for path in (run / "winner").iterdir():
        path.chmod(0o400)
    before = os.umask(umask)
    try:
        exported = write_package(find_saved(run), tmp_path / "out")
        hybrid, _ = load_saved(find_saved(run))
        hybrid.save(tmp_path / "saved")
        hybrid.model.save_pretrained(tmp_path / "checkpoint")
    finally:
        os.umask(before)
    files = [
        p for folder in (exported, tmp_path / "saved", tmp_path / "checkpoint") for p in folder.iterdir()
    ]
    assert len(files) == 13
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in files} == {p.name: mode for p in files}


def test_a_folder_whose_name_is_too_long_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no path: a part of it is longer"):
        write_package(find_saved(run), tmp_path / ("x" * 300))
    with pytest.raises(UsageError, match="is no path"):
        find_saved("x" * 300)
    with pytest.raises(UsageError, match="home folder of a user"):
        find_saved("~no-such-user/x")
