"""A Ray cluster of real processes on this machine: a `ray start` for the head and one for each further node.

Every node is a session of its own, so that all of its processes are found and ended by their ids; `ray stop`,
which ends every Ray of a machine, is never used.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Node", "RayCluster", "command_of", "processes", "ray_cluster"]

_START_SECONDS = 120
_STORE = 80 << 20


@dataclass
class Node:
    """One node: the session of a `ray start --block`."""

    process: subprocess.Popen[bytes]
    log: Path

    def pids(self, part: str = "") -> list[int]:
        """Its living processes whose command line contains `part`."""
        return [pid for pid in processes(self.process.pid) if part in command_of(pid)]

    def kill(self, part: str = "") -> None:
        """SIGKILL its processes whose command line contains `part`; by default all, as if the power went."""
        found = self.pids(part)
        assert found, f"the node has no process {part!r}"
        for pid in found:
            _kill(pid)

    def end(self) -> None:
        """End it, however broken it is."""
        deadline = time.monotonic() + 30
        while (left := processes(self.process.pid)) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid)
            time.sleep(0.1)
        self.process.wait(10)

    def wait_started(self) -> None:
        """Wait until it has joined.

        Raises:
            RuntimeError: it ended, or did not come up in two minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            said = self.log.read_text(errors="replace")
            if "Ray runtime started" in said:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"a Ray node did not start:\n{self.log.read_text(errors='replace')}")


@dataclass
class RayCluster:
    """A head, which has no CPUs and so runs no jobs, and the nodes that join it.

    Attributes:
        folder: for everything that Ray writes; short, as Ray's sockets lie in it.
        environment: what a driver needs to join: the token, and a temporary folder and a home of its own.
    """

    folder: Path
    port: int
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def start_head(self) -> Node:
        return self._start(
            "--head",
            f"--port={self.port}",
            "--num-cpus=0",
            "--num-gpus=0",
            "--include-dashboard=false",
            f"--temp-dir={self.folder / 'ray'}",
        )

    def add(self, *, cpus: int = 1, gpus: int = 0, environment: Mapping[str, str] | None = None) -> Node:
        """Let a node with logical CPUs and GPUs join; `environment` is for its processes alone."""
        return self._start(
            f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}", **(environment or {})
        )

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.end()

    def _start(self, *options: str, **environment: str) -> Node:
        log = self.folder / f"node-{len(self.nodes)}.log"
        common = ("--block", "--include-log-monitor=false", f"--object-store-memory={_STORE}")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *common],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment | environment,
                start_new_session=True,
            )
        node = Node(process, log)
        self.nodes.append(node)
        node.wait_started()
        return node


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A head that nodes can join; all is ended and removed afterwards, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    (folder / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {
        "HOME": str(folder / "home"),
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    cluster = RayCluster(folder, _free_port(), environment)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


def processes(session: int) -> list[int]:
    """Ids of the processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def command_of(pid: int) -> str:
    """Its command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
