"""`autopeft methods`: what hybrids are made of."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.console import say, say_json, say_sheet
from autopeft.cli.options import Json

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method; left out, all are listed.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or explain one: formula, paper, sites, config with defaults and ranges.

    \b
      autopeft methods
      autopeft methods lora
      autopeft methods lora --json
    """
    from autopeft.method import method_names
    from autopeft.report.methods import config_sheet, describe_method, explain_method, methods_sheet

    if as_json:
        say_json(describe_method(name) if name else [describe_method(n) for n in method_names()])
    elif name is None:
        say_sheet(methods_sheet())
    else:
        from autopeft.method import get_method

        say(explain_method(name))
        say()
        say_sheet(config_sheet(get_method(name)))
