"""A function of declared arguments: typed for checkers and editors, with a signature and a docstring."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, get_type_hints, overload

from autopeft.arguments.base import Arguments
from autopeft.errors import UsageError

__all__ = ["docstring_of", "signature_of", "takes"]

P = ParamSpec("P")
A = TypeVar("A", bound=Arguments)
R = TypeVar("R")
X = TypeVar("X")
Y = TypeVar("Y")
_WIDTH = 110


@dataclass(frozen=True)
class takes(Generic[P, A]):  # noqa: N801 - a decorator
    """Let a function of one `Arguments` take its fields by name instead.

    The function's last parameter is the `Arguments`; up to two before it stay as they are. Checkers see the
    fields with their types, as the class's own constructor has them; `inspect.signature` and `help` do too.
    Where the function's docstring has `{arguments}`, the fields are explained there.

    Args:
        arguments: the class.
    """

    arguments: Callable[P, A]

    @overload
    def __call__(self, body: Callable[[A], R]) -> Callable[P, R]: ...
    @overload
    def __call__(self, body: Callable[[X, A], R]) -> Callable[Concatenate[X, P], R]: ...
    @overload
    def __call__(self, body: Callable[[X, Y, A], R]) -> Callable[Concatenate[X, Y, P], R]: ...
    def __call__(self, body: Callable[..., R]) -> Callable[..., R]:
        arguments = cast("type[Arguments]", self.arguments)
        *names, last = inspect.signature(body).parameters

        @wraps(body)
        def call(*leading: Any, **given: Any) -> R:
            if len(leading) > len(names):
                raise UsageError(
                    f"{arguments.called} takes its arguments by name, but got {leading[len(names)]!r}; write "
                    f"{arguments.called}({next(iter(arguments.declared()))}=…)."
                )
            first = dict(zip(names, leading, strict=False))
            first |= {name: given.pop(name) for name in names if name in given and name not in first}
            return body(**first, **{last: arguments(**given)})

        call.__signature__ = signature_of(arguments, body)  # type: ignore[attr-defined]
        call.__doc__ = docstring_of(arguments, body.__doc__ or "")
        return call


class _Shown(str):
    """A type that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature_of(arguments: type[Arguments], body: Callable[..., Any] | None = None) -> inspect.Signature:
    """The arguments as keyword-only parameters, after the leading ones of `body`."""
    leading: list[inspect.Parameter] = []
    returns: Any = inspect.Signature.empty
    if body is not None:
        own = inspect.signature(body)
        leading = list(own.parameters.values())[:-1]
        returns = own.return_annotation
    hints = get_type_hints(arguments)
    found = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=hints[name] if option.typed is None else _Shown(option.typed),
        )
        for name, option in arguments.declared().items()
        for field in (arguments.model_fields[name],)
    ]
    return inspect.Signature([*leading, *found], return_annotation=returns)


def docstring_of(arguments: type[Arguments], text: str) -> str:
    """A docstring with the arguments explained in place of `{arguments}`, indented as that is."""
    lines = []
    for line in inspect.cleandoc(text).splitlines():
        if line.strip() != "{arguments}":
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        for name, option in arguments.declared().items():
            text = option.filled(option.doc or option.help).rstrip(".")
            if text[1:2].islower() or text[1:2] == " ":  # no abbreviation
                text = text[:1].lower() + text[1:]
            said = f"{name}: {text}."
            lines += textwrap.wrap(
                said, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ", break_long_words=False
            )
    return "\n".join(lines)
