"""Several tasks on one backbone: each has the logits, the loss, the start and the score that it has alone."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone
from support.searching import Dies
from support.several_labels import write_labelled
from support.spans import write_questions
from support.training import lora_recipe
from support.words import write_tagged
from torch import Tensor

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.assets.heads import head_bank, reset_head, with_head
from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError, CompositionError, UsageError
from autopeft.hybrid import attach, load
from autopeft.hybrid.modules import head_of
from autopeft.recipe.pooling import MEAN_POOLING
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.tasks import EncodedTask, Mixture, Task, get_kind, load_task, task_set
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, predict, run_trial
from autopeft.training.checks import check_recipe
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.head_start import start_head
from autopeft.training.losses import logits_of
from autopeft.training.pooling import better_pooling

CPU = torch.device("cpu")
PLAN = TrainingPlan(steps=2, batch_size=8, max_length=32, device="cpu")


def classes(name: str, words: tuple[tuple[str, ...], ...], rows: int, most: int = 9) -> Task:
    """A task in which one word of a text tells its class."""
    draw = np.random.default_rng(len(name))
    texts = [
        " ".join([*draw.choice(NEUTRAL, 1 + i % most), draw.choice(words[i % len(words)])])
        for i in range(rows)
    ]
    frame = pandas.DataFrame({"text": texts, "label": [f"{name}{i % len(words)}" for i in range(rows)]})
    return replace(load_task(frame), name=name)


HEADS = ("classifier.weight", "task_heads.three.classifier.weight")
TWO = (classes("mood.csv", (GOOD, BAD), 90), classes("three", (GOOD, BAD, NEUTRAL), 150))


def two(mixture: Mixture | None = None) -> Task:
    return task_set(
        [classes("mood.csv", (GOOD, BAD), 90), classes("three", (GOOD, BAD, NEUTRAL), 150)], mixture
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_tagged(folder / "tags.jsonl", 120)
    write_questions(folder / "questions.jsonl", 120, empty=8)
    write_labelled(folder / "several.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


def on(place: Path, task: Task, length: int = 32) -> tuple[Any, EncodedTask]:
    data = encode(task, load_tokenizer(str(place / "bert")), length)
    return task.task_kind.head.load_model(str(place / "bert"), task.labels, seed=3).eval(), data


def of_all_kinds(place: Path) -> Task:
    files = {name: load_task(str(place / f"{name}.jsonl")) for name in ("tags", "questions", "several")}
    shares = pandas.DataFrame({"text": [f"good {'the ' * (i % 9)}" for i in range(80)]})
    shares["label"] = [(i % 9) / 7 for i in range(80)]
    return task_set(
        [
            *(replace(task, name=name) for name, task in files.items()),
            replace(load_task(shares), name="numbers"),
            classes("mood", (GOOD, BAD), 60),
        ]
    )


def batch_of(data: EncodedTask, *numbers: int, rows: int = 6) -> dict[str, Tensor]:
    """A batch of the first sequences of some of the tasks, in turns."""
    sizes = [len(part.offsets) - 1 for part in data.train.parts]  # type: ignore[attr-defined]
    found = [sum(sizes[:number]) + np.arange(rows) for number in numbers]
    return data.train.collate(np.stack(found, axis=1).ravel())


# Logits, losses and gradients
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_a_batch_of_one_task_has_the_logits_and_the_loss_of_that_task_alone(place: Path, number: int) -> None:
    model, data = on(place, of_all_kinds(place), 16)
    member = data.task.task_kind.scorer.members[number]  # type: ignore[attr-defined]
    alone = member.task_kind.head.load_model(str(place / "bert"), member.labels)
    own = head_bank(model)[member.name] if number else model  # type: ignore[index]
    head = {name: p for name, p in own.state_dict().items() if not name.startswith(("bert.", "task_heads."))}
    left = alone.load_state_dict(head, strict=False)
    assert not left.unexpected_keys
    assert head
    batch = batch_of(data, number)
    kind, wanted = data.task.task_kind, member.task_kind
    logits = logits_of(model, batch, kind)
    assert torch.allclose(logits, logits_of(alone.eval(), batch, wanted), atol=1e-6)
    assert torch.equal(
        data.task.loss().mean(logits, batch), wanted.scorer.loss(member.labels).mean(logits, batch)
    )


def test_rows_of_several_tasks_have_the_logits_of_their_own_heads(place: Path) -> None:
    model, data = on(place, two(Mixture(batches="mixed")))
    both, kind = batch_of(data, 0, 1), data.task.task_kind
    logits = logits_of(model, both, kind)
    assert logits.shape == (12, 3)
    apart = [logits_of(model, batch_of(data, number), kind) for number in (0, 1)]
    assert torch.allclose(logits[0::2, :2], apart[0], atol=1e-5)
    assert bool((logits[0::2, 2] == 0).all())
    assert torch.allclose(logits[1::2], apart[1], atol=1e-5)
    loss = data.task.loss()
    sums = [loss.total(found, batch_of(data, number)) for number, found in enumerate(apart)]
    assert torch.allclose(loss.mean(logits, both), torch.stack(sums).sum() / 12, atol=1e-5)


@pytest.mark.parametrize("micro_rows", [12, 5, 1])
def test_gradients_of_a_mixed_batch_do_not_depend_on_its_parts(place: Path, micro_rows: int) -> None:
    model, data = on(place, two(Mixture(batches="mixed")))
    batch, kind = batch_of(data, 0, 1), data.task.task_kind
    found = {}
    for rows in (12, micro_rows):
        gradient = Gradient(Forward(model, kind=kind), data.task.loss(), micro_rows=rows, device=CPU)
        gradient.accumulate(batch, [], list(model.parameters()))
        found[rows] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    assert {"classifier.weight", "task_heads.three.classifier.weight"} <= found[12].keys()
    for name, whole in found[12].items():
        assert torch.allclose(whole, found[micro_rows][name], atol=1e-5), name


# Heads
# ------------------------------------------------------------------------------------------------------


def test_heads_are_counted_drawn_saved_and_loaded(place: Path, tmp_path: Path) -> None:
    model, data = on(place, two())
    assert sum(p.numel() for p in head_of(model).values()) == 32 * 2 + 2 + 32 * 3 + 3
    before = {name: p.detach().clone() for name, p in head_of(model).items()}
    reset_head(model, 4)
    weights = [name for name in before if name.endswith("weight")]
    assert all(not torch.equal(before[name], head_of(model)[name]) for name in weights)
    with attach(model, lora_recipe(), seed=0) as hybrid:
        outputs = predict(model, data.select)
        hybrid.save(tmp_path / "saved")
    other, _ = on(place, two())
    with load(other, tmp_path / "saved"):
        again = predict(other, data.select)
    for (task, own), (number, loaded) in zip(outputs, again, strict=True):
        assert task == number
        assert np.array_equal(own, loaded)


def test_the_backbone_is_there_once_and_one_head_at_a_time(place: Path) -> None:
    model, _ = on(place, of_all_kinds(place))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert sum("word_embeddings" in name for name in names) == 1
    assert any("pooler" in name for name in names), "classes are read from the pooler, tags are not"
    with with_head(model, "mood") as own:
        assert own.base_model is model.base_model
    assert own.base_model is own, "it was given back"


def test_each_head_starts_as_the_probe_of_its_task_alone(place: Path) -> None:
    model, data = on(place, two())
    start_head(model, data, PLAN)
    bank = head_bank(model)
    assert bank is not None
    for task, own in zip(TWO, (model, bank["three"]), strict=True):
        alone, rows = on(place, task)
        assert start_head(alone, rows, PLAN) is not None
        assert torch.allclose(alone.classifier.weight, own.classifier.weight, atol=1e-6)


def test_each_head_reads_the_mean_as_that_of_its_task_alone(place: Path) -> None:
    model, data = on(place, two())
    kind = data.task.task_kind
    with attach(model, MEAN_POOLING):
        found = [logits_of(model, batch_of(data, number), kind) for number in (0, 1)]
    for number, task in enumerate(TWO):
        alone, rows = on(place, task)
        with torch.no_grad():
            alone.classifier.weight.copy_(head_of(model)[HEADS[number]])
        with attach(alone, MEAN_POOLING):
            wanted = logits_of(alone, batch_of(data, number), rows.task.task_kind)
        assert torch.allclose(found[number], wanted, atol=1e-6)


def test_what_heads_read_is_chosen_by_all_of_them_whatever_their_units(place: Path) -> None:
    model, data = on(place, two())
    both = better_pooling(model, data, PLAN, spec_of(model.config))
    assert both is not None
    alone = []
    for task in TWO:
        own, rows = on(place, task)
        alone += [better_pooling(own, rows, PLAN, spec_of(own.config))]
    assert both.own == pytest.approx(math.prod(found.own for found in alone if found) ** 0.5, rel=1e-4)
    assert both.mean == pytest.approx(math.prod(found.mean for found in alone if found) ** 0.5, rel=1e-4)


def test_no_mean_is_read_where_a_task_has_answers_in_several_places(place: Path) -> None:
    model, data = on(place, of_all_kinds(place))
    assert better_pooling(model, data, PLAN, spec_of(model.config)) is None
    with attach(model, MEAN_POOLING) as hybrid, pytest.raises(CompositionError, match="mean_pooling"):
        check_recipe(hybrid, data.task.task_kind)


def test_what_acts_on_the_logits_of_one_head_is_refused(place: Path) -> None:
    model, data = on(place, two())
    with pytest.raises(AutoPEFTError):
        run_trial(model, lora_recipe({"infoprompt": {}}), data, PLAN, splits=("select",))


def test_what_stands_for_several_models_has_the_mean_of_each_task(place: Path) -> None:
    """That of positions for answers in a text, of each label, of classes and of numbers."""
    model, data = on(place, of_all_kinds(place))
    ensemble = {"lora_dropout": {"rank": 2, "ensemble": 3}}
    recipe = autopeft.Recipe.from_dict({"layers": [{"attach": [ensemble]}]})
    found = run_trial(model, recipe, data, PLAN)
    assert all(math.isfinite(score) for score in found.by_task["select"].values())
    whole = data.task.task_kind.scorer
    logits = torch.randn(3, 2, 5, 2, generator=torch.Generator().manual_seed(0))
    for number, member in enumerate(whole.members):  # type: ignore[attr-defined]
        mean = whole.average({"task_id": torch.tensor([number, number])})
        own = member.task_kind.scorer.average({})
        assert (mean is None) == (own is None), member.name
        assert mean is None or own is None or torch.equal(mean(logits, 0), own(logits, 0))


# Batches
# ------------------------------------------------------------------------------------------------------


def drawn(task: Task, place: Path, seed: int = 0) -> list[list[int]]:
    data = encode(task, load_tokenizer(str(place / "bert")), 32)
    return [batch.tolist() for batch in data.train.batch_indices(8, shuffle=True, seed=seed)]


def test_an_epoch_has_each_row_once_in_batches_of_one_task(place: Path) -> None:
    task = two()
    batches, first = drawn(task, place), len(task.splits["train"].parts[0])  # type: ignore[attr-defined]
    assert sorted(row for batch in batches for row in batch) == list(range(len(task.splits["train"])))
    assert all(len({row < first for row in batch}) == 1 for batch in batches)
    assert drawn(task, place) == batches
    assert drawn(task, place, seed=1) != batches


def test_a_high_temperature_draws_tasks_equally_often(place: Path) -> None:
    task = two(Mixture(temperature=1e6))
    rows = [row for batch in drawn(task, place) for row in batch]
    first = len(task.splits["train"].parts[0])  # type: ignore[attr-defined]
    assert sum(row < first for row in rows) == pytest.approx(len(rows) / 2, abs=1)
    times = Counter(rows)
    assert {times[row] for row in range(first)} <= {1, 2}, "rows come round in turn"


def test_mixed_batches_have_rows_of_several_tasks(place: Path) -> None:
    task = two(Mixture(batches="mixed"))
    batches, first = drawn(task, place), len(task.splits["train"].parts[0])  # type: ignore[attr-defined]
    assert sorted(row for batch in batches for row in batch) == list(range(len(task.splits["train"])))
    assert sum(len({row < first for row in batch}) == 2 for batch in batches) > len(batches) / 2


def test_some_rows_are_drawn_from_those_alone(place: Path) -> None:
    data = encode(two(), load_tokenizer(str(place / "bert")), 32)
    among = np.arange(0, len(data.train), 3)
    batches = data.train.batch_indices(8, shuffle=True, among=among)
    assert sorted(np.concatenate(batches).tolist()) == among.tolist()


def test_a_part_of_the_rows_is_what_the_tasks_have_of_them(place: Path) -> None:
    data = encode(two(), load_tokenizer(str(place / "bert")), 32)
    rows = np.arange(0, len(data.train), 7)
    part = data.train.take(rows)
    assert part.truth.tolist() == data.train.truth[rows].tolist()  # type: ignore[union-attr,index]
    whole, own = data.train.collate(rows[:3]), part.collate([0, 1, 2])
    assert all(torch.equal(whole[key], own[key]) for key in whole)
    assert part.fingerprint != data.train.fingerprint
    assert len(set(part.copies())) == len({part.content(i) for i in range(len(part))})


# Scores
# ------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_the_tasks_own(place: Path) -> None:
    model, data = on(place, of_all_kinds(place), 16)
    kind, rows = data.task.task_kind, data.splits["test"]
    outputs, truth = predict(model, rows), rows.truth
    assert truth is not None
    scores = {}
    for number, member in enumerate(kind.scorer.members):  # type: ignore[attr-defined]
        with nullcontext(model) if not number else with_head(model, member.name) as own:
            part = rows.parts[number]  # type: ignore[attr-defined]
            found = predict(own, part)
        scores[member.name] = member.task_kind.scorer.score(member.scored_by, found, part.truth)
    metric = autopeft.tasks.get_metric(data.task.metric)
    assert kind.scorer.score(metric, outputs, truth) == pytest.approx(np.mean(list(scores.values())))
    table = kind.scorer.breakdown(outputs, truth, ())[0]
    assert {row[0]: row[2] for row in table.rows} == pytest.approx(scores)


def test_what_rows_contribute_gives_the_score_and_its_variance(place: Path) -> None:
    data = encode(two(), load_tokenizer(str(place / "bert")), 32)
    truth = data.train.truth
    assert truth is not None
    draw = np.random.default_rng(0)
    outputs = np.empty(len(truth), dtype=object)
    outputs[:] = [(task, draw.normal(size=2 + task)) for task, _ in truth]
    scorer, metric = data.task.task_kind.scorer, autopeft.tasks.get_metric(data.task.metric)
    values = scorer.pseudo_values(metric, outputs, truth)
    assert values.mean() == pytest.approx(scorer.score(metric, outputs, truth), abs=1e-3)
    wanted = 0.0
    for number in (0, 1):
        hits = [np.argmax(o) == y for (t, o), (_, y) in zip(outputs, truth, strict=True) if t == number]
        wanted += np.var(hits) / len(hits) / 4
    assert values.var() / len(values) == pytest.approx(wanted, rel=0.25)


def test_rows_without_their_task_are_refused(place: Path) -> None:
    with pytest.raises(UsageError, match=r"mood\.csv, three"):
        get_kind(two().kind).schema.text_columns(None, None)  # type: ignore[arg-type]


# Searches
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", ["homogeneous", "mixed"])
def test_both_tasks_are_learnt(place: Path, batches: Any) -> None:
    tasks = [classes("mood", (GOOD, BAD), 200, most=3), classes("praise", (GOOD, NEUTRAL), 200, most=3)]
    model, data = on(place, task_set(tasks, Mixture(batches=batches)))
    plan = replace(PLAN, steps=100, batch_size=16)
    outcome = run_trial(model, lora_recipe(rate=0.01), data, plan, splits=("select",))
    assert outcome.scores["select"] > 0.9


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "budget": "20%", "task": of_all_kinds(place), "model": str(place / "bert"), "max_length": 16,
        "trials": 2, "steps": 10, "confirm_seeds": 2, "workers": 0, "out": str(tmp_path / "run"),
        "baselines": "lora,head",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        search(**options, reporter=Dies(1))
    with pytest.raises(UsageError, match="hand them over"):
        search(resume=options["out"], workers=0)
    found = search(resume=options["out"], workers=0, task=options["task"])
    assert len(found.trials) == 2
    assert found.test_mean is not None
    assert {b.name for b in found.baselines} >= {"head only"}
    page = write_report(load_run(tmp_path / "run")).read_text()
    finals = [record for record in load_run(tmp_path / "run").finals().records if "test" in record.scores]
    assert finals
    for record in finals:
        of_test = record.by_task["test"]
        assert list(of_test) == [m.name for m in options["task"].task_kind.scorer.members]
        assert record.scores["test"] == pytest.approx(np.mean(list(of_test.values())))
    for said in (
        "mean_of_tasks",
        "Scores of the tasks on test",
        *(member.name for member in of_all_kinds(place).task_kind.scorer.members),
    ):  # type: ignore[attr-defined]
        assert said in page


def test_what_was_trained_is_evaluated_and_exported(place: Path, tmp_path: Path) -> None:
    task = two()
    outcome = autopeft.train(
        recipe=lora_recipe(), task=task, model=str(place / "bert"), steps=4, max_length=32,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    exported = autopeft.export(str(tmp_path / "run"), out=str(tmp_path / "exported"))
    for folder in (tmp_path / "run", exported.folder):
        found = autopeft.evaluate(str(folder), task=task, model=str(place / "bert"))
        assert found.score == pytest.approx(outcome.scores["test"], abs=1e-6)
    with pytest.raises(UsageError, match="rows do not say which"):
        autopeft.predict(str(tmp_path / "run"), ["good film"])
