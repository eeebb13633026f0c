from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

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
    }


@pytest.mark.parametrize("rank_by", ["loss", "calibrated-loss"])
def test_a_loss_that_the_kind_of_task_lacks_is_not_ranked_by(numbers: dict[str, Any], rank_by: str) -> None:
    said = rf"kind of task regression are ranked by score, but got rank_by='{rank_by}': it has no loss"
    with pytest.raises(UsageError, match=said):
        prepare(SearchArguments(**numbers, rank_by=rank_by))


def test_a_run_that_recorded_such_a_loss_goes_on_as_it_was(numbers: dict[str, Any], tmp_path: Path) -> None:
    ready = prepare(SearchArguments(**numbers, rank_by="score"))
    folder = RunFolder.create("data", ready.key(), out=tmp_path / "run")
    manifest = ready.manifest()
    told = {**manifest["arguments"], "rank_by": "loss"}
    folder.write_json("manifest.json", {**manifest, "arguments": told, "rank_by": "loss"})
    folder.write_text(SPACE, ready.space.text)
    assert prepare_again(folder, {}).rank_by == "loss"
