"""A model of what recipes take on this machine: measured once for each backbone and shape, and kept.

Measurements lie in the cache folder, one file for each probe, named by all that they depend on: the
backbone's layout, the batch's shape, precision, threads, device and versions. Spaces that share methods
share them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
import transformers

from autopeft.assets import cache_folder, warn_once
from autopeft.counting import Counter
from autopeft.devices import label
from autopeft.errors import AssetError, AutoPEFTError, UsageError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.resources.features import Shape, features_of, training_state
from autopeft.resources.fit import CostModel, LatencyModel, fit, fit_latency
from autopeft.resources.limits import size_text
from autopeft.resources.measuring import Bench, Measured
from autopeft.runs.files import write_atomic
from autopeft.spec import BackboneSpec

__all__ = ["Calibration", "calibrate", "fitted"]

Notify = Callable[[str], None]
_FORMAT = 3
_MOST_BYTES = 1 << 14
_FOLDER = "resources"
_NO_MEMORY = (
    "max_memory is predicted from measurements, and this system does not tell how much memory a training on "
    "the {device} takes: Linux does where /proc/self/clear_refs can be written, and CUDA does. Leave "
    "max_memory out, or search where it can be measured."
)
_LEAST = 0.05  # share of a measurement that is more than what is counted
_ALIKE = 0.9  # two processes that hold the same differ by less
_log = logging.getLogger("autopeft")


@dataclass(frozen=True)
class Calibration:
    """What recipes take on this machine.

    Attributes:
        shape: of the batch that it is for.
        trunk: whether untouched layers are answered from a store in training.
        head: parameters of the task head.
        base: bytes of the process with nothing attached.
        step_time, latency, memory: models of seconds, seconds, and bytes above `base`; `memory` is `None`
            where it cannot be measured.
        precision: of the backbone's weights, `fp32` or `bf16`.
    """

    shape: Shape
    trunk: bool
    head: int
    base: int
    step_time: CostModel
    latency: LatencyModel
    memory: CostModel | None
    precision: str = "fp32"

    def predict_step(self, graph: CompositionGraph) -> float:
        """Seconds of a training step."""
        return self.step_time(features_of(graph, self.shape, trunk=self.trunk))

    def predict_latency(self, graph: CompositionGraph) -> float:
        """Seconds of a forward of the batch with the hybrid attached."""
        return self.latency(*_at_inference(graph, self.shape, self.step_time))

    def predict_memory(self, graph: CompositionGraph) -> float | None:
        """Bytes at the peak of a training."""
        if self.memory is None:
            return None
        features = _in_memory(graph, self.shape, trunk=self.trunk)
        return self.base + training_state(graph, self.head) + self.memory(features)


def _at_inference(graph: CompositionGraph, shape: Shape, step: CostModel) -> tuple[float, float]:
    """Seconds that the entries take in a training step, and by which share prompts make the texts longer."""
    found = features_of(graph, shape, inference=True)
    own = {name: value for name, value in found.items() if ":" in name}
    return step(own), found.get("embeddings", 1.0) - 1


def _in_memory(graph: CompositionGraph, shape: Shape, *, trunk: bool) -> dict[str, float]:
    """The features of what lies in memory together beside `training_state`: the rows of a micro-batch."""
    found = dict(features_of(graph, Shape(shape.at_once, shape.tokens, shape.at_once), trunk=trunk))
    del found["trained"]  # counted exactly by `training_state`
    return found


def fitted(
    graphs: Sequence[CompositionGraph],
    measured: Sequence[Measured],
    shape: Shape,
    *,
    trunk: bool,
    head: int,
    base: int,
) -> Calibration:
    """Fit the models to what was measured of these graphs."""
    steps = fit([features_of(g, shape, trunk=trunk) for g in graphs], [m.step_time for m in measured])
    own = [_at_inference(g, shape, steps) for g in graphs]
    latencies = fit_latency([o for o, _ in own], [more for _, more in own], [m.latency for m in measured])
    memory = None
    if all(m.memory is not None for m in measured):
        above = [_above(float(m.memory or 0), g, head) for g, m in zip(graphs, measured, strict=True)]
        # Deviations are relative: of a measurement that is nothing but what is counted, any would be endless.
        told = [(g, a) for g, a in zip(graphs, above, strict=True) if a > 0] or [(graphs[0], 1.0)]
        memory = fit([_in_memory(g, shape, trunk=trunk) for g, _ in told], [a for _, a in told])
    return Calibration(shape, trunk, head, base, steps, latencies, memory)


def _above(measured: float, graph: CompositionGraph, head: int) -> float:
    """Bytes that were measured beyond what is counted, less than 0 where all of it is. What trains was there
    before the measurement began, without gradients and moments. A calibration is not counted where the
    measurement has no room for it: what is kept from before is not measured again."""
    above = measured - training_state(graph, head, added=True)
    if above < _LEAST * measured:
        above = measured - training_state(graph, head, interim=False, added=True)
    return above


def calibrate(
    bench: Bench,
    spec: BackboneSpec,
    probes: Iterable[Recipe],
    *,
    head: int,
    backbone: str,
    memory: float | None = None,
    notify: Notify | None = None,
) -> Calibration:
    """Measure what was not measured before, and fit.

    Args:
        backbone: hash that tells backbones apart.
        memory: the limit for which predictions of memory are needed.
        notify: told before measurements that take time, and how far they are.

    Raises:
        UsageError: memory is limited and can be measured neither now nor before, or the limit is below what
            the process takes with nothing attached.
        AutoPEFTError: not even the head alone could be measured.
    """
    counter = Counter(spec)
    wanted = {f"{counter.hash(r)} {r.training.dropout}": r for r in probes}
    identity = _identity(bench, backbone)
    kept = {key: _read(identity, key) for key in wanted}
    limited = memory is not None
    new = [key for key, found in kept.items() if found is None or (limited and found.memory is None)]
    if new and limited and not bench.measures_memory:
        raise UsageError(_NO_MEMORY.format(device=bench.device.type.upper()))
    base = _base(bench, identity, again=limited)
    if memory is not None and memory <= base:
        raise UsageError(
            f"max_memory={size_text(memory)} is less than what the process takes with the backbone loaded "
            f"and nothing attached ({size_text(base)} here): no recipe helps. Raise it, or take a smaller "
            "backbone."
        )
    if new and notify is not None:
        notify(
            f"Measuring {len(new)} small recipes in {bench.precision} on this machine, to predict time and "
            "memory of others; they are kept for later searches."
        )
    for done, key in enumerate(new, 1):
        kept[key] = _measure(bench, wanted[key], identity, key)
        if notify is not None and (done % 10 == 0 or done == len(new)) and len(new) > 1:
            notify(f"Measured {done} of {len(new)}.")
    there = {key: found for key, found in kept.items() if found is not None}
    if not there:
        raise AutoPEFTError("Nothing could be measured on this machine, so nothing can be predicted.")
    graphs = [build_graph(wanted[key], spec) for key in there]
    shortcuts = bench.plan.shortcuts and bench.data.task.task_kind.encoder.tokenwise_trunk
    found = fitted(graphs, list(there.values()), bench.shape, trunk=shortcuts, head=head, base=base)
    return replace(found, precision=bench.precision)


def _measure(bench: Bench, recipe: Recipe, identity: str, key: str) -> Measured | None:
    try:
        found = bench(recipe)
    except AutoPEFTError as error:
        _log.info("a probe cannot be measured and is left out: %s", error)
        return None
    _write(identity, key, {"step_time": found.step_time, "latency": found.latency, "memory": found.memory})
    return found


def _base(bench: Bench, identity: str, *, again: bool) -> int:
    """Bytes of the process with nothing attached: the least of what was seen, as a process may hold data that
    are the user's. What is kept gives way to what is clearly less, so that predictions do not tremble."""
    kept = _read_base(identity)
    if kept is not None and not again:
        return kept
    found = bench.base()
    if kept is not None and found >= _ALIKE * kept:
        return kept
    _write(identity, "base", {"base": found})
    return found


# What is kept
# ---------------------------------------------------------------------------------------------------------


def _identity(bench: Bench, backbone: str) -> str:
    plan, device = bench.plan, bench.device
    told = {
        "format": _FORMAT,
        "backbone": backbone,
        "dtype": str(next(bench.model.parameters()).dtype),
        "shape": [bench.shape.rows, bench.shape.tokens, bench.shape.at_once],
        "head": bench.data.task.num_labels,
        "kind": bench.data.task.kind,
        "learn_all": plan.learn_all,
        "shortcuts": plan.shortcuts,
        "steps": bench.steps,
        "threads": torch.get_num_threads(),
        "device": _processor() if device.type == "cpu" else label(device),
        "versions": [torch.__version__, transformers.__version__],
    }
    told |= {"memory_saving": True} if plan.memory_saving else {}
    return json.dumps(told, sort_keys=True)


@cache
def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {found or platform.processor()}"


def _file(identity: str, key: str) -> Path | None:
    try:
        folder = cache_folder(_FOLDER)
    except AssetError as error:
        warn_once(f"Measurements of this machine are not kept, and are made each time: {error}")
        return None
    return folder / f"{hashlib.sha256(f'{identity} {key}'.encode()).hexdigest()}.json"


def _write(identity: str, key: str, found: dict[str, Any]) -> None:
    file = _file(identity, key)
    if file is None:
        return
    try:
        write_atomic(file, json.dumps(found))
    except (OSError, AutoPEFTError) as error:
        warn_once(f"Measurements of this machine are not kept, and are made each time: {error}")


def _load(identity: str, key: str) -> dict[str, Any]:
    file = _file(identity, key)
    try:
        if file is None or not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _log.warning("a kept measurement cannot be read and is made anew: %s", error)
        return {}
    return found if isinstance(found, dict) else {}


def _read(identity: str, key: str) -> Measured | None:
    found = _load(identity, key)
    step, latency, memory = (found.get(name) for name in ("step_time", "latency", "memory"))
    if not _positive(step) or not _positive(latency) or not (memory is None or _positive(memory, zero=True)):
        return None
    return Measured(float(step), float(latency), None if memory is None else int(memory))


def _read_base(identity: str) -> int | None:
    found = _load(identity, "base").get("base")
    return int(found) if _positive(found, zero=True) else None


def _positive(value: Any, *, zero: bool = False) -> TypeGuard[float]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and (value > 0 or (zero and value == 0))
