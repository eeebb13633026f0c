"""What a run changes in its process and puts back: environment, log levels, signals. And Ray's token."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from autopeft.search.core.jobs import JobSource

__all__ = ["CHDIR", "environment", "private_folder", "quiet", "signals", "tighten_token", "token_hint"]

CHDIR = "RAY_CHDIR_TO_TRIAL_DIR"
_TOKEN = "~/.ray/auth_token"
_RAY = ("ray", "ray.tune", "ray.air", "ray.train", "ray._private")
_PREFIX, _LOCK = "apf-", "in-use"
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    CHDIR: "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}
# A process that has not reached Ray's head for so long is ended by Ray, by default after a minute and even if
# it has left by then. When to give up is decided here. Ray's own processes keep the default.
_AT_IMPORT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "100000"}


@contextlib.contextmanager
def environment(*, importing: bool = False) -> Iterator[None]:
    """Set what Ray reads from the environment, at import or when it runs; put back what was there."""
    wanted = _AT_IMPORT if importing else _ENVIRONMENT
    before = {k: os.environ.get(k) for k in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep log lines off the terminal, by default Ray's own: what matters is reported by the source."""
    loggers = [logging.getLogger(name) for name in names or _RAY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder for a Ray of one's own; those that killed processes have left are removed as well.

    Its path is short, as Ray's sockets lie in it and the path of a socket holds 107 bytes.
    """
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 24 and os.access("/tmp", os.W_OK):
        root = Path("/tmp")
    for lock in root.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tighten_token() -> None:
    """Ray writes its token readable by everyone; make it readable by its owner alone."""
    token = Path(_TOKEN).expanduser()
    if token.is_file() and token.stat().st_uid == os.getuid() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        token.chmod(0o600)


def token_hint() -> str:
    """What may be wrong where a cluster cannot be joined: Ray does not always say so itself."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has = bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or _TOKEN).expanduser().is_file()
    return (
        "A cluster that uses tokens wants the same one on every machine, and this one has "
        f"{'one, which may be another' if has else 'none'}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
        f"copy {_TOKEN}."
    )


@contextlib.contextmanager
def signals(source: JobSource) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an interruption of the source; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, frame: FrameType | None) -> None:
        source.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
