"""How many recipes are counted and hashed in a second, and how many are found to be the same.

    python experiments/counting/run.py
    python experiments/counting/run.py --backbones minilm --points 5000 --out try.json
    python experiments/counting/run.py --tables

A fixed draw of points from a search space, on backbones that are known from their configuration alone:

- `points`: from the values of a point to deployed and trained parameters and the structure's hash, the way
  that the search takes. Cold: a space and a backbone that nothing is remembered of. Warm: once more, as far
  as bounded memory goes.
- `recipes`: the same from ready `Recipe` objects, cold and warm.
- `graphs`: a composition graph for each recipe, asked for its count and its hash.
- `meta device`: the recipe's modules instantiated without memory behind them, their parameters added up.
- `attached`: the recipe on a live model (random weights), its modules' parameters added up. Only on backbones
  of at most 50 million parameters.
- `repairs`: points of each built-in space moved into a budget.

All of them must agree on the recipes that the slowest are given. The sides take turns; figures are recipes in
a CPU second, garbage collection included.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PretrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import interleave, note, one_thread, ratios, read_json, show, summarise, write_json

from autopeft import attach
from autopeft.assets import load_config
from autopeft.backbones import spec_of
from autopeft.composition import get_composition
from autopeft.counting import Budget, Counter, Measure
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space, space_names
from autopeft.spec import BackboneSpec

RESULTS = Path(__file__).parent / "results"
DEEP = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
BACKBONES: dict[str, Callable[[], PretrainedConfig]] = {
    "minilm": lambda: load_config("minilm"),
    "bert of 24 layers": lambda: DEEP,
}
LIVE = 50_000_000
Point = dict[str, Any]


@dataclass
class Draw:
    """The points of one backbone, and what the slower sides are given of them."""

    space: str
    config: PretrainedConfig
    points: list[Point]
    empty: int
    recipes: list[Recipe]
    few: list[Recipe]

    @cached_property
    def spec(self) -> BackboneSpec:
        return spec_of(self.config)

    @cached_property
    def bound(self) -> BoundSpace:
        return Space.named(self.space).bind(self.spec)


def draw(space: str, config: PretrainedConfig, points: int, recipes: int, few: int) -> Draw:
    """`points` points of a space, the same at every call; those that attach nothing are drawn again."""
    found = Draw(space, config, [], 0, [], [])
    rng, counter = random.Random(0), PointCounter(found.bound)
    while len(found.points) < points:
        point = found.bound.sample(rng)
        try:
            counter.count(point)
            found.points.append(point)
        except EmptyRecipe:
            found.empty += 1
    found.recipes = [found.bound.materialize(p) for p in found.points[:recipes]]
    found.few = found.recipes[:few]
    return found


def rate(call: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Calls in a CPU second."""
    gc.collect()
    start = time.process_time()
    for item in items:
        call(item)
    return len(items) / (time.process_time() - start)


def forgetful(d: Draw) -> PointCounter:
    """A counter of a space and a backbone that nothing is remembered of."""
    return PointCounter(Space.named(d.space).bind(replace(d.spec)))


def by_graph(d: Draw, recipe: Recipe) -> Measure:
    graph = build_graph(recipe, d.spec)
    total = graph.parameter_count()
    return Measure(total.deployed, total.trained, graph.hash())


def build(graph: CompositionGraph) -> list[torch.nn.Module]:
    """The modules of a graph's entries and compositions, on the meta device.

    Prompts draw a number when they are made, which that device cannot: they are made for real.
    """
    modules: list[torch.nn.Module] = []
    for entry in graph.entries.values():
        with torch.device("cpu" if entry.traits.changes_length else "meta"):
            modules.append(entry.method.build(entry.sites, graph.spec))
    for node in graph.nodes():
        children = [graph.child_spec(c) for c in node.children]
        with torch.device("meta"):
            modules.append(get_composition(node.kind).build(children, dict(node.options)))
    return modules


def held(modules: Iterable[torch.nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta(d: Draw, recipe: Recipe) -> int:
    """Trained parameters of a recipe by its modules."""
    return held(build(build_graph(recipe, d.spec)))


def random_model(config: PretrainedConfig) -> Any:
    """Random weights, and biases too: HiWi refuses those that are all zero."""
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    return model


def attached(model: Any, recipe: Recipe) -> int:
    """Trained parameters of a recipe by what a live model holds."""
    hybrid = attach(model, recipe)
    try:
        return held(model.get_submodule("autopeft").children())
    finally:
        hybrid.detach()


def agree(d: Draw, model: Any | None) -> int:
    """Check that every side says the same of the few recipes; returns of how many."""
    points, recipes = PointCounter(d.bound), Counter(d.spec)
    for point, recipe in zip(d.points, d.few, strict=False):
        measure = points.measure(point)
        found = {"recipe": recipes.measure(recipe), "graph": by_graph(d, recipe)}
        if any(other != measure for other in found.values()):
            raise SystemExit(f"Counts or hashes differ for {point}: {measure} against {found}")
        trained = [on_meta(d, recipe), *([] if model is None else [attached(model, recipe)])]
        if any(n != measure.trained for n in trained):
            raise SystemExit(f"{point} trains {measure.trained:,} parameters, but modules hold {trained}.")
    return len(d.few)


def duplicates(d: Draw) -> dict[str, int]:
    """How many draws are recipes that were drawn before."""
    counter = PointCounter(d.bound)
    seen = Tally(counter.measure(point).hash for point in d.points)
    return {
        "points": len(d.points),
        "empty_draws": d.empty,
        "different": len(seen),
        "duplicates": len(d.points) - len(seen),
        "most_of_one": max(seen.values()),
    }


def sides(d: Draw, model: Any | None) -> dict[str, Callable[[], float]]:
    """Every way to count, by name."""
    warm, recipes = PointCounter(d.bound), Counter(replace(d.spec))
    for point in d.points:
        warm.measure(point)
    for recipe in d.recipes:
        recipes.measure(recipe)
    found = {
        "points, cold": lambda: rate(forgetful(d).measure, d.points),
        "points, warm": lambda: rate(warm.measure, d.points),
        "points, warm, count alone": lambda: rate(warm.count, d.points),
        "recipes, cold": lambda: rate(Counter(replace(d.spec)).measure, d.recipes),
        "recipes, warm": lambda: rate(recipes.measure, d.recipes),
        "graphs": lambda: rate(partial(by_graph, d), d.recipes),
        "meta device": lambda: rate(partial(on_meta, d), d.few),
    }
    if model is not None:
        found["attached"] = lambda: rate(partial(attached, model), d.few)
    return found


def repairs(d: Draw, points: int, budget: str) -> dict[str, Callable[[], float]]:
    """Repairs of points of each built-in space, from a space that nothing is remembered of."""

    def side(name: str) -> float:
        bound, rng = Space.named(name).bind(replace(d.spec)), random.Random(0)
        limit = Budget.parse(budget)
        return rate(lambda p: repair(bound, p, limit), [bound.sample(rng) for _ in range(points)])

    return {f"repairs, {name}.yaml": partial(side, name) for name in space_names()}


def tell(side: str, repeat: int, per_second: float) -> None:
    note(f"  repeat {repeat}: {side} {per_second:,.0f}/s")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in options.backbones:
        d = draw(options.space, BACKBONES[name](), options.points, options.recipes, options.few)
        small = d.spec.parameters <= LIVE
        model = random_model(d.config) if small else None
        checked = agree(d, model)
        note(f"{name}: {checked} recipes agree")
        timed = sides(d, model) | repairs(d, options.repairs, options.budget)
        rates = interleave(timed, options.repeats, tell)
        meta = rates["meta device"]
        found[name] = {
            "parameters": d.spec.parameters,
            "agreed": checked,
            "draw": duplicates(d),
            "rates": {
                side: {
                    "per_second": summarise(values).to_dict(),
                    "times_meta_device": ratios(values, meta).to_dict(),
                    "values": values,
                }
                for side, values in rates.items()
            },
        }
    return found


def show_all(found: dict[str, Any], space: str) -> None:
    """Print a table for each backbone."""
    for name, result in found.items():
        rows = []
        for side, r in result["rates"].items():
            speed, times = r["per_second"], r["times_meta_device"]
            is_count = not side.startswith("repairs")
            rows.append(
                (
                    side,
                    f"{speed['median']:,.0f} ({speed['low']:,.0f}–{speed['high']:,.0f})",
                    f"{times['median']:,.1f}" if is_count else "",
                )
            )
        show(f"{space}.yaml on {name}", ("how", "in a CPU second (min–max)", "× meta device"), rows)
        d = result["draw"]
        print(
            f"Of {d['points']:,} points {d['duplicates']:,} are recipes drawn before ({d['different']:,} "
            f"different ones; one came {d['most_of_one']} times); {d['empty_draws']:,} further draws attach "
            f"nothing. On {result['agreed']} recipes all sides agree.\n"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="which of them, with commas")
    parser.add_argument("--space", default="default", choices=space_names())
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--recipes", type=int, default=2_000, help="how many of them become recipes")
    parser.add_argument("--few", type=int, default=30, help="how many of them become modules")
    parser.add_argument("--repairs", type=int, default=300, help="points of each space that are repaired")
    parser.add_argument("--budget", default="0.5%")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "count.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    options = parser.parse_args(arguments)
    options.backbones = options.backbones.split(",")
    if unknown := [b for b in options.backbones if b not in BACKBONES]:
        parser.error(f"backbones are {', '.join(BACKBONES)}, but got {', '.join(unknown)}")
    return options


def main() -> None:
    options = parse()
    if options.tables:
        result = read_json(options.out)
        show_all(result["backbones"], result["settings"]["space"])
        return
    one_thread()
    found = measure(options)
    show_all(found, options.space)
    settings = json.loads(json.dumps(vars(options), default=str))
    write_json(options.out, {"settings": settings, "backbones": found})


if __name__ == "__main__":
    main()
