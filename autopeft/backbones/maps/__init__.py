"""Site maps as data: where the sites of each model family are.

A map is a table of module paths. Paths of a layer's sites are relative to the layer; families whose stacks
differ (T5's decoder has cross-attention in between) have one `StackMap` each.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

from autopeft.backbones.maps.decoders import DECODERS
from autopeft.backbones.maps.encoder_decoders import ENCODER_DECODERS
from autopeft.backbones.maps.encoders import ENCODERS
from autopeft.backbones.maps.records import (
    FamilyMap,
    Linear,
    MapOf,
    Norm,
    Region,
    Sites,
    Slice,
    StackMap,
)
from autopeft.backbones.maps.vision import VISION

__all__ = ["FAMILIES", "FamilyMap", "Linear", "Norm", "Region", "Sites", "Slice", "StackMap", "map_of"]

FAMILIES: Mapping[str, FamilyMap | MapOf] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **VISION}
"""The map of each family, or what makes it, by its configuration's `model_type`."""


def map_of(config: PreTrainedConfig) -> FamilyMap | None:
    """The map of a model with this configuration; `None` where its family has none.

    Raises:
        SiteError: its layers are not such as the family's map can tell.
    """
    found = FAMILIES.get(config.model_type)
    return found if found is None or isinstance(found, FamilyMap) else found(config)
