"""Every method alone on MiniLM, between the head alone and full fine-tuning.

    python experiments/single_methods/run.py               # a few core-hours; goes on where it stopped
    python experiments/single_methods/run.py --part 0/2    # every second method, beside another process
    python experiments/single_methods/run.py lora mam      # these alone
    python experiments/single_methods/run.py --tables      # with the costs that cost.py has measured

1,600 rows of `trec` and `movie-sentences`, 150 steps of 32, each method at its defaults. The learning rate of
its parameters is swept on *select* with seed 0: three rates, half a decade apart, and further ones (up to six
in all) while the best lies at an end; the head keeps 1e-3, or has the rate of a prompt (`HEAD_ALIKE`). At the
best rate three fresh seeds are trained and scored on *test*, once. Trainings are kept by recipe hash in
`results/trials.jsonl`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.parts import part_of
from lib.storage import append_row, read_rows
from tables import FORMER, FULL, measured, tables

from autopeft import Recipe, load_task
from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.method import get_method, method_names
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.trial import full_fine_tuning

__all__ = [
    "CENTRES",
    "HEAD_ALIKE",
    "HOSTS",
    "HYBRIDS",
    "VARIANTS",
    "Bench",
    "Runner",
    "Variant",
    "candidates",
    "centre_of",
    "rate_of",
    "recipe_of",
    "sweep",
]

TRIALS = Path(__file__).parent / "results" / "trials.jsonl"
MODEL, TASKS = "minilm", ("trec", "movie-sentences")
STEPS, BATCH, LENGTH, ROWS = 150, 32, 64, 1600
SEEDS, MOST_RATES = (1, 2, 3), 6
HEAD = "head-only"
ALL = Rows(train=ROWS)
# Where the sweep starts, in half decades: 0 is 1e-3. Few steps ask for more than papers take; prompts most.
# Those with an MLP before the prefix train millions of parameters, nearly as full fine-tuning does.
CENTRES = {FULL: -3, HEAD: 0, "p_tuning_v2": 2, "prefix_tuning": -1, "prompt_tuning": 3}
# Prompts that joined after it was found what the head's rate does to them: the head has their own rate.
HEAD_ALIKE = frozenset({
    "aprompt", "apt", "deep_prompt", "dept", "idpg", "infoprompt", "lpt", "p_tuning", "prefix_propagation",
    "ptp", "selective_prompt", "smop", "xprompt",
})  # fmt: skip
STARTS = frozenset({"spot"})  # without what other trainings have left they are another method
PARTS = frozenset({"embedding_adapter", "mixlora"})  # a part of CIAT; and MiniLM's FFN is no one module
HOSTS = {"ptp": "p_tuning_v2"}  # what a policy is tried on: LoRA, unless it is one of prompts


@dataclass(frozen=True)
class Variant:
    """A method with other options, or with another rate of the head; `None` is the method's own."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    head: float | None = 1e-3


# Hybrids that are fixed recipes: all of their training but the rates is their own. Those of a file are what
# the package had under the name before its format 2.
HYBRIDS: dict[str, str | Path] = {
    name + suffix: folder / f"{name}.yaml" if suffix else name
    for name in ("mam", "sapa-prefix")
    for suffix, folder in (("", Path()), (FORMER, Path(__file__).parent / "format_1"))
}


# Why these: README.md.
VARIANTS = {
    "prompt_tuning, head alike": Variant("prompt_tuning", head=None),
    "prefix_tuning, head alike": Variant("prefix_tuning", head=None),
    "lora, head at 1e-2": Variant("lora", head=1e-2),
    "lora_dropout, all of ΔW": Variant("lora_dropout", {"ensemble": 0, "expected": False}),
    "lt_sft at 0.5 %": Variant("lt_sft", {"keep": "0.5%"}),
}


def rate_of(point: int) -> float:
    """1e-3 times so many half decades, as it is written."""
    return float(f"{1e-3 * 10 ** (point / 2):.1e}")


def candidates() -> list[str]:
    """The two ends, every method that MiniLM can take alone (a policy with its host), the variants and the
    fixed recipes."""
    lacking = {"encoder_decoder", "artefacts", "token_logits", "several_tasks"}
    alone = [name for name in method_names() if name not in STARTS | PARTS]
    traits = {name: get_method(name).traits for name in alone}
    # What settles what the head reads trains nothing (`experiments/pooling`).
    methods = [name for name, own in traits.items() if not lacking & own.needs and not own.pools]
    return [HEAD, *methods, FULL, *VARIANTS, *HYBRIDS]


def centre_of(name: str) -> int:
    """The point where the sweep starts."""
    if name in HYBRIDS:
        return CENTRES["prefix_tuning"]  # they have its MLP
    return CENTRES.get(VARIANTS[name].method if name in VARIANTS else name, 2 if name in HEAD_ALIKE else 1)


def recipe_of(name: str, rate: float) -> Recipe:
    """A method alone at its defaults, a variant or a fixed recipe; of the head alone nothing is attached."""
    if name in HYBRIDS:
        fixed = Recipe.load(HYBRIDS[name]).to_dict()
        fixed["training"] |= {"learning_rate": rate, "groups": {"head": {"learning_rate": 1e-3}}}
        return Recipe.from_dict(fixed)
    variant = VARIANTS.get(name) or Variant(name, head=None if name in HEAD_ALIKE else 1e-3)
    head = rate if variant.head is None else variant.head
    training: dict[str, Any] = {"learning_rate": rate, "groups": {"head": {"learning_rate": head}}}
    slug = "-".join(re.findall(r"\w+", name))
    body: dict[str, Any] = {"name": slug, "training": training}
    if name in (HEAD, FULL):
        training["groups"] = {}
        return Recipe.from_dict(body)
    level = get_method(variant.method).traits.level
    if level == "training":
        training["policies"] = [variant.method]
        return Recipe.from_dict(body | {"layers": [{"attach": [HOSTS.get(name, "lora")]}]})
    entry = [{variant.method: dict(variant.options)}]
    return Recipe.from_dict(
        body | ({"model": entry} if level == "model" else {"layers": [{"attach": entry}]})
    )


def sweep(score: Callable[[int], float], centre: int, most: int = MOST_RATES) -> int:
    """The point of the highest score: the centre and its neighbours, then onward while the best is an end."""
    scores = {point: score(point) for point in (centre, centre - 1, centre + 1)}
    while len(scores) < most:
        best = max(scores, key=lambda p: (scores[p], -abs(p - centre)))
        onward = {min(scores): best - 1, max(scores): best + 1}.get(best)
        if onward is None:
            break
        scores[onward] = score(onward)
    return max(scores, key=lambda p: (scores[p], -abs(p - centre)))


@dataclass
class Bench:
    """A task on MiniLM, and how recipes are trained on it."""

    task: str
    rows: Rows = ALL

    def __post_init__(self) -> None:
        source = resolve_model(MODEL, notify=print)
        self.spec = spec_of(load_config(source))
        task = load_task(self.task, rows=self.rows, notify=print)
        self._data = encode(task, load_tokenizer(source), LENGTH)
        self._model = task.task_kind.head.load_model(source, task.labels)

    def train(self, name: str, recipe: Recipe, seed: int, split: str, steps: int = STEPS) -> dict[str, Any]:
        """Score on the split, counts and CPU seconds of a step; or the error that ended it."""
        plan = TrainingPlan(steps=steps, batch_size=BATCH, max_length=LENGTH, seed=seed)
        clock: list[float] = []
        options: dict[str, Any] = {
            "splits": (split,),
            "on_step": lambda *_: clock.append(time.process_time()),
        }
        try:
            if name == FULL:
                done = full_fine_tuning(self._model, self._data, plan, training=recipe.training, **options)
            else:
                done = run_trial(self._model, recipe, self._data, plan, **options)
        except AutoPEFTError as error:
            return {"score": 0.0, "error": str(error)}
        return {
            "score": done.scores[split], "deployed": done.counts.deployed, "trained": done.counts.trained,
            "cpu_seconds_per_step": round((clock[-1] - clock[0]) / (len(clock) - 1), 4),
        }  # fmt: skip


class Runner:
    """Trains what `trials.jsonl` lacks."""

    def __init__(self, path: Path, bench: Callable[[str], Any] = Bench) -> None:
        self._path, self._bench = path, bench
        self._benches: dict[str, Any] = {}

    def rows(self) -> list[dict[str, Any]]:
        """All trainings there are."""
        return read_rows(self._path)

    def labelled(self, spec: BackboneSpec) -> list[dict[str, Any]]:
        """All trainings; those from before a method's defaults changed are named so, told by their hash."""

        @cache
        def today(name: str, rate: float) -> str:
            return build_graph(recipe_of(name, rate), spec).trial_hash()

        return [
            row | {"method": row["method"] + FORMER * (today(row["method"], row["rate"]) != row["hash"])}
            for row in self.rows()
        ]

    def method(self, task: str, name: str) -> None:
        """Sweep, then train the best rate with fresh seeds."""
        best = self.best(task, name)
        for seed in SEEDS:
            self.score(task, name, best, seed, "test")

    def best(self, task: str, name: str) -> int:
        """The point that the sweep finds on *select*."""
        return sweep(lambda point: self.score(task, name, point, 0, "select"), centre_of(name))

    def score(self, task: str, name: str, point: int, seed: int, split: str) -> float:
        """Of one training, from `trials.jsonl` where it stands there."""
        rate = rate_of(point)
        bench = self._benches.get(task) or self._benches.setdefault(task, self._bench(task))
        recipe = recipe_of(name, rate)
        key = {"task": task, "method": name, "hash": build_graph(recipe, bench.spec).trial_hash()}
        key |= {"rate": rate, "seed": seed, "split": split, "steps": STEPS}
        for row in self.rows():
            if all(row[k] == v for k, v in key.items()):
                return float(row["score"])
        row = key | bench.train(name, recipe, seed, split)
        append_row(self._path, row)
        print(f"{task:16} {name:18} {rate:8.1e} seed {seed} {split:6} {row['score']:.4f}", flush=True)
        return float(row["score"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these methods, variants and recipes only")
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th method, from the K-th on")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    arguments = parser.parse_args()
    part, parts = part_of(arguments.part)
    torch.set_num_threads(1)
    runner = Runner(TRIALS)
    if unknown := set(arguments.names) - set(candidates()):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(candidates())}")
    names = arguments.names or candidates()[part::parts]
    for name in [] if arguments.tables else names:
        for task in TASKS:
            runner.method(task, name)
    spec = spec_of(load_config(resolve_model(MODEL, notify=print)))
    print(tables(runner.labelled(spec), TASKS, measured()))


if __name__ == "__main__":
    main()
