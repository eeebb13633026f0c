"""Commands whose options are declared arguments (see `autopeft.arguments`)."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from autopeft.arguments import Arguments, Option
from autopeft.arguments.command_line import switches

__all__ = ["Given", "declared", "said", "typed_command"]

Given = dict[str, Any]  # values of a command's declared options by name; those that are `None` are left out


def declared(
    arguments: type[Arguments],
    *,
    places: Mapping[str, str | None] | None = None,
    first: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `arguments`, as `given: Given`, beside the parameters of its own.

    Its own parameters without a default stand before the declared options, and those with one after them;
    `places` says of some which declared option they follow, or `None` to stand before the first. The declared
    options in `first` are in the first panel of `--help`, in this order, whatever their panel is.
    """
    placed = places or {}

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        every = {name: option for name, option in arguments.declared().items() if option.cli}
        ahead = {name: replace(every[name], panel=None) for name in first}
        options = {**ahead, **{name: every[name] for name in every if name not in ahead}}

        # The command's own parameters stand around the declared ones, or where `places` puts them.
        hints = get_type_hints(body, include_extras=True)
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name])
            for p in inspect.signature(body).parameters.values()
            if p.name != "given"
        ]
        parameters = [_parameter(arguments, name, option) for name, option in options.items()]
        for parameter in (p for p in own if p.name in placed):
            before = placed[parameter.name]
            names = [p.name for p in parameters]
            parameters.insert(0 if before is None else names.index(before) + 1, parameter)
        rest = [p for p in own if p.name not in placed]
        needed = [p for p in rest if p.default is inspect.Parameter.empty]
        parameters = [*needed, *parameters, *(p for p in rest if p not in needed)]

        @wraps(body)
        def command(**values: Any) -> None:
            given: Given = {}
            for name, option in options.items():
                value = values.pop(name)
                if isinstance(value, Enum):
                    value = value.value
                if isinstance(value, bool) and option.flags and switches(option.flags[0])[0] is None:
                    value = not value
                elif option.read is not None and isinstance(value, str):
                    value = option.read(value)
                elif isinstance(value, list):
                    value = tuple(value)
                if value is not None:
                    given[name] = value
            body(given=given, **values)

        del command.__wrapped__  # type: ignore[attr-defined]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.declared = options  # type: ignore[attr-defined]
        return command

    return decorate


def typed_command(function: Callable[..., None]) -> type[TyperCommand]:
    """The class of a command: its help reads the choices from where they are registered, and only then."""
    options: Mapping[str, Option] = getattr(function, "declared", {})

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            for parameter in self.params:
                option = options.get(str(parameter.name))
                if option is not None:
                    parameter.help = option.filled(option.help)  # type: ignore[attr-defined]
            super().format_help(ctx, formatter)

    return Command


def said(context: typer.Context) -> set[str]:
    """Names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    # By name: typer may bring a click of its own.
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _parameter(arguments: type[Arguments], name: str, option: Option) -> inspect.Parameter:
    field = arguments.model_fields[name]
    default = inspect.Parameter.empty if field.is_required() else field.get_default()
    kind = option.cli_type or cli_type(name, field.annotation)
    spellings = option.spellings(name)
    if kind is bool and switches(spellings[0])[0] is None:
        default = not default
    if kind == list[str]:
        kind, default = kind | None, None
    elif default is None:
        kind = kind | None  # type: ignore[operator]
    info = typer.Option(
        *spellings,
        help=option.help,
        rich_help_panel=option.panel,
        metavar=option.metavar,
        min=option.least if kind in _NUMBERS else None,
        show_default=option.show_default and default is not None,
    )
    annotation: Any = Annotated[kind, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_NUMBERS: tuple[Any, ...] = (int, float, int | None, float | None)


def cli_type(name: str, annotation: Any) -> Any:
    """What the command line reads for a field: the plainest member of its type.

    Raises:
        TypeError: the type has none, so that the option has to give its `cli_type`.
    """
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for plain in (bool, str, int, float, Path):
        if plain in members:
            return plain
    for member in members:
        if get_origin(member) is Literal:
            return Enum(name, {str(word): str(word) for word in get_args(member)}, type=str)
        if isinstance(get_origin(member), type) and issubclass(get_origin(member), Sequence):
            return list[str]
    raise TypeError(f"The option {name!r} needs a cli_type: {annotation} is nothing that can be typed.")
