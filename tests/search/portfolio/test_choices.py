"""The portfolio at a budget, ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.evidence import evidence, minilm_spec

from autopeft.counting import Budget
from autopeft.graph import build_graph, unservable
from autopeft.search.portfolio.choices import rank
from autopeft.search.portfolio.evidence import BackboneShare, Key, Setting

HALF = Budget.parse("0.5%")


def dora_is_better(key: Key, setting: Setting) -> float:
    return {"dora": 2.0, "krona": -1.0}.get(key.template, 0.0) + (1.0 if key == Key("lora", 0) else 0.0)


def dora_alone(key: Key, setting: Setting) -> float:
    return 2.0 if key.template == "dora" else 0.0


def nothing_is_better(key: Key, setting: Setting) -> float:
    return 0.5 if key == Key("lora", 0) else 0.0 if key == Key("lora", 1) else -1.0


def test_what_gains_most_is_first_and_plain_lora_stands_among_them() -> None:
    found = rank(evidence(dora_is_better, noise=0.3), minilm_spec(), HALF, 500)
    assert found.reason is None
    assert found.choices[0].key.template == "dora"
    assert found.choices[0].fitted.size == 10
    assert found.choices[0].cost == pytest.approx(0.5)
    merits = [0.0 if c.estimate is None else c.estimate.lower_quartile for c in found.choices]
    assert merits == sorted(merits, reverse=True)
    assert found.reference is not None
    assert found.reference.key == Key("lora", 0), "the better one of its rates"
    assert found.reference in found.choices
    assert found.reference.cost == 1.0
    assert found.reference.estimate is None
    better = [c.key.template for c in found.choices if c.estimate and c.estimate.lower_quartile > 0.5]
    assert better == ["dora"] * 3
    (usual,) = [c.estimate for c in found.choices if c.key == Key("lora", 1)]
    assert usual is not None
    assert usual.observed == pytest.approx(-1.0, abs=0.2), "what the evidence has gains over"
    assert found.choices[0].estimate is not None
    assert found.choices[0].estimate.observed == pytest.approx(1.0, abs=0.2)


def test_the_reference_costs_what_it_costs_where_no_time_was_recorded() -> None:
    found = rank(replace(evidence(dora_is_better), costs={}), minilm_spec(), HALF, 500)
    assert {c.key: c.cost for c in found.choices if c.cost is not None} == {Key("lora", 0): 1.0}


def test_costs_are_over_the_reference_of_the_budget_whatever_budget_they_were_recorded_at() -> None:
    """A budget between two recorded ones, of which the smaller has LoRA on the upper half as plain."""
    known = evidence(dora_alone)
    large, small = max(known.references, key=share_of), min(known.references, key=share_of)
    half, serial = Key("lora, upper half", 1), Key("serial adapter", 1)
    costs = {(large, Key("lora", 1)): 1.0, (small, half): 0.4, (large, serial): 0.9, (small, serial): 0.2}
    for budget in ("0.5%", "0.15%", "0.1%", "0.06%"):
        found = rank(replace(known, costs=costs), minilm_spec(), Budget.parse(budget), 500)
        told = {c.key: c.cost for c in found.choices if c.cost is not None}
        assert told[Key("lora", 1)] == 1.0
        assert told.get(half, 0.4) == pytest.approx(0.4), budget
        assert told[serial] == pytest.approx(0.2 if budget in ("0.1%", "0.06%") else 0.9), budget
    found = rank(replace(known, costs=costs), minilm_spec(), Budget.parse("0.04%"), 500)
    told = {c.key: c.cost for c in found.choices}
    assert (told[half], told[serial]) == (1.0, pytest.approx(0.5))


def share_of(here: BackboneShare) -> float:
    return here.share


def test_of_several_backbones_costs_are_medians_and_none_hides_another() -> None:
    known = evidence(dora_alone)
    other = {
        (BackboneShare("other", here.share), key): 10 * cost for (here, key), cost in known.costs.items()
    }
    lora = Key("lora", 1)
    other |= {(here, key): cost / 10 for (here, key), cost in other.items() if key == lora}
    found = rank(replace(known, costs={**known.costs, **other}), minilm_spec(), HALF, 500)
    told = {c.key: c.cost for c in found.choices}
    assert told[lora] == 1.0
    assert told[Key("dora", 0)] == pytest.approx((0.5 + 5.0) / 2)


def test_where_nothing_is_better_lora_is_first_at_its_better_rate() -> None:
    found = rank(evidence(nothing_is_better, noise=0.2), minilm_spec(), HALF, 500)
    assert found.choices[0].key == Key("lora", 0)
    assert found.reason is not None
    assert "a probability of 75 %" in found.reason


def test_without_near_evidence_plain_lora_is_all_there_is() -> None:
    known = evidence(dora_is_better)
    for budget, rows in (("8%", 500), ("0.5%", 5)):
        found = rank(known, minilm_spec(), Budget.parse(budget), rows)
        assert [c.key for c in found.choices] == [Key("lora", 1)]
        assert "no evidence from two clusters" in (found.reason or "")
    rest = rank(known, minilm_spec(), HALF, 500, leave_out=["trec", "rotten-tomatoes"])
    assert "no evidence from two clusters" in (rest.reason or "")


def test_only_what_can_be_served_is_ranked() -> None:
    spec, known = minilm_spec(), evidence(lambda key, s: {"krona": 5.0, "dora": 2.0}.get(key.template, -1.0))
    assert rank(known, spec, HALF, 500).choices[0].key.template == "krona"
    for way in ("peft", "merged"):
        found = rank(known, spec, HALF, 500, serve=way)
        graphs = [build_graph(c.fitted.recipe, spec) for c in found.choices]
        assert {unservable(graph, way, head=True) for graph in graphs} == {None}
        assert len(graphs) > 1
    assert rank(known, spec, HALF, 500, serve="peft").choices[0].key.template == "dora"
    assert rank(known, spec, HALF, 500, serve="merged").choices[0].key.template == "krona"


def test_where_nothing_can_be_served_the_reason_is_told() -> None:
    found = rank(evidence(dora_is_better), minilm_spec(), HALF, 500, serve="vllm")
    assert (found.choices, found.reference) == ((), None)
    assert "vllm" in str(found.reason)


def test_a_budget_that_is_too_small_is_told() -> None:
    found = rank(evidence(dora_is_better), minilm_spec(), Budget.parse(100), 500)
    assert found.choices == ()
    assert found.reference is None
    assert "no recipe of the portfolio fits the budget" in (found.reason or "")


def test_a_lower_limit_holds() -> None:
    found = rank(evidence(dora_is_better), minilm_spec(), Budget.parse("0.4%..0.5%"), 500)
    least = Budget.parse("0.4%..0.5%").limits(minilm_spec())[0]
    assert all(c.fitted.counts.deployed >= least for c in found.choices)


def test_a_task_that_was_trained_on_is_no_evidence_for_itself() -> None:
    def only_trec(key: Key, setting: Setting) -> float:
        return 9.0 if key.template == "krona" and setting.task.startswith("trec") else 0.0

    known = evidence(only_trec, noise=0.1)
    own = rank(known, minilm_spec(), HALF, 500, leave_out=["trec"])
    every = rank(known, minilm_spec(), HALF, 500)
    assert max(c.estimate.observed for c in own.choices if c.estimate) < 0.3
    assert max(c.estimate.observed for c in every.choices if c.estimate) > 1.0


def test_where_lora_fits_the_upper_half_alone_that_is_plain() -> None:
    """Its gains under larger budgets, over LoRA on all layers, are none here."""

    def half(key: Key, setting: Setting) -> float:
        return 4.0 if key.template == "lora, upper half" else 5.0 if key.template == "vera" else 0.0

    found = rank(evidence(half), minilm_spec(), Budget.parse("0.04%"), 500)
    assert found.reference is not None
    assert found.reference.key == Key("lora, upper half", 1)
    assert found.reference.estimate is None
    vera = next(c for c in found.choices if c.key == Key("vera", 0))
    assert vera.estimate is not None
    assert vera.estimate.observed == pytest.approx(1.0, abs=0.2)
