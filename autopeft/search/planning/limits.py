"""From a search's arguments to its limits, and the measurements that predict for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from autopeft.assets import (
    ModelSource,
    backbone_fingerprint,
    dtype_of,
    load_config,
    map_weights,
    unquantized,
)
from autopeft.backbones import hidden_of_head, on_meta, spec_of_model
from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.hybrid import head_of
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooled
from autopeft.resources import Limits, StepCost
from autopeft.resources.calibration import Calibration, calibrate
from autopeft.resources.limits import read_size, read_span
from autopeft.resources.measuring import Bench
from autopeft.resources.probes import Offer, base_probes, dropout_probes, method_probes
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.selection.baseline_recipes import middle
from autopeft.search.selection.baselines import lora_baseline
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.repair import repair
from autopeft.spec import BackboneSpec, LogitsSpec
from autopeft.tasks import Task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import TaskKind
from autopeft.training import TrainingPlan

__all__ = ["calibration_for", "limits_of", "model_on_meta", "step_cost_of", "with_head"]

_DRAWN = 150


def limits_of(a: SearchArguments) -> Limits:
    """The limits that these arguments set.

    Raises:
        UsageError: one cannot be read.
    """
    return Limits(
        memory=None if a.max_memory is None else read_size("max_memory", a.max_memory),
        step_time=None if a.max_step_time is None else read_span("max_step_time", a.max_step_time),
        latency=None if a.max_latency is None else read_span("max_latency", a.max_latency),
        file=None if a.max_file is None else read_size("max_file", a.max_file),
        serve=a.serve,
        quantize=a.quantize,
    )


def with_head(spec: BackboneSpec, kind: TaskKind, labels: Sequence[str], source: ModelSource) -> BackboneSpec:
    """The spec with the logits of the head that a task of these labels puts on the backbone, or of the one
    that it brings for the task."""
    if kind.head.new_head:
        width = kind.head.num_labels(labels)
        if not width:
            return spec
        deep = bool(hidden_of_head(model_on_meta(source, kind, labels)))
        return replace(spec, logits=LogitsSpec(spec.stacks[-1].hidden, width, deep=deep))
    if spec.logits is not None and spec.logits.tokens:
        return spec
    config = unquantized(load_config(source), source.alias or source.path)
    return replace(spec, logits=spec_of_model(on_meta(config, kind.head.auto_class))[0].logits)


def model_on_meta(source: ModelSource, kind: TaskKind, labels: Sequence[str]) -> PreTrainedModel:
    """The backbone with the head of a task of these labels, without memory."""
    config = unquantized(load_config(source), source.alias or source.path)
    return kind.head.on_meta(config, labels)


def calibration_for(
    source: ModelSource,
    spec: BackboneSpec,
    task: Task,
    bound: BoundSpace,
    budget: Budget,
    plan: TrainingPlan,
    a: SearchArguments,
    precision: str,
    notify: Callable[[str], None] | None,
) -> Calibration:
    """The model that predicts memory and times of recipes on this machine; what is not kept yet is measured.

    Everything is drawn from a fixed seed, so that searches that share space and budget share measurements.

    Args:
        precision: of the backbone's weights, that in which finalists are trained.

    Raises:
        UsageError: memory is limited, and cannot be measured here, or no recipe could keep the limit.
    """
    # Items that the space offers inside the parameter budget, and those of the LoRA baseline.
    rng, offers = random.Random(0), list[Offer]()
    for _ in range(_DRAWN):
        try:
            offers += Offer.of(bound.materialize(repair(bound, bound.sample(rng), budget).values))
        except AutoPEFTError:  # nothing near this point fits
            continue
    lora = lora_baseline(bound.spec, budget.limits(bound.spec), 1)
    if lora is not None:
        offers += Offer.of(Recipe.from_dict(dict(lora.candidates[0])))

    threads = torch.get_num_threads()
    torch.set_num_threads(a.cpus_per_trial)
    try:
        dtype = dtype_of(precision)
        model = task.task_kind.head.load_model(source, task.labels, seed=plan.seed, dtype=dtype)
        map_weights(model)
        processor = task.task_kind.encoder.load_processor(source)
        data = encode(task, processor, plan.max_length, learn_all=plan.learn_all)
        head = sum(p.numel() for p in head_of(model).values())
        return calibrate(
            Bench(model, data, plan),
            spec,
            [*base_probes(spec), *method_probes(offers, spec), *dropout_probes(spec)],
            head=head,
            backbone=backbone_fingerprint(model),
            memory=limits_of(a).memory,
            notify=notify,
        )
    finally:
        torch.set_num_threads(threads)


def step_cost_of(calibration: Calibration, bound: BoundSpace, budget: Budget) -> StepCost:
    """The time of training steps, as a multiple of that of LoRA at the budget on all layers, or of the
    mid-point of the space where the backbone has no place for LoRA."""
    lora = lora_baseline(bound.spec, budget.limits(bound.spec), 1)
    if lora is not None:
        recipe = pooled(Recipe.from_dict(dict(lora.candidates[0])), bound.pooling)
        return StepCost(calibration, bound.spec, recipe, lora.titles[0])
    member = middle(bound, budget, 1)[0]
    return StepCost(calibration, bound.spec, member.recipe, member.title)
