"""What mkdocstrings reads: functions whose options are declared once are as the declaration says."""

from __future__ import annotations

import inspect
from typing import Any

import griffe

__all__ = ["Declared"]

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    empty = inspect.Parameter.empty
    annotation = None if parameter.annotation is empty else str(parameter.annotation)
    default = None if parameter.default is empty else repr(parameter.default)
    return griffe.Parameter(
        parameter.name, annotation=annotation, kind=_KINDS[parameter.kind], default=default
    )


class Declared(griffe.Extension):
    """Takes what `autopeft.arguments.takes` has made of a function, and lets examples be read as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        if isinstance(obj, griffe.Function) and "{arguments}" in obj.docstring.value:
            live = griffe.dynamic_import(obj.path)
            obj.docstring.value = inspect.getdoc(live) or ""
            obj.parameters = griffe.Parameters(*map(_parameter, inspect.signature(live).parameters.values()))
        lines = obj.docstring.value.splitlines()
        obj.docstring.value = "\n".join("Examples:" if line == "Example:" else line for line in lines)
