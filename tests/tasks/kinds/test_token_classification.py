"""Tags of words are learnt from end to end; the loss is that of transformers, also by shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.saved_model import save_backbone
from support.tiny import tiny_model
from support.training import lora_recipe
from support.words import NAMES, write_tagged
from transformers import PreTrainedModel

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import AutoPEFTError, DataError, TaskError
from autopeft.tasks import EncodedTask, Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric, kind_of_model
from autopeft.tasks.kinds.tags import Tags
from autopeft.tasks.kinds.token_classification import TagLoss
from autopeft.tasks.summary import summarise
from autopeft.tasks.tokens import ragged
from autopeft.training import TrainingPlan, predict
from autopeft.training.head_start import start_head

CPU = torch.device("cpu")
KIND = get_kind("token_classification")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_tagged(folder / "data.jsonl", 200)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(place: Path) -> Task:
    return load_task(str(place / "data.jsonl"))


@pytest.fixture
def model(place: Path, task: Task) -> PreTrainedModel:
    return KIND.head.load_model(str(place / "bert"), task.labels)


@pytest.fixture
def data(place: Path, task: Task) -> EncodedTask:
    return encode(task, load_tokenizer(str(place / "bert")), 32)


# Loss
# ------------------------------------------------------------------------------------------------------


def test_the_loss_of_rows_and_of_weighted_tags() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 2), torch.tensor([[0, 1, -100, 1], [-100] * 4, [1, -100, 0, 0]])
    plain, weighted = TagLoss(), TagLoss([1.0, 3.0])
    each = plain.each(logits, {"labels": labels})
    assert each[1] == 0
    assert float((each * torch.tensor([3.0, 0, 3.0])).sum()) == pytest.approx(
        float(plain.total(logits, {"labels": labels}))
    )
    wanted = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 2), labels.reshape(-1), weight=torch.tensor([1.0, 3.0]), ignore_index=-100
    )
    assert float(weighted.mean(logits, {"labels": labels})) == pytest.approx(float(wanted))
    assert plain.weight({"labels": labels[1:2]}) == 1.0
    assert float(plain.mean(logits[1:2], {"labels": labels[1:2]})) == 0.0


# Shortcuts
# ------------------------------------------------------------------------------------------------------


def test_the_head_starts_where_frozen_features_put_it(model: PreTrainedModel, data: EncodedTask) -> None:
    plan = TrainingPlan(steps=1, max_length=32, device="cpu", head_start="probe")
    before = model.get_submodule("classifier").weight.detach().clone()
    probe = start_head(model, data, plan, alone=True)
    assert probe is not None, "words tell their own tags"
    assert not torch.equal(model.get_submodule("classifier").weight, before)
    assert torch.equal(model.get_submodule("classifier").weight, probe.weight)
    outputs = predict(model, data.select)
    metric = get_metric("tag_accuracy")
    assert KIND.scorer.score(metric, outputs, data.select.truth) > 0.9
    again = start_head(model, data, plan, alone=True)
    assert again is not None
    assert torch.equal(again.weight, probe.weight), "kept on disk"


# Scores
# ------------------------------------------------------------------------------------------------------

TRUTH = ragged([Tags([1, 2, 0], NAMES), Tags([0, 3], NAMES)])


def outputs_of(*rows: list[int]) -> Any:
    """Logits that decide so; -1 for words that were not seen."""
    return ragged(
        [np.stack([np.full(5, -np.inf) if t < 0 else 4.0 * (np.arange(5) == t) for t in row]) for row in rows]
    )


def test_words_that_the_model_did_not_see_are_left_out_of_scores() -> None:
    found = outputs_of([1, 2, -1], [0, -1])
    assert [row.tolist() for row in KIND.scorer.decisions(found)] == [[1, 2, -1], [0, -1]]
    assert KIND.scorer.score(get_metric("entity_f1"), found, TRUTH) == 1.0
    assert KIND.scorer.score(get_metric("tag_accuracy"), found, TRUTH) == 1.0
    wrong = outputs_of([1, 0, 0], [0, 3])
    assert KIND.scorer.score(get_metric("entity_f1"), wrong, TRUTH) == 0.5
    assert KIND.scorer.score(get_metric("entity_f1"), KIND.scorer.decisions(wrong), TRUTH) == 0.5
    assert KIND.scorer.row_loss(found, TRUTH) == pytest.approx(np.log(1 + 4 * np.exp(-4)))
    parts = KIND.scorer.pseudo_values(get_metric("entity_f1"), wrong, TRUTH)
    assert parts.shape == (2,)
    with pytest.raises(TaskError, match="Cannot score 2 tags against those of 3 words"):
        KIND.scorer.score(get_metric("entity_f1"), outputs_of([1, 2], [0, 3]), TRUTH)
    with pytest.raises(TaskError, match="Cannot score the tags of 1 rows"):
        KIND.scorer.score(get_metric("entity_f1"), outputs_of([1, 2, 0]), TRUTH)
    broken = outputs_of([1, 2, 0], [0, 3])
    broken[0][1, 1] = np.nan
    with pytest.raises(AutoPEFTError, match="not finite"):
        KIND.scorer.score(get_metric("entity_f1"), broken, TRUTH)


def test_one_tag_for_all_words_scores_nothing(task: Task, place: Path) -> None:
    assert KIND.scorer.constant(task.splits["train"].labels, task.labels) == ("always 'O'", 0)
    summary = summarise(task, load_tokenizer(str(place / "bert")), 32)
    assert summary.constant is not None
    assert summary.constant.scores == {"select": 0.0, "test": 0.0}
    assert any("words: 'O'" in text or "words: O" in text for _, text in summary.facts)


def test_tables_of_entities_and_of_tags() -> None:
    entities, tags, confusion = KIND.scorer.breakdown(outputs_of([1, 0, 0], [0, 3]), TRUTH, NAMES)
    assert entities.rows == (("bad", 1.0, 1.0, 1.0, 1), ("good", 0.0, 0.0, 0.0, 1))
    assert [row[0] for row in tags.rows] == list(NAMES)
    assert confusion.headers == ("true", *NAMES)


def test_which_metric_counts(place: Path) -> None:
    assert KIND.scorer.metric_for(NAMES) == "entity_f1"
    assert KIND.scorer.metric_for(("NOUN", "VERB")) == "tag_f1"
    with pytest.raises(TaskError, match="needs tags that spell entities"):
        KIND.scorer.check_metric(get_metric("entity_f1"), ("NOUN", "VERB"))
    KIND.scorer.check_metric(get_metric("tag_f1"), ("NOUN", "VERB"))


def test_a_function_of_the_users_gets_tags_by_name(task: Task, place: Path, data: EncodedTask) -> None:
    seen = []

    def mine(predictions: list[Any], references: list[Any]) -> float:
        seen.append((predictions, references))
        return 1.0

    own = load_task(str(place / "data.jsonl"), metric=mine)
    metric = get_metric(own.metric)
    found = KIND.scorer.score(metric, outputs_of([1, 2, -1], [0, 3]), TRUTH)
    assert found == 1.0
    assert seen[-1] == ([["B-good", "I-good"], ["O", "B-bad"]], [["B-good", "I-good"], ["O", "B-bad"]])


def test_tags_in_the_order_of_a_head() -> None:
    wanted = ("I-bad", "O", "B-good", "I-good", "B-bad")
    (row,) = KIND.schema.relabel([Tags([0, 1, 2], NAMES)], NAMES, wanted)
    assert (tuple(row), row.names) == ((1, 2, 3), wanted)


def test_balanced_weights_count_words() -> None:
    labels = [Tags([0, 0, 0, 1], ("O", "X")), Tags([0, 0, 0, 1], ("O", "X"))]
    assert KIND.scorer.class_weights("balanced", labels, ("O", "X")) == [8 / 12, 8 / 4]


def test_the_class_of_another_model_tells_another_kind() -> None:
    other = tiny_model("bert")
    assert kind_of_model(other.config, type(other).__name__)[0].name == "classification"


def test_a_single_tag_after_splitting_is_refused() -> None:
    from autopeft.tasks.split import Split

    with pytest.raises(DataError, match="one tag after splitting"):
        KIND.schema.check("x", Split(["a"], None, [Tags([0], NAMES)]), NAMES)


# From end to end
# ------------------------------------------------------------------------------------------------------


def test_a_recipe_is_trained_and_used(place: Path, tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data.jsonl", 200)
    found = autopeft.train(
        recipe=lora_recipe(), task=str(path), model=str(place / "bert"), steps=120, max_length=24,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert found.scores["test"] > 0.8
    assert 1 <= len(found.samples) <= 6
    assert any("/B-" in sample.expected for sample in found.samples)
    evaluated = autopeft.evaluate(found.folder)
    assert evaluated.score == pytest.approx(found.scores["test"])
    assert [table.name for table in evaluated.breakdown][:3] == ["entities", "classes", "confusion"]
    alone = autopeft.evaluate(found.folder, task=str(path), split="all", metric="tag_accuracy")
    assert alone.score > 0.9
    (said,) = autopeft.predict(found.folder, "a good film was bad")
    assert said["tags"] == ["O", "B-good", "O", "O", "B-bad"]
    assert KIND.scorer.line(said) == "a good/B-good film was bad/B-bad"
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"tokens": ["bad", "film"]}\n{"tokens": []}\n')
    answers = autopeft.predict(found.folder, asked, out=str(tmp_path / "answers.csv"))
    assert answers[0]["tags"] == ["B-bad", "O"]
    assert answers[1]["problem"] == "no text"
    lines = (tmp_path / "answers.csv").read_text().splitlines()
    assert lines[1].startswith("1,bad film,B-bad O,")
    autopeft.export(found.folder, out=tmp_path / "winner")
    assert autopeft.predict(tmp_path / "winner", "bad film")[0]["tags"] == ["B-bad", "O"]
    assert "token-classification" in (tmp_path / "winner" / "README.md").read_text()


def test_a_long_row_has_no_tags_at_its_end(place: Path, tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data.jsonl")
    found = autopeft.train(
        recipe=lora_recipe(),
        task=str(path),
        model=str(place / "bert"),
        steps=2,
        max_length=8,
        out=str(tmp_path / "run"),
    )
    (said,) = autopeft.predict(found.folder, " ".join(["good"] * 9))
    assert [tag is None for tag in said["tags"]] == [False] * 6 + [True] * 3
    assert KIND.scorer.line(said).endswith("good/? good/? good/?")
