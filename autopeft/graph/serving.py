"""Whether a hybrid can be served in a given way, known from its graph before training.

| way | what is served |
|---|---|
| `peft` | the adapter in the words of Hugging Face peft |
| `merged` | the whole model with the hybrid in its weights |
| `vllm` | a LoRA beside the backbone, exact, as vLLM's rules have it (see `autopeft.export.vllm_rules`) |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from autopeft.composition import get_composition
from autopeft.graph.core import CompositionGraph
from autopeft.graph.merging import unmergeable
from autopeft.graph.tree import Entry, Leaf, Tree
from autopeft.method import PeftFormat, PeftKind
from autopeft.spec import BackboneSpec, Site

__all__ = [
    "ONE_MODEL",
    "SERVED",
    "VLLM_RANKS",
    "WITHOUT_VLLM_LORA",
    "taken_for_experts",
    "unservable",
    "unservable_entries",
]

SERVED = ("peft", "merged", "vllm")

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `--max-lora-rank` takes."""

WITHOUT_VLLM_LORA = (
    "bert", "electra", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "gpt2", "t5", "vit",
)  # fmt: skip
"""Families with a site map for which vLLM has no LoRA."""

ONE_MODEL = "switch that off (`ensemble: 0`, `samples: 0`)"
"""The way out for methods that predict with several models."""

_BIASES_SAID = ("llama",)  # their configs have flags for biases of all linear maps
_PREFIXES = ("llama", "mistral", "qwen2")


def unservable(graph: CompositionGraph, way: str, *, head: bool) -> str | None:
    """Why a graph cannot be served in a way, as part of a sentence; `None` where it can, as far as a graph
    tells.

    Args:
        way: one of `SERVED`.
        head: whether the task has a trained head.
    """
    return _RULES[way](graph, head)


def unservable_entries(graph: CompositionGraph, way: str) -> int:
    """How many entries stand in the way, so that a search can tell what is nearer."""
    entries = list(graph.entries.values())
    if way == "peft":
        said = Counter(entry.method.name for entry in entries if _in_peft(entry) is not None)
        return len(entries) - max(said.values(), default=0)
    if way == "vllm":
        return sum(change_rank(entry) is None for entry in entries)
    return sum(not entry.traits.mergeable for entry in entries)


def change_rank(entry: Entry) -> int | None:
    """The largest rank of what an entry adds to a map's weight; `None` where it does anything else."""
    found: int | None = getattr(entry.method, "change_rank", None)
    return found if entry.traits.mergeable and entry.ways == {"hook"} else None


def _in_peft(entry: Entry) -> PeftFormat | None:
    """The format of peft that says an entry's method."""
    found: PeftFormat | None = getattr(entry.method, "peft", None)
    return found


def _merged(graph: CompositionGraph, head: bool) -> str | None:
    why = unmergeable(graph)
    if why is not None or graph.spec.family in _BIASES_SAID:
        return why
    for entry in graph.entries.values():
        bare = next((s for s in entry.sites if s.kind in ("linear", "norm") and not s.bias), None)
        if entry.traits.shifts and bare is not None:
            family = graph.spec.family
            return f"merged, {entry.name} needs a bias at {bare.path}, which {family!r} has no word for"
    return None


def _peft(graph: CompositionGraph, head: bool) -> str | None:
    entries = list(graph.entries.values())
    if not entries:
        return "this recipe has no entries"
    methods = sorted({entry.method.name for entry in entries})
    if len(methods) > 1:
        return f"Hugging Face peft holds one method, but this hybrid has {', '.join(methods)}"
    composed = _not_additive(graph.trees)
    if composed is not None:
        return f"Hugging Face peft knows no composition like {composed!r}"
    seen: set[str] = set()
    for entry in entries:
        twice = next((site.path for site in entry.sites if site.key in seen), None)
        if twice is not None:
            return f"two {methods[0]} entries share the site {twice}, which peft cannot say"
        seen |= {site.key for site in entry.sites}
    said = [_in_peft(entry) for entry in entries]
    against = next((one.against for one in said if one is not None and one.against), None)
    if said[0] is None:
        return f"Hugging Face peft has no method that equals {methods[0]}"
    if said[0].kind in ("prompt", "prefix"):
        return _peft_rows(graph, entries, said[0].kind, head) or against
    several = next((entry.name for entry in entries if not entry.traits.mergeable), None)
    if said[0].kind in ("lora", "dora") and several is not None:
        return (
            f"{several} predicts with several models (an ensemble, a posterior) and Hugging Face peft holds "
            f"one: {ONE_MODEL}"
        )
    return _part(graph.spec, entries) or against


def taken_for_experts(spec: BackboneSpec, sites: Iterable[Site]) -> str | None:
    """Why a LoRA of these sites would not be read as it is meant: in a family of experts, Hugging Face peft
    takes the names of the maps of a layer without experts for theirs (Qwen3-MoE has such layers)."""
    found = next((site for site in sites if site.kind == "linear" and site.name in spec.lacks), None)
    if found is None:
        return None
    return (
        f"Hugging Face peft takes the name of {found.path} for the experts of other layers of "
        f"{spec.family!r}; leave it out"
    )


def _part(spec: BackboneSpec, entries: Iterable[Entry]) -> str | None:
    """Whether a site is a part of a fused projection, or would be taken for another."""
    for entry in entries:
        why = taken_for_experts(spec, entry.sites)
        if why is not None:
            return why
        for site in entry.sites:
            if site.fused:
                other = spec.find(site.stack, site.layer, "qkv") if site.name in ("q", "k", "v") else None
                instead = "leave it out" if other is None else "put the method on 'qkv' instead"
                return (
                    f"{site.path} is a part of a fused projection, and Hugging Face peft adapts whole "
                    f"modules; {instead}"
                )
    return None


def _peft_rows(graph: CompositionGraph, entries: list[Entry], kind: PeftKind, head: bool) -> str | None:
    """Prompts and prefixes: peft's are those of causal language models."""
    name, spec = entries[0].method.name, graph.spec
    if head or spec.encoder_decoder or not all(stack.causal for stack in spec.stacks):
        return (
            f"Hugging Face peft's {name} counts its rows as text where a model reads its head, which this "
            "hybrid does not; it can be said for causal language models only"
        )
    if kind == "prompt":
        return None if len(entries) == 1 else f"peft holds one prompt, but this hybrid has {len(entries)}"
    if spec.family not in _PREFIXES:
        return (
            f"Hugging Face peft lets the text start after the prefix, which on {spec.family!r} reads other "
            "position embeddings"
        )
    layers = [site.layer for entry in entries for site in entry.sites]
    lengths = {
        getattr(entry.method.config, getattr(entry.method, "size_field", ""), None) for entry in entries
    }
    if len(lengths) > 1 or len(layers) != spec.stacks[0].layers:
        return "peft's prefix has one length in all layers, and this one has not"
    return None


def _vllm(graph: CompositionGraph, head: bool) -> str | None:
    spec = graph.spec
    if head:
        return "vLLM's LoRAs hold no trained head; serve a model with one as merged"
    if spec.family in WITHOUT_VLLM_LORA:
        return f"vLLM has no LoRA for {spec.family!r}; serve it as merged"
    entries = list(graph.entries.values())
    if not entries:
        return "this recipe has no entries"
    other = next((entry.name for entry in entries if change_rank(entry) is None), None)
    if other is not None:
        return f"what {other} does is no LoRA of a known rank"
    composed = _not_additive(graph.trees)
    if composed is not None:
        return f"a LoRA knows no composition like {composed!r}"
    why = taken_for_experts(spec, graph.sites())
    if why is not None:
        return why
    ranks: Counter[Site] = Counter()
    for entry in entries:
        ranks.update({site: change_rank(entry) or 0 for site in entry.sites})
    site, rank = max(ranks.items(), key=lambda item: item[1])
    if rank > VLLM_RANKS[-1]:
        return f"at {site.path} the ranks add up to {rank}, and vLLM takes at most {VLLM_RANKS[-1]}"
    return None


def _not_additive(trees: Iterable[Tree]) -> str | None:
    """The first composition whose deltas do not add."""
    for tree in trees:
        if isinstance(tree, Leaf):
            continue
        if not get_composition(tree.kind).traits.additive:
            return tree.kind
        inner = _not_additive(tree.children)
        if inner is not None:
            return inner
    return None


_RULES: Mapping[str, Callable[[CompositionGraph, bool], str | None]] = {
    "peft": _peft,
    "merged": _merged,
    "vllm": _vllm,
}
