"""Every error that AutoPEFT raises on purpose, and the near-match hint they share.

`UsageError` and its children mean that the input was wrong (the command line exits with 2), `StoppedError`
that Ctrl-C (130) or SIGTERM (143) ended the work; any other `AutoPEFTError` means that valid work failed (1).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AssetError",
    "AutoPEFTError",
    "BudgetError",
    "CompositionError",
    "DataError",
    "MethodError",
    "PluginError",
    "RecipeError",
    "SiteError",
    "StoppedError",
    "TaskError",
    "UsageError",
    "ended",
    "near",
    "printable",
]

_LONGEST_LINE, _KEPT = 1200, (900, 200)
_MOST_LINES = 40
_LONGEST_WORD = 300
_JOINERS = "\u00ad\u200c\u200d"  # part of ordinary words; other invisible characters turn or hide text


class AutoPEFTError(Exception):
    """Base of all errors raised on purpose.

    A message may quote what a stranger wrote. It fits on a screen, whatever that is: the middle of a very
    long line and the end of very many lines are left out, and what a terminal would take for a command
    becomes `�`.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_fitting(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(AutoPEFTError):
    """The input was wrong; the message says what came, what is allowed and the way out."""


class RecipeError(UsageError):
    """A recipe or a search space cannot be read, or asks for what does not exist."""


class MethodError(UsageError):
    """A method is unknown, registered twice, or configured out of range."""


class CompositionError(UsageError):
    """Methods were put together in a way that cannot work."""


class SiteError(UsageError):
    """A site does not exist on this backbone, or the backbone has no site map."""


class BudgetError(UsageError):
    """A budget cannot be read, or nothing fits it."""


class TaskError(UsageError):
    """A task is unknown or asks for what its data cannot give."""


class DataError(UsageError):
    """A data file cannot be read as the task needs it."""


class PluginError(UsageError):
    """An installed package that adds methods, compositions, … to this one cannot be imported."""


class StoppedError(AutoPEFTError):
    """Ctrl-C or SIGTERM ended the work before there was a result; the message says how to go on."""


class AssetError(AutoPEFTError):
    """A packaged model or data set could not be fetched, or is not what its hash says."""


def near(word: str, known: Iterable[str]) -> str:
    """A sentence that names near matches of `word` among `known`, or nothing (starts with a space)."""
    if len(word) > _LONGEST_WORD:  # nothing is near it, and to find that out would take long
        return ""
    matches = get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def ended(text: str) -> str:
    """A text that another sentence follows: with a full stop where it has no end of its own."""
    text = text.rstrip().rstrip(":")
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def printable(text: str, *, keep: str = "") -> str:
    """Foreign text as it can be shown: what is a command to a terminal, turns or hides text, or cannot be
    encoded becomes `�`, but for the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs" else "�"
        for c in text
    )


def _fitting(message: str) -> str:
    lines = message.split("\n")
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"… and {len(lines) - _MOST_LINES + 1:,} more lines"]
    start, end = _KEPT
    for i, line in enumerate(lines):
        if len(line) > _LONGEST_LINE:
            left_out = f"({len(line) - start - end:,} letters left out)"
            lines[i] = f"{line[:start]} … {left_out} … {line[-end:]}"
    return printable("\n".join(lines), keep="\n")
