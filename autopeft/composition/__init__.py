"""How modules act together: `sum`, `chain`, `gate`, `route`, the wraps, and what other packages register."""

from __future__ import annotations

from autopeft.composition.adamix import AdaMix
from autopeft.composition.chain import Chain
from autopeft.composition.contract import (
    Child,
    ChildSpec,
    Composition,
    CompositionOptions,
    CompositionTraits,
    MergingChild,
    NoOptions,
    Value,
    Way,
    input_width,
    nested,
    refuse_alone,
)
from autopeft.composition.fuse import Fuse
from autopeft.composition.gate import Gate
from autopeft.composition.moa import MoA
from autopeft.composition.mole import MoLE
from autopeft.composition.positions import is_of_the_source
from autopeft.composition.registry import (
    composition_names,
    default_options,
    get_composition,
    is_composition,
    register,
)
from autopeft.composition.route import Route
from autopeft.composition.sums import Sum, added, one_after_the_other
from autopeft.composition.switch import Switch
from autopeft.composition.task_route import TaskRoute
from autopeft.composition.wrap import MaskedCopies, WeightDrop, Wrap

__all__ = [
    "AdaMix",
    "Chain",
    "Child",
    "ChildSpec",
    "Composition",
    "CompositionOptions",
    "CompositionTraits",
    "Fuse",
    "Gate",
    "MaskedCopies",
    "MergingChild",
    "MoA",
    "MoLE",
    "NoOptions",
    "Route",
    "Sum",
    "Switch",
    "TaskRoute",
    "Value",
    "Way",
    "WeightDrop",
    "Wrap",
    "added",
    "composition_names",
    "default_options",
    "get_composition",
    "input_width",
    "is_composition",
    "is_of_the_source",
    "nested",
    "one_after_the_other",
    "refuse_alone",
    "register",
]
