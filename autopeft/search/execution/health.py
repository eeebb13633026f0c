"""Whether the processes that a Ray driver depends on still answer: the raylet of its node, and the head.

Without them Ray's calls block, and after a minute Ray ends the whole process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autopeft.errors import AutoPEFTError
from autopeft.search.execution.process import is_stopped, listener

__all__ = ["Endpoint", "HealthCheck", "RayEndedError", "answers_grpc"]

# What a client of HTTP/2, on which gRPC stands, says first; a server answers with its settings, frame type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4
_HEADER = 9
_ANSWER_SECONDS = 3.0
_EVERY = 1.0
_PATIENCE = {"silent": 30.0, "stopped": 8.0}  # seconds
_PAUSE_SECONDS = 10.0


class RayEndedError(AutoPEFTError):
    """Ray itself ended during a run; what was finished before is on disk."""


@dataclass
class Endpoint:
    """A gRPC server that must answer.

    Attributes:
        patience: seconds that it may be gone before it counts as dead.
        here: whether it is known to be a process of this machine.
    """

    name: str
    host: str
    port: int
    patience: float
    here: bool = False


def answers_grpc(host: str, port: int, timeout: float = _ANSWER_SECONDS) -> bool:
    """Whether a gRPC server answers at `host:port`; `False` if something else does, or only accepts.

    Raises:
        OSError: nobody listens there.
    """
    with socket.create_connection((host, port), timeout=timeout) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false", "False"):
            return True  # it speaks only after a handshake
        connection.sendall(_PREFACE)
        found = b""
        try:
            while len(found) < _HEADER:
                part = connection.recv(_HEADER - len(found))
                if not part:
                    return False
                found += part
        except OSError:
            return False
    return found[3] == _SETTINGS


class HealthCheck:
    """Watches the endpoints that answered when it was made.

    An endpoint that refuses is dead after its patience. One that only is silent is so after 30 s, as the
    machine may be busy, unless its process stands still, as after SIGSTOP: then after 8 s.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], *, resume: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._resume = clock, resume
        self._endpoints = [endpoint for endpoint in endpoints if _state(endpoint) is None]
        self._gone: dict[int, float] = {}
        self._next = clock()

    @property
    def doubt(self) -> bool:
        """Whether an endpoint did not answer when it was last looked at."""
        return bool(self._gone)

    def check(self) -> None:
        """Look about once a second.

        Raises:
            RayEndedError: an endpoint is dead.
        """
        if self._clock() >= self._next:
            self.answers()

    def answers(self) -> bool:
        """Look now; whether every endpoint answers.

        Raises:
            RayEndedError: an endpoint is dead.
        """
        begin = self._clock()
        if begin - self._next > _PAUSE_SECONDS:
            self._gone.clear()  # this process stood still itself, and the others may have waited for it
        states = [_state(endpoint) for endpoint in self._endpoints]
        now = self._clock()
        self._next = now + _EVERY
        for i, (endpoint, state) in enumerate(zip(self._endpoints, states, strict=True)):
            if state is None:
                self._gone.pop(i, None)
                continue
            since = self._gone.setdefault(i, begin)
            if now - since >= _PATIENCE.get(state, endpoint.patience):
                address = f"{endpoint.host}:{endpoint.port}"
                raise RayEndedError(
                    f"Ray ended during the search: {endpoint.name} at {address} is {state}. "
                    f"Everything that had finished is on disk; go on with `{self._resume}`."
                )
        return all(state is None for state in states)

    def settle(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Come back once every endpoint answers, or it does not matter any more.

        Raises:
            RayEndedError: one is dead.
        """
        while not self.answers() and not unless():
            time.sleep(_EVERY / 4)


def _state(endpoint: Endpoint) -> str | None:
    """What is wrong with an endpoint, if anything: it is `gone`, `silent` or `stopped`."""
    try:
        if answers_grpc(endpoint.host, endpoint.port):
            return None
    except ConnectionRefusedError:
        return "gone"
    except OSError:
        pass  # it is silent as well
    pid = listener(endpoint.port) if endpoint.here else None
    return "silent" if pid is None or not is_stopped(pid) else "stopped"
