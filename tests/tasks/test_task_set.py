"""Sets of tasks: what may be in one, and what of its tasks stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas
import pytest

from autopeft.errors import TaskError
from autopeft.tasks import Mixture, Task, get_kind, load_task, task_set


def task(name: str, classes: int = 2, rows: int = 60, **options: Any) -> Task:
    """A task whose rows say their class."""
    frame = pandas.DataFrame({"text": [f"{name} {i % classes} {i}" for i in range(rows)]})
    frame["label"] = [f"{name}{i % classes}" for i in range(rows)]
    return replace(load_task(frame, **options), name=name)


def hits(predictions: list[Any], references: list[Any]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def numbers(name: str) -> Task:
    frame = pandas.DataFrame(
        {"text": [f"{name} {i}" for i in range(60)], "label": [i / 7 for i in range(60)]}
    )
    return replace(load_task(frame), name=name)


def test_a_set_of_one_is_that_task() -> None:
    only = task("one")
    assert task_set([only]) is only


def test_rows_stay_with_their_task_and_its_splits() -> None:
    first, second = task("a"), task("b", classes=3)
    both = task_set([first, second])
    for name in ("train", "select", "test"):
        own = both.splits[name]  # type: ignore[index]
        assert own.texts == [*first.splits[name].texts, *second.splits[name].texts]  # type: ignore[index]
        labels = [
            *((0, label) for label in first.splits[name].labels),  # type: ignore[index]
            *((1, label) for label in second.splits[name].labels),  # type: ignore[index]
        ]
        assert list(own.labels) == labels


def test_a_part_of_a_set_has_rows_of_each_task_in_their_shares() -> None:
    both = task_set([task("a", rows=200), task("b", rows=400)])
    some = both.subset(train=60, seed=3).splits["train"]
    of_first = sum(number == 0 for number, _ in some.labels)
    assert len(some) == 60
    assert of_first == pytest.approx(20, abs=1)
    fewer = both.subset(train=30, seed=3).splits["train"]
    assert set(fewer.texts) < set(some.texts)


def test_equal_texts_of_two_tasks_are_no_copies() -> None:
    one = task("a")
    both = task_set([one, replace(one, name="b")])
    assert len(set(both.text_ids("train").tolist())) == 2 * len(set(one.text_ids("train").tolist()))


def test_the_kind_has_its_tasks_and_the_mixture_in_its_name() -> None:
    both = task_set([task("a.csv", class_weights="balanced"), numbers("b & c")], Mixture(4.0))
    kind = get_kind(both.kind)
    assert kind.name == both.kind
    members: Any = kind.encoder.members  # type: ignore[attr-defined]
    assert [member.name for member in members] == ["a.csv", "b & c"]
    assert members[0].class_weights == (1.0, 1.0)
    assert kind.encoder.mixture == Mixture(4.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tasks", "mixture", "why"),
    [
        ([], Mixture(), "at least one"),
        ([task("a"), task("a")], Mixture(), "'a'"),
        ([task("a"), task("b")], Mixture(weights=(1.0, 2.0, 3.0)), "3 for 2"),
        ([task("a"), replace(task("b"), kind="causal_lm")], Mixture(), "head"),
        ([task("a"), task("b", metric=hits)], Mixture(), "choose another"),
    ],
    ids=["none", "one name", "weights", "heads", "metric"],
)
def test_what_cannot_be_a_set_is_refused(tasks: list[Task], mixture: Mixture, why: str) -> None:
    with pytest.raises(TaskError, match=why):
        task_set(tasks, mixture)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"temperature": float("inf")}, {"batches": "odd"}])
def test_a_mixture_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="but got"):
        Mixture(**options)


@pytest.mark.parametrize("told", ["?tasks=[]", "?tasks=7", "?tasks=[[1]]", "?temperature=x", "?batches=odd"])
def test_a_name_that_says_no_tasks_is_refused(told: str) -> None:
    with pytest.raises(TaskError):
        get_kind(f"mixture{told}")


def test_a_loaded_task_takes_no_options_that_come_too_late() -> None:
    one = task("a")
    assert load_task(one) is one
    with pytest.raises(TaskError, match="metric"):
        load_task(one, metric="macro_f1")
