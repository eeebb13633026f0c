"""The obvious implementation for language models trains what ours does, on the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from lib import obvious, obvious_language
from lib.draws import peft_words
from peft import TaskType
from support.language import TEMPLATE, chats, save_decoder
from support.tiny import tiny_config, tiny_model

from autopeft import Recipe, count, load_task, spec_of
from autopeft.assets import load_tokenizer
from autopeft.tasks.encode import encode

SITES = [["q", "v"], ["q", "k", "v", "o"], ["up", "gate_proj", "down"]]


def recipe(sites: list[str], at: str = "1-2") -> Recipe:
    lora = {"lora": {"rank": 2, "sites": sites}}
    training = {"learning_rate": 0.01}
    return Recipe.from_dict({"name": "x", "layers": [{"at": at, "attach": [lora]}], "training": training})


@pytest.mark.parametrize("sites", SITES)
def test_peft_trains_as_many_parameters_as_we_do(sites: list[str]) -> None:
    spec = spec_of(tiny_config("llama"))
    words = peft_words(recipe(sites), spec)
    assert words is not None
    model = obvious.say_in_peft(tiny_model("llama"), words, TaskType.CAUSAL_LM)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == count(recipe(sites), spec).deployed


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Conversations of one question."""
    path = tmp_path / "rows.jsonl"
    found = [[m for m in row if m["role"] != "system"][:2] for row in chats(24)]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in found))
    return path


def test_both_sides_learn_the_same_tokens(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(str(save_decoder(tmp_path / "llama")))
    task = load_task(str(rows))
    split = task.splits["train"]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in split.fields["messages"]))
    loaded = load_dataset("json", data_files={"train": str(path)}, cache_dir=str(tmp_path / "datasets"))
    theirs = obvious_language.tokenised(loaded, tokenizer, 64)["train"]
    ours = encode(task, tokenizer, 64).train
    for number, row in enumerate(theirs):
        batch = ours.collate([number])
        assert row["input_ids"] == batch["input_ids"][0].tolist()
        assert row["labels"] == batch["labels"][0].tolist()


def test_nothing_behind_the_end_of_an_answer_is_learnt(rows: Path, tmp_path: Path) -> None:
    """A template may write a line break there."""
    loaded, found = load_dataset("json", data_files={"train": str(rows)}, cache_dir=str(tmp_path / "d")), []
    for behind in ("", "a"):
        template = TEMPLATE.replace("{% endfor %}", f" {behind}{{% endfor %}}")
        tokenizer = load_tokenizer(str(save_decoder(tmp_path / f"llama{behind}", template=template)))
        tokenizer.eos_token = "<|end|>"
        asked = tokenizer.apply_chat_template(loaded["train"][0]["messages"], tokenize=False)
        assert asked.rstrip().endswith(behind or "<|end|>")
        found.append(obvious_language.tokenised(loaded, tokenizer, 64)["train"]["labels"])
    assert [[t for t in row if t >= 0] for row in found[0]] == [
        [t for t in row if t >= 0] for row in found[1]
    ]


def test_a_trial_trains_and_is_scored(rows: Path, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "llama")
    trial = obvious.Trial(
        model=str(folder), labels=0, train=str(rows), select=str(rows), cache=str(tmp_path / "datasets"),
        recipe={}, peft=peft_words(recipe(SITES[0]), spec_of(tiny_config("llama"))),
        training=obvious.Training(steps=2, batch_size=4), head_learning_rate=0.0, max_length=64,
    )  # fmt: skip
    found = obvious_language.run(trial)
    assert 0 < found["score"] < 1
    assert found["train_loss"] > 0
    assert found["trainable"] > 0
