"""What an argument is beside its name, type and default."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from autopeft.errors import UsageError, near

__all__ = ["CHECKED", "Option"]

CHECKED = "checked"  # the type of pydantic's error where an option's own check failed


@dataclass(frozen=True, kw_only=True)
class Option:
    """Stands in `Annotated[type, Option(...)]` beside a field of `Arguments`.

    Attributes:
        help: what the command's `--help` says. `{choices}` becomes `a, b or c`, `{listed}` becomes `a,b,c`.
        doc: what the function's docstring says, where that is more than `help`.
        panel: the panel of `--help`; `None` for the first one.
        flags: spelling on the command line, `--the-name` unless given. `--x/--no-x` switches a bool on and
            off; `--no-x` alone can only switch it off.
        metavar: stands for the value in `--help`.
        show_default: whether `--help` shows the default, where there is one.
        takes: the allowed types in words, where the annotation says too little.
        typed: the type as a signature shows it, where the annotation is `Any` so that nothing heavy is
            imported.
        choices: the allowed names, read from where they are registered; called as late as possible.
        least: smallest allowed number.
        check: raises `UsageError` for a value that cannot be used; without it a value is one of `choices`.
        cli: whether the command has it; else it is the function's alone.
        cli_type: what the command line reads, where the annotation leaves it open.
        read: makes a value of what stands on the command line.
        spell: makes what stands on the command line of a value.
        record: makes what stands in a manifest of a value.
        after: the option that it follows, where it is declared in a subclass.
        changeable: whether a run that goes on may change it.
        decides: whether it has a part in what comes out.
        repeated: whether the command that repeats a run names it; a folder of this machine is not.
        remembered: whether a run that goes on takes it from its folder. What says where work and figures are
            sent, and who may listen, is not: the folder may come from somebody else.
    """

    help: str
    doc: str | None = None
    panel: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    show_default: bool = True
    takes: str | None = None
    typed: str | None = None
    choices: Callable[[], Iterable[str]] | None = None
    least: float | None = None
    check: Callable[[Any], object] | None = None
    cli: bool = True
    cli_type: type[Any] | None = None
    read: Callable[[str], Any] | None = None
    spell: Callable[[Any], str] | None = None
    record: Callable[[Any], Any] | None = None
    after: str | None = None
    changeable: bool = False
    decides: bool = True
    repeated: bool = True
    remembered: bool = True

    def spellings(self, name: str) -> tuple[str, ...]:
        """What the command line calls it."""
        return self.flags or (f"--{name.replace('_', '-')}",)

    def filled(self, text: str) -> str:
        """A text with the choices in it; where it leaves one out, all are named at the end."""
        if self.choices is None:
            return text
        names = list(self.choices())
        words = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)
        filled = text.replace("{choices}", words).replace("{listed}", ",".join(names))
        return filled if all(name in filled for name in names) else f"{filled.rstrip('.')}; {words}."

    def checked(self, name: str, value: Any) -> Any:
        """A value of the right type, once more looked at.

        Raises:
            PydanticCustomError: it cannot be used; the error holds a `UsageError`.
        """
        value = tuple(value) if isinstance(value, list) else value
        if value is None:
            return None
        problem: UsageError | None = None
        if self.least is not None and not self.least <= value < math.inf:
            problem = UsageError(f"{name} is at least {self.least:g}, but got {name}={value!r}.")
        elif self.check is not None:
            try:
                self.check(value)
            except UsageError as error:
                problem = error
        elif self.choices is not None:
            names = list(self.choices())
            if value not in names:
                allowed, hint = " or ".join(map(repr, names)), near(str(value), names)
                problem = UsageError(f"There is no {name} {value!r}.{hint} Allowed: {allowed}.")
        if problem is not None:
            raise PydanticCustomError(CHECKED, "{error}", {"error": problem})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        checked = partial(self.checked, str(handler.field_name))
        inner = core_schema.no_info_before_validator_function(_plain, handler(source))
        return core_schema.no_info_after_validator_function(checked, inner)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, and paths as text, so that a manifest holds what came."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return str(value) if isinstance(value, Path) else value
