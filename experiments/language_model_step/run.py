"""One training step of a language model: ours against the Trainer with peft on the same tokens.

    python experiments/language_model_step/run.py                 # LoRA rank 8 on q and v, k = 0, 20
    python experiments/language_model_step/run.py --ks 20 --steps 10 --repeats 5 --out k20.json
    python experiments/language_model_step/run.py --ks 20 --profile --out k20.json
    python experiments/language_model_step/run.py --tables

k is the first trained layer: both sides train LoRA on the layers k to the last. Rows are prompts with
answers, of which the answers alone are learnt. The Trainer takes them as its documentation shows it: tokens
and labels that are -100 outside of answers, padded batch by batch (`DataCollatorForSeq2Seq`). A figure is the
mean of one run's steps in CPU milliseconds, the first steps left out; the table shows median, minimum and
maximum over the repeats, in which the sides take turns.

Ours starts from an empty cache. What it computes once and keeps for all later trials (hidden states below k)
falls into a first run that is not counted; what that run cost more than the others stands in the last column.
`plain` is ours without shortcuts. `--profile` also profiles steps of ours (`lib/step_profile.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, note, one_thread, read_json, show, write_json
from lib.obvious import StepClock, quiet
from lib.step_profile import Profile, Windows, show_profile
from lib.steps import StepRun, compare, told

from autopeft import Recipe, load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.tasks import Rows
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial

FILE = Path(__file__).parent / "results" / "step.json"
SIDES = ("ours", "plain", "trainer")
WORDS = {"ours": "ours", "plain": "ours, without shortcuts", "trainer": "Trainer + peft, dynamic padding"}


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    options: argparse.Namespace
    path: str
    tokenizer: Any
    model: Any
    data: EncodedTask
    rows: Any
    layers: int

    @property
    def steps(self) -> int:
        return int(self.options.steps + self.options.drop)

    def plan(self, steps: int, *, shortcuts: bool = True) -> TrainingPlan:
        """How ours is trained."""
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
    """Load model and data for both sides."""
    quiet()
    source = resolve_model(options.model, notify=note)
    task = load_task(options.task, kind="causal_lm", made=Rows(options.rows, 32, 32), notify=note)
    task = task.subset(train=options.rows, select=32, test=32)
    tokenizer = load_tokenizer(source)
    model = task.task_kind.head.load_model(source, task.labels)
    data = encode(task, tokenizer, options.max_length)
    return Bench(
        options, source.path, tokenizer, model, data, _rows(data), int(model.config.num_hidden_layers)
    )


def _rows(data: EncodedTask) -> Any:
    """Our tokens as the Trainer takes them: both sides learn the same positions."""
    from datasets import Dataset

    split = data.splits["train"]
    found: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in range(len(split)):
        batch = split.collate([row])
        for name, values in found.items():
            values.append(batch[name][0].tolist())
    return Dataset.from_dict(found)


# Sides
# ---------------------------------------------------------------------------------------------------------


def ours(bench: Bench, k: int, *, shortcuts: bool = True) -> StepRun:
    """A trial of ours on the model that stays loaded."""
    plan, ticks = bench.plan(bench.steps, shortcuts=shortcuts), list[float]()
    start = time.process_time()
    done = run_trial(
        bench.model,
        recipe_at(bench, k),
        bench.data,
        plan,
        on_step=lambda step, loss: ticks.append(time.process_time()),
    )
    return StepRun.of(start, ticks, bench.options.drop, statistics.fmean(done.train.losses))


def recipe_at(bench: Bench, k: int) -> Recipe:
    """LoRA on q and v of the layers k to the last."""
    item = {"lora": {"rank": bench.options.rank, "sites": ["q", "v"]}}
    layers = [{"at": f"{k}-{bench.layers - 1}", "attach": [item]}]
    return Recipe.from_dict({"name": "lora", "layers": layers, "training": {"learning_rate": 1e-3}})


def profile_of(bench: Bench, k: int) -> Profile:
    """Profile steps of ours, in one trial that finds everything that is kept between trials."""
    windows = Windows(warm=bench.options.drop, steps=bench.options.steps)
    run_trial(bench.model, recipe_at(bench, k), bench.data, bench.plan(windows.total))
    run_trial(
        bench.model, recipe_at(bench, k), bench.data, bench.plan(windows.total), on_step=windows.on_step
    )
    return windows.profile()


def trainer(bench: Bench, k: int) -> StepRun:
    """The Trainer with peft's LoRA on a fresh model."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForSeq2Seq,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    o = bench.options
    set_seed(o.seed)
    base = AutoModelForCausalLM.from_pretrained(bench.path, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=o.rank, lora_alpha=2 * o.rank, target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(k, bench.layers)),
    )  # fmt: skip
    clock, start = StepClock(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=bench.steps, per_device_train_batch_size=o.batch_size,
            learning_rate=1e-3, warmup_steps=0.06, report_to=[], save_strategy="no", logging_steps=50,
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, seed=o.seed,
        )  # fmt: skip
        found = Trainer(
            model=get_peft_model(base, config),
            args=arguments,
            train_dataset=bench.rows,
            data_collator=DataCollatorForSeq2Seq(bench.tokenizer),
            callbacks=[clock],
        )
        found.pop_callback(PrinterCallback)
        told = found.train()
    return StepRun.of(start, clock.ticks, o.drop, told.training_loss)


# The benchmark
# ---------------------------------------------------------------------------------------------------------


def measure(bench: Bench, k: int) -> dict[str, Any]:
    """Every side at one k, as a JSON-able row."""
    o = bench.options
    known: dict[str, Callable[[], StepRun]] = {
        "ours": partial(ours, bench, k),
        "plain": partial(ours, bench, k, shortcuts=False),
        "trainer": partial(trainer, bench, k),
    }
    variants = {name: known[name] for name in SIDES if name in o.sides}
    first = ours(bench, k)
    found: dict[str, Any] = {"k": k, "sides": compare(variants, o.repeats, f"k={k}")}
    if own := found["sides"].get("ours"):
        own["first_run"] = first.seconds - statistics.median(run["seconds"] for run in own["runs"])
    return found


def shape(bench: Bench) -> dict[str, float]:
    """Mean tokens of a row, and of them those that are learnt."""
    split = bench.data.splits["train"]
    return {"tokens": float(np.mean(split.lengths)), "learnt": float(np.mean(split.labels))}


def show_all(found: dict[str, Any]) -> None:
    """Print the tables."""
    rows = found["shape"]
    for row in found["measured"]:
        lines = []
        for name, side in row["sides"].items():
            first = side.get("first_run")
            lines.append((WORDS[name], *told(side), "" if first is None else f"+{first:.1f} s"))
        columns = ("side", "CPU ms/step (min–max)", "times ours (min–max)", "mean loss", "first run")
        title = (
            f"Layers {row['k']} to the last, rows of {rows['tokens']:.0f} tokens, {rows['learnt']:.1f} learnt"
        )
        show(title, columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="gym:chain_sum")
    parser.add_argument("--ks", default="0,20", type=lambda text: [int(k) for k in text.split(",")])
    parser.add_argument("--sides", default=",".join(SIDES), type=lambda text: text.split(","))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--drop", type=int, default=2, help="first steps that are left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--tables", action="store_true", help="the last recorded run")
    options = parser.parse_args()
    if options.tables:
        show_all(read_json(options.out))
        return
    one_thread()
    profiles = []
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        bench = make_bench(options)
        with cache_at(Path(folder)):
            found: dict[str, Any] = {"batch": options.batch_size, "shape": shape(bench), "measured": []}
            for k in options.ks:
                found["measured"].append(measure(bench, k))
                if options.profile:
                    profile = profile_of(bench, k)
                    show_profile(profile, f"k = {k}")
                    profiles.append({"k": k, **profile.to_dict()})
    write_json(options.out, {**found, "profiles": profiles})
    show_all(found)


if __name__ == "__main__":
    main()
