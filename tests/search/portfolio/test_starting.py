"""The first points of a search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.evidence import evidence, minilm_spec

from autopeft.counting import Budget
from autopeft.search.portfolio import starting
from autopeft.search.portfolio.choices import members, rank
from autopeft.search.portfolio.evidence import Key, Setting
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.projection import values_of
from autopeft.search.space.space import Space

HALF = Budget.parse("0.5%")


@pytest.fixture(scope="module")
def bound() -> BoundSpace:
    return Space.load("default").bind(minilm_spec())


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    def known(gains: dict[str, float]) -> None:
        found = evidence(lambda key, s: gains.get(key.template, -1.0), seeds=1)
        monkeypatch.setattr(starting, "shipped_evidence", lambda: found)

    return known


def test_the_best_are_points_of_the_space_each_structure_once(
    bound: BoundSpace, say: Callable[[dict[str, float]], None]
) -> None:
    say({"lora": 0.0, "lora, upper half": 3.0, "parallel adapter": 2.0, "ia3": 1.0, "serial adapter": 0.5})
    points, line = starting.portfolio_points(bound, HALF, 500, 12, leave_out=())
    recipes = [bound.materialize(point) for point in points]
    alone = [("lora",), ("parallel_adapter",), ("ia3",), ("serial_adapter",)]
    assert [r.methods for r in recipes] == alone
    assert "lora, upper half, parallel adapter, ia3, serial adapter" in (line or "")


def test_a_short_search_has_two_thirds_of_its_trials_for_it_and_a_longer_one_five(
    bound: BoundSpace, say: Callable[[dict[str, float]], None]
) -> None:
    names = ("lora, upper half", "parallel adapter", "ia3", "serial adapter", "dora", "krona", "lora + ia3")
    say({"lora": 0.0, **{name: 9.0 - i for i, name in enumerate(names)}})
    counts = dict.fromkeys((12, 9, 8), 5) | {7: 4, 6: 4, 5: 3, 3: 2, 2: 1, 1: 0, 0: 0}
    for trials, count in counts.items():
        assert len(starting.portfolio_points(bound, HALF, 500, trials, leave_out=())[0]) == count


def test_what_may_be_better_on_a_task_is_tried_though_it_is_not_recommended(
    bound: BoundSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of one is just below LoRA's, and its clusters differ; the other is worse everywhere."""

    def gain(key: Key, setting: Setting) -> float:
        spread = {"trec": 2.0, "sms-spam": -2.0}.get(setting.task, -0.4)
        return {"lora": 0.0, "ia3": spread, "krona": -6.0}.get(key.template, -3.0)

    found = evidence(gain, seeds=1)
    monkeypatch.setattr(starting, "shipped_evidence", lambda: found)
    ranking = rank(found, bound.spec, HALF, 500)
    assert ranking.choices[0].key.template == "lora"
    points, _ = starting.portfolio_points(bound, HALF, 500, 12, leave_out=())
    assert [bound.materialize(p).methods for p in points] == [("ia3",)]


def test_what_the_space_cannot_express_is_left_out(
    bound: BoundSpace, say: Callable[[dict[str, float]], None]
) -> None:
    say({"lora": 0.0, "lora + krona + ia3": 3.0, "ia3": 1.0})
    points, _ = starting.portfolio_points(bound, HALF, 500, 12, leave_out=())
    assert [set(bound.materialize(p).methods) for p in points] == [{"lora", "krona", "ia3"}, {"ia3"}]
    lora_alone = Space.load("lora").bind(minilm_spec())
    assert starting.portfolio_points(lora_alone, HALF, 500, 12, leave_out=()) == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["0.5%", "0.04%"])
def test_the_default_space_says_what_the_portfolio_has(bound: BoundSpace, budget: str) -> None:
    """All but recipes with one rate for parts that the space scales apart."""
    apart = (
        "lora + parallel adapter", "lora + parallel adapter, upper half", "krona + ia3, upper third",
        "krona on attention and feed-forward + ia3",
    )  # fmt: skip
    for member in members(bound.spec, Budget.parse(budget)):
        match = values_of(member.recipe, bound)
        assert match.overlap > (0.95 if member.template in apart else 0.9999), member.template


def test_short_searches_have_fewer_and_none_where_lora_is_best(
    bound: BoundSpace, say: Callable[[dict[str, float]], None]
) -> None:
    say({"lora": 0.0, "ia3": 2.0, "serial adapter": 1.0})
    assert len(starting.portfolio_points(bound, HALF, 500, 2, leave_out=())[0]) == 1
    assert starting.portfolio_points(bound, HALF, 500, 1, leave_out=())[0] == []
    say({"lora": 0.0})
    assert starting.portfolio_points(bound, HALF, 500, 12, leave_out=()) == ([], None)


def test_the_tasks_own_cluster_has_no_part(bound: BoundSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_trec(key: Key, setting: Setting) -> float:
        return {"ia3": 9.0 if setting.task.startswith("trec") else -1.0}.get(key.template, -2.0)

    found = evidence(lambda key, s: 0.0 if key.template == "lora" else only_trec(key, s), seeds=1)
    monkeypatch.setattr(starting, "shipped_evidence", lambda: found)
    assert starting.portfolio_points(bound, HALF, 500, 12, leave_out=("trec",)) == ([], None)
