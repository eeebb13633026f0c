"""Metrics that are functions of the user's own: named on the command line or handed over in Python.

A name in a file imports nothing: a manifest says what such a metric was called, and who goes on with the run
hands the function over again.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import TaskError, UsageError, near
from autopeft.tasks.kinds.metric import Metric

__all__ = ["function_of", "metric_name", "own_metric"]

Function = Callable[[list[Any], list[Any]], float]


def metric_name(metric: Any) -> str | None:
    """The name of a metric: its own, or of a function `module:function`."""
    if metric is None or isinstance(metric, str):
        return metric
    name = getattr(metric, "__qualname__", type(metric).__qualname__)
    return f"{getattr(metric, '__module__', '__main__')}:{name}"


def function_of(text: str) -> str | Function:
    """What `--metric` names on the command line: a metric, or with a colon a function `module:function`. Its
    module is imported, from the working folder too.

    Raises:
        UsageError: there is no such module or function.
    """
    module, colon, name = text.partition(":")
    if not colon:
        return text
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's own module fails in whatever way it likes
        raise UsageError(f"--metric {text}: {module!r} cannot be imported: {error}.") from error
    function = getattr(found, name, None)
    if not callable(function):
        known = [n for n, value in vars(found).items() if callable(value)]
        raise UsageError(f"--metric {text}: {module!r} has no function {name!r}.{near(name, known)}")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _OwnScore:
    """Calls a user's function with lists, and takes only a number from it."""

    function: Function
    name: str

    def __call__(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        try:
            found = self.function(np.asarray(predictions).tolist(), np.asarray(labels).tolist())
            return float(found)
        except Exception as error:  # it is the user's own
            raise TaskError(
                f"The metric {self.name} failed on {len(labels)} predictions: {type(error).__name__}: {error}"
            ) from error


def own_metric(function: Function, *, generated: bool) -> Metric:
    """A function of predictions and references, higher is better, as a metric.

    Args:
        function: takes two lists of the same length; of language models texts, of other kinds what metrics
            compare (class indices, numbers). Its range is not known.
        generated: whether predictions are texts that the model writes.
    """
    name = metric_name(function) or ""
    summary = (getattr(function, "__doc__", None) or "a function of the user's").strip().split("\n")[0]
    return Metric(
        name, -math.inf, math.inf, summary, _OwnScore(function, name), generated=generated, own=True
    )
