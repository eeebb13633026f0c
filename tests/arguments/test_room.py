from __future__ import annotations

import inspect

import autopeft
from autopeft.export.api import export
from autopeft.search.api import search


def test_a_package_is_the_function_of_its_name() -> None:
    assert inspect.signature(autopeft.search) == inspect.signature(search)
    assert inspect.signature(autopeft.export) == inspect.signature(export)
    assert autopeft.search.__doc__ == search.__doc__
    assert "budget: limit on deployed parameters" in (inspect.getdoc(autopeft.search) or "")


def test_its_submodules_are_still_there() -> None:
    import autopeft.search.api as module

    assert module.search is search
    assert autopeft.search.api is module  # type: ignore[attr-defined]
