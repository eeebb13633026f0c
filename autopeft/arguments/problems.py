"""pydantic's errors in plain sentences: what came, what is allowed, and near matches."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from autopeft.arguments.option import CHECKED, Option
from autopeft.errors import UsageError, near

__all__ = ["refusal"]

# Of pydantic's error types the allowed type in words.
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "string": "a text",
    "bool": "True or False",
    "sequence": "a list",
    "tuple": "a tuple",
    "path": "a path",
    "callable": "a function",
    "literal": "one of",
}


def refusal(
    called: str, declared: Mapping[str, Option], given: Mapping[str, Any], error: ValidationError
) -> UsageError:
    """One error with a line for each argument that is wrong.

    An error that an option's own check raised is handed on as it is where it is the only one.
    """
    by_name: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        # A name that is no text, such as half a surrogate pair, has no place: it is the input.
        name = detail["loc"][0] if detail["loc"] else detail["input"]
        by_name.setdefault(str(name), []).append(detail)
    found = [_problem(called, name, declared, given, details) for name, details in by_name.items()]
    return found[0] if len(found) == 1 else UsageError("\n".join(map(str, found)))


def _problem(
    called: str, name: str, declared: Mapping[str, Option], given: Mapping[str, Any], details: list[Any]
) -> UsageError:
    for detail in details:
        if detail["type"] == "extra_forbidden" or name not in declared:
            hint = near(name, declared) or f" It takes {', '.join(declared)}."
            return UsageError(f"{called} has no argument {name!r}.{hint}")
        if detail["type"] == "missing":
            return UsageError(f"{called} needs {name}.")
        if detail["type"] == CHECKED:
            own: UsageError = detail["ctx"]["error"]
            return own
    allowed = declared[name].takes or " or ".join(dict.fromkeys(map(_allowed, details)))
    at_least = f" of at least {declared[name].least:g}" if declared[name].least is not None else ""
    return UsageError(f"{name} is {allowed}{at_least}, but got {name}={_shown(given.get(name))}.")


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits out
        return "a number of thousands of digits"


def _allowed(detail: Mapping[str, Any]) -> str:
    kind = str(detail["type"])
    if kind == "literal_error":
        return str(detail["ctx"]["expected"])
    if kind == "is_instance_of":
        return f"a {detail['ctx']['class']}"
    words = _WORDS.get(kind.partition("_")[0])
    if words is None:
        return str(detail["msg"]).removeprefix("Input should be ")
    return f"{words} of such" if len(detail["loc"]) > 2 and words == "a list" else words
