"""Journals that were damaged, or written by a stranger."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.search.optimization.journal import check_journal
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.parameters import Parameter

RECORDED = Path(__file__).parents[2] / "fixtures" / "runs"
SPACE = (
    Parameter("lora.rank", "categorical", (1, 2, 4), sizes=(1, 2, 4)),
    Parameter("ia3.on", "categorical", (True, False)),
    Parameter("learning_rate", "float", low=0.001, high=0.01, log=True),
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The recorded one, opened once."""
    shutil.copyfile(RECORDED / "interrupted" / "journal.log", tmp_path / "journal.log")
    opened(tmp_path / "journal.log")
    return tmp_path / "journal.log"


def opened(journal: Path, steps: tuple[int, ...] = (50, 150)) -> SearchStudy:
    def recorded(values: dict[str, Any]) -> Any:
        raise AssertionError("nothing is proposed")

    rungs = Rungs(steps, (1.0,) * len(steps))
    return SearchStudy(journal, SPACE, recorded, sampler="random", seed=0, trials=9, rungs=rungs)


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_journals_of_an_earlier_version_are_sound(name: str) -> None:
    check_journal(RECORDED / name / "journal.log")


def test_a_journal_is_sound_however_often_it_was_opened(journal: Path) -> None:
    for _ in range(2):
        check_journal(journal)
        opened(journal)


def changed(journal: Path, code: int, change: Callable[[dict[str, Any]], object]) -> int:
    """Change the first operation of a kind for which there is something to change; returns its line."""
    lines = journal.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        told = json.loads(line)
        if told["op_code"] == code:
            try:
                change(told)
            except KeyError:
                continue
            lines[number - 1] = json.dumps(told).encode() + b"\n"
            journal.write_bytes(b"".join(lines))
            return number
    raise AssertionError("there is no such operation")


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(told: dict[str, Any]) -> None:
        for key in path[:-1]:
            told = told[key]
        told[path[-1]]  # KeyError where it is not there
        told[path[-1]] = value

    return change


HUGE = 10**400
CHANGES: dict[str, tuple[int, Callable[[dict[str, Any]], object]]] = {
    "an operation that there is not": (4, put("op_code", value=77)),
    "a truth value for one": (4, put("op_code", value=True)),
    "another study": (4, put("study_id", value=3)),
    "a trial that there is not": (7, put("trial_id", value=400)),
    "a trial by its name": (8, put("trial_id", value="0")),
    "a score in words": (7, put("intermediate_value", value="0.9")),
    "a score that is none": (7, put("intermediate_value", value=float("nan"))),
    "a score beyond numbers": (7, put("intermediate_value", value=HUGE)),
    "rungs that are none": (8, put("user_attr", "rungs", value={"fifty": 0.5})),
    "rungs without a score": (8, put("user_attr", "rungs", value={"50": None})),
    "no attribute": (8, put("user_attr", value={})),
    "two attributes": (8, put("user_attr", value={"a": 1, "b": 2})),
    "attributes as a list": (4, put("user_attrs", value=[1])),
    "a recipe in words": (4, put("user_attrs", "recipe", value="lora")),
    "counts in words": (4, put("user_attrs", "counts", "deployed", value="many")),
    "a hash that is a number": (4, put("user_attrs", "hash", value=7)),
    "values of a list": (4, put("user_attrs", "proposed", "ia3.on", value=[True])),
    "a distribution that there is not": (4, put("distributions", "ia3.on", value='{"name": "os.system"}')),
    "a distribution of nothing": (4, put("distributions", "ia3.on", value="null")),
    "a distribution without an end": (
        4,
        put(
            "distributions",
            "learning_rate",
            value='{"name": "IntDistribution", "attributes": {"low": 9, "high": 1}}',
        ),
    ),
    "parameters without distributions": (4, put("distributions", value={})),
    "no time": (4, put("datetime_start", value="yesterday")),
    "a state that there is not": (6, put("state", value=9)),
    "an end without a score": (6, lambda told: told.update(state=1, values=None)),
    "one score too many": (6, put("values", value=[0.5, 0.6])),
    "points in words": (2, put("user_attr", "first", value="all")),
    "a format in words": (2, put("user_attr", "journal", value="two")),
    "another direction": (0, put("directions", value=[7])),
    "another name": (0, put("study_name", value="mine")),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_line_is_named_with_what_is_left(journal: Path, case: str) -> None:
    number = changed(journal, *CHANGES[case])
    before = journal.read_bytes()
    with pytest.raises(DataError) as caught:
        opened(journal)
    said = str(caught.value)
    assert said.startswith(f"Line {number} of {str(journal)!r} is damaged: ")
    assert f"`autopeft report {journal.parent}`" in said
    assert f"--from {journal.parent}" in said
    assert journal.read_bytes() == before, "what is there is kept as it is"


@pytest.mark.parametrize(
    "content",
    [b"garbled\n", b"\xff\xfe\n", b"null\n", b"[]\n", b"{}\n", b"\n", b"[" * 100_000 + b"\n", b"9" * 5_000],
)
@pytest.mark.parametrize("at", [0, 5])
def test_a_line_that_is_none_is_named(journal: Path, content: bytes, at: int) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines.insert(at, content + b"\n")
    journal.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=f"Line {at + 1} of "):
        opened(journal)


def test_a_line_that_a_kill_left_half_written_is_cut(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":8,"wor')
    opened(journal)
    assert journal.read_bytes().startswith(whole)


def test_a_trial_is_not_told_twice(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 6]
    journal.write_bytes(b"".join([*lines, lines[ends[0]]]))
    with pytest.raises(DataError, match=rf"Line {len(lines) + 1} of .*: trial \d+ is not running then"):
        opened(journal)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ia3.on", 1), ("ia3.on", "yes"), ("learning_rate", 5), ("learning_rate", "x"), ("lora.rank", 3)],
)
@pytest.mark.parametrize("which", ["proposed", "point"])
def test_values_that_the_space_does_not_have_are_told_with_their_trial(
    journal: Path, which: str, name: str, value: Any
) -> None:
    changed(journal, 4, put("user_attrs", which, name, value=value))
    with pytest.raises(
        DataError,
        match=rf"space\.yaml.* Trial 0: {name}={value!r} is not",
    ):
        opened(journal)


def test_a_first_point_that_the_space_does_not_have_is_refused(journal: Path) -> None:
    changed(journal, 2, put("user_attr", "first", value=[{"lora.rank": 1}]))
    with pytest.raises(DataError, match="another search space"):
        opened(journal)


def test_a_journal_of_other_rungs_is_refused(journal: Path) -> None:
    with pytest.raises(DataError, match=r"50 steps.*60, 150"):
        opened(journal, (60, 150))


def test_nothing_that_a_journal_names_is_imported(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_in_a_file.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("named_in_a_file.Thing", "named_in_a_file", "os.system"):
        text = json.dumps({"name": name, "attributes": {}})
        changed(journal, 4, put("distributions", "ia3.on", value=text))
        with pytest.raises(DataError, match="Unknown distribution class"):
            opened(journal)
    assert "named_in_a_file" not in sys.modules


def test_a_journal_that_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        check_journal(tmp_path)
