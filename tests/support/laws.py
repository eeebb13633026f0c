"""What values are drawn from, with two-sided bounds: five standard errors, which are at most ten per cent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

__all__ = [
    "HUNDREDTH",
    "KAIMING",
    "NORMAL",
    "ONES",
    "ZEROS",
    "Law",
    "constant",
    "glorot",
    "linear",
    "near_identity",
    "normal",
    "products",
    "starts",
    "truncated",
    "uniform",
    "violations",
]

ENOUGH = 1300  # values: five standard errors of a normal's deviation are then less than ten per cent of it


@dataclass(frozen=True)
class Law:
    """A distribution, or a value where `std` is 0.

    Attributes:
        name: how messages call it.
        center: the mean, or of each tensor the values.
        unit: what each tensor's values, less the mean, are divided by: a deviation or a bound.
        std: the deviation that is left then.
        reach: the least and the largest size that the outermost value of each sign may have then.
        loose: by how much deviations may be larger than those of as many independent values.
    """

    name: str
    center: float | Callable[[Tensor], Tensor]
    unit: Callable[[Tensor], float]
    std: float
    reach: tuple[float, float]
    loose: float = 1.0


def constant(value: float) -> Law:
    """One value, exactly."""
    return Law(f"{value:g}", value, lambda t: 1.0, 0.0, (0.0, 0.0))


def near_identity(off: float) -> Law:
    """Ones on the diagonal and `off` elsewhere, exactly."""

    def values(t: Tensor) -> Tensor:
        return torch.full_like(t, off).fill_diagonal_(1.0)

    return Law(f"1 on the diagonal, {off:g} elsewhere", values, lambda t: 1.0, 0.0, (0.0, 0.0))


def normal(std: float, mean: float = 0.0) -> Law:
    """N(mean, std²)."""
    return Law(f"N({mean:g}, {std:g}²)", mean, lambda t: std, 1.0, (2.4, 7.0))


def truncated(std: float) -> Law:
    """N(0, std²), cut at two deviations."""
    density = 2 * math.exp(-2) / math.sqrt(2 * math.pi)  # of both ends
    left = math.sqrt(1 - 2 * density / math.erf(math.sqrt(2)))
    return Law(f"N(0, {std:g}²) up to 2·{std:g}", 0.0, lambda t: std, left, (1.85, 2.0))


def uniform(bound: float | Callable[[Tensor], float], name: str = "") -> Law:
    """U(−bound, bound), where the bound may depend on the tensor's shape."""
    given = bound if callable(bound) else lambda t: bound
    return Law(name or f"U(−{bound}, {bound})", 0.0, given, 1 / math.sqrt(3), (0.98, 1.0))


def products(bound: float) -> Law:
    """Columns times rows of U(−bound, bound): of n factors of each n² values are made."""
    return Law(f"U(−{bound}, {bound})²", 0.0, lambda t: bound**2, 1 / 3, (0.9, 1.0), 3.0)


def glorot(gain: float = 1.0) -> Law:
    """Glorot-uniform, for a matrix or a stack of matrices (…, rows, columns)."""
    return uniform(lambda t: gain * math.sqrt(6 / (t.shape[-2] + t.shape[-1])), f"Glorot, gain {gain:g}")


ZEROS, ONES, NORMAL, HUNDREDTH = constant(0.0), constant(1.0), normal(1.0), uniform(0.01)
KAIMING = uniform(lambda t: t.shape[-1] ** -0.5, "Kaiming-uniform (a = √5)")


def linear(fan_in: int) -> Law:
    """Weight and bias of a linear map as PyTorch has them."""
    return uniform(fan_in**-0.5, f"U(−1/√{fan_in}, 1/√{fan_in})")


def violations(law: Law, tensors: Iterable[Tensor]) -> list[str]:
    """What of the values speaks against the law; nothing where they may come from it.

    Tensors of many values are judged each for itself, and all of them together.

    Raises:
        ValueError: there are too few values to tell.
    """
    found = [t.detach() for t in tensors]
    if callable(law.center):
        return [] if all(torch.equal(t, law.center(t)) for t in found) else [f"not {law.name}"]
    center = law.center
    if not law.std:
        return [] if all(bool((t == center).all()) for t in found) else [f"not all {law.name}"]
    parts = [(t.double().flatten() - center) / law.unit(t) for t in found]
    whole = torch.cat(parts)
    if len(whole) < ENOUGH:
        raise ValueError(f"{len(whole)} values are too few to tell whether they are {law.name}.")
    large = [p for p in parts if len(p) >= ENOUGH]
    return [text for part in (whole, *large) for text in _against(law, part)]


def _against(law: Law, values: Tensor) -> Iterable[str]:
    n, (least, largest) = len(values), law.reach
    if abs(float(values.mean())) > 5 * law.loose * law.std / math.sqrt(n):
        yield f"{law.name}: the mean of {n} values is off by {float(values.mean()):.4g} units"
    if abs(float(values.std()) / law.std - 1) > 5 * law.loose / math.sqrt(2 * n):
        yield f"{law.name}: the deviation is {float(values.std()) / law.std:.4g} times what it should be"
    for end in (float(values.max()), -float(values.min())):
        if not least <= end <= largest * (1 + 1e-6):
            yield f"{law.name}: the outermost value lies at {end:.4g} units"
    first = values[:20_000]  # of millions some are alike by chance
    if len(first.unique()) < 0.99 * len(first):
        yield f"{law.name}: values repeat"


def starts(module: nn.Module, laws: Mapping[str, Law]) -> list[str]:
    """What of a module's start is not as `laws` (by pattern of names) have it.

    Each parameter, and each buffer of floating point that is saved, must have exactly one law, and each law
    something. What is not saved may have one.
    """
    named = dict(module.named_parameters())
    known = {
        *module.state_dict(),
        *(n for n, _ in module.named_buffers() if any(fnmatchcase(n, p) for p in laws)),
    }
    named |= {n: b for n, b in module.named_buffers() if b.is_floating_point() and n in known}
    found = [
        f"{name}: {len(fits)} laws fit"
        for name in named
        if len(fits := [p for p in laws if fnmatchcase(name, p)]) != 1
    ]
    for pattern, law in laws.items():
        tensors = [t for name, t in named.items() if fnmatchcase(name, pattern)]
        found += (
            [f"{pattern}: {text}" for text in violations(law, tensors)]
            if tensors
            else [f"{pattern}: no such"]
        )
    return found
