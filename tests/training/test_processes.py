"""Processes of a training: they start and end together, also where one is killed, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from support.sharding import killed, raised

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.training.distributed import Team, current_team
from autopeft.training.errors import OutOfMemory
from autopeft.training.processes import Processes, ProcessLost

SOON = 30.0  # seconds, on a machine that is busy; by itself it takes less than three


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, group or folder is there after a test that was not before it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not dist.is_initialized()
    assert current_team() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_they_do_the_same_and_this_one_tells() -> None:
    with Processes(2) as processes:
        assert processes.run(os.getpid) == os.getpid()
        assert processes.run(len, "abc", here=lambda: 7) == 7
        assert processes.run(current_team) == Team(0, 2)
        assert current_team() is None
        with pytest.raises(UsageError, match="group already"):
            Processes(2)
        assert processes.run(len, "ab") == 2, "another group that was refused ended this one"
    with pytest.raises(UsageError, match="have ended"):
        processes.run(len, "a")


@pytest.mark.slow
def test_one_that_is_killed_ends_all_of_them_with_a_clear_error() -> None:
    processes = Processes(3)
    processes.run(killed, -1)  # all have imported it
    start = time.monotonic()
    with pytest.raises(ProcessLost, match=r"Process 2 of the 3 .* ended by signal 9.*others were ended too"):
        processes.run(killed, 1)
    assert time.monotonic() - start < SOON
    assert not processes.alive


@pytest.mark.slow
def test_an_error_of_one_is_told_with_its_traceback() -> None:
    processes = Processes(2)
    with pytest.raises(AutoPEFTError, match=r"(?s)Process 2 of the 2 .*ValueError: no such row.*in raised"):
        processes.run(raised, 1, ValueError("no such row"))
    assert not processes.alive


@pytest.mark.slow
def test_memory_that_is_short_in_one_is_an_error_of_memory() -> None:
    processes = Processes(2)
    with pytest.raises(OutOfMemory, match="Process 2 of the 2"):
        processes.run(raised, 1, MemoryError("full"))


@pytest.mark.slow
def test_an_error_of_this_one_alone_ends_the_others() -> None:
    processes = Processes(2)
    with pytest.raises(KeyError):
        processes.run(raised, 0, KeyError("x"))
    assert not processes.alive


@pytest.mark.slow
def test_an_error_that_all_come_to_leaves_them_alive() -> None:
    with Processes(2) as processes:
        processes.run(killed, -1)  # all have imported it
        with pytest.raises(UsageError):
            processes.run(raised, -1, UsageError("not so"))
        assert processes.run(len, "ab") == 2


@pytest.mark.slow
def test_one_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.training.processes._BEGIN", "raise SystemExit('no torch here')")
    with pytest.raises(ProcessLost, match=r"(?s)exit code 1, having written:\nno torch here"):
        Processes(2)


SCRIPT = """
import sys, time
from support.sharding import killed
from autopeft.training.processes import Processes

processes = Processes(2)
print(processes._peers[0].process.pid, flush=True)
processes.run(time.sleep, 600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_others_end_with_the_first(tmp_path: Path, number: signal.Signals) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TMPDIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as first:
        assert first.stdout is not None
        other = psutil.Process(int(first.stdout.readline()))
        os.killpg(first.pid, signal.SIGINT) if number == signal.SIGINT else first.send_signal(number)
        other.wait(SOON)
        first.wait(300)


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2, but got 1"):
        Processes(1)
    with pytest.raises(UsageError, match="no device 'tpu'"):
        Processes(2, device="tpu")
    with pytest.raises(UsageError, match=r"100 processes need a GPU each|There is no device 'cuda' here"):
        Processes(100, device="cuda")
