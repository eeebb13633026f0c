from __future__ import annotations

from autopeft.report.runs import samples_sheet
from autopeft.runs.records import Sample


def test_samples_are_one_line_each_and_short() -> None:
    said = "a\nb \x1b[31m" + "x" * 5000
    found = samples_sheet([Sample("test", 3, said, "five", "five", right=True, value=1.0)], "exact_match")
    ((row, prompt, expected, _, verdict),) = found.rows
    assert (row, expected, verdict) == ("test 4", "five", "right, exact_match 1")
    assert "\n" not in prompt
    assert "\x1b" not in prompt
    assert len(prompt) < 200
    unvalued = samples_sheet([Sample("test", 3, "a", "b", "c", right=False)], "likelihood")
    assert unvalued.rows[0][-1] == "another answer"
