"""Arguments as the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.arguments.base import Arguments

__all__ = ["command_line", "switches"]


def command_line(arguments: type[Arguments], given: Mapping[str, Any]) -> list[str]:
    """The words, unquoted, that give a command these arguments; those that it has no option for are left out.

    `shlex.join` makes a line of them.
    """
    declared, words = arguments.declared(), list[str]()
    for name, value in given.items():
        option = declared.get(name)
        if option is None or not option.cli:
            continue
        flag = option.spellings(name)[0]
        if isinstance(value, bool):
            switch = switches(flag)[0 if value else 1]
            words += [] if switch is None else [switch]
        elif option.spell is not None:
            words += [flag, option.spell(value)]
        elif isinstance(value, (list, tuple)):
            words += [word for item in value for word in (flag, str(item))]
        else:
            words += [flag, str(value)]
    return words


def switches(flag: str) -> tuple[str | None, str | None]:
    """What switches a bool on, and what switches it off."""
    on, _, off = flag.partition("/")
    if off:
        return on.strip(), off.strip()
    return (None, on) if on.startswith("--no-") else (on, None)
