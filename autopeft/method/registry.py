"""The open registry of methods: built in, or from other packages through the entry-point group
`autopeft.methods`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from autopeft.errors import MethodError
from autopeft.method.members import check_method
from autopeft.plugins import Registry, import_modules, is_lower_identifier

__all__ = ["REGISTRY", "RESERVED", "get_method", "method_names", "register"]

REGISTRY: Registry[type[Any]] = Registry(
    error=MethodError,
    malformed="A method name is a lower-case identifier that torch's modules leave free, but got {name!r}.",
    taken="The method name {name!r} is taken by {by}.",
    unknown="There is no method {name!r}.{near} `autopeft methods` lists all {count}; one from another "
    "package registers through the entry-point group 'autopeft.methods'.",
    group="autopeft.methods",
    built_in=lambda: import_modules("autopeft.methods"),
    well_formed=lambda name: is_lower_identifier(name) and not hasattr(nn.ModuleDict(), name),
)
RESERVED: set[str] = set()
"""Names that compositions have or may get: no method takes them."""
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a method under `name`.

    Raises:
        MethodError: the name is taken, reserved for a composition or malformed, or the class breaks the
            contract (see `check_method`).
    """

    def enter(cls: _C) -> _C:
        if name in RESERVED:
            raise MethodError(f"{name!r} is reserved for a composition; choose another method name.")
        REGISTRY.check_name(name, cls)
        check_method(cls, name)
        cls.name = name  # type: ignore[attr-defined]
        REGISTRY.enter(name, cls)
        return cls

    return enter


def get_method(name: str) -> type[Any]:
    """The method class registered under `name`.

    Raises:
        MethodError: there is none; the message names near matches.
    """
    return REGISTRY.find(name)


def method_names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    return REGISTRY.names()
