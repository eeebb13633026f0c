"""What the proof concludes: differences by cell, their interval, and which searches are left."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

FOLDER = "payoff"
LORA = {"autopeft": 2, "layers": [{"attach": ["lora"]}], "model": ["mean_pooling"]}
TASKS = ("trec", "movie-sentences", "subjectivity", "sms-spam")


@pytest.fixture(scope="module")
def payoff(load: Callable[[str], Any]) -> SimpleNamespace:
    """The names of the experiment's modules in one."""
    names: dict[str, Any] = {}
    for module in ("analysis", "cells", "tables"):
        names |= {name: value for name, value in vars(load(module)).items() if not name.startswith("_")}
    return SimpleNamespace(**names)


def row(task: str, seed: int, contender: str, score: float, **other: Any) -> dict[str, Any]:
    found = {"model": "minilm", "task": task, "rows": 100, "budget": "0.5%", "seed": seed}
    scores = {"1": score - 0.01, "2": score + 0.01}
    return {**found, "contender": contender, "test": scores, "recipe": LORA, "hash": contender, **other}


def test_differences_are_those_of_means_over_fresh_seeds_in_points(payoff: SimpleNamespace) -> None:
    rows = [row("trec", 1, "winner", 0.9), row("trec", 1, "tuned LoRA", 0.88), row("trec", 2, "winner", 0.9)]
    found = payoff.differences(rows, "winner", "tuned LoRA")
    assert found == {("minilm/trec/100/0.5%", 1): pytest.approx(2.0)}
    assert payoff.differences(rows, "winner", "tuned LoRA", lambda r: r["rows"] == 500) == {}


def test_what_is_recommended_is_told_beside_the_search(payoff: SimpleNamespace) -> None:
    hybrid = {"autopeft": 2, "layers": [{"attach": ["lora", "ia3"]}]}
    rows = [
        row(task, seed, contender, score, recipe=recipe)
        for task, recipe in (("trec", LORA), ("movie-sentences", hybrid))
        for seed in payoff.SEEDS
        for contender, score in (("winner", 0.9), ("portfolio's first", 0.88))
    ]
    told = payoff.recommended(rows, pooled=True)
    assert told.startswith("The portfolio's first less the winner: -2.00 ± ")
    assert told.endswith("It is LoRA in 2 of 4 searches.")
    assert "not yet known" in payoff.recommended(rows[:2])
    assert payoff.recommended([]) == "No recommendation is recorded yet."
    assert told in payoff.tables(rows)


def test_it_is_told_how_often_the_winner_is_the_tuned_lora(payoff: SimpleNamespace) -> None:
    same = [(seed, name) for seed in (400, 401) for name in ("winner", "tuned LoRA")]
    rows = [row("trec", seed, name, 0.9, hash="a") for seed, name in same]
    rows += [
        row("sms-spam", 400, "winner", 0.9, hash="a"),
        row("sms-spam", 400, "tuned LoRA", 0.89, hash="b"),
    ]
    told = "On MiniLM the winner is the tuned LoRA in 2 of 3 searches: +0.0 to +1.0 points to it."
    assert payoff.returned(rows) == told
    assert told in payoff.tables(rows)
    assert payoff.returned([]) == "No search is recorded yet."


def test_a_contender_that_the_budget_has_none_of_is_no_difference(payoff: SimpleNamespace) -> None:
    rows = [row("trec", 1, "winner", 0.9), row("trec", 1, "tuned LoRA", 0.0, test={})]
    assert payoff.differences(rows, "winner", "tuned LoRA") == {}


def test_clusters_weigh_as_many_cells_as_they_have(payoff: SimpleNamespace) -> None:
    found = {(f"minilm/{task}/100/0.5%", seed): 0.0 for task in TASKS for seed in payoff.SEEDS}
    found |= {key: 4.0 for key in found if "trec" in key[0]}
    told = payoff.estimate(found)
    assert told is not None
    assert told.mean == pytest.approx(1.0)
    assert told.half == 0.0
    assert dict(told.clusters) == {"trec": 4.0, "rotten-tomatoes": 0.0, "sms-spam": 0.0}
    assert (told.cells, told.searches) == (4, 8)


def test_cells_with_more_searches_count_like_the_others(payoff: SimpleNamespace) -> None:
    """What differs from cell to cell is no noise between searches."""
    found = {("minilm/trec/100/0.5%", seed): 8.0 for seed in payoff.FEW_SEEDS}
    found |= {("minilm/trec/500/0.5%", seed): 0.0 for seed in payoff.SEEDS}
    for pooled in (True, False):
        told = payoff.estimate(found, pooled=pooled)
        assert told is not None
        assert (told.mean, told.half, told.cells, told.searches) == (4.0, 0.0, 2, 6)
        assert dict(told.clusters) == {"trec": 4.0}


def test_one_search_a_cell_has_no_interval(payoff: SimpleNamespace) -> None:
    assert payoff.estimate({("minilm/trec/100/0.5%", 1): 1.0}) is None
    assert payoff.estimate({}) is None


@pytest.mark.parametrize("pooled", [False, True])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(payoff: SimpleNamespace, pooled: bool) -> None:
    """Cells of a cluster and a seed share what their texts do."""
    rng, covered, rounds = random.Random(0), 0, 2_000
    for _ in range(rounds):
        shared = {
            (cluster, seed): rng.gauss(0, 1) for cluster in payoff.CLUSTERS.values() for seed in payoff.SEEDS
        }
        found = {
            (f"minilm/{task}/{rows}/0.5%", seed): 1.0 + shared[payoff.CLUSTERS[task], seed] + rng.gauss(0, 1)
            for task in TASKS
            for rows in (100, 500)
            for seed in payoff.SEEDS
        }
        told = payoff.estimate(found, pooled=pooled)
        assert told is not None
        covered += abs(told.mean - 1.0) <= told.half
    assert 0.93 <= covered / rounds <= 0.985


def test_the_rounds_are_told_apart(payoff: SimpleNamespace) -> None:
    first = [row(task, 200, "winner", 0.9) for task in TASKS] + [
        row(task, 200, "tuned LoRA", 0.8) for task in TASKS
    ]
    second, _, rest = payoff.tables(first).partition("First confirmation")
    confirmed, _, stopped = rest.partition("first round")
    for told, which in ((second, payoff.SECOND), (confirmed, payoff.FIRST)):
        assert told.count("not yet known") == len(which.asked)
        assert f"| tuned LoRA |{' – |' * (len(which.views) + 1)}" in told
    assert "| tuned LoRA | +10.0 | – | +10.0 | – | – | – |" in stopped
    seeds = [seed for round_ in payoff.ROUNDS for seed in round_]
    assert len(seeds) == len(set(seeds))
    assert payoff.ROUNDS[1] == payoff.FIRST.seeds
    assert payoff.SECOND.seeds == payoff.FEW_SEEDS


@pytest.mark.slow
def test_a_round_tests_on_no_row_of_those_before_it(payoff: SimpleNamespace) -> None:
    assert [payoff.earlier(seed) for seed in (200, 401)] == [(), ((200,),)]
    assert payoff.earlier(502) == ((200,), (400, 401))
    assert payoff.earlier(7) == ()
    code = (
        "import sys; sys.path.insert(0, 'experiments')\n"
        "from lib.packaged_without import without_rows\n"
        "from autopeft import load_task\n"
        "def tested(*seeds):\n"
        "    return {t for s in seeds for t in load_task('trec', seed=s).splits['test'].texts}\n"
        "def texts(seed):\n"
        "    return [t for split in load_task('trec', seed=seed).splits.values() for t in split.texts]\n"
        "whole, first = texts(500), tested(200)\n"
        "assert first & tested(400)\n"
        "assert without_rows('trec', (200,)) == first\n"
        "second = tested(400, 401)\n"
        "assert not first & second\n"
        "for _ in range(2):\n"
        "    assert without_rows('trec', (200,), (400, 401)) == first | second\n"
        "left = texts(500)\n"
        "assert not (first | second) & set(left)\n"
        "assert len(left) == sum(t not in first | second for t in whole) > 3000\n"
        "assert len(load_task('movie-sentences', seed=0).splits['train']) == 8056\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_searches_of_the_second_confirmation(payoff: SimpleNamespace) -> None:
    found = list(payoff.cells())
    small = [(cell, seed) for cell, seed in found if cell.model == "minilm"]
    assert {cell.rows for cell, _ in small if cell.budget == "0.5%"} == {100}
    assert sum(cell.rows == 100 for cell, _ in small) == 5 * 2 * 4
    assert sum(cell.budget == "0.04%" and seed in payoff.SEEDS for cell, seed in small) == 5 * 3 * 2
    assert len(small) == 60
    assert len(found) - len(small) == 4
    assert len(set(found)) == len(found)
    cell, seed = found[0]
    assert payoff.setting(cell, seed)["seed"] == seed


def test_processes_share_the_searches_whatever_is_recorded(load: Callable[[str], Any]) -> None:
    """Of a process that begins, or begins again, later than the other one."""
    run = load("run")
    whole = [(cell, seed) for cell, seed, _ in run.missing([])]
    ended = [
        {**asdict(cell), "seed": seed, "contender": name} for cell, seed in whole[:3] for name in run.wanted()
    ]
    one, other = ([(c, s) for c, s, _ in run.missing(rows, k, 2)] for k, rows in ((0, []), (1, ended)))
    assert sorted(map(str, [*one, *other])) == sorted(map(str, [*whole[:1], *whole[2:]]))


def test_with_two_searches_a_cell_the_second_confirmation_has_one_variance(payoff: SimpleNamespace) -> None:
    rng = random.Random(3)
    found = {(f"minilm/{task}/100/0.5%", seed): rng.gauss(0, 1) for task in TASKS for seed in (1, 2)}
    own, together = (payoff.estimate(found, pooled=pooled) for pooled in (False, True))
    assert own.mean == together.mean
    assert together.half != own.half
    found |= {(f"minilm/{task}/100/0.5%", 3): rng.gauss(0, 1) for task in TASKS}
    own, together = (payoff.estimate(found, pooled=pooled) for pooled in (False, True))
    assert own.half == together.half


@pytest.mark.parametrize(("gain", "holds"), [(2.0, "yes"), (0.2, "no")])
def test_a_claim_needs_its_mean_and_its_interval(payoff: SimpleNamespace, gain: float, holds: str) -> None:
    rows = []
    for seed in payoff.FIRST.seeds:
        for task in TASKS:
            noise = 0.001 * ((seed + len(task)) % 3)
            rows.append(row(task, seed, "winner", 0.8 + gain / 100 + noise))
            rows += [row(task, seed, other, 0.8) for other in payoff.TOLD[1:]]
    told = next(line for line in payoff.tables(rows).splitlines() if payoff.CLAIMS[0].sentence in line)
    assert told.endswith(f"| 4, 8 | {holds} | {holds} |")
    mean = float(told.split("|")[2].split()[0])
    assert mean == pytest.approx(gain + statistics.fmean([0.0, 0.1, 0.2]), abs=0.11)


def test_without_a_search_nothing_is_claimed(payoff: SimpleNamespace) -> None:
    told = payoff.tables([])
    assert told.count("not yet known") == len(payoff.FIRST.asked) + len(payoff.SECOND.asked) == 7


def test_the_figure_shows_each_mean_with_its_interval(
    payoff: SimpleNamespace, load: Callable[[str], Any]
) -> None:
    rng = random.Random(1)
    rows = [
        row(task, seed, contender, base + rng.gauss(0, 0.01))
        for task in TASKS
        for seed in payoff.SEEDS
        for contender, base in (("winner", 0.9), ("tuned LoRA", 0.85), ("head alone", 0.7))
    ]
    rows.append(row("trec", payoff.SEEDS[0], "portfolio's first", 0.9))
    drawn = load("figure").figure(rows)
    tree = ElementTree.fromstring(drawn)
    texts = [found.text for found in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "tuned LoRA" in texts
    assert "head alone" in texts
    assert "portfolio's first" not in texts  # of one search
    marks = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(marks) == 4  # two contenders, with 100 rows and with 100 rows at 0.5 %
    assert len({round(float(c.get("cx", 0))) for c in marks}) == 2
    assert ElementTree.fromstring(load("figure").figure([])) is not None


# Contenders, on a tiny backbone
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_runs(
    payoff: SimpleNamespace,
    load: Callable[[str], Any],
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Contenders of one search of a few steps."""
    contenders = load("contenders")
    model, task = tiny[1], tiny[3]

    def setting(cell: Any, seed: int) -> dict[str, Any]:
        return {
            "task": cell.task, "model": cell.model, "budget": cell.budget, "seed": seed, "effort": "quick",
            "trials": 2, "steps": 4, "train_rows": 64, "select_rows": 16, "test_rows": 24, "max_length": 16,
            "confirm_seeds": 2, "baselines": "lora,head", "final_precision": "fp32",
        }  # fmt: skip

    monkeypatch.setattr(contenders, "setting", setting)
    monkeypatch.setattr(contenders, "CLUSTERS", {task: "trec"})
    return contenders.Runs(payoff.Cell(model, task, 64, "20%"), 200, tmp_path / "run")


@pytest.mark.slow
def test_contenders_have_the_same_seeds_and_rows(
    payoff: SimpleNamespace, small_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: small_runs.run(name) for name in payoff.TOLD}
    assert all(run is not None for run in found.values())
    seeds = {tuple(sorted(run.test)) for run in found.values()}
    assert len(seeds) == 1
    assert len({tuple(map(len, run.parts.values())) for run in found.values()}) == 1
    for run in found.values():
        assert set(run.select) == set(run.test)
        assert all(0.0 <= score <= 1.0 for score in run.test.values())
    limit = small_runs.ready.budget.limits(small_runs.ready.spec)[1]
    assert all(run.deployed <= limit for run in found.values())
    # A recipe that two contenders share is trained once.
    monkeypatch.setattr(load_of(small_runs), "run_here", lambda *a, **k: pytest.fail("it was trained again"))
    again = small_runs._final("another name", small_runs._member("lora", -1).recipe)
    assert again.contender == "another name"
    assert again.test == found["LoRA as users take it"].test


def load_of(runs: Any) -> Any:
    return sys.modules[type(runs).__module__]
