"""`autopeft count`: the size of a recipe on a backbone, from its configuration alone."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.console import notify, say_json, say_sheet
from autopeft.cli.options import Json, Labels, Model, RecipeArgument

__all__ = ["count"]


def count(
    recipe: RecipeArgument,
    model: Model = "minilm",
    labels: Labels = 2,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", help="Fail unless the recipe fits: 0.5%, 300k, 0.1%..1%.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count a recipe in closed form: deployed, trained and head parameters, and both shares.

    \b
      autopeft count mam --model path/to/bert
      autopeft count winner/recipe.yaml --budget 0.5%
    """
    from autopeft.assets import quiet_libraries
    from autopeft.backbones import spec_of
    from autopeft.counting import Budget
    from autopeft.counting import count as count_parameters
    from autopeft.errors import AutoPEFTError
    from autopeft.recipe import Recipe
    from autopeft.report.backbone import config_of, head_size
    from autopeft.report.recipe import counts_sheet
    from autopeft.report.text import limits_text

    parsed = Recipe.load(recipe)
    limit = None if budget is None else Budget.parse(budget)
    quiet_libraries()
    config = config_of(model, notify)
    spec = spec_of(config)
    counts = count_parameters(parsed, spec, head=head_size(config, labels))
    limits = None if limit is None else limit.limits(spec)
    if as_json:
        say_json({"recipe": parsed.name, "model": model, "family": spec.family, **counts.to_dict()})
    else:
        text = None if limits is None else f"{limit}, {limits_text(limits)} deployed parameters here"
        say_sheet(counts_sheet(counts, budget=text))
    if limits is not None and not limits[0] <= counts.deployed <= limits[1]:
        raise AutoPEFTError(
            f"{parsed.name!r} deploys {counts.deployed:,} parameters, outside the budget {limit} "
            f"({limits_text(limits)})."
        )
