"""How well are memory, step time and latency predicted before a recipe is trained?

    python experiments/resources/run.py --model minilm
    python experiments/resources/run.py --model smollm2-135m --batch-size 4 --steps 3
    python experiments/resources/run.py --model minilm --tables      # from what was recorded, measures
    nothing

It measures the probes that a search measures (`autopeft.resources.probes`), then recipes of every family that
were not among them, each with a few steps of the real training on one batch, in a random order and with
nothing read back that a method measured before. Whatever was measured stands in `--out` at once, so that a
run that was cut off goes on. Predictions are made from the probes alone when the tables are printed. Time is
processor time on one thread, memory is the resident set above what the process held with the bare backbone.
With `--device` it is the time of the clock, and what tensors hold on the device.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, environment, note, one_thread, read_json, show, write_json

from autopeft import Recipe, load_task
from autopeft.assets import load_config, load_tokenizer, map_weights, quiet_libraries, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.hybrid import head_of
from autopeft.resources.calibration import Calibration, fitted
from autopeft.resources.features import Shape
from autopeft.resources.fit import WITHIN
from autopeft.resources.measuring import Bench, Measured
from autopeft.resources.probes import Offer, base_probes, dropout_probes, method_probes
from autopeft.search.space.candidate import candidate
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan

RESULTS = Path(__file__).parent / "results"
FIGURES = ("step_time", "latency", "memory")
TITLES = {
    "step_time": "step time",
    "latency": "latency",
    "memory": "peak memory",
    "above": "memory above the bare process",
}
DRAWN, BUDGET, SPACE = 200, "1%", "default"

# Each method alone, at depths and sizes that no probe has, and compositions of them.
ALONE: tuple[tuple[str, Any], ...] = (
    ("all", {"lora": {"rank": 16, "sites": ["q", "k", "v", "o"]}}),
    ("last half", {"lora": {"rank": 6}}),
    ("first 2", {"dora": {"rank": 4}}),
    ("all", {"moslora": {"rank": 8}}),
    ("last half", {"adalora": {"rank": 6}}),
    ("all", {"sora": {"rank": 6}}),
    ("last half", {"lora_dropout": {"rank": 8, "dropout": 0.3}}),
    ("all", {"krona": {}}),
    ("last half", {"kadaptation": {"rank": 2}}),
    ("all", {"vera": {"rank": 64}}),
    ("all", {"serial_adapter": {"bottleneck": 24}}),
    ("last half", {"compacter": {"bottleneck": 24}}),
    ("all", {"parallel_adapter": {"bottleneck": 12, "scale": 2.0}}),
    ("all", {"p_tuning_v2": {"length": 20, "dropout": 0.0}}),
    ("last half", "ia3"),
    ("all", "ssf"),
    ("last half", "hiwi"),
    ("all", {"mov": {"experts": 4}}),
    ("model", {"prompt_tuning": {"length": 12}}),
    ("model", "bitfit"),
    ("model", {"fish_mask": {"keep": "0.2%", "samples": 8}}),
    ("last 1", {"lora": {"rank": 8}}),
)
_UNSEEN = "unseen "
NAMED = ("mam", "unipelt", "houlsby", "pfeiffer", "compacter++", "s4")
RANDOM, UNSEEN = 12, 30
"""Random hybrids that the model of costs was made with, and such that nothing was chosen by."""


def bodies(layers: int) -> list[tuple[str, dict[str, Any]]]:
    """Titles and recipes to predict and measure."""
    found = []
    for place, item in ALONE:
        at = f"last {layers // 2}" if place == "last half" else place
        name = item if isinstance(item, str) else next(iter(item))
        body = {"model": [item]} if place == "model" else {"layers": [{"at": at, "attach": [item]}]}
        found.append((f"{name}, {at}", {"name": name, **body}))
    return [*found, *((name, Recipe.named(name).to_dict()) for name in NAMED)]


def drawn(spec: BackboneSpec, seed: int, count: int) -> list[Recipe]:
    """Random members of the default space inside the budget."""
    bound, rng, budget = Space.named(SPACE).bind(spec), random.Random(seed), Budget.parse(BUDGET)
    return [candidate(bound, bound.sample(rng), budget).recipe for _ in range(count)]


def subjects(spec: BackboneSpec) -> list[tuple[str, Recipe]]:
    """What is predicted: single methods, published hybrids, random hybrids and unseen ones, as far as the
    backbone takes them."""
    layers = min(stack.layers for stack in spec.stacks)
    found = [(title, Recipe.from_dict(body)) for title, body in bodies(layers)]
    found += [(f"random {i}: {r.brief}", r) for i, r in enumerate(drawn(spec, 1, RANDOM), 1)]
    found += [(f"{_UNSEEN}{i}: {r.brief}", r) for i, r in enumerate(drawn(spec, 2, UNSEEN), 1)]
    kept = []
    for title, recipe in found:
        try:
            build_graph(recipe, spec)
        except AutoPEFTError as error:
            note(f"left out, {title}: {error}")
            continue
        kept.append((title, recipe))
    return kept


def make_bench(options: argparse.Namespace) -> Bench:
    quiet_libraries()
    source = resolve_model(options.model, notify=note)
    made = Rows(1600, 32, 32) if options.task.startswith("gym:") else None
    task = load_task(options.task, kind=options.kind, made=made).subset(train=1600, select=32, test=32)
    model = task.task_kind.head.load_model(source, task.labels)
    map_weights(model)
    data = encode(task, load_tokenizer(source), options.max_length)
    plan = TrainingPlan(steps=1, batch_size=options.batch_size, device=options.device)
    model.to(plan.torch_device())  # as the bench looks at what the device holds before it trains
    return Bench(model, data, plan, steps=options.steps)


def measure(options: argparse.Namespace) -> None:
    """Measure what `--out` does not hold yet."""
    bench, spec = make_bench(options), spec_of(load_config(resolve_model(options.model)))
    kept = read_json(options.out) if options.out.is_file() else {}
    shape = asdict(bench.shape)
    asked = {"shape": shape, "steps": options.steps}
    if kept and (told := {name: kept[name] for name in asked}) != asked:
        raise SystemExit(f"{options.out} holds measurements of {told}, not of {asked}.")
    offers = [offer for recipe in drawn(spec, 0, DRAWN) for offer in Offer.of(recipe)]
    kept = kept or {
        "model": options.model,
        **asked,
        "head": sum(p.numel() for p in head_of(bench.model).values()),
        "base": bench.base(),
        "environment": environment(),
        "measured": {},
    }
    wanted = [
        ("probe", f"probe {i}: {r.brief}", r)
        for i, r in enumerate([*base_probes(spec), *method_probes(offers, spec), *dropout_probes(spec)])
    ]
    wanted += [("subject", title, recipe) for title, recipe in subjects(spec)]
    random.Random(2).shuffle(wanted)
    for repeat in range(options.repeats):
        for kind, title, recipe in wanted:
            runs = kept["measured"].setdefault(title, {"kind": kind, "recipe": recipe.to_dict(), "runs": []})[
                "runs"
            ]
            if len(runs) > repeat:
                continue
            try:
                with tempfile.TemporaryDirectory() as empty, cache_at(Path(empty)):
                    runs.append(asdict(bench(recipe)))
            except AutoPEFTError as error:  # random weights do not take every method
                note(f"left out, {title}: {error}")
                del kept["measured"][title]
                continue
            note(f"{title}: {runs[-1]}")
            write_json(options.out, kept)


def best(runs: Sequence[dict[str, Any]]) -> Measured:
    """The least of several runs: what disturbs a measurement adds to it."""
    memory = [run["memory"] for run in runs]
    least = {name: min(run[name] for run in runs) for name in ("step_time", "latency")}
    return Measured(**least, memory=None if None in memory else min(memory))


def load(path: Path) -> tuple[Calibration, list[tuple[str, Any, Measured]], dict[str, Any]]:
    """The calibration from the recorded probes, and the subjects with their graphs and measurements."""
    kept = read_json(path)
    spec = spec_of(load_config(resolve_model(kept["model"])))
    rows = [
        (kind["kind"], title, build_graph(Recipe.from_dict(kind["recipe"]), spec), best(kind["runs"]))
        for title, kind in kept["measured"].items()
    ]
    probes = [(graph, found) for kind, _, graph, found in rows if kind == "probe"]
    calibration = fitted(
        [graph for graph, _ in probes],
        [found for _, found in probes],
        Shape(**kept["shape"]),
        trunk=True,
        head=kept["head"],
        base=kept["base"],
    )
    return calibration, [row[1:] for row in rows if row[0] == "subject"], kept


def tables(path: Path) -> None:
    """Print predictions beside measurements, and what their deviations are."""
    calibration, found, kept = load(path)
    base, rows = calibration.base, []
    ratios: dict[bool, dict[str, list[float]]] = {
        unseen: {name: [] for name in TITLES} for unseen in (False, True)
    }
    for title, graph, was in found:
        pairs = {
            "step_time": (calibration.predict_step(graph), was.step_time),
            "latency": (calibration.predict_latency(graph), was.latency),
        }
        predicted = calibration.predict_memory(graph)
        if predicted is not None and was.memory is not None:
            pairs["memory"] = (predicted, base + was.memory)
            pairs["above"] = (predicted - base, max(1, was.memory))
        for name, (said, measured) in pairs.items():
            ratios[title.startswith(_UNSEEN)][name].append(said / measured)
        told = []
        for name, scale in zip(FIGURES, (1e3, 1e3, 1e-6), strict=True):
            said, measured = pairs.get(name, (0.0, 0.0))
            words = (
                f"{scale * said:.0f} / {scale * measured:.0f} ({said / measured:.2f})" if measured else "–"
            )
            told.append(words)
        rows.append((title[:70], *told))
    shape = kept["shape"]
    columns = ("recipe", "step, ms", "latency, ms", "peak memory, MB")
    show(
        f"{kept['model']}, {shape['rows']} rows of {shape['tokens']} tokens: predicted / measured",
        columns,
        rows,
    )
    for unseen, which in ((False, "recipes that the model of costs was made with"), (True, "unseen recipes")):
        if any(ratios[unseen].values()):
            columns = ("figure", "median", "worst", f"within {WITHIN:.0%}")
            show(f"{kept['model']}: deviations, {which}", columns, deviations(ratios[unseen]))


def deviations(ratios: Mapping[str, Sequence[float]]) -> list[tuple[str, str, str, str]]:
    """How far predictions are off, a row for each figure."""
    found = []
    for name, values in ((name, values) for name, values in ratios.items() if values):
        off = [abs(v - 1) for v in values]
        inside = sum(d <= WITHIN for d in off)
        found.append(
            (TITLES[name], f"{statistics.median(off):.1%}", f"{max(off):.0%}", f"{inside} of {len(off)}")
        )
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="movie-sentences")
    parser.add_argument("--kind", help="of task; default: what its rows say")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="steps of a measurement, the first not counted")
    parser.add_argument(
        "--repeats", type=int, default=1, help="measurements of each recipe, the least counts"
    )
    parser.add_argument("--out", type=Path, help="default: results/MODEL.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.repeats) < 1 or options.steps < 2:
        parser.error("--batch-size and --repeats are at least 1, --steps at least 2")
    options.out = options.out or RESULTS / f"{Path(options.model).name}.json"
    if options.tables and not options.out.is_file():
        parser.error(f"nothing is recorded in {options.out}; without --tables it is measured")
    return options


def main() -> None:
    options = parse()
    if not options.tables:
        one_thread()
        torch.set_num_threads(1)
        measure(options)
    tables(options.out)


if __name__ == "__main__":
    main()
