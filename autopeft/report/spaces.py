"""Search spaces as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopeft.report.sheet import Sheet
from autopeft.report.text import number
from autopeft.search.space.space import Parameter, Space
from autopeft.spec import BackboneSpec

__all__ = ["describe_space", "parameters_sheet", "size_text", "spaces_sheet"]


def size_text(space: Space, spec: BackboneSpec) -> str:
    """How many recipes the space holds; continuous parameters, which have no number, are named."""
    bound = space.bind(spec)
    continuous = bound.continuous
    beside = f", times the continuous {', '.join(continuous)}" if continuous else ""
    return f"{number(bound.cardinality())} recipes{beside}"


def spaces_sheet(spaces: Sequence[Space], spec: BackboneSpec, model: str) -> Sheet:
    """Every space with its size on this backbone."""
    rows = tuple(
        (s.name, str(len(s.bind(spec).parameters)), size_text(s, spec), s.reference or "") for s in spaces
    )
    size = f"size on {model}"
    return Sheet(
        ("space", "parameters", size, "reference"),
        rows,
        notes=("`autopeft spaces NAME` shows one; `autopeft search --space FILE` takes your own.",),
        right=frozenset({"parameters"}),
        fold=frozenset({size, "reference"}),
        drop=("reference",),
    )


def _values(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return ", ".join("none" if c is None else str(c) for c in parameter.choices)
    scale = ", logarithmic" if parameter.log else ""
    meant = f", from {parameter.steps:,} steps on" if parameter.steps is not None else ""
    return f"{parameter.low:g} to {parameter.high:g}{scale}{meant}"


def parameters_sheet(space: Space, spec: BackboneSpec, model: str) -> Sheet:
    """The flat list of parameters of one space."""
    rows = tuple((p.name, p.kind, _values(p)) for p in space.bind(spec).parameters)
    return Sheet(
        ("parameter", "kind", "values"),
        rows,
        fold=frozenset({"values"}),
        drop=("kind",),
        title=f"{space.name} on {model}: {size_text(space, spec)}",
    )


def describe_space(space: Space, spec: BackboneSpec) -> dict[str, Any]:
    """The same as data."""
    bound = space.bind(spec)
    return {
        "name": space.name,
        "reference": space.reference,
        "cardinality": bound.cardinality(),
        "continuous": list(bound.continuous),
        "parameters": [vars(p) for p in bound.parameters],
    }
