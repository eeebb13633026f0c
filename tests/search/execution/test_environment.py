from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from autopeft.search.execution.environment import (
    environment,
    private_folder,
    quiet,
    signals,
    tighten_token,
    token_hint,
)


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


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder whose path counts as short."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    return tmp_path


KILLED = """
import os, signal, sys, tempfile
from autopeft.search.execution.environment import private_folder
os.access = lambda *a, **k: False
with private_folder() as folder:
    (folder / "session").mkdir()
    print(folder, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
"""


def test_folders_of_killed_processes_are_removed_and_those_in_use_are_not(root: Path) -> None:
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run([*command, "die"], capture_output=True, text=True)
    living = subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    try:
        theirs, mine = Path(living.stdout.readline().strip()), Path(killed.stdout.strip())
        other = root / "apf-of-something-else"
        other.mkdir()
        assert mine.parent == theirs.parent == root
        with private_folder() as folder:
            assert folder.is_dir()
            assert not mine.exists()
            assert (theirs / "session").is_dir()
            assert other.is_dir()
        assert not folder.exists()
    finally:
        living.communicate("\n")
    assert not theirs.exists()


def test_a_long_temporary_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ray").mkdir()
    return tmp_path


def test_the_token_is_made_readable_by_its_owner_alone(home: Path) -> None:
    tighten_token()
    token = home / ".ray" / "auth_token"
    token.write_text("x")
    token.chmod(0o644)
    tighten_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_the_hint_says_whether_there_is_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "this one has none" in token_hint()
    (home / ".ray" / "auth_token").write_text("x")
    assert "may be another" in token_hint()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "elsewhere"))
    assert "this one has none" in token_hint()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "may be another" in token_hint()
    assert "secret" not in token_hint()


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
