"""Run folders made from nothing: a journal by Optuna, records and results as a search writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder

RANKS = (1, 2, 4, 8, 16)
START = datetime(2026, 1, 31, 12, 0, 0)


@dataclass
class Sketch:
    """What a made-up run is like. `words` stands wherever a stranger can write; `finished` makes a result."""

    trials: int = 24
    layers: int = 3
    objectives: int = 1
    finished: bool = True
    rungs: bool = True
    words: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    recipe: Callable[[int, int], dict[str, Any]] | None = None


def config(layers: int) -> BertConfig:
    return BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64
    )


def mixed(rank: int, n: int, words: str = "") -> dict[str, Any]:
    """A recipe with all that a drawing has to show: blocks, a gate, a chain, prompts, tensors."""
    lora: dict[str, Any] = {"lora": {"sites": ["q", "v"], "rank": rank}}
    adapter: dict[str, Any] = {"serial_adapter": {"bottleneck": 4}}
    return {
        "autopeft": 2,
        "name": f"hybrid {words}".strip(),
        "reference": words or None,
        "layers": [
            {"at": "all", "attach": [lora]},
            {"at": "last 1", "attach": [{"gate": [{"prefix_tuning": {"length": 3}}, adapter]}]},
        ],
        "model": [{"prompt_tuning": {"length": 2}}, "bitfit"],
        "training": {"learning_rate": 0.001 * (n % 99 + 1)},
    }


class Builder:
    """Makes one run folder."""

    def __init__(self, root: Path, sketch: Sketch) -> None:
        self.sketch, self.words = sketch, sketch.words
        self.model = root / "backbone"
        config(sketch.layers).save_pretrained(self.model)
        self.spec = spec_of(config(sketch.layers))
        # A folder's name holds everything but a slash.
        name = "run " + self.words.replace("/", "-") if self.words else "2026-01-31-120000-toy-1a2b3c"
        self.folder = RunFolder(root / "runs" / name[:200])
        self.folder.path.mkdir(parents=True)
        self.rank_name = f"rank {self.words}".strip()
        self.kind_name = f"kind {self.words}".strip()

    def recipe(self, rank: int, n: int) -> dict[str, Any]:
        if self.sketch.recipe is not None:
            return self.sketch.recipe(rank, n)
        recipe = mixed(rank, n, self.words)
        return {k: v for k, v in recipe.items() if v is not None}

    def counts(self, recipe: dict[str, Any]) -> dict[str, int | float]:
        return count(Recipe.from_dict(recipe), self.spec, head=66).to_dict()

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {
            self.rank_name: CategoricalDistribution(RANKS),
            "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
            self.kind_name: CategoricalDistribution((f"a {self.words}", "b", True)),
        }

    def build(self) -> RunFolder:
        s = self.sketch
        self.folder.write_json("manifest.json", self.manifest())
        records = [self.record(n) for n in range(s.trials)]
        ended = [r for r in records if r["state"] != "running"]
        self.folder.write_lines("trials.jsonl", ended)
        self.journal(records)
        if s.finished:
            self.folder.write_lines("finals.jsonl", self.finals())
            self.folder.write_json("result.json", self.result(ended) | s.result)
        return self.folder

    def manifest(self) -> dict[str, Any]:
        w = self.words
        return {
            "created": "2026-01-31T12:00:00+00:00",
            "task": f"toy {w}".strip(),
            "model": str(self.model),
            "budget": "2%",
            "space": f"default {w}".strip(),
            "arguments": {
                "task": f"toy {w}".strip(),
                "budget": "2%",
                "rank_by": None,
                "portfolio": True,
                "head_start": "probe",
                "trials": self.sketch.trials,
                "seed": 0,
            },
            "versions": {"python": "3.11", "torch": f"2 {w}"},
            "seed": 0,
            "sampler": "gp",
            "effort": {"trials": self.sketch.trials, "steps": 60},
            "training": {"steps": 60, "max_length": 64},
            "data": {
                "name": f"toy {w}".strip(),
                "metric": f"accuracy {w}".strip(),
                "labels": [f"yes {w}", "no"],
                "rows": {"train": 200, "select": 100, "test": 100},
                "source": {"name": "toy", "origin": "package", "stand_in_for": w or None},
            },
            "notice": w or None,
            "backbone": {"parameters": self.spec.parameters, "family": "bert"},
            "limits": {"least": 0, "most": self.spec.parameters // 50},
        }

    def state(self, n: int) -> str:
        """Trial 3 failed, 5 repeats 4, each fourth from 6 on is stopped; an unfinished run's last runs."""
        if not self.sketch.finished and n == self.sketch.trials - 1 and n > 0:
            return "running"
        special = {3: "failed", 5: "duplicate"}.get(n, "complete")
        return "stopped" if self.sketch.rungs and n >= 6 and n % 4 == 2 else special

    def score(self, n: int) -> float:
        return round(0.5 + 0.25 * (1 - math.exp(-n / 8)) + 0.03 * math.sin(5 * n), 4)

    def record(self, n: int) -> dict[str, Any]:
        rank = RANKS[(n * 2) % len(RANKS)]
        recipe, state = self.recipe(rank, n), self.state(n)
        rungs = {"20": self.score(n) - 0.1}
        if state == "complete":
            rungs |= {"40": self.score(n) - 0.04, "60": self.score(n)}
        with_rungs = self.sketch.rungs and state in ("complete", "stopped")
        return {
            "kind": "trial",
            "label": f"trial {n}",
            "state": state,
            "recipe": recipe,
            "number": n,
            "steps": 20 if state == "stopped" else 60,
            "hash": f"h{n}",
            "counts": self.counts(recipe),
            "score": self.score(n) if state in ("complete", "duplicate") else None,
            "rungs": rungs if with_rungs else {},
            "seconds": 3.5 + n,
            "error": f"RuntimeError: broke down {self.words}" if state == "failed" else None,
            "failure": "failed" if state == "failed" else None,
            "duplicate_of": 4 if state == "duplicate" else None,
            "values": {
                self.rank_name: rank,
                "learning_rate": min(0.1, 0.001 * (n + 1)),
                self.kind_name: f"a {self.words}" if n % 2 else "b",
            },
        }

    def journal(self, records: list[dict[str, Any]]) -> None:
        path = str(self.folder.journal)
        storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        directions = ["maximize", "minimize"][: self.sketch.objectives]
        study = optuna.create_study(storage=storage, study_name="autopeft", directions=directions)
        study.set_user_attr("ordered", [self.rank_name])
        for r in records:
            study.add_trial(self.trial(r))

    def trial(self, r: dict[str, Any]) -> FrozenTrial:
        states = {
            "failed": TrialState.FAIL,
            "stopped": TrialState.PRUNED,
            "running": TrialState.RUNNING,
        }
        state, n = states.get(r["state"], TrialState.COMPLETE), r["number"]
        values = [r["score"], r["counts"]["deployed"]][: self.sketch.objectives]
        begin = START + timedelta(seconds=10 * n)
        return FrozenTrial(
            number=n,
            trial_id=n,
            state=state,
            value=None,
            values=values if state == TrialState.COMPLETE else None,
            datetime_start=begin,
            datetime_complete=None if state == TrialState.RUNNING else begin + timedelta(seconds=9),
            params=r["values"],
            distributions=self.distributions,
            user_attrs={"recipe": r["recipe"], "hash": r["hash"]},
            system_attrs={},
            intermediate_values=(
                {int(k): v for k, v in r["rungs"].items() if k != "60"} if self.sketch.objectives == 1 else {}
            ),
        )

    def finals(self) -> list[dict[str, Any]]:
        recipe = self.recipe(16, 20)
        return [
            {
                "kind": "confirm", "label": f"finalist 20 {self.words}".strip(), "state": "complete",
                "recipe": recipe, "number": 20, "seed": 1000 + i, "steps": 60,
                "counts": self.counts(recipe), "score": 0.71 + 0.01 * i,
                "scores": {"select": 0.71 + 0.01 * i, "test": 0.7 + 0.01 * i}, "seconds": 4.0,
            }
            for i in range(3)
        ]  # fmt: skip

    def result(self, ended: list[dict[str, Any]]) -> dict[str, Any]:
        recipe, lora = self.recipe(16, 20), {"layers": [{"attach": [{"lora": {"rank": 4}}]}]}
        name = f"LoRA rank 4 {self.words}".strip()
        baseline = {"name": name, "recipe": lora, "counts": self.counts(lora)}
        head = {"name": "head only", "recipe": {"name": "head"}, "counts": {"deployed": 0, "share": 0.0}}
        return {
            "counts": self.counts(recipe),
            "number": 20,
            "metric": f"accuracy {self.words}".strip(),
            "select": [0.71, 0.72, 0.73],
            "test": [0.70, 0.71, 0.72],
            "search_score": 0.74,
            "recipe": recipe,
            "interrupted": False,
            "notice": self.words or None,
            "seconds": 321.0,
            "baselines": [
                baseline | {"select": [0.69, 0.70, 0.71], "test": [0.68, 0.70, 0.71]},
                head | {"select": [0.55, 0.56, 0.57], "test": [0.54, 0.55, 0.56]},
            ],
            "comparisons": [
                {"baseline": name, "difference": 0.0133, "low": -0.004, "high": 0.031, "seeds": 3},
                {"baseline": "head only", "difference": 0.16, "low": 0.14, "high": 0.18, "seeds": 3},
            ],
            "selection_bias": 0.01,
            "hypervolume": [
                {"trial": r["number"], "steps": 60 * (i + 1), "seconds": 9.0 * i, "hypervolume": 0.5 + i / 99}
                for i, r in enumerate(ended)
            ],
        }


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunFolder]]:
    """Make a run folder: `make_run(trials=…, words=…)`, see `Sketch`."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(**more: Any) -> RunFolder:
        return Builder(tmp_path_factory.mktemp("report"), Sketch(**more)).build()

    yield make
    optuna.logging.set_verbosity(level)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], Any]], None]:
    """Change a JSON file of a run by a function of its content."""

    def change(path: Path, function: Callable[[Any], Any]) -> None:
        path.write_text(json.dumps(function(json.loads(path.read_text()))))

    return change
