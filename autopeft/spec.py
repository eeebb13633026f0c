"""What a backbone is, for checking and counting: stacks, layers, sites and tensors, without any weights.

A `BackboneSpec` is read from a config alone (see `autopeft.backbones.spec_of`). Everything below the
injection room (methods, graph, counting) knows a backbone only through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from autopeft.errors import SiteError, near

__all__ = [
    "LINEAR_SITES",
    "NORM_SITES",
    "REGION_SITES",
    "SITE_NAMES",
    "BackboneSpec",
    "LogitsSpec",
    "Modality",
    "Site",
    "SiteKind",
    "StackName",
    "StackSpec",
    "TensorRole",
    "TensorSpec",
]

StackName = Literal["encoder", "decoder"]
Modality = Literal["text", "vision", "audio"]
SiteKind = Literal["linear", "norm", "region", "embeddings"]
TensorRole = Literal["weight", "bias", "norm_weight", "norm_bias", "embedding", "other"]

LINEAR_SITES = (
    "q", "k", "v", "o", "qkv", "cross_q", "cross_k", "cross_v", "cross_o", "up", "gate_proj", "down",
)  # fmt: skip
REGION_SITES = ("layer", "attention", "cross_attention", "ffn")
NORM_SITES = ("attention_norm", "cross_attention_norm", "ffn_norm")
SITE_NAMES = ("embeddings", *REGION_SITES, *LINEAR_SITES, *NORM_SITES, "pooler", "head")


@dataclass(frozen=True)
class Site:
    """A named place in a backbone.

    Attributes:
        stack: the stack it lies in.
        layer: 0-based layer index, or `None` for what belongs to the whole stack (embeddings).
        name: one of `SITE_NAMES`.
        kind: a `linear` map, a `norm`, the `embeddings`, or a `region` (a sub-layer: x is what the sub-layer
            consumes, y what it yields before the residual is added).
        in_features, out_features: widths of x and y.
        bias: whether a linear site or a norm has a bias.
        kv_features: for attention regions the width of keys and values (all KV heads together), else 0.
        pre_norm: for regions, whether the norm comes before the sub-layer (GPT-2, Llama, T5, ViT) or after
            the residual is added (BERT); `None` where it is not known.
        fused: whether a linear site is a part of a map that yields other sites too.
        whole: for regions, whether it is one module of the backbone, in whose place another can stand.
        multiplier: for regions, what y is multiplied by before it is added to the residual (Granite).
        key: its name in module trees (`encoder-0-q`): no dots, unique in a backbone.
        path: its name in saved files and tables (`encoder.0.q`).
    """

    stack: StackName
    layer: int | None
    name: str
    kind: SiteKind
    in_features: int
    out_features: int
    bias: bool = False
    kv_features: int = 0
    pre_norm: bool | None = None
    fused: bool = False
    multiplier: float = 1.0
    whole: bool = True

    key: str = field(init=False, repr=False, compare=False)
    path: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = f"{self.stack}-{self.name}" if self.layer is None else f"{self.stack}-{self.layer}-{self.name}"
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "path", key.replace("-", "."))

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class TensorSpec:
    """One parameter tensor of the base model, once per storage (of tied tensors only the first).

    `site` and `layer` tell where it lies when it belongs to a site of a layer. What belongs to a stack's
    embeddings (tables, positions, their norm) has the site `embeddings` and no layer, what belongs to the
    family's pooler the site `pooler` and neither stack nor layer. `parts` are the sites whose maps are slices
    of a fused projection's tensor, which may have no site as a whole (`up` and `gate_proj` of Phi-3's
    `gate_up_proj`). `offset` is what a norm adds to this weight before it scales by it (Gemma's scale by
    1 + w).
    """

    name: str
    shape: tuple[int, ...]
    role: TensorRole
    stack: StackName | None = None
    layer: int | None = None
    site: str | None = None
    parts: tuple[str, ...] = ()
    offset: float = 0.0

    @property
    def maps(self) -> tuple[str, ...]:
        """The site whose map it belongs to, or where there is none for the whole of it, those of its parts:
        names."""
        return self.parts if self.site is None else (self.site,)

    @cached_property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class StackSpec:
    """A list of layers of the same shape: `name`, number of `layers` with weights of their own, width
    `hidden`, whether it is `causal`, `head_dim`, the width of one attention head (`None` where it is not
    known), `window`, how many positions a query sees in layers with a sliding window (`None` where it sees
    all), how often each layer `runs` in a forward, one run after the other (ALBERT's, twelve times), and
    `projected`, the width to which its last states are projected behind the layers (OPT), where they are."""

    name: StackName
    layers: int
    hidden: int
    causal: bool
    head_dim: int | None = None
    window: int | None = None
    runs: int = 1
    projected: int | None = None

    @property
    def states(self) -> int:
        """Width of the last states, as the stack yields them."""
        return self.projected or self.hidden


@dataclass(frozen=True)
class LogitsSpec:
    """The linear map that yields a model's logits: `hidden` numbers in for each row or token, and `width`
    out, the classes of a head or the words of a language model, which has them of all `tokens`. `behind` is
    the option of its config by which it alters them afterwards (a cap, a scale), empty where it has none.
    `deep` says whether a head has layers of its own before the map; a config alone does not tell."""

    hidden: int
    width: int
    tokens: bool = False
    behind: str = ""
    deep: bool = False


@dataclass(frozen=True)
class BackboneSpec:
    """Everything that checking and counting need to know of a backbone.

    Attributes:
        family: the config's `model_type`.
        stacks: one stack, or encoder and decoder.
        sites: every site, in order of stack, layer and depth.
        tensors: every parameter tensor of the base model that is there to be altered, once per storage.
        parameters: unique parameters of the family's whole base model, embeddings and pooler included, head
            left out: what a share is of, also where a task's model leaves the pooler away.
        modality: what its first stack reads, `text`, `vision` or `audio`.
        max_positions: longest sequence that the position embeddings allow, or `None` where there is no limit.
        prompt_side: where reserved rows go: `left` for text, `right` for vision.
        pooler: whether the base model has a pooler.
        generic: whether the generic resolver found the sites (no map of this family).
        logits: the last map of the model that is used; of a config alone that of a language model where the
            last stack is causal, else that of a head with the config's labels. `None` where a model has none.
        lacks: site → why the family has none.
    """

    family: str
    stacks: tuple[StackSpec, ...]
    sites: tuple[Site, ...]
    tensors: tuple[TensorSpec, ...] = field(repr=False)
    parameters: int
    modality: Modality = "text"
    max_positions: int | None = None
    prompt_side: Literal["left", "right"] = "left"
    pooler: bool = False
    generic: bool = False
    logits: LogitsSpec | None = field(default=None, compare=False)
    lacks: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _by_key(self) -> dict[str, Site]:
        return {s.key: s for s in self.sites}

    @cached_property
    def _by_place(self) -> dict[tuple[str, int | None, str], Site]:
        return {(s.stack, s.layer, s.name): s for s in self.sites}

    @cached_property
    def past_pooler(self) -> BackboneSpec:
        """This backbone for a head that reads past its pooler: nothing acts on the pooler's tensors then."""
        tensors = tuple(t for t in self.tensors if t.site != "pooler")
        return self if len(tensors) == len(self.tensors) else replace(self, pooler=False, tensors=tensors)

    @property
    def encoder_decoder(self) -> bool:
        return len(self.stacks) > 1

    def stack(self, name: str) -> StackSpec:
        """The stack called `name`.

        Raises:
            SiteError: this backbone has no such stack.
        """
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise SiteError(f"{self.family!r} has no stack {name!r}; it has {[s.name for s in self.stacks]}.")

    def site(self, key: str) -> Site:
        """The site with this key (`encoder-0-q`)."""
        return self._by_key[key]

    def find(self, stack: str, layer: int | None, name: str) -> Site | None:
        """The site of that name in that layer, or `None` where this stack has none."""
        return self._by_place.get((stack, layer, name))

    def site_names(self, stacks: Iterable[str] | None = None) -> tuple[str, ...]:
        """Names that exist in the given stacks (default: in any), in the order of `SITE_NAMES`."""
        wanted = None if stacks is None else set(stacks)
        have = {s.name for s in self.sites if wanted is None or s.stack in wanted}
        return tuple(n for n in SITE_NAMES if n in have)

    def require_name(self, name: str) -> None:
        """Check that a site name exists somewhere on this backbone.

        Raises:
            SiteError: it does not; the message lists near matches and what exists.
        """
        have = self.site_names()
        if name not in have:
            why = self.lacks.get(name)
            hint = near(name, have) if why is None else f" {why}"
            raise SiteError(f"{self.family!r} has no site {name!r}.{hint} It has: {', '.join(have)}.")
