from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.runs.documents import Manifest, Result, read_manifest, read_result

RECORDED = Path(__file__).parents[1] / "fixtures" / "runs"
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def recorded(run: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / run / name).read_text())
    return found


def test_the_result_of_a_search() -> None:
    table = recorded("finished", "result.json")
    result = read_result(table)
    assert (result.number, result.metric, result.interrupted) == (4, "accuracy", False)
    assert result.test == tuple(table["test"])
    assert (result.counts.deployed, result.counts.head) == (512, 34)
    assert [b.name for b in result.baselines] == [b["name"] for b in table["baselines"]]
    assert [c.text for c in result.comparisons] == [c["text"] for c in table["comparisons"]]
    assert [p.hypervolume for p in result.hypervolume] == [p["hypervolume"] for p in table["hypervolume"]]
    assert result.selection_bias == table["selection_bias"]
    assert result.recipe == table["recipe"]
    assert (result.confirmed, result.finalists) == (True, 1)
    assert read_result({**table, "confirmed": "yes", "finalists": "2"}).confirmed is False
    assert read_result({**table, "finalists": 2}).finalists == 2


def test_the_result_of_a_fixed_recipe() -> None:
    result = read_result(recorded("fixed", "result.json"))
    assert (result.kind, result.select, result.test_sd) == ("train", (), None)
    assert result.test_mean == pytest.approx(14 / 27)


def test_a_manifest() -> None:
    manifest = read_manifest(recorded("finished", "manifest.json"))
    assert (manifest.task, manifest.model, manifest.seed, manifest.budget) == (
        "reviews.csv",
        "bert",
        0,
        "20%",
    )
    assert (manifest.limits.most, manifest.effort.trials, manifest.training.steps) == (1072, 6, 150)
    assert manifest.data.rows is not None
    assert list(manifest.data.rows) == ["train", "select", "test"]
    assert manifest.backbone.parameters == 5360
    assert read_manifest(recorded("fixed", "manifest.json")).kind == "train"


def test_what_is_unsound_is_left_out_and_the_rest_is_there() -> None:
    result = read_result(
        {
            "metric": ["f1"],
            "test_mean": True,
            "select": [0.5, None, "x", math.nan, 1],
            "counts": {"deployed": "many", "share": 0.1},
            "baselines": [7, {"name": "LoRA", "test": 3}, {"name": None, "counts": []}],
            "hypervolume": [{"steps": 1}, {"steps": 2, "hypervolume": 0.5, "trial": 10**400}],
            "interrupted": "yes",
            "selection_bias": {"value": 0.25},
            "number": 10**400,
            "of_a_later_version": {},
        }
    )
    assert (result.metric, result.test_mean, result.number) == (None, None, None)
    assert result.select == (0.5, 1.0)
    assert (result.counts.deployed, result.counts.share) == (None, 0.1)
    assert [(b.name, b.test) for b in result.baselines] == [("LoRA", ()), (None, ())]
    assert [(p.steps, p.trial) for p in result.hypervolume] == [(2.0, None)]
    assert (result.interrupted, result.selection_bias) == (False, 0.25)


@given(ANY)
def test_any_content_is_read(value: Any) -> None:
    for table in (dict.fromkeys(Result.model_fields, value), value if isinstance(value, dict) else {}):
        result = read_result(table)
        assert all(math.isfinite(score) for score in result.test)
        assert result.seconds is None or math.isfinite(result.seconds)
    manifest = read_manifest(dict.fromkeys(Manifest.model_fields, value))
    assert manifest.seed is None or abs(manifest.seed) < 2**63
    assert manifest.limits.most is None or math.isfinite(manifest.limits.most)
