"""Where the commands write: results to stdout, notices to stderr, JSON alone when asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from autopeft.errors import AutoPEFTError, printable
from autopeft.runs.files import escaped

if TYPE_CHECKING:
    from autopeft.report.sheet import Sheet

__all__ = ["Told", "lasting", "notify", "one_line", "say", "say_json", "say_sheet", "terminal"]


class Told(int):
    """An exit code whose reason the command has told already."""


def terminal() -> bool:
    """Whether stdout is a terminal (a live table and colours) or a pipe (plain lines)."""
    return sys.stdout.isatty()


def say(text: str = "", stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Print lines of text to `stream` (default: stdout). Foreign text reaches a terminal here alone.

    What the terminal would act on becomes `�` (see `autopeft.errors.printable`), as does what the stream's
    encoding does not have.

    Raises:
        AutoPEFTError: stdout cannot be written, as on a full disk.
        BrokenPipeError: nobody reads it any more.
    """
    stream = stream or sys.stdout
    shown, encoding = printable(text, keep="\n\t"), getattr(stream, "encoding", None)
    if encoding is not None:
        shown = shown.encode(encoding, "replace").decode(encoding)
    try:
        print(shown, file=stream, end=end, flush=True)
    except OSError as error:
        if stream is not sys.stdout or isinstance(error, BrokenPipeError):
            raise
        raise AutoPEFTError(f"Cannot write the output: {error.strerror or error}.") from error


def lasting(stream: TextIO) -> TextIO:
    """A stream for the progress of long work, which goes on where nobody reads it any more.

    Once `stream` cannot be written (its reader is gone, as that of `| head`, or its terminal), stderr says
    so and nothing more is written.
    """
    return cast(TextIO, _Lasting(stream))


class _Lasting:
    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            do()
        except OSError as error:
            self._lost = True
            with suppress(OSError):  # stderr may be what is lost
                notify(f"No more progress is shown, as nobody reads it ({error.strerror}); the work goes on.")


def notify(text: str) -> None:
    """A notice that is not part of the result: to stderr, so that pipes stay clean."""
    say(text, sys.stderr)


def one_line(value: Any) -> str:
    """Foreign text on one line."""
    return printable(" ".join(str(value or "").split()))


def say_sheet(sheet: Sheet) -> None:
    """A table: drawn on a terminal, in its width, and aligned plain text in a pipe."""
    if not terminal():
        say(sheet.plain())
        return
    from rich.console import Console

    console = Console(highlight=False)
    layout = sheet.layout(console.width)
    if layout.width > console.width:
        console = Console(highlight=False, width=layout.width)
    console.print(sheet.rich(layout))


def say_json(value: Any) -> None:
    """One JSON document on stdout; figures that are not finite become null, so that any parser reads it."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(_plain(value), indent=2, ensure_ascii=not unicode, allow_nan=False)
    say(escaped(text))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
