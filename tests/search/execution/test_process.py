from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.search.execution import process
from autopeft.search.execution.process import (
    ProcessInfo,
    ProcessWatch,
    is_stopped,
    listener,
    memory_text,
    oom_kills,
    peak_memory,
    stopped_below,
)

# A process that is nobody's child here: its parent lets the system reap it, as Ray's raylet does. It tells
# its id itself, so that it has started when it is made to end: a busy machine takes seconds over that.
PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
CHILD = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read(); os._exit(7)"
child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=0)
import time
time.sleep(60)
"""


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["kill", "leave"])
def test_how_the_process_of_another_parent_ended(how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = ProcessWatch(replace(ProcessInfo.own(), pid=pid))
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            parent.stdin.close()
        told = watch.ending()
        if _kernel() >= (6, 15):
            assert told == ("signal 9 (SIGKILL)" if how == "kill" else "exit status 7")
        else:
            assert told.startswith("not known: this system tells")
    finally:
        parent.kill()
        parent.wait()


def test_a_process_that_goes_on_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_END_SECONDS", 0.05)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        watch = ProcessWatch(replace(ProcessInfo.own(), pid=other.pid))
        assert watch.ending() == "not known: it had not ended 0.05 s after it was given up"
    finally:
        other.kill()
        other.wait()


def test_a_process_of_another_machine_is_not_taken_for_one_of_this() -> None:
    elsewhere = replace(ProcessInfo.own(), space="another boot")
    watch = ProcessWatch(elsewhere)
    assert not watch.here
    assert watch.ending() == "not known: the worker ran on another machine"
    watch.close()


def test_a_system_that_does_not_tell_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(process.os, "pidfd_open", raising=False)
    watch = ProcessWatch(ProcessInfo.own())
    assert watch.here
    assert watch.ending().startswith("not known: this system tells the process's parent alone")


def test_memory_is_measured_in_bytes() -> None:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmHWM"].split()[0]) << 10
    assert peak_memory() == pytest.approx(most, rel=0.1)
    assert memory_text(1_234_500_000) == "1,234 MB"
    kills = oom_kills()
    assert kills is None or kills >= 0


def test_the_text_names_process_and_versions() -> None:
    text = ProcessInfo.own().text()
    assert f"process: {os.getpid()} on {os.uname().nodename}" in text
    for package in ("python", "autopeft", "torch", "transformers", "ray"):
        assert f"{package} " in text


def test_a_process_that_stands_still_is_told_from_one_that_works() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    watch = ProcessWatch(replace(ProcessInfo.own(), pid=busy.pid))
    try:
        assert not is_stopped(busy.pid)
        assert not is_stopped(waiting.pid)
        assert not watch.stopped
        busy.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 30
        while not is_stopped(busy.pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert watch.stopped
        assert stopped_below(os.getpid()) == [busy.pid]
        watch.kill()
        assert busy.wait(30) == -signal.SIGKILL
        assert not is_stopped(busy.pid)
    finally:
        watch.close()
        for process_ in (busy, waiting):
            process_.kill()
            process_.wait()


def test_who_listens_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        assert listener(port) == os.getpid()
    assert listener(port) is None
