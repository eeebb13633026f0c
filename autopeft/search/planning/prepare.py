"""From arguments to a search that can start: all is read, checked and counted here, nothing trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from autopeft.assets import ModelSource, dtype_of, load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.effort import Effort, choose_effort, parse_duration
from autopeft.errors import UsageError, near
from autopeft.search.optimization.samplers import default_sampler, make_sampler
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline, baselines, parse_kinds
from autopeft.search.space.repair import check_feasible
from autopeft.search.space.space import Space
from autopeft.search.tracking.reporter import parse_trackers
from autopeft.spec import BackboneSpec
from autopeft.tasks import ClassWeights, Task, load_task
from autopeft.training import TrainingPlan

__all__ = ["OBJECTIVES", "Arguments", "Prepared", "available_cpus", "prepare"]

OBJECTIVES = {"score": 1, "score,params": 2}
_PACKAGES = ("autopeft", "torch", "transformers", "datasets", "optuna", "ray", "numpy", "scipy")
_GPU_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Everything that a search is told; see `autopeft.search.api.search` for the meaning."""

    task: str
    budget: str | int
    space: str | Path | Space = "default"
    model: str = "minilm"
    effort: str | None = None
    trials: int | None = None
    steps: int | None = None
    time: str | float | None = None
    seed: int = 0
    sampler: str | None = None
    fidelity: str = "steps"
    objective: str = "score"
    warm_start: tuple[str, ...] = ()
    baselines: str | None = None
    fresh_baselines: bool = False
    workers: int | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float | None = None
    address: str | None = None
    max_length: int = 128
    batch_size: int = 32
    micro_batch: int | None = None
    precision: str = "fp32"
    shortcuts: bool = True
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    metric: str | None = None
    class_weights: ClassWeights = None
    stand_in: bool = True
    train_rows: int | None = None
    select_rows: int | None = None
    test_rows: int | None = None
    confirm: int | None = None
    confirm_seeds: int | None = None
    log: str | None = None
    out: str | Path | None = None
    runs: str | Path = "runs"


@dataclass(frozen=True)
class Prepared:
    """A search that can start.

    Attributes:
        limits: least and most deployed parameters.
        full_rows: rows of each split before the effort's limits.
        gpus: GPUs of one job, 0 for none.
        seconds: time budget of the whole run.
    """

    arguments: Arguments
    source: ModelSource
    spec: BackboneSpec
    space: Space
    budget: Budget
    limits: tuple[int, int]
    task: Task
    full_rows: dict[str, int]
    effort: Effort
    plan: TrainingPlan
    sampler: str
    rungs: Rungs
    objectives: int
    workers: int | None
    gpus: float
    seconds: float | None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def space_name(self) -> str:
        """The space as the user named it."""
        space = self.arguments.space
        return str(space) if isinstance(space, (str, Path)) else space.name

    def baselines(self) -> list[Baseline]:
        """What the winner is compared with."""
        a, effort = self.arguments, self.effort
        kinds = parse_kinds(a.baselines, effort.name)
        return baselines(
            self.space,
            self.spec,
            self.budget,
            rates=effort.rates,
            seed=a.seed,
            effort=effort.name,
            kinds=kinds,
            # As many as there are seeds, so that they can be compared seed by seed.
            hybrids=max(3, min(5, effort.seeds)),
        )

    def key(self) -> str:
        """Short hash of all that decides the outcome; where it is logged does not."""
        told = self.manifest()
        del told["arguments"]["log"]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def manifest(self) -> dict[str, Any]:
        """What is needed to understand and repeat the run."""
        arguments = {k: v for k, v in vars(self.arguments).items() if k != "space"} | {
            "space": self.space_name
        }
        return {
            "created": self.created,
            "task": self.arguments.task,
            "model": self.arguments.model,
            "budget": str(self.arguments.budget),
            "space": self.space_name,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
            "versions": _versions(),
            "platform": {"system": platform.platform(), "cpus": available_cpus(), "gpu": _gpu_name()},
            "seed": self.arguments.seed,
            "sampler": self.sampler,
            "rungs": asdict(self.rungs),
            "objective": self.arguments.objective,
            "effort": asdict(self.effort),
            "training": vars(self.plan) | {"steps": self.effort.steps},
            "data": self.task.describe() | {"rows_before_limits": self.full_rows},
            "notice": self.task.source.notice,
            "backbone": {
                **asdict(self.source),
                "family": self.spec.family,
                "parameters": self.spec.parameters,
            },
            "limits": {"least": self.limits[0], "most": self.limits[1]},
        }


def prepare(
    arguments: Arguments, notify: Callable[[str], None] | None = None, effort: Effort | None = None
) -> Prepared:
    """Read, check and count everything a search needs; `effort` is that of a run that goes on.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
        AssetError: data or backbone could not be fetched.
    """
    a = arguments
    cheap = _check(a)
    gpu = torch.cuda.is_available()
    effort = effort or choose_effort(
        a.effort,
        gpu=gpu,
        trials=a.trials,
        steps=a.steps,
        train_rows=a.train_rows,
        select_rows=a.select_rows,
        test_rows=a.test_rows,
        top=a.confirm,
        seeds=a.confirm_seeds,
    )
    plan = TrainingPlan(
        steps=effort.steps,
        batch_size=a.batch_size,
        micro_batch=a.micro_batch,
        shortcuts=a.shortcuts,
        max_length=a.max_length,
        seed=a.seed,
        # On a cluster GPUs may be logical: each worker sees what it has.
        device="cpu" if not cheap.gpus else "cuda" if a.address is None else "auto",
    )
    budget = Budget.parse(a.budget)
    space = a.space if isinstance(a.space, Space) else Space.load(a.space)
    source = resolve_model(a.model, notify=notify)
    spec = spec_of(load_config(source))
    limits = budget.limits(spec)
    check_feasible(space, budget, spec)
    task, rows = _task(a, effort, notify)
    return Prepared(
        arguments=a,
        source=source,
        spec=spec,
        space=space,
        budget=budget,
        limits=limits,
        task=task,
        full_rows=rows,
        effort=effort,
        plan=plan,
        sampler=cheap.sampler,
        rungs=Rungs.of(effort.steps, a.fidelity),
        objectives=OBJECTIVES[a.objective],
        workers=_workers(a, cheap.gpus),
        gpus=cheap.gpus,
        seconds=cheap.seconds or effort.seconds,
    )


@dataclass(frozen=True)
class _Cheap:
    sampler: str
    gpus: float
    seconds: float | None


def _check(a: Arguments) -> _Cheap:
    """Check what needs neither data nor backbone."""
    if a.objective not in OBJECTIVES:
        raise UsageError(
            f"There is no objective {a.objective!r}.{near(a.objective, OBJECTIVES)} "
            f"Objectives: {'; '.join(OBJECTIVES)}."
        )
    sampler = a.sampler or default_sampler(OBJECTIVES[a.objective])
    make_sampler(sampler, seed=a.seed, trials=1)
    Rungs.of(1, a.fidelity)
    parse_kinds(a.baselines, "quick")
    parse_trackers(a.log)
    dtype_of(a.precision)
    _check_workers(a)
    gpus = a.gpus_per_trial
    if gpus is None:
        gpus = _GPU_SHARE if a.address is None and torch.cuda.is_available() else 0.0
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(f"gpus_per_trial is a share below 1 or a whole number, but got {gpus}.")
    if gpus and a.address is None and torch.cuda.device_count() < math.ceil(gpus):
        raise UsageError(
            f"gpus_per_trial={gpus:g} asks for {math.ceil(gpus)} GPUs, and this machine has "
            f"{torch.cuda.device_count()}; "
            "leave it out to train on the CPU, or join a cluster with --address."
        )
    return _Cheap(sampler, gpus, parse_duration(a.time))


def _check_workers(a: Arguments) -> None:
    if a.cpus_per_trial < 1:
        raise UsageError(f"cpus_per_trial must be at least 1, but got {a.cpus_per_trial}.")
    if a.workers is not None and a.workers < 0:
        raise UsageError(
            f"workers is how many trials run at a time, or 0 to run them one by one in this process, but got "
            f"{a.workers}."
        )
    if a.workers == 0 and a.address is not None:
        raise UsageError(
            f"workers=0 runs every trial in this process, and address={a.address!r} joins a Ray cluster; "
            "leave one of them out."
        )
    if a.workers == 0 and a.gpus_per_trial:
        raise UsageError(
            "workers=0 runs one trial at a time, with the whole GPU where there is one, but got "
            f"gpus_per_trial={a.gpus_per_trial:g}; leave it out, or give 0 to train on the CPU."
        )


def _task(a: Arguments, effort: Effort, notify: Callable[[str], None] | None) -> tuple[Task, dict[str, int]]:
    task = load_task(
        a.task,
        text=a.text,
        text_pair=a.text_pair,
        label=a.label,
        metric=a.metric,
        class_weights=a.class_weights,
        seed=a.seed,
        stand_in=a.stand_in,
        notify=notify,
    )
    rows = {str(name): len(split) for name, split in task.splits.items()}
    wanted = {"train": effort.train_rows, "select": effort.select_rows, "test": effort.test_rows}
    return task.subset(**wanted, seed=a.seed), rows


def _workers(a: Arguments, gpus: float) -> int | None:
    """Jobs at a time on this machine, 0 for one in this process; `None` on a cluster, whose size decides."""
    if a.workers is not None:
        return a.workers
    if a.address is not None:
        return None
    by_cpu = max(1, available_cpus() // a.cpus_per_trial)
    if gpus:
        return max(1, min(by_cpu, int(torch.cuda.device_count() / gpus)))
    return by_cpu


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().strip().partition(" ")
        if limit.isdigit() and period.isdigit() and int(period) > 0:
            count = min(count, max(1, int(limit) // int(period)))
    return count


def _gpu_name() -> str | None:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
