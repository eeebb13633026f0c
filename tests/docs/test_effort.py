"""The page of efforts has the numbers that searches have."""

from __future__ import annotations

import re

import pytest
from support.documents import text_of

from autopeft.cli import main
from autopeft.effort import EFFORTS, QUICK_OF_LARGE, Effort

FIELDS = ("trials", "steps", "batch_size", "train_rows", "select_rows", "test_rows", "top", "seeds")


def words(effort: Effort) -> list[str]:
    values = [getattr(effort, field) for field in FIELDS]
    return ["all" if value is None else f"{value:,}" for value in values]


def test_its_table_is_that_of_the_package() -> None:
    lines = [line.strip("|").split("|") for line in text_of("docs/how-to/effort.md").splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 1 + len(FIELDS)]
    known = [EFFORTS["quick"], QUICK_OF_LARGE["encoder"], QUICK_OF_LARGE["decoder"]]
    known += [effort for name, effort in EFFORTS.items() if name != "quick"]
    assert [row[1:] for row in rows[2:]] == [words(effort) for effort in known]
    assert [row[0].split("`")[1] for row in rows[2:]] == [effort.name for effort in known]


def test_its_options_are_those_of_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["search", "--help"]) == 0
    known = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    said = set(re.findall(r"`(--[a-z-]+)", text_of("docs/how-to/effort.md")))
    assert len(said) > 4
    assert said <= set(known)
