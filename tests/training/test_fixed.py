from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModel, AutoTokenizer

import autopeft
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.training.fixed import FixedOutcome

RECIPE: dict[str, Any] = {
    "name": "pair",
    "layers": [{"attach": [{"lora": {"rank": 4, "sites": ["q", "v"]}}]}],
    "training": {"learning_rate": 2e-2},
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    return {
        "recipe": Recipe.from_dict(RECIPE),
        "task": "reviews.csv",
        "text": "body",
        "label": "verdict",
        "model": "bert",
        "steps": 5,
        "max_length": 16,
        "batch_size": 8,
    }


def test_what_a_notebook_calls(given: dict[str, Any], tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = autopeft.train(**given, progress=lines.append)
    assert isinstance(outcome, FixedOutcome)
    assert outcome.recipe.name == "pair"
    assert set(outcome.scores) == {"select", "test"}
    assert outcome.counts["deployed"] == 3 * 2 * 4 * 64
    assert not outcome.hybrid.model.training
    assert lines[-1].startswith("step 5/5  loss ")
    assert outcome.folder.parent == tmp_path / "runs"
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["arguments"]["recipe"] == {"memory": "Recipe pair"}
    assert manifest["arguments"]["text"] == "body"
    assert RunFolder(outcome.folder).result()["test_mean"] == outcome.scores["test"]
    assert (outcome.folder / "winner" / "weights.safetensors").is_file()


def test_rows_and_a_model_in_memory(given: dict[str, Any], tmp_path: Path) -> None:
    """The same scores as by name, and the model as it was."""
    by_name = autopeft.train(**given, out="named")
    frame = pandas.read_csv("reviews.csv")
    model, tokenizer = AutoModel.from_pretrained("bert"), AutoTokenizer.from_pretrained("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_memory = autopeft.train(**{**given, "task": frame, "model": (model, tokenizer)}, out="memory")
    assert in_memory.scores == by_name.scores
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    manifest = json.loads(Path("memory/manifest.json").read_text())
    assert manifest["arguments"]["task"] == {"memory": "DataFrame (120 rows)"}
    assert manifest["data"]["source"]["sha256"] == by_name.task.source.sha256
    assert manifest["data"]["source"]["origin"] == "memory"
    assert Path(manifest["model"]).is_relative_to(tmp_path / "cache")
    assert autopeft.evaluate(in_memory).score == pytest.approx(in_memory.scores["test"], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipie": "mam"}, "train has no argument 'recipie'. Did you mean 'recipe'"),
        ({"recipe": 3}, "A recipe is a name, a file or a `Recipe`"),
        ({"task": 3}, "A task is a name, a path"),
        ({"model": torch.nn.Linear(2, 2)}, r"a pair \(model, tokenizer\)"),
        ({"steps": 0}, "steps is at least 1"),
        ({"metric": "acuracy"}, "accuracy"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    given: dict[str, Any], change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        autopeft.train(**{**given, **change})
    assert not (tmp_path / "runs").exists()


def test_a_lone_model_is_told_to_bring_its_tokenizer(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"a lone BertModel"):
        autopeft.train(**{**given, "model": AutoModel.from_pretrained("bert")})
