"""What a kind of task with a head on an encoder owes: the loss of transformers, whole, in parts and by
shortcuts; a hybrid for transformers' Trainer; and a search that goes on. A new kind is a row of `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone
from support.searching import Dies
from support.several_labels import write_labelled
from support.spans import write_questions
from support.training import lora_recipe
from support.words import write_tagged
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import TaskKind, get_kind, kind_of_model
from autopeft.training import TrainingPlan, predict, run_trial
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import logits_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A kind of task and what transformers has for it.

    Attributes:
        write: writes rows to a file.
        length: tokens of a row at most; the texts of questions are longer, so that some are in two windows.
        auto: transformers' class.
        labels: what that class calls the labels of a batch.
        collator: what makes batches for its Trainer.
        read: marks the positions of a batch whose logits count, or `None` where a row has one.
        told: what the report of a search says of the kind.
    """

    write: Callable[[Path], Path]
    length: int
    auto: Any
    labels: Callable[[Tensor], dict[str, Tensor]]
    collator: Callable[[PreTrainedTokenizerBase], Any]
    read: Callable[[dict[str, Tensor]], Tensor] | None
    told: tuple[str, ...]


CASES = {
    "token_classification": Case(
        lambda path: write_tagged(path, 200),
        32,
        AutoModelForTokenClassification,
        lambda labels: {"labels": labels},
        DataCollatorForTokenClassification,
        lambda batch: batch["labels"] != -100,
        ("entity_f1", "Samples of answers"),
    ),
    "question_answering": Case(
        lambda path: write_questions(path, 200, empty=8),
        16,
        AutoModelForQuestionAnswering,
        lambda labels: {"start_positions": labels[..., 0], "end_positions": labels[..., 1]},
        lambda tokenizer: default_data_collator,
        lambda batch: batch["attention_mask"] == 1,
        ("squad_f1", "always the whole text", "Samples of answers"),
    ),
    "multi_label": Case(
        write_labelled,
        32,
        AutoModelForSequenceClassification,
        lambda labels: {"labels": labels},
        DataCollatorWithPadding,
        None,
        ("micro_f1",),
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    for name, case in CASES.items():
        case.write(folder / f"{name}.jsonl")
    return folder


@dataclass
class Given:
    """A kind on a backbone, with encoded rows."""

    name: str
    case: Case
    kind: TaskKind
    model: PreTrainedModel
    data: EncodedTask
    plan: TrainingPlan


@pytest.fixture(params=CASES)
def given(
    request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Given:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    name: str = request.param
    case, kind, task = CASES[name], get_kind(name), load_task(str(place / f"{name}.jsonl"))
    assert task.kind == name
    data = encode(task, load_tokenizer(str(place / "bert")), case.length)
    plan = TrainingPlan(steps=1, batch_size=4, max_length=case.length, device="cpu")
    return Given(name, case, kind, kind.head.load_model(str(place / "bert"), task.labels), data, plan)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("micro_rows", [12, 1, 5])
def test_loss_and_gradients_are_those_of_transformers(given: Given, micro_rows: int) -> None:
    model, batch = given.model.train(False), given.data.train.collate(range(12))
    assert not bool(batch["attention_mask"].all()), "padding"
    known = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    loss = model(**known, **given.case.labels(batch["labels"])).loss
    loss.backward()
    wanted = gradients(model)
    forward = Forward(model, kind=given.kind)
    gradient = Gradient(forward, given.kind.scorer.loss(()), micro_rows=micro_rows, device=CPU)
    total = gradient.accumulate(batch, [], list(model.parameters()))
    assert total == pytest.approx(float(loss.detach()), abs=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, own in found.items():
        assert torch.allclose(own, wanted[name], atol=1e-5), name


def test_the_stored_trunk_gives_the_same_where_positions_are_read(given: Given) -> None:
    with attach(given.model, lora_recipe(at="last 1"), seed=0) as hybrid:
        hybrid.model.eval()
        forward = shortest_forward(hybrid, given.data, given.plan, dropout=False)
        assert forward.trunk is not None
        assert forward.trunk.depths == {"encoder": 2}
        assert (forward.rows is None) == (given.case.read is not None), (
            "every position that is read is computed"
        )
        with torch.no_grad():
            for batch in forward.batches(given.data.train, 8, shuffle=False, device=CPU):
                plain, short = logits_of(hybrid.model, forward.inputs(batch), given.kind), forward(batch)
                there = slice(None) if given.case.read is None else given.case.read(batch)
                assert torch.allclose(short[there], plain[there], atol=2e-3)


def test_a_prompt_in_front_leaves_tokens_at_their_places(given: Given) -> None:
    batch = given.data.train.collate(range(4))
    plain = logits_of(given.model, batch, given.kind)
    with attach(given.model, lora_recipe({"prompt_tuning": {"length": 3}}), seed=0) as hybrid:
        hybrid.model.eval()
        assert logits_of(hybrid.model, batch, given.kind).shape == plain.shape
        found = predict(hybrid.model, given.data.select)
        assert len(found) == len(given.data.task.splits["select"])


def test_what_needs_one_distribution_for_a_row_is_refused(given: Given) -> None:
    with pytest.raises(CompositionError, match="one distribution over classes for each row"):
        run_trial(given.model, lora_recipe({"infoprompt": {}}), given.data, given.plan, splits=("select",))


def test_the_class_of_a_model_tells_the_kind(given: Given) -> None:
    found, labels = kind_of_model(given.model.config, type(given.model).__name__)
    assert (found.name, labels) == (given.name, given.data.task.labels)


def test_the_trainer_of_transformers_trains_a_hybrid(given: Given, place: Path, tmp_path: Path) -> None:
    def plain() -> PreTrainedModel:
        told = {"num_labels": len(given.data.task.labels)} if given.data.task.labels else {}
        if given.name == "multi_label":
            told["problem_type"] = "multi_label_classification"
        found: PreTrainedModel = given.case.auto.from_pretrained(
            place / "bert", ignore_mismatched_sizes=True, **told
        )
        return found

    model, rows = plain(), []
    whole = given.case.collator is CASES["question_answering"].collator  # it pads nothing
    together = given.data.train.collate(range(len(given.data.train))) if whole else None
    for i in range(len(given.data.train)):
        batch, at = (together, i) if together is not None else (given.data.train.collate([i]), 0)
        row = {k: batch[k] for k in ("input_ids", "attention_mask")} | given.case.labels(batch["labels"])
        rows.append({k: value[at].tolist() for k, value in row.items()})
    hybrid = autopeft.attach(model, lora_recipe())
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        save_strategy="no", logging_steps=1,
    )  # fmt: skip
    collator = given.case.collator(load_tokenizer(str(place / "bert")))
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, **hybrid.for_trainer())  # type: ignore[arg-type]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.save_pretrained(tmp_path / "mine")
    other = plain()
    autopeft.load(other, tmp_path / "mine")
    batch = given.data.select.collate(range(4))
    with torch.no_grad():
        found, again = (logits_of(m.eval(), batch, given.kind) for m in (model, other))
    assert torch.equal(found, again)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_search_that_was_killed_goes_on(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {
        "budget": "20%", "task": str(place / f"{name}.jsonl"), "model": str(place / "bert"),
        "max_length": CASES[name].length, "trials": 2, "steps": 6, "confirm_seeds": 2, "workers": 0,
        "out": str(tmp_path / "run"), "baselines": "lora,head",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        search(**options, reporter=Dies(1))
    found = search(resume=options["out"], workers=0)
    assert len(found.trials) == 2
    assert found.test_mean is not None
    assert {b.name for b in found.baselines} >= {"head only"}
    page = write_report(load_run(tmp_path / "run")).read_text()
    assert [said for said in CASES[name].told if said not in page] == []
