"""What follows a search, in shorter and shorter forms for a time limit, and the jobs of it that are left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.effort import Effort
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, ScoreJob, TrainJob, testing_job
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds
from autopeft.search.selection.finalists import Finalist

__all__ = ["FinalWork", "Finals"]

_NEVER_LEFT_OUT = ("lora", "own")
_FEW = 2  # seeds
_HYBRID: dict[str, Any] = {"layers": [{"attach": []}]}  # stands for one that is not chosen yet


@dataclass(frozen=True)
class Finals:
    """What follows a search.

    Attributes:
        effort: with the numbers of finalists and of seeds.
        left_out: indices of the baselines that are left out.
        second: whether sweeps train their better half with a second seed, and go on beyond their rates.
    """

    effort: Effort
    left_out: frozenset[int] = frozenset()
    second: bool = True


class FinalWork:
    """The jobs that are left after a search, by what is known at the moment.

    Args:
        seed: the search's.
        known: what came of a baseline's run, in this search or before; `None` where it has to run.
        ended: the jobs of finalists, and the tests, that have ended, in this process or before.
        best: trials of different recipes, those that would be trained again now first. `None`: it is not
            known yet which will be, and all runs that have ended count.
    """

    def __init__(
        self,
        baselines: Sequence[Baseline],
        seed: int,
        known: Callable[[Job], JobResult | None] = lambda job: None,
        ended: Collection[str] = (),
        best: Sequence[TrialRecord] | None = None,
    ) -> None:
        self._baselines, self._seed, self._known = baselines, seed, known
        self._ended, self._best = ended, best
        self._found: dict[tuple[int, int, bool], list[Job]] = {}

    def forms(self, effort: Effort, seconds: Callable[[Sequence[Job]], float]) -> Iterator[Finals]:
        """The finals in full and then shorter and shorter: fewer finalists, down to one; fewer seeds, down to
        three; then the same without the trained baselines that cost most, down to LoRA, which every winner
        has to beat, and of several tasks a LoRA for each; then no second seed in LoRA's sweep, and no rate
        beyond; then no examples before prompts; at last two seeds, of which no interval can be short. The
        untuned model is scored once in any case. What is known already is never left out.

        Args:
            seconds: that jobs take.
        """
        efforts = [replace(effort, top=top) for top in range(effort.top, 0, -1)]
        efforts += [replace(effort, top=1, seeds=seeds) for seeds in range(effort.seeds - 1, _FEW, -1)]
        left = {i: self._of_baseline(i, Finals(effort)) for i in range(len(self._baselines))}
        may_go = [i for i, b in enumerate(self._baselines) if b.kind not in _NEVER_LEFT_OUT and b.shots != 0]
        others = [i for i in may_go if left[i]]
        dear = [i for i in others if self._baselines[i].shots is None]
        dear.sort(key=lambda i: (-seconds(left[i]), -len(left[i])))
        for n in range(len(dear) + 1):
            yield from (Finals(smaller, frozenset(dear[:n])) for smaller in efforts)
        yield Finals(efforts[-1], frozenset(dear), second=False)
        if len(others) > len(dear):
            yield Finals(efforts[-1], frozenset(others), second=False)
        shortest = replace(efforts[-1], seeds=min(effort.seeds, _FEW))
        if shortest != efforts[-1]:
            yield Finals(shortest, frozenset(others), second=False)

    def least(self, effort: Effort, seconds: Callable[[Sequence[Job]], float]) -> list[Job]:
        """The jobs that are left of the finals of which least is: seldom more than the shortest, where longer
        ones were trained before."""
        return min(map(self.jobs, self.forms(effort, seconds)), key=lambda jobs: (seconds(jobs), len(jobs)))

    def jobs(self, finals: Finals) -> list[Job]:
        """The jobs that are left of some finals. Those of a recipe that is not chosen yet stand for it."""
        effort, seeds = finals.effort, fresh_seeds(self._seed, finals.effort.seeds)
        chosen = [Finalist(r).jobs(seeds, effort.steps) for r in (self._best or ())[: effort.top]]
        if self._best is None:
            confirmed = sum(job.startswith("confirm-") for job in self._ended)
            tested = sum(job.startswith(testing_job("")) for job in self._ended)
        else:
            # Runs of what is no longer a finalist, as a later trial was better, spare nothing.
            confirmed = sum(job.id in self._ended for jobs in chosen for job in jobs)
            tested = max((sum(testing_job(j.id) in self._ended for j in jobs) for jobs in chosen), default=0)
        train = TrainJob("finalist", "confirm", "a finalist", _HYBRID, steps=effort.steps)
        test = ScoreJob("test", "test", "a test of the winner", _HYBRID, splits=("test",))
        left: list[Job] = [train] * max(0, effort.top * effort.seeds - confirmed)
        left += [test] * max(0, effort.seeds - tested)
        for index in range(len(self._baselines)):
            if index not in finals.left_out:
                left += self._of_baseline(index, finals)
        return left

    def _of_baseline(self, index: int, finals: Finals) -> list[Job]:
        """The jobs that are left of a baseline: it is played through with what is known."""
        key = index, finals.effort.seeds, finals.second
        if key in self._found:
            return self._found[key]
        baseline, steps = self._baselines[index], finals.effort.steps
        race, seeds = BaselineRuns(index, baseline), fresh_seeds(self._seed, finals.effort.seeds)
        if not finals.second:
            race.shorten()
        left: list[Job] = []
        while jobs := race.sweep_jobs(self._seed, steps):
            for job in jobs:
                if (result := self._known(job)) is not None:
                    race.take(result)
                else:
                    left.append(job)
        if race.swept:
            left += [job for job in race.jobs(seeds, steps) if self._known(job) is None]
        else:
            swept = TrainJob("sweep", "baseline", baseline.name, baseline.candidates[0], steps=steps)
            left += [swept] * (race.sweep_left - len(left))
            left += [replace(swept, splits=("select", "test"))] * baseline.fresh_runs(len(seeds))
        self._found[key] = left
        return left
