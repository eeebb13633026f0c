"""What a search shows while it runs: a live table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from autopeft.cli.console import lasting, say
from autopeft.display import short
from autopeft.errors import printable
from autopeft.recipe import Recipe
from autopeft.report.text import counted, duration, limits_text, number, percent, score

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from autopeft.runs.records import CountTable, TrialRecord
    from autopeft.search.core.events import SearchInfo
    from autopeft.search.core.jobs import Job

__all__ = ["LiveReporter", "PlainReporter", "watch"]

_PHASES = {
    "precision": "Timing bf16 against fp32",
    "search": "Search",
    "confirm": "Finalists with fresh seeds",
    "another finalist": "The next best with fresh seeds, as the one before failed",
    "another LoRA": "LoRA at a lower rate, as the chosen one lost a seed",
    "test": "Test of the winner",
}
_ROWS, _LONGEST = 12, 60


def _trained(run: Job | TrialRecord) -> str:
    """What a job or a record trains, in one line."""
    alone = run.steps == 0 and run.kind != "trial"
    return "nothing is trained" if alone else Recipe.from_dict(run.recipe).brief


def opening(info: SearchInfo) -> list[str]:
    """What a search is about to do. That data stand in for others was said when they were read."""
    time = duration(info.estimated_seconds)
    if info.workers is None:
        workers = f"as many workers as the cluster has room for, about {time} with one"
    else:
        workers = f"{counted(info.workers, 'worker')}, about {time}"
    return [
        f"task {info.task} ({info.metric}), backbone {info.model}, space {info.space}, "
        f"budget {info.budget}: {limits_text(info.limits)} parameters",
        *info.data.lines(),
        *info.data.remarks,
        *([] if info.trial_metric is None else [f"trials are scored by {info.trial_metric}"]),
        f"{info.outline}, {info.jobs} runs in all, {workers}",
        f"run folder {info.run}",
    ]


def _outcome(record: TrialRecord) -> str:
    if record.state == "failed":
        return f"failed: {record.error}"
    if record.state == "interrupted":
        return "interrupted"
    if record.state == "duplicate":
        return f"{score(record.score)} (same as trial {record.duplicate_of})"
    if record.state in ("paused", "stopped"):
        words = {"paused": "so far", "stopped": "stopped"}[record.state]
        return f"{score(record.rungs.get(str(record.steps)))} at step {record.steps}, {words}"
    own = "" if record.metric is None else f"{record.metric} "
    return own + score(record.scores.get("test", record.score) if record.kind == "test" else record.score)


def _size(counts: CountTable | None) -> str:
    return "–" if counts is None else f"{number(counts['deployed'])} ({percent(counts['share'])})"


class PlainReporter:
    """One line for each event worth keeping in a log; steps are not."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._of_trials = ""

    def on_start(self, info: SearchInfo) -> None:
        """Print what will be done."""
        self._of_trials = "" if info.trial_metric is None else f"{info.trial_metric} "
        for line in opening(info):
            say(line, self._stream)

    def on_phase(self, name: str, jobs: int) -> None:
        """Print the phase's name."""
        say(f"{_PHASES.get(name, name)}: {counted(jobs, 'run')}", self._stream)

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        """Nothing: the line comes at the end."""

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        """Nothing: a pipe has no use for progress."""

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        """Print the run's outcome, the best so far and the time left."""
        say(
            f"{record.label}: {_outcome(record)}  {_size(record.counts)}  {_trained(record)}  "
            f"{duration(record.seconds)}  best {self._of_trials}{score(best)}  left {duration(remaining)}",
            self._stream,
        )


class LiveReporter:
    """A table of the latest runs that redraws itself, with the progress of running ones and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._done: list[tuple[str, str, str, str]] = []
        self._running: dict[str, tuple[Job, CountTable | None, int, float]] = {}
        self._phase, self._jobs, self._ended = "", 0, 0
        self._best: float | None = None
        self._of_trials = ""
        self._remaining: float | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Keep the table on the screen; what is printed meanwhile scrolls above it."""
        from rich.live import Live

        with Live(
            self._draw(),
            console=self._console,
            refresh_per_second=4,
            transient=False,
            vertical_overflow="crop",
        ) as live:
            self._live = live
            yield
            live.update(self._draw(), refresh=True)
        self._live = None

    def on_start(self, info: SearchInfo) -> None:
        """Print what will be done above the table."""
        self._of_trials = "" if info.trial_metric is None else f"{info.trial_metric} "
        for line in opening(info):
            self._console.print(printable(line), markup=False, highlight=False)
        self._remaining = info.estimated_seconds
        self._refresh()

    def on_phase(self, name: str, jobs: int) -> None:
        """Start counting the runs of a new phase."""
        self._phase, self._jobs, self._ended = _PHASES.get(name, name), jobs, 0
        self._refresh()

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        """Add a running row."""
        self._running[job.id] = (job, counts, 0, float("nan"))
        self._refresh()

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        """Move a running row on."""
        _, counts, _, _ = self._running.get(job.id, (job, None, 0, 0.0))
        self._running[job.id] = (job, counts, step, loss)
        self._remaining = remaining if remaining is not None else self._remaining
        self._refresh()

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        """Turn the running row into a finished one."""
        for key, (job, *_) in list(self._running.items()):
            if job.label == record.label:
                del self._running[key]
        outcome = short(_outcome(record), _LONGEST)
        self._done.append((record.label, _trained(record), _size(record.counts), outcome))
        self._ended += 1
        self._best = best if best is not None else self._best
        self._remaining = remaining if remaining is not None else self._remaining
        self._refresh()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._draw())

    def _draw(self) -> RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        left = duration(self._remaining)
        best = f"best {self._of_trials}{score(self._best)}"
        planned = max(self._jobs, self._ended + len(self._running))  # a sweep may go on
        title = f"{self._phase}  {self._ended}/{planned}   {best}   left {left}"
        table = Table(
            box=SIMPLE_HEAD, title=Text(title if self._phase else "starting …"), title_justify="left"
        )
        for header in ("run", "methods", "deployed", "score"):
            # Prose folds between words, so that every number is whole.
            table.add_column(header, overflow="fold", no_wrap=header == "deployed")
        for row in self._done[-_ROWS:]:
            table.add_row(*(Text(printable(cell)) for cell in row))
        for job, counts, step, loss in self._running.values():
            done = f"{step}/{job.steps} steps" if job.steps else "scoring"
            progress = done if loss != loss else f"{done}, loss {loss:.3f}"
            table.add_row(
                *(Text(c, style="dim") for c in (job.label, _trained(job), _size(counts), progress))
            )
        return table


@contextmanager
def watch(*, live: bool, stream: TextIO | None = None) -> Iterator[PlainReporter | LiveReporter]:
    """A reporter that writes to `stream` (default: stdout): the live table, or plain lines."""
    stream = lasting(stream or sys.stdout)
    if not live:
        yield PlainReporter(stream)
        return
    from rich.console import Console

    reporter = LiveReporter(Console(file=stream))
    with reporter.showing():
        yield reporter
