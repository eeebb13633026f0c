from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from autopeft.search.execution import health
from autopeft.search.execution.health import Endpoint, HealthCheck, RayEndedError, answers_grpc

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@dataclass
class Server:
    """Accepts connections, and says something to each."""

    says: bytes | None = SETTINGS
    socket: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def run(self) -> None:
        kept = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.heard.append(connection.recv(100))
                if self.says is not None:
                    connection.sendall(self.says)
                kept.append(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def open_again(self, port: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.run, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.run, daemon=True).start()
    yield running
    running.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(answers_grpc, "__defaults__", (0.3,))
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(server: Server, clock: Clock, patience: float = 5.0) -> HealthCheck:
    endpoint = Endpoint("the head", "127.0.0.1", server.port, patience)
    return HealthCheck([endpoint], resume="autopeft search --resume this", clock=clock)


def test_a_grpc_server_is_told_from_others(server: Server, quick: None) -> None:
    assert answers_grpc("127.0.0.1", server.port)
    assert server.heard[0].startswith(b"PRI * HTTP/2.0")
    for says in (b"HTTP/1.1 400 Bad Request\r\n", None, b"abc"):
        server.says = says
        assert not answers_grpc("127.0.0.1", server.port)
    port = server.port
    server.close()
    with pytest.raises(ConnectionRefusedError):
        answers_grpc("127.0.0.1", port)


def test_behind_tls_nothing_more_than_a_connection_is_asked_for(
    server: Server, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.says = None
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert answers_grpc("127.0.0.1", server.port)


def test_a_place_that_refuses_is_dead_after_its_patience(server: Server, quick: None) -> None:
    clock, port = Clock(), server.port
    watching = make(server, clock)
    assert watching.answers()
    server.close()
    assert not watching.answers()
    assert watching.doubt
    clock.now = 4.9
    assert not watching.answers()
    clock.now = 5.0
    with pytest.raises(RayEndedError, match=rf"the head at 127\.0\.0\.1:{port} is gone.*--resume this"):
        watching.answers()


def test_a_place_that_comes_back_in_time_is_forgiven(server: Server, quick: None) -> None:
    clock, port = Clock(), server.port
    watching = make(server, clock)
    server.close()
    assert not watching.answers()
    server.open_again(port)
    clock.now = 4.0
    assert watching.answers()
    assert not watching.doubt
    server.close()
    clock.now = 6.0
    assert not watching.answers(), "its patience begins anew"


def test_a_silent_place_may_only_be_busy(server: Server, quick: None) -> None:
    clock = Clock()
    watching = make(server, clock)
    server.says = None
    for now in (0.0, 10.0, 20.0, 29.0):
        clock.now = now
        assert not watching.answers()
    clock.now = 30.0
    with pytest.raises(RayEndedError, match="is silent"):
        watching.answers()


def test_a_place_that_never_answered_is_not_watched(server: Server, quick: None) -> None:
    server.says = None
    clock = Clock()
    watching = make(server, clock)
    clock.now = 1000.0
    assert watching.answers()


def test_checks_are_made_once_a_second(server: Server, quick: None) -> None:
    clock = Clock()
    watching = make(server, clock)
    asked = len(server.heard)
    for now in (0.0, 0.3, 0.9, 1.0, 1.5, 2.0):
        clock.now = now
        watching.check()
    assert len(server.heard) - asked == 3


def test_settling_waits_for_an_answer(server: Server, quick: None) -> None:
    port = server.port
    watching = HealthCheck([Endpoint("the head", "127.0.0.1", port, 20.0)], resume="x")
    server.close()
    back = threading.Timer(0.6, server.open_again, args=(port,))
    back.start()
    watching.settle()
    assert not back.is_alive()
    assert not watching.doubt


def test_a_place_whose_process_stands_still_is_dead_sooner(
    server: Server, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(health, "listener", lambda port: 4711 if port == server.port else None)
    monkeypatch.setattr(health, "is_stopped", lambda pid: pid == 4711)
    endpoint = Endpoint("the raylet", "127.0.0.1", server.port, 3.0, here=True)
    watching = HealthCheck([endpoint], resume="x", clock=clock)
    server.says = None
    for now in (0.0, 4.0, 7.0):
        clock.now = now
        assert not watching.answers()
    clock.now = 8.0
    with pytest.raises(RayEndedError, match="is stopped"):
        watching.answers()


def test_where_this_process_stood_still_patience_begins_anew(server: Server, quick: None) -> None:
    clock = Clock()
    watching = make(server, clock)
    server.says = None
    assert not watching.answers()
    clock.now = 100.0
    assert not watching.answers(), "the others may have waited for this process"
    for now in (110.0, 120.0, 129.0):
        clock.now = now
        assert not watching.answers()
    clock.now = 130.0
    with pytest.raises(RayEndedError):
        watching.answers()


def test_settling_ends_where_it_does_not_matter_any_more(server: Server, quick: None) -> None:
    watching = make(server, Clock())
    server.says = None
    watching.settle(lambda: True)
    assert watching.doubt
