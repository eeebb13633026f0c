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
    _, recorded, reason, confusion = first.notes
    assert "0.7500" in recorded
    assert "-0.2500" in recorded
    assert reason == "Because of this."
    assert "--json" in confusion
    assert table.rows == (("no", "–", "1,200"),)
    (same,) = evaluation_sheets(SCORED, task, (), (0.5, ()))
    assert "the same figure" in same.notes[1]
    (flattered,) = evaluation_sheets(SCORED, task, (), (None, ["It flatters."]))
    assert flattered.notes[1:] == ("It flatters.",)
