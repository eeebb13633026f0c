"""What a scoring prints."""

from __future__ import annotations

from support.training import encoded_task

from autopeft.report.evaluation import evaluation_sheets
from autopeft.tasks.kinds import Breakdown

SCORED = ("run", "test", 1200, 0.5)


def test_score_comparison_and_tables() -> None:
    task = encoded_task().task
    narrow = Breakdown("classes", "Each class", ("class", "F1", "support"), (("no", float("nan"), 1200),))
    wide = Breakdown("confusion", "Confusion", tuple(map(str, range(40))), ())
    first, table = evaluation_sheets(SCORED, task, (narrow, wide), (0.75, ["Because of this."]))
    assert first.rows == (("run", "test", "1,200", "0.5000"),)
    assert first.notes[1:] == (
        "The run recorded 0.7500 on test, a difference of -0.2500:",
        "Because of this.",
        "Confusion: 40 columns are too many for a terminal; --json has them.",
    )
    assert table.rows == (("no", "–", "1,200"),)
    (same,) = evaluation_sheets(SCORED, task, (), (0.5, ()))
    assert same.notes[1:] == ("The run recorded the same figure on test.",)
    (flattered,) = evaluation_sheets(SCORED, task, (), (None, ["It flatters."]))
    assert flattered.notes[1:] == ("It flatters.",)
