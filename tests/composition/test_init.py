"""How the compositions with parameters start (`training.init` in `methods/defaults.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from support.laws import ZEROS, Law, near_identity, normal, starts, uniform

from autopeft.composition import ChildSpec, composition_names, default_options, get_composition
from autopeft.method import get_method
from autopeft.spec import Site

WIDE = Site("encoder", 0, "ffn", "region", 1000, 1000)
LAWS: dict[str, Mapping[str, Law]] = {
    "adamix": {"further.*": normal(0.02)},  # as the child's, which is an adapter here
    "chain": {},
    "fuse": {
        "at.*.query.weight": normal(0.02),
        "at.*.key.weight": normal(0.02),
        "at.*.bias": ZEROS,
        "at.*.value.weight": near_identity(1e-6),
    },
    "gate": {"gates.*.weight": normal(0.02), "gates.*.bias": ZEROS},
    "masked_copies": {},
    "moa": {"routers.*": normal(0.02)},
    "mole": {"gates.*": normal(0.01 * 1000**-0.5)},
    "route": {"routers.*.weight": normal(0.02)},
    "sum": {},
    "switch": {},
    "task_route": {"vectors.weight": normal(1.0), "gate.weight": uniform(1000**-0.5)},
    "weight_drop": {},
}


@pytest.mark.parametrize("name", composition_names())
def test_each_parameter_follows_its_law(name: str) -> None:
    method = get_method("linear_adapter")
    build = partial(method(method.Config(bottleneck=64)).build, (WIDE,), None)
    children = [ChildSpec(n, n, frozenset({"hook"}), (WIDE,), build=build) for n in ("a", "b")]
    options: dict[str, Any] = default_options(name)
    if "tasks" in options:
        options["tasks"] = ["a", "b"]
    if "vector" in options:
        options["vector"] = 1000
    torch.manual_seed(0)
    assert starts(get_composition(name).build(children, options), LAWS[name]) == []
