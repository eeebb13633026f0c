"""Tags of words are learnt from end to end; the loss is that of transformers, also by shortcuts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.saved_model import save_backbone
from support.tiny import tiny_model
from support.words import NAMES, tagged_rows, write_tagged
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel, Trainer, TrainingArguments

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import AutoPEFTError, CompositionError, DataError, TaskError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import search
from autopeft.search.core.events import SilentReporter
from autopeft.tasks import EncodedTask, Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric, kind_of_model
from autopeft.tasks.kinds.tags import Tags, ragged
from autopeft.tasks.kinds.token_classification import TagLoss
from autopeft.tasks.summary import summarise
from autopeft.training import TrainingPlan, predict, run_trial
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.gradient import Gradient
from autopeft.training.head_start import start_head
from autopeft.training.losses import logits_of

CPU = torch.device("cpu")
KIND = get_kind("token_classification")
LORA = {"lora": {"rank": 4, "sites": ["q", "v", "up", "down"]}}


def recipe(*whole: dict[str, Any], at: Any = "all") -> Recipe:
    """LoRA at some layers, and with it or in its place what acts on the whole model."""
    places = {"model": list(whole)} if whole else {"layers": [{"at": at, "attach": [LORA]}]}
    return Recipe.from_dict({**places, "training": {"learning_rate": 0.02}, "name": "r"})


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
    return KIND.load_model(str(place / "bert"), task.labels)


@pytest.fixture
def data(place: Path, task: Task) -> EncodedTask:
    return encode(task, load_tokenizer(str(place / "bert")), 32)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# Loss
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_rows", [None, 1, 5])
def test_loss_and_gradients_are_those_of_transformers(
    model: PreTrainedModel, data: EncodedTask, micro_rows: int | None
) -> None:
    batch = data.train.collate(range(12))
    assert len(set((batch["labels"] != -100).sum(dim=1).tolist())) > 1, "rows of different lengths"
    known = ("input_ids", "attention_mask", "token_type_ids", "labels")
    model.train(False)
    loss = model(**{k: batch[k] for k in known}).loss
    loss.backward()
    wanted = gradients(model)
    gradient = Gradient(Forward(model, kind=KIND), KIND.loss(()), micro_rows=micro_rows or 12, device=CPU)
    found = gradient.accumulate(batch, [], list(model.parameters()))
    assert found == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, own in gradients(model).items():
        assert torch.allclose(own, wanted[name], atol=1e-5), name


def test_the_loss_of_rows_and_of_weighted_tags() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 2), torch.tensor([[0, 1, -100, 1], [-100] * 4, [1, -100, 0, 0]])
    plain, weighted = TagLoss(), TagLoss([1.0, 3.0])
    each = plain.each(logits, labels)
    assert each[1] == 0
    assert float((each * torch.tensor([3.0, 0, 3.0])).sum()) == pytest.approx(
        float(plain.total(logits, labels))
    )
    wanted = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 2), labels.reshape(-1), weight=torch.tensor([1.0, 3.0]), ignore_index=-100
    )
    assert float(weighted.mean(logits, labels)) == pytest.approx(float(wanted))
    assert plain.weight(labels[1:2]) == 1.0
    assert float(plain.mean(logits[1:2], labels[1:2])) == 0.0


# Shortcuts
# ------------------------------------------------------------------------------------------------------


def test_the_stored_trunk_gives_the_same_and_all_positions_are_computed(
    model: PreTrainedModel, data: EncodedTask
) -> None:
    plan = TrainingPlan(steps=1, batch_size=4, max_length=32, device="cpu")
    with attach(model, recipe(at="last 1"), seed=0) as hybrid:
        hybrid.model.eval()
        forward = shortest_forward(hybrid, data, plan, dropout=False)
        assert forward.trunk is not None
        assert forward.trunk.depths == {"encoder": 2}
        assert forward.rows is None, "every word is read"
        with torch.no_grad():
            for batch in forward.batches(data.train, 8, shuffle=False, device=CPU):
                there = batch["labels"] != -100
                plain = logits_of(model, forward.inputs(batch), KIND)
                assert torch.allclose(forward(batch)[there], plain[there], atol=2e-3)


def test_a_prompt_in_front_leaves_words_at_their_places(model: PreTrainedModel, data: EncodedTask) -> None:
    batch = data.train.collate(range(4))
    plain = logits_of(model, batch, KIND)
    with attach(model, recipe({"prompt_tuning": {"length": 3}}), seed=0) as hybrid:
        hybrid.model.eval()
        assert logits_of(hybrid.model, batch, KIND).shape == plain.shape
        found = predict(hybrid.model, data.select)
        assert [len(row) for row in found] == data.select.counts.tolist()  # type: ignore[attr-defined]


def test_the_head_starts_where_frozen_features_put_it(model: PreTrainedModel, data: EncodedTask) -> None:
    plan = TrainingPlan(steps=1, max_length=32, device="cpu", head_start="probe")
    before = model.get_submodule("classifier").weight.detach().clone()
    probe = start_head(model, data, plan, alone=True)
    assert probe is not None, "words tell their own tags"
    assert not torch.equal(model.get_submodule("classifier").weight, before)
    assert torch.equal(model.get_submodule("classifier").weight, probe.weight)
    outputs = predict(model, data.select)
    metric = get_metric("tag_accuracy")
    assert KIND.score(metric, outputs, data.select.truth) > 0.9
    again = start_head(model, data, plan, alone=True)
    assert again is not None
    assert torch.equal(again.weight, probe.weight), "kept on disk"


def test_what_needs_one_distribution_for_a_row_is_refused(model: PreTrainedModel, data: EncodedTask) -> None:
    plan = TrainingPlan(steps=1, max_length=32, device="cpu")
    with pytest.raises(CompositionError, match="one distribution over classes for each row"):
        run_trial(model, recipe({"infoprompt": {}}), data, plan, splits=("select",))


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
    assert [row.tolist() for row in KIND.decisions(found)] == [[1, 2, -1], [0, -1]]
    assert KIND.score(get_metric("entity_f1"), found, TRUTH) == 1.0
    assert KIND.score(get_metric("tag_accuracy"), found, TRUTH) == 1.0
    wrong = outputs_of([1, 0, 0], [0, 3])
    assert KIND.score(get_metric("entity_f1"), wrong, TRUTH) == 0.5
    assert KIND.score(get_metric("entity_f1"), KIND.decisions(wrong), TRUTH) == 0.5
    assert KIND.row_loss(found, TRUTH) == pytest.approx(np.log(1 + 4 * np.exp(-4)))
    parts = KIND.pseudo_values(get_metric("entity_f1"), wrong, TRUTH)
    assert parts.shape == (2,)
    with pytest.raises(TaskError, match="Cannot score 2 tags against those of 3 words"):
        KIND.score(get_metric("entity_f1"), outputs_of([1, 2], [0, 3]), TRUTH)
    with pytest.raises(TaskError, match="Cannot score the tags of 1 rows"):
        KIND.score(get_metric("entity_f1"), outputs_of([1, 2, 0]), TRUTH)
    broken = outputs_of([1, 2, 0], [0, 3])
    broken[0][1, 1] = np.nan
    with pytest.raises(AutoPEFTError, match="not finite"):
        KIND.score(get_metric("entity_f1"), broken, TRUTH)


def test_one_tag_for_all_words_scores_nothing(task: Task, place: Path) -> None:
    assert KIND.constant(task.splits["train"].labels, task.labels) == ("always 'O'", 0)
    summary = summarise(task, load_tokenizer(str(place / "bert")), 32)
    assert summary.constant is not None
    assert summary.constant.scores == {"select": 0.0, "test": 0.0}
    assert any("words: 'O'" in text or "words: O" in text for _, text in summary.facts)


def test_tables_of_entities_and_of_tags() -> None:
    entities, tags, confusion = KIND.breakdown(outputs_of([1, 0, 0], [0, 3]), TRUTH, NAMES)
    assert entities.rows == (("bad", 1.0, 1.0, 1.0, 1), ("good", 0.0, 0.0, 0.0, 1))
    assert [row[0] for row in tags.rows] == list(NAMES)
    assert confusion.headers == ("true", *NAMES)


def test_which_metric_counts(place: Path) -> None:
    assert KIND.metric_for(NAMES) == "entity_f1"
    assert KIND.metric_for(("NOUN", "VERB")) == "tag_f1"
    with pytest.raises(TaskError, match="needs tags that spell entities"):
        KIND.check_metric(get_metric("entity_f1"), ("NOUN", "VERB"))
    KIND.check_metric(get_metric("tag_f1"), ("NOUN", "VERB"))


def test_a_function_of_the_users_gets_tags_by_name(task: Task, place: Path, data: EncodedTask) -> None:
    seen = []

    def mine(predictions: list[Any], references: list[Any]) -> float:
        seen.append((predictions, references))
        return 1.0

    own = load_task(str(place / "data.jsonl"), metric=mine)
    metric = get_metric(own.metric)
    found = KIND.score(metric, outputs_of([1, 2, -1], [0, 3]), TRUTH)
    assert found == 1.0
    assert seen[-1] == ([["B-good", "I-good"], ["O", "B-bad"]], [["B-good", "I-good"], ["O", "B-bad"]])


def test_tags_in_the_order_of_a_head() -> None:
    wanted = ("I-bad", "O", "B-good", "I-good", "B-bad")
    (row,) = KIND.relabel([Tags([0, 1, 2], NAMES)], NAMES, wanted)
    assert (tuple(row), row.names) == ((1, 2, 3), wanted)


def test_balanced_weights_count_words() -> None:
    labels = [Tags([0, 0, 0, 1], ("O", "X")), Tags([0, 0, 0, 1], ("O", "X"))]
    assert KIND.class_weights("balanced", labels, ("O", "X")) == [8 / 12, 8 / 4]


def test_the_class_of_a_model_tells_the_kind(model: PreTrainedModel, task: Task) -> None:
    found, labels = kind_of_model(model.config, type(model).__name__)
    assert (found.name, labels) == ("token_classification", task.labels)
    other = tiny_model("bert")
    assert kind_of_model(other.config, type(other).__name__)[0].name == "classification"


def test_a_single_tag_after_splitting_is_refused() -> None:
    from autopeft.tasks.split import Split

    with pytest.raises(DataError, match="one tag after splitting"):
        KIND.check("x", Split(["a"], None, [Tags([0], NAMES)]), NAMES)


# From end to end
# ------------------------------------------------------------------------------------------------------


def test_a_recipe_is_trained_and_used(place: Path, tmp_path: Path) -> None:
    path = write_tagged(tmp_path / "data.jsonl", 200)
    found = autopeft.train(
        recipe=recipe(), task=str(path), model=str(place / "bert"), steps=120, max_length=24,
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
    assert KIND.line(said) == "a good/B-good film was bad/B-bad"
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
        recipe=recipe(),
        task=str(path),
        model=str(place / "bert"),
        steps=2,
        max_length=8,
        out=str(tmp_path / "run"),
    )
    (said,) = autopeft.predict(found.folder, " ".join(["good"] * 9))
    assert [tag is None for tag in said["tags"]] == [False] * 6 + [True] * 3
    assert KIND.line(said).endswith("good/? good/? good/?")


class Dies(SilentReporter):
    """Ends the search, as far as it can tell like a killed process, when a trial has ended."""

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        raise RuntimeError("killed")


@pytest.mark.slow  # of classes by default: tests/search/test_goals.py
def test_a_search_that_was_killed_goes_on(place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "budget": "20%", "task": str(place / "data.jsonl"), "model": str(place / "bert"), "max_length": 32,
        "trials": 2, "steps": 6, "confirm_seeds": 2, "workers": 0, "out": str(tmp_path / "run"),
        "baselines": "lora,head",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        search(**options, reporter=Dies())
    found = search(resume=options["out"], workers=0)
    assert len(found.trials) == 2
    assert found.test_mean is not None
    assert {b.name for b in found.baselines} >= {"head only"}
    assert found.samples
    page = write_report(load_run(tmp_path / "run")).read_text()
    assert "Samples of answers" in page
    assert "entity_f1" in page


def trainer_rows(data: EncodedTask) -> Iterator[dict[str, Any]]:
    for i in range(len(data.train)):
        batch = data.train.collate([i])
        yield {k: batch[k][0].tolist() for k in ("input_ids", "attention_mask", "labels")}


def test_the_trainer_trains_a_hybrid(place: Path, data: EncodedTask, tmp_path: Path) -> None:
    from transformers import DataCollatorForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(
        place / "bert", num_labels=5, ignore_mismatched_sizes=True
    )
    hybrid = autopeft.attach(model, recipe())
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        save_strategy="no", logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=list(trainer_rows(data)),
        data_collator=DataCollatorForTokenClassification(load_tokenizer(str(place / "bert"))),
        **hybrid.for_trainer(),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.save_pretrained(tmp_path / "mine")
    other = AutoModelForTokenClassification.from_pretrained(
        place / "bert", num_labels=5, ignore_mismatched_sizes=True
    )
    autopeft.load(other, tmp_path / "mine")
    batch = data.select.collate(range(4))
    with torch.no_grad():
        assert torch.equal(logits_of(model.eval(), batch, KIND), logits_of(other.eval(), batch, KIND))


def test_rows_are_those_that_were_written() -> None:
    assert all(len(words) == len(tags) for words, tags in tagged_rows(20))
