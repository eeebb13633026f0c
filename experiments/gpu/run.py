"""What a GPU gives: one command that measures on the accelerator of this machine, and writes a table.

    python experiments/gpu/run.py                                  # an hour on one card
    python experiments/gpu/run.py --subjects minilm --parts step,search
    python experiments/gpu/run.py --own FOLDER rows.csv classification   # a backbone of one's own
    python experiments/gpu/run.py --tables --out RESULTS.json

Parts, each for every subject (`subjects.py`):

- `equality`: the same training on the device and on the CPU, in fp32: how far losses and the score on
  *select* are apart. Beside it, how far two trainings on the device are apart.
- `step`: a training step, LoRA of rank 8 on q and v of the layers k to the last, k = 0, half and the last
  one. Ours against the Trainer with peft on the same tokens, in fp32, tf32 and bf16 (weights of the
  backbone); the Trainer also with `torch.compile`. Milliseconds by the clock, with the device waited for; the
  first steps are left out, and the sides take turns.
- `search`: trainings an hour, with 1, 4 and 16 trials at a time on one card, each in a process of its own
  (`--gpus-per-trial 1/K`). The seconds are those of the whole search, its start included.
- `memory`: predicted against measured, by `experiments/resources/run.py` with `--device`.

`--out` is by default named after the card. What stands in it is not measured again, so that a run that was
cut off goes on.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, commit, environment, note, read_json, show, write_json
from lib.obvious import Training, lora, make_trainer, quiet
from lib.steps import StepRun, compare, told
from subjects import SUBJECTS, TARGETS, Subject, random_qwen3

from autopeft import Recipe, devices, load_task, search
from autopeft.assets import ModelSource, load_tokenizer, resolve_model
from autopeft.runs.folder import load_run
from autopeft.tasks import Rows, Task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.metering import clock

EXPERIMENTS = Path(__file__).resolve().parents[1]
RESULTS = EXPERIMENTS / "gpu" / "results"
PARTS = ("equality", "step", "search", "memory")
PRECISIONS = ("fp32", "tf32", "bf16")
TRAINER = ("cuda", "xpu")
"""Devices that the Trainer uses; it knows none that a package declares, and trains on the CPU there."""


@dataclass(frozen=True)
class Bench:
    """A subject on a device."""

    subject: Subject
    model: str
    device: torch.device
    options: argparse.Namespace

    @cached_property
    def source(self) -> ModelSource:
        return resolve_model(self.model, notify=note)

    @cached_property
    def task(self) -> Task:
        kind, rows = self.subject.kind, self.options.rows
        made = Rows(rows, 64, 64) if self.subject.task.startswith("gym:") else None
        task = load_task(self.subject.task, kind=kind, made=made, notify=note)
        return task.subset(train=rows, select=64, test=64)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.source)

    @cached_property
    def data(self) -> EncodedTask:
        return encode(self.task, self.tokenizer, self.subject.max_length)

    @cached_property
    def rows(self) -> Any:
        """Our tokens as the Trainer takes them: both sides learn the same."""
        from datasets import Dataset

        split = self.data.splits["train"]
        batches = [split.collate([row]) for row in range(len(split))]
        return Dataset.from_dict({name: [b[name][0].tolist() for b in batches] for name in batches[0]})

    def backbone(self, precision: str = "fp32") -> Any:
        """Loaded anew."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return self.task.task_kind.head.load_model(self.source, self.task.labels, dtype=dtype)

    def plan(self, steps: int, device: torch.device) -> TrainingPlan:
        subject = self.subject
        return TrainingPlan(
            steps=steps, batch_size=subject.batch_size, max_length=subject.max_length, device=str(device)
        )


def recipe_from(k: int, layers: int) -> Recipe:
    """LoRA on q and v of the layers k to the last."""
    item = {"lora": {"rank": 8, "sites": ["q", "v"]}}
    body = {"name": "lora", "layers": [{"at": f"{k}-{layers - 1}", "attach": [item]}]}
    return Recipe.from_dict({**body, "training": {"learning_rate": 1e-3}})


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Matrix products of fp32 are computed in tf32 within, where that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Equality
# ---------------------------------------------------------------------------------------------------------


def equality(bench: Bench) -> dict[str, Any]:
    """The same training on the CPU, and twice on the device."""
    model, steps, data = bench.backbone(), bench.options.steps, bench.data
    recipe = recipe_from(0, model.config.num_hidden_layers)
    with products("fp32"), tempfile.TemporaryDirectory() as cache, cache_at(Path(cache)):
        cpu, first, second = (
            run_trial(model, recipe, data, bench.plan(steps, device))
            for device in (torch.device("cpu"), bench.device, bench.device)
        )

    def apart(a: Any, b: Any) -> float:
        return max(abs(x - y) for x, y in zip(a.train.losses, b.train.losses, strict=True))

    return {
        "steps": steps,
        "loss": cpu.train.losses[-1],
        "from_cpu": apart(cpu, first),
        "from_itself": apart(first, second),
        "scores": [trial.score for trial in (cpu, first, second)],
    }


# Steps
# ---------------------------------------------------------------------------------------------------------


def steps_of(bench: Bench) -> list[dict[str, Any]]:
    """Every side at every k and precision."""
    found = []
    for precision in bench.options.precisions:
        model = bench.backbone(precision)
        layers = model.config.num_hidden_layers
        for k in sorted({0, layers // 2, layers - 1}):
            variants: dict[str, Callable[[], StepRun]] = {
                "ours": partial(ours, bench, model, k),
                "trainer": partial(trainer, bench, precision, k),
            }
            if bench.options.compile:
                variants["compiled"] = partial(trainer, bench, precision, k, compiled=True)
            with products(precision), tempfile.TemporaryDirectory() as cache, cache_at(Path(cache)):
                ours(bench, model, k)  # states of untouched layers are stored
                sides = compare(variants, bench.options.repeats, f"{bench.subject.name} {precision} k={k}")
            found.append({"k": k, "layers": layers, "precision": precision, "sides": sides})
        model.to("cpu")
        devices.empty_cache(bench.device)
    return found


def ours(bench: Bench, model: Any, k: int) -> StepRun:
    """A trial of ours on the model that stays loaded."""
    o, ticks = bench.options, list[float]()
    start = clock(bench.device)
    done = run_trial(
        model,
        recipe_from(k, model.config.num_hidden_layers),
        bench.data,
        bench.plan(o.steps + o.drop, bench.device),
        on_step=lambda step, loss: ticks.append(clock(bench.device)),
    )
    return StepRun.of(start, ticks, o.drop, statistics.fmean(done.train.losses))


def trainer(bench: Bench, precision: str, k: int, *, compiled: bool = False) -> StepRun:
    """The Trainer with peft's LoRA on a fresh model."""
    from peft import TaskType
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, TrainerCallback, set_seed

    class Ticks(TrainerCallback):
        found: list[float]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.found.append(clock(bench.device))

    o, ticks = bench.options, Ticks()
    ticks.found = []
    set_seed(0)
    task, collator = TaskType.SEQ_CLS, DataCollatorWithPadding
    if bench.subject.kind == "causal_lm":
        task, collator = TaskType.CAUSAL_LM, DataCollatorForSeq2Seq
    model = bench.backbone(precision)
    targets, layers = TARGETS[model.config.model_type], range(k, model.config.num_hidden_layers)
    wrapped = lora(model, rank=8, alpha=16.0, targets=targets, layers=layers, task=task)
    training = Training(steps=o.steps + o.drop, batch_size=bench.subject.batch_size, learning_rate=1e-3)
    start = clock(bench.device)
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        found = make_trainer(
            wrapped, bench.rows, bench.tokenizer, training, folder, callbacks=[ticks],
            collator=collator(bench.tokenizer), torch_compile=compiled,
            use_cpu=bench.device.type not in TRAINER, dataloader_pin_memory=bench.device.type == "cuda",
        ).train()  # fmt: skip
    return StepRun.of(start, ticks.found, o.drop, found.training_loss)


# Searches
# ---------------------------------------------------------------------------------------------------------


def searches(bench: Bench) -> list[dict[str, Any]]:
    """Trainings an hour, by how many have the card at a time."""
    found, subject, o = [], bench.subject, bench.options
    for at_once in o.at_once:
        on_cpu = bench.device.type == "cpu"
        task, model = bench.task, bench.source.path
        with tempfile.TemporaryDirectory(prefix="search-") as folder, cache_at(Path(folder) / "cache"):
            search(
                task=task, model=model, budget="0.5%", seed=0, trials=o.trials or 14 + 2 * at_once,
                steps=o.search_steps, batch_size=subject.batch_size, max_length=subject.max_length,
                sampler="random", fidelity="none", portfolio=False, baselines="none", confirm=1,
                confirm_seeds=1, precision="fp32", workers=at_once, cpus_per_trial=1,
                device=bench.device.type, gpus_per_trial=None if on_cpu else 1 / at_once,
                out=Path(folder) / "run",
            )  # fmt: skip
            run = load_run(Path(folder) / "run")
            seconds, records = run.result()["seconds"], [*run.trials().records, *run.finals().records]
        done = sum(record.state == "complete" for record in records)
        failed = sum(record.state == "failed" for record in records)
        found.append({"at_once": at_once, "trainings": done, "failed": failed, "seconds": seconds})
        note(f"{subject.name}: {found[-1]}")
    return found


# Memory
# ---------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> dict[str, Any]:
    """What `experiments/resources` measures on this device."""
    subject, out = bench.subject, bench.options.out
    kept = out.with_name(f"{out.stem}-memory-{subject.name}.json")
    command = [
        sys.executable, str(EXPERIMENTS / "resources" / "run.py"), "--model", bench.model,
        "--task", subject.task, "--kind", subject.kind, "--batch-size", str(subject.batch_size),
        "--max-length", str(subject.max_length), "--device", str(bench.device), "--out", str(kept),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return {"file": kept.name}


# The whole
# ---------------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Bench], Any]] = {
    "equality": equality,
    "step": steps_of,
    "search": searches,
    "memory": memory,
}


def measure(options: argparse.Namespace, device: torch.device) -> None:
    """Measure what `--out` does not hold yet."""
    kept = read_json(options.out) if options.out.is_file() else {}
    card = devices.label(device)
    kept = kept or {"card": card, "commit": commit(), "environment": environment(), "subjects": {}}
    if kept["card"] != card:
        raise SystemExit(f"{options.out} holds measurements of {kept['card']}, not of {card}.")
    for subject in options.subjects:
        rows = kept["subjects"].setdefault(subject.name, {"subject": asdict(subject)})
        model = subject.model or random_qwen3(options.models / subject.name)
        bench = Bench(subject, model, device, options)
        for part in (part for part in options.parts if part not in rows):
            note(f"{subject.name}: {part}")
            rows[part] = MEASURES[part](bench)
            write_json(options.out, kept)


def tables(found: dict[str, Any]) -> None:
    """Print what was measured."""
    for name, rows in found["subjects"].items():
        where = f"{name} on {found['card']}"
        if same := rows.get("equality"):
            scores = ", ".join(f"{score:.4f}" for score in same["scores"])
            note(
                f"{where}: in {same['steps']} steps losses are at most {same['from_cpu']:.1e} from the CPU's "
                f"and {same['from_itself']:.1e} from those of a second run. "
                f"Scores on the CPU, on the device, and there again: {scores}."
            )
        lines = []
        for row in rows.get("step", ()):
            words = {"ours": "ours", "trainer": "Trainer + peft", "compiled": "Trainer + peft, compiled"}
            for side, figures in row["sides"].items():
                which = f"{row['precision']}, {row['k']} to {row['layers'] - 1}"
                lines.append((which, words[side], *told(figures)))
        if lines:
            columns = ("precision, layers", "side", "ms/step (min–max)", "times ours (min–max)", "mean loss")
            show(f"One training step of {where}", columns, lines)
        if rows.get("search"):
            show(
                f"Searches of {where}",
                ("trials at a time", "trainings", "seconds", "trainings an hour", "failed"),
                [
                    (
                        str(r["at_once"]),
                        str(r["trainings"]),
                        f"{r['seconds']:.0f}",
                        f"{3600 * r['trainings'] / r['seconds']:.0f}",
                        str(r["failed"]),
                    )
                    for r in rows["search"]
                ],
            )
        if kept := rows.get("memory"):
            note(f"{where}: memory, step time and latency are in {kept['file']} (resources/run.py --tables).")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="default: the accelerator that torch finds")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), type=listed, help="with commas")
    parser.add_argument(
        "--own", nargs=3, metavar=("MODEL", "TASK", "KIND"), help="one of your own in place of the subjects"
    )
    parser.add_argument("--parts", default=",".join(PARTS), type=listed, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), type=listed)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=50, help="counted steps of a run")
    parser.add_argument("--drop", type=int, default=10, help="first steps that are not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1600, help="training rows")
    parser.add_argument("--at-once", default="1,4,16", type=lambda text: [int(k) for k in text.split(",")])
    parser.add_argument("--trials", type=int, help="of a search; default: 14, and two for each at a time")
    parser.add_argument("--search-steps", type=int, default=60)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()), help="for random weights")
    parser.add_argument("--out", type=Path, help="default: results/CARD.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    options = parser.parse_args(arguments)
    for name, known in (("subjects", SUBJECTS), ("parts", PARTS), ("precisions", PRECISIONS)):
        if unknown := [word for word in getattr(options, name) if word not in known]:
            parser.error(f"--{name} takes {', '.join(known)}, but got {', '.join(unknown)}")
    if options.tables and not (options.out and options.out.is_file()):
        parser.error("--tables needs --out, a file of results")
    options.subjects = [SUBJECTS[name] for name in options.subjects]
    if options.own:
        model, task, kind = options.own
        options.subjects = [Subject(Path(model).name, model, task, kind, 8, 32)]
    return options


def main() -> None:
    options = parse()
    if options.tables:
        tables(read_json(options.out))
        return
    quiet()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    device = devices.device_named(options.device)
    card = re.sub(r"[^a-z0-9]+", "-", devices.label(device).lower()).strip("-")
    options.out = options.out or RESULTS / f"{card}.json"
    measure(options, device)
    tables(read_json(options.out))


if __name__ == "__main__":
    main()
