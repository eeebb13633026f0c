"""What the replays share: a recording's surrogate, results that are resumed, means with intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from recording import read_rows
from scipy.stats import t
from settings import FOLDERS, SETTINGS
from surrogate import Fit, Surrogate, fit, noise_of

from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.spec import BackboneSpec

__all__ = ["LEAST", "Kept", "Recorded", "interval", "mean_of"]

# Below this rank correlation a surrogate says nothing of the real thing.
LEAST = 0.6


class Recorded:
    """A recording, how well it can be predicted, and the regression that does it best."""

    def __init__(self, name: str) -> None:
        setting = SETTINGS[name]
        self.rows = read_rows(FOLDERS[name] / "trials.jsonl")
        self.spec: BackboneSpec = spec_of(load_config(resolve_model(setting.model, notify=print)))
        self.steps = tuple(range(setting.every, setting.steps + 1, setting.every))
        self.fits = _fits(self.rows, setting.steps, self.spec, FOLDERS[name])
        self.noise = noise_of(self.rows, self.steps)

    @property
    def usable(self) -> bool:
        """Whether the best regression ranks unseen recipes well enough to conclude anything."""
        return self.fits[0].rank >= LEAST

    def surrogate(self, model: str | None = None) -> Surrogate:
        """The regression of a name, or the best one, fitted on everything."""
        return Surrogate(self.rows, self.steps, model or self.fits[0].model, self.spec)

    def to_dict(self) -> dict[str, Any]:
        """What a reader must know of it."""
        return {
            "trainings": len(self.rows),
            "recipes": len({row["hash"] for row in self.rows}),
            "seed_noise": dict(zip(map(str, self.steps), self.noise, strict=True)),
            "fits": [vars(f) for f in self.fits],
        }


def _fits(rows: list[dict[str, Any]], step: int, spec: BackboneSpec, folder: Path) -> list[Fit]:
    """Every regression under cross-validation, which takes minutes and is kept beside the recording."""
    digest = hashlib.sha256((folder / "trials.jsonl").read_bytes()).hexdigest()
    path = folder / "fits.json"
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["of"] == digest:
        return [Fit(**f) for f in kept["fits"]]
    fits = fit(rows, step, spec)
    text = json.dumps({"of": digest, "fits": [vars(f) for f in fits]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return fits


class Kept:
    """Results by key in a JSON file, written after each, so that an experiment goes on where it stopped.

    Results that were made from another recording are dropped. Several processes may each make some.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self.about = about
        self.results: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["about"] == json.loads(json.dumps(self.about)):
                self.results = found["results"] | self.results

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of a key, made if it is not there."""
        if key not in self.results:
            self.results[key] = make()
            with FileLock(self._path.with_suffix(".lock")):
                self._read()
                text = json.dumps({"about": self.about, "results": self.results}, indent=1)
                new = self._path.with_suffix(".new")
                new.write_text(text + "\n", encoding="utf-8")
                new.replace(self._path)
        return self.results[key]


def mean_of(values: Sequence[float]) -> str:
    """Mean and half of the 95 % interval of the mean (Student's t)."""
    mean, half = interval(values)
    return f"{mean:.2f} ± {half:.2f}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    n = len(values)
    if n < 2:
        return values[0], math.inf
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return statistics.fmean(values), half
