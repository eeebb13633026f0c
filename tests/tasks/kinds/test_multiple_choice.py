"""Multiple choice from end to end: likelihoods as the model's own loss has them, scores, and a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import WORDS, save_decoder, word_tokenizer
from support.training import lora_recipe
from transformers import LlamaForCausalLM

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import AutoPEFTError, DataError, TaskError, UsageError
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.tasks import load_task, task_set
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.tasks.split import Split
from autopeft.tasks.summary import summarise
from autopeft.training import predict

KIND = get_kind("multiple_choice")
NUMBERS = WORDS[3:8]
RECIPE = lora_recipe()


def questions(rows: int = 80) -> list[dict[str, Any]]:
    """What follows a number, with two to four choices."""
    found = []
    for i in range(rows):
        right = NUMBERS[(i + 1) % 5]
        others = [n for n in NUMBERS if n != right][: 1 + i % 3]
        place = i // 5 % (len(others) + 1)
        choices = [*others[:place], right, *others[place:]]
        asked = f"what {'is ' * (i // 5)}follows {NUMBERS[i % 5]}"
        found.append({"question": asked, "choices": choices, "answer": place})
    return found


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return str(save_decoder(tmp_path / "llama"))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions()))
    return str(path)


def outputs_of(*rows: list[tuple[float, float]]) -> np.ndarray[Any, Any]:
    found = np.empty(len(rows), dtype=object)
    found[:] = [np.asarray(row) for row in rows]
    return found


@pytest.mark.parametrize("template", [None, "chat"])
def test_likelihoods_are_those_of_the_models_own_loss(template: str | None, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "llama")
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = word_tokenizer(None) if template is None else word_tokenizer()
    split = Split(
        ["what follows one", "what is four", "be brief"],
        None,
        [0, 1, 1],
        {"choices": [["two", "three four five"], ["one is", "five", "what follows"], ["user two", "one"]]},
    )
    data = KIND.encoder.encode(split, tokenizer, 48, cached=False)
    found = predict(model, data, batch_size=3)
    assert [len(row) for row in found] == [2, 3, 2]
    for question, choices, row in zip(split.texts, split.fields["choices"], found, strict=True):
        for choice, (told, size) in zip(choices, row, strict=True):
            if template is None:
                before, after = f"{question}\n", choice
            else:
                user = [{"role": "user", "content": question}]
                before = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
                after = choice
            prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
            answer = tokenizer(after, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + answer])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            with torch.no_grad():
                loss = float(model(input_ids=ids, labels=labels).loss) * len(answer)
            assert told == pytest.approx(-loss, abs=1e-5 * max(1, loss))
            assert size == len(choice.encode())


def test_both_accuracies_and_what_rows_contribute() -> None:
    outputs = outputs_of(
        [(-2.0, 2.0), (-3.0, 10.0)], [(-9.0, 1.0), (-1.0, 1.0), (-2.0, 1.0)], [(-4.0, 4.0), (-4.5, 9.0)]
    )
    labels = np.array([1, 1, 0])
    assert KIND.scorer.decisions(outputs).tolist() == [0, 1, 0]
    assert KIND.scorer.score(get_metric("accuracy"), outputs, labels) == pytest.approx(2 / 3)
    assert KIND.scorer.score(get_metric("accuracy_norm"), outputs, labels) == pytest.approx(2 / 3)
    for name in ("accuracy", "accuracy_norm"):
        parts = KIND.scorer.pseudo_values(get_metric(name), outputs, labels)
        assert parts.mean() == pytest.approx(2 / 3)
    assert KIND.scorer.pseudo_values(get_metric("accuracy"), outputs, labels).tolist() != (
        KIND.scorer.pseudo_values(get_metric("accuracy_norm"), outputs, labels).tolist()
    )
    expected = -np.mean(
        [
            np.log(np.exp(-3) / (np.exp(-2) + np.exp(-3))),
            np.log(np.exp(-1) / (np.exp(-9) + np.exp(-1) + np.exp(-2))),
            np.log(np.exp(-4) / (np.exp(-4) + np.exp(-4.5))),
        ]
    )
    assert KIND.scorer.row_loss(outputs, labels) == pytest.approx(expected)
    assert KIND.scorer.score(get_metric("accuracy"), np.array([1, 1, 0]), labels) == 1.0
    with pytest.raises(TaskError, match="accuracy_norm takes the log-likelihoods"):
        KIND.scorer.score(get_metric("accuracy_norm"), np.array([1, 1, 0]), labels)
    with pytest.raises(AutoPEFTError, match="not finite"):
        KIND.scorer.score(get_metric("accuracy"), outputs_of([(float("nan"), 1.0), (0.0, 1.0)]), labels[:1])


def test_breakdown_by_the_number_of_choices_and_by_place() -> None:
    outputs = outputs_of(
        [(-2.0, 2.0), (-3.0, 10.0)], [(-9.0, 1.0), (-1.0, 1.0), (-2.0, 1.0)], [(-4.0, 4.0), (-4.5, 9.0)]
    )
    by_count, places = KIND.scorer.breakdown(outputs, np.array([1, 1, 0]), ())
    assert by_count.rows == (("2 choices", 2, 0.5, 0.5, 0.5), ("3 choices", 1, 1.0, 1.0, 1 / 3))
    assert places.rows == (("A", 1, 2, 0), ("B", 2, 1, 3), ("C", 0, 0, 0))


def test_what_is_known_of_rows() -> None:
    assert KIND.schema.describe_rows([0, 1, 1, 3], ()) == "right are A 25.0 %, B 50.0 %, D 25.0 %"
    assert KIND.scorer.constant([2, 1, 1, 2], ()) == ("always choice B", 1)
    said = KIND.scorer.present(np.array([[-1.0, 3.0], [-2.0, 4.0]]), ())
    assert said["label"] == "A"
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    assert said["probability"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert KIND.scorer.line(said) == "A  0.7311"


@pytest.mark.parametrize(
    ("choices", "label", "contrary"),
    [(["no", "yes"], 0, 1), (["no", "yes"], 1, 0), (["maybe", "yes"], 0, 0), (["yes", "no"], 0, 0)],
)
def test_one_question_with_other_choices_contradicts_nothing(
    choices: list[str], label: int, contrary: int, tmp_path: Path
) -> None:
    rows = [{"question": f"which {i}", "choices": ["a", "b"], "label": i % 2} for i in range(60)]
    asked = {"question": "is it", "choices": ["no", "yes"], "label": 1}
    again = {"question": "is it", "choices": choices, "label": label}
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, asked, again]))
    facts = dict(summarise(load_task(str(path)), word_tokenizer(), 32).facts)
    repeated = facts.get("repeated", "")
    assert ("contradict" in repeated) == bool(contrary)


def test_rows_to_be_trained_on_are_not_scored(backbone: str, file: str) -> None:
    task = load_task(file)
    assert task.kind == "multiple_choice"
    assert task.reading.columns == {"text": "question", "label": "answer", "choices": "choices"}
    data = encode(task, load_tokenizer(backbone), 48)
    model = KIND.head.load_model(backbone, ())
    with pytest.raises(UsageError, match="right choices alone"):
        predict(model, data.train)
    batch = data.train.collate(range(4))
    assert "choices" not in batch, "the wrong choices cost nothing in training"


def test_a_recipe_is_trained_and_used(backbone: str, file: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 80, "max_length": 48, "out": str(tmp_path / "run")}
    found = autopeft.train(recipe=RECIPE, task=file, model=backbone, **options)
    assert found.scores["test"] > 0.8
    evaluated = autopeft.evaluate(found.folder)
    assert evaluated.score == pytest.approx(found.scores["test"])
    assert [table.name for table in evaluated.breakdown] == ["choices", "places"]
    normed = autopeft.evaluate(found.folder, metric="accuracy_norm")
    assert 0 <= normed.score <= 1
    asked = tmp_path / "asked.jsonl"
    rows = [{"question": q["question"], "choices": q["choices"]} for q in questions(7)]
    rows[3]["choices"] = ["one"]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = autopeft.predict(found.folder, asked)
    right = ["ABCD"[q["answer"]] for q in questions(7)]
    assert sum(answer.get("label") == r for answer, r in zip(said, right, strict=True)) >= 5
    assert "no list of 2 to 26 texts" in said[3]["problem"]
    assert set(said[1]["probabilities"]) == {"A", "B", "C"}
    with pytest.raises(DataError, match="no columns of choices"):
        autopeft.predict(found.folder, "what follows one")
    out = autopeft.export(found.folder, out=tmp_path / "winner")
    again = autopeft.predict(out.folder if hasattr(out, "folder") else tmp_path / "winner", asked)
    assert [a.get("label") for a in again] == [a.get("label") for a in said]


@pytest.mark.slow
def test_a_search(backbone: str, file: str, tmp_path: Path) -> None:
    found = autopeft.search(
        budget="5%", task=file, model=backbone, max_length=48, trials=2, steps=6, confirm_seeds=2, workers=0,
        out=str(tmp_path / "run"), baselines="lora", metric="accuracy_norm",
    )  # fmt: skip
    assert found.test_mean is not None
    assert 0 <= found.test_mean <= 1
    page = write_report(load_run(tmp_path / "run")).read_text()
    assert "accuracy_norm" in page


def test_two_tasks_are_trained_together(file: str, backbone: str, tmp_path: Path) -> None:
    """Each row has several sequences, and the head that both tasks share comes with the backbone."""
    one = load_task(file)
    both = task_set([replace(one, name=name) for name in ("first", "second")])
    outcome = autopeft.train(
        recipe=RECIPE, task=both, model=backbone, steps=4, max_length=48, out=str(tmp_path / "both")
    )
    model = both.task_kind.head.load_model(backbone, both.labels)
    data = encode(both, load_tokenizer(backbone), 48)
    found, alone = predict(model, data.test), predict(model, encode(one, load_tokenizer(backbone), 48).test)
    rows = len(one.splits["test"])
    assert [task for task, _ in found] == [0] * rows + [1] * rows
    for (_, own), wanted in zip(found, [*alone, *alone], strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-5)
    assert 0 <= outcome.scores["test"] <= 1
