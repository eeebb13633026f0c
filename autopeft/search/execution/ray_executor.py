"""The executor: jobs on Ray Tune workers that live through many jobs.

Tune starts workers, places them and notices when they die; jobs and their results are the job
source's business. To Tune a worker is a trial, and jobs are handed to it: what Tune keeps of its trials does
not grow with the jobs, and workers that are slow to come up are waited for however short the jobs are. A
worker trains in a thread of its own and reports about once a second, so that progress, stopping and death are
seen at once.

Ray's calls block when Ray itself is gone, and a minute later Ray ends the process. So Tune has a thread of
its own; the caller's thread serves the source, watches Ray, and leaves in time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import AutoPEFTError
from autopeft.interruption import heeded
from autopeft.search.core.jobs import Job, JobResult, JobSource, Progress
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.environment import CHDIR, environment, quiet
from autopeft.search.execution.executor import STOP_SECONDS, Runner, raise_error_of_source
from autopeft.search.execution.health import HealthCheck, RayEndedError
from autopeft.search.execution.job_log import finished_log
from autopeft.search.execution.pool import Capacity, Pool
from autopeft.search.execution.process import ProcessInfo, is_stopped, peak_memory
from autopeft.search.execution.ray_cluster import cluster, mute, nodes, one_ray
from autopeft.search.execution.scheduler import Scheduler

with environment(importing=True):
    import ray
    from ray import tune
    from ray.exceptions import RayError
    from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
    from ray.tune.search import Searcher
    from ray.tune.stopper import NoopStopper, Stopper
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    # It needs torch and transformers, which not every worker does.
    from autopeft.search.execution.model_transfer import ModelFiles

__all__ = ["Pool", "RayExecutor", "run_jobs"]

_REPORT_SECONDS = 1.0
_IDLE_SECONDS = 0.25
_LOOKS = 6
_FINISHED: str = Searcher.FINISHED


class _Worker(tune.Trainable):
    """One process that runs jobs, one at a time, in a thread; `step` waits for news of it.

    Errors of a job come back as its result, so that they cost neither the process nor what it has loaded.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        os.environ[CHDIR] = "0"  # the driver's environment is not that of other machines
        super().__init__(*args, **kwargs)

    def setup(self, config: dict[str, Any], runner: Runner, setup: Any, stored: _StoredFiles | None) -> None:
        self._runner, self._setup = runner, setup
        if stored is not None:
            stored.announce()
        self._node = ray.get_runtime_context().get_node_id()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="autopeft-job")
        self._future: Future[JobResult] | None = None
        self._halt, self._introduced = threading.Event(), False
        self._about = ProcessInfo.own()

    def give(self, job: Job) -> None:
        """Begin a job; the one before has ended."""
        self._news = (0, float("nan"))

        def on_step(step: int, loss: float) -> None:
            self._news = (step, loss)

        self._future = self._thread.submit(self._logged, job, on_step)

    def _logged(self, job: Job, on_step: Progress) -> JobResult:
        begins = self._about.output.ends()
        outcome = self._runner(self._setup, job, on_step, self._halt.is_set)
        outcome.log = finished_log(self._about, outcome.log, self._about.output.since(begins))
        return outcome

    def step(self) -> dict[str, Any]:
        if not self._introduced:
            self._introduced = True
            handle = ray.get_runtime_context().current_actor
            return {"handle": handle, "about": self._about, "node": self._node, **self._state()}
        if self._future is None:
            time.sleep(_IDLE_SECONDS)
            return {"idle": True}
        wait([self._future], timeout=_REPORT_SECONDS)
        if not self._future.done():
            return {"news": self._news, "peak": peak_memory()}
        outcome, self._future = self._future.result(), None
        outcome.worker = f"{outcome.worker}@{self._node[:6]}"
        return {"outcome": outcome, **self._state()}

    def _state(self) -> dict[str, Any]:
        """What the driver needs to tell how this process ended, if it ends before its next job does."""
        return {"ends": self._about.output.ends(), "peak": peak_memory()}

    def cleanup(self) -> None:
        self._halt.set()
        self._thread.shutdown()
        folder = Path(self.logdir)
        _remove_empty(folder, *list(folder.parents)[:3])


def _remove_empty(*folders: Path) -> None:
    """Remove folders, from the innermost on, as long as they are empty.

    Tune makes them on every machine: the worker's, and around it the run's, which goes with the last worker.
    """
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@dataclass(frozen=True)
class _StoredFiles:
    """A backbone's files in the object store; the reference is in a tuple, where Ray does not follow it by
    itself."""

    path: str
    files: dict[str, tuple[int, str]]
    reference: tuple[Any]

    @staticmethod
    def of(model_files: ModelFiles) -> _StoredFiles:
        """Put it there.

        Raises:
            AutoPEFTError: there is no room for it.
        """
        try:
            reference = ray.put(dict(model_files.contents))
        except RayError as error:
            raise AutoPEFTError(
                f"Ray cannot sent the files of {model_files.path!r} ({error}): start the head with a larger "
                "--object-store-memory, or put the model on the hub."
            ) from error
        return _StoredFiles(model_files.path, model_files.files, (reference,))

    def announce(self) -> None:
        """In a worker: say what there is; nothing is brought before it is needed."""
        from autopeft.search.execution.model_transfer import SentFiles, receive

        receive(SentFiles(self.path, self.files, lambda: ray.get(self.reference[0])))


class _Searcher(Searcher):
    """To Tune, a worker is a trial: it asks here for more of them."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._scheduler.stop():
            return _FINISHED
        return {"worker": trial_id} if self._scheduler.request_worker(trial_id) else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn: the source hears of jobs."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study's journal holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study's journal holds everything."""

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        # Tune writes it to the disk for a run that is restored, which ours never is.
        return Searcher, ()


class _Stopper(Stopper):
    """Passes results on before Tune keeps them, and ends the run when the scheduler says so."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._scheduler.receive(trial_id, result)
        return False

    def stop_all(self) -> bool:
        return self._scheduler.stop()

    def __reduce__(self) -> tuple[type[Stopper], tuple[()]]:
        # As the searcher's.
        return NoopStopper, ()


class _Events(Callback):
    """Hears of workers that ended, and in the end removes what Tune wrote on the driver's machine.

    That lies in Ray's own folder, and would outlive the run on a cluster that was joined.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._folder: Path | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._folder = Path(trial.local_path).parents[2]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        said, text = ["no reason is known"], ""
        with contextlib.suppress(OSError, TypeError):  # no file, or no name of one
            text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
            said += [line.strip() for line in text.split("\n") if line.strip()]
        self._scheduler.worker_lost(trial.trial_id, said[-1], text)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        # As the searcher's.
        return Callback, ()


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs on a pool of Ray's workers (see `Executor`, and `run_jobs` for the arguments)."""

    pool: Pool
    scratch: Path
    model_files: ModelFiles | None = None
    resume: str = "autopeft search --resume RUN"
    logs: Path | None = None
    notify: Callable[[str], None] | None = None

    def run_jobs(
        self, source: JobSource, runner: Runner, setup: Any, *, ending: Callable[[], None] | None = None
    ) -> None:
        """See `run_jobs`."""
        run_jobs(
            source,
            runner,
            setup,
            self.pool,
            self.scratch,
            model_files=self.model_files,
            ending=ending,
            resume=self.resume,
            logs=self.logs,
            notify=self.notify,
        )


def run_jobs(
    source: JobSource,
    runner: Runner,
    setup: Any,
    pool: Pool,
    scratch: Path,
    *,
    model_files: ModelFiles | None = None,
    ending: Callable[[], None] | None = None,
    resume: str = "autopeft search --resume RUN",
    logs: Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Run every job of `source` on `pool` until it has no more or is stopped.

    `runner(setup, job, on_step, should_stop)` is called in the workers and must not raise. Ctrl-C and SIGTERM
    interrupt the source; a Ctrl-C once it is stopped ends the process as usual. The source is called in this
    thread.

    Once the source is interrupted, the run ends well even where Ray ends, which may have got the signal too.

    A job whose worker or machine is lost comes back with failure `lost`; machines that join are used.

    Args:
        scratch: a folder for Tune's files.
        model_files: what workers on other machines may need (see `model_transfer`).
        ending: is called in this thread when no job runs any more, while Ray is still there.
        resume: the command that continues the run, for the message where Ray ends.
        logs: a folder for the logs of a private Ray, where the run ends with an error; `None` to lose them.
        notify: takes a line that says how machines join a private Ray that others can reach.

    Raises:
        RayEndedError: Ray's own processes ended, within a minute of that.
        AutoPEFTError: Ray cannot be started or joined or fails, the pool is larger than the cluster, or the
            source cannot write any more.
    """
    watched = _Interruption(source)
    with (
        environment(),
        quiet(),
        mute(),
        one_ray(),
        DriverThread() as driver,
        cluster(pool, resume, driver, logs, notify, lambda: watched.came) as there,
    ):
        with heeded(watched.interrupt, lambda: source.stopped):
            capacity = Capacity(pool, nodes, resume=resume)
            source.scale(capacity.size)
            scheduler = Scheduler(
                source,
                capacity,
                driver,
                there.health,
                _give,
                look_there=_look_there,
                look_at_starting=there.end_stopped,
            )
            stored = None if model_files is None else _StoredFiles.of(model_files)
            tuner = _tuner(scheduler, {"runner": runner, "setup": setup, "stored": stored}, pool, scratch)
            _fit(tuner, scheduler, driver, there.health, watched)
        if scheduler.fatal is not None:
            raise_error_of_source(scheduler.fatal)
        if ending is not None:
            ending()


class _OverdueError(Exception):
    """The jobs did not heed an interruption in time."""


class _Interruption:
    """What an interruption of the source leads to."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self.came = False
        self._stopped: float | None = None

    def interrupt(self) -> None:
        """Interrupt the source."""
        self.came = True
        self._source.interrupt()

    def check(self) -> None:
        """Look whether the jobs end in time.

        Raises:
            _OverdueError: they do not.
        """
        if not (self.came and self._source.stopped):
            return
        now = time.monotonic()
        self._stopped = self._stopped or now
        if now - self._stopped > STOP_SECONDS:
            raise _OverdueError


def _fit(
    tuner: Tuner, scheduler: Scheduler, driver: DriverThread, health: HealthCheck, watched: _Interruption
) -> None:
    """Let Tune run until the scheduler ends it; what the source raised is in `scheduler.fatal`."""

    def between() -> None:
        health.check()
        watched.check()

    try:
        driver.run(tuner.fit, between)
    except _OverdueError:
        return  # the workers end with Ray
    except RayEndedError:
        if not watched.came:
            raise
    except Exception as error:
        if watched.came:
            return
        health.settle()
        if scheduler.fatal is None:
            first = str(error).strip().rpartition("\n")[2]
            raise AutoPEFTError(f"Ray ended the search: {first or type(error).__name__}") from error


def _give(handle: Any, job: Job) -> Callable[[], str]:
    return partial(_refusal, handle.give.remote(job))


def _refusal(given: Any) -> str:
    """Why a job did not arrive, as where the worker lacks the package that its type is from."""
    try:
        ray.get(given, timeout=_REPORT_SECONDS)
    except Exception as error:  # whatever reading the job there has raised
        return str(error).strip().rpartition("\n")[2] or type(error).__name__
    return "no reason is known."


def _look_there(node: str, pid: int) -> None:
    """On the machine of a worker, end its process if it stands still; what comes of it shows by itself."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(_end_if_stopped).options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(pid)


def _end_if_stopped(pid: int) -> None:
    for _ in range(_LOOKS):
        if not is_stopped(pid):
            return
        time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)


def _tuner(scheduler: Scheduler, parameters: dict[str, Any], pool: Pool, scratch: Path) -> Tuner:
    resources = {"cpu": pool.cpus, **({"gpu": pool.gpus} if pool.gpus else {})}
    trainable = tune.with_resources(tune.with_parameters(_Worker, **parameters), resources)
    trainable.__qualname__ = _Worker.__qualname__  # the name of its processes
    scratch.mkdir(parents=True, exist_ok=True)
    return Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=_Searcher(scheduler),
            num_samples=-1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(scratch.absolute()),
            stop=_Stopper(scheduler),
            callbacks=[_Events(scheduler)],
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
