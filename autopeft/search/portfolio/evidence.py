"""What recorded trainings say of the portfolio's recipes: data of the package, made by an experiment
(`experiments/portfolio`).

A training alone says little. What counts is its score less that of plain LoRA in the same setting: the same
backbone, task, rows and seed, under the same budget.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from autopeft.errors import AutoPEFTError
from autopeft.recipe.pooling import Pooling, told_by
from autopeft.tasks import cluster_of

__all__ = [
    "FILE",
    "FORMAT",
    "REFERENCES",
    "BackboneShare",
    "Evidence",
    "Key",
    "Observation",
    "Setting",
    "read_evidence",
    "reference_of",
    "shipped_evidence",
]

FILE = "evidence.json"
FORMAT = 1

REFERENCES = ("lora", "lora, upper half", "lora, upper third")
"""Templates of plain LoRA, the most spread one first: the first that fits a budget, at the middle one of its
rates, is what gains are gains over, and what is recommended without evidence."""


class Key(NamedTuple):
    """A recipe of the portfolio, whatever backbone and budget it is fitted to: a template at one of its
    rates."""

    template: str
    rate: int


class BackboneShare(NamedTuple):
    """A budget on a backbone, as a share of its parameters."""

    model: str
    share: float


class Setting(NamedTuple):
    """What a recipe was trained on."""

    model: str
    task: str
    rows: int
    seed: int


@dataclass(frozen=True)
class Observation:
    """One recorded training against plain LoRA in the same setting under the same budget.

    Attributes:
        cluster: of tasks that share texts.
        share: the budget, as a share of the backbone's parameters.
        gain: difference of the scores on *select* in points (hundredths of the score).
        recipe: number of the trained recipe in its setting: two budgets may lead to the same.
    """

    key: Key
    setting: Setting
    cluster: str
    share: float
    gain: float
    recipe: int = 0


@dataclass(frozen=True)
class Evidence:
    """Recorded trainings, seen as gains over plain LoRA.

    Attributes:
        observations: one for each training and budget that it fits; those of the reference itself, which are
            zero, are left out.
        references: by backbone and budget the key of what gains are over.
        costs: by backbone and budget, and key, the time of a training step over that of LoRA on all layers.
        steps, batch_size: of every training.
        trainings: how many there are in each setting.
        readings: mean loss of held-out training rows where a linear probe reads what the model gives its
            head, and where it reads the mean of all tokens, in the settings in which they were measured.
    """

    observations: tuple[Observation, ...]
    references: Mapping[BackboneShare, Key]
    costs: Mapping[tuple[BackboneShare, Key], float]
    steps: int
    batch_size: int
    trainings: Mapping[Setting, int]
    readings: Mapping[Setting, tuple[float, float]] = field(default_factory=dict)

    def pooling(self, model: str) -> Pooling:
        """What a head on a backbone should read: the mean where a probe found it better in most settings."""
        found = self.pooling_found(model)
        return "mean" if 2 * found.count("mean") > len(found) else "own"

    def pooling_found(self, model: str) -> list[Pooling]:
        """What the probe of each setting found that a head on a backbone should read."""
        return [told_by(*losses) for s, losses in self.readings.items() if s.model == model]

    @property
    def models(self) -> tuple[str, ...]:
        """Backbones that were trained."""
        return tuple(dict.fromkeys(o.setting.model for o in self.observations))

    @property
    def clusters(self) -> tuple[str, ...]:
        """Clusters of the tasks that were trained on."""
        return tuple(dict.fromkeys(o.cluster for o in self.observations))

    def without(self, clusters: Collection[str]) -> Evidence:
        """The evidence of all other clusters."""
        trainings = {s: n for s, n in self.trainings.items() if cluster_of(s.task) not in clusters}
        kept = tuple(o for o in self.observations if o.cluster not in clusters)
        readings = {s: r for s, r in self.readings.items() if cluster_of(s.task) not in clusters}
        return replace(self, observations=kept, trainings=trainings, readings=readings)


@lru_cache(maxsize=1)
def shipped_evidence() -> Evidence:
    """The evidence that comes with the package."""
    return read_evidence(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))


def read_evidence(text: str) -> Evidence:
    """Evidence as `experiments/portfolio` writes it (see `packed`).

    The file is a table of `models`: their `recipes`, each [template, rate, size, cost], and their `budgets`,
    each a share and the numbers of the recipes that it leads to; and of `settings`, each with the recipes'
    scores in that order, `null` where there is none, and its `readings` where they were measured.

    Raises:
        AutoPEFTError: it is of another format, or a task is in no cluster.
    """
    data = json.loads(text)
    if data.get("format") != FORMAT:
        raise AutoPEFTError(f"The evidence has format {data.get('format')!r}, and {FORMAT} is read here.")

    references: dict[BackboneShare, Key] = {}
    costs: dict[tuple[BackboneShare, Key], float] = {}
    for name, model in data["models"].items():
        keys = [Key(template, rate) for template, rate, *_ in model["recipes"]]
        for share, members in model["budgets"]:
            first = reference_of([keys[i] for i in members])
            if first is None:
                continue
            references[here := BackboneShare(name, share)] = first
            costs |= {(here, keys[i]): cost for i in members if (cost := model["recipes"][i][3])}

    observations: list[Observation] = []
    trainings: dict[Setting, int] = {}
    readings: dict[Setting, tuple[float, float]] = {}
    for line in data["settings"]:
        setting = Setting(line["model"], line["task"], line["rows"], line["seed"])
        scores: Sequence[float | None] = line["scores"]
        trainings[setting] = sum(score is not None for score in scores)
        if "readings" in line:
            readings[setting] = line["readings"][0], line["readings"][1]
        cluster = cluster_of(setting.task)
        if cluster is None:
            raise AutoPEFTError(f"The evidence has the task {setting.task!r}, which is in no cluster.")
        model = data["models"][setting.model]
        for share, members in model["budgets"]:
            known = {Key(*model["recipes"][i][:2]): i for i in members}
            first = reference_of(known)
            if first is None or (base := scores[known[first]]) is None:
                continue
            for key, i in known.items():
                if key != first and (score := scores[i]) is not None:
                    gain = 100 * (score - base)
                    observations.append(Observation(key, setting, cluster, share, gain, i))
    sizes = (data["steps"], data["batch_size"])
    return Evidence(tuple(observations), references, costs, *sizes, trainings, readings)


def reference_of(keys: Collection[Key]) -> Key | None:
    """Plain LoRA at its middle rate among the recipes that a budget leads to, of two at the higher one."""
    found = (sorted(k for k in keys if k.template == name) for name in REFERENCES)
    return next((rates[len(rates) // 2] for rates in found if rates), None)
