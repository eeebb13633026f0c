"""U-BitFit: the single bias entries that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from autopeft.method import Interim, ParameterCount, Traits, register
from autopeft.nn import BiasSearchConfig, SearchedBiases
from autopeft.spec import BackboneSpec, Site

__all__ = ["UBitFit"]


@register("u_bitfit")
class UBitFit:
    """b = b₀ + m·v: BitFit on the k bias entries m that a search over all of them finds.

    Lawton et al. 2023, arXiv:2305.16597 (no official code). The share `search` of the steps trains the update
    v of every bias, of linear maps and norms, from zero. Over its last steps (the share `scored`) every entry
    gathers I = Σ −v·∂L/∂v, the first-order estimate of how much the loss would rise without its update; the k
    largest of all tensors together are chosen. With `rewind` all that the recipe trains, the head too, then
    returns to its first values, and the other steps train the chosen entries alone with a new optimizer and
    schedule; without it they go on from where the search has left them.

    That scores are of first order, and that entries (here) or whole tensors (`s_bitfit`) are chosen, is what
    the paper says; that I is summed with its sign (`score: abs` ranks by |I|), over which steps, that all is
    chosen at once and that values are reset are options or choices of this project. `keep` is k, or a share
    of all biases. With all of them it trains as `bitfit` does. Backbones without biases (Llama, T5) are
    refused.

    Mergeable. k parameters (and k indices, which are storage). The search trains all biases, which are not
    counted: L·(7d + d_ff) + d for a BERT-like encoder, and d with its pooler. Such a training cannot pause.
    One that is stopped before leaves what had the best scores so far.
    """

    traits = Traits(ways=frozenset({"weight"}), level="model", mergeable=True, gateable=False, phased=True)
    size_field: ClassVar[str] = "keep"
    Config = BiasSearchConfig

    def __init__(self, config: BiasSearchConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self.config.budget("u_bitfit", spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        return self.config.interim("u_bitfit", spec)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        return SearchedBiases(c.biases("u_bitfit", spec), c.budget("u_bitfit", spec), c)
