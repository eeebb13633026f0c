"""`kill -9` for real: of the driver, of a worker, of Ray's own node process, at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import Searching, Standing

FAULTS = ("worker", "raylet", "driver")


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Searching]:
    search = Searching(tmp_path)
    yield search
    if search.process is not None:
        search.process.kill()
        search.settle()


def survive(search: Searching, faults: tuple[str, ...], rng: random.Random) -> None:
    """Let the faults happen one by one, go on after each that ended the search, and check the end."""
    known: list[Standing] = []
    search.start()
    for fault in faults:
        while not (search.wait_for_events(rng.randint(1, 6)) and search.kill(fault, rng)):
            if search.ended:
                go_on(search, known)
        known.append(search.standing())
    while "Traceback" not in (out := search.end()) and not search.finished:
        go_on(search, known)
    assert search.finished, out
    after = search.standing()
    for before in known:
        assert after.finished.items() >= before.finished.items()
        for number, rungs in before.rungs.items():
            assert after.rungs[number].items() >= rungs.items()
    assert len(after.finished) == search.trials
    assert set(after.trained.values()) == {1}
    result = search.result()
    assert not result["interrupted"]
    assert len(result["test"]) == 3
    assert sum(result["trials"][state] for state in ("complete", "stopped")) == search.trials
    assert (search.run / "winner" / "weights.safetensors").exists()
    assert not (search.run / ".state").exists()


def go_on(search: Searching, known: list[Standing]) -> None:
    """Resume a search whose process has ended before it was done."""
    assert not search.finished
    search.settle()
    known.append(search.standing())
    search.start()


def test_kill_of_worker_raylet_and_driver_loses_nothing(searching: Searching) -> None:
    survive(searching, FAULTS, random.Random(3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_moments(searching: Searching, seed: int) -> None:
    rng = random.Random(seed)
    survive(searching, (rng.choice(FAULTS),), rng)


@pytest.mark.slow
def test_a_second_search_on_the_same_folder_is_refused(searching: Searching) -> None:
    searching.start()
    assert searching.wait_for_events(3)
    second = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", "--resume", "run"],
        cwd=searching.place,
        env={**os.environ, "AUTOPEFT_CACHE": str(searching.place / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert second.returncode != 0
    assert "Another search is running" in second.stderr
    out = searching.end()
    assert searching.finished, out


@pytest.mark.slow
def test_a_run_folder_that_vanishes_ends_the_search_with_an_error(
    searching: Searching, tmp_path: Path
) -> None:
    searching.start()
    assert searching.wait_for_events(5)
    searching.run.rename(tmp_path / "gone")  # at once, while the search may be writing
    out = searching.end()
    assert searching.process is not None
    assert searching.process.returncode == 1, out
    assert "error:" in out
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_search_and_it_goes_on_when_there_is_room(
    searching: Searching, tmp_path: Path
) -> None:
    disk = tmp_path / "run"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=101m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        searching.start()
        assert searching.wait_for_events(8)
        filler = disk / ".filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * (1 << 16))
        before = searching.standing()
        out = searching.end()
        assert searching.process is not None
        assert searching.process.returncode == 1, out
        assert "Traceback" not in out
        assert "space" in out
        searching.settle()
        filler.unlink()
        searching.start()
        out = searching.end()
        assert searching.finished, out
        after = searching.standing()
        assert after.finished.items() >= before.finished.items()
        assert len(after.finished) == searching.trials
        assert set(after.trained.values()) == {1}
    finally:
        searching.settle()
        subprocess.run(["umount", "-l", str(disk)], check=False)
