"""SQuAD's original layout, as a table: articles of paragraphs, each a context with its questions.

`{"data": [{"title": …, "paragraphs": [{"context": …, "qas": [{"question": …, "answers": […]}]}]}]}`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autopeft.errors import DataError

__all__ = ["is_squad", "squad_columns"]

_SHARE, _FLOOR = 50, 16 << 20
"""Letters of contexts, once for each question, for each letter of a file, and how many any file may have."""


def is_squad(found: Any) -> bool:
    """Whether JSON is in this layout, as far as its first article says."""
    articles = found.get("data") if isinstance(found, dict) else None
    return (
        isinstance(articles, list)
        and bool(articles)
        and isinstance(articles[0], dict)
        and isinstance(articles[0].get("paragraphs"), list)
    )


def squad_columns(found: dict[str, Any], where: str, letters: int) -> dict[str, list[Any]]:
    """Columns `id`, `title`, `question`, `context` and, where a question has some, `answers`, a row for each
    question, in their order.

    Args:
        letters: of the file.

    Raises:
        DataError: something is not as the layout has it, or a text stands before far too many questions.
    """
    rows = list(_rows(found["data"], where, max(_FLOOR, _SHARE * letters)))
    names = ("id", "title", "question", "context", "answers")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    if all(value is None for value in columns["answers"]):
        del columns["answers"]
    return columns


def _rows(articles: list[Any], where: str, most: int) -> Iterator[tuple[Any, ...]]:
    used = 0
    for i, article in enumerate(articles, start=1):
        for paragraph in _listed(article, "paragraphs", f"{where}: article {i}"):
            place = f"{where}: a paragraph of article {i}"
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for question in _listed(paragraph, "qas", place):
                if not isinstance(question, dict):
                    raise DataError(f"{place} has a question that is no object.")
                used += len(context) if isinstance(context, str) else 0
                if used > most:
                    raise DataError(
                        f"{place}: its questions and those before have more than {most:,} letters of "
                        "context; this is no file of questions on texts."
                    )
                yield (
                    question.get("id"), article.get("title"), question.get("question"), context,
                    question.get("answers"),
                )  # fmt: skip


def _listed(value: Any, name: str, where: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{where} has no list {name!r}, as SQuAD's layout has it.")
    return found
