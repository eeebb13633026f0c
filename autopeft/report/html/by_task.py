"""What a search over several tasks found for each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy.stats import t as student

from autopeft.report.html.load import Run
from autopeft.report.html.values import shown
from autopeft.report.sheet import Sheet
from autopeft.report.text import mean_sd, number
from autopeft.runs.documents import Measured

__all__ = ["task_sections", "tasks_overview"]


@dataclass
class _Hybrid:
    """The scores of what was trained with fresh seeds: split to seed to task."""

    name: str
    deployed: float | None = None
    further_task: int | None = None
    scores: dict[str, dict[int | None, Mapping[str, float]]] = field(default_factory=dict)

    def of(self, task: str, split: str) -> list[float]:
        return [found[task] for found in self.scores.get(split, {}).values() if task in found]


def _hybrids(run: Run) -> list[_Hybrid]:
    """The winner, then the baselines, as far as *test* was scored task by task."""
    found: dict[str, _Hybrid] = {}
    finalist = ""
    for record in run.finals:
        name = re.sub(r", seed -?\d+(, for its weights)?$", "", record.label.removeprefix("test of "))
        for split, scores in record.by_task.items():
            found.setdefault(name, _Hybrid(name)).scores.setdefault(split, {})[record.seed] = scores
        if record.kind != "baseline" and "test" in record.by_task:
            finalist = name
    result = run.result
    # By the name that stands in the records: how it is shown, and what holds its parameters.
    named: dict[str, tuple[str, Measured]] = {}
    if result is not None:
        named[result.origin if result.origin in found else finalist] = ("winner", result)
        for one in result.baselines:
            named.setdefault(one.name or "", (shown(one.name, 120), one))
    return [
        _Hybrid(told, one.counts.deployed, one.further_task, found[name].scores)
        for name, (told, one) in named.items()
        if name in found and "test" in found[name].scores
    ]


def _tasks(hybrids: Sequence[_Hybrid]) -> list[str]:
    return list(next(iter(hybrids[0].scores["test"].values()))) if hybrids else []


def tasks_overview(run: Run) -> Sheet | None:
    """Scores of all tasks on *test*, by hybrid; `None` for a single task."""
    hybrids = _hybrids(run)
    if not hybrids:
        return None
    tasks = _tasks(hybrids)
    rows = [
        (
            h.name,
            *(mean_sd(h.of(task, "test")) for task in tasks),
            number(h.deployed),
            number(h.further_task),
        )
        for h in hybrids
    ]
    headers = ("hybrid", *tasks, "deployed", "each further task")
    return Sheet(
        headers,
        tuple(rows),
        title="Scores of the tasks on test",
        notes=(
            "Each score is in the task's own metric, the mean ± standard deviation over fresh seeds. The "
            "last column is the number of parameters that one more task adds, its head left out.",
        ),
        right=frozenset(headers[1:]),
    )


def task_sections(run: Run) -> list[tuple[str, Sheet]]:
    """Of each task its name, and what each hybrid scores on it and lacks to the winner."""
    hybrids = _hybrids(run)
    headers = ("hybrid", "select", "test", "the winner less it, points")
    sections = []
    for task in _tasks(hybrids):
        rows = [
            (h.name, mean_sd(h.of(task, "select")), mean_sd(h.of(task, "test")), _gain(hybrids, h, task))
            for h in hybrids
        ]
        sections.append((shown(task, 120), Sheet(headers, tuple(rows), right=frozenset(headers[1:]))))
    return sections


def _gain(hybrids: Sequence[_Hybrid], other: _Hybrid, task: str) -> str:
    """The winner less another hybrid on *test*: the mean over seeds that both have, and half of its interval
    of 95 % (Student's t)."""
    own, its = hybrids[0].scores["test"], other.scores["test"]
    values = [100 * (own[seed][task] - its[seed][task]) for seed in own.keys() & its.keys()]
    if hybrids[0].name != "winner" or hybrids[0] is other or not values:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:+.1f} (one seed)"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return f"{mean:+.1f} ± {float(student.ppf(0.975, len(values) - 1)) * spread:.1f}"
