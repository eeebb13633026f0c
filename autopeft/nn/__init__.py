"""Bricks that methods share."""

from __future__ import annotations

from autopeft.nn.allocation import Allocation, Whole, allocate, leading_entries
from autopeft.nn.batch_gradients import GRADIENT_POWERS, batch_gradients, clip_factor, requiring
from autopeft.nn.bottleneck import ACTIVATIONS, Activation, Bottleneck, Bottlenecks, NormedBottleneck
from autopeft.nn.chosen_entries import ChosenEntries, KeepConfig
from autopeft.nn.divergence import symmetric_divergence
from autopeft.nn.fastfood import Fastfood
from autopeft.nn.fusion import Fusion
from autopeft.nn.gated_deltas import DiffPruningConfig, GatedDeltas, GatedEntries, HardConcrete
from autopeft.nn.hadamard import walsh_hadamard
from autopeft.nn.hypergradient import hypergradient
from autopeft.nn.kronecker import LowRankKronecker, kronecker_sum, require_blocks
from autopeft.nn.kronecker_curvature import KroneckerCurvature, fit_precision, log_evidence, softmax_root
from autopeft.nn.low_rank import Down, JoinedPair, LowRankPair, PrunedPair
from autopeft.nn.nested_pair import NestedPair
from autopeft.nn.per_site import PerSite
from autopeft.nn.prefixes import PrefixConfig, Prefixes, PrefixMethod
from autopeft.nn.prompt_encoder import PromptEncoder, PromptRows
from autopeft.nn.prompt_table import PromptInit, PromptTable, prompt_width
from autopeft.nn.ranked_entries import RankedEntries, ranked, reach_of
from autopeft.nn.router import Router
from autopeft.nn.scaled_maps import (
    JoinedPairs,
    PrunedPairs,
    ScaledMaps,
    ScaledPairs,
    down_and_up,
    plain_loras,
)
from autopeft.nn.searched_biases import BiasSearchConfig, SearchedBiases
from autopeft.nn.searched_entries import SearchConfig, SearchedEntries
from autopeft.nn.seeds import generator_of
from autopeft.nn.settled_maps import SettledAdapter, SettledPair, drop_path
from autopeft.nn.settled_structure import SettledStructure
from autopeft.nn.sparse_delta import SparseDelta
from autopeft.nn.stored_prompts import (
    Similarity,
    mixture,
    only_prompt,
    prompt_similarity,
    stored_prompt,
)
from autopeft.nn.summary import Summary, summarised, summary_of
from autopeft.nn.task_generator import TaskGenerator, bottleneck_shapes, rows_through
from autopeft.nn.tensor_deltas import TensorDeltas, norms_around
from autopeft.nn.top_entries import TopEntries, top_entries
from autopeft.nn.uncertain_pair import UncertainPair, logit_covariance, observe_curvature

__all__ = [
    "ACTIVATIONS",
    "GRADIENT_POWERS",
    "Activation",
    "Allocation",
    "BiasSearchConfig",
    "Bottleneck",
    "Bottlenecks",
    "ChosenEntries",
    "DiffPruningConfig",
    "Down",
    "Fastfood",
    "Fusion",
    "GatedDeltas",
    "GatedEntries",
    "HardConcrete",
    "JoinedPair",
    "JoinedPairs",
    "KeepConfig",
    "KroneckerCurvature",
    "LowRankKronecker",
    "LowRankPair",
    "NestedPair",
    "NormedBottleneck",
    "PerSite",
    "PrefixConfig",
    "PrefixMethod",
    "Prefixes",
    "PromptEncoder",
    "PromptInit",
    "PromptRows",
    "PromptTable",
    "PrunedPair",
    "PrunedPairs",
    "RankedEntries",
    "Router",
    "ScaledMaps",
    "ScaledPairs",
    "SearchConfig",
    "SearchedBiases",
    "SearchedEntries",
    "SettledAdapter",
    "SettledPair",
    "SettledStructure",
    "Similarity",
    "SparseDelta",
    "Summary",
    "TaskGenerator",
    "TensorDeltas",
    "TopEntries",
    "UncertainPair",
    "Whole",
    "allocate",
    "batch_gradients",
    "bottleneck_shapes",
    "clip_factor",
    "down_and_up",
    "drop_path",
    "fit_precision",
    "generator_of",
    "hypergradient",
    "kronecker_sum",
    "leading_entries",
    "log_evidence",
    "logit_covariance",
    "mixture",
    "norms_around",
    "observe_curvature",
    "only_prompt",
    "plain_loras",
    "prompt_similarity",
    "prompt_width",
    "ranked",
    "reach_of",
    "require_blocks",
    "requiring",
    "rows_through",
    "softmax_root",
    "stored_prompt",
    "summarised",
    "summary_of",
    "symmetric_divergence",
    "top_entries",
    "walsh_hadamard",
]
