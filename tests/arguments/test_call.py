from __future__ import annotations

import inspect
from typing import Annotated, ClassVar

import pytest

from autopeft.arguments import NEEDED, Arguments, Option, takes
from autopeft.errors import UsageError


class SayArguments(Arguments):
    called: ClassVar[str] = "say"

    name: Annotated[str, Option(help="Who.")] = NEEDED
    times: Annotated[int, Option(help="How often.", least=1)] = 1
    tone: Annotated[str, Option(help="{choices}.", choices=lambda: ("warm", "cold"))] = "warm"


@takes(SayArguments)
def say(given: SayArguments) -> str:
    """Say.

    Args:
        {arguments}

    Raises:
        UsageError: never.
    """
    return given.name * given.times


@takes(SayArguments)
def say_from(place: str, given: SayArguments) -> str:
    """Say from a place."""
    return f"{place}: {given.name}"


def test_it_takes_the_fields_by_name() -> None:
    assert say(name="a", times=2) == "aa"
    with pytest.raises(UsageError, match=r"say takes its arguments by name, but got 'a'; write say\(name"):
        say("a")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="Did you mean 'name'"):
        say(nane="a")  # type: ignore[call-arg]


def test_leading_parameters_stay() -> None:
    assert say_from("here", name="a") == "here: a"
    assert say_from(place="here", name="a") == "here: a"  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="by name, but got 'b'"):
        say_from("here", "b", name="a")  # type: ignore[call-arg]
    assert list(inspect.signature(say_from).parameters) == ["place", "name", "times", "tone"]


def test_signature_and_docstring_follow_from_the_fields() -> None:
    signature = inspect.signature(say)
    assert signature.parameters["times"].default == 1
    assert signature.parameters["times"].kind is inspect.Parameter.KEYWORD_ONLY
    assert say.__doc__ == (
        "Say.\n\nArgs:\n    name: who.\n    times: how often.\n    tone: warm or cold.\n\n"
        "Raises:\n    UsageError: never."
    )


def test_long_explanations_are_wrapped_and_indented() -> None:
    class Long(Arguments):
        what: Annotated[str, Option(help=f"Of {'many words, ' * 30}all of them.")] = ""

    @takes(Long)
    def call(given: Long) -> None:
        """Call.

        Args:
            {arguments}
        """

    lines = (call.__doc__ or "").splitlines()[3:]
    assert len(lines) > 3
    assert lines[0].startswith("    what: of many")
    assert all(line.startswith(" " * 8) for line in lines[1:])
