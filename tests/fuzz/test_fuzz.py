"""Hostile input for every surface: first cases and dozens of random ones here, many more where `slow`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.harness import MEGABYTES, Bench, bench
from fuzz.surface import cases, surfaces

ROOT = Path(__file__).parents[2]
SHORT, LONG = 4, 20_000
# A process that lives long may keep what it has read, but not what each case brought.
GROWTH = MEGABYTES


@pytest.fixture(scope="module")
def place() -> Iterator[Bench]:
    with bench() as found:
        yield found


# Some hundred whole reports are written for run folders, as many texts are generated.
LONGER = ("run_folder", "generated_text")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONGER else n for n in surfaces()]
)
def test_no_case_is_bad(name: str, place: Bench) -> None:
    todo = [case for case in cases(surfaces(), SHORT) if case.surface.name == name]
    assert [str(finding) for finding in place.run(todo)] == []
    assert 0 < place.returned[name] < place.tried[name], "of hostile input some is read and some refused"


@pytest.mark.slow
def test_no_case_is_bad_in_a_long_run() -> None:
    """All in one process, which is left no larger than it was."""
    words = ("--cases", str(LONG), "--start", str(SHORT), "--growth", str(GROWTH))
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    assert int(run.stdout.rsplit("\n", 2)[-2].split()[0].replace(",", "")) >= LONG
