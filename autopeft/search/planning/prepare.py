"""From arguments to a search that can start: everything is read, checked and counted, nothing trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autopeft.assets import (
    ModelSource,
    keep_model,
    load_config,
    resolve_model,
    unquantized,
)
from autopeft.backbones import on_meta, spec_of
from autopeft.counting import Budget
from autopeft.devices import AUTO, accelerator, count, device_named, label
from autopeft.display import counted
from autopeft.effort import Effort, choose_effort, parse_duration
from autopeft.errors import UsageError
from autopeft.hybrid import Artefact, head_of
from autopeft.resources import Limits, Predictor, StepCost
from autopeft.search.core.goals import GOALS, OBJECTIVES, Cost, Goal
from autopeft.search.execution.input_transfer import pack_inputs
from autopeft.search.execution.worker import WorkerSetup
from autopeft.search.optimization.samplers import default_sampler
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.optimization.warm_start import BANK, points_from
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.bank_start import BankStart, find_start, with_start
from autopeft.search.planning.inputs import check_fit, open_inputs
from autopeft.search.planning.limits import (
    calibration_for,
    limits_of,
    model_on_meta,
    step_cost_of,
    with_head,
)
from autopeft.search.planning.option_checks import check_rank_for, check_sampler, space_name
from autopeft.search.planning.probes import PrecisionFinding, pooling_of_search, precision_of_finals
from autopeft.search.selection.baselines import Baseline, baselines, parse_kinds
from autopeft.search.space.candidate import ResourceBudget, candidate, check_within
from autopeft.search.space.initial_points import start_point
from autopeft.search.space.repair import check_feasible
from autopeft.search.space.space import Space
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows, Task, get_metric
from autopeft.tasks.encode import encode
from autopeft.tasks.summary import DataSummary, summarise
from autopeft.training import TrainingPlan
from autopeft.training.checks import check_positions
from autopeft.training.contexts import check_checkpointing
from autopeft.training.task_loading import task_from_arguments

__all__ = ["Prepared", "available_cpus", "prepare", "versions", "worker_setup"]

Notify = Callable[[str], None] | None
_PACKAGES = ("autopeft", "torch", "transformers", "datasets", "optuna", "ray", "numpy", "scipy")
_GPU_SHARE = 0.25
# Where the goal is not the best recipe: more finalists, and at least so many, as small or cheap ones train
# faster; and a factor for the rows of *select*, which cuts the noise of a difference to two thirds.
_MORE, _LEAST, _MORE_ROWS = 2, 4, 2.5


@dataclass(frozen=True)
class Prepared:
    """A search that can start.

    Attributes:
        limits: least and most deployed parameters.
        full_rows: rows of each split before the effort's limits.
        gpus: GPUs of one job, 0 for none.
        cpus: CPUs of one job: at least one for each process.
        processes: of one job, a GPU for each where there are some.
        place: the machine that jobs run on, as far as their times depend on it; empty where there may be
            several.
        seconds: time budget of the whole run.
        budget: of parameters, with the limits of `within` where there are some.
        predictor: says what a recipe takes beside its parameters.
        goal: which recipe wins.
        objective: what the trials are spent on.
        cost: the second objective, which the search minimises; `None` for none.
        rank_by: what recipes are ranked by: the given figure, else a loss where the score counts rows.
        trial_metric: the metric for *select* where models would have to write texts for the task's own; else
            `None`. *Test* is scored by the task's own.
        task_name, model_name, space_name: as the user named them; rows in memory have the name that
            `load_task` gives them, a loaded model the folder that it was saved to.
        step_cost: predicts the time of a training step as a multiple of LoRA's at the budget; `None` where
            this machine was not measured.
        inputs: what entries of the space start from, by name.
        precision: what the probe found, where limits are predicted for the precision that follows from it;
            `None` where nothing was predicted, or the probe was not needed for that.
        start: what the bank has for a new search `--from bank`.
    """

    arguments: SearchArguments
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
    goal: Goal
    objective: str
    cost: Cost | None
    rank_by: str
    trial_metric: str | None
    workers: int | None
    gpus: float
    cpus: int
    place: str
    seconds: float | None
    within: Limits
    predictor: Predictor
    task_name: str
    model_name: str
    space_name: str
    processes: int = 1
    step_cost: StepCost | None = None
    inputs: Mapping[str, Artefact] = field(default_factory=dict)
    precision: PrecisionFinding | None = None
    start: BankStart | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @cached_property
    def summary(self) -> DataSummary:
        """A summary of the rows as the backbone will see them."""
        processor = self.task.task_kind.encoder.load_processor(self.source)
        return summarise(self.task, processor, self.plan.max_length)

    @property
    def outline(self) -> str:
        """What the strategy will do."""
        effort = self.effort
        trials, steps = counted(effort.trials, "trial"), counted(effort.steps, "step")
        return STRATEGIES.find(self.arguments.strategy).outline.format(trials=trials, steps=steps)

    def baselines(self) -> list[Baseline]:
        """The baselines that the winner is compared with."""
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
            new_head=self.task.task_kind.head.new_head,
            head=sum(parameter.numel() for parameter in self.predictor.head.values()),
            prompts=self.task.task_kind.encoder.asks(self.task.splits["train"]),
            fresh=None if self.start is None else self.start.fresh,
            tasks=self.task.members,
        )

    def named_points(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What `--from` names, as points of the space, best first; and what there is to say of it.

        Raises:
            UsageError: see `points_from`.
        """
        bound = self.space.bind(self.spec)
        points, notices = points_from(self.arguments.warm_start, bound, runs=self.arguments.runs)
        if self.start is None:
            return points, notices
        point = start_point(bound, self.start.name)
        fits = self.start.name in candidate(bound, point, self.budget).recipe.inputs
        then = "It is tried first." if fits else "With what the space always has it does not fit the limits."
        return [point, *points], [*notices, f"{self.start.told} {then}"]

    def key(self) -> str:
        """Short hash of everything that decides the outcome, which trackers and the like do not."""
        identity = self.identity()
        for name, option in self.arguments.declared().items():
            if not option.decides:
                del identity["arguments"][name]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def manifest(self) -> dict[str, Any]:
        """The manifest, with which the run can be understood and repeated: its identity and a summary of its
        rows."""
        found = self.identity()
        told = {} if self.start is None else {"start": self.start.to_dict()}
        return {**found, **told, "data": {**found["data"], "summary": self.summary.to_dict()}}

    def identity(self) -> dict[str, Any]:
        """The manifest without the summary of its rows, for which the tokenizer has to read them."""
        found = accelerator()
        gpu = None if found is None else label(found)
        return {
            "created": self.created,
            "task": self.task_name,
            "model": self.model_name,
            "budget": str(self.arguments.budget),
            "space": self.space_name,
            "inputs": {name: item.to_data() for name, item in self.space.inputs.items()},
            "arguments": self.arguments.record(),
            "versions": versions(),
            "platform": {"system": platform.platform(), "cpus": available_cpus(), "gpu": gpu},
            "seed": self.arguments.seed,
            "sampler": self.sampler,
            "rungs": asdict(self.rungs),
            "goal": self.goal,
            "objective": self.objective,
            "rank_by": self.rank_by,
            "pooling": self.space.pooling,
            "trial_metric": self.trial_metric,
            "effort": asdict(self.effort),
            "training": vars(self.plan) | {"steps": self.effort.steps},
            "data": {**self.task.describe(), "rows_before_limits": self.full_rows},
            "notice": self.task.source.notice,
            "backbone": {
                **asdict(self.source),
                "family": self.spec.family,
                "parameters": self.spec.parameters,
            },
            "limits": {"least": self.limits[0], "most": self.limits[1]},
        }


def prepare(
    arguments: SearchArguments,
    notify: Notify = None,
    effort: Effort | None = None,
    kept: str | None = None,
    start: BankStart | None = None,
) -> Prepared:
    """Read, check and count everything a search needs; `effort`, the precision that a probe found (`kept`)
    and the bank's start are those of a run that goes on.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
        AssetError: data or backbone could not be fetched.
    """
    a, anew = arguments, effort is None
    strategy = STRATEGIES.find(a.strategy)
    a = a.changed(**{name: value for name, value in strategy.preset.items() if getattr(a, name) is None})
    objective, device, gpus, processes, within = _check(a)
    seconds = parse_duration(a.time)
    a = a.changed(model=str(keep_model(*a.model) if isinstance(a.model, tuple) else a.model))
    gpu, parameters = gpus > 0, Budget.parse(a.budget)
    if anew:
        _effort(a, gpu=gpu)  # its numbers are looked at before anything is fetched
    if a.warm_start and not strategy.takes_points:
        raise UsageError(
            f"The strategy {a.strategy!r} chooses itself what it begins with, so it cannot begin with "
            f"{', '.join(map(str, a.warm_start))}; leave out --from, or take --strategy trials."
        )
    named = strategy.space if a.space is None else a.space
    space = named if isinstance(named, Space) else Space.load(named)
    space, inputs = open_inputs(space, a.runs)
    source = resolve_model(str(a.model), notify=notify, quantize=a.quantize)
    spec = spec_of(unquantized(load_config(source), str(a.model)))
    effort = effort or _effort(a, gpu=gpu, spec=spec)
    plan = TrainingPlan(
        steps=effort.steps,
        batch_size=a.batch_size or effort.batch_size,
        micro_batch=a.micro_batch,
        shortcuts=a.shortcuts,
        learn_all=a.learn_all,
        memory_saving=a.memory_saving,
        head_start=a.head_start,
        max_length=a.max_length,
        seed=a.seed,
        device=device,
    )
    limits = parameters.limits(spec)
    unnamed = space.acts_by_task  # the names of tasks come with the data
    if not unnamed:
        check_feasible(space.bind(spec), parameters)

    rows = Rows(effort.train_rows, effort.select_rows, effort.test_rows)
    whole = task_from_arguments(a, notify, rows, spec)
    space = space.for_tasks(whole.members)
    if unnamed:
        check_feasible(space.bind(spec), parameters)
    kind = whole.task_kind
    if anew:  # a resumed run keeps the rank of its trials
        check_rank_for(kind, a.rank_by)
    task = whole.cut(train=rows.train, select=rows.select, test=rows.test, seed=a.seed)
    kind.head.check_weights(source)
    if plan.memory_saving:
        check_checkpointing(on_meta(load_config(source), kind.head.auto_class))
    if anew:  # else trials have been trained already
        processor, train = kind.encoder.load_processor(source), task.splits["train"]
        shortest = min(range(len(train)), key=lambda row: len(train.texts[row]))
        kind.encoder.encode(train.take([shortest]), processor, plan.max_length, cached=False)
        if spec.max_positions is not None and plan.max_length > spec.max_positions:
            check_positions(spec, encode(task, processor, plan.max_length))

    spec = with_head(spec, kind, task.labels, source)
    pooling = pooling_of_search(a, space, source, task, plan, spec, processes, notify)
    if anew and BANK in a.warm_start:  # a resumed run has it in its space
        start = find_start(a, task, source, spec, limits[1], pooling, plan.device, notify)
        if start is not None:
            space, inputs = open_inputs(with_start(space, start), a.runs)
    space = replace(space.for_steps(effort.steps), pooling=pooling)
    bound = space.bind(spec)
    check_fit(bound, inputs, source)
    calibration, found = None, None
    if within.calibrated or OBJECTIVES[objective] == "step_cost":
        final, found = precision_of_finals(a, source, task, plan, spec.parameters, kept, notify)
        calibration = calibration_for(source, spec, task, bound, parameters, plan, a, final, notify)
    if within.quantize is not None and notify is not None:
        notify(f"The backbone is held in {within.quantize}: only {within} are tried.")
    if within.processes > 1 and notify is not None:
        notify(f"Each trial has {within.processes} processes: only {within} are tried.")
    predictor = Predictor(within, head_of(model_on_meta(source, kind, task.labels)), calibration)
    limited = ResourceBudget(parameters.upper, parameters.lower, within, predictor)
    budget = limited if within else parameters
    check_within(bound, budget)

    workers = a.workers
    if workers is None and a.address is None:  # on a cluster, its size decides
        workers = max(1, available_cpus() // max(a.cpus_per_trial, processes))
        if gpus:
            workers = max(1, min(workers, int(count() / gpus)))
    cpus, place = max(a.cpus_per_trial, processes), ""
    if a.address is None and a.listen is None:  # else jobs may run on several machines
        place = f"{platform.node()}, {label(plan.torch_device())}, {cpus} CPUs each, {workers} at once"
    metric = kind.scorer.trial_metric(get_metric(task.metric)).name
    return Prepared(
        arguments=a,
        source=source,
        spec=spec,
        space=space,
        budget=budget,
        limits=limits,
        task=task,
        full_rows={str(name): len(split) for name, split in whole.splits.items()},
        effort=effort,
        plan=plan,
        sampler=a.sampler or default_sampler(1 if OBJECTIVES[objective] is None else 2),
        rungs=Rungs.of(effort.steps, a.fidelity or "steps"),
        goal=a.goal,  # type: ignore[arg-type]  # its choices are those of the type
        objective=objective,
        cost=OBJECTIVES[objective],
        rank_by=a.rank_by or ("calibrated-loss" if task.metric == "accuracy" else "score"),
        trial_metric=None if metric == task.metric else metric,
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        place=place,
        task_name=a.task if isinstance(a.task, str) else task.name,
        model_name=str(a.model),
        space_name=space_name(named) or "",
        processes=processes,
        seconds=seconds or effort.seconds,
        within=within,
        predictor=predictor,
        step_cost=None if calibration is None else step_cost_of(calibration, bound, parameters),
        inputs=inputs,
        precision=found,
        start=start,
    )


def worker_setup(ready: Prepared) -> WorkerSetup:
    """The part of a search's plan that all its jobs share."""
    return WorkerSetup(
        model=ready.model_name,
        source=ready.source,
        task=ready.task,
        plan=ready.plan,
        threads=ready.cpus,
        key=ready.key(),
        latency=ready.within.latency is not None,
        processes=ready.processes,
        inputs=pack_inputs(ready.inputs.values()),
    )


def _effort(a: SearchArguments, *, gpu: bool, spec: BackboneSpec | None = None) -> Effort:
    """How much the search spends. Where the goal is not the best recipe, there are more finalists, and they
    are judged on more rows, since a difference of a point decides."""
    effort = choose_effort(
        a.effort,
        gpu=gpu,
        parameters=spec.parameters if spec is not None else 0,
        decoder=spec is not None and all(stack.causal for stack in spec.stacks),
        trials=a.trials,
        steps=a.steps,
        batch_size=a.batch_size,
        train_rows=a.train_rows,
        select_rows=a.select_rows,
        test_rows=a.test_rows,
        top=a.confirm,
        seeds=a.confirm_seeds,
    )
    if a.trials is None:
        effort = replace(
            effort, trials=max(1, int(effort.trials / STRATEGIES.find(a.strategy).preset_trials))
        )
    if a.goal == "best":
        return effort
    top = max(effort.top + _MORE, _LEAST) if a.confirm is None else effort.top
    rows = effort.select_rows
    if rows is not None and a.select_rows is None:
        rows = int(rows * _MORE_ROWS)
    return replace(effort, top=top, select_rows=rows)


def _check(a: SearchArguments) -> tuple[str, str, float, int, Limits]:
    """Check what needs this machine, but neither data nor backbone: objective, device, GPUs and processes of
    one trial, and limits.

    Raises:
        UsageError: an argument is missing or does not go with another, or this machine lacks GPUs.
    """
    if a.missing():
        raise UsageError(f"A search needs {' and '.join(a.missing())}.")
    wanted = GOALS[a.goal]  # type: ignore[index]  # checked
    objective = a.objective or wanted
    if objective != wanted and a.goal != "best":
        raise UsageError(
            f"The goal {a.goal!r} has the objective {wanted!r}, but got objective={a.objective!r}; leave one "
            "of them out."
        )
    if a.sampler is not None:
        check_sampler(a.sampler, 1 if OBJECTIVES[objective] is None else 2)
    if a.workers == 0 and a.address is not None:
        raise UsageError(
            f"workers=0 runs every trial in this process, and address={a.address!r} joins a Ray cluster; "
            "leave one of them out."
        )
    if a.listen is not None and (a.workers == 0 or a.address is not None):
        other = "workers=0" if a.workers == 0 else f"address={a.address!r}"
        raise UsageError(
            f"listen={a.listen!r} is for a private Ray, and {other} starts none; leave one of them out."
        )
    if a.workers == 0 and a.gpus_per_trial and a.gpus_per_trial < 2:
        raise UsageError(
            "workers=0 runs one trial at a time, with the whole GPU where there is one, but got "
            f"gpus_per_trial={a.gpus_per_trial:g}; leave it out, or give 0 to train on the CPU."
        )
    # Which kind of device, and how much of it: on a cluster each worker looks for itself.
    gpus, several = a.gpus_per_trial, a.processes_per_trial or 1
    here = None if a.address is not None else device_named(a.device)
    kind, _, index = a.device.partition(":")
    if index and a.workers != 0:
        raise UsageError(
            f"A worker sees the GPUs that it was given, and no others, but got device={a.device!r}; take "
            f"{kind!r}, or run the search in this process (workers=0)."
        )
    if (kind == "cpu" and gpus) or (gpus == 0 and kind not in (AUTO, "cpu")):
        raise UsageError(
            f"device={a.device!r} and gpus_per_trial={gpus:g} contradict each other; leave one of them out."
        )
    if gpus is None and here is not None and here.type != "cpu":
        gpus = _GPU_SHARE if several == 1 else float(several)
    gpus = gpus or 0.0
    device = "cpu"
    if gpus:
        device = kind if here is None else a.device if index else here.type
    limits = limits_of(a)

    # Processes of one trial: the given number, else one for each whole GPU.
    processes = a.processes_per_trial or max(1, int(gpus))
    single: str | None = None
    if (gpus >= 1 and processes != int(gpus)) or 0 < gpus < 1 < processes:
        raise UsageError(
            f"Each process of a trial takes a GPU of its own, but got processes_per_trial={processes} and "
            f"gpus_per_trial={gpus:g}; leave processes_per_trial out, or give gpus_per_trial={processes}, or "
            "0 to train on CPUs."
        )
    if a.quantize is not None:
        single = f"quantize={a.quantize!r} packs weights, which are not divided"
    elif limits.calibrated:
        single = f"{limits} is predicted from measurements in one process"
    elif OBJECTIVES[objective] == "step_cost":
        single = f"objective={objective!r} is predicted from measurements in one process"
    if processes > 1 and single is not None:
        raise UsageError(
            f"A trial of {processes} processes divides the backbone among them, but {single}; leave one of "
            "the two out."
        )
    if gpus and a.address is None and count() < math.ceil(gpus):
        raise UsageError(
            f"gpus_per_trial={gpus:g} asks for {math.ceil(gpus)} GPUs, and this machine has {count()}; leave "
            "it out to train on the CPU, or join a cluster with --address."
        )
    return objective, device, gpus, processes, replace(limits, processes=processes)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().strip().partition(" ")
        if limit.isdigit() and period.isdigit() and int(period) > 0:
            count = min(count, max(1, int(limit) // int(period)))
    return count


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
