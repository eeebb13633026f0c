"""The hub's layout of translations: a column `translation` of one text for each language.

`{"translation": {"en": "Go.", "es": "Ve."}}` becomes the columns `translation.en` and `translation.es`, in
the order in which the first row has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopeft.errors import DataError
from autopeft.tasks.table import Table

__all__ = ["language_columns", "with_languages"]

_COLUMN = "translation"


def with_languages(table: Table) -> Table:
    """The table with a column for each language in place of its column of translations, where it has one.

    Raises:
        DataError: that column has something else in some rows.
    """
    values = table.columns.get(_COLUMN, ())
    if not any(isinstance(value, Mapping) for value in values):
        return table
    wrong = [i + 1 for i, v in enumerate(values) if v is not None and not isinstance(v, Mapping)]
    if wrong:
        raise DataError(
            f"{table.where}: column {_COLUMN!r} has no texts by language in row {wrong[0]}, as in others."
        )
    names = dict.fromkeys(str(name) for value in values for name in value or {} if isinstance(name, str))
    own: dict[str, Any] = {
        f"{_COLUMN}.{name}": [(value or {}).get(name) for value in values] for name in names
    }
    others = {name: column for name, column in table.columns.items() if name != _COLUMN}
    return replace(table, columns={**own, **others})


def language_columns(table: Table) -> list[str]:
    """The columns of languages that `with_languages` made."""
    return [name for name in table.columns if name.startswith(f"{_COLUMN}.")]
