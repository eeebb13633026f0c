"""Kinds of tasks that are told more: `NAME?option=value&option=value`, in the place of a kind's name.

Wherever a kind is named (a task, encoded rows, a run, a saved hybrid, a worker's job) its options are named
with it, so that nothing else has to carry them. `register_options` says what a kind can be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from autopeft.errors import TaskError, near

__all__ = ["options_in", "plain_name", "told_name"]

_LONGEST = 60_000
_SAFE = " ,.:;!'()"  # as they are, so that a name can be read


def plain_name(name: str) -> str:
    """The name under which a kind is registered."""
    return name.partition("?")[0]


def told_name(name: str, options: Mapping[str, Any]) -> str:
    """A kind's name with options, as `options_in` reads it; without options the name itself."""
    parts = [f"{key}={quote(str(value), safe=_SAFE)}" for key, value in options.items() if value is not None]
    return f"{name}?{'&'.join(parts)}" if parts else name


def options_in(name: str, known: Sequence[str]) -> dict[str, str]:
    """The options in a kind's name.

    Args:
        known: names of those that the kind has.

    Raises:
        TaskError: the name is too long, or an option has no value, is unknown or stands there twice.
    """
    if len(name) > _LONGEST:
        raise TaskError(
            f"A kind of task has up to {_LONGEST:,} letters, but {name!r:.60}… has {len(name):,}."
        )
    kind, _, rest = name.partition("?")
    found: dict[str, str] = {}
    for part in rest.split("&"):
        key, equals, value = part.partition("=")
        if key not in known:
            can = f"can be told {', '.join(known)}" if known else "can be told nothing"
            raise TaskError(f"The kind {kind!r} {can}, but got {key!r:.60}.{near(key[:60], known)}")
        if not equals or key in found:
            raise TaskError(f"The option {key!r} of {kind!r} has no value, or stands there twice.")
        found[key] = unquote(value)
    return found
