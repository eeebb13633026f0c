"""YAML 1.2 text to marked trees and back, with everything that surprises people refused.

The text is read event by event with the core schema of YAML 1.2: `1e-3` is a number, `on` is a word, and
there are no dates. Duplicate keys, anchors, aliases, tags and further documents are errors, as is text
beyond the bounds on size and nesting.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.representer import SafeRepresenter

from autopeft.errors import RecipeError
from autopeft.foreign import read_plain
from autopeft.recipe.problems import MarkedDict, MarkedList, Problem, Problems
from autopeft.recipe.size import MAX_NESTING, MOST_VALUES

__all__ = ["MAX_BYTES", "MAX_NESTING", "dump_yaml", "read_text", "read_yaml"]

MAX_BYTES = 256 * 1024

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_BASED = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


class _TooLargeError(Exception):
    """Nesting or the number of values went beyond its bound; reading stops."""


@dataclass
class _Reader:
    """Builds a marked tree from YAML events and gathers what is refused."""

    events: Iterator[Event]
    problems: Problems
    values: int = 0

    def node(self, event: Event, depth: int) -> Any:
        """The tree that begins with an event, `depth` levels deep."""
        if depth > MAX_NESTING:
            self.refuse(event, f"nested more than {MAX_NESTING} levels deep; flatten it.")
            raise _TooLargeError
        self.values += 1
        if self.values > MOST_VALUES:
            self.refuse(event, f"more than {MOST_VALUES:,} values, which are the most that are read.")
            raise _TooLargeError
        if isinstance(event, AliasEvent):
            self.refuse(
                event,
                f"alias '*{getattr(event, 'anchor', '')}': aliases are not allowed; write the value out.",
            )
            return None
        anchor = getattr(event, "anchor", None)
        if anchor:
            self.refuse(event, f"anchor '&{anchor}': anchors are not allowed; write the value out.")
        tag = getattr(event, "tag", None)
        if tag:
            self.refuse(event, f"tag {str(tag)!r}: tags are not allowed; write the plain value.")

        if isinstance(event, SequenceStartEvent):
            items = MarkedList(line=_line(event))
            for inner in self.events:
                if isinstance(inner, SequenceEndEvent):
                    break
                items.lines.append(_line(inner))
                items.append(self.node(inner, depth + 1))
            return items

        if isinstance(event, MappingStartEvent):
            tree = MarkedDict(line=_line(event))
            for inner in self.events:
                if isinstance(inner, MappingEndEvent):
                    break
                key = self.node(inner, depth + 1)
                value = self.node(next(self.events), depth + 1)
                if isinstance(key, (MarkedDict, MarkedList)):
                    self.refuse(inner, "a key must be a word, not a list or a mapping.")
                    continue
                word = key if isinstance(key, str) else str(getattr(inner, "value", key))
                if word == "<<":
                    self.refuse(inner, "merge key '<<': not allowed; write the keys out.")
                elif word in tree:
                    first = tree.lines[word]
                    self.refuse(inner, f"duplicate key {word!r} (first on line {first}); keep one of them.")
                else:
                    tree[word] = value
                    tree.lines[word] = _line(inner)
            return tree

        return _scalar(str(getattr(event, "value", "")), plain=getattr(event, "style", None) is None)

    def refuse(self, event: Event, message: str) -> None:
        self.problems.note(Problem((), message, _line(event)))


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str, *, plain: bool) -> Any:
    """A scalar by the core schema of YAML 1.2; quoted and block scalars are strings."""
    if not plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INFINITY.fullmatch(text)
    if infinite:
        return float(f"{infinite[1]}inf")
    return float("nan") if _NAN.fullmatch(text) else text


def read_yaml(text: str, source: str) -> Any:
    """The tree of the one document in `text`.

    Raises:
        RecipeError: the text is not YAML, too large, too deeply nested, or uses what is refused: one line
            `source:line: …` for each problem.
    """
    problems = Problems(None, source)
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > MAX_BYTES:
        raise RecipeError(f"{source}: {size} bytes; at most {MAX_BYTES // 1024} KiB are read.")
    tree: Any = None
    try:
        parser = YAML(typ="safe", pure=True)
        reader = _Reader(iter(parser.parse(io.StringIO(text))), problems)
        documents = 0
        for event in reader.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents == 2:
                    reader.refuse(event, "a second document starts here; write one document per file.")
                    break
            elif isinstance(event, (MappingStartEvent, SequenceStartEvent, ScalarEvent, AliasEvent)):
                tree = reader.node(event, 1)
    except _TooLargeError:
        tree = None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else int(mark.line) + 1
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        problems.note(Problem((), f"not valid YAML: {what}.", line))
    # A version of YAML or a character that there is not is an error of the parser's own.
    except (YAMLError, ValueError, OverflowError, AssertionError) as error:
        problems.note(Problem((), f"not valid YAML: {' '.join(str(error).split())}"))
    problems.check()
    return tree


def read_text(path: FilePath) -> str:
    """The text of a file of at most `MAX_BYTES`, as UTF-8.

    Raises:
        RecipeError: the file cannot be read, is no plain file, is too large or is not UTF-8.
    """
    data = read_plain(path, MAX_BYTES, RecipeError)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


_PLAIN = re.compile(r"[A-Za-z0-9_]([\w ./%+-]*[\w%])?", re.ASCII)


class _Representer(SafeRepresenter):
    """Writes shared values out, and quotes every text that is not plainly one word or a few."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: Any) -> Any:
        style = None if _PLAIN.fullmatch(data) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(tree: Any) -> str:
    """YAML text of plain data: keys in their order, innermost containers on one line."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.sort_base_mapping_type_on_output = False
    writer.allow_unicode = True
    writer.width = 110
    writer.Representer = _Representer
    stream = io.StringIO()
    writer.dump(tree, stream)
    return stream.getvalue()
