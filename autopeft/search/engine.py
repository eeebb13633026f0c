"""The executor: jobs on Ray Tune workers that live through many jobs. The only file that imports Ray.

Tune runs, places and restarts; what to run and what came of it is the job source's business, and nothing
is ever read from Tune's own results. A worker trains in a thread of its own and reports about once a
second, so that progress, stopping and a dead worker are seen at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from autopeft.errors import AutoPEFTError
from autopeft.search.jobs import Job, JobResult, JobSource

__all__ = ["Pool", "run_jobs"]

Runner = Callable[[Any, Job, Callable[[int, float], None], Callable[[], bool]], JobResult]

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}
_OBJECT_STORE = 256 << 20
_REPORT_SECONDS = 1.0
_FINISHED: str = Searcher.FINISHED


@dataclass(frozen=True)
class Pool:
    """The workers of a search.

    Attributes:
        workers: jobs at a time; `None` for as many as the cluster has room for.
        cpus, gpus: what each job takes; `gpus` may be a fraction.
        address: an existing Ray cluster, or `None` for a private, local one.
    """

    workers: int | None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None


class _Worker(tune.Trainable):
    """One process that runs jobs, one at a time, in a thread; `step` waits for news of it.

    Errors of a job come back as its result, so that they cost neither the process nor what it has loaded.
    """

    def setup(self, config: dict[str, Any], runner: Runner, setup: Any) -> None:
        self._runner, self._setup = runner, setup
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="autopeft-job")
        self._begin(config["job"])

    def _begin(self, job: Job) -> None:
        self._job, self._news, self._halt = job, (0, float("nan")), threading.Event()
        halt = self._halt

        def on_step(step: int, loss: float) -> None:
            self._news = (step, loss)

        self._future: Future[JobResult] = self._thread.submit(
            self._runner, self._setup, job, on_step, halt.is_set
        )

    def step(self) -> dict[str, Any]:
        wait([self._future], timeout=_REPORT_SECONDS)
        step, loss = self._news
        if not self._future.done():
            return {"at": step, "loss": loss, "done": False}
        return {"at": step, "loss": loss, "done": True, "outcome": self._future.result()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config["job"])
        return True

    def _end(self) -> None:
        self._halt.set()
        wait([self._future])

    def cleanup(self) -> None:
        self._end()
        self._thread.shutdown()


class _SourceSearcher(Searcher):
    """Tune's view of a job source. What the source raises ends the run and is kept for the caller."""

    def __init__(self, source: JobSource, workers: int) -> None:
        super().__init__()
        self._source, self._workers = source, workers
        self._jobs: dict[str, Job] = {}
        self.fatal: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.fatal is not None:
            return _FINISHED
        if len(self._jobs) >= self._workers:
            return None
        with self._guard():
            job = self._source.next()
            if isinstance(job, Job):
                self._jobs[trial_id] = job
                return {"job": job}
            if job is None:
                return None
        return _FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._jobs and not result.get("done"):
            with self._guard():
                self._source.progress(self._jobs[trial_id].id, result["at"], result["loss"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._jobs.pop(trial_id, None)
        if job is None:
            return
        outcome = (result or {}).get("outcome")
        if not isinstance(outcome, JobResult):
            text = "The worker process ended before the job did (killed, or out of memory)."
            outcome = JobResult(job.id, error=text, failure="lost")
        with self._guard():
            self._source.complete(outcome)
        outcome.files.clear()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fatal = self.fatal or error

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study's journal holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study's journal holds everything."""


class _SourceStopper(Stopper):
    """Ends the run at once when the source was stopped, or failed."""

    def __init__(self, source: JobSource, searcher: _SourceSearcher) -> None:
        self._source, self._searcher = source, searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._source.stopped or self._searcher.fatal is not None


def run_jobs(source: JobSource, runner: Runner, setup: Any, pool: Pool, scratch: Path) -> None:
    """Run every job of `source` on `pool` until it has no more or is stopped.

    `runner(setup, job, on_step, should_stop)` is called in the workers and must not raise. Ctrl-C and SIGTERM
    interrupt the source once; a second one ends the process as usual. `scratch` is a folder for Tune's files.

    Raises:
        AutoPEFTError: Ray cannot be started or joined or fails, the pool is larger than the cluster, or the
            source cannot write any more.
    """
    with _environment(), _quiet(), _cluster(pool), _signals(source):
        workers = _room(pool)
        source.scale(workers)
        _tune(source, runner, setup, pool, workers, scratch)


def _tune(source: JobSource, runner: Runner, setup: Any, pool: Pool, workers: int, scratch: Path) -> None:
    searcher = _SourceSearcher(source, workers)
    resources = {"cpu": pool.cpus, **({"gpu": pool.gpus} if pool.gpus else {})}
    trainable = tune.with_resources(tune.with_parameters(_Worker, runner=runner, setup=setup), resources)
    scratch.mkdir(parents=True, exist_ok=True)
    tuner = Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(scratch),
            stop=_SourceStopper(source, searcher),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if searcher.fatal is None:
            first = str(error).strip().rpartition("\n")[2]
            raise AutoPEFTError(f"Ray ended the search: {first or type(error).__name__}") from error
    if isinstance(searcher.fatal, OSError):
        raise AutoPEFTError(
            f"The run folder cannot be used any more: {searcher.fatal}. What was written before is intact."
        ) from searcher.fatal
    if searcher.fatal is not None:
        raise searcher.fatal


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what Ray reads from the environment, and put back what was there."""
    before = {k: os.environ.get(k) for k in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's own log lines off the terminal: what matters is reported by the source."""
    loggers = [
        logging.getLogger(name) for name in ("ray", "ray.tune", "ray.air", "ray.train", "ray._private")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _cluster(pool: Pool) -> Iterator[None]:
    """The cluster at `pool.address`, the one that this process has joined already, or a private one."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "configure_logging": True,
    }
    temporary: str | None = None
    if pool.address is not None:
        options["address"] = pool.address
    else:
        temporary = tempfile.mkdtemp(prefix="apf-", dir=_short_tempdir())
        options.update(
            address="local",
            num_cpus=(pool.workers or 1) * pool.cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            _temp_dir=temporary,
        )
    try:
        try:
            _knock(pool.address)
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            where = (
                f"join the Ray cluster at {pool.address!r}" if pool.address else "start Ray on this machine"
            )
            raise AutoPEFTError(f"Cannot {where}: {error}") from error
        _tighten_token()
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _knock(address: str | None) -> None:
    """Fail at once where nobody listens at `host:port`; Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


def _short_tempdir() -> str:
    """A temporary folder short enough for Ray's sockets (a socket path holds 107 bytes)."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 or not os.access("/tmp", os.W_OK) else "/tmp"


def _tighten_token() -> None:
    """Ray writes its token readable by everyone; make it readable by its owner alone."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        token.chmod(0o600)


def _room(pool: Pool) -> int:
    """Jobs at a time: what was asked for, within what the cluster has room for."""
    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    room = int(cpus / pool.cpus)
    if pool.gpus:
        room = min(room, int(gpus / pool.gpus + 1e-6))
    if room < 1:
        raise AutoPEFTError(
            f"A job needs {pool.cpus} CPUs and {pool.gpus:g} GPUs, but Ray has {cpus:g} and {gpus:g}; "
            "lower --cpus-per-trial or --gpus-per-trial."
        )
    return room if pool.workers is None else min(room, pool.workers)


@contextlib.contextmanager
def _signals(source: JobSource) -> Iterator[None]:
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
