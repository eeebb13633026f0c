"""Backbones in 8 and 4 bits, and gradient checkpointing: where trainings end, and what they take.

    python experiments/quantized/run.py                 # an hour of two cores; goes on where it stopped
    python experiments/quantized/run.py --only memory   # minutes: only what memory and steps take
    python experiments/quantized/run.py --only searches # twenty minutes of two cores
    python experiments/quantized/run.py --tables

*scores*: pairs of trainings on `trec` that differ in nothing but how MiniLM's linear maps are held: LoRA, a
serial adapter and a hybrid, three seeds each. *memory*: four steps of LoRA on MiniLM and on SmolLM2-135M,
with activations kept or computed again. Each training has a process and one thread of its own. *searches*:
two whole searches by the command line, in nine minutes each, that differ in nothing but `--quantize int8`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import interval
from lib.measuring import note, one_thread, show
from lib.storage import append_row, read_rows

__all__ = ["RECIPES", "Setting", "differences", "memory_settings", "needed", "score_settings", "searched"]

RESULTS, RUNS = Path(__file__).parent / "results", Path(__file__).parent / "runs"
SEARCH = ("--model", "smollm2-135m", "--task", "gym:chain_sum", "--budget", "0.3%", "--time", "9m")
SEARCH += ("--baselines", "lora", "--metric", "likelihood", "--steps", "20")
HELD = (None, "int8", "int4")
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"attach": [{"lora": {"rank": 12}}]},
    "serial adapter": {"attach": [{"serial_adapter": {"bottleneck": 12}}]},
    "lora + parallel adapter": {
        "attach": [{"lora": {"rank": 6}}, {"parallel_adapter": {"sites": ["ffn"], "bottleneck": 8}}]
    },
}
_TRAINING = {"learning_rate": 1.5e-3, "groups": {"head": {"learning_rate": 1e-2}}}


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        quantize: see `autopeft.assets.QUANTIZED`; `None` for fp32.
        memory_saving: whether activations are computed again in the backward.
        rows: of a batch.
        scored: whether *select* and *test* are scored.
    """

    model: str
    task: str
    recipe: str
    seed: int = 0
    quantize: str | None = None
    memory_saving: bool = False
    shortcuts: bool = True
    steps: int = 60
    rows: int = 32
    max_length: int = 128
    scored: bool = True


def score_settings() -> list[Setting]:
    """The pairs, seed by seed."""
    return [
        Setting("minilm", "trec", recipe, seed, quantize)
        for seed in range(3)
        for recipe in RECIPES
        for quantize in HELD
    ]


def memory_settings() -> list[Setting]:
    """What memory is measured of: every layer trained through, and texts that fill their length."""
    return [
        Setting(model, task, "lora", 0, quantize, saving, False, 4, rows, 128, False)
        for model, task, rows in (("minilm", "movie-sentences", 32), ("smollm2-135m", "gym:chain_sum", 8))
        for quantize in HELD
        for saving in (False, True)
    ]


def needed(settings: Sequence[Setting], rows: Sequence[dict[str, Any]]) -> list[Setting]:
    """Those that are not recorded."""
    done = [row["setting"] for row in rows]
    return [setting for setting in settings if asdict(setting) not in done]


def measure(setting: Setting) -> dict[str, Any]:
    """Run a training in a process of its own."""
    words = [sys.executable, __file__, "--one", json.dumps(asdict(setting))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{setting} failed:\n{done.stderr[-3000:]}")
    return {"setting": asdict(setting), **json.loads(done.stdout.splitlines()[-1])}


def one(setting: Setting) -> dict[str, Any]:
    """The training itself: scores, bytes and seconds.

    `weights` are the bytes of the base model's tensors, `before` and `peak` those of the process before and
    during the training, `step` the median CPU seconds of a step.
    """
    import torch

    from autopeft import Recipe, load_task
    from autopeft.assets import load_tokenizer, resolve_model
    from autopeft.assets.weights import held_tensors
    from autopeft.tasks import Rows
    from autopeft.tasks.encode import encode
    from autopeft.training import TrainingPlan, run_trial
    from autopeft.training.metering import resident

    torch.set_num_threads(1)
    source = resolve_model(setting.model, quantize=setting.quantize)
    task = load_task(setting.task, rows=Rows(2000, 400, 1000), seed=0)
    task = task.subset(train=2000, select=400 if setting.scored else 8, test=1000 if setting.scored else 8)
    data = encode(task, load_tokenizer(source), setting.max_length)
    model = task.task_kind.head.load_model(source, task.labels, seed=setting.seed)
    before = resident()
    plan = TrainingPlan(
        steps=setting.steps, batch_size=setting.rows, max_length=setting.max_length, seed=setting.seed,
        memory_saving=setting.memory_saving, shortcuts=setting.shortcuts,
        head_start="probe" if setting.scored else "random", device="cpu",
    )  # fmt: skip
    made = {"name": "measured", "layers": [{"at": "all", **RECIPES[setting.recipe]}], "training": _TRAINING}
    splits = ("select", "test") if setting.scored else ("select",)
    outcome = run_trial(model, Recipe.from_dict(made), data, plan, splits=splits)
    return {
        "scores": dict(outcome.scores) if setting.scored else {},
        "losses": [outcome.train.losses[0], outcome.train.losses[-1]],
        "weights": sum(tensor.numel() * tensor.element_size() for _, tensor in held_tensors(model)),
        "before": before,
        "peak": outcome.train.memory,
        "step": outcome.train.step_time,
    }


def search(quantize: str | None) -> dict[str, Any]:
    """A whole search by the command line, and what it found."""
    run = RUNS / (quantize or "fp32")
    if not (run / "result.json").exists():
        begun = (run / "manifest.json").exists()
        held = ("--quantize", quantize) if quantize else ()
        words = ("--resume", str(run)) if begun else (*SEARCH, *held, "--out", str(run))
        done = subprocess.run([sys.executable, "-m", "autopeft", "search", *words], check=False)
        if done.returncode:
            raise SystemExit(f"the search in {run} ended with {done.returncode}")
    return searched(quantize, json.loads((run / "result.json").read_text(encoding="utf-8")))


def searched(quantize: str | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """A search as a row: of the winner and each baseline the scores on *test* and the peak of memory, in
    bytes."""
    memory = {one["name"]: one["measured"].get("memory") for one in found["resources"]}
    contenders = [{"name": "winner", "test": found["test"]}, *found["baselines"]]
    return {
        "quantize": quantize, "search": list(SEARCH), "metric": found["metric"], "recipe": found["recipe"],
        "trials": found["trials"]["complete"], "seconds": round(found["seconds"], 1),
        "contenders": [
            {"name": c["name"], "test": c["test"], "memory": memory.get(c["name"])} for c in contenders
        ],
    }  # fmt: skip


def differences(
    rows: Sequence[dict[str, Any]], quantize: str
) -> Iterator[tuple[str, str, list[float], list[float]]]:
    """By recipe and split, the scores in fp32 and, seed by seed, what other weights add, in points."""
    by_key = {(r["setting"]["recipe"], r["setting"]["seed"], r["setting"]["quantize"]): r for r in rows}
    for recipe in RECIPES:
        pairs = [
            (by_key[recipe, seed, None]["scores"], by_key[recipe, seed, quantize]["scores"])
            for seed in range(3)
            if (recipe, seed, None) in by_key and (recipe, seed, quantize) in by_key
        ]
        for split in ("select", "test") if pairs else ():
            plain = [100 * a[split] for a, _ in pairs]
            yield recipe, split, plain, [100 * (b[split] - a[split]) for a, b in pairs]


def tables(
    scores: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], searches: Sequence[dict[str, Any]]
) -> None:
    """Print what there is."""
    show_searches(searches)
    lines = []
    for quantize in HELD[1:]:
        for recipe, split, plain, added in differences(scores, str(quantize)):
            mean, half = interval(added)
            base, around = interval(plain)
            lines.append(
                (
                    f"{recipe}, {quantize}",
                    split,
                    len(added),
                    f"{base:.2f} ± {around:.2f}",
                    f"{mean:+.2f} ± {half:.2f}",
                )
            )
    show("scores on trec", ("recipe", "split", "seeds", "fp32, points", "difference, points"), lines)
    mega = 1e6
    show(
        "memory and steps",
        ("training", "weights, MB", "process before, MB", "peak above it, MB", "peak, MB", "step, CPU s"),
        [
            (
                f"{s['model']}, {s['rows']} rows, {s['quantize'] or 'fp32'}"
                f"{', --memory-saving' if s['memory_saving'] else ''}",
                f"{row['weights'] / mega:.1f}",
                f"{row['before'] / mega:.0f}",
                f"{(row['peak'] - row['before']) / mega:.0f}",
                f"{row['peak'] / mega:.0f}",
                f"{row['step']:.2f}",
            )
            for row in memory
            for s in [row["setting"]]
        ],
    )


def show_searches(rows: Sequence[dict[str, Any]]) -> None:
    """Print what whole searches found."""
    lines = [
        (
            row["quantize"] or "fp32",
            one["name"] if one["name"] != "winner" else row["recipe"]["name"],
            " ".join(f"{100 * score:.1f}" for score in one["test"]),
            f"{one['memory'] / 1e6:.0f}" if one["memory"] else "",
            f"{row['trials']} in {row['seconds'] / 60:.1f} min",
        )
        for row in rows
        for one in row["contenders"]
    ]
    columns = ("weights", "recipe", "test, each seed", "peak of memory, MB", "trials")
    show("searches on gym:chain_sum", columns, lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("scores", "memory", "searches"), help="one of the parts")
    parser.add_argument("--model", help="of the memory's models, this one")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    one_thread()
    if given.one:
        print(json.dumps(one(Setting(**json.loads(given.one)))))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    files = {name: RESULTS / f"{name}.jsonl" for name in ("memory", "scores", "searches")}
    for name, settings in (("memory", memory_settings()), ("scores", score_settings())):
        if given.tables or given.only not in (None, name):
            continue
        for setting in needed(settings, read_rows(files[name])):
            if name == "scores" or given.model in (None, setting.model):
                row = measure(setting)
                append_row(files[name], row)
                note(f"{name}: {row}")
    known = {row["quantize"] for row in read_rows(files["searches"])}
    if not given.tables and given.only in (None, "searches"):
        for quantize in (held for held in (None, "int8") if held not in known):
            append_row(files["searches"], search(quantize))
    tables(*(read_rows(files[name]) for name in ("scores", "memory", "searches")))


if __name__ == "__main__":
    main()
