"""One training step: ours against the Trainer with peft, a hand-injected model, and a bare loop.

    python experiments/training_step/run.py                         # LoRA rank 8 on q and v, k = 0, 3, 5
    python experiments/training_step/run.py --recipe serial_adapter --ks 0,3
    python experiments/training_step/run.py --recipe path/to/recipe.yaml  # at the layers that it names
    python experiments/training_step/run.py --profile --ks 0
    python experiments/training_step/run.py --prompts --steps 10 --repeats 5   # `prompt_steps.py`
    python experiments/training_step/run.py --tables

k is the first trained layer: every side trains the layers k to the last, and the head. A figure is the mean
of one run's steps in CPU milliseconds, the first steps left out; the table shows median, minimum and maximum
over the repeats, in which the sides take turns. `--profile` also profiles steps of ours
(`lib/step_profile.py`).

Ours starts from an empty cache. What it computes once and keeps for all later trials (hidden states below k)
falls into a first run that is not counted; what that run cost more than the others stands in the last column.
The sides `plain` (no shortcuts) and `bf16` (a backbone in bf16; first run not counted either) are ours too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, note, one_thread, read_json, show, write_json
from lib.obvious import (
    StepClock,
    Training,
    bare_loop,
    inject_adapters,
    load_classifier,
    lora,
    make_trainer,
    quiet,
    tokenised,
)
from lib.step_profile import Profile, Windows, show_profile
from lib.steps import StepRun, compare, told
from prompt_steps import measure_prompts, profile_prompt, show_prompts
from transformers import set_seed

from autopeft import Recipe, load_task
from autopeft.assets import ModelSource, load_tokenizer, resolve_model
from autopeft.hybrid import attach
from autopeft.tasks import Task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.trunk.store import LIMIT_VARIABLE

RESULTS = Path(__file__).parent / "results"
SIDES = ("ours", "plain", "bf16", "dynamic", "pad", "bare", "grouped")


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    options: argparse.Namespace
    source: ModelSource
    task: Task
    layers: int
    tokenizer: Any
    model: Any = field(repr=False)
    half: Any = field(repr=False)
    data: EncodedTask = field(repr=False)
    rows: dict[int | None, Any] = field(repr=False)

    @property
    def training(self) -> Training:
        o = self.options
        return Training(steps=o.steps + o.drop, batch_size=o.batch_size, learning_rate=1e-3, seed=o.seed)

    def plan(self, steps: int, *, shortcuts: bool = True) -> TrainingPlan:
        o = self.options
        return TrainingPlan(
            steps=steps,
            batch_size=o.batch_size,
            max_length=o.max_length,
            seed=o.seed,
            device="cpu",
            shortcuts=shortcuts,
        )


def make_bench(options: argparse.Namespace) -> Bench:
    """Load model and data for every side, from the user's own cache."""
    quiet()
    source = resolve_model(options.model, notify=note)
    task = load_task(options.task, notify=note).subset(train=options.rows, select=32, test=32)
    tokenizer = load_tokenizer(source)
    model = task.task_kind.head.load_model(source, task.labels)
    half = None
    if "bf16" in options.sides:
        half = task.task_kind.head.load_model(source, task.labels, dtype=torch.bfloat16)
    rows = {pad: _rows(task, tokenizer, pad, options.max_length) for pad in (None, options.pad)}
    return Bench(
        options,
        source,
        task,
        model.config.num_hidden_layers,
        tokenizer,
        model,
        half,
        encode(task, tokenizer, options.max_length),
        rows,
    )


def _rows(task: Task, tokenizer: Any, padding: int | None, max_length: int) -> Any:
    from datasets import Dataset

    split = task.splits["train"]
    return tokenised(
        Dataset.from_dict({"text": split.texts, "label": split.labels}), tokenizer, padding, max_length
    )


# Sides
# ---------------------------------------------------------------------------------------------------------


def recipe_at(bench: Bench, k: int | None) -> Recipe:
    """The recipe on the layers k to the last; a recipe from a file is as it is."""
    o = bench.options
    if k is None:
        return Recipe.load(o.recipe)
    items: dict[str, Any] = {
        "lora": {"lora": {"sites": ["q", "v"], "rank": o.rank}},
        "serial_adapter": {"serial_adapter": {"bottleneck": o.bottleneck}},
    }
    at = f"{k}-{bench.layers - 1}"
    return Recipe.from_dict({"name": o.recipe, "layers": [{"at": at, "attach": [items[o.recipe]]}]})


def ours(bench: Bench, k: int | None, *, half: bool = False, shortcuts: bool = True) -> StepRun:
    """A trial of ours on the model that stays loaded, or on its half-precision twin."""
    training = bench.training
    ticks: list[float] = []
    start = time.process_time()
    outcome = run_trial(
        bench.half if half else bench.model,
        recipe_at(bench, k),
        bench.data,
        bench.plan(training.steps, shortcuts=shortcuts),
        on_step=lambda step, loss: ticks.append(time.process_time()),
    )
    return StepRun.of(start, ticks, bench.options.drop, statistics.fmean(outcome.train.losses))


def _attached(bench: Bench, k: int | None) -> tuple[Any, Any]:
    """A fresh model with the same recipe on it as the obvious side has it, and the hybrid if it is ours."""
    o = bench.options
    set_seed(o.seed)
    model = load_classifier(bench.source.path, bench.task.num_labels)
    if k is None:
        hybrid = attach(model, recipe_at(bench, k), seed=o.seed)
        if hybrid.needs_prepare:
            raise SystemExit("This recipe needs calibration; compare it with `search_cost`, which does that.")
        return model, hybrid
    layers = range(k, bench.layers)
    if o.recipe == "serial_adapter":
        return inject_adapters(model, layers, o.bottleneck), None
    # α = 2r and no dropout, as ours has by default.
    return lora(model, rank=o.rank, alpha=2.0 * o.rank, targets=["query", "value"], layers=layers), None


def trainer(
    bench: Bench, k: int | None, *, padding: int | None = None, sampling: str = "random", steps: int = 0
) -> StepRun:
    """The Trainer on rows padded to `padding`, or batch by batch."""
    model, hybrid = _attached(bench, k)
    training = Training(
        **{**asdict(bench.training), "sampling": sampling, "steps": steps or bench.training.steps}
    )
    rows = bench.rows[padding]
    if sampling == "group_by_length":
        rows = rows.map(lambda row: {"length": len(row["input_ids"])})
    clock, start = StepClock(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        found = make_trainer(
            model,
            rows,
            bench.tokenizer,
            training,
            folder,
            optimizer=None if hybrid is None else hybrid.optimizer(fused=True),
            callbacks=[clock] if hybrid is None else [hybrid.callback(), clock],
        ).train()
    return StepRun.of(start, clock.ticks, bench.options.drop, found.training_loss)


def bare(bench: Bench, k: int | None) -> StepRun:
    """A loop of one's own around the same model and batches."""
    model, _ = _attached(bench, k)
    ticks: list[float] = []
    losses: list[float] = []

    def on_step(loss: float) -> None:
        ticks.append(time.process_time())
        losses.append(loss)

    start = time.process_time()
    bare_loop(model, bench.rows[None], bench.tokenizer, bench.training, on_step)
    return StepRun.of(start, ticks, bench.options.drop, statistics.fmean(losses))


def sides_of(bench: Bench, k: int | None) -> dict[str, Callable[[], StepRun]]:
    """The sides that were asked for."""
    o = bench.options
    known: dict[str, Callable[[], StepRun]] = {
        "ours": partial(ours, bench, k),
        "plain": partial(ours, bench, k, shortcuts=False),
        "bf16": partial(ours, bench, k, half=True),
        "dynamic": partial(trainer, bench, k),
        "pad": partial(trainer, bench, k, padding=o.pad, steps=o.pad_steps + o.drop),
        "bare": partial(bare, bench, k),
        "grouped": partial(trainer, bench, k, sampling="group_by_length"),
    }
    return {name: known[name] for name in SIDES if name in o.sides}


def label(side: str, options: argparse.Namespace) -> str:
    """What a side is, in words."""
    modules = {"lora": "peft", "serial_adapter": "hand-injected"}.get(options.recipe, "our modules")
    return {
        "ours": "ours",
        "plain": "ours, without shortcuts",
        "bf16": "ours, backbone in bf16",
        "dynamic": f"Trainer + {modules}, dynamic padding",
        "pad": f"Trainer + {modules}, padded to {options.pad}",
        "bare": f"bare loop + {modules}, dynamic padding",
        "grouped": f"Trainer + {modules}, group_by_length",
    }[side]


# The benchmark
# ---------------------------------------------------------------------------------------------------------


def measure(bench: Bench, k: int | None) -> dict[str, Any]:
    """Every side at one k, as a JSON-able row."""
    options = bench.options
    variants = sides_of(bench, k)
    where = "recipe" if k is None else f"k={k}"
    first = ours(bench, k) if "ours" in variants else None
    if "bf16" in variants:
        ours(bench, k, half=True)
    found: dict[str, Any] = {"k": k, "sides": compare(variants, options.repeats, where)}
    for name, side in found["sides"].items():
        side["what"] = label(name, options)
    if first is not None:
        own = found["sides"]["ours"]
        usual = statistics.median(run["seconds"] for run in own["runs"])
        own["first_run"] = {"cpu_seconds": first.seconds, "more_than_others": first.seconds - usual}
    return found


def show_measured(found: dict[str, Any]) -> None:
    """Print the table of one k."""
    rows = []
    for side in found["sides"].values():
        first = side.get("first_run")
        rows.append(
            (side["what"], *told(side), "" if first is None else f"+{first['more_than_others']:.1f} s")
        )
    where = "the recipe's own layers" if found["k"] is None else f"layers {found['k']} to the last"
    columns = (f"{where}", "CPU ms/step (min–max)", "times ours (min–max)", "mean loss", "first run")
    show(f"One training step, {where} trained", columns, rows)


def profile_of(bench: Bench, k: int | None) -> Profile:
    """Profile steps of ours, in one trial."""
    windows = Windows(warm=bench.options.drop, steps=bench.options.profile_steps)
    plan = bench.plan(windows.total)
    run_trial(bench.model, recipe_at(bench, k), bench.data, plan)  # fills what is kept for later trials
    run_trial(bench.model, recipe_at(bench, k), bench.data, plan, on_step=windows.on_step)
    return windows.profile()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="lora", help="lora, serial_adapter or a recipe file")
    parser.add_argument("--ks", default="0,3,5", help="first trained layers, with commas")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--bottleneck", type=int, default=48)
    parser.add_argument("--sides", default="ours,dynamic,pad,bare", help=f"of {','.join(SIDES)}")
    parser.add_argument("--steps", type=int, default=50, help="counted steps of a run")
    parser.add_argument("--pad", type=int, default=128)
    parser.add_argument(
        "--pad-steps", type=int, default=12, help="counted steps of the padded side, all alike"
    )
    parser.add_argument("--drop", type=int, default=2, help="first steps that are not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--profile-steps", type=int, default=20, help="steps of each of three windows")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="movie-sentences")
    parser.add_argument("--rows", type=int, default=1600, help="training rows")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", action="store_true", help="prompts and prefixes beside LoRA")
    parser.add_argument("--methods", default="", help="of `--prompts`, with commas; default: all")
    parser.add_argument("--out", type=Path, help="default: results/step.json, or results/prompts.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    options = parser.parse_args(arguments)
    options.sides = options.sides.split(",")
    if unknown := [s for s in options.sides if s not in SIDES]:
        parser.error(f"sides are {', '.join(SIDES)}, but got {', '.join(unknown)}")
    if options.drop < 1 or min(options.steps, options.pad_steps, options.repeats) < 1:
        parser.error("--drop, --steps, --pad-steps and --repeats must be at least 1")
    options.out = options.out or RESULTS / ("prompts.json" if options.prompts else "step.json")
    given = options.recipe not in ("lora", "serial_adapter")
    options.ks = [None] if given else [int(k) for k in options.ks.split(",")]
    return options


def prompts_of(bench: Bench) -> Iterator[dict[str, Any]]:
    """Prompts and prefixes beside LoRA, after each repeat; with `--profile` profiles of those named."""
    names, profiles = [name for name in bench.options.methods.split(",") if name], []
    os.environ[LIMIT_VARIABLE] = "0"  # nothing of the layers below a late prompt is kept
    with tempfile.TemporaryDirectory(prefix="step-cache-") as cache, cache_at(Path(cache)):
        for name in names if bench.options.profile else ():
            profile = profile_prompt(bench, name)
            show_profile(profile, name)
            profiles.append({"method": name, **profile.to_dict()})
        for found in measure_prompts(bench, [name for name in names if not name.startswith("lora+")]):
            yield {"prompts": found, "profiles": profiles}


def main() -> None:
    options = parse()
    if options.tables:
        kept = read_json(options.out)
        if options.prompts:
            show_prompts(kept["prompts"])
        for one in kept.get("steps", []):
            show_measured(one)
        return
    one_thread()
    torch.set_num_threads(1)
    bench = make_bench(options)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    if options.prompts:
        for found in prompts_of(bench):
            write_json(options.out, {"settings": settings, **found})
        show_prompts(found["prompts"])
        return
    if too_high := [k for k in options.ks if k is not None and not 0 <= k < bench.layers]:
        raise SystemExit(f"k lies between 0 and {bench.layers - 1}, but got {too_high}.")
    found, profiles = [], []
    with tempfile.TemporaryDirectory(prefix="step-cache-") as cache, cache_at(Path(cache)):
        for k in options.ks:
            found.append(measure(bench, k))
            show_measured(found[-1])
            if options.profile:
                profile = profile_of(bench, k)
                show_profile(profile, "the recipe" if k is None else f"k = {k}")
                profiles.append({"k": k, **profile.to_dict()})
    write_json(options.out, {"settings": settings, "steps": found, "profiles": profiles})


if __name__ == "__main__":
    main()
