"""`autopeft spaces`: what a search may draw from."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.options import Json, Model

__all__ = ["spaces"]


def spaces(
    name: Annotated[
        str | None, typer.Argument(help="Show this space, built in or a YAML file; left out, all are listed.")
    ] = None,
    model: Model = "minilm",
    source: Annotated[
        bool, typer.Option("--yaml", help="Print the space's file, to start your own from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the search spaces, or show one on a backbone: its parameters and how many recipes it holds.

    \b
      autopeft spaces
      autopeft spaces autopeft --model path/to/bert
      autopeft spaces default --yaml > mine.yaml
      autopeft search --space mine.yaml --task sst2 --budget 0.5%
    """
    from autopeft.errors import UsageError
    from autopeft.report.spaces import describe_space, parameters_sheet, spaces_sheet
    from autopeft.search.space.space import Space, space_names

    if source and (name is None or as_json):
        raise UsageError(
            "--yaml prints the file of one space and nothing else: name it, as in autopeft spaces default "
            "--yaml, without --json."
        )
    if source and name is not None:
        say(Space.load(name).text.rstrip("\n"))
        return
    from autopeft.assets import quiet_libraries
    from autopeft.backbones import spec_of
    from autopeft.report.backbone import config_of

    quiet_libraries()
    spec = spec_of(config_of(model, notify))
    chosen = [Space.load(n) for n in (space_names() if name is None else (name,))]
    if as_json:
        found = [describe_space(space, spec) for space in chosen]
        say_json(found if name is None else found[0])
    elif name is None:
        say_sheet(spaces_sheet(chosen, spec, model))
    else:
        say_sheet(parameters_sheet(chosen[0], spec, model))
