"""What is compared: ways to find a recipe. Each is a search on the same rows, without baselines, whose winner
is trained with the same fresh seeds."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import autopeft
from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.runs.folder import GATES, load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import search
from autopeft.search.core.events import SilentReporter
from autopeft.search.space.candidate import candidate
from autopeft.search.space.elastic import grouped, largest_within, super_hybrid
from autopeft.search.space.space import Space

__all__ = ["BUDGETS", "CONTENDERS", "DRAWS", "MODEL", "TASKS", "found", "lora_space", "random_structures"]

MODEL = "minilm"
TASKS = ("trec", "movie-sentences", "disaster-tweets", "sms-spam", "trec-fine")
BUDGETS = ("0.5%", "9216")
DRAWS = (0, 1, 2)
_STEPS, _FRESH, _FACTORS = 60, 3, (0.3, 1.0, 3.0)
_STRUCTURES = 2
"""As many as take about the CPU of one gated training."""
_RETRAINED = 12
"""Members of a supernet that are trained by themselves, in the first draw."""

Options = dict[str, Any]


def _trials(task: str, budget: str, draw: int, folder: Path) -> Options:
    return {}


def _gates(task: str, budget: str, draw: int, folder: Path) -> Options:
    return {"strategy": "gates"}


def _supernet(task: str, budget: str, draw: int, folder: Path) -> Options:
    return {"strategy": "supernet"}


def random_structures(budget: str, draw: int) -> list[Recipe]:
    """Structures of the space of gates, each as large as what gates leave: groups of blocks in a random
    order, with the learning rates of a gated training."""
    bound = Space.named("gates").for_steps(_STEPS).bind(spec_of(load_config(resolve_model(MODEL))))
    limit = Budget.parse(budget)
    most = limit.limits(bound.spec)[1]
    hybrid = super_hybrid(bound, 4 * most)
    groups, rng = grouped(bound, hybrid, parts=3), random.Random(f"structures-{budget}-{draw}")
    found: list[Recipe] = []
    for _ in range(_STRUCTURES):
        order = rng.sample(range(len(groups)), len(groups))
        levels = largest_within(hybrid.units, groups, order, most - hybrid.fixed)
        found.append(candidate(bound, hybrid.at(levels), limit).recipe)
    return found


def _random(task: str, budget: str, draw: int, folder: Path) -> Options:
    return {"space": "gates", **_listed(random_structures(budget, draw), folder)}


def _portfolio(task: str, budget: str, draw: int, folder: Path) -> Options:
    """The first of the portfolio for this task, at its learning rates and a third and three times as high."""
    recipe = autopeft.recommend(budget=budget, task=task, model=MODEL).recipe
    return _listed([_at(recipe, factor) for factor in _FACTORS], folder)


def lora_space(budget: str) -> str:
    """LoRA on q and v of as many upper layers as rank 1 fits, at the largest rank, at three rates."""
    stack = spec_of(load_config(resolve_model(MODEL))).stacks[0]
    most = Budget.parse(budget).limits(spec_of(load_config(resolve_model(MODEL))))[1]
    rank = max(1, most // (4 * stack.hidden * stack.layers))
    layers = min(stack.layers, most // (4 * stack.hidden * rank))
    return (
        f"name: lora\nlayers:\n  - at: last {layers}\n"
        f"    attach: [{{lora: {{rank: {rank}, sites: [q, v]}}}}]\n"
        "training:\n  learning_rate: {choice: [1.5e-3, 4.5e-3, 1.35e-2]}\n"
        "  groups: {head: {learning_rate: 1.0e-2}}\n"
    )


def _lora(task: str, budget: str, draw: int, folder: Path) -> Options:
    return {"space": Space.from_yaml(lora_space(budget)), "trials": len(_FACTORS), "portfolio": False}


def _at(recipe: Recipe, factor: float) -> Recipe:
    """A recipe with all learning rates but the head's times a factor."""
    told = recipe.to_dict()
    training = told["training"]
    training["learning_rate"] = recipe.training.learning_rate * factor
    for name, group in training.get("groups", {}).items():
        if "learning_rate" in group and not f"{name}.".startswith("head."):
            group["learning_rate"] *= factor
    return Recipe.from_dict(told)


def _listed(recipes: list[Recipe], folder: Path) -> Options:
    """A search that tries these recipes and no others."""
    files = []
    for number, recipe in enumerate(recipes):
        files.append(str(folder / f"{number}.yaml"))
        Path(files[-1]).write_text(recipe.to_yaml(), encoding="utf-8")
    return {"warm_start": files, "trials": len(files), "portfolio": False}


CONTENDERS: Mapping[str, Callable[[str, str, int, Path], Options]] = {
    "trials, quick": _trials,
    "gates": _gates,
    "supernet": _supernet,
    "random structures": _random,
    "portfolio's first": _portfolio,
    "tuned LoRA": _lora,
}


class _Clock(SilentReporter):
    """CPU seconds until the finalists begin."""

    def __init__(self) -> None:
        self.begun, self.searched = time.process_time(), 0.0

    def on_phase(self, name: str, jobs: int) -> None:
        if name == "confirm" and not self.searched:
            self.searched = time.process_time() - self.begun


def _retrained(members: Sequence[TrialRecord], data: Options) -> list[float | None]:
    """What members are ranked by after trainings of their own, as trials of a search with `data`."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = [Recipe.from_dict(dict(member.recipe)) for member in members]
        options = {"space": "gates", **_listed(recipes, Path(folder))}
        result = search(
            **{**data, **options}, confirm_seeds=1, reporter=SilentReporter(), out=Path(folder) / "run"
        )
    rank = {Recipe.from_dict(dict(trial.recipe)).hash(): trial.rank for trial in result.trials}
    return [rank[recipe.hash()] for recipe in recipes]


def found(contender: str, task: str, budget: str, draw: int) -> dict[str, Any]:
    """Run a contender.

    Returns:
        `test` and `select`: the winner's scores with each fresh seed. `search_score`: on *select*, in the
        search. `search_cpu`: CPU seconds before the winner is trained anew. `recipe`, `deployed`. Of gates
        also `probabilities`, in the end. Of a supernet in the first draw also `estimated` and `trained`: what
        its first members are ranked by with shared weights, and after trainings of their own.
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        options = CONTENDERS[contender](task, budget, draw, Path(folder))
        data: Options = {
            "task": task, "model": MODEL, "budget": budget, "effort": "quick", "steps": _STEPS, "seed": draw,
            "workers": 0, "baselines": "none", "confirm": 1, "precision": "fp32", "fidelity": "none",
        }  # fmt: skip
        result = search(**{**data, **options}, confirm_seeds=_FRESH, reporter=clock, out=Path(folder) / "run")
        gated = load_run(Path(folder) / "run").lines(GATES)
        members = result.trials[:_RETRAINED] if contender == "supernet" and draw == DRAWS[0] else ()
        return {
            **({"probabilities": gated[0]["probabilities"][-1]} if gated else {}),
            **(
                {"estimated": [m.rank for m in members], "trained": _retrained(members, data)}
                if members
                else {}
            ),
            "test": list(result.test),
            "select": list(result.select),
            "search_score": result.search_score,
            "search_cpu": round(clock.searched, 1),
            "recipe": result.winner.to_dict(),
            "deployed": result.counts["deployed"],
        }
