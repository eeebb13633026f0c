"""Classes that the files of one split number, each in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.errors import DataError
from autopeft.tasks.table import Table

__all__ = ["numbered_alike"]

_HIDDEN = -1
Names = tuple[str, ...]


def numbered_alike(tables: Sequence[Table], known: Mapping[str, Names]) -> list[Table]:
    """The tables with one numbering of the classes of each column, so that their rows can be put together.

    A number means what its own table calls it. Where tables name the classes of a column differently, or only
    some name them, all get the numbers of `known`, else those of all names in the order in which they come;
    names that stand in place of numbers, and classes in lists, too. A number without a name becomes -1. Where
    the tables agree they stay as they are, unless `known` has the same names and others in another order.
    A table whose names are all others than those known is renamed by their places.

    Args:
        known: names that hold for all tables, by column; tables without names of their own number by them.

    Raises:
        DataError: a table numbers classes that it does not name, where others do and `known` does not; or
            has some of the known names, and others.
    """
    found = list(tables)
    for column in dict.fromkeys(name for table in tables for name in table.label_names):
        noted = {table.label_names.get(column) for table in found}
        joint = known.get(column)
        if joint is None and len(noted) > 1:
            joint = _together(found, column)
        if joint is not None and (len(noted) > 1 or all(set(names or ()) <= set(joint) for names in noted)):
            found = [_renumbered(_renamed(table, column, joint), column, joint) for table in found]
    return found


def _renamed(table: Table, column: str, joint: Names) -> Table:
    """A table whose names of classes are all others than the joint ones with these in their places, as a
    README may rename classes; any other as it is.

    Raises:
        DataError: some of its names are among the joint ones, and some are not.
    """
    own = table.label_names.get(column)
    if own is None or set(own) <= set(joint):
        return table
    strange = next(name for name in own if name not in joint)
    if len(own) > len(joint) or not set(own).isdisjoint(joint):
        raise DataError(
            f"{table.where}: column {column!r} has a class {strange!r}, which the folder's README does not "
            f"name ({', '.join(map(repr, joint[:20]))}); name it there, or name no classes there."
        )
    columns = {**table.columns, column: list(map(_renumbering(own, own), table.columns[column]))}
    return replace(table, columns=columns, label_names={**table.label_names, column: joint})


def _together(tables: Sequence[Table], column: str) -> Names:
    """All names of a column's classes, of tables that note none those that stand in the column."""
    first = next(table for table in tables if column in table.label_names)
    names: dict[str, None] = {}
    for table in tables:
        noted = table.label_names.get(column)
        if noted is None:
            _refuse_numbers(table, column, first)
            noted = tuple(v for v in _flat(table.columns[column]) if isinstance(v, str) and v.strip())
        names |= dict.fromkeys(noted)
    return tuple(names)


def _refuse_numbers(table: Table, column: str, other: Table) -> None:
    values = _flat(table.columns[column])
    number = next((v for v in values if isinstance(v, int | float) and v >= 0), None)
    if number is not None:
        raise DataError(
            f"{table.where}: column {column!r} has {number!r} and no names of its classes, where "
            f"{other.where} names its own; the numbers of one need not be those of the other. Write names "
            "in place of the numbers, or name the classes in the folder's README (dataset_info, class_label)."
        )


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _renumbered(table: Table, column: str, joint: Names) -> Table:
    own = table.label_names.get(column)
    if own == joint:
        return table
    columns = {**table.columns, column: list(map(_renumbering(own, joint), table.columns[column]))}
    return replace(table, columns=columns, label_names={**table.label_names, column: joint})


def _renumbering(own: Names | None, joint: Names) -> Callable[[Any], Any]:
    """What turns a class by its number among its `own` names, or by its name, into its place in `joint`."""
    places = {name: i for i, name in enumerate(joint)}

    def renumber(value: Any) -> Any:
        if isinstance(value, list):
            return [renumber(held) for held in value]
        if own is not None and isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < len(own):
                return _HIDDEN
            value = own[value]
        return places.get(value, value) if isinstance(value, str) else value

    return renumber
