from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews
from transformers import AutoTokenizer, ByT5Tokenizer

from autopeft.errors import UsageError
from autopeft.runs.folder import RunFolder
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.resume import SPACE, prepare_again


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a search for a regression, a kind of task without a loss to rank by."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    data = write_reviews(tmp_path / "data.csv")
    with data.open(newline="") as file:
        head, *rows = csv.reader(file)
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([head, *([text, i % 7 / 4] for i, (text, _) in enumerate(rows))])
    return {
        "task": str(data),
        "text": "body",
        "label": "verdict",
        "kind": "regression",
        "budget": "5%",
        "model": str(save_backbone(tmp_path / "model")),
        "space": "lora",
        "trials": 2,
        "steps": 4,
        "pooling": "own",
        "max_length": 32,
    }


@pytest.fixture
def tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a search for tags of words; one sentence has 70 of them."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    sentences = ["the O\n" * (i % 9) + "film B-ART\n" + "was O\n" * (i // 9) + "good O" for i in range(60)]
    sentences.append("story B-ART\n" * 70)
    (tmp_path / "words.conll").write_text("\n\n".join(sentences))
    return {
        "task": str(tmp_path / "words.conll"),
        "budget": "5%",
        "model": str(save_backbone(tmp_path / "model")),
        "space": "lora",
        "max_length": 32,
    }


def test_a_length_that_the_tokenizer_does_not_take_is_refused_at_the_start(tags: dict[str, Any]) -> None:
    assert prepare(SearchArguments(**tags)).plan.max_length == 32
    with pytest.raises(UsageError, match=r"max_length=33 .* 4 to 32"):
        prepare(SearchArguments(**{**tags, "max_length": 33}))


def test_rows_beyond_the_positions_of_the_backbone_are_refused_at_the_start(tags: dict[str, Any]) -> None:
    AutoTokenizer.from_pretrained(tags["model"], model_max_length=1000).save_pretrained(tags["model"])
    assert prepare(SearchArguments(**{**tags, "max_length": 64})).plan.max_length == 64
    with pytest.raises(UsageError, match=r"72 tokens.* 64.*--max-length 64"):
        prepare(SearchArguments(**{**tags, "max_length": 80}))


def test_a_tokenizer_that_does_not_tell_words_apart_is_refused_at_the_start(tags: dict[str, Any]) -> None:
    for file in Path(tags["model"]).glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(tags["model"])
    with pytest.raises(UsageError, match="tags of words need a tokenizer with"):
        prepare(SearchArguments(**tags))


@pytest.mark.parametrize("rank_by", ["loss", "calibrated-loss"])
def test_a_loss_that_the_kind_of_task_lacks_is_not_ranked_by(numbers: dict[str, Any], rank_by: str) -> None:
    with pytest.raises(UsageError, match=rf"regression .*score.*rank_by='{rank_by}'"):
        prepare(SearchArguments(**numbers, rank_by=rank_by))


def test_a_run_that_recorded_such_a_loss_goes_on_as_it_was(numbers: dict[str, Any], tmp_path: Path) -> None:
    ready = prepare(SearchArguments(**numbers, rank_by="score"))
    folder = RunFolder.create("data", ready.key(), out=tmp_path / "run")
    manifest = ready.manifest()
    told = {**manifest["arguments"], "rank_by": "loss"}
    folder.write_json("manifest.json", {**manifest, "arguments": told, "rank_by": "loss"})
    folder.write_text(SPACE, ready.space.text)
    assert prepare_again(folder, {}).rank_by == "loss"
