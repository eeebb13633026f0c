"""`autopeft recommend`: what to begin with, without training."""

from __future__ import annotations

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json
from autopeft.search.portfolio.arguments import RecommendCall

__all__ = ["recommend"]


@declared(RecommendCall)
def recommend(given: Given, as_json: Json = False) -> None:
    """Say which recipe to begin with under a budget, what it promises beyond LoRA, and how sure that is.

    Nothing is trained: recipes that were found good over many tasks and budgets are fitted to the model, and
    ranked by recorded trainings. Tasks that share texts with --task are left out of them.

    \b
      autopeft recommend --budget 0.5%
      autopeft recommend --budget 300k --model mpnet-base --rows 500
      autopeft recommend --budget 0.5% --task reviews.csv --label stars -o recipe.yaml
      autopeft recommend --budget 0.5% --serve peft
    """
    from autopeft.assets import quiet_libraries
    from autopeft.report.recommend import recommend_sheet
    from autopeft.search.portfolio.recommend import recommend as ask

    quiet_libraries()
    found = ask(notify=notify, **given)
    if as_json:
        say_json(found.to_dict())
        return
    say_sheet(recommend_sheet(found))
    say()
    rate = found.recipe.training.learning_rate
    what = found.recipe.name if found.reason is None else "LoRA"
    why = "" if found.reason is None else f": {found.reason}"
    say(f"Recommended is {what}{'' if rate is None else f' at the learning rate {rate:.3g}'}{why}.")
    if found.file is not None:
        say(f"Written to {found.file}.")
    say()
    say("Search on from there:")
    say(f"  {found.command}")
