"""A long search, trained by nobody: what it leaves in the driver's memory and in its folder."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.effort import Effort
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.checkpoints import FolderCheckpoints
from autopeft.search.controller.controller import Controller
from autopeft.search.core.events import SilentReporter
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.execution.logged_jobs import LoggedJobs
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.space import Space
from autopeft.search.strategies.trials import Trials

# Of a 0.5 % hybrid on a backbone of 22.7 M parameters: modules and head, thrice (AdamW), in fp32.
CHECKPOINT = 3_100_000
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def own_memory() -> int:
    """Bytes of this process that it shares with no other."""
    gc.collect()
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def search(folder: RunFolder, trials: int, checkpoint: int, after: Callable[[int], None]) -> SearchStudy:
    """Run the trials of a search of `default` at 0.5 %; `after` is called with the number of first legs."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    spec, budget = spec_of(config), Budget.parse("0.5%")
    space, rungs = Space.named("default").bind(spec), Rungs.of(360)

    def repaired(values: dict[str, object]) -> Candidate:
        return candidate(space, values, budget)

    study = SearchStudy(
        folder.journal, space.parameters, repaired, sampler="random", seed=0, trials=trials, rungs=rungs
    )
    checkpoints = FolderCheckpoints(folder.state / "files")
    effort = Effort("long", trials, 360, None, None, None, top=2, seeds=2)

    def keep(record: TrialRecord) -> None:
        folder.append_line("trials.jsonl", record)

    strategy = Trials(study, effort, checkpoints, seed=0)
    controller = Controller(strategy, effort, [], SilentReporter(), checkpoints, keep, seed=0, workers=1)
    ended = list[str]()

    def train(setup: object, job: Job, *_: object) -> JobResult:
        digest = hashlib.sha256(f"{job.number}".encode()).digest()
        until = job.until if isinstance(job, TrainJob) else None
        files = {} if until is None else {"checkpoint": digest[:1] * checkpoint}
        score = digest[0] / 256
        return JobResult(job.id, dict.fromkeys(job.splits, score), 1.0, 0.5, files=files, paused=bool(files))

    class Measured(LoggedJobs):
        def complete(self, result: JobResult) -> None:
            super().complete(result)
            ended.append(result.job)
            after(sum(job.endswith(f"-{rungs.steps[0]}") for job in ended))

    LocalExecutor().run_jobs(Measured(controller, folder), train, None)
    return study


@pytest.mark.slow
def test_a_folder_stays_under_fifty_megabytes_for_a_hundred_trials(tmp_path: Path) -> None:
    folder, most = RunFolder.create("t", "key", root=tmp_path, out=None), 0

    def measure(first: int) -> None:
        nonlocal most
        most = max(most, size_of(folder.path))

    study = search(folder, 100, CHECKPOINT, measure)
    assert len(study.records()) >= 100
    assert most < 50e6
    assert size_of(folder.path) - size_of(folder.state) < 5e6


@pytest.mark.slow
def test_the_drivers_memory_grows_by_little_for_each_trial(tmp_path: Path) -> None:
    folder, at = RunFolder.create("t", "key", root=tmp_path, out=None), dict[int, int]()

    def measure(first: int) -> None:
        if first in (60, 260) and first not in at:
            at[first] = own_memory()

    search(folder, 260, 1000, measure)
    assert (at[260] - at[60]) / 200 < 60_000
