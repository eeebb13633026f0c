"""The same recipes, trained for the same steps by our worker and by the obvious implementation.

    python experiments/search_cost/run.py --fresh
    python experiments/search_cost/run.py --fresh --recipes 3 --steps 10 --pad-recipes 1   # a quick look
    python experiments/search_cost/run.py --again ours    # measure one side anew, keep the others
    python experiments/search_cost/run.py --language-model --fresh    # LoRA on a language model
    python experiments/search_cost/run.py --tables

A fixed draw of recipes (`lib.draws`, seed 0), repaired into the budget. Ours: each is a job of
`autopeft.search.execution.worker.execute` in one process that lives through all of them, from an empty
cache: whatever is computed once and kept is paid for inside. The obvious implementation: a process for each
trial, as Ray Tune's actors are by default, which loads model and tokenizer, reads and tokenises the rows
(`datasets` finds its own cache from the second trial on), attaches, trains with the Trainer and evaluates;
its user and system CPU time is what the kernel reports at its end.

Same recipes, learning rates, steps, batch size and rows. Where peft can say a recipe (LoRA, DoRA, (IA)³,
prompt tuning, each alone) the obvious side uses peft. It cannot say the others, hybrids across families:
there, the modules are ours, attached with `autopeft.hybrid.attach` and trained by the Trainer, with FISH
masks calibrated on single rows in every trial. That favours the obvious side, which has none of the cost of
hand-written modules; the import of autopeft is taken off its CPU time.

Each trial's result is a line of `search.jsonl` beside the JSON file; an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.draws import SPACE, draw, lowest_layer, peft_words, rate_of
from lib.measuring import cache_at, note, one_thread, read_json, rotated, write_json
from lib.obvious import Training, Trial
from lib.storage import Balance
from lib.worker import JobList, load_backbone_and_data
from tables import SIDES, show_tables, summarise_all

from autopeft.assets import ModelSource, load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import DONE, Done, Job, JobResult, TrainJob
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.search.space.repair import Repaired
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows, Task, load_task
from autopeft.tasks.kinds import get_metric
from autopeft.tasks.split import Split
from autopeft.training import TrainingPlan

LIB = Path(__file__).parents[1] / "lib"
# By kind of task: the obvious implementation, and the measure that both sides report.
OBVIOUS = {
    "classification": (LIB / "obvious.py", "accuracy"),
    "causal_lm": (LIB / "obvious_language.py", "likelihood"),
}
RESULTS = Path(__file__).parent / "results"
LANGUAGE_MODEL: dict[str, Any] = {
    "model": "smollm2-135m", "task": "gym:chain_sum", "space": Path(__file__).parent / "lora.yaml",
    "recipes": 10, "steps": 10, "batch_size": 8, "rows": 200, "select": 32,
    "out": RESULTS / "language_model.json",
}  # fmt: skip
"""What `--language-model` has in place of the other defaults."""


# Our side: one process for all trials
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def clocked(module: str, *names: str) -> Iterator[dict[str, float]]:
    """CPU seconds spent in functions of a module, by name, as the module's own code calls them."""
    home = importlib.import_module(module)
    spent = dict.fromkeys(names, 0.0)
    before = {name: getattr(home, name) for name in names}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - start

        return call

    for name, function in before.items():
        setattr(home, name, timed(name, function))
    try:
        yield spent
    finally:
        for name, function in before.items():
            setattr(home, name, function)


class Jobs(JobList):
    """Jobs that come from another process, to which their results and CPU seconds go."""

    def __init__(self, connection: Connection) -> None:
        super().__init__([])
        self._connection = connection
        self._spent: dict[str, float] = {}

    def next(self) -> Job | Done:
        return DONE if (job := self._connection.recv()) is None else job

    def run(self, setup: WorkerSetup, job: Job, *told: Any) -> JobResult:
        """What runs a job: the worker, watched."""
        with clocked("autopeft.training.trial", "train", "score_by_rows") as self._spent:
            start = time.process_time()
            result = execute(setup, job, *told)
            self._spent["cpu"] = time.process_time() - start
        return result

    def complete(self, result: JobResult) -> None:
        """Send what came of it; a job that has failed is a row too."""
        self._connection.send((result, self._spent))


def serve(connection: Connection, setup: WorkerSetup) -> None:
    """The worker's process: tells the CPU seconds of its start, then runs jobs until there are no more."""
    one_thread()
    load_backbone_and_data(setup)
    connection.send(time.process_time())
    jobs = Jobs(connection)
    LocalExecutor().run_jobs(jobs, jobs.run, setup)


class OurWorker:
    """One process of ours, started at the first trial."""

    def __init__(self, setup: WorkerSetup, balance: Balance) -> None:
        self._setup, self._balance = setup, balance
        self._process: Any = None
        self._connection: Any = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._setup), daemon=True)
        self._process.start()
        theirs.close()
        seconds = self._connection.recv()
        starts = sum(row["side"] == "start" for row in self._balance.rows.values())
        self._balance.add(f"start/{starts}", {"side": "start", "cpu": seconds})
        note(f"our worker is up: {seconds:.1f} CPU s")

    def run(self, job: Job) -> dict[str, Any]:
        """Run a job; its score and CPU seconds."""
        if self._process is None:
            self._start()
        self._connection.send(job)
        result, spent = self._connection.recv()
        return {
            "score": result.score,
            "train_loss": result.train_loss,
            "error": result.error,
            "outside": spent["cpu"] - spent["train"] - spent["score_by_rows"],
            **spent,
        }

    def close(self) -> None:
        if self._process is not None:
            self._connection.send(None)
            self._process.join()


# The obvious side: one process for each trial
# ---------------------------------------------------------------------------------------------------------


def in_fresh_process(script: Path, trial: Trial, folder: Path) -> dict[str, Any]:
    """Run a trial of an obvious implementation; its score and CPU seconds.

    Raises:
        SystemExit: the process failed; with the end of what it wrote.
    """
    source, target, log = (folder / name for name in ("trial.json", "result.json", "log.txt"))
    source.write_text(json.dumps(asdict(trial)), encoding="utf-8")
    with log.open("w") as file:
        command = [sys.executable, str(script), str(source), str(target)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"The obvious implementation failed:\n{log.read_text()[-3000:]}")
    result = json.loads(target.read_text(encoding="utf-8"))
    whole = usage.ru_utime + usage.ru_stime
    return {
        "cpu": whole - result["import_seconds"],
        "cpu_whole": whole,
        "score": result["score"],
        "train_loss": result["train_loss"],
        "trainable": result["trainable"],
        "error": None,
    }


# The benchmark
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What all trials share. `work` is a folder that lives as long as the results: caches and rows."""

    options: argparse.Namespace
    source: ModelSource
    spec: BackboneSpec
    task: Task
    recipes: list[Repaired]
    digest: str
    work: Path

    def key(self, recipe: Recipe, side: str) -> str:
        """What a result is kept under: the recipe, the side, and everything that decides the outcome."""
        padding = f"-{self.options.pad}" if side == "pad" else ""
        return f"{recipe.hash()[:16]}/{side}{padding}/{self.options.steps}/{self.digest}"

    def setup(self) -> WorkerSetup:
        o = self.options
        plan = TrainingPlan(
            steps=o.steps, batch_size=o.batch_size, max_length=o.max_length, seed=o.seed, device="cpu"
        )
        return WorkerSetup(o.model, self.source, self.task, plan, 1, self.digest)

    def trial(self, recipe: Recipe, padding: int | None) -> Trial:
        o, t = self.options, recipe.training
        words = peft_words(recipe, self.spec)
        method = recipe.entries()[0].method
        training = Training(
            steps=o.steps,
            batch_size=o.batch_size,
            learning_rate=t.learning_rate if words is None else rate_of(recipe, method),
            warmup=t.warmup,
            schedule=t.schedule,
            max_grad_norm=t.max_grad_norm,
            weight_decay=t.weight_decay,
            seed=o.seed,
        )
        return Trial(
            model=self.source.path,
            labels=self.task.num_labels,
            train=str(self.work / "train.jsonl"),
            select=str(self.work / "select.jsonl"),
            cache=str(self.work / "datasets"),
            recipe=recipe.to_dict(),
            peft=words,
            training=training,
            head_learning_rate=rate_of(recipe, "head"),
            padding=padding,
            max_length=o.max_length,
        )


def make_bench(options: argparse.Namespace) -> Bench:
    """Fetch model and data, draw the recipes."""
    source = resolve_model(options.model, notify=note)
    spec = spec_of(load_config(source))
    kind, made = "causal_lm" if options.language_model else None, Rows(options.rows, options.select, 32)
    task = load_task(options.task, kind=kind, made=made, notify=note)
    task = task.subset(train=options.rows, select=options.select, test=32)
    _, measured = OBVIOUS.get(task.kind, (None, "nothing"))
    if (metric := trial_metric(task)) != measured:
        raise SystemExit(f"The obvious side measures {measured}, and {task.name} is scored by {metric}.")
    shared = ("model", "task", "rows", "select", "batch_size", "max_length", "seed")
    text = json.dumps({name: getattr(options, name) for name in shared}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    where = hashlib.sha256(str(options.out.resolve()).encode()).hexdigest()[:12]
    work = Path(tempfile.gettempdir()) / f"autopeft-benchmark-{digest}-{where}"
    recipes = draw(options.recipes, options.budget, spec, space=options.space)
    return Bench(options, source, spec, task, recipes, digest, work)


def trial_metric(task: Task) -> str:
    """What a search scores trials by: the likelihood of answers, where the metric is of written ones."""
    return str(task.task_kind.scorer.trial_metric(get_metric(task.metric)).name)


def open_balance(bench: Bench) -> Balance:
    """The results so far; caches that belong to results that are not there are removed."""
    options = bench.options
    balance = Balance(options.out.with_suffix(".jsonl"), fresh=options.fresh)
    if options.again is not None:
        gone = ("ours", "start") if options.again == "ours" else (options.again,)
        balance.forget(lambda row: row["side"] in gone)
    sides = {row["side"] for key, row in balance.rows.items() if bench.digest in key}
    if "ours" not in sides:
        shutil.rmtree(bench.work / "ours", ignore_errors=True)
    if not sides & {"dynamic", "pad"}:
        shutil.rmtree(bench.work / "datasets", ignore_errors=True)
    bench.work.mkdir(parents=True, exist_ok=True)
    for name in ("train", "select"):
        rows = rows_of(bench.task.splits[name])  # type: ignore[index]  # both names are splits
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = bench.work / f"{name}.jsonl"
        # The cache of `datasets` knows a file by its time of change.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return balance


def rows_of(split: Split) -> list[dict[str, Any]]:
    """Rows as the obvious side reads them."""
    if "messages" in split.fields:
        return [{"messages": messages} for messages in split.fields["messages"]]
    return [{"text": t, "label": y} for t, y in zip(split.texts, split.labels, strict=True)]


def measure(bench: Bench, balance: Balance) -> None:
    """Run what is missing in the balance, the sides in turns."""
    worker = OurWorker(bench.setup(), balance)
    try:
        for index, drawn in enumerate(bench.recipes):
            sides = [s for s in SIDES if s != "pad" or index < bench.options.pad_recipes]
            for side in rotated(sides, index):
                key = bench.key(drawn.recipe, side)
                if key in balance:
                    continue
                row = balance.add(key, {"side": side, "index": index, **_run(bench, worker, drawn, side)})
                score = "failed" if row["score"] is None else f"{row['score']:.4f}"
                note(f"{index + 1:3}/{len(bench.recipes)} {side:8} {row['cpu']:7.1f} CPU s  select {score}")
    finally:
        worker.close()


def _run(bench: Bench, worker: OurWorker, drawn: Repaired, side: str) -> dict[str, Any]:
    o = bench.options
    if side == "ours":
        recipe, scored = drawn.recipe.to_dict(), trial_metric(bench.task)
        metric = None if scored == bench.task.metric else scored
        job = TrainJob("benchmark", "trial", "benchmark", recipe, seed=o.seed, steps=o.steps, metric=metric)
        return worker.run(job)
    trial = bench.trial(drawn.recipe, o.pad if side == "pad" else None)
    return in_fresh_process(OBVIOUS[bench.task.kind][0], trial, bench.work)


def collect(bench: Bench, balance: Balance) -> list[dict[str, Any]]:
    """One row for each recipe, with what every side measured."""
    rows = []
    for index, drawn in enumerate(bench.recipes):
        found = {side: balance[key] for side in SIDES if (key := bench.key(drawn.recipe, side)) in balance}
        rows.append(
            {
                "index": index,
                "hash": drawn.recipe.hash(),
                "k": lowest_layer(drawn.recipe, bench.spec),
                "methods": [entry.method for entry in drawn.recipe.entries()],
                "deployed": drawn.counts.deployed,
                "peft": peft_words(drawn.recipe, bench.spec) is not None,
                "sides": found,
            }
        )
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--language-model", action="store_true", help="defaults for LoRA on a language model (README)"
    )
    parser.add_argument("--space", type=Path, default=SPACE, help="what recipes are drawn from")
    parser.add_argument("--recipes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--budget", default="0.5%")
    parser.add_argument("--pad", type=int, default=128, help="length of the padded side")
    parser.add_argument("--pad-recipes", type=int, default=0, help="run the padded side on the first so many")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results and caches")
    parser.add_argument("--again", choices=SIDES, help="forget the earlier results of one side")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="movie-sentences")
    parser.add_argument("--rows", type=int, default=1600, help="training rows")
    parser.add_argument("--select", type=int, default=500, help="rows that are scored")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    if parser.parse_args(arguments).language_model:
        parser.set_defaults(**LANGUAGE_MODEL)
    options = parser.parse_args(arguments)
    if min(options.recipes, options.steps) < 1:
        parser.error("--recipes and --steps must be at least 1")
    return options


def _plain(value: Any) -> Any:
    """An option as it is recorded: a path from the experiments' folder on, where it lies in it."""
    if not isinstance(value, Path):
        return value
    home = LIB.parent.resolve()
    return str(value.resolve().relative_to(home) if value.resolve().is_relative_to(home) else value)


def main() -> None:
    options = parse()
    if options.tables:
        found = read_json(options.out)
        show_tables(found["recipes"], found["summary"], found["settings"]["pad"])
        return
    one_thread()
    bench = make_bench(options)
    balance = open_balance(bench)
    with cache_at(bench.work / "ours"):
        measure(bench, balance)
    rows = collect(bench, balance)
    starts = [row["cpu"] for row in balance.rows.values() if row["side"] == "start"]
    summary = summarise_all(rows, starts)
    show_tables(rows, summary, options.pad)
    settings = {k: _plain(v) for k, v in vars(options).items()}
    recipes = [{**row, "recipe": d.recipe.to_dict()} for row, d in zip(rows, bench.recipes, strict=True)]
    write_json(options.out, {"settings": settings, "summary": summary, "recipes": recipes})


if __name__ == "__main__":
    main()
