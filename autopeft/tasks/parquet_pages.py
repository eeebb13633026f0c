"""How many values the pages of a Parquet file hold, by what their headers say.

pyarrow ends the process where it is asked for the figures of a damaged file's columns, and what the end of a
file says of its columns need not be what is in them. Headers are Thrift's compact protocol (parquet-format,
`parquet.thrift`); the numbers of fields below are those of that file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

__all__ = ["values_in_pages"]

_TAIL = 8  # bytes: the length of the footer, and `PAR1`
_LARGEST_HEADER = 16 << 20  # as pyarrow has it
_FIRST_LOOK = 1 << 10
_DEEPEST = 32
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_WHOLE = (_I16, _I32, _I64)


@dataclass(frozen=True)
class _Chunk:
    """Where the pages of a column in a group of rows lie, and how many values they are said to hold."""

    start: int
    end: int
    values: int


def values_in_pages(file: IO[bytes], widths: Mapping[int, int], most: int) -> int:
    """Bytes that the values of some columns take when they are unpacked; counting ends above `most`.

    Args:
        file: a Parquet file that pyarrow has opened, and so found to have a footer.
        widths: of the columns to be counted by their place in the schema, bytes of a value.

    Raises:
        ValueError: a header is none, or lies elsewhere than in the file.
    """
    size = file.seek(0, 2)
    file.seek(size - _TAIL)
    length = int.from_bytes(file.read(4), "little")
    if length > size - _TAIL:
        raise ValueError("the footer is longer than the file")
    file.seek(size - _TAIL - length)
    total = 0
    for place, chunk in _chunks(_Compact(file.read(length)), widths):
        for values in _pages(file, chunk, size):
            total += values * widths[place]
            if total > most:
                return total
    return total


class _Compact:
    """Thrift's compact protocol, as far as it takes to find some fields and pass over others."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise EOFError
        self.at += 1
        return self.data[self.at - 1]

    def natural(self) -> int:
        found = shift = 0
        while True:
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("a number of a header is too large")

    def whole(self) -> int:
        found = self.natural()
        return (found >> 1) ^ -(found & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; whoever asks reads or passes over its value."""
        field = 0
        while (head := self.byte()) & 0x0F != _STOP:
            field = field + (head >> 4) if head >> 4 else self.whole()
            yield field, head & 0x0F

    def items(self) -> tuple[int, int]:
        """Length and type of a list."""
        head = self.byte()
        return (self.natural() if head >> 4 == 0x0F else head >> 4), head & 0x0F

    def numbers(self, wanted: Collection[int]) -> dict[int, int]:
        """The whole numbers among the fields of a struct that are wanted."""
        found = {}
        for field, kind in self.fields():
            if field in wanted and kind in _WHOLE:
                found[field] = self.whole()
            else:
                self.skip(kind)
        return found

    def skip(self, kind: int, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise ValueError("a header is nested too deeply")
        if kind == _BYTE:
            self.at += 1
        elif kind in _WHOLE:
            self.natural()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self.natural()  # first: it moves on itself
            self.at += length
        elif kind in (_LIST, _SET):
            count, held = self.items()
            for _ in range(count):
                self._skip_item(held, depth)
        elif kind == _MAP:
            count = self.natural()
            kinds = self.byte() if count else 0
            for _ in range(count):
                self._skip_item(kinds >> 4, depth)
                self._skip_item(kinds & 0x0F, depth)
        elif kind == _STRUCT:
            for _, held in self.fields():
                self.skip(held, depth + 1)
        elif kind not in (_TRUE, _FALSE):  # whose value is their type
            raise ValueError("a header has a field of no known type")

    def _skip_item(self, kind: int, depth: int) -> None:
        # A truth value takes a byte in a list alone.
        self.skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
        if self.at > len(self.data):
            raise EOFError


def _chunks(footer: _Compact, wanted: Collection[int]) -> Iterator[tuple[int, _Chunk]]:
    """Of `FileMetaData` the columns of each group of rows that are wanted, with their places."""
    try:
        for field, kind in footer.fields():
            if (field, kind) != (4, _LIST):
                footer.skip(kind)
                continue
            for _ in range(footer.items()[0]):
                yield from _chunks_of_group(footer, wanted)
    except EOFError as error:
        raise ValueError("the footer ends within a field") from error


def _chunks_of_group(footer: _Compact, wanted: Collection[int]) -> Iterator[tuple[int, _Chunk]]:
    """Of a `RowGroup`."""
    for field, kind in footer.fields():
        if (field, kind) != (1, _LIST):
            footer.skip(kind)
            continue
        for place in range(footer.items()[0]):
            for of_chunk, held in footer.fields():
                if (of_chunk, held) != (3, _STRUCT):
                    footer.skip(held)
                    continue
                said = footer.numbers((5, 7, 9, 11))  # values, bytes, first data page, dictionary page
                if place in wanted:
                    yield place, _chunk(said)


def _chunk(said: Mapping[int, int]) -> _Chunk:
    if not {5, 7, 9} <= said.keys():
        raise ValueError("the footer does not say where a column lies")
    start = said[11] if 0 < said.get(11, 0) < said[9] else said[9]
    return _Chunk(start, start + said[7], said[5])


def _pages(file: IO[bytes], chunk: _Chunk, size: int) -> Iterator[int]:
    """The values of each page with data, as far as pyarrow reads."""
    at, seen = chunk.start, 0
    while seen < chunk.values and at < chunk.end:
        if not 0 <= at < size:
            raise ValueError("a page lies outside the file")
        said, values, length = _page(file, at)
        if said < 0 or values < 0:
            raise ValueError("a page has a length below 0")
        at, seen = at + length + said, seen + values
        yield values


def _page(file: IO[bytes], at: int) -> tuple[int, int, int]:
    """Of the page at a place its bytes, its values (0 of a dictionary) and the bytes of its header."""
    look = _FIRST_LOOK
    while True:
        file.seek(at)
        data = file.read(look)
        header = _Compact(data)
        try:
            length = values = 0
            for field, kind in header.fields():
                if field == 3 and kind in _WHOLE:
                    length = header.whole()
                elif field in (5, 8) and kind == _STRUCT:  # of either version
                    values = header.numbers((1,)).get(1, 0)
                else:
                    header.skip(kind)
            if header.at <= len(data):
                return length, values, header.at
        except EOFError:
            pass  # the header is longer than what was read of it: more is read below, as far as there is more
        if len(data) < look or look >= _LARGEST_HEADER:
            raise ValueError("a page's header ends within a field")
        look *= 8
