"""What a kind of task says of the backbones that it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from autopeft.assets import load_tokenizer

if TYPE_CHECKING:
    from autopeft.assets import ModelSource
    from autopeft.spec import BackboneSpec

__all__ = ["OnBackbones"]


class OnBackbones:
    """The part of `TaskKind` that is about backbones and their forwards.

    Attributes:
        learns: what is learnt of a row, in a word, where kinds for other architectures learn the same: where
            nobody named one of them, the backbone decides between them. `None` for kinds by themselves.
        modality: what the backbones read: `text` or `vision` (see `BackboneSpec.modality`).
    """

    learns: ClassVar[str | None] = None
    modality: ClassVar[Literal["text", "vision"]] = "text"

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

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """Why a backbone cannot be trained on tasks of this kind, and what can; `None` where it can.

        Args:
            model: its name.
        """
        return None

    def inputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a forward takes beside the batch's own tensors, such as what a decoder reads.

        Args:
            model: that will run.
            batch: as `EncodedSplit.collate` made it, or some of its rows.

        Raises:
            UsageError: the model cannot make it.
        """
        return {}

    def check_weights(self, source: ModelSource) -> None:
        """Look at a backbone's weights, and at what lies beside them, before any process loads them.

        Raises:
            UsageError: they lack what the kind takes from them, or cannot be used for it.
        """
        return

    def logits_of(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (rows, …) in what a forward of a batch without labels returns."""
        logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return logits

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """What is entered around each forward whose logits go to the loss or to `outputs`; a kind may narrow
        there what the model computes, such as its head to the positions that carry loss. The logits are then
        of that form. Nothing is by default; checks of shortcuts compare forwards without it.

        Args:
            model, batch: as in `inputs`.
        """
        return nullcontext()

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The positions (B, L) of what the model's last stack reads whose logits go to the loss or to
        `outputs`; nothing else needs those of the others. `None`: all of them, or it is not known.

        Args:
            batch: as in `inputs`.
        """
        return None

    def begin_alike(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The group of each row (B,) int64 of those whose rows begin with the same tokens, numbered from 0 in
        the order of the rows. `None`: it is not known of any.

        Args:
            batch: as in `inputs`.
        """
        return None

    def average(self) -> Callable[[Tensor, int], Tensor] | None:
        """The mean of logits over a dimension, as logits of the mean prediction: for models that stand for
        several (ensembles, posteriors). `None`: the log of the mean softmax, of a single column its mean."""
        return None
