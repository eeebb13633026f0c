"""What memory does the selection of entries take on a language model?

    python experiments/selection_memory/run.py
    python experiments/selection_memory/run.py --only fish_mask,lora
    python experiments/selection_memory/run.py --tables

Each selective method alone, at 0.5 % of the backbone where it keeps entries, is trained for four steps by the
command `autopeft train` in a process of its own: selection, phases and saving included. The figure is the
largest resident set of that process. LoRA, which selects nothing, stands beside it, as do the methods that
the backbone cannot take.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note, one_thread, read_json, show, write_json

from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.method import get_method, method_names
from autopeft.tasks import load_task

RESULTS = Path(__file__).parent / "results" / "memory.json"
MODEL, TASK, STEPS, ROWS = "smollm2-135m", "gym:chain_sum", 4, 4
LIMIT = 6.0  # GB: what a selection may take
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"layers": [{"attach": [{"lora": {"rank": 12}}]}]},
    "fish_mask": {"model": [{"fish_mask": {"keep": "0.5%", "samples": 16}}]},
    "pafi": {"model": [{"pafi": {"keep": "0.5%"}}]},
    "sam": {"model": [{"sam": {"batches": 4}}]},
    "sam g2_over_h": {"model": [{"sam": {"batches": 4, "score": "g2_over_h"}}]},
    "child_tuning_d": {"model": [{"child_tuning_d": {"keep": "0.5%", "rest": "frozen"}}]},
    "fish_dip": {"model": [{"fish_dip": {"keep": "0.5%", "every": 2}}]},
    "sensitivity_tuning": {"model": [{"sensitivity_tuning": {"keep": "0.5%"}}]},
    "lt_sft": {"model": [{"lt_sft": {"keep": "0.5%"}}]},
    "u_diff_pruning": {"model": ["u_diff_pruning"]},
    "s_diff_pruning": {"model": ["s_diff_pruning"]},
    "far": {"layers": [{"attach": ["far"]}]},
    "child_tuning_f": {
        "layers": [{"attach": [{"lora": {"rank": 12}}]}],
        "training": {"policies": ["child_tuning_f"]},
    },
}


def selective() -> list[str]:
    """The methods of `methods/selective`."""
    return [name for name in method_names() if ".selective." in get_method(name).__module__]


def refused(config: PretrainedConfig) -> dict[str, str]:
    """The selective methods that a model cannot take, with the reason."""
    spec, found = spec_of(config), dict[str, str]()
    for name in selective():
        if get_method(name).traits.level != "model":
            continue
        try:
            build_graph(Recipe.from_dict({"model": [name]}), spec)
        except UsageError as error:
            found[name] = str(error)
    return found


def measure(name: str) -> dict[str, Any]:
    """Peak memory, in GB, and CPU seconds of one training."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        slug = "-".join(re.findall(r"[a-z0-9]+", name))
        recipe.write_text(yaml.safe_dump({"autopeft": 2, "name": slug, **RECIPES[name]}))
        words = [sys.executable, "-m", "autopeft", "train", "--recipe", str(recipe), "--model", MODEL]
        words += ["--task", str(_rows(Path(folder))), "--steps", str(STEPS), "--batch-size", str(ROWS)]
        words += ["--out", f"{folder}/run"]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                log.seek(0)
                raise SystemExit(f"{name} failed:\n{log.read()[-3000:]}")
    factor = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_gb": round(usage.ru_maxrss * factor / 1e9, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }


def _rows(folder: Path) -> Path:
    """A file with some rows of the task: of the whole, scoring would take minutes."""
    task = load_task(TASK).subset(train=96, select=1, test=1)
    path = folder / "rows.jsonl"
    split = task.splits["train"]
    lines = [{"prompt": p, "completion": c} for p, c in zip(split.texts, split.labels, strict=True)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def tables(found: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str]) -> None:
    """Print what there is, and why others were left out."""
    rows = [
        (
            name,
            f"{one['peak_gb']:.2f}",
            f"{one['cpu_seconds']:.0f}",
            "yes" if one["peak_gb"] <= LIMIT else "no",
        )
        for name, one in sorted(found.items(), key=lambda pair: pair[1]["peak_gb"])
    ]
    show(f"{MODEL}, {TASK}", ("method", "peak memory, GB", "CPU seconds", f"within {LIMIT:g} GB"), rows)
    for name, reason in left_out.items():
        note(f"not measured, {name}: {reason}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="some of " + ", ".join(RECIPES))
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args(words)
    one_thread()
    found: dict[str, Any] = read_json(RESULTS)["methods"] if RESULTS.is_file() else {}
    chosen = given.only.split(",") if given.only else list(RECIPES)
    unknown = [name for name in chosen if name not in RECIPES]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(RECIPES)}")
    for name in [] if given.tables else chosen:
        found[name] = measure(name)
        note(f"{name}: {found[name]}")
        write_json(RESULTS, {"methods": found})
    tables(found, refused(load_config(resolve_model(MODEL))))


if __name__ == "__main__":
    main()
