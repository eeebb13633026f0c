"""Language models with a hybrid in the trainers that people use: transformers' own and TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import chats, save_decoder, word_tokenizer, write_chats
from support.on_logits import registered
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind

LOSS = get_kind("causal_lm").scorer.loss(())
_GATED = {"gate": [{"p_tuning_v2": {"length": 2}}, {"serial_adapter": {"bottleneck": 2}}]}
RECIPE = Recipe.from_dict(
    {
        "name": "mixed",
        "layers": [
            {"attach": [{"lora": {"rank": 2}}, {"parallel_adapter": {"bottleneck": 3}}, "ia3"]},
            {"at": "last 1", "attach": [_GATED]},
        ],
        "training": {"learning_rate": 5e-2, "schedule": "constant", "warmup": 0.0},
    }
)
OPTIONS: dict[str, Any] = {
    "max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [], "save_strategy": "no",
    "disable_tqdm": True, "seed": 1,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def values(hybrid: Hybrid) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in hybrid.root.named_parameters()}


def check_that_the_hybrid_alone_moved(
    hybrid: Hybrid, before: dict[str, Tensor], backbone: Any, model: nn.Module
) -> None:
    after = values(hybrid)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} >= {
        "lora",
        "parallel_adapter",
        "p_tuning_v2",
        "serial_adapter",
        "ia3",
    }
    hybrid.detach()
    now = tensors(model)
    assert [name for name, value in backbone.items() if not torch.equal(value, now[name])] == []
    assert now.keys() == backbone.keys()


def own_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """The loss of our own training, on logits that nobody narrowed."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return float(LOSS.mean(model(**given).logits, batch))


def rows(tmp_path: Path, number: int) -> list[dict[str, Tensor]]:
    data = encode(load_task(str(write_chats(tmp_path / "chats.jsonl"))), word_tokenizer(), 48).train
    batch = data.collate(range(number))
    return [
        {name: batch[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(number)
    ]


def test_the_trainer_trains_a_language_model_s_hybrid(model: Any, tmp_path: Path) -> None:
    backbone = tensors(model)
    hybrid = attach(model, RECIPE, seed=0)
    before, data = values(hybrid), rows(tmp_path, 8)
    arguments = TrainingArguments(str(tmp_path / "out"), **OPTIONS)
    trainer = Trainer(model, arguments, train_dataset=data, **hybrid.for_trainer())  # type: ignore[arg-type]
    batch = {name: torch.stack([row[name] for row in data[:4]]) for name in data[0]}
    model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, dict(batch)))
    assert theirs == pytest.approx(own_loss(model, batch), rel=1e-5)
    trainer.train()
    check_that_the_hybrid_alone_moved(hybrid, before, backbone, model)


class Penalty(nn.Module):
    """A term of the loss, beside a hybrid's own modules."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def loss_terms(self, step: Any) -> Tensor:
        return self.weight.square().sum()


@pytest.mark.parametrize("at_once", [4, 2])
def test_terms_of_the_loss_count_once_however_many_tokens_there_are(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Also where a batch is taken in parts, which have different numbers of learnt tokens."""
    hybrid, data = attach(model, RECIPE, seed=0), rows(tmp_path, 4)
    weight = hybrid.modules["ia3"].get_parameter(next(n for n, _ in hybrid.modules["ia3"].named_parameters()))
    callback = hybrid.callback(LOSS.total)
    monkeypatch.setattr(callback, "hybrid", _With(hybrid, Penalty(weight)))
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    items = int((batch["labels"] != -100).sum())
    total = 0.0
    for start in range(0, 4, at_once):
        part = {name: value[start : start + at_once] for name, value in batch.items()}
        outputs = hybrid.model.eval()(input_ids=part["input_ids"], attention_mask=part["attention_mask"])
        total += float(callback.loss(outputs, part["labels"], items).detach())
    expected = own_loss(hybrid.model, batch) + float(weight.detach().square().sum())
    assert total == pytest.approx(expected, rel=1e-5)


class _With:
    def __init__(self, hybrid: Hybrid, more: nn.Module) -> None:
        self.trained_modules = {**hybrid.modules, "penalty": more}


def test_the_answers_of_two_forwards_are_compared_at_the_learnt_tokens(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = {"adamix": {"children": [{"lora": {"rank": 2}}], "copies": 2}}
    hybrid = attach(model, Recipe.from_dict({"name": "a", "layers": [{"attach": [item]}]}), seed=0)
    seen: list[float] = []
    plain = LOSS.divergence

    def divergence(logits: Tensor, others: Tensor, batch: Any) -> Tensor:
        found = plain(logits, others, batch)
        seen.append(float(found.detach()))
        return found

    monkeypatch.setattr(LOSS, "divergence", divergence)
    arguments = TrainingArguments(str(tmp_path / "out"), **(OPTIONS | {"learning_rate": 0.1}))
    parts = hybrid.for_trainer(LOSS.total)
    Trainer(model, arguments, train_dataset=rows(tmp_path, 8), **parts).train()  # type: ignore[arg-type]
    assert len(seen) == 3
    assert seen[-1] > 0


def test_trl_trains_a_hybrid_on_conversations(model: Any, tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    backbone = tensors(model)
    hybrid = attach(model, RECIPE, seed=0)
    before = values(hybrid)
    turns = [row for row in chats(30) if len(row) == 2]
    data = datasets.Dataset.from_list([{"prompt": row[:1], "completion": row[1:]} for row in turns])
    arguments = trl.SFTConfig(
        str(tmp_path / "out"), max_length=48, gradient_checkpointing=False, bf16=False, **OPTIONS
    )
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=data, processing_class=word_tokenizer(), **hybrid.for_trainer()
    )
    assert trainer.model is model
    batch = next(iter(trainer.get_train_dataloader()))
    assert bool((batch["labels"] == -100).any())
    assert bool((batch["labels"] != -100).any())
    model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, dict(batch)))
    assert theirs == pytest.approx(own_loss(model, batch), rel=1e-5)
    model.train()
    trainer.train()
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    assert losses
    check_that_the_hybrid_alone_moved(hybrid, before, backbone, model)


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_what_acts_on_logits_is_trained_there_too(model: Any, tmp_path: Path, trainer: str) -> None:
    """TRL's own loss would read the weight of the last map past it."""
    options: dict[str, Any] = {}
    if trainer == "trl":
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        turns = [row for row in chats(30) if len(row) == 2]
        data = datasets.Dataset.from_list([{"prompt": row[:1], "completion": row[1:]} for row in turns])
        made, options["processing_class"] = trl.SFTTrainer, word_tokenizer()
        arguments = trl.SFTConfig(
            str(tmp_path / "out"), max_length=48, gradient_checkpointing=False, bf16=False, **OPTIONS
        )
    else:
        data, made = rows(tmp_path, 8), Trainer
        arguments = TrainingArguments(str(tmp_path / "out"), **OPTIONS)
    with registered():
        hybrid = attach(model, Recipe.from_dict({"name": "b", "model": ["logit_bias"]}), seed=0)
        found = made(model, arguments, train_dataset=data, **hybrid.for_trainer(LOSS.total), **options)
    with torch.no_grad():
        hybrid.modules["logit_bias"].bias.normal_()
    batch = dict(next(iter(found.get_train_dataloader())))
    model.eval()
    with torch.no_grad():
        theirs = float(found.compute_loss(model, dict(batch)))
    assert theirs == pytest.approx(own_loss(model, batch), rel=1e-5)
    before = values(hybrid)
    found.train()
    assert [name for name, value in values(hybrid).items() if torch.equal(value, before[name])] == []
    with pytest.raises(UsageError, match="give the task's own loss"):
        hybrid.for_trainer()["compute_loss_func"](model(batch["input_ids"]), batch["labels"])
