"""The composition graph: a recipe resolved on a backbone, checked before anything is built."""

from __future__ import annotations

from autopeft.graph.core import (
    CompositionGraph,
    build_graph,
    draw_box,
    draw_mermaid,
    draw_svg,
    draw_text,
    read_by,
)
from autopeft.graph.depth import first_layer, is_rowwise_in, is_rowwise_on_logits
from autopeft.graph.layer_masks import WHOLE
from autopeft.graph.memo import Memo
from autopeft.graph.merging import REGION_ENDS, first_unmergeable, readers_of, unmergeable
from autopeft.graph.packed import on_packed, on_packed_entries
from autopeft.graph.parts import Part, Parts, Shape, clash, hash_of, parts_of, total_of
from autopeft.graph.serving import (
    ONE_MODEL,
    SERVED,
    VLLM_RANKS,
    WITHOUT_VLLM_LORA,
    taken_for_experts,
    unservable,
    unservable_entries,
)
from autopeft.graph.sharding import on_sharded, on_sharded_entries
from autopeft.graph.tree import Entry, Leaf, Node, Tree, child_spec

__all__ = [
    "ONE_MODEL",
    "REGION_ENDS",
    "SERVED",
    "VLLM_RANKS",
    "WHOLE",
    "WITHOUT_VLLM_LORA",
    "CompositionGraph",
    "Entry",
    "Leaf",
    "Memo",
    "Node",
    "Part",
    "Parts",
    "Shape",
    "Tree",
    "build_graph",
    "child_spec",
    "clash",
    "draw_box",
    "draw_mermaid",
    "draw_svg",
    "draw_text",
    "first_layer",
    "first_unmergeable",
    "hash_of",
    "is_rowwise_in",
    "is_rowwise_on_logits",
    "on_packed",
    "on_packed_entries",
    "on_sharded",
    "on_sharded_entries",
    "parts_of",
    "read_by",
    "readers_of",
    "taken_for_experts",
    "total_of",
    "unmergeable",
    "unservable",
    "unservable_entries",
]
