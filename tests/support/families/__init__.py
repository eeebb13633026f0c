"""A tiny model of every family with a site map."""

from __future__ import annotations

from .decoders import DECODERS
from .encoder_decoders import ENCODER_DECODERS
from .encoders import ENCODERS
from .record import VOCABULARY, Tiny
from .vision import VISION

__all__ = ["DECODERS", "ENCODERS", "ENCODER_DECODERS", "FAMILIES", "VISION", "VOCABULARY", "Tiny"]

FAMILIES: dict[str, Tiny] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **VISION}
