"""Bricks that methods share."""

from __future__ import annotations

from autopeft.nn.bottleneck import Activation, Bottleneck
from autopeft.nn.low_rank import LowRankPair
from autopeft.nn.per_site import PerSite
from autopeft.nn.prompt_encoder import PromptEncoder, PromptRows
from autopeft.nn.sparse_delta import SparseDelta
from autopeft.nn.tensor_deltas import TensorDeltas

__all__ = [
    "Activation",
    "Bottleneck",
    "LowRankPair",
    "PerSite",
    "PromptEncoder",
    "PromptRows",
    "SparseDelta",
    "TensorDeltas",
]
