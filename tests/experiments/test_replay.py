"""Replays of recorded trials: surrogate, noise, bookkeeping of steps; nothing is trained."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.landscape import bound_space

from autopeft.counting import Budget
from autopeft.graph import build_graph
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space

FOLDER = "replay"
Import = Callable[[str], Any]
SPACE = bound_space("autopeft", layers=3)
NOISE = 0.02


def worth(values: dict[str, Any]) -> float:
    """More layers and a larger parallel adapter are better."""
    choices = SPACE.parameter("parallel_adapter.bottleneck")
    size = dict(zip(choices.choices, choices.sizes, strict=True))[values["parallel_adapter.bottleneck"]]
    on = sum(values[f"layer_{i}.on"] for i in range(3))
    return 0.4 + 0.3 * on / 3 + 0.2 * math.log1p(size) / math.log(65)


def recording(recipes: int, repeats: int) -> list[dict[str, Any]]:
    """Rows as a recording has them; the noise of a training is the same at both of its steps."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    rows = []
    for index in range(recipes):
        point = repair(SPACE, SPACE.sample(draw), Budget.parse("100%"))
        for seed in range(3 if index < repeats else 1):
            off = float(noise.normal(0.0, NOISE))
            rows.append(
                {
                    "hash": build_graph(point.recipe, SPACE.spec).trial_hash(), "seed": seed, "index": index,
                    "origin": "repeat" if seed else "random", "values": point.values,
                    "recipe": point.recipe.to_dict(), "deployed": point.counts.deployed,
                    "scores": {"40": worth(point.values) - 0.1 + off, "80": worth(point.values) + off},
                }
            )  # fmt: skip
    return rows


ROWS = recording(120, 30)


@pytest.fixture(scope="module")
def ground(load: Import) -> Any:
    surrogate = load("surrogate").Surrogate(ROWS, (40, 80), "boosting", SPACE.spec)
    return load("replay").Ground(Space.named("autopeft"), "100%", SPACE.spec, surrogate)


def test_regressions_are_ranked_by_what_they_say_of_unseen_recipes(load: Import) -> None:
    fits = load("surrogate").fit(ROWS, 80, SPACE.spec, folds=4, rounds=1)
    assert [f.rank for f in fits] == sorted((f.rank for f in fits), reverse=True)
    assert {f.model for f in fits} == set(load("surrogate").MODELS)
    assert fits[0].rank > 0.85
    assert fits[0].r2 > 0.7


def test_a_recording_of_noise_predicts_nothing(load: Import) -> None:
    noise = np.random.default_rng(1)
    rows = [{**row, "scores": {"80": float(noise.normal())}} for row in ROWS if row["seed"] == 0]
    assert load("surrogate").fit(rows, 80, SPACE.spec, folds=4, rounds=1)[0].rank < 0.4


def test_features_tell_recipes_apart_by_what_is_in_them(load: Import) -> None:
    features = load("surrogate").features
    layers = [{"at": [0, 2], "attach": [{"lora": {"rank": 4, "sites": ["q", "v"]}}]}]
    found = features({"layers": layers}, SPACE.spec)
    assert found["lora rank"] == pytest.approx(math.log1p(4))
    assert found["lora layers"] == 2
    assert (found["lora in layer 0"], found["lora in layer 2"]) == (1, 1)
    assert "lora in layer 1" not in found
    assert found["lora at q"] == 1
    assert "lora at k" not in found
    assert "lora learning rate" not in found
    rates = {"learning_rate": 1e-3, "groups": {"lora": {"learning_rate": 1e-2}}}
    found = features({"layers": layers, "training": rates}, SPACE.spec)
    assert (found["learning rate"], found["lora learning rate"]) == pytest.approx((2.0, 3.0))


def test_noise_is_that_of_the_repeats_and_of_one_training_at_every_step(load: Import, ground: Any) -> None:
    surrogate = load("surrogate")
    assert surrogate.noise_of(ROWS, (40, 80)) == pytest.approx([NOISE, NOISE], rel=0.2)
    row, rng = ROWS[0], np.random.default_rng(0)
    true = ground.surrogate.score(row["recipe"], row["hash"])
    drawn = [ground.surrogate.measured(row["recipe"], row["hash"], rng) for _ in range(400)]
    off = np.array([[d[step] - true[step] for step in (40, 80)] for d in drawn])
    assert off[:, 0] == pytest.approx(off[:, 1])
    assert off.std() == pytest.approx(NOISE, rel=0.4)
    assert abs(off.mean()) < NOISE / 2


def test_repeats_count_as_one_recipe_with_their_mean(load: Import) -> None:
    recipes, scores = load("surrogate").means(ROWS, (40, 80))
    assert len(recipes) == len(scores) == len({row["hash"] for row in ROWS})
    first = [row["scores"]["80"] for row in ROWS if row["hash"] == ROWS[0]["hash"]]
    assert len(first) >= 3
    assert scores[0, 1] == pytest.approx(np.mean(first))


def test_a_replay_without_rungs_trains_every_recipe_to_the_end(load: Import, ground: Any) -> None:
    run = load("replay").replay
    found = run(ground, sampler="random", seed=1, trials=15, rungs=Rungs.of(80))
    assert [t.steps for t in found] == [80 * (i + 1) for i in range(15)]
    assert len({t.hash for t in found}) == 15
    assert all(abs(t.measured - t.true) < 6 * NOISE for t in found)
    assert found == run(ground, sampler="random", seed=1, trials=15, rungs=Rungs.of(80))
    assert found != run(ground, sampler="random", seed=2, trials=15, rungs=Rungs.of(80))


def test_a_replay_with_rungs_pays_for_the_steps_that_were_trained(load: Import, ground: Any) -> None:
    rungs = Rungs.of(80, first=40, eta=2)
    found = load("replay").replay(ground, sampler="random", seed=1, trials=16, rungs=rungs, objectives=2)
    # Sixteen to step 40, and 40 more for each that went on.
    assert 8 <= len(found) < 16
    assert found[-1].steps <= 16 * 40 + len(found) * 40
    assert all(a.steps < b.steps for a, b in pairwise(found))
    assert all(t.steps % 40 == 0 for t in found)


def test_the_best_is_at_least_what_any_search_finds(load: Import, ground: Any) -> None:
    best = ground.best(draws=60, climbs=2, patience=30)
    found = load("replay").replay(ground, sampler="tpe", seed=0, trials=12, rungs=Rungs.of(80))
    assert best >= max(t.true for t in found) - 0.02


def test_results_are_kept_while_they_belong_to_the_same_recording(load: Import, tmp_path: Path) -> None:
    kept = load("common").Kept
    calls: list[str] = []

    def make() -> int:
        calls.append("made")
        return 3

    path = tmp_path / "results.json"
    assert kept(path, {"rows": 1}).get("a", make) == 3
    assert kept(path, {"rows": 1}).get("a", make) == 3
    assert kept(path, {"rows": 2}).get("a", make) == 3
    assert calls == ["made", "made"]


def test_processes_side_by_side_keep_what_each_makes(load: Import, tmp_path: Path) -> None:
    kept, path = load("common").Kept, tmp_path / "results.json"
    one, other = kept(path, {"n": 1}), kept(path, {"n": 1})
    assert (one.get("a", lambda: 1), other.get("b", lambda: 2), one.get("c", lambda: 3)) == (1, 2, 3)
    assert kept(path, {"n": 1}).results == {"a": 1, "b": 2, "c": 3}


def test_the_winner_is_the_best_of_three_finalists_in_further_trainings(load: Import) -> None:
    module, trained = load("samplers"), load("replay").Trained

    class Further:
        steps = (40, 80)

        def measured(self, recipe: Any, key: str, rng: Any) -> dict[int, float]:
            return {40: 1.0, 80: {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.9}[key]}

    # Recipe a was trained twice, and d is the fourth of them.
    order = [("a", 0.95), ("a", 0.9), ("b", 0.8), ("c", 0.75), ("d", 0.7)]
    ranked = [trained(80, measured, 0.5, 10, 0.1, key, {}) for key, measured in order]
    assert module.confirmed(ranked, Further(), np.random.default_rng(0)).hash == "b"


def test_the_table_tells_which_samplers_are_worse_than_the_best(load: Import) -> None:
    module = load("samplers")
    noise = [0.1 * (i % 3) for i in range(30)]

    def course(level: float) -> dict[str, list[float]]:
        return {str(m): [level + n for n in noise] for m in module.MARKS}

    few = {m: [2.25 - v for v in values[:10]] for m, values in course(0.0).items()}
    lines = module._table("regret", {"a": course(2.0), "b": course(3.0), "few": few}, -1.0)
    assert lines[2].count("|  |") == 3
    assert lines[3].count("**1.00 ± 0.00**") == 3
    assert "**" not in lines[4]
    assert lines[4].count("±") == 6


def test_an_interval_is_students(load: Import) -> None:
    mean, half = load("common").interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)


# Recordings
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(load: Import, tmp_path: Path) -> Callable[..., Any]:
    module = load("recording")

    def make(rows: list[dict[str, Any]], **more: Any) -> Any:
        path = tmp_path / "trials.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        setting = module.Setting(
            **{
                "task": "t", "space": "autopeft", "budget": "100%", "rows": None, "steps": 80, "every": 40,
                "random": 4, "mutants": 2, **more,
            }
        )  # fmt: skip
        return module.Recording(path, setting)

    return make


def missing(recording: Any, part: int = 0, parts: int = 1) -> Iterator[tuple[str, int, int]]:
    recording._part, recording._parts = part, parts
    for origin, index, _, _, seed in recording._missing(SPACE.spec):
        yield origin, index, seed


def test_a_recording_goes_on_with_what_it_lacks(record: Callable[..., Any]) -> None:
    there = [row for row in ROWS if row["seed"] == 0 and row["index"] in (0, 2)]
    assert list(islice(missing(record(there)), 2)) == [("random", 1, 0), ("random", 3, 0)]
    assert next(missing(record(there), 1, 2)) == ("random", 1, 0)
    assert list(islice(missing(record(there, random=3), 0, 2), 1)) == [("mutant", 0, 0)]


def test_repeats_lie_evenly_over_the_ranks(record: Callable[..., Any]) -> None:
    first = [row for row in ROWS if row["seed"] == 0]
    unique = list({row["hash"]: row for row in first}.values())[:21]
    rows = [{**row, "index": i} for i, row in enumerate(unique)]
    recording = record(rows, random=21, mutants=0, repeats=5, seeds=3)
    wanted = list(recording._missing(SPACE.spec))
    assert [(origin, seed) for origin, _, _, _, seed in wanted] == [("repeat", 1), ("repeat", 2)] * 5
    ranked = sorted(rows, key=lambda row: -row["scores"]["80"])
    assert [values for _, _, values, _, _ in wanted[::2]] == [ranked[i]["values"] for i in (0, 5, 10, 15, 20)]


def test_a_line_that_was_cut_off_is_neither_read_nor_kept(load: Import, tmp_path: Path) -> None:
    module, path = load("recording"), tmp_path / "trials.jsonl"
    module.append_row(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert module.read_rows(path) == [{"a": 1}]
    module.append_row(path, {"a": 3})
    assert module.read_rows(path) == [{"a": 1}, {"a": 3}]
    assert module.read_rows(tmp_path / "none.jsonl") == []


# Against the paper
# ---------------------------------------------------------------------------------------------------------


def test_a_code_of_the_paper_is_a_member_of_the_space(load: Import, ground: Any) -> None:
    against = load("against_paper")
    values = against.values_of((0, 9, 10, 0, 1, 0), ground)
    assert against.code_of(values, ground) == (0, 9, 10, 0, 1, 0)
    assert values == {
        "serial_adapter.bottleneck": "hidden/1",
        "parallel_adapter.bottleneck": 1,
        "prefix_tuning.length": 0,
        "layer_0.on": True,
        "layer_1.on": False,
        "layer_2.on": True,
    }
    SPACE.check(values)


def test_tables_say_when_the_papers_hypervolume_was_reached(load: Import, tmp_path: Path) -> None:
    against = load("against_paper")
    kept = load("common").Kept(tmp_path / "x.json", {})

    def course(end: float, every: int) -> dict[str, list[float]]:
        steps = [80.0 * i for i in range(1, 201)]
        rising = [end * min(1.0, s / every) for s in steps]
        return {"steps": steps, "true": rising, "measured": rising}

    for arm, every in (("paper", 16000), ("ours", 3200), ("ours, rungs", 8000), ("random", 32000)):
        for seed in range(3):
            kept.results[f"{arm}/{seed}"] = course(4.0 + 0.01 * seed + 0.02 * (arm != "paper"), every)
    lines = against.tables(kept, 80).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines[:6]}
    assert "3 of 3, 3 within 25 %" in rows["ours"]
    assert "20%" in rows["ours"]
    assert "3 of 3, 0 within 25 %" in rows["ours, rungs"]
    assert "never" in rows["random"]


def test_the_papers_search_stays_in_its_space(load: Import) -> None:
    pytest.importorskip("botorch")
    pytest.importorskip("numpyro")
    paper = load("paper")
    search = paper.Paper(3, lambda code: (sum(code[:3]) / 3, 0.5), seed=0)
    assert not search.allowed((10, 10, 10, 0, 0, 0))
    assert not search.allowed((0, 1, 2, 1, 1, 1))
    near = search.neighbours((10, 9, 10, 0, 1, 1))
    assert set(near) == {(9, 9, 10, 0, 1, 1), (10, 8, 10, 0, 1, 1), (10, 9, 9, 0, 1, 1),
                         (10, 9, 10, 0, 0, 1), (10, 9, 10, 0, 1, 0)}  # fmt: skip
    assert all(search.allowed(search._draw()) for _ in range(50))
    given = [(0, 1, 2, 0, 0, 0), (3, 4, 5, 0, 0, 0)]
    again = paper.Paper(3, lambda code: (1.0, 0.5), seed=0, first=given)
    assert next(again.run()) == 4
    assert again.codes[:2] == given


class _Counting:
    """A trainer that trains nothing."""

    def __init__(self, setting: Any) -> None:
        self.setting, self.trained = setting, 0

    def train(self, recipe: Any, seed: int) -> dict[str, Any]:
        self.trained += 1
        return {"scores": {} if self.trained == 3 else {"40": 0.1, "80": 0.2}, "cpu_seconds": 1.0}


def test_a_real_run_trains_what_nobody_has_trained(load: Import, tmp_path: Path) -> None:
    confirm, path = load("confirm"), tmp_path / "confirmed.jsonl"
    recipe = ROWS[0]["recipe"]
    known = [
        {"hash": "a", "seed": 0, "precision": "fp32", "scores": {"40": 0.5, "80": 0.6}},
        {"hash": "b", "seed": 0, "precision": "bf16", "scores": {"40": 0.5, "80": 0.6}},
        {"hash": "c", "seed": 1, "precision": "fp32", "scores": {"40": 0.5, "80": 0.6}},
    ]
    trainer = _Counting(load("settings").SETTINGS["autopeft"])
    real = confirm.Real(path, known, trainer)
    assert real.steps == (40, 80)
    assert real.score(recipe, "a") == {40: 0.5, 80: 0.6}
    assert trainer.trained == 0
    assert [real.score(recipe, key)[80] for key in ("b", "c", "b", "d")] == [0.2, 0.2, 0.2, 0.0]
    assert trainer.trained == 3
    again = confirm.Real(path, known, trainer)
    assert again.measured(recipe, "b", np.random.default_rng(0)) == {40: 0.1, 80: 0.2}
    assert trainer.trained == 3


def test_cross_validation_is_kept_for_the_recording_it_belongs_to(
    load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common, path = load("common"), tmp_path / "trials.jsonl"
    calls: list[int] = []

    def fit(rows: Any, step: int, spec: Any) -> list[Any]:
        calls.append(len(rows))
        return [common.Fit("trees", 0.7, 0.4, 0.5)]

    monkeypatch.setattr(common, "fit", fit)
    for text, expected in (("a\n", [1]), ("a\n", [1]), ("a\nb\n", [1, 1])):
        path.write_text(text)
        assert common._fits([{}], 80, SPACE.spec, tmp_path) == [common.Fit("trees", 0.7, 0.4, 0.5)]
        assert calls == expected


def test_recorded_recipes_are_members_of_the_space_that_is_kept_beside_them(load: Import) -> None:
    settings, recording = load("settings"), load("recording")
    from transformers import BertConfig

    from autopeft.backbones import spec_of

    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    for name, setting in settings.SETTINGS.items():
        bound = setting.load_space().bind(spec_of(minilm))
        rows = recording.read_rows(settings.FOLDERS[name] / "trials.jsonl")
        assert len(rows) >= setting.random + setting.mutants
        for row in rows[::40]:
            bound.check(row["values"])


# Width
# ---------------------------------------------------------------------------------------------------------


def test_the_best_of_so_many_random_recipes_is_what_drawing_them_gives(load: Import) -> None:
    width, rng = load("width"), np.random.default_rng(0)
    scores = rng.beta(5, 2, 40)
    drawn = rng.choice(scores, (20_000, width.DRAWN)).max(axis=1)
    assert width.best_of(scores) == pytest.approx(drawn.mean(), abs=3e-3)
    assert width.best_of(np.array([0.5])) == 0.5


def test_a_difference_of_spaces_is_the_wider_less_the_narrow_with_its_interval(load: Import) -> None:
    width, rng = load("width"), np.random.default_rng(1)
    narrow, wide = rng.normal(0.70, 0.05, 160), rng.normal(0.75, 0.05, 100)
    before, after, (value, low, high) = width.compare(width.MEASURES["mean score"], (narrow, wide))
    assert value == pytest.approx(after[0] - before[0])
    assert value == pytest.approx(wide.mean() - narrow.mean())
    half = 1.96 * np.sqrt(narrow.var() / 160 + wide.var() / 100)
    assert (low, high) == pytest.approx((value - half, value + half), abs=2e-3)
    assert f"{100 * value:.1f} (" in width.table((narrow, wide)).splitlines()[2]


def test_only_first_trainings_of_random_recipes_count(
    load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, settings = load("width"), load("settings")
    monkeypatch.setitem(settings.FOLDERS, "width", tmp_path)
    rows = [
        {"origin": "random", "seed": 0, "scores": {"40": 0.6, "80": 0.7}},
        {"origin": "random", "seed": 0, "scores": {}, "error": "it broke"},
        {"origin": "random", "seed": 1, "scores": {"80": 0.9}},
        {"origin": "mutant", "seed": 0, "scores": {"80": 0.9}},
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(width.random_scores("width")) == [0.7, 0.0]


def test_the_readme_of_width_has_the_table_of_what_is_recorded(load: Import) -> None:
    width, settings = load("width"), load("settings")
    table = width.table([width.random_scores("samplers"), width.random_scores("width")])
    assert table in (settings.FOLDERS["width"] / "README.md").read_text(encoding="utf-8")
