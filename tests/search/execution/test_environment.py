from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from autopeft.search.execution.environment import environment, quiet, signals


class Source:
    interrupted = 0

    def interrupt(self) -> None:
        self.interrupted += 1


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "mine")
    monkeypatch.delenv("TUNE_WARN_THRESHOLD_S", raising=False)
    before = dict(os.environ)
    during: list[str | None] = []

    def fail() -> None:
        with environment():
            during.extend(map(os.environ.get, ("RAY_USAGE_STATS_ENABLED", "TUNE_WARN_THRESHOLD_S")))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during == ["0", "3600"]
    assert dict(os.environ) == before


def test_what_is_meant_for_the_import_does_not_reach_rays_processes() -> None:
    with environment(importing=True):
        during = dict(os.environ)
    with environment():
        running = dict(os.environ)
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    assert name in during
    assert name not in running


def test_logging_is_as_before() -> None:
    logger = logging.getLogger("ray.tune")
    logger.setLevel(logging.INFO)
    with quiet():
        assert not logger.isEnabledFor(logging.ERROR)
    assert logger.level == logging.INFO


def test_the_first_signal_interrupts_and_the_second_ends() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    source = Source()

    def press_twice() -> None:
        with signals(source):  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGINT)
            assert source.interrupted == 1
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_interrupts_too() -> None:
    source = Source()
    with signals(source):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(0.1)
    assert source.interrupted == 1


def test_other_threads_leave_signals_alone() -> None:
    before, failed = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        try:
            with signals(Source()):  # type: ignore[arg-type]
                assert signal.getsignal(signal.SIGINT) is before
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
