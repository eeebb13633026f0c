"""Mutations of valid inputs: of trees, of texts, of bytes, and hostile values.

Everything is drawn from the `Random` that is given, and no result depends on the machine or on the order of a
set.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from autopeft.recipe.yaml_text import dump_yaml, read_yaml

from .canary import CODE

__all__ = ["bytes_of", "data", "many", "of_yaml", "scalar", "text", "tree", "word", "written"]

WORDS: tuple[str, ...] = (
    *("", " ", "\t", "\n", "\r\n", "null", "true", "~", "-", "*", "&a", "<<", "$", "$x", "all", "as"),
    *("head", "__class__"),
    *("__init__", "self", "constructor", "training", "forward", "name", "..", ".", "/", "\\", "C:\\"),
    *("con", "%s%n", "{0}"),
    *("../outside/secret.csv", "../outside", "../../../../etc/passwd", "/etc/passwd", "/dev/zero"),
    *("/dev/stdin", "/proc/self/mem"),
    *("~nosuchuser/x", "~", "~/", "~root", "$HOME", "file:///etc/passwd", "http://127.0.0.1:9/x"),
    *("s3://a/b", "zip://a::b", "a\x00b"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202eevil", "\u200b", "\ufeff", "\u2028"),
    *("\u0000", "\ud800", "\udfff"),
    *("é", "e\u0301", "ſ", "К", "𝓁𝑜𝓇𝒶", "lοra", "١٢", "²", "<script>alert(1)</script>"),
    *("'; DROP TABLE x; --", "[link](javascript:0)"),
    *("a" * 300, "a" * 5000, "ä" * 300, "x/" * 200, "a.b.c", "a[0]", "lora_2", "layer_0.on", "1_0"),
    *("0x1f", "0o17", "1e5", "nan", "inf"),
    *CODE,
)  # fmt: skip
_FLOATS = 1e300  # integers beyond are no floats
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 63, 64, 65, 255, 1000, 9999, 10000, 10001, 100000, 2**31 - 1, 2**31, 2**32),
    *(2**53 + 1,),
    *(2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**18, 10**40, 10**400, -(10**400), 10**4290),
    *(10**5000,),
    *(0.0, -0.0, 0.1, 0.5, 1.5, -1e-9, 5e-324, 1e-300, 1e300, 1.7976931348623157e308, float("inf")),
    *(float("-inf"), float("nan")),
)  # fmt: skip
TOKENS: tuple[str, ...] = (
    *("[", "]", "{", "}", ",", ":", ": ", "- ", "? ", "| ", "> ", "#", "'", '"', "\\", "\\u", "\\ud800"),
    *("\\x1b", "!", "%", "@", "`"),
    *("&a ", "*a", "<<: *a", "!!str ", "!!binary ", "!!set ", "!!python/object:os.system ", "!a "),
    *("---\n", "...\n", "%YAML 9.9\n"),
    *("\n", "\n\n", "\r", "\t", "\x00", "\x07", "\x1b[2J", "\x7f", "\x85", "\xa0", "\u2028", "\u202e"),
    *("\ufeff", "\ud800", "\U0010ffff"),
    *(".inf", ".nan", "NaN", "Infinity", "1e999", "-1e999", "1e-999", "9" * 500, "9" * 5000),
    *("0." + "1" * 400, "0x" + "f" * 400),
    *("[" * 30, "{" * 30, "[" * 3000, "{a: " * 3000, '{"a":' * 3000, "- " * 3000, "[*a,*a,*a]", "null"),
    *("true", "~", '""', "[]", "{}"),
)  # fmt: skip


def word(random: Random) -> str:
    """A hostile text."""
    return random.choice(WORDS)


def scalar(random: Random) -> Any:
    """A hostile value: text, a number, a truth value, nothing, or a small container."""
    kind = random.randrange(6)
    if kind < 2:
        return word(random)
    if kind < 5:
        return random.choice(NUMBERS)
    return copy.deepcopy(
        random.choice((None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {}}))
    )


def many(random: Random, most: int) -> int:
    """A number from 1 to `most`, small ones more often."""
    return min(random.randint(1, most), random.randint(1, most))


def tree(
    random: Random, valid: Any, *, wrap: Callable[[Random, Any], Any] | None = None, most: int = 3
) -> Any:
    """A tree of dicts, lists and scalars with some edits.

    Args:
        wrap: puts a value into something that the grammar allows around it, such as a composition.
        most: edits.
    """
    root = [copy.deepcopy(valid)]
    # Half of the cases keep to what is nearly valid, so that they are refused late, if at all.
    edits = random.choice((_EDITS, _SMALL_EDITS))
    for _ in range(many(random, most)):
        places = _places(root)
        holder, key = random.choice(places)
        random.choice(edits)(random, holder, key, places)
        if not root:  # the tree itself was deleted
            root.append(scalar(random))
        if wrap is not None and random.random() < 0.35:
            holder, key = random.choice(_places(root))
            for _ in range(many(random, 30 if edits is _EDITS else 4)):
                holder[key] = wrap(random, holder[key])
    return root[0]


def _places(root: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a container, outer ones first."""
    found: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting and len(found) < 5000:
        holder = waiting.pop(0)
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found


def _replace(random: Random, holder: Any, key: Any, places: Any) -> None:
    holder[key] = scalar(random)


def _nudge(random: Random, holder: Any, key: Any, places: Any) -> None:
    """A near number of the same or of another type; another value where it is none."""
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        holder[key] = scalar(random)
        return
    real = value if abs(value) < _FLOATS else 1.0
    # Python writes no number of more than 4,300 digits out.
    said = "9" * 5000 if isinstance(value, int) and abs(value) >= 10**4299 else str(value)
    choices = (
        *(-value, value + 1, value - 1, value * 10, value * 1000, real + 0.5, float(real), said),
        *([value], value * 10**12, 0, bool(value), f"{said}%", f"{said}k"),
    )
    holder[key] = random.choice(choices)


def _step(random: Random, holder: Any, key: Any, places: Any) -> None:
    """A number nearby, or the other truth value; a word of the tree in place of another."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, (int, float)):
        half = value / 2 if abs(value) < _FLOATS else value // 2
        holder[key] = random.choice((value + 1, value - 1, value * 2, value // 2, 0, 1, half))
    elif isinstance(value, str):
        words = [holder[key] for holder, key in places if isinstance(holder[key], str)]
        holder[key] = random.choice(words)
    else:
        _delete(random, holder, key, places)


def _twice(random: Random, holder: Any, key: Any, places: Any) -> None:
    """An element twice; in a mapping, what another key has."""
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(holder[random.choice(list(holder))])


def _delete(random: Random, holder: Any, key: Any, places: Any) -> None:
    del holder[key]


def _repeat(random: Random, holder: Any, key: Any, places: Any) -> None:
    """An element several times; a key once more under a hostile name."""
    if isinstance(holder, list):
        times = random.choice((1, 2, 5, 50))
        holder[key:key] = [copy.deepcopy(holder[key]) for _ in range(times)]
    else:
        holder[word(random)] = copy.deepcopy(holder[key])


def _rename(random: Random, holder: Any, key: Any, places: Any) -> None:
    if isinstance(holder, list):
        random.shuffle(holder)
        return
    value = holder.pop(key)
    text = str(key)
    at = random.randrange(len(text) + 1)
    new = random.choice((word(random), text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], text.upper()))
    holder[new] = value


def _move(random: Random, holder: Any, key: Any, places: Any) -> None:
    """What stands in one place comes to stand in another as well."""
    other, there = random.choice(places)
    holder[key] = copy.deepcopy(other[there])


def _enclose(random: Random, holder: Any, key: Any, places: Any) -> None:
    value = holder[key]
    for _ in range(random.choice((1, 1, 2, 25))):
        value = random.choice(
            ([value], {word(random): value}, [value, copy.deepcopy(value)] if _small(value) else [value])
        )
    holder[key] = value


def _small(value: Any) -> bool:
    try:
        return len(str(value)) < 500
    except ValueError:  # a number of more digits than Python writes
        return False


_EDITS = (_replace, _replace, _nudge, _nudge, _delete, _repeat, _rename, _move, _move, _enclose)
_SMALL_EDITS = (_step, _step, _step, _delete, _delete, _twice)


def of_yaml(valid: str) -> Any:
    """What a valid YAML text holds, as plain data without its lines, so that it can be written again."""
    return json.loads(json.dumps(read_yaml(valid, "valid")))


def written(random: Random, found: Any) -> bytes:
    """A tree as YAML in blocks, or in flow as JSON is."""
    try:
        if random.randrange(2):
            return bytes_of(dump_yaml(found))
        return bytes_of(json.dumps(found, ensure_ascii=random.random() < 0.5))
    except ValueError:  # a number of more digits than Python writes
        return b"[" + b"9" * 5000 + b"]"


def text(random: Random, valid: str, *, tokens: Sequence[str] = (), most: int = 3) -> bytes:
    """A text with some edits of its letters, words, numbers and lines, as bytes that need not be UTF-8."""
    found = valid
    for _ in range(random.choice((1, many(random, most)))):
        found = random.choice(_TEXT_EDITS)(random, found, (*TOKENS, *tokens))
    coded = bytes_of(found)
    kind = random.randrange(12)
    if kind == 0:
        return data(random, coded, most=2)
    if kind == 1:
        return found.encode(random.choice(("utf-16", "utf-8-sig", "utf-32")), errors="surrogatepass")
    return coded


def bytes_of(found: str) -> bytes:
    """The text in UTF-8, lone surrogates as they are."""
    return found.encode("utf-8", errors="surrogatepass")


def _insert(random: Random, found: str, tokens: Sequence[str]) -> str:
    at = random.randrange(len(found) + 1)
    return found[:at] + random.choice(tokens) + found[at:]


def _cut(random: Random, found: str, tokens: Sequence[str]) -> str:
    at = random.randrange(len(found) + 1)
    return found[:at] + found[at + random.choice((1, 2, 10, len(found))) :]


def _again(random: Random, found: str, tokens: Sequence[str]) -> str:
    """A stretch of the text several times."""
    at = random.randrange(len(found) + 1)
    part = found[at : at + random.choice((1, 5, 40))]
    return found[:at] + part * random.choice((2, 3, 20, 2000)) + found[at:]


def _line_again(random: Random, found: str, tokens: Sequence[str]) -> str:
    lines = found.split("\n")
    at = random.randrange(len(lines))
    return "\n".join([*lines[:at], *([lines[at]] * random.choice((2, 3, 1000))), *lines[at + 1 :]])


def _lines_moved(random: Random, found: str, tokens: Sequence[str]) -> str:
    lines = found.split("\n")
    a, b = random.randrange(len(lines)), random.randrange(len(lines))
    lines[a], lines[b] = (
        random.choice((lines[b], " " + lines[a], lines[a].lstrip(), lines[a] + lines[b])),
        lines[a],
    )
    return "\n".join(lines)


def _other_number(random: Random, found: str, tokens: Sequence[str]) -> str:
    numbers = list(re.finditer(r"\d+(\.\d+)?", found))
    if not numbers:
        return _insert(random, found, tokens)
    match = random.choice(numbers)
    new = random.choice(
        (_number(random), "-" + match[0], match[0] + "0" * 12, match[0] + ".5", match[0] + "e400")
    )
    return found[: match.start()] + new + found[match.end() :]


def _number(random: Random) -> str:
    value = random.choice(NUMBERS)
    if isinstance(value, float):
        return repr(value)
    # Python writes no number of more than 4,300 digits out.
    return f"1{'0' * 5000}" if value > 10**4299 else str(value)


def _other_word(random: Random, found: str, tokens: Sequence[str]) -> str:
    words = list(re.finditer(r"[A-Za-z_]\w*", found))
    if not words:
        return _insert(random, found, tokens)
    match, other = random.choice(words), random.choice(words)
    new = random.choice((word(random), other[0], match[0][:-1], match[0] + "x", json.dumps(word(random))))
    return found[: match.start()] + new + found[match.end() :]


_TEXT_EDITS = (
    _insert,
    _insert,
    _cut,
    _again,
    _line_again,
    _lines_moved,
    _other_number,
    _other_word,
    _other_word,
)


def data(random: Random, valid: bytes, *, most: int = 4) -> bytes:
    """Bytes with bits flipped, stretches cut out, repeated or filled, or the end missing."""
    found = bytearray(valid)
    for _ in range(many(random, most)):
        at = random.randrange(len(found) + 1)
        kind = random.randrange(6)
        if kind <= 1 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            del found[at : at + random.choice((1, 4, 64))]
        elif kind == 3:
            found[at:at] = found[at : at + random.choice((1, 8, 64))] * random.choice((1, 4))
        elif kind == 4:
            size = random.choice((1, 4, 8))
            found[at : at + size] = random.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * size
        else:
            del found[at:]
    return bytes(found)
