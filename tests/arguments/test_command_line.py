from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from autopeft.arguments import Arguments, Option, command_line


class Given(Arguments):
    name: Annotated[str, Option(help="x")] = ""
    loud: Annotated[bool, Option(help="x", flags=("--loud/--no-loud",))] = True
    echo: Annotated[bool, Option(help="x")] = False
    near: Annotated[bool, Option(help="x", flags=("--no-near",))] = True
    words: Annotated[Sequence[str], Option(help="x", flags=("--word", "-w"))] = ()
    rates: Annotated[Sequence[float], Option(help="x", spell=lambda v: ",".join(map(str, v)))] = ()
    inner: Annotated[int, Option(help="x", cli=False)] = 0


def test_every_kind_of_option() -> None:
    assert command_line(Given, {"name": "a b"}) == ["--name", "a b"]
    assert command_line(Given, {"loud": True}) == ["--loud"]
    assert command_line(Given, {"loud": False}) == ["--no-loud"]
    assert command_line(Given, {"echo": True}) == ["--echo"]
    assert command_line(Given, {"echo": False}) == []
    assert command_line(Given, {"near": False}) == ["--no-near"]
    assert command_line(Given, {"near": True}) == []
    assert command_line(Given, {"words": ("a", "b")}) == ["--word", "a", "--word", "b"]
    assert command_line(Given, {"rates": (1.0, 2.5)}) == ["--rates", "1.0,2.5"]
    assert command_line(Given, {"inner": 3, "strange": 1}) == []
