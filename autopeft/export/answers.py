"""What a hybrid is asked, and what it answers, row for row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from autopeft.errors import DataError, UsageError
from autopeft.foreign import local_path
from autopeft.tasks.files import SUFFIXES, read_file, read_lines
from autopeft.tasks.memory import tables_in
from autopeft.tasks.split import Split
from autopeft.tasks.table import ColumnNames, Table
from autopeft.tasks.translations import with_languages
from autopeft.training.options import is_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

    from autopeft.export.arguments import PredictArguments
    from autopeft.export.trained import TrainedHybrid

    Texts: TypeAlias = str | Sequence[str] | Path | Dataset | DataFrame
else:  # they take seconds to import
    Texts = Any

__all__ = ["PROBLEM", "Questions", "Texts", "answers", "read_questions"]

PROBLEM = "problem"  # the key of a row that cannot be answered
_TEXT, _PAIR = "text", "text_pair"


@dataclass(frozen=True)
class Questions:
    """Rows that are to be answered.

    Attributes:
        texts, pairs: of all rows, as they came; of images their names.
        problems: of the rows that cannot be answered why.
        rows: those that can, in their order; `None` where there are none.
    """

    texts: list[Any]
    pairs: list[Any] | None
    problems: Mapping[int, str]
    rows: Split | None


def read_questions(known: TrainedHybrid, texts: Texts, given: PredictArguments) -> Questions:
    """Read what a hybrid is asked: texts, a file of lines or of a table, or a table in memory; images where
    its kind of task takes them.

    Raises:
        UsageError: there are second texts for a hybrid of single texts or none for one of pairs, or there are
            not as many of them as of texts.
        DataError: the data cannot be read, have no rows, or have no column of texts.
    """
    own = known.kind.schema.asked_table(texts)
    if own is not None:
        table, named = own, ColumnNames()
    elif _is_table(texts):
        table, named = _of_table(known, texts, given)
    else:
        table, named = _of_texts(known, texts, given)
    if not len(table):
        raise DataError(f"{table.where} has no rows: there is nothing to predict.")
    columns = known.kind.schema.text_columns(table, named, pair=known.pairs)
    problems = known.kind.schema.unanswerable(table, columns)
    good = [i for i in range(len(table)) if i not in problems]
    rows: Split | None = None
    if good:
        raw = known.kind.schema.read_texts(table.take(good), columns, known.use)
        rows = Split(raw.texts, raw.pairs, raw.labels, raw.fields)
    pairs = None if columns.text_pair is None else list(table.columns[columns.text_pair])
    shown = [known.kind.schema.shown(value, i) for i, value in enumerate(table.columns[columns.text])]
    return Questions(shown, pairs, problems, rows)


def _is_table(texts: Any) -> bool:
    return is_rows(texts) or (isinstance(texts, Path) and texts.suffix.lower() in SUFFIXES)


def _of_table(known: TrainedHybrid, data: Any, given: PredictArguments) -> tuple[Table, ColumnNames]:
    if given.text_pair is not None:
        raise UsageError(
            "The second texts of a table stand in one of its columns: name it with --text-pair-column "
            "(text_pair_column=…) and leave text_pair out."
        )
    if known.pairs is False and given.text_pair_column is not None:
        raise UsageError("This hybrid was trained on single texts; leave out text_pair_column.")
    table = with_languages(_read(data))
    # A column that the hybrid was trained on need not be named again.
    text, pair, label = (
        name if name in table.columns else None
        for name in (known.columns.text, known.columns.text_pair, known.columns.label)
    )
    return table, ColumnNames(given.text_column or text, given.text_pair_column or pair, label)


def _read(data: Any) -> Table:
    if not isinstance(data, Path):
        tables = tables_in(data)
        if len(tables) > 1:
            raise UsageError(
                f"One table is answered at a time, but got {', '.join(tables)}; hand over one of them."
            )
        return tables["train"]
    path = local_path(data, DataError)
    if not path.exists():
        raise DataError(f"There is no file {data}.")
    return read_file(path)


def _of_texts(known: TrainedHybrid, texts: Any, given: PredictArguments) -> tuple[Table, ColumnNames]:
    if given.text_column is not None or given.text_pair_column is not None:
        raise UsageError(
            "text_column and text_pair_column name columns of a table (CSV, JSONL, Parquet, or in memory); "
            "texts and files with one text a line have none."
        )
    where = str(texts) if isinstance(texts, Path) else "The list of texts"
    if isinstance(texts, Path):
        first = read_lines(local_path(texts, DataError))
    else:
        first = [texts] if isinstance(texts, str) else list(texts)
    second = None if given.text_pair is None else list(given.text_pair)
    if known.pairs is False and second is not None:
        raise UsageError("This hybrid was trained on single texts; leave out text_pair.")
    if known.pairs and second is None:
        raise UsageError(
            "This hybrid was trained on pairs of texts, but the second ones are missing: give one for each "
            "text with --text-pair (text_pair=…), or a table with two columns of texts."
        )
    if second is None:
        return Table(where, {_TEXT: first}, {}), ColumnNames(_TEXT)
    if len(second) != len(first):
        raise UsageError(f"There are {len(first)} texts but {len(second)} second texts; give one for each.")
    return Table(where, {_TEXT: first, _PAIR: second}, {}), ColumnNames(_TEXT, _PAIR)


def answers(known: TrainedHybrid, questions: Questions, outputs: NDArray[Any] | None) -> list[dict[str, Any]]:
    """One answer for each row, in their order: the texts, and what the kind of task has or the `problem`.

    `outputs` are those of the rows that could be answered; `None` where none could.
    """
    found = iter(() if outputs is None else outputs)
    listed = []
    for i, text in enumerate(questions.texts):
        row: dict[str, Any] = {known.kind.schema.row_name: text}
        if questions.pairs is not None:
            row[_PAIR] = questions.pairs[i]
        problem = questions.problems.get(i)
        said = {PROBLEM: problem} if problem else known.kind.scorer.present(next(found), known.labels)
        listed.append({**row, **said})
    return listed
