"""What a site map is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.spec import Modality, StackName

__all__ = ["FamilyMap", "Linear", "Norm", "Region", "Sites", "StackMap"]


@dataclass(frozen=True)
class Linear:
    """A linear map at `path`; of a fused projection, `part` of `parts` equal slices of its output.

    `instead` is where kin of the family have it (T5 v1.1's gated FFN has `wi_1` for `wi`). `positions` says
    that its layer calls it for the positions of the sequence alone (DeBERTa-v2 projects relative positions by
    the same maps as contents).
    """

    path: str
    part: int = 0
    parts: int = 1
    instead: str | None = None
    positions: bool = True


@dataclass(frozen=True)
class Norm:
    """A normalisation layer at `path`."""

    path: str


@dataclass(frozen=True)
class Region:
    """A sub-layer from the input of `entry` to the output of `exit`.

    `norm` is the norm before it (`pre`: its input is the residual stream) or after the residual add (`post`).
    `attends` marks attention that prefixes reach: `entry` is then the module that dispatches to an attention
    function, or one that `autopeft.injection.undispatched` has a forward for that does. `thirds` says that
    keys are a third of the site `qkv`, where no site has them alone.
    """

    entry: str
    exit: str
    norm: str | None = None
    order: Literal["pre", "post"] | None = None
    attends: bool = False
    thirds: bool = False


Sites = Mapping[str, Linear | Norm | Region]
"""Where each site of a layer is, by its name."""


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
    """

    name: StackName
    root: str
    layers: str
    sites: Sites
    embeddings: str | None
    causal: bool = False
    norm: str | None = None
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
            their place.
        limit: the option of its config that says how many positions its tokens have.
        endless: its positions have no end, whatever the config says.
    """

    stacks: tuple[StackMap, ...]
    modality: Modality = "text"
    position_offset: Literal["zero", "padding"] = "zero"
    pooler: str | None = None
    padding_id: int | None = None
    past: tuple[str, ...] = ()
    limit: str = "max_position_embeddings"
    endless: bool = False
