"""Two tasks of this package's kind, with a head each, as one; and a search for them, as a program."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import autopeft
from autopeft.tasks import Mixture, Task, load_task, task_set


def both(folder: Path) -> Task:
    """How much of each text is praise, and how long it is beside the longest."""
    labels = {"rows": "liked", "lengths": "share"}
    tasks = [
        replace(load_task(str(folder / f"{name}.csv"), text="body", label=label, kind="toy"), name=name)
        for name, label in labels.items()
    ]
    return task_set(tasks, Mixture(temperature=2.0))


if __name__ == "__main__":
    task, run = both(Path()), sys.argv[1]
    begun: dict[str, Any] = {
        "budget": "6%", "model": "bert", "trials": 6, "steps": 40, "workers": 1, "baselines": "lora,head",
        "max_length": 24, "batch_size": 16, "confirm_seeds": 2, "out": run,
    }  # fmt: skip
    if (Path(run) / "manifest.json").exists():
        autopeft.search(task=task, resume=run)
    else:
        autopeft.search(task=task, **begun)
