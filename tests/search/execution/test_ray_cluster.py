"""A private Ray, started for real: who can reach it, and which signals reach it."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.driving import Driver
from support.other_user import NOBODY, attempts

from autopeft.errors import AutoPEFTError
from autopeft.search.execution import ray_cluster
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.health import RayEndedError
from autopeft.search.execution.pool import Pool
from autopeft.search.execution.private_folder import private_folder


@dataclass
class Running:
    """A driver with a private Ray and a worker that is at work.

    Attributes:
        place: its temporary folder; as `/tmp`, everyone may write there.
        home: its home, where there was no token before.
    """

    driver: Driver
    place: Path
    home: Path

    @classmethod
    def start(cls, place: Path, **arguments: Any) -> Running:
        (home := place / "home").mkdir(mode=0o755)
        (temporary := place / "t").mkdir()
        temporary.chmod(0o1777)
        place.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
        before = os.umask(0)  # of a careless user: whatever is not protected on purpose is open
        try:
            driver = Driver.start(
                environment,
                folder=place / "scratch",
                **{"address": None, "workers": 1, "jobs": 1, "seconds": 600.0, **arguments},
            )
        finally:
            os.umask(before)
        running = cls(driver, temporary, home)
        running.driver.wait_for("begun")
        return running

    def processes(self) -> list[psutil.Process]:
        """The driver's descendants."""
        return psutil.Process(self.driver.process.pid).children(recursive=True)

    def listening(self) -> dict[str, set[str]]:
        """Addresses at which each program of it listens."""
        found: dict[str, set[str]] = {}
        for process in (psutil.Process(self.driver.process.pid), *self.processes()):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(process.name(), set()).add(connection.laddr.ip)
        return found

    def paths(self) -> list[Path]:
        """Everything in the private folder, the folder itself first."""
        (folder,) = self.place.glob("apf-*")
        return [folder, *folder.rglob("*")]

    def kill(self) -> list[psutil.Process]:
        """Kill the driver; those of its descendants that are still there two seconds later."""
        left = self.processes() if self.driver.process.poll() is None else []
        self.driver.process.kill()
        self.driver.process.wait()
        return list(psutil.wait_procs(left, 2)[1])

    def end(self) -> None:
        for process in (left := self.kill()):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, 10)


@pytest.fixture
def place() -> Iterator[Path]:
    """A new folder with a short path."""
    made = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))
    found = Running.start(made)
    yield found
    found.end()
    shutil.rmtree(made, ignore_errors=True)


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def test_it_listens_on_loopback_alone(running: Running) -> None:
    found = running.listening()
    assert {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= set(found)
    assert any(name.startswith("ray::") and "Agent" not in name for name in found), "no worker is seen"
    assert {name: all(map(is_loopback, at)) for name, at in found.items()} == dict.fromkeys(found, True)


def test_nobody_else_gets_into_its_folder_and_to_its_token(running: Running) -> None:
    folder, *inside = running.paths()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert any(path.is_socket() for path in inside)
    assert max(len(os.fsencode(path)) for path in inside if path.is_socket()) <= 107
    token = running.home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    assert list(running.place.iterdir()) == [folder], "nothing else lies in the temporary folder"


def test_signals_to_the_drivers_group_do_not_reach_it(running: Running) -> None:
    group = os.getpgid(running.driver.process.pid)
    found = running.processes()
    assert len(found) >= 6
    assert group not in {os.getpgid(process.pid) for process in found}


@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user needs root")
def test_another_user_can_neither_read_nor_replace_anything(running: Running) -> None:
    gcs, agent = (
        next(
            f"127.0.0.1:{c.laddr.port}"
            for process in running.processes()
            if process.name() == name
            for c in process.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        )
        for name in ("gcs_server", "ray::RuntimeEnvAgent")
    )
    token = running.home / ".ray" / "auth_token"
    shared = [p for p in Path("/dev/shm").iterdir() if "plasma" in p.name]
    asked = {
        "paths": [str(p) for p in (*running.paths(), token.parent, token, *shared)],
        "pids": [running.driver.process.pid, *(process.pid for process in running.processes())],
        "gcs": gcs,
        "http": agent,
    }
    tried = attempts(asked, user=NOBODY)
    assert len(tried) > 100
    assert {what: told for what, told in tried.items() if told is None} == {}, "this has worked"
    # The same attempts by the owner do work, or they would show nothing.
    mine = attempts({**asked, "harmless": True}, user=0, token=token.read_text())
    refused = {what for what, told in mine.items() if told is not None}
    assert not [what for what in refused if what.startswith(("list", "read", "connect", "gcs", "environ"))]


def test_what_outlives_a_killed_search_is_ended_by_the_next(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this search, which it kills."""
    monkeypatch.setenv("TMPDIR", str(running.place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = running.paths()[0]
    left = running.kill()
    assert any("Agent" in process.name() for process in left), "nothing has outlived it"
    with private_folder():
        assert not [process for process in left if process.is_running()]
        assert not folder.exists()


@pytest.mark.slow
def test_where_it_shall_listen_others_reach_it(place: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        mine = str(probe.getsockname()[0])
    running = Running.start(place, listen=mine)
    try:
        found = running.listening()
        assert not any(map(is_loopback, found["gcs_server"]))
        (told,) = running.driver.of("notice")
        assert f"`ray start --address={mine}:" in told["text"]
        assert stat.S_IMODE(running.paths()[0].stat().st_mode) == 0o700
    finally:
        running.end()


def test_the_token_is_there_before_ray_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    seen: list[tuple[int, int]] = []

    def init(**options: Any) -> None:
        token, folder = tmp_path / ".ray" / "auth_token", Path(options["_temp_dir"]).parent
        seen.extend((stat.S_IMODE(p.stat().st_mode), p.stat().st_size) for p in (token,))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise RuntimeError("far enough")

    monkeypatch.setattr(ray_cluster.ray, "init", init)
    with (
        pytest.raises(AutoPEFTError, match="Cannot start Ray on this machine: far enough"),
        DriverThread() as driver,
        ray_cluster.cluster(Pool(1), "resume", driver),
    ):
        pass
    assert seen == [(0o600, 64)]


HANDLERS = """
import json, os, signal, sys
from pathlib import Path
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.health import RayEndedError
from autopeft.search.execution.pool import Pool
from autopeft.search.execution.ray_cluster import cluster
mine = lambda number, frame: print("heard", number, flush=True)
signal.signal(signal.SIGTERM, mine)
with DriverThread() as driver, cluster(Pool(1), "resume", driver):
    os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
print("end", signal.getsignal(signal.SIGTERM) is mine)
"""


@pytest.mark.slow
def test_handlers_of_signals_stay_those_of_the_program() -> None:
    found = subprocess.run([sys.executable, "-c", HANDLERS], capture_output=True, text=True, timeout=120)
    assert found.stdout.splitlines() == ["heard 15", "heard 15", "end True"], found.stderr


def test_a_ray_that_listens_elsewhere_all_the_same_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **options: None)
    monkeypatch.setattr(ray_cluster, "secure_token", lambda: None)
    monkeypatch.setattr(ray_cluster, "_head", lambda: ("192.0.2.7", 1))
    with pytest.raises(AutoPEFTError, match=r"Ray listens at 192\.0\.2\.7.*--listen 192\.0\.2\.7"):
        ray_cluster._start(Pool(1), Path("/nowhere"), threading.Event())
    ray_cluster._start(Pool(1, listen="192.0.2.7"), Path("/nowhere"), threading.Event())


@dataclass
class Starting:
    """A Ray that does not come up: its head runs, and whoever started it waits."""

    head: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def init(self, **options: Any) -> None:
        folder = Path(options["_temp_dir"]).parent
        program = folder / "ray" / "core" / "gcs_server"
        program.parent.mkdir(parents=True)
        shutil.copy("/bin/sleep", program)
        self.head.append(subprocess.Popen([str(program), "60"]))
        time.sleep(60)

    def run(self) -> None:
        with DriverThread() as driver, ray_cluster.cluster(Pool(1), "resume", driver):
            raise AssertionError("it has not come up")


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch, place: Path) -> Starting:
    found = Starting()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(ray_cluster.ray, "init", found.init)
    monkeypatch.setattr(ray_cluster, "secure_token", lambda: None)
    monkeypatch.setattr(ray_cluster, "_NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(ray_cluster, "_STOPPED_SECONDS", 1.0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_start_that_waits_for_what_has_ended_is_given_up(starting: Starting, number: int) -> None:
    threading.Timer(1.5, lambda: starting.head[0].send_signal(number)).start()
    with pytest.raises(RayEndedError, match="Cannot start Ray"):
        starting.run()
    assert starting.head[0].wait(10) is not None


def test_ctrl_c_while_ray_starts_ends_what_it_has_started(starting: Starting) -> None:
    threading.Timer(1.5, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        starting.run()
    assert not psutil.pid_exists(starting.head[0].pid) or starting.head[0].poll() is not None
