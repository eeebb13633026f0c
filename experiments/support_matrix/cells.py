"""A method alone on a tiny model of a family, for a kind of task: the cells of the matrix.

Whether a kind of task takes a family at all is asked first; only then is each method tried there.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lib.tiny_rows import END, tiny_rows
from lib.trying import Verdict, recipe_of, tried
from transformers import PreTrainedConfig, PreTrainedModel

from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError
from autopeft.method import get_method, method_names
from autopeft.tasks.kinds import get_kind, kind_names

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.families import FAMILIES

BESIDE = "lora"
_WINDOW = 64  # wider than the rows, as in use: behind a window tokens in front are not seen
_READS = {"text": "texts", "vision": "images", "audio": "sound"}
__all__ = ["BESIDE", "FAMILIES", "Cell", "Place", "cells", "places", "refusal", "sampled", "stamp", "verdict"]


@dataclass(frozen=True)
class Place:
    """A family and a kind of task."""

    family: str
    kind: str

    def __str__(self) -> str:
        return f"{self.family} {self.kind}"

    def config(self) -> PreTrainedConfig:
        """A tiny model's configuration, as the kind wants it."""
        kind, config = get_kind(self.kind), FAMILIES[self.family].config()
        config.architectures = (
            config.architectures or []
        )  # where several classes fit, transformers looks there
        if kind.head.new_head:
            for key, value in kind.head.config(tiny_rows(self.kind, config).task.labels).items():
                setattr(config, key, value)
        config.get_text_config().eos_token_id = END
        if getattr(config, "sliding_window", None) is not None:
            config.sliding_window = _WINDOW
        return config

    def model(self) -> PreTrainedModel:
        """The model, in eval mode, always with the same weights."""
        config = self.config()
        if "sdpa" not in FAMILIES[self.family].attentions:
            config._attn_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model: PreTrainedModel = get_kind(self.kind).head.auto_class.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        torch.nn.init.normal_(parameter, std=0.1)
                    else:  # some methods read biases, which are zero
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()


@dataclass(frozen=True)
class Cell:
    """A method at a place."""

    place: Place
    method: str


def places() -> list[Place]:
    """Every family with every kind of task."""
    return [Place(family, kind) for kind in kind_names() for family in FAMILIES]


@cache
def refusal(place: Place) -> str | None:
    """Why a kind of task does not take a family, whatever the method; `None` where it does."""
    kind, modality = get_kind(place.kind), FAMILIES[place.family].modality
    if kind.head.modality != modality:
        wanted = _READS[kind.head.modality]
        return f"The family reads {_READS[modality]}, and tasks of this kind are of {wanted}."
    if type(FAMILIES[place.family].config()) not in kind.head.auto_class._model_mapping:
        return f"transformers has no {kind.head.auto_class.__name__} of this family."
    config = place.config()
    try:
        spec = spec_of(config)
    except AutoPEFTError as error:
        return str(error)
    return kind.head.refused(spec, place.family)


def cells(where: Sequence[Place] | None = None) -> list[Cell]:
    """Every method at each of these places (default: all) that takes any."""
    taken = [place for place in (places() if where is None else where) if refusal(place) is None]
    return [Cell(place, name) for place in taken for name in method_names()]


def sampled(found: Sequence[Cell], count: int, seed: int = 0) -> list[Cell]:
    """Some cells, seeded."""
    return random.Random(seed).sample(list(found), min(count, len(found)))


def verdict(cell: Cell) -> tuple[Verdict, str]:
    """What comes of a cell, and why where it is not `works`. What is a rule of training alone is tried beside
    `BESIDE`, since alone it has nothing to act on."""
    rule = get_method(cell.method).traits.level == "training"
    return tried(cell.place.model, recipe_of([cell.method, *([BESIDE] if rule else [])]), cell.place.kind)


def stamp() -> str:
    """A hash of what the matrix is about: methods with their defaults, families and kinds of task."""
    methods: dict[str, Any] = {
        name: get_method(name).Config().model_dump(mode="json") for name in method_names()
    }
    about = {"methods": methods, "families": sorted(FAMILIES), "kinds": sorted(kind_names())}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
