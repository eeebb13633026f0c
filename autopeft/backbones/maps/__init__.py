"""Site maps as data: where the sites of each model family are.

A map is a table of module paths. Paths of a layer's sites are relative to the layer; families whose stacks
differ (T5's decoder has cross-attention in between) have one `StackMap` each.
"""

from __future__ import annotations

from collections.abc import Mapping

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

__all__ = ["FAMILIES", "FamilyMap", "Linear", "Norm", "Region", "Sites", "Slice", "StackMap"]

FAMILIES: Mapping[str, FamilyMap | MapOf] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **VISION}
"""The map of each family, or what makes it, by its configuration's `model_type`."""
