"""Spans are learnt from end to end; the loss is that of transformers, also by shortcuts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.saved_model import save_backbone
from support.spans import write_questions
from support.tiny import tiny_config, tiny_model
from support.training import lora_recipe
from transformers import (
    AutoModelForQuestionAnswering,
    PreTrainedModel,
)

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import AutoPEFTError, DataError, TaskError, UsageError
from autopeft.hybrid import attach
from autopeft.tasks import EncodedTask, Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.tasks.kinds.question_answering import SpanLoss
from autopeft.tasks.kinds.spans import Answers, RowWindows
from autopeft.tasks.split import Split
from autopeft.tasks.summary import summarise
from autopeft.tasks.tokens import ragged
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import shortest_forward
from autopeft.training.head_start import start_head
from autopeft.training.losses import logits_of

CPU = torch.device("cpu")
KIND = get_kind("question_answering")
LENGTH = 16  # texts of 4 to 14 words, so that some are in two windows
QUESTION = "was the film good"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_questions(folder / "data.jsonl", 200, empty=8)
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
    return encode(task, load_tokenizer(str(place / "bert")), LENGTH)


# Loss
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "distilbert", "mpnet", "gpt2", "llama"])
def test_the_loss_on_other_architectures(name: str) -> None:
    model = AutoModelForQuestionAnswering.from_config(tiny_config(name)).eval()
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 40, (3, 9)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9]),
        "labels": torch.tensor([[2, 4], [0, 0], [8, 8]]),
        "beside_context_places": torch.zeros(3, 9, 2, dtype=torch.int64),
    }
    start, end = batch["labels"].T
    with torch.no_grad():
        wanted = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            start_positions=start, end_positions=end,
        ).loss  # fmt: skip
        found = KIND.scorer.loss(()).mean(logits_of(model, batch, KIND), batch)
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_backbone_keeps_its_weights(name: str, tmp_path: Path) -> None:
    """transformers calls Llama's otherwise in its class for question answering, and would leave it random."""
    saved = tiny_model(name)
    saved.save_pretrained(tmp_path)
    model = KIND.head.load_model(str(tmp_path), ())
    wanted, found = (dict(m.base_model.named_parameters()) for m in (saved, model))
    shared = [key for key in found if key in wanted]
    assert len(shared) > 25
    assert all(torch.equal(found[key], wanted[key]) for key in shared)


def test_the_loss_of_each_window() -> None:
    torch.manual_seed(0)
    logits, labels, loss = torch.randn(3, 5, 2), torch.tensor([[1, 2], [0, 0], [4, 4]]), SpanLoss()
    each = loss.each(logits, {"labels": labels})
    assert each.shape == (3,)
    assert float(each.mean()) == pytest.approx(float(loss.mean(logits, {"labels": labels})))
    parts = loss.total(logits[:1], {"labels": labels[:1]}) + loss.total(logits[1:], {"labels": labels[1:]})
    assert float(parts / loss.weight({"labels": labels})) == pytest.approx(
        float(loss.mean(logits, {"labels": labels}))
    )
    beyond = torch.tensor([[1, 2], [5, 9], [-100, 0]])
    start, end = (
        torch.nn.functional.cross_entropy(
            logits[..., k], beyond[:, k].clamp(0, 5), ignore_index=5, reduction="sum"
        )
        for k in range(2)
    )
    assert float(loss.total(logits, {"labels": beyond})) == pytest.approx(float(start + end) / 2)


# Shortcuts
# ------------------------------------------------------------------------------------------------------


def test_the_stored_trunk_gives_the_same_and_all_positions_are_computed(
    model: PreTrainedModel, data: EncodedTask
) -> None:
    plan = TrainingPlan(steps=1, batch_size=4, max_length=LENGTH, device="cpu")
    assert KIND.head.reads(data.train.collate([0])).all()  # type: ignore[union-attr]
    with attach(model, lora_recipe(at="last 1"), seed=0) as hybrid:
        hybrid.model.eval()
        forward = shortest_forward(hybrid, data, plan, dropout=False)
        assert forward.trunk is not None
        assert forward.trunk.depths == {"encoder": 2}
        assert forward.rows is None, "every token is read"
        with torch.no_grad():
            for split in (data.train, data.select):
                for batch in forward.batches(split, 8, shuffle=False, device=CPU):
                    there = batch["attention_mask"] == 1
                    plain = logits_of(model, forward.inputs(batch), KIND)
                    assert torch.allclose(forward(batch)[there], plain[there], atol=2e-3)
        stored = predict(hybrid.model, data.select, forward=forward)
        assert (
            KIND.scorer.decisions(stored).tolist()
            == KIND.scorer.decisions(predict(hybrid.model, data.select)).tolist()
        )


def test_predictions_do_not_depend_on_the_batch(model: PreTrainedModel, data: EncodedTask) -> None:
    alone, together = (predict(model, data.select, batch_size=size) for size in (1, 64))
    assert len(alone) == len(data.task.splits["select"])
    for one, other in zip(alone, together, strict=True):
        assert one.answer.text == other.answer.text
        assert one.answer.probability == pytest.approx(other.answer.probability, abs=1e-5)
    losses = [KIND.scorer.row_loss(found, data.select.truth) for found in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_head_stays_as_it_was_drawn(model: PreTrainedModel, data: EncodedTask) -> None:
    before = model.get_submodule("qa_outputs").weight.detach().clone()
    plan = TrainingPlan(steps=1, max_length=LENGTH, device="cpu", head_start="probe")
    assert start_head(model, data, plan) is None
    assert torch.equal(model.get_submodule("qa_outputs").weight, before)


def test_the_mean_of_models_is_one_of_positions() -> None:
    mean = KIND.scorer.average({})
    assert mean is not None
    torch.manual_seed(0)
    several = torch.randn(3, 2, 5, 2)
    wanted = several.softmax(dim=-2).mean(dim=0)
    assert torch.allclose(mean(several, 0).exp(), wanted, atol=1e-6)


# Scores
# ------------------------------------------------------------------------------------------------------

CONTEXT = "a good film"
ANSWERS = ragged([Answers([(2, "good")], CONTEXT, null=True), Answers([], CONTEXT, null=True)])


def outputs_of(*places: int) -> Any:
    """Of each row a window `[CLS] a good film` whose best token is the given one."""
    rows = []
    for at in places:
        window = np.full((4, 4), -1.0)
        window[:, :2] = 5.0 * (np.arange(4) == at)[:, None]
        window[1:, 2:] = [[0, 1], [2, 6], [7, 11]]
        rows.append(RowWindows(CONTEXT, (window,), null=True))
    return ragged(rows)


def test_scores_tables_and_what_is_told() -> None:
    found = outputs_of(2, 0)
    assert KIND.scorer.decisions(found).tolist() == ["good", ""]
    assert KIND.scorer.decisions(KIND.scorer.decisions(found)).tolist() == ["good", ""]
    assert KIND.scorer.score(get_metric("squad_exact_match"), found, ANSWERS) == 1.0
    wrong = outputs_of(3, 3)
    assert KIND.scorer.score(get_metric("squad_f1"), wrong, ANSWERS) == 0.0
    loss = np.log(1 + 3 * np.exp(-5))
    assert KIND.scorer.row_loss(found, ANSWERS) == pytest.approx(loss)
    assert KIND.scorer.row_loss(KIND.scorer.decisions(found), ANSWERS) is None
    (table,) = KIND.scorer.breakdown(outputs_of(2, 3), ANSWERS, ())
    assert table.rows == (
        ("all rows", 2, 0.5, 0.5, 0), ("with an answer", 1, 1.0, 1.0, 0),
        ("without an answer", 1, 0.0, 0.0, 0),
    )  # fmt: skip
    rows = Split(["q", "q"], [CONTEXT] * 2, list(ANSWERS))
    assert KIND.scorer.tell(rows, found, ()) == [("good", "good"), ("(no answer)", "(no answer)")]
    assert KIND.scorer.tell(rows, wrong, ()) == [("good", "film"), ("(no answer)", "film")]
    assert KIND.scorer.pseudo_values(get_metric("squad_f1"), outputs_of(2, 3), ANSWERS).shape == (2,)


def test_what_does_not_fit_is_refused() -> None:
    metric = get_metric("squad_f1")
    with pytest.raises(TaskError, match="answers of 1 rows against those of 2"):
        KIND.scorer.score(metric, outputs_of(2), ANSWERS)
    with pytest.raises(TaskError, match="squad_f1"):
        KIND.scorer.score(metric, np.zeros(2), np.zeros(2))
    broken = outputs_of(2)[0].windows[0].copy()
    broken[1, 0] = np.nan
    with pytest.raises(AutoPEFTError, match="not finite"):
        RowWindows(CONTEXT, (broken,), null=True)


def test_one_answer_for_all_rows(task: Task, place: Path) -> None:
    labels = task.splits["train"].labels
    assert KIND.scorer.constant(labels, ())[0] == "always the whole text"  # type: ignore[index]
    assert KIND.scorer.constant([*labels, *[ANSWERS[1]] * 200], ()) == ("always no answer", "")
    summary = summarise(task, load_tokenizer(str(place / "bert")), LENGTH)
    assert summary.constant is not None
    test = task.splits["test"]
    f1 = []
    for answers, context in zip(test.labels, test.pairs or (), strict=True):
        words = [word for word in context.split() if word not in ("a", "the")]
        f1.append(2 / (1 + len(words)) if answers else 0.0)
    assert summary.constant.scores["test"] == pytest.approx(np.mean(f1))
    assert any("answers of 1 to 1 words, mean 1.0; " in text for _, text in summary.facts)
    assert summary.use == {"null": True}


def test_a_function_of_the_users_gets_texts(place: Path) -> None:
    seen = []

    def mine(predictions: list[Any], references: list[Any]) -> float:
        seen.append((predictions, references))
        return 1.0

    own = load_task(str(place / "data.jsonl"), metric=mine, kind="question_answering")
    assert KIND.scorer.score(get_metric(own.metric), outputs_of(2, 0), ANSWERS) == 1.0
    assert seen[-1] == (["good", ""], [["good"], [""]])


def test_no_answer_after_splitting_is_refused() -> None:
    with pytest.raises(DataError, match="no row of train has an answer after splitting"):
        KIND.schema.check("x", Split(["a"], ["b"], [ANSWERS[1]]), ())


# From end to end
# ------------------------------------------------------------------------------------------------------


def test_a_recipe_is_trained_and_used(place: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data.json", 200, empty=4)
    found = autopeft.train(
        recipe=lora_recipe(), task=str(path), model=str(place / "bert"), steps=300, max_length=LENGTH,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert found.scores["test"] > 0.9
    assert 1 <= len(found.samples) <= 6
    assert CONTEXT.split()[2] in found.samples[0].prompt, "the context beside the question"
    evaluated = autopeft.evaluate(found.folder)
    assert evaluated.score == pytest.approx(found.scores["test"])
    assert evaluated.breakdown[0].name == "answers"
    alone = autopeft.evaluate(found.folder, task=str(path), split="all", metric="squad_exact_match")
    assert alone.score > 0.9
    texts = ["the story was great", "the story was dull"]
    said = autopeft.predict(found.folder, [QUESTION] * 2, text_pair=texts)
    assert [row["answer"] for row in said] == ["great", ""]
    assert (said[0]["start"], said[0]["end"], said[1]["start"]) == (14, 19, None)
    assert KIND.scorer.line(said[0]).startswith("great  0.")
    assert KIND.scorer.line(said[1]).startswith("(no answer)  ")
    other, answered = tmp_path / "other.jsonl", [(texts[1], 4, "story"), (texts[0], 14, "great")]
    spans = [(context, [{"text": said, "answer_start": at}]) for context, at, said in answered]
    rows = [{"question": QUESTION, "context": context, "answers": answers} for context, answers in spans]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = autopeft.evaluate(found.folder, task=str(other))
    assert scored.score == 0.5, "as it answers, though each of these rows has an answer"
    assert scored.breakdown[0].rows == (("all rows", 2, 0.5, 0.5, 1),)
    long = " ".join(["the story was a film"] * 20 + ["fine"])
    assert autopeft.predict(found.folder, QUESTION, text_pair=[long])[0]["answer"] == "fine"
    asked = tmp_path / "asked.jsonl"
    rows = [{"context": "bad film", "question": QUESTION}, {"context": "a", "question": ""}]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = autopeft.predict(found.folder, asked, out=str(tmp_path / "answers.csv"))
    assert answers[0]["answer"] == ""
    assert answers[1]["problem"] == "no text"
    autopeft.export(found.folder, out=tmp_path / "winner")
    again = autopeft.predict(tmp_path / "winner", [QUESTION] * 2, text_pair=texts)
    assert [row["answer"] for row in again] == ["great", ""]
    assert "question-answering" in (tmp_path / "winner" / "README.md").read_text()


def test_a_model_of_questions_that_all_have_answers_always_gives_one(place: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data.jsonl", 40)
    found = autopeft.train(
        recipe=lora_recipe(), task=str(path), model=str(place / "bert"), steps=2, max_length=LENGTH,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    texts = ["a film", "the story was", "bad"]
    said = autopeft.predict(found.folder, [QUESTION] * 3, text_pair=texts)
    assert all(row["answer"] and row["answer"] in text for row, text in zip(said, texts, strict=True))
    other = write_questions(tmp_path / "other.jsonl", 40, empty=4)
    ((*_, none), *_) = autopeft.evaluate(found.folder, task=str(other)).breakdown[0].rows
    assert none == 0


def test_single_texts_are_refused(place: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "data.jsonl", 40)
    found = autopeft.train(
        recipe=lora_recipe(), task=str(path), model=str(place / "bert"), steps=1, max_length=LENGTH,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(UsageError, match="--text-pair"):
        autopeft.predict(found.folder, QUESTION)
