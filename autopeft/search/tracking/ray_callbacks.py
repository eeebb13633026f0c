"""TensorBoard, MLflow and W&B through Ray's own callbacks. Imports Ray, as the executor does.

The callbacks are called directly, with a trial of Ray's that stands for an entry and that Tune never sees.
What they do beside logging is undone here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.search.execution.environment import environment, quiet
from autopeft.search.tracking.background import Tracker
from autopeft.search.tracking.entry import TrackedRun

with environment(importing=True):
    import ray
    from ray.exceptions import RayTaskError
    from ray.tune.experiment import Trial
    from ray.tune.logger import LoggerCallback, TBXLoggerCallback
    from ray.tune.result import TRAINING_ITERATION
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["open_tracker"]

# Each W&B run takes two processes and some seconds while it is written.
_AT_ONCE = 2


class _Trial(Trial):
    """An entry as Ray's callbacks want it, with a folder that we choose."""

    def __init__(self, entry: TrackedRun, run: str, folder: Path) -> None:
        self._folder = folder
        super().__init__(
            "autopeft",
            stub=True,
            trial_id=f"{run}-{entry.name}",
            config=dict(entry.config),
            trial_name_creator=lambda trial: entry.name,
        )

    @property
    def local_path(self) -> str:
        return str(self._folder)

    def init_local_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)


class _Called:
    """A callback, and a trial for each entry that is open."""

    def __init__(self, callback: LoggerCallback, folder: Path, run: str) -> None:
        self._callback, self._folder, self._run = callback, folder, run
        self._trials: dict[str, _Trial] = {}

    def report(self, entry: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        self._callback.log_trial_result(0, self._trials[entry.name], {TRAINING_ITERATION: step, **metrics})

    def rest(self, entry: TrackedRun, *, last: bool) -> None:
        trial = self._trials.pop(entry.name, None)
        if trial is not None:
            self._callback.log_trial_end(trial)

    def end(self, entry: TrackedRun, state: str) -> None:
        trial = self._trials.pop(entry.name)
        trial.evaluated_params = {**entry.config, "state": state}
        self._callback.log_trial_end(trial, failed=state == "failed")


class _TensorBoard(_Called):
    """A folder for each entry, in it a file for each time that it was begun or went on.

    Hyperparameters are written at the end alone: TensorBoard keeps the first that it reads.
    """

    def start(self, entry: TrackedRun) -> None:
        folder = self._folder / entry.name
        # tensorboardX names a file by the second, and writes over one of that name.
        while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        trial = self._trials[entry.name] = _Trial(entry, self._run, folder)
        self._callback.log_trial_start(trial)


class _MLflow(_Called):
    """A run for each entry, found again by its tags; the state is a tag.

    Args:
        client: MLflow's own, for what the callback does not do.
    """

    def __init__(self, callback: LoggerCallback, folder: Path, run: str, client: Any) -> None:
        super().__init__(callback, folder, run)
        self._client = client

    def start(self, entry: TrackedRun) -> None:
        trial = self._trials[entry.name] = _Trial(entry, self._run, self._folder)
        known = self._client.search_runs(
            [self._callback.mlflow_util.experiment_id],
            f"tags.autopeft_run = '{self._run}' and tags.trial_name = '{entry.name}'",
            max_results=1,
        )
        for found in known:
            self._client.update_run(found.info.run_id, status="RUNNING")
            self._callback._trial_runs[trial] = found.info.run_id
        self._callback.log_trial_start(trial)

    def rest(self, entry: TrackedRun, *, last: bool) -> None:
        if entry.name in self._trials:
            self.end(entry, "paused")

    def end(self, entry: TrackedRun, state: str) -> None:
        self._client.set_tag(self._callback._trial_runs[self._trials[entry.name]], "state", state)
        super().end(entry, state)


class _WandB:
    """A run for each entry, written in one go when it rests or ends.

    Ray's callback has two processes for each run that is open, and trials may rest on a rung for as long as a
    search takes. A run without a server cannot be gone on with, and is written at the very end alone.
    """

    def __init__(self, callback: LoggerCallback, folder: Path, run: str, *, online: bool) -> None:
        self._callback, self._folder, self._run, self._online = callback, folder, run, online
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._writing: dict[str, Any] = {}

    def start(self, entry: TrackedRun) -> None:
        self._held.setdefault(entry.name, [])

    def report(self, entry: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        self._held[entry.name].append({TRAINING_ITERATION: step, **metrics})

    def rest(self, entry: TrackedRun, *, last: bool) -> None:
        if entry.name in self._held and (self._online or last):
            self.end(entry, "paused")

    def end(self, entry: TrackedRun, state: str) -> None:
        results = self._held.pop(entry.name)
        if not results:
            return
        if not ray.is_initialized():
            raise AutoPEFTError("Ray has ended, in whose processes it is logged")
        # One at a time of the same entry, each with a trial of its own: the callback takes the run of a trial
        # that it knows for one that is still open.
        while entry.name in self._writing or len(self._writing) >= _AT_ONCE:
            self._collect(1)
        trial = _Trial(entry, self._run, self._folder / "wandb")
        trial.init_local_path()
        self._callback._remote_logger_class = self._callback._remote_logger_class or _wandb_process(
            self._callback._logger_actor_cls
        )
        self._callback.log_trial_start(trial)
        self._writing[entry.name] = self._callback._trial_logging_futures[trial]
        # It puts what stands under `config` with the run's configuration.
        results[-1]["config"] = {"state": state}
        for result in results:
            self._callback.log_trial_result(0, trial, result)
        self._callback.log_trial_end(trial)

    def close(self) -> None:
        """Wait for what is being written."""
        self._collect(len(self._writing))
        self._callback.on_experiment_end([])

    def _collect(self, count: int) -> None:
        """Wait for some of the runs that are being written; the callback never looks whether they failed."""
        done, _ = ray.wait(list(self._writing.values()), num_returns=count) if count else ([], [])
        self._writing = {name: run for name, run in self._writing.items() if run not in done}
        try:
            ray.get(done)
        except RayTaskError as error:
            raise AutoPEFTError(str(error).strip().rpartition("\n")[2]) from error


def _wandb_process(writer: type) -> Any:
    """What writes a run, on this machine and with all that this process's environment says of W&B.

    The callback's own has the key alone, and on a cluster would take that to another server than ours.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    said = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    return ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": said})(writer)


@contextmanager
def _tensorboard(folder: Path, run: str) -> Iterator[Tracker]:
    """Files under the run folder's `tensorboard`."""
    yield _TensorBoard(TBXLoggerCallback(), folder / "tensorboard", run)


@contextmanager
def _mlflow(folder: Path, run: str) -> Iterator[Tracker]:
    """The server or store at `MLFLOW_TRACKING_URI`, or a database in the run folder's `mlflow`."""
    import mlflow
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        (folder / "mlflow").mkdir(exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    callback = MLflowLoggerCallback(
        uri,
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME") or folder.name,
        tags={"autopeft_run": run},
    )
    try:
        with quiet("mlflow"):
            callback.setup()
        yield _MLflow(callback, folder, run, mlflow.MlflowClient(uri))
    finally:
        # The callback sets it for the whole process and, in the environment, for all that follows.
        mlflow.set_tracking_uri(before)


@contextmanager
def _wandb(folder: Path, run: str) -> Iterator[Tracker]:
    """A group in the project `WANDB_PROJECT`, or `autopeft`, and files in the run folder's `wandb`."""
    from ray.air.integrations.wandb import WandbLoggerCallback

    callback = WandbLoggerCallback(
        os.environ.get("WANDB_PROJECT") or "autopeft",
        folder.name,
        dir=str(folder),  # W&B adds its own name
        resume="allow",
    )
    callback.setup()
    tracker = _WandB(callback, folder, run, online=os.environ.get("WANDB_MODE", "online") == "online")
    yield tracker
    tracker.close()


_OPENERS: dict[str, Callable[[Path, str], AbstractContextManager[Tracker]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


def open_tracker(name: str, folder: Path, run: str) -> AbstractContextManager[Tracker]:
    """A tracker of `autopeft.search.tracking.reporter.TRACKERS`, for a run folder.

    Args:
        run: what tells the run from others of the same name.
    """
    return _OPENERS[name](folder, run)
