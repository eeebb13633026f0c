"""`autopeft evaluate`: the score of a trained hybrid on a task."""

from __future__ import annotations

from pathlib import Path

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json, Run
from autopeft.export.arguments import EvaluateArguments

__all__ = ["evaluate"]


@declared(EvaluateArguments)
def evaluate(run: Run, given: Given, as_json: Json = False) -> None:
    """Score a trained hybrid on a split of a task, with tables of where it is right and wrong.

    \b
      autopeft evaluate latest
      autopeft evaluate winner --task new-reviews.csv --label stars
      autopeft evaluate my-run --split select --metric macro_f1 --json
    """
    from autopeft.assets import quiet_libraries
    from autopeft.export.api import evaluate as score
    from autopeft.report.evaluation import evaluation_sheets

    quiet_libraries()
    found = score(run, notify=notify, **given)
    if as_json:
        say_json(found.to_dict())
        return
    own = None if found.recorded is None else (found.recorded.score, found.recorded.reasons)
    scored = (Path(found.run).name, found.split, found.rows, found.score)
    for i, sheet in enumerate(evaluation_sheets(scored, found.task, found.breakdown, own)):
        if i:
            say()
        say_sheet(sheet)
