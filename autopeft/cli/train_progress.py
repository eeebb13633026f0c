"""What `autopeft train` shows while it trains: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from autopeft.cli.console import lasting, say
from autopeft.errors import printable
from autopeft.report import text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from autopeft.training.events import TrainInfo

__all__ = ["BarReporter", "LineReporter", "watch_training"]

_LINES = 10


def opening(info: TrainInfo) -> list[str]:
    """What is about to be trained, on what."""
    return [
        f"recipe {info.recipe}, task {info.task} ({info.metric}), backbone {info.model}, "
        f"{info.steps:,} steps",
        *info.data.lines(),
        *info.data.remarks,
        f"run folder {info.run}",
    ]


class LineReporter:
    """A line for each phase, each tenth of the steps and each score."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._steps = 0

    def on_start(self, info: TrainInfo) -> None:
        """Print what will be done."""
        self._steps = info.steps
        for line in opening(info):
            say(line, self._stream)

    def on_phase(self, name: str, steps: int) -> None:
        """Print the phase's name."""
        say(_phase(name, steps), self._stream)

    def on_step(self, step: int, loss: float, remaining: float | None) -> None:
        """Print a line at each tenth of the training."""
        if step % max(1, self._steps // _LINES) == 0 or step == self._steps:
            left = _left(step, self._steps, remaining)
            say(f"step {step}/{self._steps}  loss {loss:.4f}  {left}".rstrip(), self._stream)

    def on_score(self, step: int, score: float) -> None:
        """Print the score."""
        say(_scored(step, self._steps, score), self._stream)


class BarReporter:
    """A bar that redraws itself; phases and scores stand above it, a line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._steps = 0

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Keep the bar on the screen; what is printed meanwhile scrolls above it."""
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.stop()

    def on_start(self, info: TrainInfo) -> None:
        """Print what will be done, and draw the bar below it."""
        self._steps = info.steps
        for line in opening(info):
            self._print(line)
        self._progress = _bar(self._console)
        self._bar = self._progress.add_task("", total=info.steps, loss="", select="", left="")
        self._progress.start()

    def on_phase(self, name: str, steps: int) -> None:
        """Print the phase's name."""
        self._print(_phase(name, steps))

    def on_step(self, step: int, loss: float, remaining: float | None) -> None:
        """Move the bar on."""
        self._update(completed=step, loss=f"loss {loss:.4f}", left=_left(step, self._steps, remaining))

    def on_score(self, step: int, score: float) -> None:
        """Print the score, and keep it beside the bar."""
        self._print(_scored(step, self._steps, score))
        self._update(select=f"select {text.score(score)}")

    def _print(self, line: str) -> None:
        self._console.print(printable(line), markup=False, highlight=False)

    def _update(self, **values: object) -> None:
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, **values)  # type: ignore[arg-type]


def _phase(name: str, steps: int) -> str:
    return f"{name}: {steps:,} steps" if steps else f"{name} …"


def _left(step: int, steps: int, remaining: float | None) -> str:
    return "" if remaining is None or step == steps else f"left {text.duration(remaining)}"


def _scored(step: int, steps: int, score: float) -> str:
    return f"step {step}/{steps}  select {text.score(score)}"


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("loss", "select", "left")]
    return Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *columns,
        console=console,
        refresh_per_second=4,
        expand=True,
    )


@contextmanager
def watch_training(*, live: bool, stream: TextIO) -> Iterator[LineReporter | BarReporter]:
    """A reporter that writes to `stream`: the bar, or plain lines."""
    stream = lasting(stream)
    if not live:
        yield LineReporter(stream)
        return
    from rich.console import Console

    reporter = BarReporter(Console(file=stream))
    with reporter.showing():
        yield reporter
