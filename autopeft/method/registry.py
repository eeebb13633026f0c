"""The open registry of methods: built in, or from other packages through the entry-point group
`autopeft.methods`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import nn

from autopeft.errors import MethodError, near
from autopeft.method.members import check_method

__all__ = ["get_method", "method_names", "register", "registered_method", "reserve"]

_REGISTRY: dict[str, type[Any]] = {}
_RESERVED: set[str] = set()
_LOADED = False
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a method under `name`.

    Raises:
        MethodError: the name is taken, reserved for a composition or malformed, or the class breaks the
            contract (see `check_method`).
    """

    def enter(cls: _C) -> _C:
        if name in _RESERVED:
            raise MethodError(f"{name!r} is reserved for a composition; choose another method name.")
        if not name.isidentifier() or name != name.lower() or hasattr(nn.ModuleDict(), name):
            raise MethodError(
                f"A method name is a lower-case identifier that torch's modules leave free, but got {name!r}."
            )
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise MethodError(f"The method name {name!r} is taken by {_REGISTRY[name].__module__}.")
        check_method(cls, name)
        cls.name = name  # type: ignore[attr-defined]
        _REGISTRY[name] = cls
        return cls

    return enter


def reserve(name: str) -> None:
    """Keep `name` for a composition: no method may take it from now on."""
    _RESERVED.add(name)


def registered_method(name: str) -> bool:
    """Whether a method that was imported so far has this name; imports none."""
    return name in _REGISTRY


def _load_all() -> None:
    """Import the built-in methods and those of installed packages, once."""
    global _LOADED
    if _LOADED:
        return
    _LOADED = True
    package = importlib.import_module("autopeft.methods")
    for module in _walk(package.__path__, "autopeft.methods."):
        importlib.import_module(module)
    for point in entry_points(group="autopeft.methods"):
        point.load()


def _walk(path: Iterable[str], prefix: str) -> Iterator[str]:
    for info in sorted(pkgutil.walk_packages(path, prefix), key=lambda i: i.name):
        if not info.ispkg:
            yield info.name


def get_method(name: str) -> type[Any]:
    """The method class registered under `name`.

    Raises:
        MethodError: there is none; the message names near matches.
    """
    _load_all()
    if name not in _REGISTRY:
        raise MethodError(
            f"There is no method {name!r}.{near(name, _REGISTRY)} `autopeft methods` lists all "
            f"{len(_REGISTRY)}; one from another "
            "package registers through the entry-point group 'autopeft.methods'."
        )
    return _REGISTRY[name]


def method_names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    _load_all()
    return tuple(sorted(_REGISTRY))
