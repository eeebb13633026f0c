from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopeft.search.execution.private_folder import end_processes, processes_of

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with a title and an open file."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(title: str, file: Path, **more: int) -> subprocess.Popen[bytes]:
        with file.open() as opened:
            begun.append(subprocess.Popen([title, "300"], executable="/bin/sleep", stdin=opened, **more))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def folder_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "agent.log").touch()
    return folder


def test_what_is_left_of_a_ray_is_ended_and_nothing_else(tmp_path: Path, start: Start) -> None:
    mine, another = folder_of(tmp_path, "apf-a"), folder_of(tmp_path, "apf-ab")
    agent = start("ray::DashboardAgent", mine / "agent.log")
    looks_on = start("tail", mine / "agent.log")
    anothers = start("ray::DashboardAgent", another / "agent.log")
    found = {process.pid for process in processes_of(mine)}
    assert found == {agent.pid}
    end_processes(mine)
    assert agent.poll() is not None
    assert looks_on.poll() is None
    assert anothers.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="to start another user's process needs root")
def test_another_users_processes_are_left_alone(tmp_path: Path, start: Start) -> None:
    mine = folder_of(tmp_path, "apf-a")
    theirs = start("ray::DashboardAgent", mine / "agent.log", user=65534)
    end_processes(mine)
    assert theirs.poll() is None


def test_programs_of_ray_are_told_by_their_command_line(tmp_path: Path) -> None:
    mine = folder_of(tmp_path, "apf-a")
    log = f"--log_dir={mine}/r/session/logs"
    program = tmp_path / "ray" / "core" / "gcs_server"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/sh")
    begun = [
        subprocess.Popen([str(program), "-c", "while :; do sleep 1; done", log]),
        subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 1; done", log]),
    ]
    try:
        assert {process.pid for process in processes_of(mine)} == {begun[0].pid}
    finally:
        for process in begun:
            process.kill()
            process.wait()
