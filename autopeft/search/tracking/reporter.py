"""What a search logs with trackers: an entry for each trial and for each run after the search.

Ray's callbacks for them cannot be given to Tune, to which a trial is a worker. They are told of the search's
own events instead, in which a trial is a trial, from rung to rung.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from autopeft.errors import UsageError, near
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import CountTable, TrialRecord
from autopeft.search.core.events import Reporter, SearchInfo
from autopeft.search.core.jobs import Job
from autopeft.search.tracking.background import BackgroundTracker
from autopeft.search.tracking.entry import TrackedRun, entry_config, entry_name, metrics_of

__all__ = ["TRACKERS", "Tracking", "parse_trackers", "track"]

# Of each tracker the module that it needs, and the package that has it.
TRACKERS = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
}
_PATIENCE, _SOON = 30.0, 3.0
_log = logging.getLogger("autopeft")


def parse_trackers(text: str | None) -> tuple[str, ...]:
    """Read a list such as `tensorboard,mlflow`; `None` and `none` are none.

    Raises:
        UsageError: a tracker is unknown, or its package is not installed.
    """
    words = [word.strip().lower() for word in (text or "none").split(",")]
    if words == ["none"]:
        return ()
    for word in words:
        if word not in TRACKERS:
            raise UsageError(
                f"There is no tracker {word!r}.{near(word, TRACKERS)} "
                f"Write none, or some of {', '.join(TRACKERS)}, separated by commas."
            )
    found = tuple(name for name in TRACKERS if name in words)
    missing = [name for name in found if not _installed(TRACKERS[name][0])]
    if missing:
        packages = " ".join(TRACKERS[name][1] for name in missing)
        raise UsageError(
            f"Logging to {' and '.join(missing)} needs what is not installed here: pip install {packages}."
        )
    return found


def _installed(module: str) -> bool:
    # Without an origin it is a mere folder of that name, such as wandb leaves behind where it ran.
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def track(
    names: Sequence[str], folder: RunFolder, reporter: Reporter, notify: Callable[[str], None] | None
) -> Tracking:
    """A reporter that passes all on to `reporter`, and logs the search of a run folder with trackers.

    Args:
        notify: takes one line where a tracker fails; without it, the line is a warning of the logger
            `autopeft`.
    """
    # It imports Ray, which takes seconds.
    from autopeft.search.tracking.ray_callbacks import open_tracker

    # The manifest is written once, when a run begins, and differs from any other's.
    run = hashlib.sha256((folder.path / "manifest.json").read_bytes()).hexdigest()[:8]
    backgrounds = [BackgroundTracker(name, partial(open_tracker, name, folder.path, run)) for name in names]
    before = {record.job for record in folder.finals().records}
    return Tracking(reporter, backgrounds, notify or _log.warning, before)


@dataclass
class _Open:
    """An entry that has not ended, and the last step that was reported of it."""

    entry: TrackedRun
    step: int = -1
    resting: bool = False


class Tracking:
    """Passes every event on, and logs trials and runs after the search with trackers.

    A tracker that fails is named once and then left alone; the search goes on.

    Args:
        backgrounds: lead to the trackers.
        notify: takes one line where a tracker fails.
        before: jobs that an earlier process of the same run has logged.
    """

    def __init__(
        self,
        reporter: Reporter,
        backgrounds: Sequence[BackgroundTracker],
        notify: Callable[[str], None],
        before: Container[str] = (),
    ) -> None:
        self._reporter, self._backgrounds, self._notify = reporter, list(backgrounds), notify
        self._before = before
        self._open: dict[str, _Open] = {}

    def on_start(self, info: SearchInfo) -> None:
        """Pass it on."""
        self._reporter.on_start(info)

    def on_phase(self, name: str, jobs: int) -> None:
        """Pass it on."""
        self._reporter.on_phase(name, jobs)

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        """Begin an entry, or go on with that of a trial that goes on from a rung."""
        self._reporter.on_trial_start(job, counts)
        if self._listening():
            self._begin(job)

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        """Report the loss of a step; what a job that was lost had done is not reported again."""
        self._reporter.on_step(job, step, loss, remaining)
        found = self._open.get(entry_name(job))
        if self._listening() and found is not None and step > found.step and math.isfinite(loss):
            self._report(found, step, {"loss": loss}, minor=True)

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        """Report the figures of a record, and end its entry unless the trial may go on."""
        self._reporter.on_trial_end(record, best, remaining)
        if not self._listening() or (record.kept and record.job in self._before):
            return
        found = self._begin(record)
        entry, state = found.entry, record.state
        self._report(found, max(record.steps or 0, found.step), metrics_of(record))
        if state == "paused":
            self._rest(found)
            return
        del self._open[entry.name]
        for background in self._backgrounds:
            background.tell(lambda tracker: tracker.end(entry, state))

    def close(self, seconds: float = _PATIENCE, *, at_most: float = math.inf) -> None:
        """Put everything away and wait for the trackers; a second call changes nothing.

        Ctrl-C ends the waiting, as does a tracker that has done nothing for so many seconds.

        Args:
            at_most: seconds that the waiting may take in all.
        """
        over = time.monotonic() + at_most
        for found in self._open.values():
            self._rest(found, last=True)
        self._open.clear()
        for background in self._backgrounds:
            background.finish()
        try:
            end = time.monotonic() + min(seconds, _SOON)
            slow = [c for c in self._backgrounds if not c.wait(end - time.monotonic())]
            if slow:
                self._notify(f"Waiting for {_names(slow)} to take what is left; Ctrl-C ends the waiting.")
            late = [c for c in slow if not _done(c, seconds, over)]
        except KeyboardInterrupt:
            late = [c for c in self._backgrounds if not c.wait(0.0)]
        if late:
            self._notify(f"{_names(late)} did not take everything; what is missing is in the run folder.")
        self._listening()
        self._backgrounds = []

    def _listening(self) -> bool:
        """Whether any tracker is left; those that have failed are named and let go."""
        for background in [c for c in self._backgrounds if c.error is not None]:
            self._backgrounds.remove(background)
            self._notify(f"Nothing more is logged with {background.name}: {background.error}")
        return bool(self._backgrounds)

    def _begin(self, of: Job | TrialRecord) -> _Open:
        name = entry_name(of)
        found = self._open.get(name)
        if found is not None and not found.resting:
            return found
        if found is None:
            self._open[name] = found = _Open(TrackedRun(name, entry_config(of)))
        entry, found.resting = found.entry, False
        for background in self._backgrounds:
            background.tell(lambda tracker: tracker.start(entry))
        return found

    def _report(self, found: _Open, step: int, metrics: Mapping[str, float], *, minor: bool = False) -> None:
        entry, found.step = found.entry, step
        for background in self._backgrounds:
            background.tell(lambda tracker: tracker.report(entry, step, metrics), minor=minor)

    def _rest(self, found: _Open, *, last: bool = False) -> None:
        entry, found.resting = found.entry, True
        for background in self._backgrounds:
            background.tell(lambda tracker: tracker.rest(entry, last=last))


def _done(background: BackgroundTracker, seconds: float, over: float) -> bool:
    """Wait for a background as long as it gets on, until a moment of the monotonic clock."""
    left = background.left
    while not background.wait(min(seconds, over - time.monotonic())):
        if background.left >= left or time.monotonic() >= over:
            return False
        left = background.left
    return True


def _names(backgrounds: Sequence[BackgroundTracker]) -> str:
    return " and ".join(background.name for background in backgrounds)
