"""The records of a site map: a family, its stacks, and their sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig

from autopeft.spec import Modality, StackName

__all__ = ["FamilyMap", "Linear", "MapOf", "Norm", "Region", "Sites", "Slice", "StackMap"]


@dataclass(frozen=True)
class Slice:
    """Some features of a fused projection's output: it is `groups` groups of the same width side by side, and
    `width` features from `start` on of each belong to it.

    One group is a plain slice. GPT-NeoX has a group for each head, with its query, key and value.
    """

    start: int
    width: int
    groups: int = 1

    @property
    def size(self) -> int:
        """How many features."""
        return self.width * self.groups

    def of(self, whole: Tensor, dim: int = -1) -> Tensor:
        """Its features of all those in a dimension; of one group a view."""
        if self.groups == 1:
            return whole.narrow(dim, self.start, self.width)
        grouped, at = self._grouped(whole, dim)
        return grouped.narrow(at + 1, self.start, self.width).flatten(at, at + 1)

    def put(self, whole: Tensor, part: Tensor, dim: int = -1) -> Tensor:
        """A new tensor: `whole` with `part` at its features."""
        grouped, at = self._grouped(whole, dim)
        inner = part.unflatten(at, (self.groups, self.width))
        behind = self.start + self.width
        before = grouped.narrow(at + 1, 0, self.start)
        after = grouped.narrow(at + 1, behind, grouped.shape[at + 1] - behind)
        return torch.cat([before, inner, after], dim=at + 1).flatten(at, at + 1)

    def spread(self, part: Tensor, total: int) -> Tensor:
        """(…, size) → (…, total), with zeros at all other features."""
        behind = total // self.groups - self.start - self.width
        if self.groups == 1:
            return pad(part, (self.start, behind))
        return pad(part.unflatten(-1, (self.groups, self.width)), (self.start, behind)).flatten(-2)

    def _grouped(self, whole: Tensor, dim: int) -> tuple[Tensor, int]:
        at = dim % whole.ndim
        return whole.unflatten(at, (self.groups, -1)), at


@dataclass(frozen=True)
class Linear:
    """A linear map at `path`; of a fused projection, `part` of `parts` equal slices of its output, or the
    features that `features` says.

    `instead` is where kin of the family have it (T5 v1.1's gated FFN has `wi_1` for `wi`). `positions` says
    that its layer calls it for the positions of the sequence alone (DeBERTa-v2 projects relative positions by
    the same maps as contents).
    """

    path: str
    part: int = 0
    parts: int = 1
    instead: str | None = None
    features: Slice | None = None
    positions: bool = True


@dataclass(frozen=True)
class Norm:
    """A normalisation layer at `path`; it scales by its weight and `offset` (Gemma's by 1 + w)."""

    path: str
    offset: float = 0.0


@dataclass(frozen=True)
class Region:
    """A sub-layer from the input of `entry` to the output of `exit`.

    `norm` is the norm before it (`pre`: its input is the residual stream) or after the residual add (`post`).
    Where the norm after it lies in front of the add (OLMo 2), it is a part of the region, which is `post`
    without a norm: its input is the residual stream. Where the FFN reads the same normed states as the
    attention (Phi), both have the same norm.
    `attends` marks attention that prefixes reach: `entry` is then the module that dispatches to an attention
    function, or one that `autopeft.injection.undispatched` has a forward for that does. `thirds` says that
    keys are a third of the site `qkv`, where no site has them alone.
    `flat` marks states that are (batch · positions, width) (OPT's FFN), and `multiplier` is what the family
    multiplies the region's output by before it adds the residual.
    """

    entry: str
    exit: str
    norm: str | None = None
    order: Literal["pre", "post"] | None = None
    attends: bool = False
    flat: bool = False
    multiplier: float = 1.0
    thirds: bool = False


Sites = Mapping[str, Linear | Norm | Region]
"""The place of each site of a layer, by its name."""


@dataclass(frozen=True)
class StackMap:
    """One stack: `root` is the module whose forward takes the public inputs, `layers` its layer list.

    `embeddings` is `None` where the resolver does not know what a prompt could be put beside, `norm` is the
    norm behind the last layer, where the family has one and it is known.

    Attributes:
        ones: its layers are handed masks of ones where a position is seen, not masks to be added.
        blends: module that blends what the first layer read with what it yields, where there is one.
        repeats: each of its layers runs as often as the config has more of them, one run after the other.
        single: list inside of each layer that holds one module alone, where the family's code allows for
            several.
        scales: its root multiplies the embeddings that it looks up, and not those that it is given.
        leaves: module behind the layers whose output is the last states, where the root reads some of these
            itself before it yields them; default: the root.
        behind: its root's other modules behind the layers.
        unplaced: why no rows can be put in front of its layers.
        distances: its positions are told by their distances alone, which padding between them adds to.
        sine_first: its rotary tables come as (sine, cosine).
    """

    name: StackName
    root: str
    layers: str
    sites: Sites
    embeddings: str | None
    causal: bool = False
    norm: str | None = None
    behind: tuple[str, ...] = ()
    unplaced: str = ""
    distances: bool = False
    sine_first: bool = False
    ones: bool = False
    blends: str | None = None
    repeats: bool = False
    single: str | None = None
    scales: bool = False
    leaves: str | None = None


@dataclass(frozen=True)
class FamilyMap:
    """All stacks of a family, and what its inputs look like.

    Attributes:
        modality: what its first stack reads; a decoder behind it reads text.
        position_offset: first explicit position id (RoBERTa counts from `padding_idx + 1`).
        pooler: module that reads the first row, where the family has one.
        padding_id: the id of padding, where the family's code has one of its own in place of the config's.
        past: parameters that its code reads past the modules that own them, so that nothing can put others in
            their place, or reads in pretraining alone.
        limit: the option of its config that says how many positions its tokens have.
        endless: its positions have no end, whatever the config says.
        lacks: site → why the family has none.
    """

    stacks: tuple[StackMap, ...]
    modality: Modality = "text"
    position_offset: Literal["zero", "padding"] = "zero"
    pooler: str | None = None
    padding_id: int | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    past: tuple[str, ...] = ()
    limit: str = "max_position_embeddings"
    endless: bool = False


MapOf = Callable[[PreTrainedConfig], FamilyMap]
"""Makes the map of a family whose configuration says what its layers are like."""
