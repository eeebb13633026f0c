"""Bricks that methods share."""

from __future__ import annotations

from autopeft.nn.allocation import Allocation, Whole, allocate, leading_entries
from autopeft.nn.bottleneck import ACTIVATIONS, Activation, Bottleneck, Bottlenecks
from autopeft.nn.chosen_entries import ChosenEntries, KeepConfig
from autopeft.nn.fastfood import Fastfood
from autopeft.nn.hadamard import walsh_hadamard
from autopeft.nn.hypergradient import hypergradient
from autopeft.nn.kronecker import LowRankKronecker, kronecker_sum, require_blocks
from autopeft.nn.kronecker_curvature import KroneckerCurvature, fit_precision, log_evidence, softmax_root
from autopeft.nn.low_rank import LowRankPair, PrunedPair
from autopeft.nn.masked_copies import MaskedCopies, Masks
from autopeft.nn.nested_pair import NestedPair
from autopeft.nn.per_site import PerSite
from autopeft.nn.prefixes import PrefixConfig, Prefixes, PrefixMethod
from autopeft.nn.prompt_encoder import PromptEncoder, PromptRows
from autopeft.nn.router import Router
from autopeft.nn.row_delta import RowDelta
from autopeft.nn.scaled_maps import PrunedPairs, ScaledMaps, ScaledPairs, down_and_up, plain_loras
from autopeft.nn.seeds import generator_of
from autopeft.nn.sensitivity import Sensitivity
from autopeft.nn.settled_maps import SettledAdapter, SettledPair, drop_path
from autopeft.nn.settled_structure import SettledStructure
from autopeft.nn.sparse_delta import SparseDelta
from autopeft.nn.squared_gradients import squared_gradients
from autopeft.nn.tensor_deltas import TensorDeltas
from autopeft.nn.top_entries import TopEntries, top_entries
from autopeft.nn.triplets import Triplets, triplets_at
from autopeft.nn.uncertain_pair import UncertainPair, logit_covariance, observe_curvature

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Allocation",
    "Bottleneck",
    "Bottlenecks",
    "ChosenEntries",
    "Fastfood",
    "KeepConfig",
    "KroneckerCurvature",
    "LowRankKronecker",
    "LowRankPair",
    "MaskedCopies",
    "Masks",
    "NestedPair",
    "PerSite",
    "PrefixConfig",
    "PrefixMethod",
    "Prefixes",
    "PromptEncoder",
    "PromptRows",
    "PrunedPair",
    "PrunedPairs",
    "Router",
    "RowDelta",
    "ScaledMaps",
    "ScaledPairs",
    "Sensitivity",
    "SettledAdapter",
    "SettledPair",
    "SettledStructure",
    "SparseDelta",
    "TensorDeltas",
    "TopEntries",
    "Triplets",
    "UncertainPair",
    "Whole",
    "allocate",
    "down_and_up",
    "drop_path",
    "fit_precision",
    "generator_of",
    "hypergradient",
    "kronecker_sum",
    "leading_entries",
    "log_evidence",
    "logit_covariance",
    "observe_curvature",
    "plain_loras",
    "require_blocks",
    "softmax_root",
    "squared_gradients",
    "top_entries",
    "triplets_at",
    "walsh_hadamard",
]
