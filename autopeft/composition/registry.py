"""The open registry of compositions: each module of this package, and those of other packages through the
entry-point group `autopeft.compositions`.

A composition declares itself in one file; everything else that knows compositions reads the declaration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import nn

from autopeft.errors import CompositionError
from autopeft.method import MEMBERS, Member, check_members, method_names
from autopeft.method import registry as methods
from autopeft.plugins import Registry, import_modules, is_lower_identifier

__all__ = [
    "REGISTRY",
    "composition_names",
    "default_options",
    "get_composition",
    "is_composition",
    "register",
]

_PACKAGE = "autopeft.composition"
_FOLDS = ("site", "children")
_OWN = (
    Member("summary", "module", "in lists: what it does, in a line", None, "str", "any"),
    Member("traits", "module", "what it declares of itself", None, "CompositionTraits", "any"),
    Member("Options", "module", "the model of its options", None, "CompositionOptions", "any"),
    Member("kind", "module", "its name; `register` sets it", None, "str"),
    Member("check", "module", "before it is built", ("children", "options"), "", "any"),
    Member(
        "parameter_count",
        "module",
        "its own, in closed form",
        ("children", "options"),
        "ParameterCount",
        "any",
    ),
    Member("build", "module", "at attach", ("children", "options"), "Module", "any"),
    Member("delta", "module", "in each forward", (*_FOLDS, "x", "y", "call"), "Tensor", "any"),
    Member(
        "weight",
        "module",
        "whenever a weight is needed",
        ("target", "children", "original", "current"),
        "Tensor",
        "any",
    ),
    Member("key_value", "module", "in each forward", (*_FOLDS, "x", "call"), "keys, values", "any"),
    Member("merged", "module", "by merging", (*_FOLDS, "weight", "bias"), "weight, bias"),
    Member("check_modules", "module", "at attach, when all is built: may raise", ("modules",), ""),
    Member("pools", "module", "before a text is written", ("site",), "bool"),
    Member(
        "copies_of", "module", "when the optimizer is built: the entry that its parameters copy", None, "str"
    ),
    Member("start", "module", "at attach, when all has its first values", ("modules", "given"), ""),
    Member(
        "deployed", "module", "at saving and exporting: what is under it, as copies", ("modules",), "modules"
    ),
)
_OF_ENTRIES = (
    *("initialise", "initialise_prompt", "measurement", "measure", "settle"),
    *("merged", "as_lora", "as_dora", "as_ia3", "reads"),
)
_MEMBERS = (
    *_OWN,
    *(m for m in MEMBERS if m.owner == "module" and not m.way and m.name not in _OF_ENTRIES),
)

REGISTRY: Registry[type[Any]] = Registry(
    error=CompositionError,
    malformed="A composition's name is a lower-case identifier that torch's modules leave free, but got "
    "{name!r}.",
    taken="The composition name {name!r} is taken by {by}.",
    unknown="There is no composition {name!r}.{near} There are: {names}; one from another package registers "
    "through the entry-point group 'autopeft.compositions'.",
    group="autopeft.compositions",
    built_in=lambda: import_modules(_PACKAGE),
    well_formed=lambda name: is_lower_identifier(name) and not hasattr(nn.ModuleDict(), name),
)
_DEFAULTS: dict[str, dict[str, Any]] = {}
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a composition (see `Composition`) under `name`, which becomes its `kind`.

    Raises:
        CompositionError: the name is taken or malformed, a part of the contract is missing, misspelt or takes
            other arguments, or an option has no default.
    """

    def enter(cls: _C) -> _C:
        REGISTRY.check_name(name, cls)
        if not cls.__module__.startswith(f"{_PACKAGE}."):
            method_names()  # all methods are entered, so that none of theirs is taken away
        if name in ("head", "children", "policies", "copies") or methods.REGISTRY.peek(name) is not None:
            raise CompositionError(f"{name!r} already means something else; choose another composition name.")
        composition: Any = cls
        what = f"Composition {name!r} ({cls.__qualname__})"
        missing = [m.name for m in _OWN if m.way and not hasattr(cls, m.name)]
        if not missing and composition.traits.mergeable and not hasattr(cls, "merged"):
            missing = ["merged"]
        if missing:
            raise CompositionError(
                f"{what} lacks {', '.join(missing)} (see `autopeft.composition.Composition`)."
            )
        check_members(cls, nn.Module, _MEMBERS, what, CompositionError)
        try:
            defaults: dict[str, Any] = composition.Options().model_dump()
        except ValidationError as error:
            needed = ", ".join(str(e["loc"][0]) for e in error.errors() if e["loc"])
            raise CompositionError(
                f"Composition {name!r} has options without a default ({needed}); give each one, since a "
                "recipe may list the children alone."
            ) from error
        methods.RESERVED.add(name)
        cls.kind = name  # type: ignore[attr-defined]
        REGISTRY.enter(name, cls)
        _DEFAULTS[name] = defaults
        return cls

    return enter


def get_composition(name: str) -> type[Any]:
    """The composition class registered under `name`.

    Raises:
        CompositionError: there is none; the message names near matches.
    """
    return REGISTRY.find(name)


def composition_names() -> tuple[str, ...]:
    """Names of all registered compositions, sorted."""
    return REGISTRY.names()


def is_composition(name: Any) -> bool:
    """Whether a name in a recipe is a composition's."""
    return name in REGISTRY


def default_options(name: str) -> dict[str, Any]:
    """The options of a composition where a recipe sets none.

    Raises:
        CompositionError: there is no such composition.
    """
    get_composition(name)
    return dict(_DEFAULTS[name])
