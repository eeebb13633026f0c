"""One training step of each kind of task: ours against the Trainer with peft on the same rows.

    python experiments/step_by_kind/run.py                                      # LoRA rank 8 on q and v
    python experiments/step_by_kind/run.py --kinds token_classification --steps 20 --repeats 5
    python experiments/step_by_kind/run.py --tables

Of kinds that are not named the figures of the last run stay; each has the settings that it was measured with.

Layers are trained from the first on (k = 0), and from the middle on. Both sides read the same tokens and
learn the same labels, by the model's own labelled forward on the Trainer's side. A figure is the mean of one
run's steps in CPU milliseconds, the first steps left out; the table shows median, minimum and maximum over
the repeats, in which the sides take turns. By default the steps are a pass over all rows: ours sorts rows by
length inside windows, and a few batches may be longer or shorter than the mean. What ours computes once and
keeps for all later trials (hidden states below k) falls into a first run that is not counted.

Classification has an experiment of its own (`training_step`), and so have language models
(`language_model_step`); both stand here again as what the others are held against.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, note, one_thread, read_json, show, write_json
from lib.obvious import StepClock, quiet
from lib.steps import StepRun, compare, told
from settings import SETTINGS, Setting

from autopeft import Recipe
from autopeft.assets import ModelSource, head_names, resolve_model
from autopeft.backbones import spec_of_model
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial

FILE = Path(__file__).parent / "results" / "step.json"
_SETTINGS = ("rank", "rows", "batch_size", "max_length", "steps", "drop", "repeats", "seed")
WORDS = {"ours": "ours", "trainer": "Trainer + peft, dynamic padding"}
RATE = 1e-3


@dataclass(frozen=True)
class Bench:
    """What all runs of a kind share."""

    options: argparse.Namespace
    setting: Setting
    source: ModelSource
    processor: Any  # a tokenizer, or of images
    model: Any = field(repr=False)
    data: EncodedTask = field(repr=False)
    rows: Any = field(repr=False)

    def fresh(self) -> Any:
        """The model with a new head, as transformers loads it."""
        task = self.data.task
        return task.task_kind.head.load_model(self.source, task.labels, seed=self.options.seed)


def make_bench(options: argparse.Namespace, kind: str, folder: Path) -> Bench:
    """Load model and data of a kind for both sides."""
    quiet()
    setting = SETTINGS[kind]
    named = setting.model if isinstance(setting.model, str) else str(setting.model(folder))
    source = resolve_model(named, notify=note)
    task = setting.task(options.rows)
    processor = task.task_kind.encoder.load_processor(source)
    model = task.task_kind.head.load_model(source, task.labels, seed=options.seed)
    data = encode(task, processor, options.max_length)
    return Bench(options, setting, source, processor, model, data, _rows(data, model, setting.labels))


def _rows(data: EncodedTask, model: Any, labels: tuple[str, ...]) -> Any:
    """Our rows as the Trainer takes them: of each batch of one row what the model's forward knows."""
    from datasets import Dataset

    takes, split = inspect.signature(model.forward).parameters, data.splits["train"]
    found: dict[str, list[Any]] = {}
    for row in range(len(split)):
        batch = split.collate([row])
        if len(labels) > 1:
            batch |= dict(zip(labels, batch.pop("labels").unbind(dim=1), strict=True))
        for name, value in batch.items():
            if name in takes:
                found.setdefault(name, []).append(value[0].tolist())
    return Dataset.from_dict(found)


def layers_of(bench: Bench, k: int) -> dict[str, range]:
    """By stack the layers from k on."""
    stacks = spec_of_model(bench.model)[0].stacks
    return {stack.name: range(min(k, stack.layers - 1), stack.layers) for stack in stacks}


# Sides
# ---------------------------------------------------------------------------------------------------------


def recipe_at(bench: Bench, k: int) -> Recipe:
    """LoRA on q and v of the layers k to the last, of each stack."""
    item = {"lora": {"rank": bench.options.rank, "sites": ["q", "v"]}}
    layers = [
        {"at": f"{own.start}-{own.stop - 1}", "stack": stack, "attach": [item]}
        for stack, own in layers_of(bench, k).items()
    ]
    return Recipe.from_dict({"name": "lora", "layers": layers, "training": {"learning_rate": RATE}})


def ours(bench: Bench, k: int) -> StepRun:
    """A trial of ours on the model that stays loaded."""
    o, ticks = bench.options, list[float]()
    plan = TrainingPlan(
        steps=o.steps + o.drop, batch_size=o.batch_size, max_length=o.max_length, seed=o.seed, device="cpu"
    )
    start = time.process_time()
    done = run_trial(
        bench.model,
        recipe_at(bench, k),
        bench.data,
        plan,
        on_step=lambda step, loss: ticks.append(time.process_time()),
    )
    return StepRun.of(start, ticks, o.drop, statistics.fmean(done.train.losses))


def trainer(bench: Bench, k: int) -> StepRun:
    """The Trainer with peft's LoRA on a fresh model."""
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    o = bench.options
    set_seed(o.seed)
    model = _with_peft(bench, k)
    clock, start = StepClock(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=o.steps + o.drop, per_device_train_batch_size=o.batch_size,
            learning_rate=RATE, warmup_steps=0.06, report_to=[], save_strategy="no", logging_steps=50,
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, seed=o.seed,
            label_names=list(bench.setting.labels),
        )  # fmt: skip
        found = Trainer(
            model=model,
            args=arguments,
            train_dataset=bench.rows,
            data_collator=bench.setting.collator(bench.processor),
            callbacks=[clock],
        )
        found.pop_callback(PrinterCallback)
        done = found.train()
    return StepRun.of(start, clock.ticks, o.drop, done.training_loss)


def _with_peft(bench: Bench, k: int) -> Any:
    """peft's LoRA on the same maps as ours, and the head where the kind has a new one."""
    from peft import LoraConfig, get_peft_model

    model = bench.fresh()
    layout = spec_of_model(model)[1]
    inside, base = layers_of(bench, k), model.base_model_prefix
    targets = [
        f"{base}.{place.entry}" if base and hasattr(model, base) else place.entry
        for place in layout.places()
        if place.site.name in ("q", "v") and place.site.layer in inside[place.site.stack]
    ]
    head = head_names(model) if bench.data.task.task_kind.head.new_head else ()
    config = LoraConfig(
        r=bench.options.rank,
        lora_alpha=2 * bench.options.rank,
        target_modules=targets,
        modules_to_save=list(head) or None,
    )
    return get_peft_model(model, config)


# The benchmark
# ---------------------------------------------------------------------------------------------------------


def measure(bench: Bench, kind: str, k: int) -> dict[str, Any]:
    """Both sides at one k, as a JSON-able row."""
    sides: dict[str, Callable[[], StepRun]] = {
        "ours": partial(ours, bench, k),
        "trainer": partial(trainer, bench, k),
    }
    ours(bench, k)  # computes what is kept for later trials
    return {"kind": kind, "k": k, "sides": compare(sides, bench.options.repeats, f"{kind} k={k}")}


def show_all(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    lines = [
        (row["kind"], str(row["k"]), WORDS[name], *told(side))
        for row in rows
        for name, side in row["sides"].items()
    ]
    columns = ("kind of task", "k", "side", "CPU ms/step (min–max)", "times ours (min–max)", "mean loss")
    show("One training step of each kind of task", columns, lines)


def _recorded(path: Path) -> list[dict[str, Any]]:
    """What an earlier run has measured."""
    return list(read_json(path)["measured"]) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument(
        "--steps",
        type=int,
        help="counted steps of a run (default: with those left out a whole pass over the rows)",
    )
    parser.add_argument("--drop", type=int, default=2, help="first steps that are left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--tables", action="store_true", help="the last recorded run")
    options = parser.parse_args()
    if options.tables:
        show_all(_recorded(options.out))
        return
    one_thread()
    if options.steps is None:
        options.steps = options.rows // options.batch_size - options.drop
    settings = {name: vars(options)[name] for name in _SETTINGS}
    rows = []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(prefix="step-cache-") as folder:
            bench = make_bench(options, kind, Path(folder) / "model")
            depth = min(len(own) for own in layers_of(bench, 0).values())
            with cache_at(Path(folder) / "cache"):
                rows += [measure(bench, kind, k) | {"settings": settings} for k in (0, depth // 2)]
    rows += [row for row in _recorded(options.out) if row["kind"] not in options.kinds]
    rows.sort(key=lambda row: (list(SETTINGS).index(row["kind"]), row["k"]))
    write_json(options.out, {"measured": rows})
    show_all(rows)


if __name__ == "__main__":
    main()
