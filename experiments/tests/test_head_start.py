"""What is trained for the question of the head's start, and how it is summed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe import Recipe

FOLDER = "head_start"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def row(run: Any, start: str, score: float, **more: Any) -> dict[str, Any]:
    base = {"part": "spread", "task": "trec", "rows": 2000, "steps": 60, "recipe": "lora", "hash": "0" * 64}
    base["seed"] = 0
    return {**base, **more, "start": start, "scores": {"test": score}}


def test_every_recipe_can_be_built_on_the_backbone_within_a_percent(run: Any) -> None:
    from transformers import BertConfig

    spec = spec_of(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )
    for name, body in run.RECIPES.items():
        graph = build_graph(Recipe.from_dict({"name": "measured", **body}), spec)
        assert graph.trial_hash()
        assert set(run.SPREAD) | set(run.SMALL) | set(run.SMALL_MEAN) >= {name}
        assert run.recipe_of(name, True).to_dict()["model"] == [{"mean_pooling": {"pooler": False}}]


def test_both_starts_of_a_pair_stand_side_by_side(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_hash", lambda name, read_mean: f"{name}, {read_mean}")
    few = 4 * 4 * 3 * 3
    for part, count in (("spread", 6 * 4 * 3), ("few", few), ("few-mean", few), ("long", 3 * 3 * 2)):
        found = list(run.needed(part))
        assert len(found) == 2 * count
        assert len(set(found)) == len(found)
        assert [t.start for t in found[:4]] == ["random", "probe", "random", "probe"]


def test_the_spread_is_pooled_and_collapses_are_counted(run: Any) -> None:
    assert run.pooled([[0.8, 0.9], [0.5, 0.5, 0.5]]) == pytest.approx((0.005 / 3) ** 0.5)
    assert run.collapses([[0.9, 0.91, 0.92, 0.8], [0.5, 0.47, 0.5]]) == 1


def test_differences_are_those_of_pairs(run: Any) -> None:
    rows = [
        row(run, "random", 0.80),
        row(run, "probe", 0.85),
        row(run, "random", 0.90, seed=1),
        row(run, "probe", 0.88, seed=1),
        row(run, "random", 0.10, seed=2),
    ]
    assert run.differences(rows) == {("trec", "lora"): pytest.approx([0.05, -0.02])}
    text = run.tables(rows)
    assert "| trec | lora | 60.0 (sd 43.6) | 86.5 (sd 2.1) |" in text
    assert "probe: pooled sd 2.12 points, 0 collapsed." in text


def test_probes_of_full_length_stand_beside_shortened_ones(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "FULL_LENGTH", tmp_path / "full_length.jsonl")
    rows = [row(run, "random", 0.80), row(run, "probe", 0.85), row(run, "random", 0.90, seed=1)]
    long = [row(run, "probe", 0.70), row(run, "probe", 0.95, seed=1), row(run, "probe", 0.5, rows=500)]
    run.FULL_LENGTH.write_text("".join(json.dumps(line) + "\n" for line in long))
    assert "| 2,000 | 1 | -10.0, -10.0 | +5.0, +5.0 |" in run.tables(rows)


def test_each_recipe_has_a_line_for_the_most_of_few_rows(run: Any) -> None:
    few = {"part": "few", "rows": 500}
    rows = [
        row(run, start, score, seed=seed, **few)
        for seed, pair in enumerate(((0.5, 0.6), (0.7, 0.68)))
        for start, score in zip(run.STARTS, pair, strict=True)
    ]
    assert "| 500 | lora | 2 | +4.0, -2.0 |" in run.tables(rows)


def test_heads_that_read_the_mean_have_rows_of_their_own(run: Any) -> None:
    few = {"part": "few-mean", "rows": 100}
    rows = [
        row(run, "random", 0.5, **few),
        row(run, "probe", 0.6, **few),
        row(run, "random", 0.7, seed=1, **few),
        row(run, "probe", 0.7, seed=1, probed=False, **few),
    ]
    rows += [row(run, start, 0.5, part="long", steps=n) for n in (200, 500) for start in run.STARTS]
    text = run.tables(rows)
    assert "| mean | 100 | 60, 120 | 2 | 1 | +5.0 " in text
    assert "| mean | 2,000 | 200 | 1 | 1 | +0.0 " in text
    assert "| mean | 2,000 | 500 | 1 | 1 | +0.0 " in text
    assert "| 100 | lora | 2 | +5.0, +0.0 |" in text
