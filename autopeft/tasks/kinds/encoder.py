"""The encoder of a kind of task: what makes of rows the batches that a model takes.

It is asked in this order:

1. `load_processor` loads what it needs of a backbone: a tokenizer, an image processor. `processor` checks one
   that a user handed over.
2. Before training: `positions` and `truncated` say how long rows are, and `facts` how they are read. `use`
   says what a saved hybrid has to know of its training rows.
3. `encode` makes an `EncodedSplit`, and `encode_splits` those of a whole task. A subclass of `EncodedSplit`
   may collate in its own way; tensors of a batch whose names begin with `autopeft.tasks.tokens.BESIDE` never
   reach the model, but the loss and the scorer see them. `label_array` makes of labels what batches and
   metrics take, and `begin_alike` tells which rows of a batch begin with the same tokens.
4. Where rows ask something (`asks`), `with_examples` puts examples before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_tokenizer
from autopeft.tasks.tokens import EncodedSplit, encode_texts, ragged, tokens_of

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["Encoder"]

_GLANCE = 200  # rows


class Encoder:
    """See the top of this file. By default a row is the tokens of its text, or of its two texts.

    Attributes:
        kind: name of the kind of task that it is a part of, which is set when the kind is made.
        tokenwise_trunk: whether the states below the head depend on the row's tokens alone, one for each that
            a stack reads (see `EncodedSplit.offsets_of`), so that they may be kept and used again.

        label_type: of the numbers that labels are; `object` for labels that are none.

    Args:
        label_type: in the place of the class's own.
    """

    kind: str = ""
    label_type: Any = np.int64
    tokenwise_trunk: ClassVar[bool] = True

    def __init__(self, label_type: Any = None) -> None:
        self.label_type = label_type or self.label_type

    # Of a backbone
    # --------------------------------------------------------------------------------------------------

    def load_processor(self, source: ModelSource | str) -> Any:
        """What makes of rows what the backbone takes: its tokenizer, or what `encode` takes in its place.

        Raises:
            UsageError: the backbone has no usable one.
        """
        return load_tokenizer(source)

    def processor(self, given: Any, config: PretrainedConfig) -> Any:
        """What `encode` takes, of what a user handed over beside a live model.

        Args:
            config: of that model.

        Raises:
            UsageError: it is of another type.
        """
        return given

    # Rows
    # --------------------------------------------------------------------------------------------------

    def facts(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """What is said of how rows are read, beside what all kinds say: name and text."""
        return []

    def describe_reading(self, max_length: int) -> str:
        """How a model of this kind reads rows, for a model card: a sentence."""
        return f"Texts are cut at {max_length} tokens."

    def positions(self, rows: Split, source: ModelSource, max_length: int) -> float:
        """About how many tokens a row has, before any is tokenised; of other rows how many positions their
        hidden states have."""
        some = [*rows.texts[:_GLANCE], *(rows.pairs or [])[:_GLANCE]]
        words = sum(len(text.split()) for text in some) / max(1, len(rows.texts[:_GLANCE]))
        return min(float(max_length), 2.0 + 1.35 * words)

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float | None:
        """Share of rows that `encode` cuts to `max_length` tokens; `None` where it never cuts any.

        Raises:
            UsageError: the tokenizer cannot encode the rows.
        """
        if not len(rows):
            return 0.0
        # `verbose` would warn of texts that are longer than the model takes, which is the question here.
        options = {"truncation": False, "padding": False, "verbose": False}
        found = tokens_of(tokenizer, rows.texts, rows.pairs, **options)["input_ids"]
        return sum(len(row) > max_length for row in found) / len(rows)

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """What a saved hybrid has to know of its training rows to be asked, as JSON-able values beside its
        labels; nothing for most kinds."""
        return {}

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Labels (rows, …) as batches and metrics take them; as objects (rows,) where they are no numbers."""
        if self.label_type is object:
            return ragged(labels)
        return np.asarray(labels, dtype=self.label_type)

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
        plain = encode_texts(rows.texts, rows.pairs, tokenizer, max_length, kind=self.kind, cached=cached)
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

    def begin_alike(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The group of each row (B,) int64 of those whose rows begin with the same tokens, numbered from 0 in
        the order of the rows. `None`: it is not known of any.

        Args:
            batch: as `EncodedSplit.collate` made it, or some of its rows.
        """
        return None

    # Examples
    # --------------------------------------------------------------------------------------------------

    def asks(self, rows: Split) -> bool:
        """Whether each row asks something, so that examples can stand before it (see `with_examples`)."""
        return False

    def with_examples(
        self, rows: Split, examples: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Split | None:
        """The rows with the examples before what is asked, which a model can learn from without training: as
        many of them, the last ones, as leave a row uncut. `None` where rows of the kind ask nothing."""
        return None
