"""How the compositions with parameters start (`training.init` in `methods/defaults.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.laws import ZEROS, Law, normal, starts

from autopeft.composition import ChildSpec, composition_names, default_options, get_composition
from autopeft.spec import Site

WIDE = Site("encoder", 0, "ffn", "region", 1000, 1000)
LAWS: dict[str, Mapping[str, Law]] = {
    "chain": {},
    "gate": {"gates.*.weight": normal(0.02), "gates.*.bias": ZEROS},
    "masked_copies": {},
    "route": {"routers.*.weight": normal(0.02)},
    "sum": {},
    "weight_drop": {},
}


@pytest.mark.parametrize("name", composition_names())
def test_each_parameter_follows_its_law(name: str) -> None:
    children = [ChildSpec(n, n, frozenset({"hook"}), (WIDE,)) for n in ("a", "b")]
    options: dict[str, Any] = default_options(name)
    torch.manual_seed(0)
    assert starts(get_composition(name).build(children, options), LAWS[name]) == []
