"""What a site map is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.spec import StackName

__all__ = ["FamilyMap", "Linear", "Norm", "Region", "Sites", "StackMap"]


@dataclass(frozen=True)
class Linear:
    """A linear map at `path`; of a fused projection, `part` of `parts` equal slices of its output.

    `instead` is where kin of the family have it (T5 v1.1's gated FFN has `wi_1` for `wi`).
    """

    path: str
    part: int = 0
    parts: int = 1
    instead: str | None = None


@dataclass(frozen=True)
class Norm:
    """A normalisation layer at `path`."""

    path: str


@dataclass(frozen=True)
class Region:
    """A sub-layer from the input of `entry` to the output of `exit`.

    `norm` is the norm before it (`pre`: its input is the residual stream) or after the residual add (`post`).
    `attends` marks attention that prefixes reach: `entry` is then the module that dispatches to an attention
    function, or one that `autopeft.injection.undispatched` has a forward for that does.
    """

    entry: str
    exit: str
    norm: str | None = None
    order: Literal["pre", "post"] | None = None
    attends: bool = False


Sites = Mapping[str, Linear | Norm | Region]
"""Where each site of a layer is, by its name."""


@dataclass(frozen=True)
class StackMap:
    """One stack: `root` is the module whose forward takes the public inputs, `layers` its layer list.

    `embeddings` is `None` where the resolver does not know what a prompt could be put beside, `norm` is the
    norm behind the last layer, where the family has one and it is known.
    """

    name: StackName
    root: str
    layers: str
    sites: Sites
    embeddings: str | None
    causal: bool = False
    norm: str | None = None


@dataclass(frozen=True)
class FamilyMap:
    """All stacks of a family, and what its inputs look like.

    Attributes:
        position_offset: first explicit position id (RoBERTa counts from `padding_idx + 1`).
        pooler: module that reads the first row, where the family has one.
        padding_id: the id of padding, where the family's code has one of its own in place of the config's.
    """

    stacks: tuple[StackMap, ...]
    modality: Literal["text", "vision"] = "text"
    position_offset: Literal["zero", "padding"] = "zero"
    pooler: str | None = None
    padding_id: int | None = None
