"""`autopeft export`: a run's winner in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json, Run
from autopeft.export.arguments import ExportArguments

__all__ = ["export"]


@declared(ExportArguments)
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder to write.")],
    given: Given,
    as_json: Json = False,
) -> None:
    """Export a run: recipe, weights with head, manifest, model card, and peft's format where it can be said.

    \b
      autopeft export latest -o winner
      autopeft train --recipe winner/recipe.yaml --task trec
      autopeft export my-run -o for-peft --peft
    """
    from autopeft.assets import quiet_libraries
    from autopeft.export.api import export as write

    quiet_libraries()
    found = write(run, out, notify=notify, **given)
    if as_json:
        say_json(found.to_dict())
        return
    say(f"{found.folder}: {', '.join(found.files)}")
    if found.reason is not None:
        say(f"Not in peft's format: {found.reason}")
    say("Next:")
    say(f"  autopeft train --recipe {found.folder / 'recipe.yaml'} --task trec")
    say(f'  autopeft predict {found.folder} --text "…"')
