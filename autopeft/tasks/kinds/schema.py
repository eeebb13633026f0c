"""The schema of a kind of task: which columns its rows are in, how they are read, and what is wrong with
them.

It is asked in this order:

1. *A user's table.* `claim` bids for it; the highest bid wins, unless the kind or the metric was named.
   `columns` and `read` take checked rows from it, and `encode_labels` turns their labels into values.
2. *A task.* `strata` makes splits stratified and `alike` keeps rows together, `inputs_of` and `answers_of`
   tell copies, and `check` looks at the finished task. `class_counts`, `describe_rows` and `remarks` say what
   is known of the rows before training. `relabel` brings labels into the order of another task's classes.
3. *Questions to a trained model.* `asked_table` reads what is neither text nor table, `text_columns` finds
   texts without labels, `unanswerable` rows without one, and `read_texts` reads them; `asked_row` is a
   conversation. `shown` is what `autopeft predict` prints of a row, and `as_trained` is for rows that
   `autopeft evaluate` scores.

`names` are the names of the task's classes, empty for kinds without classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import DataError, UsageError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.class_metrics import shares_in_words
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    choose_columns,
    listed,
    read_rows,
    refuse_rows,
    unanswerable,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["Schema", "check_there", "refuse_problems"]

_FEW_ROWS = 30
_SCORED: tuple[SplitName, ...] = ("select", "test")


class Schema:
    """See the top of this file. By default a row is a text or two with a label, which is taken as it is.

    Attributes:
        kind: name of the kind of task that it is a part of, which is set when the kind is made.
        learns: what is learnt of a row, in a word, where kinds for other architectures learn the same: where
            nobody named one of them, the backbone decides between them. `None` for kinds by themselves.
        row_name: what a row consists of, in a word.
        asked_file: what `autopeft predict --file` reads rows from where a text alone is none; else `None`.
        turns: of kinds whose models write: whether they read a conversation of several turns; else each
            message is answered by itself.
    """

    kind: str = ""
    learns: ClassVar[str | None] = None
    row_name: ClassVar[str] = "text"
    asked_file: ClassVar[str | None] = None
    turns: ClassVar[bool] = True

    # A user's table
    # --------------------------------------------------------------------------------------------------

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """How surely a user's tables are of this kind, from 0 (not at all: it has to be named) to 1 (nothing
        else is possible).

        Classification claims every table with 0.1 and regression fractional numbers with 0.5. A claim looks
        at values and raises nothing; `autopeft.tasks.table.peek_labels` helps.

        Args:
            tables: by split, `train` among them, as they were read.
            named: the columns that the user named.
        """
        return 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """The columns that hold what a row of this kind consists of.

        Raises:
            DataError: a named column does not exist, or no obvious one does.
        """
        return choose_columns(table, named.text, named.text_pair, named.label)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows of a table, every value checked; labels are not encoded yet.

        Columns beyond text, pair and label go into `RawRows.fields`.

        Raises:
            DataError: a value is missing or is not what the kind needs.
        """
        return read_rows(table, columns)

    def further_columns(self, table: Table, columns: Columns) -> Sequence[str]:
        """Columns that `read` takes values from beside the chosen ones and those that its fields are called
        by."""
        return ()

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """Names of the classes (empty where the kind has none), and the labels of each part as values.

        Args:
            parts: the splits as they were given, the one to train on first.
            order: names of the classes in order, where the data or the packaged task say them.

        Raises:
            DataError: the labels cannot be learnt, or are not of this kind.
        """
        return (), [list(part.labels) for part in parts]

    # A task
    # --------------------------------------------------------------------------------------------------

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The stratum of each row; splits and subsets have nearly the shares of the whole.
        By default all rows are alike."""
        return [0] * len(labels)

    def inputs_of(self, rows: Split) -> list[Input]:
        """The texts that a model reads of each row, without its label or what it is to write.

        Rows whose texts have one normal form are copies (see `autopeft.tasks.copies`).
        """
        return list(zip(rows.texts, *(() if rows.pairs is None else (rows.pairs,)), strict=True))

    def alike(self, rows: Split) -> list[Input]:
        """Texts of each row; rows with equal ones never part when splits are cut. Default: its input."""
        return self.inputs_of(rows)

    def answers_of(self, rows: Split) -> list[str]:
        """The answer to each row as a text: those of copies that differ contradict each other."""
        return [repr(label) for label in rows.labels]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Look at the training rows of a finished task.

        Raises:
            DataError: no model can be trained on them.
        """
        return

    def class_counts(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
        """Rows of each class, in index order; empty for kinds without classes."""
        return ()

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How the labels of some rows are spread, in a few words; empty where there is nothing to say."""
        return shares_in_words(self.class_counts(labels, names), names, len(labels))

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """What limits what scores on these rows can say, a sentence each.

        Args:
            metric: name of the one that counts.
            weighted: whether classes have weights in training.
        """
        found = []
        for name in _SCORED:
            rows = len(splits[name])
            if rows == 1:
                found.append(f"{name} has 1 row: a score on it says nothing; more rows are needed.")
            elif rows < _FEW_ROWS:
                found.append(f"{name} has {rows} rows: scores on so few differ by chance.")
        return found

    def relabel(self, labels: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        """The same labels in the order of other class names, of which `names` are a part."""
        return list(labels)

    # Questions to a trained model
    # --------------------------------------------------------------------------------------------------

    def asked_table(self, data: Any) -> Table | None:
        """A table of what a model is asked, where that is no text, no file of texts and no table.

        Args:
            data: what a user handed over.

        Raises:
            DataError: it cannot be read.
        """
        return None

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of a table whose rows are to be predicted: those of `columns` without a label.

        `read` is then asked for the rows that have a text.

        Args:
            pair: whether the model was trained on pairs of texts; `None` where that is not known.

        Raises:
            DataError: a named column does not exist, or no obvious one does.
        """
        return choose_columns(table, named.text, named.text_pair, labelled=False, pair=pair)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that a model cannot be asked about what is wrong with them, in a few words."""
        return unanswerable(table, columns)

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """The rows of a table that a model is to be asked about, all of them answerable.

        Args:
            use: what the encoder's `use` said when the model was trained; empty where that is not known.
        """
        return self.read(table, columns)

    def asked_row(self, messages: Sequence[Mapping[str, str]]) -> Split:
        """A conversation `{"role": …, "content": …}` whose answer is to be written, as a split of one row.

        Raises:
            UsageError: models of this kind write nothing.
        """
        raise UsageError(f"Models for {self.kind} write no texts, so that nobody can talk with them.")

    def as_trained(self, rows: Split, use: Mapping[str, Any]) -> Split:
        """Labelled rows that a trained model is scored on, read as `read_texts` reads those that it is asked.

        Args:
            use: what the encoder's `use` said when the model was trained.
        """
        return rows

    def shown(self, value: Any, row: int) -> Any:
        """What stands for a row that was asked beside its answer: the text itself.

        Args:
            row: its number, from 0.
        """
        return value


# What schemas share
# ------------------------------------------------------------------------------------------------------


def check_there(table: Table, column: str) -> None:
    """Refuse a table without a column that another one of the same task has.

    Raises:
        DataError: the table lacks it.
    """
    if column not in table.columns:
        raise DataError(f"{table.where} has no column {column!r}; it has {listed(list(table.columns))}.")


def refuse_problems(table: Table, column: str, problems: Mapping[int, str | None]) -> None:
    """Refuse the rows of a table with which something is wrong, by number.

    Raises:
        DataError: there are some; the message names those with the first problem.
    """
    for what in dict.fromkeys(problem for problem in problems.values() if problem is not None):
        refuse_rows(table, column, what, [i for i, problem in problems.items() if problem == what])
