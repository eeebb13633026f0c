from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.runs.files import plain
from autopeft.runs.records import FrontPoint, Sample, TrialRecord, read_point, read_record, read_samples

RECORD = TrialRecord(
    "trial",
    "trial 3",
    "complete",
    {"layers": [{"attach": ["lora"]}]},
    number=3,
    seed=0,
    steps=60,
    hash="h",
    counts={"deployed": 128, "trained": 130, "share": 0.01},
    score=0.75,
    scores={"select": 0.75},
    seconds=1.5,
    values={"rank": 2, "on": True},
    rungs={"20": 0.5, "60": 0.75},
)
POINT = FrontPoint(3, 128, 0.01, 0.75, "h", "small")
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def line(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(plain(RECORD)))
    return found | changes


def test_what_is_written_comes_back() -> None:
    assert read_record(line()) == RECORD
    assert asdict(read_record(line())) == line(), "with the same keys in the same order"
    assert list(asdict(RECORD)) == list(line())


def test_keys_of_another_version_are_left_out_and_missing_ones_have_defaults() -> None:
    assert read_record(line(memory=3, self=1, __dataclass_self__=2)) == RECORD
    short = {"kind": "test", "label": "t", "state": "failed", "recipe": {}}
    assert read_record(short) == TrialRecord("test", "t", "failed", {})


def test_scores_that_json_cannot_hold_are_left_out() -> None:
    written = plain(replace(RECORD, scores={"select": 0.5, "test": math.nan}))
    assert written["scores"] == {"select": 0.5, "test": None}
    assert read_record(written).scores == {"select": 0.5}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "training"}, "kind"),
        ({"state": "done"}, "state"),
        ({"label": 3}, "label"),
        ({"recipe": None}, "recipe"),
        ({"number": "3"}, "number"),
        ({"number": True}, "number"),
        ({"number": 3.0}, "number"),
        ({"score": "0.9"}, "score"),
        ({"score": True}, "score"),
        ({"score": math.nan}, "finite"),
        ({"score": math.inf}, "finite"),
        ({"steps": 10**400}, "finite"),
        ({"seconds": None}, "seconds"),
        ({"counts": {"deployed": "many"}}, "counts.deployed"),
        ({"counts": {"deployed": -math.inf}}, "finite"),
        ({"scores": [0.5]}, "scores"),
        ({"rungs": {"²": 0.5}}, "rungs"),
        ({"rungs": {"9" * 5000: 0.5}}, "rungs"),
        ({"rungs": {"-1": 0.5}}, "rungs"),
        ({"kept": 1}, "kept"),
    ],
    ids=str,
)
def test_what_is_no_record_names_the_field(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=rf"no record of a run: .*{where}"):
        read_record(line(**change))


@pytest.mark.parametrize("key", ["kind", "label", "state", "recipe"])
def test_what_every_record_has(key: str) -> None:
    found = line()
    del found[key]
    with pytest.raises(ValueError, match=f"no record of a run: {key}"):
        read_record(found)


@given(ANY, st.sampled_from(sorted(asdict(RECORD))))
def test_anything_is_a_record_or_a_value_error(value: Any, key: str) -> None:
    for found in (value, line(**{key: value})):
        try:
            record = read_record(found)
        except ValueError:
            continue
        assert all(math.isfinite(v) for v in (record.seconds, *record.scores.values()))
        assert all(int(step) >= 0 for step in record.rungs)


@given(ANY)
def test_anything_is_a_point_or_a_value_error(value: Any) -> None:
    assert read_point(asdict(POINT)) == POINT
    for found in (value, *({**asdict(POINT), key: value} for key in asdict(POINT))):
        try:
            point = read_point(found)
        except ValueError:
            continue
        assert math.isfinite(point.score)
        assert type(point.deployed) is int


def test_sizes_of_a_record() -> None:
    assert (RECORD.deployed, RECORD.share) == (128, 0.01)
    assert (replace(RECORD, counts=None).deployed, replace(RECORD, counts={}).share) == (None, None)


SAMPLE = Sample("test", 3, prompt="two?", expected="three", written="four", right=False, value=0.0)


def test_samples_come_back() -> None:
    written = json.loads(json.dumps(plain(replace(RECORD, samples=[SAMPLE]))))
    assert read_record(written).samples == [SAMPLE]
    assert read_record(line()).samples is None


@pytest.mark.parametrize(
    "damage",
    [
        *({key: value} for key, value in (("row", "3"), ("prompt", 7), ("right", 1), ("value", math.inf))),
        {"row": None},
    ],
    ids=str,
)
def test_a_sample_that_is_none_costs_no_record(damage: dict[str, Any]) -> None:
    samples = [asdict(SAMPLE) | damage, asdict(SAMPLE) | {"later": 1}, 7, None]
    assert read_record(line(samples=samples)).samples == [SAMPLE]


@given(ANY)
def test_anything_holds_few_samples_of_bounded_length(value: Any) -> None:
    for found in (value, [asdict(SAMPLE) | {"written": value}], [value] * 3):
        assert all(isinstance(sample.written, str) for sample in read_samples(found))
    assert len(read_samples([asdict(SAMPLE)] * 10_000)) < 100
    assert len(read_samples([asdict(SAMPLE) | {"written": "x" * 10**6}])[0].written) <= 2000
