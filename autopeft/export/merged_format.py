"""A hybrid folded into its backbone: a whole model that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import AutoPEFTError
from autopeft.export.lora_factors import NotServable
from autopeft.hybrid.merging import config_describes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from autopeft.assets import ImageProcessor
    from autopeft.hybrid import Hybrid

__all__ = ["merge", "write_merged"]


def merge(hybrid: Hybrid) -> PreTrainedModel:
    """The hybrid's model with all of it in its own weights; see `Hybrid.merge`.

    Raises:
        CompositionError: some module cannot be merged.
        NotServable: the model would need biases that its configuration cannot say, so that loading it would
            drop them.
        UsageError: the backbone is quantised.
    """
    model = hybrid.merge()
    if not config_describes(model):
        raise NotServable(
            f"Merged, this hybrid needs biases that the configuration of {type(model).__name__} has no word "
            "for, so that loading the model would drop them; leave out what shifts linear maps (ssf), or "
            "serve the hybrid itself."
        )
    return model


def write_merged(
    model: PreTrainedModel,
    processor: PreTrainedTokenizerBase | ImageProcessor,
    folder: Path,
    *,
    ends: Sequence[int] = (),
) -> None:
    """Write model and tokenizer or image processor, for `from_pretrained`; weights are safetensors.

    Args:
        ends: tokens that end an answer; the generation configuration, which `generate` and servers read,
            then names them. Default: those that it names.

    Raises:
        AutoPEFTError: the folder cannot be written.
    """
    if ends:
        model.generation_config.eos_token_id = list(ends)
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except OSError as error:
        raise AutoPEFTError(f"Cannot write {str(folder)!r}: {error.strerror or error}.") from error
