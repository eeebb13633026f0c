"""`autopeft export`: a run's winner in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json
from autopeft.cli.options import Json, OtherModel, Run

__all__ = ["export"]


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder to write.")],
    peft: Annotated[
        bool | None,
        typer.Option(
            "--peft/--no-peft",
            help="peft's format too, under peft/. Default: where it can be said; --peft fails else.",
            show_default=False,
        ),
    ] = None,
    model: OtherModel = None,
    as_json: Json = False,
) -> None:
    """Export a run: recipe, weights with the head, manifest, and peft's format where it can be said.

    \b
      autopeft export latest -o winner
      autopeft train --recipe winner/recipe.yaml --task trec
      autopeft export my-run -o for-peft --peft
    """
    from autopeft.export.package import find_saved, load_saved, write_package

    saved = find_saved(run)
    target = write_package(saved, out)
    reason: str | None = None
    if peft is not False:
        from autopeft.cli.backbone import quiet_libraries
        from autopeft.export.peft_format import NotExpressible, to_peft

        quiet_libraries()
        hybrid, _ = load_saved(saved, model=model, notify=notify)
        try:
            card = saved.card
            to_peft(hybrid, target / "peft", base_model=card.model, task_type=card.task_kind.peft_task_type)
        except NotExpressible as error:
            if peft:
                raise
            reason = str(error)
    wrote = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    if as_json:
        say_json(
            {
                "folder": str(target),
                "files": wrote,
                "peft": reason is None and peft is not False,
                "reason": reason,
            }
        )
        return
    say(f"{target}: {', '.join(wrote)}")
    if reason is not None:
        say(f"Not in peft's format: {reason}")
    say("Next:")
    say(f"  autopeft train --recipe {target / 'recipe.yaml'} --task trec")
    say(f'  autopeft predict {target} --text "…"')
