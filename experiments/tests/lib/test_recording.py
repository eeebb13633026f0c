"""Recordings of trained recipes, and what is kept beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from lib import recorded
from lib.parts import part_of
from lib.recording import Recording, Setting
from lib.settings import RESULTS, SETTINGS
from lib.storage import read_rows
from transformers import BertConfig

from autopeft.backbones import spec_of


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Any]:
    def make(rows: list[dict[str, Any]], **more: Any) -> Any:
        path = tmp_path / "trials.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        setting = Setting(
            **{
                "task": "t", "space": "autopeft", "budget": "100%", "rows": None, "steps": 80, "every": 40,
                "random": 4, "mutants": 2, **more,
            }
        )  # fmt: skip
        return Recording(path, setting)

    return make


def missing(recording: Recording, space: Any, part: str = "0/1") -> Iterator[tuple[str, int, int]]:
    recording._part, recording._parts = part_of(part)
    for origin, index, _, _, seed in recording._missing(space.spec):
        yield origin, index, seed


def test_a_recording_goes_on_with_what_it_lacks(record: Callable[..., Any], space: Any, rows: Any) -> None:
    there = [row for row in rows if row["seed"] == 0 and row["index"] in (0, 2)]
    assert list(islice(missing(record(there), space), 2)) == [("random", 1, 0), ("random", 3, 0)]
    assert next(missing(record(there), space, "1/2")) == ("random", 1, 0)
    assert list(islice(missing(record(there, random=3), space, "0/2"), 1)) == [("mutant", 0, 0)]


def test_repeats_lie_evenly_over_the_ranks(record: Callable[..., Any], space: Any, rows: Any) -> None:
    first = [row for row in rows if row["seed"] == 0]
    unique = list({row["hash"]: row for row in first}.values())[:21]
    there = [{**row, "index": i} for i, row in enumerate(unique)]
    recording = record(there, random=21, mutants=0, repeats=5, seeds=3)
    wanted = list(recording._missing(space.spec))
    assert [(origin, seed) for origin, _, _, _, seed in wanted] == [("repeat", 1), ("repeat", 2)] * 5
    ranked = sorted(there, key=lambda row: -row["scores"]["80"])
    assert [values for _, _, values, _, _ in wanted[::2]] == [ranked[i]["values"] for i in (0, 5, 10, 15, 20)]


def test_cross_validation_is_kept_for_the_recording_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any
) -> None:
    path = tmp_path / "trials.jsonl"
    calls: list[int] = []

    def fit(rows: Any, step: int, spec: Any) -> list[Any]:
        calls.append(len(rows))
        return [recorded.Fit("trees", 0.7, 0.4, 0.5)]

    monkeypatch.setattr(recorded, "fit", fit)
    for text, expected in (("a\n", [1]), ("a\n", [1]), ("a\nb\n", [1, 1])):
        path.write_text(text)
        assert recorded._fits([{}], 80, space.spec, tmp_path) == [recorded.Fit("trees", 0.7, 0.4, 0.5)]
        assert calls == expected


def test_recorded_recipes_are_members_of_the_space_that_is_kept_beside_them() -> None:
    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    for name, setting in SETTINGS.items():
        bound = setting.load_space().bind(spec_of(minilm))
        if not RESULTS[name].exists():  # a recording that is still to be made
            continue
        rows = read_rows(RESULTS[name] / "trials.jsonl")
        assert len(rows) >= setting.random + setting.mutants
        for row in rows[::40]:
            bound.check(row["values"])
