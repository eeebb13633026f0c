"""A hybrid is loaded in the precision that it was trained in, or in the one that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone, write_reviews

import autopeft
from autopeft.errors import UsageError
from autopeft.export.manifest import Card
from autopeft.export.package import find_saved, load_hybrid, load_saved
from autopeft.recipe import Recipe

RECIPE: dict[str, Any] = {"name": "pair", "layers": [{"attach": [{"lora": {"rank": 4}}]}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        autopeft.train(
            recipe=Recipe.from_dict(RECIPE), task="reviews.csv", text="body", label="verdict", model="bert",
            steps=4, max_length=24, precision="bf16", out="run",
        )  # fmt: skip
        autopeft.export("run", "exported")
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


@pytest.mark.parametrize("where", ["run", "exported"])
def test_the_precision_of_the_training_is_kept(where: str) -> None:
    saved = find_saved(where)
    assert saved.card.precision == "bf16"
    own, _ = load_saved(saved)
    other, _ = load_saved(saved, precision="fp32")
    assert (own.model.dtype, other.model.dtype) == (torch.bfloat16, torch.float32)
    assert {p.dtype for p in own.head_parameters()} == {torch.float32}
    # Formats of others hold the backbone as it is on disk.
    assert load_hybrid(saved)[0].model.dtype == torch.float32


@pytest.mark.parametrize("where", ["run", "exported"])
def test_the_score_is_that_of_the_run(where: str) -> None:
    found = autopeft.evaluate(where)
    assert found.recorded is not None
    assert found.recorded.score == pytest.approx(found.score, abs=1e-9)
    assert found.recorded.reasons == ()


def test_another_precision_is_named_where_the_score_differs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((home / "run" / "result.json").read_text())
    changed = home / "changed"
    changed.mkdir()
    for file in (home / "run").rglob("*"):
        target = changed / file.relative_to(home / "run")
        target.mkdir() if file.is_dir() else target.write_bytes(file.read_bytes())
    (changed / "result.json").write_text(json.dumps({**known, "test_mean": 0.123}))

    def reasons(**given: Any) -> str:
        before = autopeft.evaluate("changed", **given).recorded
        assert before is not None
        return " ".join(before.reasons)

    assert "The backbone is in fp32, and was in bf16 in the run" in reasons(precision="fp32")
    assert "The backbone is in" not in reasons()


@pytest.mark.parametrize("said", [None, "fp8", ["bf16"], 16])
def test_a_run_that_says_nothing_sound_is_loaded_in_full(home: Path, said: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text((home / "run" / "manifest.json").read_text())
    told = json.loads((home / "run" / "result.json").read_text())
    del told["precision"]
    told |= {} if said is None else {"precision": said}
    (tmp_path / "result.json").write_text(json.dumps(told))
    assert Card.read(tmp_path).precision == "fp32"


def test_a_live_hybrid_stays_in_its_own() -> None:
    hybrid, tokenizer = load_saved(find_saved("run"))
    with pytest.raises(UsageError, match=r"precision.* for saved hybrids: a live one is on its own model"):
        autopeft.predict(hybrid, "a good film", tokenizer=tokenizer, precision="fp32")
    with pytest.raises(UsageError, match="`precision` must be 'fp32' or 'bf16'"):
        autopeft.predict("run", "a good film", precision="fp16")
