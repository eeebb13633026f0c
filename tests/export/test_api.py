"""Trained hybrids in use, however they come: a run, a folder, an outcome, a live hybrid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.errors import DataError, TaskError, UsageError
from autopeft.export.recorded import Recorded
from autopeft.recipe import Recipe
from autopeft.training.fixed import FixedOutcome

RECIPE: dict[str, Any] = {
    "name": "pair",
    "layers": [{"attach": [{"lora": {"rank": 4, "sites": ["q", "v", "up"]}}]}],
    "training": {"learning_rate": 2e-2},
}
TEXTS = ["the film was good", "the story was bad"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    return folder


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def outcome(home: Path) -> FixedOutcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(home / "cache"))
        patch.chdir(home)
        return autopeft.train(
            recipe=Recipe.from_dict(RECIPE), task="reviews.csv", text="body", label="verdict", model="bert",
            steps=60, max_length=24, out="run",
        )  # fmt: skip


def test_outcome_run_and_export_predict_and_score_alike(outcome: FixedOutcome, home: Path) -> None:
    shutil.rmtree(home / "winner", ignore_errors=True)
    exported = autopeft.export(outcome, "winner")
    assert exported.format == "peft"
    assert {"recipe.yaml", "manifest.json", "peft/adapter_config.json"} <= set(exported.files)
    found = [autopeft.predict(which, TEXTS) for which in (outcome, "run", Path("winner"))]
    assert found[0] == found[1] == found[2]
    assert [item["label"] for item in found[0]] == ["yes", "no"]
    (alone,) = autopeft.predict("run", TEXTS[0])
    assert (alone["text"], alone["label"]) == (TEXTS[0], "yes")
    # The same arithmetic on a batch of another shape rounds differently.
    assert alone["logits"] == pytest.approx(found[0][0]["logits"], abs=1e-5)
    scores = [autopeft.evaluate(which) for which in (outcome, "run")]
    assert scores[0].score == scores[1].score == pytest.approx(outcome.scores["test"], abs=1e-9)
    assert scores[0].to_dict()["metric"] == "accuracy"
    frame = pandas.read_csv("reviews.csv")
    again = autopeft.evaluate("winner", task=frame, text="body", label="verdict", split="select")
    assert again.score == pytest.approx(outcome.scores["select"], abs=1e-9)


def test_a_run_that_moved_says_where_its_data_were(
    outcome: FixedOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"was begun with the data 'reviews.csv'.*--task"):
        autopeft.evaluate(outcome.folder.resolve())


def test_a_table_is_answered_row_for_row_and_written(outcome: FixedOutcome, tmp_path: Path) -> None:
    rows = pandas.DataFrame({"body": ["the film was good", "", "the story was bad"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    found = autopeft.predict("run", tmp_path / "rows.csv", out=tmp_path / "answers.jsonl")
    assert [row.get("label") for row in found] == ["yes", None, "no"]
    assert found[1] == {"text": "", "problem": "no text"}
    assert autopeft.predict(outcome, rows) == found
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert written == [{"row": i, **row} for i, row in enumerate(found, start=1)]
    assert autopeft.predict("run", ["", " "]) == [{"text": t, "problem": "no text"} for t in ("", " ")]
    with pytest.raises(UsageError, match="single texts"):
        autopeft.predict("run", TEXTS, text_pair=TEXTS)


def test_other_data_are_read_by_the_columns_of_the_training(home: Path, tmp_path: Path) -> None:
    """As `predict` reads them. The obvious names, `text` and `label`, hold something else here."""
    frame = pandas.read_csv("reviews.csv").rename(columns={"body": "title", "verdict": "topic"})
    frame = frame.assign(text="the same", label=["yes", "no"] * 60)
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task=frame, text="title", label="topic", model="bert", steps=2,
        max_length=24, out=tmp_path / "run",
    )  # fmt: skip
    other = frame[frame.columns[::-1]].iloc[:30]
    for which in (found, tmp_path / "run"):
        scored = autopeft.evaluate(which, task=other, split="all")
        assert scored.task.reading.columns == {"text": "title", "label": "topic"}
        asked = autopeft.evaluate(which, task=other, split="all", text="text", label="label")
        assert asked.task.reading.columns == {"text": "text", "label": "label"}
        plain = other.drop(columns=["title", "topic"])
        assert autopeft.evaluate(which, task=plain, split="all").task.reading.columns["text"] == "text"


def test_classes_that_are_numbers_are_known_by_their_value(home: Path, tmp_path: Path) -> None:
    """Half stars, of which other data may hold whole ones alone."""
    frame = pandas.read_csv("reviews.csv").assign(stars=[1.0, 1.5, 2.0] * 40)
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task=frame, text="body", label="stars", model="bert", steps=2,
        max_length=24, out=tmp_path / "run",
    )  # fmt: skip
    assert found.task.labels == ("1.0", "1.5", "2.0")
    whole = frame[frame.stars != 1.5]
    for split in (None, "all", "select"):
        scored = autopeft.evaluate(tmp_path / "run", task=whole, split=split)
        assert scored.task.labels == ("1.0", "1.5", "2.0")
        assert {label for part in scored.task.splits.values() for label in part.labels} == {0, 2}
    with pytest.raises(TaskError, match="labels that the hybrid's head does not know: 3"):
        autopeft.evaluate(tmp_path / "run", task=whole.assign(stars=whole.stars + 1), split="all")


def test_what_was_trained_on_single_texts_is_not_scored_on_pairs(home: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv("reviews.csv").rename(columns={"body": "sentence1", "verdict": "label"})
    pairs = frame.assign(sentence2="the story")
    short: dict[str, Any] = {"model": "bert", "steps": 2, "max_length": 24}
    short["recipe"] = Recipe.from_dict(RECIPE)
    single = autopeft.train(task=pairs, text="sentence1", out=tmp_path / "single", **short)
    double = autopeft.train(task=pairs, out=tmp_path / "double", **short)
    for which in (single, tmp_path / "single"):
        assert autopeft.evaluate(which, task=pairs, split="all").task.splits["test"].pairs is None
        told = {"text": "sentence1", "text_pair": "sentence2"}
        with pytest.raises(UsageError, match=r"trained on single texts, but the rows .* are pairs"):
            autopeft.evaluate(which, task=pairs, split="all", **told)
    for which in (double, tmp_path / "double"):
        assert autopeft.evaluate(which, task=pairs, split="all").task.splits["test"].pairs is not None
        with pytest.raises(UsageError, match="trained on pairs of texts, but the second ones are missing"):
            autopeft.evaluate(which, task=frame.rename(columns={"sentence1": "text"}), split="all")


def test_a_hybrid_of_pairs_wants_pairs(home: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv("reviews.csv").assign(more="the story")
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task=frame, text="body", text_pair="more", label="verdict",
        model="bert", steps=2, max_length=24, out=tmp_path / "run",
    )  # fmt: skip
    autopeft.export(found, tmp_path / "exported")
    for which in (found, tmp_path / "run", tmp_path / "exported"):
        with pytest.raises(UsageError, match="trained on pairs of texts"):
            autopeft.predict(which, TEXTS)
        assert len(autopeft.predict(which, frame)) == 120  # the columns of training need no name
    assert "--text-pair" in (tmp_path / "exported" / "README.md").read_text()


def test_a_score_comes_with_what_it_leaves_out(outcome: FixedOutcome, home: Path) -> None:
    found = autopeft.evaluate("run", split="all")
    classes, confusion = found.breakdown
    assert found.rows == 120
    assert [row[0] for row in classes.rows] == ["no", "yes"]
    assert [row[-1] for row in classes.rows] == [60, 60]
    right = sum(row[i + 1] for i, row in enumerate(confusion.rows))  # type: ignore[misc]
    assert right / 120 == pytest.approx(found.score)
    assert found.recorded is not None
    assert "trained on rows of this split" in found.recorded.reasons[0]
    assert found.to_dict()["breakdown"]["confusion"]["columns"] == ["true", "no", "yes"]


def test_a_score_is_compared_with_the_run_s(outcome: FixedOutcome, tmp_path: Path) -> None:
    assert autopeft.evaluate("run").recorded == Recorded(pytest.approx(outcome.scores["test"]), ())
    assert autopeft.evaluate("run", metric="macro_f1").recorded is None
    # An exported hybrid knows how its rows were split, and so does not score what it was trained on.
    other = tmp_path / "other"
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task="reviews.csv", text="body", label="verdict", model="bert",
        steps=2, seed=3, max_length=24, out=other,
    )  # fmt: skip
    autopeft.export(other, tmp_path / "exported")
    assert autopeft.evaluate(tmp_path / "exported").recorded == Recorded(
        pytest.approx(found.scores["test"]), ()
    )
    again = autopeft.evaluate("run", seed=5)
    assert again.recorded is not None
    if again.score != pytest.approx(outcome.scores["test"]):
        assert "split with seed 5, and by the run with seed 0" in again.recorded.reasons[0]


def test_another_file_is_scored_whole_however_small(outcome: FixedOutcome, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"text": "body", "label": "verdict"}
    lines = ["the film was good,yes", "a fine story,yes", "the great film,yes"]
    (tmp_path / "small.csv").write_text("\n".join(["body,verdict", *lines]) + "\n")
    for split in (None, "all"):
        found = autopeft.evaluate("run", task=tmp_path / "small.csv", split=split, **columns)  # type: ignore[arg-type]
        assert (found.split, found.rows, found.score) == ("all", 3, 1.0)
        assert found.recorded is None
    classes, _ = found.breakdown
    assert {row[0]: row[-1] for row in classes.rows} == {"no": 0, "yes": 3}
    with pytest.raises(DataError, match=r"two classes are needed\. To score all rows"):
        autopeft.evaluate("run", task=tmp_path / "small.csv", split="test", **columns)
    with pytest.raises(DataError) as caught:
        autopeft.evaluate("run", task=tmp_path / "small.csv", split="test", text="nothing", label="verdict")
    assert "leave out" not in str(caught.value)
    other = pandas.read_csv("reviews.csv").head(50)
    assert autopeft.evaluate("run", task=other, **columns).rows == 50
    assert autopeft.evaluate("run", task=other, seed=0, **columns).rows < 10
    few = pandas.concat([other.head(1), other.tail(1)])
    assert autopeft.evaluate("run", task=few, **columns).rows == 2
    with pytest.raises(DataError, match=r"at least 10 are needed\. To score all rows"):
        autopeft.evaluate("run", task=few, split="test", **columns)
    (tmp_path / "odd.csv").write_text("body,verdict\na film,perhaps\na story,yes\n")
    with pytest.raises(TaskError, match="does not know: perhaps"):
        autopeft.evaluate("run", task=tmp_path / "odd.csv", **columns)


def test_the_rows_of_training_are_cut_as_they_were_whatever_their_file_is_called(
    outcome: FixedOutcome, tmp_path: Path
) -> None:
    shutil.copyfile("reviews.csv", tmp_path / "copy.csv")
    found = autopeft.evaluate("run", task=tmp_path / "copy.csv", text="body", label="verdict")
    assert (found.split, found.rows) == ("test", len(outcome.task.splits["test"]))
    assert found.score == pytest.approx(outcome.scores["test"], abs=1e-9)


def test_an_export_without_peft(outcome: FixedOutcome, tmp_path: Path) -> None:
    exported = autopeft.export("run", tmp_path / "plain", format="autopeft")
    assert (exported.format, exported.reason) == (None, None)
    assert not (tmp_path / "plain" / "peft").exists()


def test_a_live_hybrid(outcome: FixedOutcome) -> None:
    model = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=2)
    with autopeft.load(model, "run/winner") as hybrid:
        found = autopeft.predict(hybrid, TEXTS, max_length=24)
        best = [item["logits"] for item in autopeft.predict(outcome, TEXTS)]
        assert [item["logits"] for item in found] == [pytest.approx(row, abs=1e-6) for row in best]
        words = AutoTokenizer.from_pretrained("bert")
        score = autopeft.evaluate(
            hybrid, task="reviews.csv", split="test", text="body", label="verdict", tokenizer=words,
            max_length=24,
        )  # fmt: skip
        assert score.score == pytest.approx(outcome.scores["test"], abs=1e-9)
        with pytest.raises(TaskError, match="this hybrid was trained on is unknown"):
            autopeft.evaluate(hybrid)
        with pytest.raises(UsageError, match=r"hybrid\.save"):
            autopeft.export(hybrid, "nowhere")


def test_a_hybrid_that_does_not_act_does_not_answer(outcome: FixedOutcome) -> None:
    model = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=2)
    hybrid = autopeft.load(model, "run/winner")
    with pytest.raises(UsageError, match="a live one is on its own model"):
        autopeft.predict(hybrid, TEXTS, model="bert")
    hybrid.detach()
    with pytest.raises(UsageError, match="is detached from its model"):
        autopeft.predict(hybrid, TEXTS, max_length=24)
    with pytest.raises(UsageError, match="is detached from its model"):
        autopeft.evaluate(hybrid, task="reviews.csv", text="body", label="verdict", max_length=24)


def test_what_training_returned_is_read_from_its_folder_once_it_is_detached(outcome: FixedOutcome) -> None:
    frame = pandas.read_csv("reviews.csv")
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task=frame, text="body", label="verdict", model="bert", steps=2,
        max_length=24, out="detached",
    )  # fmt: skip
    live = [row["logits"] for row in autopeft.predict(found, TEXTS)]
    found.hybrid.detach()
    again = [row["logits"] for row in autopeft.predict(found, TEXTS)]
    assert again == [pytest.approx(row, abs=1e-6) for row in live]


def test_a_live_hybrid_of_a_model_without_a_name_needs_a_tokenizer(outcome: FixedOutcome) -> None:
    config = AutoModelForSequenceClassification.from_pretrained("bert").config
    config._name_or_path = ""
    model = AutoModelForSequenceClassification.from_config(config)
    with (
        autopeft.attach(model, Recipe.from_dict(RECIPE)) as hybrid,
        pytest.raises(UsageError, match="tokenizer="),
    ):
        autopeft.predict(hybrid, TEXTS)


def test_rows_in_memory_are_scored_while_they_are_there(outcome: FixedOutcome, tmp_path: Path) -> None:
    frame = pandas.read_csv("reviews.csv")
    found = autopeft.train(
        recipe=Recipe.from_dict(RECIPE), task=frame, text="body", label="verdict", model="bert", steps=2,
        max_length=24, out=tmp_path / "run",
    )  # fmt: skip
    assert autopeft.evaluate(found).score == pytest.approx(found.scores["test"], abs=1e-9)
    assert autopeft.evaluate(found, metric="macro_f1").task.metric == "macro_f1"
    with pytest.raises(TaskError, match="are not kept"):
        autopeft.evaluate(tmp_path / "run")
    with pytest.raises(TaskError, match="pearson"):
        autopeft.evaluate(found, metric="pearson")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: autopeft.predict("nothing", "a"), "no run 'nothing'"),
        (lambda: autopeft.predict("run", TEXTS, text_pair=["b"]), "single texts; leave out text_pair"),
        (lambda: autopeft.predict("run", TEXTS, max_length=8), "for live hybrids"),
        (lambda: autopeft.evaluate("run", split="tset"), "split is 'train', 'select', 'test' or 'all'"),  # type: ignore[arg-type]
        (lambda: autopeft.export("run", "x", fromat="peft"), "Did you mean 'format'"),  # type: ignore[call-arg]
    ],
)
def test_what_is_wrong_is_one_sentence(outcome: FixedOutcome, call: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
