"""How much a search spends: presets by name, and what the user overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from autopeft.errors import UsageError, near

__all__ = ["EFFORTS", "LARGE", "QUICK_OF_LARGE", "Effort", "choose_effort", "parse_duration", "read_effort"]


@dataclass(frozen=True)
class Effort:
    """What a search spends.

    Attributes:
        trials: recipes that are trained in the search.
        steps: optimizer steps of each training run.
        train_rows, select_rows, test_rows: rows taken of each split (stratified); `None` for all.
        top: finalists that are retrained with fresh seeds.
        seeds: fresh seeds for each finalist and baseline.
        rates: learning rates tried for each baseline, on *select*.
        batch_size: rows of a step.
        seconds: time budget that holds where neither a time nor numbers of trials and steps are given: a slow
            machine then tries fewer recipes. `None` for no limit.
    """

    name: str
    trials: int
    steps: int
    train_rows: int | None
    select_rows: int | None
    test_rows: int | None
    top: int
    seeds: int
    rates: int = 3
    seconds: float | None = None
    batch_size: int = 32

    @property
    def scoring_steps(self) -> float:
        """Training steps that take as long as scoring *select*: a forward is a third of a step."""
        return (self.select_rows or 1000) / (3 * self.batch_size)


EFFORTS: dict[str, Effort] = {
    e.name: e
    for e in (
        Effort("quick", 8, 60, 2000, 400, 1000, top=1, seeds=4, seconds=510.0),
        Effort("normal", 40, 200, 8000, 1000, None, top=3, seeds=3),
        Effort("thorough", 150, 500, None, 2000, None, top=5, seeds=5),
    )
}
LARGE = 60_000_000
"""Parameters of a backbone whose steps take seconds on a CPU: a quick search then spends otherwise."""
QUICK_OF_LARGE = {
    "encoder": Effort("quick", 8, 60, 2000, 400, 1000, top=1, seeds=4, seconds=1_740.0, batch_size=16),
    "decoder": Effort("quick", 8, 50, 2000, 128, 450, top=1, seeds=4, seconds=1_740.0, batch_size=8),
}
"""That of backbones that read texts, and of language models, which each row teaches many tokens."""
_MOST = 2**53
_POSITIVE = (
    "trials",
    "steps",
    "train_rows",
    "select_rows",
    "test_rows",
    "top",
    "seeds",
    "rates",
    "batch_size",
)


def choose_effort(
    name: str | None = None,
    *,
    gpu: bool = False,
    parameters: int = 0,
    decoder: bool = False,
    **overrides: Any,
) -> Effort:
    """The preset `name` (default: quick on a CPU, normal on a GPU) with every override that is not `None`.

    Args:
        gpu: whether there is one.
        parameters: of the backbone. On a CPU a quick search of a large one (see `LARGE`) has fewer
            rows a step, and may take longer.
        decoder: whether the backbone is a language model.

    Raises:
        UsageError: the name is unknown, or a number is not positive.
    """
    name = name or ("normal" if gpu else "quick")
    if name not in EFFORTS:
        raise UsageError(f"There is no effort {name!r}.{near(name, EFFORTS)} Efforts: {', '.join(EFFORTS)}.")
    known = {f.name for f in fields(Effort)} - {"name", "seconds"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise UsageError(f"An effort has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    given = {k: v for k, v in overrides.items() if v is not None}
    wrong = [f"{k}={given[k]}" for k in _POSITIVE if k in given and given[k] < 1]
    if wrong:
        raise UsageError(f"Efforts are positive whole numbers, but got {', '.join(wrong)}.")
    exact = gpu or "trials" in given or "steps" in given
    slow = name == "quick" and not gpu and parameters >= LARGE
    preset = QUICK_OF_LARGE["decoder" if decoder else "encoder"] if slow else EFFORTS[name]
    effort = replace(preset, **given)
    return replace(effort, seconds=None) if exact else effort


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class _Told(Effort):
    """An effort as a file has to have it."""


def read_effort(told: Any) -> Effort:
    """An effort as a manifest holds it.

    Raises:
        UsageError: it is none; the message names the first field that is wrong.
    """
    if not isinstance(told, dict):
        raise UsageError(f"An effort is a table, but got {told!r:.80}.")
    try:
        effort = Effort(**vars(_Told(**told)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"effort.{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    given = {k: getattr(effort, k) for k in _POSITIVE if getattr(effort, k) is not None}
    wrong = [f"{k}={v}" for k, v in given.items() if not 1 <= v < _MOST]
    if wrong:
        raise UsageError(f"Efforts are positive whole numbers, but got {', '.join(wrong)}.")
    return effort


_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 60.0}


def parse_duration(text: str | float | int | None) -> float | None:
    """Seconds of `90s`, `30m`, `2h`, `1h30m`, `1d`, `200ms`; a bare number means seconds in Python and
    minutes as text.

    Raises:
        UsageError: it cannot be read or is not positive.
    """
    if text is None:
        return None
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        clean = text.strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[smhd]?)", clean)
        lone = len(parts) == 1
        readable = "".join(n + u for n, u in parts) == clean.replace(" ", "") and all(
            u or lone for _, u in parts
        )
        if not parts or not readable:
            raise UsageError(f"{text!r} is not a duration; write '90s', '30m', '2h' or '1h30m'.")
        seconds = sum(float(n) * _UNITS[u] for n, u in parts)
    if not seconds > 0:
        raise UsageError(f"A duration must be positive, but got {text!r}.")
    if not seconds < 1e9:
        raise UsageError(f"A duration is at most some thirty years, but got {text!r}.")
    return seconds
