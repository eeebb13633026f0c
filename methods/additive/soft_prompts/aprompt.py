"""Attention prompt tuning: prompts in front of every layer, in its keys and values, and in its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, Narrow, ParameterCount, Slot, Traits, Way, register
from autopeft.nn import PerSite, PromptInit, PromptRows, PromptTable, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["APrompt"]

_STD = 0.02


def _attentions(sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if site.name == "attention"]


class QueryKeyTerm(nn.Module):
    """P_q and P_k (positions, width), a row for each place of a token; elsewhere zeros stand."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(positions, width) * _STD)
        self.keys = nn.Parameter(torch.zeros(positions, width))

    @staticmethod
    def of(table: Tensor, places: Tensor) -> Tensor:
        """The rows (1 or batch, places, width) of places (1 or batch, places)."""
        known = (places >= 0) & (places < len(table))
        return table[places.clamp(0, len(table) - 1)] * known[..., None].to(table.dtype)


class AttentionPrompts(nn.Module):
    """Everything that APrompt trains, by site."""

    def __init__(self, sites: Sequence[Site], config: APrompt.Config, positions: int) -> None:
        super().__init__()
        c, attentions = config, _attentions(sites)
        self.length = c.length
        self.first = PerSite(
            {s.key: PromptTable(c.length, s.out_features, c.init) for s in sites if s.layer is None}
        )
        layers = [s for s in sites if s.name == "layer"]
        self.inputs = nn.ParameterDict(
            {s.key: nn.Parameter(torch.randn(c.length, s.in_features) * _STD) for s in layers}
        )
        self.prefixes = PerSite(
            {s.key: PromptRows(c.kv_length, 2 * s.kv_features) for s in attentions if c.kv_length}
        )
        self.terms = PerSite({s.key: QueryKeyTerm(positions, c.qk_width) for s in attentions if c.qk_width})

    def initialise_prompt(self, embedding: Tensor) -> None:
        """Hand the embedding (V, d) to the first prompts."""
        for table in self.first.children_by_site():
            table.initialise_prompt(embedding)

    def slots(self, site: Site) -> Sequence[Slot]:
        if site.layer is None:
            return (Slot(self.length),)
        return (Slot(self.length, renews=True),) if site.key in self.inputs else ()

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        rows: Tensor = (
            self.first[site].prompt(site, x, call) if site.layer is None else self.inputs[site.key][None]
        )
        return rows

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        keys, values = self.prefixes[site]()[None].chunk(2, dim=-1)
        return keys, values

    def query_key(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        term, places = self.terms[site], call.places
        assert places is not None
        return term.of(term.queries, places.queries), term.of(term.keys, places.keys)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The prompts of each kind that is there."""
        found = {
            "input": [*self.first.parameters(), *self.inputs.parameters()],
            "key_value": list(self.prefixes.parameters()),
            "query_key": list(self.terms.parameters()),
        }
        return {name: parameters for name, parameters in found.items() if parameters}


@register("aprompt")
class APrompt:
    """Layers run on [P; Z], attend to [P_k; K] and [P_v; V], and score (Q·Kᵀ + P_q·P_qkᵀ)·s.

    Wang et al. 2023, ACL:2023.emnlp-main.567. Input prompts P (length × d): the first stands in front of the
    embeddings as prompt-tuning's does (`init`), and in front of each further layer another takes the place of
    what the layer below has made of it, so that only the text is passed on. Key-value prompts P_k, P_v
    (`kv_length` × kv) are prefix-tuning's. Query-key prompts P_q, P_qk (`positions` × `qk_width`) have a row
    for each place of a token, which all heads share: appended to queries and keys along the feature axis,
    they add to the scores before the attention scales them (s is 1 in T5). Prompts, prefixes and tokens
    behind the last position have zeros there. All stand in each stack; what an encoder's last rows have
    become is left to the decoder, as prompt-tuning leaves it. A length or width of zero leaves a group out.
    No code of the authors was found, and the paper was read in a translation (its §4, §5.3 and §6). It calls
    query-key prompts small matrices appended to queries and keys, and does not tell along which axis: this is
    the reading that keeps all lengths. The paper has length 10, and 1 to 50 of the others. Later prompts,
    key-value prompts and P_q start from N(0, 0.02), P_qk at zero (of this project). Not the identity at init,
    but where there are query-key prompts alone; not mergeable.

    For each layer l·d + 2·l_kv·kv + 2·n·l_qk parameters, with n at most the positions of the backbone.
    """

    traits = Traits(
        ways=frozenset({"prompt", "kv", "scores"}),
        sites=("embeddings", "layer", "attention"),
        default_sites=("embeddings", "layer", "attention"),
        level="model",
        identity=False,
        gateable=False,
        every_stack=True,
    )
    part_names: tuple[str, ...] = ("input", "key_value", "query_key")
    narrow: ClassVar[Narrow] = {
        "length": {"table": (0,), "inputs": (0,)},
        "kv_length": {"rows": (0,)},
        "qk_width": {"queries": (1,), "keys": (1,)},
    }

    class Config(MethodConfig):
        length: int = Field(default=10, ge=0, le=4096, description="l, of input prompts")
        kv_length: int = Field(default=10, ge=0, le=4096, description="l_kv, of key-value prompts")
        qk_width: int = Field(default=5, ge=0, le=256, description="l_qk, of query-key prompts")
        positions: int = Field(default=512, ge=1, le=1 << 16, description="n, tokens with query-key prompts")
        init: PromptInit = Field(default="uniform", description="of the first input prompt")

        @model_validator(mode="after")
        def _has_prompts(self) -> APrompt.Config:
            if not (self.length or self.kv_length or self.qk_width):
                raise ValueError("`length`, `kv_length` and `qk_width` are all 0; give one of them")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        groups: tuple[tuple[Way, str, int], ...] = (
            ("prompt", "input", config.length),
            ("kv", "key_value", config.kv_length),
            ("scores", "query_key", config.qk_width),
        )
        ways = frozenset(way for way, _, size in groups if size)
        self.traits = replace(self.traits, ways=ways, identity=ways == {"scores"})
        self.part_names = tuple(part for _, part, size in groups if size)

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """Without the first layer, whose prompt stands at the embeddings, and without what has size zero."""
        c = self.config
        wanted = {
            "embeddings": bool(c.length),
            "layer": bool(c.length),
            "attention": bool(c.kv_length or c.qk_width),
        }
        return tuple(s for s in sites if wanted[s.name] and (s.name, s.layer) != ("layer", 0))

    def _positions(self, spec: BackboneSpec) -> int:
        return min(self.config.positions, spec.max_positions or self.config.positions)

    def _check(self, sites: Sequence[Site], spec: BackboneSpec) -> None:
        c, names = self.config, {site.name for site in sites}
        wanted = ("embeddings", "layer") if c.sites is None and spec.stacks[0].layers > 1 else ("embeddings",)
        missing = [f"the site {name!r}" for name in wanted if c.length and name not in names]
        entered = {site.stack for site in sites if site.name == "embeddings"}
        later = {site.stack for site in sites if site.name == "layer"} - entered
        missing += [f"the site 'embeddings' of its {stack}" for stack in sorted(later) if c.length]
        blind = [s for s in _attentions(sites) if c.kv_length and not s.kv_features]
        missing += [f"the width of keys and values at {s}" for s in blind]
        if missing:
            raise MethodError(
                f"aprompt with length={c.length} and kv_length={c.kv_length} needs {missing[0]}, which "
                f"{spec.family!r} or the entry's `sites` lack; add it, or set what needs it to 0."
            )
        for site in sites:
            if site.layer is None:
                prompt_width("aprompt", [site], spec, c.init)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        self._check(sites, spec)
        c, attentions = self.config, _attentions(sites)
        n = sum(c.length * s.in_features for s in sites if s.name != "attention")
        n += sum(2 * c.kv_length * s.kv_features for s in attentions)
        n += len(attentions) * 2 * self._positions(spec) * c.qk_width
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return AttentionPrompts(sites, self.config, self._positions(spec))
