"""What a run changes in its process and puts back: environment and log levels."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

__all__ = ["CHDIR", "environment", "quiet"]

CHDIR = "RAY_CHDIR_TO_TRIAL_DIR"
_RAY = ("ray", "ray.tune", "ray.air", "ray.train", "ray._private")
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
    # Where Ray's own monitor kills a worker for its memory, Tune ends the whole run (Ray 2.56). Without it
    # the system ends a worker, as Ray asks it to, and the job is given out again with fewer rows at once.
    "RAY_memory_monitor_refresh_ms": "0",
    # While Ray waits for its head to come up, nothing else runs in this process.
    "RAY_gcs_server_port_wait_time_s": "25",
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
