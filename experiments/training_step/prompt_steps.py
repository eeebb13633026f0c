"""The training step of every prompt and prefix, beside that of LoRA on texts that are longer by its rows.

Both sides train by `autopeft.training.train` on batches of the same texts, from layer 0; nothing is kept of
layers that are untouched. The texts of LoRA's side have as many tokens more as the method has rows in front
of them (or keys and values, where it is a prefix), their own ones again, right behind the first token. A
method with phases has a row for each. Where a phase holds rows out, LoRA trains on the others alone as well.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.measuring import note, ratios, rotated, show, summarise
from lib.step_profile import Profile, Windows

from autopeft import Recipe
from autopeft.hybrid import attach
from autopeft.method import Call, Context, Phase, get_method, method_names, reserved_rows
from autopeft.recipe.tasks import acts_by_task
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.training import train
from autopeft.training.batches import held_out_rows
from autopeft.training.contexts import head_kept
from autopeft.training.phases import stages_of

__all__ = [
    "Part",
    "lengthened",
    "measure_prompts",
    "profile_prompt",
    "rows_of",
    "show_prompts",
    "soft_prompts",
]

LIMIT = 1.5
# What lies between the phases of XPrompt is no step: few rows will do for it. Beside 100 rows, the default of
# SPoT and TPT, nothing else of a step could be seen.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "spot": {"length": 20},
    "tpt": {"length": 20},
    "xprompt": {"examples": 4},
}
Runs = dict[str, list[float]]


@dataclass(frozen=True)
class Part:
    """A phase of a method's training: its name, the method's rows in it, and the share that it holds out."""

    phase: str
    rows: int
    held_out: float = 0.0

    @property
    def beside(self) -> str:
        """The LoRA that it is held against."""
        return f"lora on {self.rows} tokens more" + (" of what a search learns from" if self.held_out else "")


# What is trained
# ---------------------------------------------------------------------------------------------------------


def soft_prompts(source: Path, width: int) -> dict[str, Recipe]:
    """Every registered method that puts rows, or keys and values, in front of a text, with its defaults but
    for `SETTINGS`.

    Args:
        source: where a prompt lies for a method that starts from that of another training.
        width: of the backbone.
    """
    found = {}
    for name in method_names():
        traits, config = get_method(name).traits, dict(SETTINGS.get(name, {}))
        if not traits.ways & {"prompt", "kv"} or acts_by_task(name):  # those need several tasks
            continue
        body: dict[str, Any] = {"name": name}
        item: dict[str, Any] = {name: config}
        if "artefacts" in traits.needs:
            config["source_width"] = width
            item["from"], body["inputs"] = "source", {"source": str(source)}
        body |= (
            {"model": [item]} if traits.level == "model" else {"layers": [{"at": "all", "attach": [item]}]}
        )
        found[name] = Recipe.from_dict(body)
    return found


@contextmanager
def stored_prompt(model: Any, length: int) -> Iterator[Path]:
    """Within, a folder with a prompt of the model's own that nobody has trained. A recipe's inputs lie below
    the folder that one works in, which meanwhile is another."""
    recipe = Recipe.from_dict({"name": "source", "model": [{"prompt_tuning": {"length": length}}]})
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="step-prompt-") as folder:
        os.chdir(folder)
        try:
            with attach(model, recipe, seed=0) as hybrid:
                hybrid.save("source")
            yield Path("source")
        finally:
            os.chdir(before)


def rows_of(hybrid: Any) -> int:
    """Rows that stand in front of a text: of prompts, and keys and values of prefixes at an attention."""
    total = 0
    for name, entry in hybrid.graph.entries.items():
        module = hybrid.modules[name]
        if "prompt" in entry.ways:
            total += reserved_rows(module, entry.sites)
        if "kv" in entry.ways:
            site = next(site for site in entry.sites if site.name == "attention")
            keys, _ = module.key_value(site, torch.zeros(1, 1, site.in_features), Call(Context()))
            total += int(keys.shape[1])
    return total


def lengthened(data: EncodedTask, rows: int) -> EncodedTask:
    """Texts with as many tokens more, their own again, behind the first one."""
    splits = {name: _lengthened(split, rows) for name, split in data.splits.items()}
    return replace(data, splits=splits, max_length=data.max_length + rows)


def _lengthened(split: EncodedSplit, rows: int) -> EncodedSplit:
    places = []
    for first, end in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        own = np.arange(first, end)
        inside = own[1:-1] if len(own) > 2 else own
        places.append(np.concatenate([own[:1], np.resize(inside, rows), own[1:]]))
    flat = np.concatenate(places)
    return replace(
        split,
        ids=split.ids[flat],
        types=None if split.types is None else split.types[flat],
        offsets=split.offsets + rows * np.arange(len(split.offsets)),
        max_length=split.max_length + rows,
    )


# Steps
# ---------------------------------------------------------------------------------------------------------


def steps_of(
    bench: Any, recipe: Recipe, data: EncodedTask, counted: int, told: Any = None
) -> tuple[Runs, list[Part]]:
    """CPU milliseconds of each counted step of each phase, the first steps of each left out, and the phases.

    Args:
        counted: steps of a phase.
        told: is called after each step as well.
    """
    wanted, ticks, begun = counted + bench.options.drop, [time.process_time()], list[tuple[str, int]]()
    parts: list[Part] = []
    with head_kept(bench.model):
        hybrid = attach(bench.model, recipe, seed=bench.options.seed)
        stages = stages_of(hybrid.modules, 1000)
        total = math.ceil(wanted * 1000 / min(stage.steps for stage in stages))

        def on_step(step: int, loss: float) -> None:
            ticks.append(time.process_time())
            if len(parts) < len(begun):
                held_out = stages[len(parts)].phase.held_out
                parts.append(Part(begun[-1][0], rows_of(hybrid), held_out))
            if told is not None:
                told(step, loss)

        def on_phase(name: str, steps: int) -> None:
            if steps:
                begun.append((name, len(ticks)))

        try:
            train(hybrid, data, bench.plan(total), on_step=on_step, on_phase=on_phase)
        finally:
            hybrid.detach()
    ms = [1e3 * (after - before) for before, after in pairwise(ticks)]
    found = {name: ms[first - 1 + bench.options.drop : first - 1 + wanted] for name, first in begun}
    return found, parts


def lora(bench: Any, part: Part) -> Runs:
    """Steps of LoRA on q and v, on the rows of a part, whose texts are longer by its tokens."""
    data, phase = lengthened(bench.data, part.rows), Phase(part.phase, held_out=part.held_out)
    among, _ = held_out_rows(data.train, bench.plan(1), phase)
    if among is not None:
        data = replace(data, splits={**data.splits, "train": data.train.take(among)})
    return steps_of(bench, _lora_recipe(bench), data, bench.options.steps)[0]


def _lora_recipe(bench: Any) -> Recipe:
    item = {"lora": {"sites": ["q", "v"], "rank": bench.options.rank}}
    return Recipe.from_dict({"name": "lora", "layers": [{"at": "all", "attach": [item]}]})


# The benchmark
# ---------------------------------------------------------------------------------------------------------


def measure_prompts(bench: Any, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """After each repeat a JSON-able row for each phase of each method; `names` are all where it is empty."""
    width = bench.model.config.hidden_size
    with stored_prompt(bench.model, _source_length()) as source:
        recipes = soft_prompts(source, width)
        if unknown := set(names) - set(recipes):
            raise SystemExit(f"There are {', '.join(recipes)}, but got {', '.join(sorted(unknown))}.")
        chosen = {name: recipe for name, recipe in recipes.items() if not names or name in names}
        outlines = {name: steps_of(bench, recipe, bench.data, 1)[1] for name, recipe in chosen.items()}
        most = {name: max(part.rows for part in parts) for name, parts in outlines.items()}
        variants: dict[str, Any] = {}
        for name in sorted(chosen, key=lambda name: most[name]):  # beside the LoRA that it is held against
            for part in outlines[name]:
                variants.setdefault(part.beside, partial(lora, bench, part))
            variants[name] = partial(_alone, bench, chosen[name])
        runs: dict[str, list[Runs]] = {name: [] for name in variants}
        for repeat in range(bench.options.repeats):
            for name in rotated(list(variants), repeat):
                runs[name].append(variants[name]())
                _tell(name, repeat, runs[name][-1])
            yield [_row(name, part, runs) for name in chosen for part in outlines[name]]


def _source_length() -> int:
    """Of the prompt that is stored: as long as what starts from it wants."""
    wanting = [name for name in method_names() if "artefacts" in get_method(name).traits.needs]
    configs: list[Any] = [get_method(name).Config(**SETTINGS.get(name, {})) for name in wanting]
    return max((int(config.length) for config in configs), default=1)


def _alone(bench: Any, recipe: Recipe) -> Runs:
    return steps_of(bench, recipe, bench.data, bench.options.steps)[0]


def _tell(name: str, repeat: int, found: Runs) -> None:
    for phase, ms in found.items():
        note(f"repeat {repeat} {name}, {phase}: {sum(ms) / len(ms):.1f} ms/step")


def _row(name: str, part: Part, runs: Mapping[str, list[Runs]]) -> dict[str, Any]:
    own = [sum(run[part.phase]) / len(run[part.phase]) for run in runs[name]]
    beside = [sum(ms) / len(ms) for run in runs[part.beside] for ms in run.values()]
    return {
        "method": name,
        "phase": part.phase,
        "rows": part.rows,
        "ms_per_step": summarise(own).to_dict(),
        "lora_ms_per_step": summarise(beside).to_dict(),
        "times_lora": ratios(own, beside).to_dict(),
        "runs": {"own": own, "lora": beside},
    }


def show_prompts(found: list[dict[str, Any]]) -> None:
    """Print the table, the dearest first."""
    rows = []
    for row in sorted(found, key=lambda row: -row["times_lora"]["median"]):
        several = sum(other["method"] == row["method"] for other in found) > 1
        ratio = row["times_lora"]
        rows.append(
            (
                f"{row['method']}, {row['phase'].split()[0]}" if several else row["method"],
                row["rows"],
                f"{row['ms_per_step']['median']:.0f}",
                f"{row['lora_ms_per_step']['median']:.0f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})",
                "" if ratio["median"] <= LIMIT else f"above {LIMIT}",
            )
        )
    columns = ("method", "rows", "CPU ms/step", "LoRA on longer texts", "times LoRA (min–max)", "")
    show("A training step of each prompt and prefix", columns, rows)


def profile_prompt(bench: Any, name: str) -> Profile:
    """Profile steps of the first phase of a method; `lora+20` is LoRA on texts that are 20 tokens longer."""
    windows = Windows(warm=bench.options.drop, steps=bench.options.profile_steps)
    recipe, data = None, bench.data
    if name.startswith("lora+"):
        recipe = _lora_recipe(bench)
        data = lengthened(data, int(name.removeprefix("lora+")))
    with stored_prompt(bench.model, _source_length()) as source:
        recipe = recipe or soft_prompts(source, bench.model.config.hidden_size)[name]
        steps_of(bench, recipe, data, windows.total, told=windows.on_step)
    return windows.profile()
