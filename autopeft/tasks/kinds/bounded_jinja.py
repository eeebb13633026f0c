"""Chat templates with bounds of time and memory.

transformers compiles a template for Jinja's sandbox, which reaches no attribute with an underscore and
changes no object, but lets a template loop and grow values as long as it likes. A child process with limits
of the system would bound that too, at seconds for each tokenizer. Here the same environment compiles the
template so that it is counted:

- each line of the compiled template that runs, and the letters that its operations take in, are steps;
- what an operation could make is known from what it is given before it runs: a sum for `+` and `~`, a product
  for `*`, `center`, `replace`, `join` and others; it has to be within bounds, and so has every list;
- what is written is added up as it comes.

All templates of public models stay far below these bounds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Macro
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

__all__ = ["TooMuch", "render"]

_STEPS = 300_000
_LETTERS_A_STEP = 64
_LARGEST = 4_000_000  # letters of one value
_MOST_ITEMS, _LETTERS_AN_ITEM = 50_000, 8
_WIDTH = re.compile(r"\d{5}|\*")
_MOST_POWER = 64
_VALUE = "autopeft_value"  # the filter that a list goes through as it is made
_GROWING = {
    *("center", "format", "indent", "join", "replace", "wordwrap", "batch", "slice", "tojson", "urlize"),
    *("ljust", "rjust", "zfill", "expandtabs", "format_map", "translate", "xmlattr"),
}
_FORMATS = ("format", "format_map")


class TooMuch(Exception):  # noqa: N818  (a reason, not an error of this package)
    """A template would take more time or memory than it may."""


class _Meter:
    """What a rendering has taken so far."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, letters: int = 0) -> None:
        self.steps += 1 + letters // _LETTERS_A_STEP
        if self.steps > _STEPS:
            raise TooMuch(f"it takes more than {_STEPS:,} steps")

    def size(self, *values: Any) -> int:
        """Letters and items of values, counted with what they hold, and charged."""
        found = sum(map(_size, values))
        self.step(found)
        return self.fits(found)

    def fits(self, letters: int) -> int:
        if letters > _LARGEST:
            raise TooMuch(f"it makes a value of more than {_LARGEST:,} letters")
        return letters

    def grown(self, *values: Any) -> None:
        """Refuse what the product of all sizes says may become too large."""
        product = 1
        for value in values:
            whole = isinstance(value, int) and not isinstance(value, bool)
            product = self.fits(product * max(1, abs(value) if whole else _size(value)))


def _size(value: Any) -> int:
    """Letters of a text, items of a list with theirs, counted up to a bound; 1 for anything else."""
    count, items, open_ = 0, 0, [value]
    while open_ and count <= _LARGEST:
        item = open_.pop()
        items += 1
        if items > _MOST_ITEMS:
            return _LARGEST + 1
        count += len(item) if isinstance(item, str) else _LETTERS_AN_ITEM
        if isinstance(item, Mapping):
            open_ += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            open_ += item
    return count


def render(text: str, most: int, **given: Any) -> str:
    """What a chat template writes.

    Args:
        most: letters.
        given: `messages` and what else transformers hands to a template.

    Raises:
        TooMuch: it takes more time or memory than any template needs, or writes more.
        Exception: whatever the template raises.
    """
    template, meters = _compiled(text)
    meter = _Meter()
    meters.append(meter)
    written: list[str] = []
    letters = 0
    try:
        with _lines_counted(meter, template.environment.autopeft_file):  # type: ignore[attr-defined]
            for piece in template.generate(**given):
                letters += len(piece)
                if letters > most:
                    raise TooMuch(f"it writes more than {most:,} letters")
                written.append(piece)
    finally:
        meters.pop()
    return "".join(written)


@contextmanager
def _lines_counted(meter: _Meter, file: str) -> Iterator[None]:
    def line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            meter.step()
        return line

    def called(frame: FrameType, event: str, arg: Any) -> Any:
        return line if frame.f_code.co_filename == file else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


@lru_cache(maxsize=8)
def _compiled(text: str) -> tuple[Template, list[_Meter]]:
    """A template of transformers' environment whose operations ask a meter, the last of the list."""
    # Of another text: what is constant in this one would be computed while it is compiled, uncounted.
    environment: Any = chat_template_utils._compile_jinja_template("").environment.overlay(optimized=False)
    meters = [_Meter()]
    environment.autopeft_file = "<template>"
    environment.intercepted_binops = frozenset(["+", "*", "%", "**"])
    environment.filters = {
        **{name: _metered(name, function, meters) for name, function in environment.filters.items()},
        _VALUE: lambda value: (meters[-1].size(value), value)[1],
    }
    # Jinja's generator of dummy text computes where nothing is counted.
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    environment.finalize = lambda value: (meters[-1].size(value), value)[1]
    plain_call, plain_binop = environment.call, environment.call_binop

    def call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(function, Macro):
            plain = getattr(function, "__wrapped__", function)  # Jinja's own around `str.format`
            owner, name = getattr(plain, "__self__", None), getattr(plain, "__name__", "")
            values = [value for value in (owner, *args, *kwargs.values()) if value is not None]
            _check(meters[-1], name if isinstance(owner, str) else "", values)
        return plain_call(context, function, *args, **kwargs)

    def binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = meters[-1]
        if operator == "**" and not (_small(left) and _small(right)):
            raise TooMuch("it raises numbers to powers")
        if operator in ("*", "%"):
            meter.grown(left, right)
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise TooMuch("it formats texts to a width")
        meter.size(left, right)
        return plain_binop(context, operator, left, right)

    environment.call, environment.call_binop = call, binop
    return environment.from_string(_Rewritten().visit(environment.parse(text))), meters


def _small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= _MOST_POWER


def _check(meter: _Meter, name: str, values: list[Any]) -> None:
    """Look at what a filter or method is given, before it runs."""
    meter.size(*values)
    if name in _GROWING:
        meter.grown(*values)
    if name in _FORMATS and any(isinstance(value, str) and _WIDTH.search(value) for value in values):
        raise TooMuch("it formats texts to a width")


def _metered(name: str, function: Callable[..., Any], meters: list[_Meter]) -> Callable[..., Any]:
    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _check(meters[-1], name, [*args, *kwargs.values()])
        return function(*args, **kwargs)

    return filtered


class _Rewritten(NodeTransformer):
    """`a ~ b` as a sum of texts, and each list through a filter: Jinja lets these two be counted no other
    way."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [_filtered(self.visit(part), "string") for part in node.nodes]
        found: nodes.Expr = parts[0]
        for part in parts[1:]:
            found = nodes.Add(found, part, lineno=node.lineno)
        return found

    def _list(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, _VALUE)

    visit_List = visit_Tuple = visit_Dict = _list  # noqa: N815


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
