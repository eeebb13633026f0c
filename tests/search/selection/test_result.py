"""What a search's result looks like in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autopeft.recipe import Recipe
from autopeft.search.selection.contender import Contender
from autopeft.search.selection.result import SearchResult
from autopeft.search.selection.significance import ScoredSplit, compare
from autopeft.tasks.summary import Constant

EVIL = "<script>alert(1)</script>"
COUNTS = {"deployed": 113_566, "trained": 113_566, "head": 770, "share": 113_566 / 22_713_216}
SPLIT = ScoredSplit("accuracy", 1000, (500, 500))
RESULT = SearchResult(
    winner=Recipe.from_dict({"name": "lora+ia3-5c1e9a", "layers": [{"attach": ["lora", "ia3"]}]}),
    counts=COUNTS,
    number=7,
    origin="trial 7",
    metric="accuracy",
    select=(0.7, 0.8),
    test=(0.6, 0.8),
    search_score=0.81,
    confirmed=True,
    baselines=(Contender(f"LoRA {EVIL}", {}, COUNTS, (0.7, 0.7), (0.5, 0.5)),),
    front=(),
    trials=(),
    run=Path("runs/x"),
    interrupted=False,
    exhausted=False,
    out_of_time=False,
    notice=None,
    seconds=185.0,
    comparisons=(compare({1: 0.6, 2: 0.8}, {1: 0.5, 2: 0.5}, SPLIT, name=f"LoRA {EVIL}"),),
    constant=Constant(f"always '{EVIL}'", {"select": 0.5, "test": 0.4}),
    remarks=(f"The class {EVIL} is rare.",),
)


def test_one_line_says_what_was_found() -> None:
    told = repr(RESULT)
    for said in (
        "lora+ia3-5c1e9a",
        "accuracy 0.7000 ± 0.1414 on test",
        "113,566",
        "0.499 %",
        "trial 7",
        "runs/x",
    ):
        assert said in told
    assert "\n" not in told
    early = replace(RESULT, test=(), select=(), interrupted=True)
    assert "accuracy 0.8100 (one seed) on select, " in repr(early)
    assert "trial 7, interrupted, run" in repr(early)


def test_a_notebook_shows_the_winner_beside_the_others() -> None:
    made = RESULT._repr_html_()
    for text in ("lora+ia3-5c1e9a", "0.7000 ± 0.1414", "0.5000 ± 0.0000", "113,566", "0.499 %", "0.4000"):
        assert text in made
    assert "<script" not in made
    assert made.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4, "baseline, constant, comparison, remark"
    assert len(made) < 20_000


def test_rows_are_those_of_the_tables() -> None:
    assert [row[0] for row in RESULT.rows()] == ["winner", f"LoRA {EVIL}", f"always '{EVIL}'"]
    assert RESULT.rows()[0][1:] == ("113,566", "0.499 %", "0.7500 ± 0.0707", "0.7000 ± 0.1414")
