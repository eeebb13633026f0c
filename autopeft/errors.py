"""Every error that AutoPEFT raises on purpose, and the near-match hint they share.

`UsageError` and its children mean that the input was wrong (the command line exits with 2), `StoppedError`
that Ctrl-C or SIGTERM ended the work (130); any other `AutoPEFTError` means that valid work failed (1).
"""

from __future__ import annotations

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
    "near",
]


class AutoPEFTError(Exception):
    """Base of all errors raised on purpose."""


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
    matches = get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
