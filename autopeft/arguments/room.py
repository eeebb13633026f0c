"""A package that is also the public function of the same name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["let_call"]


class _CallableRoom(ModuleType):
    @property
    def _function(self) -> Callable[..., Any]:
        module, _, name = self.__dict__["_home"].partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def let_call(room: str, home: str) -> None:
    """Let the package `room` answer calls, `help` and `inspect.signature` as the function `module:name` does.

    Importing a submodule binds the package's attribute to the package, whatever stood there before; so the
    package itself has to be the function.
    """
    module = sys.modules[room]
    module.__dict__["_home"] = home
    module.__class__ = _CallableRoom
