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

from autopeft.search.execution.job_log import WorkerTrace
from autopeft.search.execution.process import (
    ProcessInfo,
    is_stopped,
    listener,
    memory_text,
    oom_kills,
    peak_memory,
    stopped_below,
)


def test_a_process_of_another_machine_is_not_taken_for_one_of_this() -> None:
    assert ProcessInfo.own().here
    assert not replace(ProcessInfo.own(), space="another boot").here
    assert not replace(ProcessInfo.own(), space="").here


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
    trace = WorkerTrace()
    trace.introduce(replace(ProcessInfo.own(), pid=busy.pid))
    try:
        assert not is_stopped(busy.pid)
        assert not is_stopped(waiting.pid)
        assert not trace.stopped
        busy.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 30
        while not is_stopped(busy.pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert trace.stopped
        assert stopped_below(os.getpid()) == [busy.pid]
        trace.kill()
        assert busy.wait(30) == -signal.SIGKILL
        assert not is_stopped(busy.pid)
    finally:
        for process in (busy, waiting):
            process.kill()
            process.wait()


def test_who_listens_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        assert listener(port) == os.getpid()
    assert listener(port) is None
