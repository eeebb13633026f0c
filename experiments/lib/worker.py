"""A worker's jobs outside a search: its setup in files, a few recipes, loading backbone and data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.search.core.jobs import Job, JobResult
    from autopeft.search.execution.worker import WorkerSetup

__all__ = ["RECIPES", "load_backbone_and_data", "make_job", "raise_failed", "read_setup"]

RECIPES: dict[str, dict[str, Any]] = {
    "head-only": {"name": "head-only"},
    "lora": {"name": "lora", "layers": [{"attach": [{"lora": {"sites": ["q", "v"], "rank": 8}}]}]},
    "prompt": {"name": "prompt", "model": [{"prompt_tuning": {"length": 16}}]},
    "hybrid": {
        "name": "hybrid",
        "layers": [
            {
                "attach": [
                    {"lora": {"sites": ["q", "v"], "rank": 4}},
                    {"prefix_tuning": {"length": 8}},
                    {"serial_adapter": {"bottleneck": 8}},
                    "ia3",
                ]
            }
        ],
        "model": ["bitfit"],
    },
}


def load_backbone_and_data(setup: WorkerSetup) -> tuple[Any, Any]:
    """Load backbone and data in this process as the worker does for its first job; returns both."""
    from autopeft.search.execution import worker

    loaded = worker._world(setup)
    return loaded.backbone(setup), loaded.data


def read_setup(folder: Path, name: str = "setup") -> WorkerSetup:
    """The setup that an earlier process left in `folder`."""
    setup: WorkerSetup = pickle.loads((folder / f"{name}.pickle").read_bytes())
    return setup


def make_job(recipe: str, steps: int, number: int = 0) -> Job:
    """A job of one of `RECIPES`."""
    from autopeft.search.core.jobs import TrainJob

    return TrainJob(f"{recipe}-{number}", "trial", recipe, RECIPES[recipe], steps=steps)


def raise_failed(result: JobResult) -> None:
    """End the benchmark where a job has failed."""
    if result.error is not None:
        raise SystemExit(f"{result.job}: {result.error}")
