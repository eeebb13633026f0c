from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
import typer.main

from autopeft.arguments import Arguments, Option
from autopeft.cli.declared import Given, cli_type, declared, said, typed_command

CALLS: list[str] = []


def _names() -> list[str]:
    CALLS.append("names")
    return ["left", "right"]


class Fields(Arguments):
    called: ClassVar[str] = "go"

    where: Annotated[str, Option(help="To {choices}.", choices=_names, flags=("--where", "-w"))]
    steps: Annotated[int | None, Option(help="Steps.", least=1)] = None
    fast: Annotated[bool, Option(help="Fast.", flags=("--fast/--no-fast",))] = True
    rest: Annotated[bool, Option(help="Without a rest.", flags=("--no-rest",))] = True
    shoes: Annotated[Literal["boots", "sandals"], Option(help="Shoes.", panel="Wear")] = "boots"
    stops: Annotated[Sequence[str], Option(help="Stops.", flags=("--stop",))] = ()
    rates: Annotated[
        Sequence[float] | None,
        Option(help="Rates.", cli_type=str, read=lambda t: [float(p) for p in t.split(",")]),
    ] = None
    inner: Annotated[int, Option(help="Python's alone.", cli=False)] = 0


def run(*argv: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @declared(Fields, places={"first": None, "after": "steps"})
    def go(
        context: typer.Context,
        given: Given,
        first: Annotated[bool, typer.Option("--first")] = False,
        after: Annotated[bool, typer.Option("--after")] = False,
        last: Annotated[bool, typer.Option("--last")] = False,
    ) -> None:
        """Go."""
        found.update(given=given, said=said(context), own=(first, after, last))

    app = typer.Typer(rich_markup_mode="rich")
    app.command(cls=typed_command(go))(go)
    typer.main.get_command(app).main(args=list(argv), prog_name="go", standalone_mode=False)
    return found


def test_what_is_left_out_has_its_default_and_what_is_none_is_not_given() -> None:
    found = run("-w", "left")
    assert found["given"] == {"where": "left", "fast": True, "rest": True, "shoes": "boots"}
    assert found["said"] == {"where"}
    assert Fields(**found["given"]) == Fields(where="left")


def test_every_kind_of_option() -> None:
    argv = ("--no-fast", "--no-rest", "--shoes", "sandals", "--stop", "a", "--stop", "b", "--rates", "1,2.5")
    found = run("-w", "left", "--steps", "3", *argv, "--after")
    assert Fields(**found["given"]) == Fields(
        where="left", steps=3, fast=False, rest=False, shoes="sandals", stops=("a", "b"), rates=[1.0, 2.5]
    )
    assert found["own"] == (False, True, False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "'--where' / '-w'"),
        (("-w", "left", "--steps", "0"), "'--steps'"),
        (("-w", "left", "--shoes", "none"), "'--shoes'"),
        (("-w", "left", "--inner", "1"), "--inner"),
    ],
)
def test_click_says_what_is_wrong_on_a_command_line(argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        run(*argv)
    assert says in caught.value.format_message()


def test_help_reads_the_choices_and_nothing_else_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    CALLS.clear()
    run("-w", "left")
    assert not CALLS
    run("--help")
    assert CALLS
    out = capsys.readouterr().out
    assert "To left or right." in out
    rows = [word for line in out.splitlines() for word in line.split() if word.startswith("--")]
    order = [*("--first", "--where", "--steps", "--after", "--fast"), *("--no-fast", "--no-rest", "--stop")]
    assert [row for row in rows if row in order] == order
    assert "--inner" not in out
    assert "--shoes" in out.partition("Wear")[2]


def test_a_type_that_cannot_be_typed_needs_a_cli_type() -> None:
    assert cli_type("x", str | int | None) is str
    assert cli_type("x", Path | None) is Path
    assert cli_type("x", bool | None) is bool
    with pytest.raises(TypeError, match=r"'x'.*cli_type"):
        cli_type("x", dict[str, int])
