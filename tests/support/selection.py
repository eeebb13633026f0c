"""Which tests a run selects, known before they are collected."""

from __future__ import annotations

from typing import Any

without_slow = False
"""Whether the run leaves out what is slow: cases that it would deselect are then not made. `pytest_configure`
sets it."""


def selected(parameters: list[Any]) -> list[Any]:
    """Parameters (`pytest.param`) of a test, without the slow ones where the run leaves them out."""
    return [p for p in parameters if not (without_slow and any(mark.name == "slow" for mark in p.marks))]
