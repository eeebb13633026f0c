"""The seven ways in: what a method's module must have to act on a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from autopeft.method.contract import Call
from autopeft.method.reserved import Slot
from autopeft.spec import Site

__all__ = [
    "HookModule",
    "KeyValueModule",
    "LogitsModule",
    "PromptModule",
    "RegionModule",
    "ScoresModule",
    "WeightModule",
    "WeightTarget",
]


@dataclass(frozen=True)
class WeightTarget:
    """A backbone tensor that a weight method alters: the weight of a linear `site`, or a `tensor` by name.

    For a site the weight is handed over as (out, in), whatever the backbone's layout (Conv1D, fused
    projections); for a tensor as it is stored.
    """

    site: Site | None = None
    tensor: str | None = None

    @property
    def key(self) -> str:
        return self.site.key if self.site is not None else str(self.tensor)


class HookModule(Protocol):
    """Acts on activations. `side(site)` says whether it alters the site's input or its output, or neither:
    then nothing is installed there until it is asked again, when calibration or loading has settled it.

    `delta(site, x, y, call)` returns what is added, in the shape of the altered tensor: of y (batch, …,
    out) on the output side, of x on the input side (where y is x).
    """

    def side(self, site: Site) -> Literal["input", "output"] | None: ...

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor: ...


class RegionModule(Protocol):
    """Takes the place of a region (a whole layer), and runs the frozen one on the rows that it chooses.

    `around` returns what the region is to yield for x (batch, positions, hidden), made with `call.region`,
    which it asks at least once (see `Call`). One such module can be at a site. Where it acts on activations
    too, regions are the sites for which `side` is `None`.
    """

    def around(self, site: Site, x: Tensor, call: Call) -> Tensor: ...


class WeightModule(Protocol):
    """Alters backbone tensors. `weight` returns the new tensor.

    `original` is the backbone's tensor, `current` what earlier weight methods made of it; an additive
    method returns current + Δ, a direction method current + (f(original) − original).
    """

    def weight_targets(self) -> Sequence[WeightTarget]: ...

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor: ...


class KeyValueModule(Protocol):
    """Prepends keys and values to an attention region.

    Returns two tensors (1 or batch, length, kv_features).
    """

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]: ...


class ScoresModule(Protocol):
    """Adds a term to the scores of a self-attention, of a product of what it says of queries and of keys.

    `query_key` returns features of the queries, (1 or batch, queries, features), and of the keys, (1 or
    batch, keys, features), which all heads share. They are as if appended to queries and keys: (Q·Kᵀ +
    F_q·F_kᵀ) before the attention scales (1/√d_h in most families, 1 in T5), caps and masks it. Keys are
    those of the sequence, prefixes have none. Keys from a cache are among them, so that features may depend
    on the places (`call.places`) and, of queries alone, on x (batch, queries, hidden), which has the
    backbone's dtype.
    """

    def query_key(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]: ...


class PromptModule(Protocol):
    """Fills rows that are reserved in the sequence: at the embeddings among the tokens, at a site `layer` in
    front of what that layer reads, for that layer alone (`Slot.leaves`) or for those above it too, or there
    in the place of the rows that it has already (`Slot.renews`).

    `slots(site)` says where and how many; nothing for a site where it fills none now, which a phase of the
    training may settle. `prompt(site, x, call)` returns the rows, (1 or batch, rows of all slots, hidden). x
    is the text alone, (batch, tokens, hidden): the token embeddings, or the layer's input without the rows
    reserved before.
    """

    def slots(self, site: Site) -> Sequence[Slot]: ...

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor: ...


class LogitsModule(Protocol):
    """Acts on logits. `logits(hidden, logits, call)` returns what is added to them, in their shape.

    Args of it are what the last map reads, (…, hidden), and what it yields, (…, width), for rows, for all
    tokens or for some of them: a language model's loss reads those alone that predict something, and a step
    of generation the last one. So each position is for itself. What is made of the text as a whole takes
    `call.context.tokens`, and `call.read` leaves of it what belongs to the logits at hand.
    """

    def logits(self, hidden: Tensor, logits: Tensor, call: Call) -> Tensor: ...
