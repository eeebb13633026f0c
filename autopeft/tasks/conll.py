"""Sentences with a word and its tags on each line, and an empty line between sentences, as the CoNLL shared
tasks have them."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.errors import DataError

__all__ = ["CONLL_SUFFIXES", "read_sentences"]

CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
_MOST_FIELDS = 100
_DOCUMENT = "-DOCSTART-"  # a line between documents


def read_sentences(lines: Sequence[str], where: str) -> dict[str, list[list[str]]]:
    """The columns of a file, a row for each sentence: `tokens` are the first field of its lines and `tags`
    the last; fields between them are `column_2`, `column_3`, … A file of words alone has `tokens` alone.

    Fields are parted by tabs where a line has one, else by white space.

    Raises:
        DataError: lines have different numbers of fields, or far too many, or there are none.
    """
    sentences: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == _DOCUMENT:
            sentences.append([])
            continue
        width = width or len(fields)
        if width > _MOST_FIELDS:
            raise DataError(
                f"{where}, line {number}: {width:,} fields; there are up to {_MOST_FIELDS} in a line."
            )
        if len(fields) != width or not all(field.strip() for field in fields):
            raise DataError(
                f"{where}, line {number}: {len(fields)} fields, but those before have {width}, none of them "
                "empty; each line is a word and its tags, and an empty line ends a sentence."
            )
        sentences[-1].append(fields)
    whole = [sentence for sentence in sentences if sentence]
    if not whole:
        raise DataError(f"{where} has no words.")
    names = ["tokens", *(f"column_{i}" for i in range(2, width)), *(["tags"] if width > 1 else [])]
    return {name: [[fields[i] for fields in own] for own in whole] for i, name in enumerate(names)}
