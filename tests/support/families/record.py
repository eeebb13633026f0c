"""What tests need to know of a family beside its site map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 50


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a family: its config and class.

    Attributes:
        attentions: the implementations of attention that its class takes.
        padding: the id of padding.
        checkpoints: whether transformers recomputes its layers (of MPNet's none, and it says so).
        writes: whether its class writes texts.
        refuses: case of `contract.pairs` → a word of the reason why this family cannot take it.
        modality: `text`, `vision` for images of 3 x 8 x 8, or `audio` for spectra of 8 bands at 12 times.
    """

    config: Callable[[], PreTrainedConfig]
    model: type[PreTrainedModel]
    attentions: tuple[str, ...] = ("sdpa", "eager")
    padding: int = 0
    checkpoints: bool = True
    writes: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    modality: Literal["text", "vision", "audio"] = "text"
