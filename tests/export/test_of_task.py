"""A hybrid of several tasks, asked and exported for one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.language import save_decoder, write_chats
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.errors import CompositionError, UsageError
from autopeft.export.of_task import folder_name, served_together
from autopeft.export.package import find_saved
from autopeft.hybrid import load
from autopeft.training.fixed import FixedOutcome

TEXTS = ["the good film", "a dull story was poor", "great"]
LORAS: dict[str, Any] = {"switch": [{"lora": {"rank": 2}}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FixedOutcome:
    folder = tmp_path_factory.mktemp("several")
    save_backbone(folder / "model")
    _, *rows = write_reviews(folder / "data.csv").read_text().splitlines()
    texts = [row.rpartition(",")[0] for row in rows]
    marks = "\n".join(["body,mark", *(f"{text},{i / 7:.2f}" for i, text in enumerate(texts))])
    (folder / "marks.csv").write_text(marks)
    (folder / "tasks.yaml").write_text(
        f"- {{task: {folder}/data.csv, name: mood, text: body, label: verdict}}\n"
        f"- {{task: {folder}/marks.csv, name: marks, text: body, label: mark, kind: regression, "
        "metric: pearson}\n"
    )
    recipe = autopeft.Recipe.from_dict(
        {"layers": [{"attach": [LORAS]}], "training": {"learning_rate": 1e-2}, "name": "apart"}
    )
    return autopeft.train(
        recipe=recipe, task=str(folder / "tasks.yaml"), model=str(folder / "model"), steps=12,
        out=folder / "run", device="cpu",
    )  # fmt: skip


def test_tasks_are_named_in_the_recipe_that_is_kept(trained: FixedOutcome) -> None:
    assert trained.hybrid.tasks == ("mood", "marks")
    kept = (trained.folder / "recipe.yaml").read_text()
    assert "tasks: [mood, marks]" in kept
    assert autopeft.Recipe.from_yaml(kept).hash() == trained.recipe.hash()


def test_a_task_is_asked_by_its_name(trained: FixedOutcome) -> None:
    found = autopeft.predict(trained, TEXTS, task="mood", device="cpu")
    assert {answer["label"] for answer in found} <= {"yes", "no"}
    # The hybrid itself says the same of rows of this task.
    hybrid, tokenizer = trained.hybrid, trained.tokenizer
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: Any = hybrid.model(**encoded, task_id=torch.zeros(3, dtype=torch.long)).logits
    names = trained.task.task_kind.schema.members[0].labels  # type: ignore[attr-defined]
    for row, answer in zip(logits.softmax(-1), found, strict=True):
        assert answer["label"] == names[int(row.argmax())]
        assert max(answer["probabilities"].values()) == pytest.approx(float(row.max()), abs=1e-5)
    marks = autopeft.predict(trained, TEXTS, task="marks", device="cpu")
    assert all(isinstance(answer["value"], float) for answer in marks)


@pytest.mark.parametrize(
    ("task", "message"), [(None, "name one with --task"), ("moods", r"no task 'moods'.*Did you mean 'mood'")]
)
def test_rows_have_to_be_of_a_task(trained: FixedOutcome, task: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        autopeft.predict(trained, TEXTS, task=task, device="cpu")


def test_a_folder_for_each_task_is_what_peft_loads(trained: FixedOutcome, tmp_path: Path) -> None:
    done = autopeft.export(trained, tmp_path / "out", format="lora", device="cpu")
    assert done.facts["tasks"].keys() == {"mood", "marks"}
    assert not any("vllm serve" in line for line in done.lines)  # it loads no heads
    for number, task in enumerate(("mood", "marks")):
        folder = tmp_path / "out" / task
        labels = find_saved(folder).card.labels
        base = AutoModelForSequenceClassification.from_pretrained(
            trained.hybrid.model.config._name_or_path,
            num_labels=max(1, len(labels)),
            ignore_mismatched_sizes=True,
        )
        model = PeftModel.from_pretrained(base, str(folder / "lora")).eval()
        words = AutoTokenizer.from_pretrained(trained.hybrid.model.config._name_or_path)
        encoded = words(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model(**encoded).logits
            ids = torch.full((3,), number)
            batch = {**encoded, "task_id": ids}
            kind = trained.task.task_kind
            expected = kind.head.run(trained.hybrid.model, {**encoded, "task_id": ids}, batch)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_one_task_alone_is_exported_and_loaded(trained: FixedOutcome, tmp_path: Path) -> None:
    done = autopeft.export(trained, tmp_path / "mood", task="mood", format="autopeft", device="cpu")
    saved = find_saved(done.folder)
    assert (saved.card.kind, saved.card.labels) == ("classification", ("no", "yes"))
    assert json.loads((done.folder / "manifest.json").read_text())["task"] == "mood"
    base = AutoModelForSequenceClassification.from_pretrained(
        trained.hybrid.model.config._name_or_path, num_labels=2
    )
    assert load(base, done.folder).tasks == ()
    asked = autopeft.predict(done.folder, TEXTS, device="cpu")
    assert [a["label"] for a in asked] == [
        a["label"] for a in autopeft.predict(trained, TEXTS, task="mood", device="cpu")
    ]


def test_a_task_that_cannot_be_written_leaves_the_others(trained: FixedOutcome, tmp_path: Path) -> None:
    children = [{"lora": {"rank": 2}}, {"serial_adapter": {"bottleneck": 2}}]
    recipe = autopeft.Recipe.from_dict({"layers": [{"attach": [{"switch": children}]}], "name": "unlike"})
    tasks = str(trained.folder.parent / "tasks.yaml")
    model = trained.hybrid.model.config._name_or_path
    outcome = autopeft.train(
        recipe=recipe, task=tasks, model=model, steps=1, out=tmp_path / "run", device="cpu"
    )
    done = autopeft.export(outcome, tmp_path / "out", format="merged", device="cpu")
    assert done.facts["tasks"].keys() == {"mood"}
    assert (tmp_path / "out" / "mood" / "merged").is_dir()
    (told,) = [line for line in done.lines if line.startswith("marks")]
    assert "serial_adapter" in told
    with pytest.raises(CompositionError, match="serial_adapter"):
        autopeft.export(outcome, tmp_path / "one", format="merged", task="marks", device="cpu")


def test_one_of_several_languages_tasks_is_talked_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "tasks.yaml").write_text(
        "".join(f"- {{task: {tmp_path}/chats.jsonl, name: {name}}}\n" for name in ("one", "other"))
    )
    recipe = {"layers": [{"attach": [LORAS]}], "training": {"learning_rate": 0.1}, "name": "apart"}
    outcome = autopeft.train(
        recipe=autopeft.Recipe.from_dict(recipe), task=str(tmp_path / "tasks.yaml"), steps=6,
        model=str(save_decoder(tmp_path / "llama")), max_length=48, out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    asked, heard = "what follows one", []
    for task in ("one", "other"):
        talk = autopeft.chat(outcome, task=task, max_new_tokens=5, device="cpu")
        heard += [talk.say(asked)]
        (answer,) = autopeft.predict(outcome, asked, task=task, max_new_tokens=5, device="cpu")
        assert heard[-1] == answer["answer"]
    assert heard[0] != heard[1]
    served = autopeft.export(outcome, tmp_path / "out", format="lora", device="cpu").lines[-1]
    assert f"vllm serve {tmp_path / 'llama'} --enable-lora" in served
    assert served.endswith(f"one={tmp_path / 'out/one/lora'} other={tmp_path / 'out/other/lora'}")
    with pytest.raises(UsageError, match="--task"):
        autopeft.chat(outcome, device="cpu")


@pytest.mark.parametrize(("task", "folder"), [("a/b", "a_b"), ("..", "task"), ("trec", "trec"), ("", "task")])
def test_a_task_of_a_stranger_names_no_folder_elsewhere(task: str, folder: str) -> None:
    assert folder_name(task) == folder


def lora(rank: int, *, taken: bool = True) -> tuple[Path, dict[str, Any]]:
    findings = [{"state": "kept"}, {"state": "kept" if taken else "broken"}]
    return Path(f"out/{rank}"), {"rank": rank, "vllm": findings}


def test_vllm_is_started_with_what_it_takes_and_room_for_the_largest() -> None:
    loras = {"a b": lora(4), "c": lora(40, taken=False), "d": lora(20)}
    command = served_together("some model", loras)
    assert command == (
        "vllm serve 'some model' --enable-lora --max-lora-rank 32 --lora-modules a_b=out/4 d=out/20"
    )
    assert served_together("some model", {"c": lora(40, taken=False)}) is None
