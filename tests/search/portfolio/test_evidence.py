"""The shipped data agree with templates and clusters, and what is read is what was recorded."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from support.evidence import TASKS, evidence, minilm_spec, recorded, text_of

from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.search.portfolio.evidence import (
    FILE,
    REFERENCES,
    BackboneShare,
    Key,
    Setting,
    read_evidence,
    reference_of,
    shipped_evidence,
)
from autopeft.search.portfolio.recommend import own_clusters
from autopeft.search.portfolio.templates import templates
from autopeft.tasks import cluster_of, list_tasks
from autopeft.tasks.packaged import PACKAGED

LORA = Key("lora", 1)


def bert_points(key: Key, setting: Setting) -> float:
    return {"dora": 1.5, "krona": -2.0}.get(key.template, 0.0)


# --- what the package ships ---


def share_of(here: BackboneShare) -> float:
    return here.share


def test_the_shipped_evidence_is_of_the_templates_and_of_tasks_in_one_cluster() -> None:
    found = shipped_evidence()
    rates = {t.name: len(t.rates.at) for t in templates()}
    assert found.observations
    for o in found.observations:
        assert o.key.rate < rates[o.key.template]
        assert PACKAGED[o.setting.task].cluster == o.cluster == cluster_of(o.setting.task)
    assert set(found.references.values()) <= {Key(name, rates[name] // 2) for name in REFERENCES}
    assert all(abs(o.gain) <= 100 for o in found.observations)


def test_every_recipe_of_the_shipped_evidence_has_a_cost() -> None:
    found = shipped_evidence()
    seen = {(BackboneShare(o.setting.model, o.share), o.key) for o in found.observations}
    assert seen <= set(found.costs)
    assert all(0.2 < cost < 5 for cost in found.costs.values())
    large = max(found.references, key=share_of)
    assert found.costs[large, found.references[large]] == 1.0


def test_the_shipped_file_is_small_and_of_budgets_that_its_recipes_fit() -> None:
    text = files("autopeft.search.portfolio").joinpath(FILE).read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    told = json.loads(text)
    sizes = {t.name: {None, *t.sizes} for t in templates()}
    for model in told["models"].values():
        assert all(size in sizes[name] for name, _, size, _ in model["recipes"])
        for share, members in model["budgets"]:
            assert 0 < share < 0.1
            assert len({tuple(model["recipes"][i][:2]) for i in members}) == len(members)
    for line in told["settings"]:
        assert len(line["scores"]) == len(told["models"][line["model"]]["recipes"])


@pytest.mark.parametrize("task", PACKAGED)
def test_no_shipped_training_on_texts_of_a_task_is_evidence_for_it(task: str) -> None:
    left = shipped_evidence().without(own_clusters(task, None))
    shared = {other.name for other in PACKAGED.values() if other.cluster == PACKAGED[task].cluster}
    assert not shared & {o.setting.task for o in left.observations}
    assert not shared & {setting.task for setting in left.trainings}


def test_every_packaged_task_is_in_one_cluster_and_those_that_share_texts_in_the_same() -> None:
    assert all(task.cluster for task in PACKAGED.values())
    assert PACKAGED["trec"].cluster == PACKAGED["trec-fine"].cluster
    reviews = {PACKAGED[name].cluster for name in ("movie-sentences", "subjectivity", "word-swap")}
    assert len(reviews) == 1
    assert PACKAGED["sms-spam"].cluster == "sms-spam"
    assert cluster_of("sst2") == cluster_of("glue/SST-2") == reviews.pop()
    assert cluster_of("cola") is None
    assert cluster_of("reviews.csv") is None
    assert {t.name: t.cluster for t in list_tasks()}["trec-fine"] == "trec"


# --- there and back ---


def test_gains_are_over_plain_lora_in_the_same_setting() -> None:
    found = evidence(lambda key, s: bert_points(key, s) + (3.0 if s.seed else 0.0))
    dora = [o for o in found.observations if o.key.template == "dora"]
    assert {round(o.gain, 6) for o in dora} == {1.5}
    assert {o.setting.task for o in dora} == set(TASKS)
    own = {o: found.references[BackboneShare(o.setting.model, o.share)] for o in found.observations}
    assert not [o for o, reference in own.items() if o.key == reference]
    # At 0.04 % no LoRA fits on all layers.
    small = min(found.references, key=share_of)
    assert found.references[small] == Key("lora, upper half", 1)
    assert found.references[max(found.references, key=share_of)] == LORA


def test_costs_are_over_lora_on_all_layers_at_every_budget() -> None:
    found = evidence(bert_points)
    large, small = max(found.references, key=share_of), min(found.references, key=share_of)
    assert found.costs[large, LORA] == pytest.approx(1.0)
    half = Key("lora, upper half", 1)
    assert found.costs[large, Key("dora", 0)] == found.costs[small, half] == pytest.approx(0.5)


def test_costs_need_no_training_at_the_lower_rate() -> None:
    rows = [row for row in recorded(bert_points) if row["rate"] or row["template"] != "lora"]
    found = read_evidence(text_of(rows))
    whole = evidence(bert_points).costs
    assert found.costs == {place: cost for place, cost in whole.items() if place[1] != Key("lora", 0)}
    assert found.costs[max(found.references), Key("dora", 0)] == pytest.approx(0.5)


def test_a_recipe_that_two_budgets_lead_to_counts_under_both() -> None:
    found = evidence(bert_points)
    both = [o for o in found.observations if o.key == Key("krona", 0) and o.setting.task == "trec"]
    shares = {here.share for here in found.references}
    assert {o.share for o in both} == shares - {min(shares)}
    total = sum(found.trainings.values())
    assert total == len(list(recorded(bert_points)))


def test_a_cluster_is_left_out_as_a_whole() -> None:
    found = evidence(bert_points)
    rest = found.without(["trec"])
    assert {o.setting.task for o in rest.observations} == set(TASKS) - {"trec", "trec-fine"}
    assert not [s for s in rest.trainings if s.task.startswith("trec")]
    assert set(found.clusters) - set(rest.clusters) == {"trec"}


def test_what_was_trained_otherwise_is_left_out() -> None:
    rows = list(recorded(bert_points, seeds=1))
    other = [{**row, "hash": "gone"} for row in rows[:3]] + [{**row, "steps": 200} for row in rows[:3]]
    assert text_of([*rows, *other]) == text_of(rows)


def test_without_plain_lora_a_setting_says_nothing() -> None:
    rows = [row for row in recorded(bert_points, seeds=1) if row["template"] not in REFERENCES]
    assert read_evidence(text_of(rows)).observations == ()
    assert reference_of([Key("vera", 1), Key("krona", 0)]) is None


def test_plain_lora_is_at_the_middle_rate_of_the_most_spread_template() -> None:
    rates = [Key(name, rate) for name in reversed(REFERENCES) for rate in (2, 0, 1)]
    assert reference_of(rates) == Key(REFERENCES[0], 1)
    assert reference_of([key for key in rates if key.rate < 2]) == Key(REFERENCES[0], 1)
    assert reference_of([key for key in rates if key.template != REFERENCES[0]]) == Key(REFERENCES[1], 1)


def test_readings_travel_along_and_decide_by_backbone() -> None:
    def reading(task: str, own: float, mean: float) -> dict[str, Any]:
        return {"model": "minilm", "task": task, "rows": 500, "seed": 0, "own": own, "mean": mean}

    told = [reading("trec", 1.0, 0.5), reading("sms-spam", 0.3, 0.2), reading("subjectivity", 0.3, 0.4)]
    known = read_evidence(text_of(recorded(bert_points, seeds=1), readings=told))
    assert known.readings[Setting("minilm", "trec", 500, 0)] == (1.0, 0.5)
    assert known.pooling("minilm") == "mean"
    assert known.pooling("mpnet-base") == "own"
    assert known.without(["trec"]).pooling("minilm") == "own"  # one of two
    hardly = [reading("trec", 1.0, 0.98), reading("sms-spam", 1.0, 0.5), reading("subjectivity", 1.0, 0.99)]
    known = read_evidence(text_of(recorded(bert_points, seeds=1), readings=hardly))
    assert sorted(known.pooling_found("minilm")) == ["mean", "own", "own"], "what a search takes for better"
    assert known.pooling("minilm") == "own"


def test_other_formats_and_unknown_tasks_are_refused() -> None:
    with pytest.raises(AutoPEFTError, match="format 7"):
        read_evidence('{"format": 7}')
    row = next(recorded(bert_points))
    text = text_of([row]).replace('"trec"', '"nobody-knows"')
    with pytest.raises(AutoPEFTError, match="'nobody-knows', which is in no cluster"):
        read_evidence(text)


def test_the_synthetic_backbone_is_of_the_real_ones_size() -> None:
    assert Budget.parse("0.5%").limits(minilm_spec())[1] == pytest.approx(113_566, rel=0.05)
