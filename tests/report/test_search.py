from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.graph import build_graph, draw_text
from autopeft.recipe import Recipe
from autopeft.report.runs import front_sheet, runs_sheet, trials_sheet
from autopeft.report.search import ending, outcome_sheet, winner_text
from autopeft.runs.records import FrontPoint, TrialRecord
from autopeft.search.api import SearchResult
from autopeft.search.selection.contender import Contender
from autopeft.search.selection.significance import (
    ScoredSplit,
    compare,
    compare_with_constant,
    selection_bias,
)
from autopeft.tasks.summary import Constant

RECIPE = Recipe.from_dict({"name": "w", "layers": [{"attach": ["lora", "ia3"]}]})
COUNTS = {"deployed": 113_566.0, "trained": 113_566.0, "head": 770.0, "share": 113_566 / 22_713_216}
DATA: dict[str, Any] = {"name": "movie-sentences", "source": {"stand_in_for": "sst2"}}


def result(**more: Any) -> SearchResult:
    base: dict[str, Any] = {
        "winner": RECIPE,
        "counts": COUNTS,
        "number": 7,
        "origin": "trial 7",
        "metric": "accuracy",
        "select": (0.7, 0.8),
        "test": (0.6, 0.8),
        "search_score": 0.81,
        "confirmed": True,
        "baselines": (Contender("LoRA rank 12", {}, COUNTS, (0.7, 0.7), (0.5, 0.5)),),
        "front": (),
        "trials": (
            TrialRecord("trial", "trial 0", "complete", {}),
            TrialRecord("trial", "trial 1", "failed", {}),
        ),
        "run": Path("runs/x"),
        "interrupted": False,
        "exhausted": False,
        "out_of_time": False,
        "notice": None,
        "seconds": 185.0,
    }
    return SearchResult(**{**base, **more})


def test_the_score_table_says_which_data_it_is() -> None:
    text = outcome_sheet(result(), DATA, "0.5%").plain()
    assert "movie-sentences, the stand-in for sst2" in text
    assert "not comparable with those of sst2" in text
    own = outcome_sheet(result(), {"name": "trec", "source": {"stand_in_for": None}}, "0.5%").plain()
    assert "trec: accuracy" in own
    assert "stand-in" not in own


def test_the_majority_stands_beside_the_winner() -> None:
    majority = Constant("always 'ham'", {"select": 0.6, "test": 0.7})
    sheet = outcome_sheet(result(constant=majority, remarks=("test has 1 row.",)), DATA, "0.5%")
    assert sheet.rows[-1] == ("always 'ham'", "0", "–", "0.6000", "0.7000")
    assert "no better on test than always 'ham' (0.7000)" in sheet.plain()
    assert "test has 1 row." in sheet.notes
    split = ScoredSplit("accuracy", 1000, (500, 500))
    over = compare_with_constant({1: 0.7, 2: 0.71}, split, name="always 'ham'", score=0.5, parts=({}, ()))
    told = outcome_sheet(result(constant=majority, over_constant=over), DATA, "0.5%").plain()
    assert "20.5 points above always 'ham' (95 % interval" in told
    worse = Constant("always 'ham'", {"select": 0.6, "test": 0.69})
    assert "no better" not in outcome_sheet(result(constant=worse), DATA, "0.5%").plain()
    untested = result(constant=worse, test=(), select=(), search_score=0.5)
    assert "no better on select than always 'ham' (0.6000)" in outcome_sheet(untested, DATA, "0.5%").plain()


def test_winner_and_baselines_stand_side_by_side() -> None:
    rows = outcome_sheet(result(), DATA, "0.5%").rows
    assert rows[0] == ("winner", "113,566", "0.499 %", "0.7500 ± 0.0707", "0.7000 ± 0.1414")
    assert rows[1][0] == "LoRA rank 12"
    assert rows[1][4] == "0.5000 ± 0.0000"


def test_every_baseline_is_compared_in_a_sentence() -> None:
    split = ScoredSplit("accuracy", 1000, (500, 500))
    winner = {1: 0.70, 2: 0.71, 3: 0.69}
    against = [
        compare(winner, {1: 0.70, 2: 0.69, 3: 0.72}, split, name="LoRA rank 12"),
        compare(winner, {1: 0.50, 2: 0.51, 3: 0.50}, split, name="head only"),
    ]
    bias = selection_bias(0.8, 0.7)
    notes = outcome_sheet(result(comparisons=tuple(against), bias=bias), DATA, "0.5%").notes
    text = " ".join(notes)
    assert "below LoRA rank 12" in text
    assert "within noise" in text
    assert "above head only" in text
    assert "more than noise explains" in text
    assert "not corrected for the others" in text
    assert "+10.0 points" in text


def test_an_unconfirmed_winner_claims_nothing_of_the_test_split() -> None:
    sheet = outcome_sheet(result(select=(), test=(), baselines=(), confirmed=False), DATA, "0.5%")
    assert sheet.rows[0][3:] == ("0.8100 (one seed)", "–")
    assert "on select, none on test" in sheet.notes[1]


@pytest.mark.parametrize(("select", "seeds"), [((0.7, 0.8), "2 fresh seeds"), ((0.7,), "one fresh seed")])
def test_a_confirmed_winner_without_a_score_on_test_is_said_to_be_retrained(
    select: tuple[float, ...], seeds: str
) -> None:
    notes = outcome_sheet(result(select=select, test=(), interrupted=True), DATA, "0.5%").notes
    assert seeds in notes[1]
    assert "no score on test" in notes[1]


def test_one_seed_on_test_is_counted_in_the_singular() -> None:
    notes = [outcome_sheet(result(test=test), DATA, "0.5%").notes[1] for test in ((0.6,), (0.6, 0.8))]
    assert "0.5%" in notes[0]
    assert "1 fresh seed," in notes[0]
    assert "2 fresh seeds," in notes[1]


def test_why_it_ended() -> None:
    early = (*result().trials, TrialRecord("trial", "trial 2", "stopped", {}))
    told = ending(result(trials=early))
    for said in ("1 trials", "1 stopped early", "1 failed", "3 min 05 s"):
        assert said in told
    assert "interrupted" in ending(result(interrupted=True))
    assert "out of time" in ending(result(out_of_time=True))


def test_the_winner_is_shown_with_its_recipe() -> None:
    text = winner_text(result(), draw_text(build_graph(RECIPE, spec_of(tiny_config("bert")))))
    assert text.startswith("Winner: trial 7, 'w' (lora + ia3), 113,566 deployed parameters, 0.499 %")
    assert RECIPE.to_yaml().strip() in text


def test_what_a_run_lacks_is_a_dash() -> None:
    bare = TrialRecord("trial", "trial 0", "failed", {})
    assert trials_sheet([bare]).rows[0] == ("trial 0", "failed", "–", "–", "–", "–", "0 s", "–")
    assert runs_sheet([{"run": "a"}], "runs").rows[0][0] == "a"
    point = FrontPoint(3, 1234, 0.0049999, 0.75, "h", "small")
    assert front_sheet([point]).rows == (("3", "1,234", "0.499 %", "0.7500", "small"),)
    (note,) = runs_sheet([], "runs").notes
    assert note.startswith("There is no run under 'runs' yet")
