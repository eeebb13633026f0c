"""Arguments as the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.arguments.base import Arguments
from autopeft.arguments.option import Option

__all__ = ["command_line", "switches"]


def command_line(arguments: type[Arguments], given: Mapping[str, Any]) -> list[str]:
    """The words, unquoted, that give a command these arguments; those that it has no option for are left out.

    `shlex.join` makes a line of them.
    """
    declared, words = arguments.declared(), []
    for name, value in given.items():
        option = declared.get(name)
        if option is not None and option.cli:
            words += _words(name, option, value)
    return words


def switches(flag: str) -> tuple[str | None, str | None]:
    """What switches a bool on, and what switches it off."""
    on, _, off = flag.partition("/")
    if off:
        return on.strip(), off.strip()
    return (None, on) if on.startswith("--no-") else (on, None)


def _words(name: str, option: Option, value: Any) -> list[str]:
    flag = option.spellings(name)[0]
    if isinstance(value, bool):
        word = switches(flag)[0 if value else 1]
        return [] if word is None else [word]
    if option.spell is not None:
        return [flag, option.spell(value)]
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in (flag, str(item))]
    return [flag, str(value)]
