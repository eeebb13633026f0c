"""Samplers: what proposes the next recipe of a search."""

from __future__ import annotations

from autopeft.search.optimization.sampler_view import Point
from autopeft.search.optimization.samplers.registry import (
    SAMPLERS,
    SamplerContext,
    default_sampler,
    make_sampler,
    register,
)

__all__ = ["SAMPLERS", "Point", "SamplerContext", "default_sampler", "make_sampler", "register"]
