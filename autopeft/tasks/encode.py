"""Tokens of a task, split by split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from autopeft.tasks.task import SplitName, Task
from autopeft.tasks.tokens import EncodedSplit, encode_texts

__all__ = ["EncodedSplit", "EncodedTask", "encode", "encode_texts"]


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """A task with its splits as tokens; *train* as it is trained on (see `Encoder.encode_splits`)."""

    task: Task
    splits: Mapping[SplitName, EncodedSplit]
    max_length: int

    @property
    def train(self) -> EncodedSplit:
        """What models are trained on."""
        return self.splits["train"]

    @property
    def select(self) -> EncodedSplit:
        """What the search sees."""
        return self.splits["select"]

    @property
    def test(self) -> EncodedSplit:
        """What is scored once, at the end."""
        return self.splits["test"]


def encode(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int = 128, *, learn_all: bool = False
) -> EncodedTask:
    """Tokenise a task's splits, or read them from the cache (`cache_dir()/encoded/…`, named by content).

    Args:
        learn_all: of *train* every token is learnt, and not the answers alone.

    Raises:
        UsageError: `max_length` is below 4 or beyond what the tokenizer's model takes; or `learn_all` is for
            another kind of task.
    """
    splits = task.task_kind.encoder.encode_splits(task.splits, tokenizer, max_length)
    if learn_all:
        splits = {**splits, "train": splits["train"].all_learnt()}
    return EncodedTask(task, splits, max_length)
