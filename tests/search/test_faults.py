"""Faults for real, in a search of a process of its own: nothing that was finished is lost or done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.faults import ENDS, GOES_ON, MOMENTS, Fault, Searching, Standing, patience

from autopeft.effort import EFFORTS
from autopeft.recipe import Recipe

Make = Callable[..., Searching]
SECONDS = 30.0  # in which a fault has ended the search, or it goes on


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Searching] = []

    def begin(**more: Any) -> Searching:
        (place := tmp_path / str(len(made))).mkdir()
        made.append(Searching(place, **more))
        return made[-1]

    yield begin
    for search in made:
        search.close()


def survive(search: Searching, faults: tuple[Fault, ...], rng: random.Random) -> None:
    """Let the faults happen one by one, go on after each that ended the search, and check the end."""
    known: list[tuple[Standing, int]] = []
    search.start()
    bare = False
    for fault in faults:
        if (fault.what, fault.whom) in ENDS:
            endure(search, fault, rng)
            note(search, known)
            search.start()
            bare = False
        else:
            outlive(search, fault, rng, bare)
            note(search, known)
            bare = bare or (fault.what, fault.whom) == ("remove", "ray")
    out = search.end()
    assert search.finished, out
    check(search, known)


def endure(search: Searching, fault: Fault, rng: random.Random) -> None:
    """A fault that ends the search: in time, with the right exit code, and with a sentence."""
    search.strike(fault, rng)
    out = search.end(SECONDS)
    code = search.driver.returncode
    if code == -signal.SIGTERM and fault.moment == "before":
        assert out == "", f"{fault}: only Python itself, which is still starting, ends like that"
    else:
        assert code in ENDS[fault.what, fault.whom], f"{fault}: exit code {code}\n{out}"
        check_words(search, fault, out)
    if fault.what == "swarm":
        assert search.left() == []
        assert list(search.temporary.iterdir()) == []
    search.mend()
    if (search.run / "result.json").exists():
        check_winner(search)


def check_words(search: Searching, fault: Fault, out: str) -> None:
    """A search that ended said why in a sentence, unless it could not."""
    assert "Traceback" not in out, f"{fault}\n{out}"
    assert "SIGSEGV" not in out, f"{fault}\n{out}"
    if search.driver.returncode != -signal.SIGKILL:
        assert "error: " in out or "Interrupted. Go on with: " in out, f"{fault}\n{out}"


def outlive(search: Searching, fault: Fault, rng: random.Random, bare: bool) -> None:
    """A fault that the search outlives: it goes on in time, and what was stopped is gone.

    Args:
        bare: whether Ray has lost its folder before. Then the loss of a worker may end the search.
    """
    victims, struck = search.strike(fault, rng), time.monotonic()
    if fault.whom == "worker":
        while any(map(psutil.pid_exists, victims)) and time.monotonic() - struck < patience(SECONDS):
            time.sleep(0.1)
        assert not any(map(psutil.pid_exists, victims)), f"{fault}: it is still there\n{search.out}"
    # A process that has not begun yet has to come up first.
    gone_on = search.goes_on(SECONDS * (3 if fault.moment == "before" else 1))
    if bare and not gone_on and search.ended:
        assert search.driver.returncode == 1, f"{fault}\n{search.out}"
        check_words(search, fault, search.out)
        search.mend()
        search.start()
        return
    assert gone_on, f"{fault}\n{search.out}"
    search.mend()


def note(search: Searching, known: list[tuple[Standing, int]]) -> None:
    """Take down what is finished, and how many jobs were handed out until then."""
    known.append((search.standing(), len(search.jobs())))


def check(search: Searching, known: list[tuple[Standing, int]]) -> None:
    """Nothing that was finished is lost, nothing is repeated, and the winner has its weights."""
    after, jobs = search.standing(), search.jobs()
    for before, handed_out in known:
        before.assert_kept(after)
        again = {job["id"] for job in jobs[handed_out:]}
        assert not again & set(before.finals), "a run after the search is repeated"
        numbers = {job["number"] for job in jobs[handed_out:] if job["kind"] == "trial"}
        assert not numbers & set(before.finished), "a trial is repeated"
    assert len(after.finished) == search.trials
    assert set(after.trained.values()) == {1}
    result = search.result()
    assert len(result["test"]) == EFFORTS["quick"].seeds
    assert sum(result["trials"][state] for state in ("complete", "stopped")) == search.trials
    check_winner(search)
    assert not (search.run / ".state").exists()
    assert not (search.run / ".lock").exists()


def check_winner(search: Searching) -> None:
    """The result names a winner whose recipe and weights are there and belong together."""
    result, winner = search.result(), search.run / "winner"
    trials = {t["number"]: t for t in search.trials_written() if t["state"] == "complete"}
    baseline = result["number"] is None  # it won, and was confirmed as it was trained
    chosen = result if baseline else trials[result["number"]]
    assert result["recipe"] == chosen["recipe"]
    assert Recipe.load(winner / "recipe.yaml").hash() == Recipe.from_dict(chosen["recipe"]).hash()
    assert (winner / "weights.safetensors").stat().st_size > 0
    if not result["confirmed"] and not baseline:
        assert chosen["score"] == max(t["score"] for t in trials.values()), "the best of all is kept"


def of(*named: str) -> tuple[Fault, ...]:
    return tuple(Fault(*name.rsplit("-", 2)) for name in named)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "workers", "seed"),
    [
        (("stop-worker-between", "kill-worker-between", "terminate-group-after"), 1, 3),
        (("swarm-group-before", "swarm-group-between", "swarm-group-after"), 2, 5),
    ],
    ids=["signals to workers and to the group", "swarms of Ctrl-C"],
)
def test_faults_one_after_the_other_lose_nothing_and_leave_nothing_behind(
    make: Make, names: tuple[str, ...], workers: int, seed: int
) -> None:
    faults = tuple(Fault(*name.rsplit("-", 2)) for name in names)
    survive(make(trials=4, workers=workers), faults, random.Random(seed))


@pytest.mark.slow
def test_a_swarm_of_ctrl_c_when_the_search_has_ended(make: Make) -> None:
    search = make(trials=2, steps=45)
    search.start()
    while not search.finished and not search.ended:
        time.sleep(0.01)
    search.strike(Fault("swarm", "group", "after"), random.Random(6))
    out = search.end(SECONDS)
    assert search.driver.returncode in (0, 130), out
    assert "Traceback" not in out
    assert search.left() == []
    assert list(search.temporary.iterdir()) == []
    check_winner(search)


@pytest.mark.slow
def test_a_killed_driver_and_a_full_disk_lose_nothing(make: Make) -> None:
    search = make(trials=4, steps=45, workers=0)
    if not search.mounted:
        pytest.skip("no disk can be mounted here")
    survive(search, of("kill-driver-between", "fill-disk-after"), random.Random(4))


def draw(count: int) -> list[tuple[Fault, ...]]:
    """Faults for searches that suffer three each, one at each moment: every kind at every moment, then kinds
    drawn at random."""
    rng, kinds = random.Random(18), [*ENDS, *GOES_ON]
    drawn: dict[str, list[Fault]] = {}
    for moment in MOMENTS:
        of_moment = [*kinds, *rng.choices(kinds, k=count - len(kinds))]
        rng.shuffle(of_moment)
        drawn[moment] = [Fault(what, whom, moment) for what, whom in of_moment]
    return list(zip(*drawn.values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "faults"),
    enumerate(draw(20)),
    ids=lambda value: "+".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_sixty_faults_lose_nothing(make: Make, number: int, faults: tuple[Fault, ...]) -> None:
    # Long enough that two workers are not done before it is noticed that one of them stands still.
    workers = 1 + number % 2
    search = make(workers=workers, steps=240 if workers == 1 else 720)
    if not search.mounted and any(fault.whom == "disk" for fault in faults):
        pytest.skip("no disk can be mounted here")
    survive(search, faults, random.Random(number))


@pytest.mark.slow
def test_a_second_search_on_the_same_folder_is_refused(make: Make) -> None:
    search = make()
    search.start()
    search.strike(Fault("none", "driver", "between"), random.Random(1))
    second = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", "--resume", str(search.run)],
        cwd=search.place,
        env={**os.environ, "AUTOPEFT_CACHE": str(search.place / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert second.returncode == 2
    assert "Another search is running" in second.stderr
    out = search.end()
    assert search.finished, out


@pytest.mark.slow
@pytest.mark.parametrize("grace", [0, 60])
def test_a_signal_to_every_process_ends_as_one_to_the_driver(make: Make, grace: int) -> None:
    """As Slurm and systemd send it, past all process groups."""
    search = make(more=("--grace", str(grace)))
    search.start()
    search.strike(Fault("none", "driver", "after"), random.Random(1))
    before = search.standing()
    for process in [psutil.Process(search.driver.pid), *search.left()]:
        process.send_signal(signal.SIGTERM)
    out = search.end(SECONDS)
    assert search.driver.returncode == 143, out
    assert "Interrupted. Go on with: " in out
    assert "Traceback" not in out
    check_winner(search)
    before.assert_kept(search.standing())
