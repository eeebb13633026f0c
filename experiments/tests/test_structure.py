"""What scripts say of a change of structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "structure"
Import = Callable[[str], Any]


@pytest.fixture(scope="module")
def run(load: Import) -> Any:
    return load("run")


def test_what_differs_is_named_with_both_values(run: Any) -> None:
    old = {"trials": [{"score": 0.5}, {"score": 0.25}], "winner": {"name": "a"}}
    new = {"trials": [{"score": 0.5}, {"score": 0.75}], "winner": {}}
    assert list(run.differences(old, old)) == []
    assert list(run.differences(old, new)) == [
        "trials[1].score: 0.25 was, now 0.75",
        'winner.name: "a" was, now null',
    ]
    assert list(run.differences(old, {**old, "trials": []})) == ["trials: 2 entries was, now 0 entries"]


def test_what_is_recorded_are_whole_searches(run: Any) -> None:
    recorded = run.read_json(run.RESULTS)["searches"]
    assert recorded.keys() == run.SEARCHES.keys()
    for name, found in recorded.items():
        assert len(found["trials"]) == 8, name
        assert found["winner"]["test"], name
        assert name in run.tables({"searches": recorded})


def test_lines_of_code_are_counted_without_comments_and_docstrings(load: Import, tmp_path: Path) -> None:
    size = load("size")
    file = tmp_path / "a.py"
    body = '    """Does."""\n\n    return (\n        x  # so\n    )\n'
    file.write_text(f'"""Says."""\n\n# why\ndef f(\n    x: int,\n) -> int:\n{body}')
    found = size.size_of([file])
    assert (found.files, found.code, found.functions, found.median_body) == (1, 6, 1, 3)
