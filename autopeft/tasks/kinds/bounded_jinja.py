"""Chat templates with bounds of time and memory.

transformers compiles a template for Jinja's sandbox, which reaches no attribute with an underscore and
changes no object, but lets a template loop and grow values as long as it likes. A child process with limits
of the system would bound that too, at seconds for each tokenizer. Here the same environment compiles the
template so that it is counted:

- each line of the compiled template that runs is a step, and the letters that its operations take in or make
  are steps: sums, products, comparisons, parts of texts, calls, filters and tests;
- what an operation could make is known from what it is given before it runs: a sum for `+` and `~`, a product
  for `*`, `center`, `replace`, `join` and others; it has to be within bounds, and so has every list. What
  iterates becomes a list for that, and numbers stay below 2^60;
- of the methods of texts, lists and maps, and of Jinja's filters, only those that are counted can be called;
- the processor's time is looked at with each step;
- what is written is added up as it comes.

All templates of public models stay far below these bounds.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from functools import lru_cache, wraps
from string import Formatter
from time import thread_time
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Macro
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

__all__ = ["TooMuch", "render"]

_STEPS, _SECONDS = 300_000, 3.0
_LETTERS_A_STEP, _COMPARED_A_STEP = 64, 4096
_LARGEST = 4_000_000  # letters of one value
_MOST_ITEMS, _LETTERS_AN_ITEM, _DEEPEST = 50_000, 8, 100
_BEYOND = 1 << 60  # hashes of smaller whole numbers differ
_MOST_POWER = 64
_LONGEST_DATE = 256  # letters that a letter of a date's format can become
_VALUE, _PART = "autopeft_value", "autopeft_part"  # filters that values go through as they are made
_LONGEST_WIDTH = 9
_PERCENT = re.compile(r"[%)]([-+ #.*0-9]*)")  # the widths of `%`
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        *("capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format"),
        *("format_map", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier"),
        *("islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower"),
        *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust"),
        *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
        *("title", "translate", "upper", "zfill"),
    }),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
}  # fmt: skip
_FILTERS = {
    *("abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape"),
    *("filesizeformat", "first", "float", "forceescape", "format", "groupby", "indent", "int", "items"),
    *("join", "last", "length", "list", "lower", "map", "max", "min", "random", "reject", "rejectattr"),
    *("replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum"),
    *("title", "tojson", "trim", "truncate", "unique", "upper", "urlencode"),
}
_FREE = {"count", "d", "default", "first", "last", "length"}  # filters that look at no item, or at one
_GROWING = {
    *("batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace"),
    *("rjust", "slice", "tojson", "translate", "zfill"),
}
_SEARCHING = {"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim"}
"""What takes as long as the product of what it is given."""
_FREE_TESTS = {
    *("boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable"),
    *("mapping", "none", "number", "sameas", "sequence", "string", "test", "true", "undefined"),
}
_ON_NUMBERS = {"divisibleby", "even", "odd", "round"}
"""What would repeat a text, or fill it up, in a number's place."""


class TooMuch(Exception):  # noqa: N818  (a reason, not an error of this package)
    """A template would take more time or memory than it may."""


class _Meter:
    """What a rendering has taken so far."""

    def __init__(self) -> None:
        self.steps, self.end = 0, thread_time() + _SECONDS

    def step(self, letters: int = 0) -> None:
        self.steps += 1 + letters // _LETTERS_A_STEP
        if self.steps > _STEPS:
            raise TooMuch(f"it takes more than {_STEPS:,} steps")
        if thread_time() > self.end:
            raise TooMuch(f"it takes more than {_SECONDS:g} seconds")

    def size(self, *values: Any) -> int:
        """Letters and items of values, counted with what they hold, and charged."""
        found = sum(map(_size, values))
        self.step(found)
        return _fitting(found)

    def grown(self, *values: Any) -> None:
        """Refuse what the product of all sizes says may become too large."""
        product = 1
        for value in values:
            if not isinstance(value, bool):
                product = _fitting(product * max(1, abs(value) if isinstance(value, int) else _size(value)))

    def searched(self, *values: Any) -> None:
        """Charge the product of all sizes, as what is looked for may be compared at each place."""
        product = 1
        for value in values:
            product *= max(1, _size(value))
        self.step(product // _COMPARED_A_STEP * _LETTERS_A_STEP)

    def listed(self, value: Any) -> Any:
        """What iterates as a list, whose items are charged; anything else as it is."""
        if not isinstance(value, Iterator):
            return value
        found = []
        for item in value:
            self.size(item)
            found.append(item)
        return found

    def made(self, value: Any, paid: int) -> Any:
        """What an operation made, charged as far as it is larger than what was `paid` for."""
        value = self.listed(value)
        # A range by itself is three numbers; what goes through it is counted as it does.
        more = 0 if isinstance(value, range) else _size(value) - paid
        if more > 0:
            self.step(more)
        return value


def _fitting(letters: int) -> int:
    if letters > _LARGEST:
        raise TooMuch(f"it makes a value of more than {_LARGEST:,} letters")
    return letters


def _size(value: Any) -> int:
    """Letters of a text; items of a list, each with its indentation and its own size; of anything else as
    much as an item.

    Raises:
        TooMuch: it has more letters, items or levels than any value may have, or a number is too large.
    """
    if isinstance(value, str):
        return _fitting(len(value))
    count, items, depth, level = 0, 0, 0, [value]
    while level:
        if depth > _DEEPEST:
            raise TooMuch(f"it makes a value of more than {_DEEPEST} levels")
        inner: list[Any] = []
        for item in level:
            count += _LETTERS_AN_ITEM + depth + _alone(item)
            inner += _held(item)
            if items + len(level) + len(inner) > _MOST_ITEMS:
                raise TooMuch(f"it makes a list of more than {_MOST_ITEMS:,} items")
            _fitting(count)
        items += len(level)
        level, depth = inner, depth + 1
    return count


def _alone(item: Any) -> int:
    """Letters of an item beside what it holds."""
    if isinstance(item, (str, bytes, bytearray)):
        return len(item)
    if isinstance(item, range):
        if len(item) > _MOST_ITEMS:
            raise TooMuch(f"it makes a list of more than {_MOST_ITEMS:,} items")
        return sum(map(_alone, (item.start, item.stop, item.step))) + _LETTERS_AN_ITEM * len(item)
    if isinstance(item, int) and abs(item) >= _BEYOND:
        raise TooMuch("it computes with numbers of more than 18 digits")
    return 0


def _held(item: Any) -> list[Any]:
    if item is None or isinstance(item, (str, int, float)):  # most are; the rest takes longer to tell
        return []
    if isinstance(item, Namespace):
        item = object.__getattribute__(item, "_Namespace__attrs")
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return list(item)
    return []


def render(text: str, most: int, **given: Any) -> str:
    """What a chat template writes.

    Args:
        most: letters.
        given: `messages` and what else transformers hands to a template.

    Raises:
        TooMuch: it takes more time or memory than any template needs, or writes more.
        Exception: whatever the template raises.
    """
    with _no_collection():
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
def _no_collection() -> Iterator[None]:
    """No garbage is collected: templates may nest, and call themselves, as deep as Python lets them, where
    finalizers of others' objects would fail."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


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
    environment.intercepted_binops = frozenset(environment.binop_table)

    def value(given: Any) -> Any:
        return meters[-1].made(given, 0)

    def part(given: Any) -> Any:
        meters[-1].step(len(given) * (1 if isinstance(given, str) else _LETTERS_AN_ITEM))
        return given

    known = {name: function for name, function in environment.filters.items() if name in _FILTERS}
    environment.filters = {name: _metered(name, function, meters) for name, function in known.items()}
    environment.filters |= {_VALUE: value, _PART: part}
    environment.tests = {
        name: function if name in _FREE_TESTS else _metered(name, function, meters)
        for name, function in environment.tests.items()
    }
    # Jinja's generator of dummy text computes where nothing is counted.
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    environment.finalize = value
    _count_calls(environment, meters)
    return environment.from_string(_Rewritten().visit(environment.parse(text))), meters


def _count_calls(environment: Any, meters: list[_Meter]) -> None:
    """Let calls and operations of an environment ask a meter."""
    plain_call, plain_binop = environment.call, environment.call_binop
    now = environment.globals["strftime_now"]

    def call(context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter, paid = meters[-1], 0
        if not isinstance(function, Macro):  # its lines are counted
            args = tuple(map(meter.listed, args))
            kwargs = {name: meter.listed(value) for name, value in kwargs.items()}
            values = [value for value in (*args, *kwargs.values()) if value is not None]
            if function is now:
                meter.grown(*values, _LONGEST_DATE)
            paid = _check_call(meter, function, values)
        return meter.made(plain_call(context, function, *args, **kwargs), paid)

    def binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = meters[-1]
        if operator == "**" and not (_small(left) and _small(right)):
            raise TooMuch("it raises numbers to powers")
        paid = meter.size(left, right)
        if operator in ("*", "%") and not (_is_number(left) and _is_number(right)):
            meter.grown(left, right)
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
        return meter.made(plain_binop(context, operator, left, right), paid)

    environment.call, environment.call_binop = call, binop


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _small(value: Any) -> bool:
    return _is_number(value) and abs(value) <= _MOST_POWER


def _check_call(meter: _Meter, function: Any, values: list[Any]) -> int:
    """Look at what a function is given, before it runs; what was charged."""
    plain = getattr(function, "__wrapped__", function)  # Jinja's own around `str.format`
    owner, name = getattr(plain, "__self__", None), getattr(plain, "__name__", "")
    # What Jinja and transformers themselves offer takes no longer than to look at what it is given.
    if type(owner).__module__ not in ("builtins", "markupsafe") or owner is None:
        return meter.size(*values)
    known = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset())
    if name not in known:
        raise TooMuch(f"it calls {type(owner).__name__}.{name}, whose time and memory are not counted")
    if isinstance(owner, str) and name in ("format", "format_map"):
        specs = [spec or "" for _, _, spec, _ in Formatter().parse(owner)]
        _check_widths(re.findall(r"[{]|\d+", " ".join(specs)))
    return _check(meter, name, [owner, *values])


def _check_widths(widths: list[str]) -> None:
    """Refuse a format of texts that asks for more letters than a value may have, or takes their number from
    what it is given."""
    if not all(width.isdecimal() and len(width) < _LONGEST_WIDTH for width in widths) or (
        sum(map(int, widths)) > _LARGEST
    ):
        raise TooMuch("it formats texts to a width")


def _check_percent(text: str) -> None:
    """The same of what stands left of `%`."""
    _check_widths(re.findall(r"[*]|[0-9]+", " ".join(_PERCENT.findall(text))))


def _check(meter: _Meter, name: str, values: list[Any]) -> int:
    """Look at what a filter, test or method is given, before it runs; what was charged."""
    paid = meter.size(*values)
    if name in _GROWING:
        # A text in another's place: the one that goes makes nothing larger.
        meter.grown(*(values[:1] + values[2:] if name == "replace" and len(values) > 2 else values))
    if name in _SEARCHING:
        meter.searched(*values)
    if name == "sum":  # a list of lists is copied with each of them
        meter.searched(values[0], values[0])
    return paid


def _metered(name: str, function: Callable[..., Any], meters: list[_Meter]) -> Callable[..., Any]:
    """A filter or test that asks a meter."""
    own = int(getattr(function, "jinja_pass_arg", None) is not None)  # what Jinja hands it first

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        meter = meters[-1]
        if name in _FREE:
            meter.step()
            return function(*args, **kwargs)
        args = (*args[:own], *map(meter.listed, args[own:]))
        kwargs = {key: meter.listed(value) for key, value in kwargs.items()}
        values = [value for value in (*args[own:], *kwargs.values()) if value is not None]
        paid = _check(meter, name, values)
        if name in _ON_NUMBERS and not _is_number(args[own]):
            raise TooMuch(f"it hands {name!r} something that is no number")
        if name == "round" and not all(map(_small, filter(_is_number, values[1:]))):
            raise TooMuch("it raises numbers to powers")
        if name == "format":
            _check_percent(str(args[own]))
        return meter.made(function(*args, **kwargs), paid)

    return counted


class _Rewritten(NodeTransformer):
    """`a ~ b` as a sum of texts; each list, part of a list or text, and what is compared through a filter:
    Jinja lets these be counted no other way."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        parts = [_filtered(self.visit(part), "string") for part in node.nodes]
        found: nodes.Expr = parts[0]
        for part in parts[1:]:
            found = nodes.Add(found, part, lineno=node.lineno)
        return found

    def _list(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, _VALUE)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _PART) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        sides: tuple[Any, ...] = (node, *node.ops)
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = _filtered(side.expr, _VALUE)
        return node

    visit_List = visit_Tuple = visit_Dict = _list  # noqa: N815


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
