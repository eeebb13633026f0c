"""Events of a search, a tracker that remembers them, and readers of the files that others write."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.tracking.entry import TrackedRun
from autopeft.search.tracking.reporter import Tracking

RECIPE = {
    "layers": [{"at": [0, 2], "attach": [{"gate": [{"lora": {"rank": 4, "sites": ["q", "v"]}}, "ia3"]}]}],
    "training": {"groups": {"head": {"learning_rate": 0.01}}},
}
COUNTS = {"deployed": 120, "share": 0.012}


def trial_job(number: int, until: int | None = None) -> Job:
    """A leg of a trial of 90 steps."""
    return TrainJob(
        f"trial-{number}", "trial", f"trial {number}", RECIPE, steps=90, number=number, until=until
    )


def trial_record(number: int, state: Any, rungs: Mapping[str, float], **more: Any) -> TrialRecord:
    return TrialRecord(
        kind="trial",
        label=f"trial {number}",
        state=state,
        recipe=RECIPE,
        number=number,
        seed=0,
        steps=max(map(int, rungs), default=None),
        counts=COUNTS,
        rungs=rungs,
        **more,
    )


def play(tracking: Tracking) -> None:
    """A search of two trials: the first goes on from its rung and is trained to the end, the other is stopped
    there, and the first is confirmed."""
    for number in (0, 1):
        tracking.on_trial_start(trial_job(number, until=30), None)
        for step in (0, 10, 10, 20):
            tracking.on_step(trial_job(number), step, 1.0 / (step + 1) if step else float("nan"), None)
        tracking.on_trial_end(trial_record(number, "paused", {"30": 0.5}, seconds=1.0), None, None)
    tracking.on_trial_start(trial_job(0), None)
    for step in (40, 80):
        tracking.on_step(trial_job(0), step, 0.1, None)
    done = trial_record(
        0, "complete", {"30": 0.5, "90": 0.75}, score=0.75, scores={"select": 0.75}, seconds=3.0
    )
    tracking.on_trial_end(done, 0.75, None)
    tracking.on_trial_end(trial_record(1, "stopped", {"30": 0.5}, seconds=1.0), 0.75, None)
    tracking.on_trial_start(confirm_job(), None)
    tracking.on_trial_end(confirm_record(), 0.75, None)


def confirm_job() -> Job:
    return TrainJob("confirm-0-s7", "confirm", "finalist 0, seed 7", RECIPE, steps=90, number=0, seed=7)


def confirm_record(**more: Any) -> TrialRecord:
    return TrialRecord(
        kind="confirm",
        label="finalist 0, seed 7",
        state="complete",
        recipe=RECIPE,
        number=0,
        seed=7,
        steps=90,
        counts=COUNTS,
        score=0.7,
        scores={"select": 0.7},
        job="confirm-0-s7",
        **more,
    )


@dataclass
class MemoryTracker:
    """Remembers; `failing` names a call that raises."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failing: str | None = None
    closed: bool = False

    @contextmanager
    def opened(self) -> Iterator[MemoryTracker]:
        self._note("open")
        yield self
        self.closed = True

    def start(self, entry: TrackedRun) -> None:
        self._note("start", entry.name)

    def report(self, entry: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        self._note("report", entry.name, step, dict(metrics))

    def rest(self, entry: TrackedRun, *, last: bool) -> None:
        self._note("rest", entry.name, last)

    def end(self, entry: TrackedRun, state: str) -> None:
        self._note("end", entry.name, state)

    def _note(self, *call: Any) -> None:
        if call[0] == self.failing:
            raise ConnectionError("the server is gone\nand more that nobody needs")
        self.calls.append(call)


def event_records(folder: Path) -> Iterator[Any]:
    """Events of the TensorBoard files in a folder, in the order in which they were written."""
    from tensorboardX.proto import event_pb2

    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values in the TensorBoard files of a folder, by tag without Ray's prefix."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in event_records(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                point = (event.step, round(value.simple_value, 6))
                found.setdefault(value.tag.removeprefix("ray/tune/"), []).append(point)
    return found


def hparams(folder: Path) -> list[dict[str, Any]]:
    """Hyperparameters in the TensorBoard files of a folder, once for each time that they were written."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    found = []
    for event in event_records(folder):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                items = data.session_start_info.hparams.items()
                found.append({name: getattr(v, v.WhichOneof("kind")) for name, v in items})
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline run of W&B: a LevelDB log of blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only part, or the last
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
