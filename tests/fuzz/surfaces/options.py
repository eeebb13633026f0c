"""Texts of options: budgets, sizes, weights, times, layers, names of methods, metrics and samplers."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from autopeft.composition import get_composition
from autopeft.counting import Budget
from autopeft.method import get_method
from autopeft.quantity import parse_bytes, parse_quantity
from autopeft.recipe.layers import normalise_at, resolve_layers
from autopeft.search.planning.arguments import SearchArguments
from autopeft.tasks.gym import parse_gym
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.tasks.kinds.verbaliser import LabelWords, Template
from autopeft.training.arguments import TrainArguments

from .. import mutate
from ..surface import Call, First
from .recipe import spec

SHARE = 0.5


def _budget(text: Any) -> object:
    return Budget.parse(text).limits(spec())


def _layers(text: Any) -> object:
    return resolve_layers(normalise_at(text), 12)


def _template(text: str) -> object:
    found = Template.parse(text)
    return found.render(text=text, text_pair=text, mask="[MASK]"), Template.parse(str(found))


_NAMED = "classification?label_words=bad,great&template=%7Btext%7D It was %7Bmask%7D ."
_ANY = (parse_quantity, _layers)  # take more than texts
_READERS: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (_budget, ("0.5%", "300k", "1.2M", "0.1%..1%", "1000..2000", "5e3")),
    (parse_quantity, ("0.5%", "300k", 12, 1.5)),
    (parse_bytes, ("10GB", "500 MB", "0")),
    (_layers, ("0-5", "first 2", "last 4", "last 50%", "g1", "all", [0, 2])),
    (get_method, ("lora", "ia3")),
    (get_composition, ("gate", "route")),
    (get_metric, ("accuracy", "pearson")),
    (get_kind, ("classification", _NAMED)),
    (LabelWords.parse, ("bad,great", "negative=bad,positive=great", "%25,%2C,%3D")),
    (_template, ("{text} It was {mask} .", "{sentence1} ? {mask} , {sentence2}", "{{ {text} }}:")),
    (parse_gym, ("gym:chain_sum", "gym:chain_sum?min_terms=2&max_terms=3")),
)
_SEARCH: dict[str, Any] = {
    "task": "sms-spam", "model": "minilm", "space": "lora", "budget": "1%", "effort": "quick", "trials": 3,
    "sampler": "tpe", "strategy": "trials", "objective": "score", "time": "10m", "workers": 0,
    "precision": "fp32", "baselines": "head", "fidelity": "steps", "metric": "accuracy",
    "class_weights": [1, 2], "kind": "classification", "label_words": {"no": "bad", "yes": "great"},
    "template": "{text} It was {mask} .",
}  # fmt: skip
_TRAIN = {"task": "sms-spam", "recipe": "mam", "seed": 1, "steps": 3, "max_length": 8, "batch_size": 2}


def hostile(random: Random, folder: Path) -> Call:
    if random.random() < 0.6:
        read, valid = random.choice(_READERS)
        chosen = random.choice(valid)
        value: Any = mutate.scalar(random) if read in _ANY else mutate.word(random)
        if random.random() < 0.7:
            value = mutate.text(random, str(chosen)).decode("utf-8", "surrogateescape")
        return lambda: read(value)
    arguments, good = random.choice(((SearchArguments, _SEARCH), (TrainArguments, _TRAIN)))
    given = mutate.tree(random, good)
    given = given if isinstance(given, dict) else {"task": given}
    return lambda: arguments(**{str(key): value for key, value in given.items()})


FIRST: dict[str, First] = {
    "a budget of 5,000 digits": lambda folder: lambda: _budget("9" * 5000),
    "a budget that is a number of 5,000 digits": lambda folder: lambda: _budget(10**5000),
    "a quantity of -5,000 digits": lambda folder: lambda: parse_quantity(-(10**5000)),
    "a budget of a million zeros": lambda folder: lambda: _budget("0" * 1_000_000 + "%"),
    "a budget of 1e99": lambda folder: lambda: _budget("1e99"),
    "sizes of 5,000 digits": lambda folder: lambda: parse_bytes("9" * 5000),
    "a method of 100,000 letters": lambda folder: lambda: get_method("a" * 100000),
    "a method that is code": lambda folder: lambda: get_method("fuzz_canary:run"),
    "a layer of 5,000 digits": lambda folder: lambda: _layers(10**5000),
    "layers of 3 million letters": lambda folder: lambda: _layers('{"a":' * 600_000),
    "a million label words": lambda folder: lambda: LabelWords.parse("a," * 1_000_000),
    "a template of a million braces": lambda folder: lambda: _template("{text}" + "{" * 1_000_000),
    "a template that reaches for attributes": lambda folder: lambda: _template("{text.__class__} {mask}"),
    "a kind with a million options": lambda folder: lambda: get_kind("classification?" + "a=b&" * 1_000_000),
    "other digits": lambda folder: lambda: _budget("١٢%"),
}
