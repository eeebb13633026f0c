"""What a kind of task is: all that differs between classification, regression and what other packages add.

A kind is a class without state, registered by name. Nothing else in the package asks which kind a task is of:
it asks the kind. To write one, subclass `TaskKind`, give the attributes and the methods without a default,
and register it; a module of another package is found through the entry-point group `autopeft.task_kinds`.

Example (a file `my_kinds.py`, and in its package's `pyproject.toml`):
    >>> from autopeft.tasks.kinds import TaskKind, register_kind
    >>> @register_kind("ordinal")                                                     # doctest: +SKIP
    ... class Ordinal(TaskKind):
    ...     summary = "classes with an order"
    ...     ...

    [project.entry-points."autopeft.task_kinds"]
    ordinal = "my_kinds"

How the package uses a kind, in this order:

1. *Data.* `claim` bids for a user's table; the highest bid wins, unless the kind or the metric was named.
   `columns` and `read` take checked rows from the table, `encode_labels` turns their labels into values,
   `strata` makes splits stratified and `alike` keeps rows together, `settled` fits the kind's options to the
   classes, `check` and `class_weights` look at the finished task, and `metric_for` chooses its metric.
   `describe_rows`, `constant`, `remarks`, `facts` and `truncated` say what is known of the rows before
   training.
2. *Model.* `modality` says what its backbones read, `refused` which backbones it is not for, and
   `check_weights` which weights. `load_model` loads the backbone as `auto_class` with the changes of
   `config`, and `load_processor` what makes of rows what that takes: a tokenizer, an image processor.
3. *Training.* `encode` makes an `EncodedSplit` (a subclass of it may collate in its own way; tensors whose
   names begin with `autopeft.tasks.tokens.BESIDE` never reach the model), `encode_splits` those of a whole
   task, and `loss` says what is minimised. `inputs` adds to a batch what a model reads beside it, and
   `logits_of` takes the logits from what the model returns. `reads` says of which positions they are wanted
   alone, and `reading` narrows a forward to them.
4. *Scores.* `outputs` gives what is kept of each row, `decisions` what metrics compare with labels, and
   `breakdown` what `autopeft evaluate` shows beside the score, and `tell` single rows. Where a metric
   compares generated texts, `generate` writes them and `with_texts` puts them to what is kept; `trial_metric`
   says what stands for such a metric where writing would take too long.
5. *Use.* `asked_table` reads what is neither text nor table, `text_columns` finds texts without labels,
   `unanswerable` rows without one, and `read_texts` reads them; `shown`, `present` and `line` are what
   `autopeft predict` prints. `as_trained` is for rows that `autopeft evaluate` scores. `use` says what a
   saved hybrid has to know for that; `peft_task_type` and `hub_pipeline` stand in exports.

Everything is called with the task's class names where it needs them (`names`, empty for kinds without
classes), so that a kind needs no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_model
from autopeft.errors import TaskError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.breakdown import shares_in_words
from autopeft.tasks.kinds.loss import Loss
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.on_backbones import OnBackbones
from autopeft.tasks.kinds.scores import Scores
from autopeft.tasks.kinds.writing import Writing
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    choose_columns,
    choose_texts,
    read_rows,
    unanswerable,
)
from autopeft.tasks.tokens import EncodedSplit, encode_texts, longer_than

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split, SplitName

__all__ = ["ClassWeights", "TaskKind"]

ClassWeights = Literal["balanced"] | Sequence[float] | None
_FEW_ROWS = 30
_GLANCE = 200  # rows
_SCORED: tuple[SplitName, ...] = ("select", "test")


class TaskKind(OnBackbones, Scores, Writing, ABC):
    """A kind of task; see the top of this file, `OnBackbones` for what backbones have to be and to compute,
    `Scores` for predictions, and `Writing` for models that write texts.

    Attributes:
        name: under which it is registered, with its options where it was told some; manifests and exports
            hold it.
        summary: what it is, one line.
        metrics: its own; `register_metric` adds further ones.
        default_metric: name of the one that counts where none was chosen.
        auto_class: the class of `transformers` that a backbone is loaded as.
        new_head: whether each task starts with a new head. `False` for a head that the backbone brings
            (language models), which is then left as it was trained.
        pooled: whether the head reads one position of each row, so that the last layer may be computed for
            that position alone. Which position is found by trying.
        tokenwise_trunk: whether the states below the head depend on the row's tokens alone, one for each that
            a stack reads (see `EncodedSplit.offsets_of`), so that they may be kept and used again.
        causal: whether a batch is rows of tokens and labels (B, L), each of which is predicted from those
            before it, so that what all rows begin with may be computed once.
        packs: whether several rows of a batch may share one; it says no more of them than tokens and labels.
        row_distribution: whether the logits of a row are those of one distribution over classes, or one
            number.
        probed: whether the head can start as a linear probe of the frozen features of rows, or of tokens that
            have a label.
        row_name: what a row consists of, in a word.
        asked_file: what `autopeft predict --file` reads rows from where a text alone is none; else `None`.
        tells: whether predictions can be told beside their rows, as texts (see `tell`).
        peft_task_type: `task_type` in the format of Hugging Face peft; `None`: by the model's class.
        hub_pipeline: `pipeline_tag` of a model card on the Hugging Face hub; `None`: the hub has none for it.
    """

    name: str = ""
    summary: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    default_metric: ClassVar[str]
    auto_class: type[Any] = AutoModelForSequenceClassification
    new_head: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    tokenwise_trunk: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    row_distribution: ClassVar[bool] = True
    probed: ClassVar[bool] = True
    row_name: ClassVar[str] = "text"
    asked_file: ClassVar[str | None] = None
    tells: ClassVar[bool] = False
    peft_task_type: str | None = "SEQ_CLS"
    hub_pipeline: str | None = "text-classification"

    # Data
    # --------------------------------------------------------------------------------------------------

    @abstractmethod
    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """How surely a user's tables are of this kind, from 0 (not at all) to 1 (nothing else is possible).

        Classification claims every table with 0.1 and regression fractional numbers with 0.5. A claim looks
        at values and raises nothing; `autopeft.tasks.table.peek_labels` helps.

        Args:
            tables: by split, `train` among them, as they were read.
            named: the columns that the user named.
        """

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

    @abstractmethod
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

    @abstractmethod
    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The stratum of each row; splits and subsets have nearly the shares of the whole."""

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

    def settled(self, names: Sequence[str], *, pairs: bool, backbone: BackboneSpec | None) -> TaskKind:
        """The kind for a task with these classes, with what its options left open (see `register_options`).

        Args:
            pairs: whether the task's rows are pairs of texts.
            backbone: that will be trained, where it is known.

        Raises:
            TaskError: an option does not fit the task.
        """
        return self

    def facts(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """What is said of how rows are read, beside what all kinds say: name and text."""
        return []

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Look at the training rows of a finished task.

        Raises:
            DataError: no model can be trained on them.
        """
        return

    def metric_for(self, names: Sequence[str]) -> str:
        """Name of the metric that counts for a task with these classes, where none was chosen."""
        return self.default_metric

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """Refuse a metric of this kind that does not fit a task with these classes.

        Args:
            rows: of the task, where they are at hand.

        Raises:
            TaskError: it does not.
        """
        return

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """One positive factor per class, from `"balanced"` or a list of numbers; `None` for `None`.

        Raises:
            TaskError: the kind has no class weights, or these do not fit.
        """
        if asked is None:
            return None
        raise TaskError(f"Class weights are for classification, but the task is {self.name}.")

    def class_counts(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
        """Rows of each class, in index order; empty for kinds without classes."""
        return ()

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How the labels of some rows are spread, in a few words; empty where there is nothing to say."""
        return shares_in_words(self.class_counts(labels, names), names, len(labels))

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The best answer that looks at no text: in words (`always 'no'`) and as a label, from the labels of
        the training rows. `None` for kinds that have none."""
        return None

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

    # Model
    # --------------------------------------------------------------------------------------------------

    @abstractmethod
    def num_labels(self, names: Sequence[str]) -> int:
        """Outputs of the head."""

    @abstractmethod
    def config(self, names: Sequence[str]) -> dict[str, Any]:
        """What is set in the backbone's configuration before it is loaded, in this order."""

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """Label names of a model whose configuration is this kind's, `None` for another kind's."""
        named = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
        for names in (named, ()):
            if all(getattr(config, key, None) == value for key, value in self.config(names).items()):
                return names
        return None

    def load_model(
        self,
        source: ModelSource | str,
        names: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PreTrainedModel:
        """The backbone with the head for this kind, which knows its labels by name; see
        `autopeft.assets.load_model`."""
        config = self.config(names)
        if names and self.num_labels(names) == len(names):
            ids = {name: index for index, name in enumerate(names)}
            config = {**config, "id2label": dict(enumerate(names)), "label2id": ids}
        return load_model(source, self.auto_class, config, seed=seed, dtype=dtype, new_head=self.new_head)

    # Training
    # --------------------------------------------------------------------------------------------------

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedSplit:
        """Rows as the model takes them. A kind with batches of its own returns a subclass of `EncodedSplit`.

        Args:
            labelled: whether the batches have `labels`.
            cached: whether tokens are read from and written to the cache on disk.

        Raises:
            UsageError: see `encode_texts`.
        """
        plain = encode_texts(rows.texts, rows.pairs, tokenizer, max_length, kind=self.name, cached=cached)
        if not labelled:
            return plain
        return replace(plain, labels=self.label_array(rows.labels))

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        """The splits of a task as the model takes them, each by `encode`. A kind makes them agree here
        where they have to, and encodes *train* otherwise where it is trained on something else than what is
        scored."""
        return {name: self.encode(split, tokenizer, max_length) for name, split in splits.items()}

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float | None:
        """Share of rows that `encode` cuts to `max_length` tokens; `None` where it never cuts any."""
        return longer_than(rows.texts, rows.pairs, tokenizer, max_length)

    def positions(self, rows: Split, source: ModelSource, max_length: int) -> float:
        """About how many tokens a row has, before any is tokenised; of other rows how many positions their
        hidden states have."""
        some = [*rows.texts[:_GLANCE], *(rows.pairs or [])[:_GLANCE]]
        words = sum(len(text.split()) for text in some) / max(1, len(rows.texts[:_GLANCE]))
        return min(float(max_length), 2.0 + 1.35 * words)

    def asks(self, rows: Split) -> bool:
        """Whether each row asks something, so that examples can stand before it (see `with_examples`)."""
        return False

    def with_examples(
        self, rows: Split, examples: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Split | None:
        """The rows with the examples before what is asked, which a model can learn from without training: as
        many of them, the last ones, as leave a row uncut. `None` where rows of the kind ask nothing."""
        return None

    @abstractmethod
    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Labels (rows, …) as batches and metrics take them."""

    @abstractmethod
    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        """What is minimised."""

    # Predictions
    # --------------------------------------------------------------------------------------------------

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """What is kept of each row of a batch, (rows, …); an array of objects where rows differ in length.

        Args:
            model: in eval mode.
            batch: without labels for texts that have none.
            run: gives the batch's logits. A kind that generates need not call it.
        """
        found: NDArray[Any] = run().float().cpu().numpy()
        return found

    # Use
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
        return choose_texts(table, named.text, named.text_pair, pair=pair)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that a model cannot be asked about what is wrong with them, in a few words."""
        return unanswerable(table, columns)

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """The rows of a table that a model is to be asked about, all of them answerable.

        Args:
            use: what `use` said when the model was trained; empty where that is not known.
        """
        return self.read(table, columns)

    def as_trained(self, rows: Split, use: Mapping[str, Any]) -> Split:
        """Labelled rows that a trained model is scored on, read as `read_texts` reads those that it is asked.

        Args:
            use: what `use` said when the model was trained.
        """
        return rows

    def shown(self, value: Any, row: int) -> Any:
        """What stands for a row that was asked beside its answer: the text itself.

        Args:
            row: its number, from 0.
        """
        return value

    @abstractmethod
    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The prediction for one row as JSON-able values; `output` is the row's of `outputs`."""

    @abstractmethod
    def line(self, prediction: Mapping[str, Any]) -> str:
        """A prediction of `present` in a few words, without tabs. It may hold the row's `text` too, as it
        came."""

    def describe_labels(self, names: Sequence[str]) -> str:
        """What a model of this kind predicts, for a model card."""
        return ", ".join(names)

    def describe_reading(self, max_length: int) -> str:
        """How a model of this kind reads rows, for a model card: a sentence."""
        return f"Texts are cut at {max_length} tokens."

    @property
    def built_in(self) -> bool:
        """Whether the kind comes with this package; the code of others may change unseen."""
        return type(self).__module__.startswith("autopeft.")
