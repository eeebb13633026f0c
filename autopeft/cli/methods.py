"""`autopeft methods`: what hybrids are made of."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.console import say, say_json, say_sheet
from autopeft.cli.options import Json

__all__ = ["methods"]


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Explain this method or composition; left out, all are listed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or explain one: formula, paper, sites, config with defaults, ranges and sources.

    \b
      autopeft methods
      autopeft methods lora
      autopeft methods route
      autopeft methods lora --json
    """
    from autopeft.method import method_names
    from autopeft.report.defaults import sources_sheet
    from autopeft.report.methods import config_sheet, describe, explain, methods_sheet

    if as_json:
        say_json(describe(name) if name else [describe(n) for n in method_names()])
    elif name is None:
        say_sheet(methods_sheet())
    else:
        config = config_sheet(name)
        say(explain(name))
        if config.rows:
            say()
            say_sheet(config)
        sources = sources_sheet(name)
        if sources is not None:
            say()
            say_sheet(sources)
