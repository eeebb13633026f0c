"""What a recipe takes of a machine beside its parameters, and the limits that a user sets on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from autopeft.effort import parse_duration
from autopeft.errors import UsageError
from autopeft.quantity import parse_bytes

__all__ = ["FIGURES", "Figure", "Limits", "Resources", "read_size", "read_span", "size_text", "span_text"]

_MOST_BITS = 63  # eight billion GB
_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size_text(size: float) -> str:
    """`6.1GB` of a number of bytes, in units of 1,000."""
    for unit, value in _SIZES:
        if size >= value:
            return f"{size / value:.3g}{unit}" if size < 999.5 * value else f"{size / value:.0f}{unit}"
    return f"{size:.0f}B"


def span_text(seconds: float) -> str:
    """`210ms` or `1.4s` of a number of seconds."""
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1e3 * seconds, "ms")
    return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"


def read_size(name: str, value: str | int) -> int:
    """Bytes of `6GB`, `500MB`, `4GiB`, or a number of bytes.

    Raises:
        UsageError: it is none of these, zero, or more than any machine has.
    """
    try:
        size = value if isinstance(value, int) else parse_bytes(value)
    except UsageError as error:
        raise UsageError(f"{name} is a size such as '6GB', '500MB' or '4GiB', but got {value!r}.") from error
    if size.bit_length() > _MOST_BITS:
        raise UsageError(f"{name} is more than any machine has; leave it out for no limit.")
    if size < 1 or isinstance(value, bool):
        raise UsageError(f"{name} has to be positive, but got {value!r}; leave it out for no limit.")
    return size


def read_span(name: str, value: str | float) -> float:
    """Seconds of `200ms` or `1.5s`, or a number of seconds.

    Raises:
        UsageError: it is none of these, has no unit, or is not positive.
    """
    example = f"{name} is a time such as '200ms' or '1.5s'"
    if isinstance(value, str) and value.strip().replace(".", "", 1).isdigit():
        raise UsageError(f"{example}, but {value!r} has no unit; write {value.strip() + 'ms'!r}.")
    try:
        found = parse_duration(value)
    except UsageError as error:
        raise UsageError(f"{example}, but got {value!r}.") from error
    assert found is not None
    return found


@dataclass(frozen=True)
class Figure:
    """A figure that can be limited.

    Attributes:
        name: of the field in `Resources` and `Limits`.
        title: in words.
        text: writes a value.
        calibrated: whether predicting it takes measurements of this machine.
    """

    name: str
    title: str
    text: Callable[[float], str]
    calibrated: bool = True


FIGURES: tuple[Figure, ...] = (
    Figure("memory", "peak memory of training", size_text),
    Figure("step_time", "time of a training step", span_text),
    Figure("latency", "time of a batch at inference", span_text),
    Figure("file", "size of the saved hybrid", size_text, calibrated=False),
)


@dataclass(frozen=True)
class Resources:
    """What a recipe takes, predicted or measured; `None` where it is not known.

    Attributes:
        memory: peak bytes of the process that trains; on a GPU, of the GPU's memory.
        step_time: seconds of one training step.
        latency: seconds of a forward of one batch with the hybrid attached.
        file: bytes of the saved weights, head included.
        unmergeable: why it does not merge into the backbone; empty where it does.
        unservable: why it cannot be served in the way that is asked for; empty where it can.
        on_packed: why it cannot act on a quantised backbone; empty where it can.
        on_sharded: why it cannot be trained over several processes; empty where it can.
    """

    memory: float | None = None
    step_time: float | None = None
    latency: float | None = None
    file: float | None = None
    unmergeable: str | None = None
    unservable: str | None = None
    on_packed: str | None = None
    on_sharded: str | None = None

    def figures(self) -> Iterator[tuple[Figure, float]]:
        """The figures that are known, in the order of `FIGURES`."""
        for figure in FIGURES:
            value = getattr(self, figure.name)
            if value is not None:
                yield figure, float(value)

    def to_dict(self) -> dict[str, Any]:
        """What is known, JSON-able."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Resources:
        """Read what `to_dict` wrote; what is no such figure is left out."""
        found: dict[str, Any] = {}
        for figure in FIGURES:
            value = told.get(figure.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
                found[figure.name] = value
        for name in ("unmergeable", "unservable", "on_packed", "on_sharded"):
            reason = told.get(name)
            found[name] = reason if isinstance(reason, str) else None
        return cls(**found)


@dataclass(frozen=True)
class Limits:
    """Upper limits on what a recipe takes; `None` for no limit. The fields are those of `Resources`.

    `serve` admits only recipes that can be served so (see `autopeft.graph.serving`). `quantize` says how the
    backbone is quantised, and admits only recipes that leave its packed weights alone (see
    `autopeft.graph.packed`). `processes` says how many a training has, and admits only recipes that several
    can train (see `autopeft.graph.sharding`).
    """

    memory: float | None = None
    step_time: float | None = None
    latency: float | None = None
    file: float | None = None
    serve: str | None = None
    quantize: str | None = None
    processes: int = 1

    def __bool__(self) -> bool:
        return bool(self.serve or self.quantize or self.processes > 1) or any(True for _ in self.set())

    def set(self) -> Iterator[tuple[Figure, float]]:
        """The figures that are limited, with their limits."""
        for figure in FIGURES:
            limit = getattr(self, figure.name)
            if limit is not None:
                yield figure, float(limit)

    @property
    def calibrated(self) -> bool:
        """Whether predictions for them take measurements of this machine."""
        return any(figure.calibrated for figure, _ in self.set())

    def excess(self, found: Resources) -> float:
        """How far a recipe is over the limits: each overshoot as a share of its limit, summed; 0 inside."""
        over = float(bool(self.serve and found.unservable) + bool(self.quantize and found.on_packed))
        over += float(self.processes > 1 and bool(found.on_sharded))
        for figure, limit in self.set():
            value = getattr(found, figure.name)
            if value is not None:
                over += max(0.0, value / limit - 1)
        return over

    def broken(self, found: Resources) -> list[str]:
        """A part of a sentence for each limit that a recipe is over."""
        said = [
            f"{figure.title} {figure.text(getattr(found, figure.name))} (at most {figure.text(limit)})"
            for figure, limit in self.set()
            if (getattr(found, figure.name) or 0.0) > limit
        ]
        if self.serve and found.unservable:
            said.append(f"not to be served as {self.serve}: {found.unservable}")
        if self.quantize and found.on_packed:
            said.append(f"not for a backbone in {self.quantize}: {found.on_packed}")
        if self.processes > 1 and found.on_sharded:
            said.append(f"not for {self.processes} processes: {found.on_sharded}")
        return said

    def __str__(self) -> str:
        said = [f"{figure.title} at most {figure.text(limit)}" for figure, limit in self.set()]
        said += [f"to be served as {self.serve}"] if self.serve else []
        said += [f"methods that leave weights in {self.quantize} alone"] if self.quantize else []
        said += [f"methods that {self.processes} processes can train"] if self.processes > 1 else []
        return ", ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """The limits that are set, JSON-able."""
        found: dict[str, Any] = {figure.name: limit for figure, limit in self.set()}
        found |= {"serve": self.serve} if self.serve else {}
        found |= {"quantize": self.quantize} if self.quantize else {}
        return found | ({"processes": self.processes} if self.processes > 1 else {})
