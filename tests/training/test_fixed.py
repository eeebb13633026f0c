from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from support.language import save_decoder, write_chats
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.cli.app import main
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.training import SilentTrainReporter, TrainInfo
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
    outcome = autopeft.train(**given)
    assert isinstance(outcome, FixedOutcome)
    assert outcome.recipe.name == "pair"
    assert set(outcome.scores) == {"select", "test"}
    assert outcome.counts["deployed"] == 3 * 2 * 4 * 64
    assert not outcome.hybrid.model.training
    assert outcome.folder.parent == tmp_path / "runs"
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["arguments"]["recipe"] == {"memory": "Recipe pair"}
    assert manifest["arguments"]["text"] == "body"
    assert RunFolder(outcome.folder).result()["test_mean"] == outcome.scores["test"]
    assert (outcome.folder / "winner" / "weights.safetensors").is_file()
    model = AutoModelForSequenceClassification.from_pretrained("bert")
    assert autopeft.load(model, outcome.folder / "winner").model.config.id2label == {0: "no", 1: "yes"}


class Told(SilentTrainReporter):
    """Keeps the kinds of events, and what the last ones said."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.scores: list[tuple[int, float]] = []

    def on_start(self, info: TrainInfo) -> None:
        self.events.append("start")
        self.info = info

    def on_phase(self, name: str, steps: int) -> None:
        self.events.append(name)

    def on_step(self, step: int, loss: float, remaining: float | None) -> None:
        self.events.append(f"step {step}")

    def on_score(self, step: int, score: float) -> None:
        self.events.append("score")
        self.scores.append((step, score))


def test_a_reporter_hears_all_and_the_run_keeps_the_course(given: dict[str, Any]) -> None:
    told = Told()
    outcome = autopeft.train(**given, eval_every=2, reporter=told)
    assert told.events == [
        "start", "training", "step 1", "step 2", "score", "step 3", "step 4", "score", "step 5", "scoring"
    ]  # fmt: skip
    assert (told.info.recipe, told.info.metric, told.info.steps) == ("pair", "accuracy", 5)
    assert told.info.data == outcome.summary
    assert outcome.history.scores == tuple(told.scores)
    history = RunFolder(outcome.folder).result()["history"]
    assert history == json.loads(json.dumps(outcome.history.to_dict()))
    assert [step for step, _ in history["losses"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in history["scores"]] == [2, 4]
    assert history["phases"] == [[1, "training"]]
    assert json.loads((outcome.folder / "manifest.json").read_text())["arguments"]["eval_every"] == 2


def test_watching_changes_nothing(given: dict[str, Any]) -> None:
    plain = autopeft.train(**given, out="plain")
    watched = autopeft.train(**given, eval_every=1, reporter=Told(), out="watched")
    assert plain.history.losses == watched.history.losses
    assert plain.scores == watched.scores
    assert plain.history.scores == ()


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
        ({"eval_every": 0}, "eval_every is at least 1"),
        ({"reporter": print}, "lacks on_start, on_phase, on_step, on_score; make it a subclass"),
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


def test_a_language_model_s_answers_are_kept_and_listed(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chats(tmp_path / "chats.jsonl")
    save_decoder(tmp_path / "llama")
    changes = {"task": "chats.jsonl", "text": None, "label": None, "model": "llama", "max_length": 48}
    outcome = autopeft.train(**{**given, **changes}, out="run")
    kept = RunFolder(outcome.folder).result()["samples"]
    assert len(kept) == len(outcome.samples) > 0
    assert {sample["split"] for sample in kept} == {"test"}
    assert main(["runs", "run"]) == 0
    shown = capsys.readouterr().out
    assert "Samples of answers" in shown
    assert f"test {kept[0]['row'] + 1} " in shown
    assert " ".join(kept[0]["prompt"].split())[:30] in shown


def test_a_training_that_starts_from_another_writes_down_what_it_was(given: dict[str, Any]) -> None:
    source = autopeft.train(**given, out="source")
    values = source.hybrid.root.state_dict()
    item = {"lora": {"rank": 4, "sites": ["q", "v"]}, "from": "earlier"}
    tree = {**RECIPE, "inputs": {"earlier": "source"}, "layers": [{"attach": [item]}]}
    recipe = Recipe.from_dict({**tree, "training": {"learning_rate": 1e-12}})
    target = autopeft.train(**{**given, "recipe": recipe})
    for name, value in target.hybrid.root.state_dict().items():
        torch.testing.assert_close(value, values[name], atol=1e-6, rtol=1e-6)
    manifest = RunFolder(target.folder).manifest()
    sha256 = manifest["inputs"]["earlier"]["sha256"]
    assert manifest["inputs"] == {"earlier": {"folder": "source", "sha256": sha256}}
    for kept in ("recipe.yaml", "winner/recipe.yaml"):
        assert Recipe.from_file(target.folder / kept) == recipe.pinned({"earlier": sha256})
    assert target.folder.name.endswith(target.recipe.hash()[:6])


def test_an_input_by_the_name_of_its_run_is_found_where_the_runs_are(given: dict[str, Any]) -> None:
    source = autopeft.train(**given, runs="elsewhere")
    item = {"lora": {"rank": 4, "sites": ["q", "v"]}, "from": "earlier"}
    tree = {**RECIPE, "inputs": {"earlier": {"run": source.folder.name}}, "layers": [{"attach": [item]}]}
    again = {**given, "recipe": Recipe.from_dict(tree)}
    assert autopeft.train(**again, runs="elsewhere").recipe.inputs["earlier"].sha256
    with pytest.raises(UsageError, match=r"missing.*Train it first"):
        autopeft.train(**again)
    assert not list(Path("runs").glob("*")), "nothing is left of a training that could not begin"
