"""The experiment over single methods: recipes, sweep, resumption, table; nothing is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.toy import toy_spec

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.graph import build_graph
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

FOLDER = "single_methods"
PAGE = Path(__file__).parents[2] / "docs/results/each-method-alone.md"
FOLDER_README = Path(__file__).parents[1] / "single_methods" / "README.md"
Import = Callable[[str], Any]


def minilm() -> BackboneSpec:
    from transformers import BertConfig

    return spec_of(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


@pytest.fixture(scope="module")
def run(load: Import) -> Any:
    return load("run")


def test_every_method_is_a_candidate_at_its_defaults(run: Any) -> None:
    without = (
        *(
            "embedding_adapter",
            "hyperformer",
            "intrinsic_prompt",
            "ipa",
            "lorahub",
            "mean_pooling",
            "mixlora",
        ),
        *("pha", "spot", "tpt", "xattn_tuning"),
    )
    methods = [name for name in method_names() if name not in without]
    assert run.candidates() == [run.HEAD, *methods, run.FULL, *run.VARIANTS, *run.HYBRIDS]
    assert set(run.CENTRES) | run.HEAD_ALIKE <= set(run.candidates())
    spec = minilm()
    for name in methods:
        recipe = run.recipe_of(name, 3e-2)
        graph = build_graph(recipe, spec)
        if get_method(name).traits.level == "training":
            assert [p.method for p in recipe.training.policies] == [name]
            assert [e.method.name for e in graph.entries.values()] == [run.HOSTS.get(name, "lora")]
            continue
        head = recipe.training.groups["head"].learning_rate
        assert head == (3e-2 if name in run.HEAD_ALIKE else 1e-3)
        (entry,) = graph.entries.values()
        assert entry.method.config == get_method(name).Config()


def test_a_variant_is_its_method_with_other_options_or_another_rate_of_the_head(run: Any) -> None:
    spec = toy_spec(hidden=8, kv=8)
    for name, variant in run.VARIANTS.items():
        recipe, own = run.recipe_of(name, 0.1), run.recipe_of(variant.method, 0.1)
        assert recipe.training.groups["head"].learning_rate == (variant.head or 0.1)
        assert own.training.groups["head"].learning_rate == 1e-3
        (entry,) = build_graph(recipe, spec).entries.values()
        assert entry.method.name == variant.method
        assert entry.method.config == get_method(variant.method).Config(**variant.options)
        assert build_graph(recipe, spec).trial_hash() != build_graph(own, spec).trial_hash()
        assert run.centre_of(name) == run.centre_of(variant.method)


def test_a_fixed_recipe_keeps_its_training_but_for_the_rates(run: Any) -> None:
    spec = minilm()
    for name, file in run.HYBRIDS.items():
        recipe, own = run.recipe_of(name, 0.1), Recipe.load(file)
        assert recipe.structure_hash() == own.structure_hash()
        data, before = recipe.training.to_data(), own.training.to_data()
        assert {key for key in data if data[key] != before.get(key)} == {"learning_rate", "groups"}
        assert recipe.training.learning_rate == 0.1
        assert recipe.training.groups["head"].learning_rate == 1e-3
    for name in ("mam", "sapa-prefix"):
        new, old = (count(run.recipe_of(n, 0.1), spec) for n in (name, f"{name}, format 1"))
        assert new.deployed - old.deployed == {"mam": 2400, "sapa-prefix": 4896}[name]


def test_rows_of_before_a_default_changed_are_told_by_their_hash(run: Any, tmp_path: Path) -> None:
    spec, path = toy_spec(hidden=8, kv=8), tmp_path / "trials.jsonl"
    runner = run.Runner(path, FakeBench)
    for name in ("prefix_tuning", "lora"):
        runner.score("trec", name, 1, 0, "select")
    bare = Recipe.from_dict({"autopeft": 1, "layers": [{"attach": ["prefix_tuning"]}],
                             "training": run.recipe_of("lora", 3.2e-3).training.to_data()})  # fmt: skip
    row = runner.rows()[0] | {"hash": build_graph(bare, spec).trial_hash(), "score": 0.7}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    names = [(row["method"], row["score"]) for row in runner.labelled(spec)]
    assert names == [("prefix_tuning", 0.9), ("lora", 0.9), ("prefix_tuning, format 1", 0.7)]


@pytest.mark.parametrize(
    ("peak", "expected", "calls"), [(0, 0, 3), (1, 1, 4), (-1, -1, 4), (2, 2, 5), (9, 4, 6), (-9, -4, 6)]
)
def test_the_sweep_goes_on_while_the_best_is_an_end(run: Any, peak: int, expected: int, calls: int) -> None:
    asked: list[int] = []

    def score(point: int) -> float:
        asked.append(point)
        return -float(abs(point - peak))

    assert run.sweep(score, 0) == expected
    assert len(asked) == len(set(asked)) == calls


def test_of_equal_scores_the_one_nearest_to_the_centre_is_taken(run: Any) -> None:
    assert run.sweep(lambda point: 0.5, 2) == 2


def test_rates_are_half_decades(run: Any) -> None:
    assert [run.rate_of(p) for p in (-3, -1, 0, 1, 2)] == [3.2e-5, 3.2e-4, 1e-3, 3.2e-3, 1e-2]


class FakeBench:
    trained = 0

    def __init__(self, task: str) -> None:
        self.spec = toy_spec(hidden=8, kv=8)

    def train(self, name: str, recipe: Any, seed: int, split: str) -> dict[str, Any]:
        FakeBench.trained += 1
        rate = recipe.training.learning_rate
        score = (0.9 if rate == 3.2e-3 else 0.5) - 0.01 * seed
        return {"score": score, "deployed": 1000, "trained": 2000, "cpu_seconds_per_step": 0.25}


def test_what_is_there_is_not_trained_again_and_test_is_seen_by_fresh_seeds_only(
    run: Any, load: Import, tmp_path: Path
) -> None:
    FakeBench.trained = 0
    path = tmp_path / "trials.jsonl"
    for _ in range(2):
        run.Runner(path, FakeBench).method("trec", "lora")
        assert FakeBench.trained == 3 + 3
    rows = run.Runner(path, FakeBench).rows()
    assert {(r["seed"], r["rate"]) for r in rows if r["split"] == "test"} == {(s, 3.2e-3) for s in (1, 2, 3)}
    assert {r["seed"] for r in rows if r["split"] == "select"} == {0}
    text = load("tables").tables(rows, ("trec",), {})
    assert "| lora | 88.0 ± 1.0 | 3.2e-03 | 1,000 | 2,000 | not measured |" in text


def test_stability_asks_lower_rates_of_the_seeds_of_the_test_on_select(
    run: Any, load: Import, tmp_path: Path
) -> None:
    stability, runner = load("stability"), run.Runner(tmp_path / "trials.jsonl", FakeBench)
    found = stability.stability(runner, "trec", "lora")
    assert [rate for rate, _ in found] == [3.2e-3, 1e-3, 3.2e-4]
    assert found[0][1] == pytest.approx([0.89, 0.88, 0.87])
    assert {row["split"] for row in runner.rows()} == {"select"}
    cells = stability.line("trec", "lora", found).split(" | ")
    assert cells[:3] == ["| lora", "trec", "3.2e-03: 88.0 ± 1.0 (worst 87.0)"]


def test_the_table_has_every_method_that_all_tasks_have_tested(load: Import) -> None:
    def rows(method: str, task: str, *scores: float, **more: Any) -> list[dict[str, Any]]:
        row = {"method": method, "task": task, "split": "test", "rate": 1e-3, "cpu_seconds_per_step": 0.5}
        return [{**row, "deployed": i, "trained": 9, "score": s, **more} for i, s in enumerate(scores)]

    found = [
        *rows("lora", "a", 0.5, 0.7), *rows("lora", "b", 0.9, 0.9), *rows("ia3", "a", 0.8, 0.8),
        *rows("ia3", "b", 0.8, 0.8), *rows("only_one", "a", 1.0, 1.0),
        *rows("broken", "a", 0.1, 0.1, error="it says why"), *rows("broken", "b", 0.1, 0.1),
    ]  # fmt: skip
    tables = load("tables")
    costs = {"lora": [(0.5, 1.0), (0.6, 1.0), (1.8, 2.0)]}
    _, _, *lines = tables.tables(found, ("a", "b"), costs).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| ia3", "| lora", "| broken"]
    assert lines[1] == "| lora | 60.0 ± 14.1 | 1.0e-03 | 90.0 ± 0.0 | 1.0e-03 | 1 | 9 | 0.600 (0.60) |"
    assert "it says why" in lines[2]


def test_costs_of_before_a_default_changed_have_their_own_name(load: Import, tmp_path: Path) -> None:
    tables = load("tables")
    now, before = tmp_path / "now.json", tmp_path / "before.json"
    before.write_text(json.dumps({"rounds": {"sora": [0.3, 0.5], tables.FULL: [1.0, 1.0]}}))
    assert tables.measured(now, before) == {
        "sora, format 1": [(0.3, 1.0), (0.5, 1.0)], "full fine-tuning, format 1": [(1.0, 1.0)] * 2
    }  # fmt: skip
    now.write_text(json.dumps({"rounds": {"sora": [0.4], tables.FULL: [2.0]}}))
    rows = [
        {"method": name, "task": "a", "split": "test", "rate": 1.0, "deployed": 1, "trained": 1, "score": 0.5}
        for name in ("sora", "sora, format 1", "sora, other", "sora, other, format 1") for _ in "12"
    ]  # fmt: skip
    _, _, *lines = tables.tables(rows, ("a",), tables.measured(now, before)).splitlines()
    assert {line.split(" | ")[0]: line.split(" | ")[-1] for line in lines} == {
        "| sora": "0.400 (0.20) |", "| sora, other": "0.400 (0.20) |",
        "| sora, format 1": "0.400 (0.40) |", "| sora, other, format 1": "0.400 (0.40) |",
    }  # fmt: skip


def test_the_page_has_the_table_of_what_is_recorded_with_every_candidate(run: Any, load: Import) -> None:
    _, _, below = PAGE.read_text(encoding="utf-8").partition("<!-- single-methods -->\n\n")
    shown = below.partition("\n\n")[0]
    table = load("tables")
    rows = run.Runner(run.TRIALS).labelled(minilm())
    assert shown == table.tables(rows, run.TASKS, table.measured())
    names = [line.strip("| ").partition(" | ")[0] for line in shown.splitlines()[2:]]
    before = {name for name in names if name.endswith(table.FORMER) and name not in run.HYBRIDS}
    assert "prefix_tuning, format 1" in before
    (untrained,) = re.findall(
        r"^Not in the table yet: (.*)\.$", FOLDER_README.read_text(encoding="utf-8"), re.M
    )
    today = [name for name in names if name not in before]
    assert sorted([*today, *re.findall(r"`([^`]+)`", untrained)]) == sorted(run.candidates())


def test_costs_are_taken_in_turns_and_every_round_starts_elsewhere(load: Import) -> None:
    asked: list[str] = []

    def train(name: str, number: int) -> float:
        asked.append(name)
        return float(number)

    found = load("cost").costs(train, ["a", "b", "c"], 3)
    assert "".join(asked) == "abcbcacab"
    assert found == {name: [0.0, 1.0, 2.0] for name in "abc"}
