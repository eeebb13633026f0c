"""What speaks against a table of defaults (`methods/defaults.yaml`), beside the classes that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from autopeft.composition import composition_names, get_composition
from autopeft.method import get_method, method_names
from autopeft.nn import ACTIVATIONS
from autopeft.report.defaults import Published
from autopeft.search.strategies.registry import STRATEGIES
from support.toy import build, configured, toy_spec

__all__ = ["configs", "problems"]

# What an option comes to beside the other defaults, by the method's name and its config.
_MEANS: dict[str, Callable[[str, Any], Any]] = {
    "a1": lambda name, c: f"{_built(name, hidden=768).A.shape[0]} on a width of 768",
    "a2": lambda name, c: f"{_built(name, hidden=768).A.shape[1]} on a width of 768",
    "activation": lambda name, c: next(k for k, f in ACTIVATIONS.items() if f is _built(name).activation),
    "alpha": lambda name, c: _scale(name, c) * getattr(c, "first", c.rank),
    "deployed_rank": lambda name, c: build(name, toy_spec())[0].rank,
    "initial_rank": lambda name, c: c.first,
    "stored": lambda name, c: f"{_bound_by_keep(name):g} times keep",
    "train_norms": lambda name, c: "weight" in configured(name).traits.ways,
}


def _scale(name: str, config: Any) -> float:
    """s, which some methods have in their config and others beside it."""
    found: float = (config if hasattr(config, "scale") else get_method(name)(config)).scale
    return found


def _bound_by_keep(name: str) -> float:
    """How many entries are stored at most, for each that a mask keeps."""
    module = build(name, toy_spec(hidden=40))[0]
    return float(module.bound / module.k)


def _built(name: str, **widths: int) -> Any:
    """What a method builds for its first site."""
    return build(name, toy_spec(**widths))[0].children_by_site()[0]


def configs() -> dict[str, tuple[type[BaseModel], tuple[str, ...]]]:
    """The options and the default sites of every registered method and composition that has options, and the
    numbers of strategies that were published."""
    methods = {n: (get_method(n).Config, get_method(n).traits.default_sites) for n in method_names()}
    options = {n: get_composition(n).Options for n in composition_names()}
    strategies = {n: getattr(STRATEGIES.find(n), "numbers", None) for n in STRATEGIES.names()}
    return {
        **methods,
        **{n: (o, ()) for n, o in options.items() if o.model_fields},
        **{n: (numbers, ()) for n, numbers in strategies.items() if numbers is not None},
    }


def problems(
    table: Mapping[str, Published], config_of: Mapping[str, tuple[type[BaseModel], tuple[str, ...]]]
) -> list[str]:
    """What is missing from the table, is in it for nothing, or has another default than the code."""
    found = [f"{name}: no entry" for name in config_of if name not in table]
    for name, entry in table.items():
        if name in config_of:
            found += _in_entry(name, entry, *config_of[name])
        else:
            found.append(f"{name}: there is no such method, composition or strategy")
    return found


def _in_entry(name: str, entry: Published, config: type[BaseModel], sites: tuple[str, ...]) -> list[str]:
    rows, fields = entry.options, config.model_fields
    found = [f"{name}.{key}: no row" for key in fields if key not in rows]
    found += [f"{name}.{key}: there is no such option" for key in rows if key not in fields]
    for key in fields.keys() & rows.keys():
        default = list(sites) if key == "sites" else fields[key].get_default(call_default_factory=True)
        if not _same(rows[key].default, default):
            found.append(f"{name}.{key}: the table has {rows[key].default!r}, the code {default!r}")
    if found:  # what null comes to depends on the other defaults
        return found
    for key in _MEANS.keys() & rows.keys():
        given = rows[key].means
        if rows[key].default is None and not _same(given, means := _MEANS[key](name, config())):
            found.append(f"{name}.{key}: the table means {given!r}, the code {means!r}")
    return found


def _same(left: Any, right: Any) -> bool:
    """Equal up to rounding, where true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return math.isclose(left, right)
    return bool(left == right)
