"""A recording as the replays use it: its rows, its noise, and the regression that predicts it best."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.spec import BackboneSpec
from lib.settings import RESULTS, SETTINGS
from lib.storage import read_rows
from lib.surrogate import Fit, Surrogate, fit, noise_of

__all__ = ["LEAST", "Recorded"]

# Below this rank correlation a surrogate says nothing of the real thing.
LEAST = 0.6


class Recorded:
    """A recording, how well it can be predicted, and the regression that does it best.

    Args:
        name: of `settings.SETTINGS`.
    """

    def __init__(self, name: str) -> None:
        setting = SETTINGS[name]
        self.rows = read_rows(RESULTS[name] / "trials.jsonl")
        self.spec: BackboneSpec = spec_of(load_config(resolve_model(setting.model, notify=print)))
        self.steps = tuple(range(setting.every, setting.steps + 1, setting.every))
        self.fits = _fits(self.rows, setting.steps, self.spec, RESULTS[name])
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
