"""The sites of each model family, and the spec of a backbone."""

from __future__ import annotations

from autopeft.backbones.maps import FAMILIES, FamilyMap, Slice, StackMap
from autopeft.backbones.places import Layout, Place, StackPlaces, base_model_of, embedded_words, layout_of
from autopeft.backbones.spec_of import hidden_of_head, on_meta, projection_of, spec_of, spec_of_model

__all__ = [
    "FAMILIES",
    "FamilyMap",
    "Layout",
    "Place",
    "Slice",
    "StackMap",
    "StackPlaces",
    "base_model_of",
    "embedded_words",
    "hidden_of_head",
    "layout_of",
    "on_meta",
    "projection_of",
    "spec_of",
    "spec_of_model",
]
