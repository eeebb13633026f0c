"""`autopeft export`: a run's winner in a folder of its own, and in a format that others load."""

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
    """Export a run: recipe, weights with head, manifest, model card, and a format that others load.

    \b
      autopeft export latest -o winner
      autopeft train --recipe winner/recipe.yaml --task trec
      autopeft export latest -o whole --as merged
      autopeft export latest -o for-vllm --as lora --rank 16
    """
    from autopeft.assets import quiet_libraries
    from autopeft.export.api import export as write
    from autopeft.export.package import find_saved
    from autopeft.training.commands import predict_command, train_command

    quiet_libraries()
    found = write(run, out, notify=notify, **given)
    if as_json:
        say_json(found.to_dict())
        return
    say(f"{found.folder}: {', '.join(found.files)}")
    if found.reason is not None:
        say(f"Not in peft's format: {found.reason}")
    for line in found.lines:
        say(line)
    first = (
        found.folder
        if (found.folder / "manifest.json").exists()
        else found.folder / Path(found.files[0]).parts[0]
    )
    card, moved = find_saved(first).card, given.get("model")
    say("Next:")
    if moved or card.model:
        task, recipe = card.data.get("name"), first / "recipe.yaml"
        say(f"  {train_command(recipe, task=task, model=moved or card.model, kind=card.kind)}")
    if card.kind is not None:  # else no kind of task has such models: it cannot be asked from here
        pairs = card.pairs is True
        say(f"  {predict_command(first, pairs=pairs, model=moved, kind=card.kind)}")
