"""Where the commands write: results to stdout, notices to stderr, JSON alone when asked for."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import printable as visible

if TYPE_CHECKING:
    from autopeft.report.sheet import Sheet

__all__ = [
    "INTERRUPTED",
    "Told",
    "notify",
    "printable",
    "say",
    "say_json",
    "say_sheet",
    "terminal",
]

_COMMANDS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it


class Told(int):
    """An exit code whose reason the command has told already."""


def terminal() -> bool:
    """Whether stdout is a terminal (a live table and colours) or a pipe (plain lines)."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """A line of the result."""
    print(visible(text, keep="\n\t"), flush=True)


def notify(text: str) -> None:
    """A notice that is not part of the result: to stderr, so that pipes stay clean."""
    print(visible(text, keep="\n\t"), file=sys.stderr, flush=True)


def printable(value: Any) -> str:
    """Foreign text on one line; what cannot be printed, such as a terminal's commands, becomes `�`."""
    return visible(" ".join(str(value or "").split()))


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
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    # As JSON writes them: it needs no character that a terminal acts on.
    print(_COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


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
