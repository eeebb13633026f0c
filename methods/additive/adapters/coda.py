"""CoDA: every token goes through a light adapter, and the chosen ones through the frozen layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.devices import full_precision
from autopeft.errors import CompositionError
from autopeft.method import Call, MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import Activation, Bottleneck, Bottlenecks, TensorDeltas
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["CoDA"]


_LOWEST = -1e9  # the score of what is not there; ten thousand times of it is a number in fp32 yet


def soft_top_k(
    scores: Tensor,
    k: Tensor,
    *,
    temperature: float,
    iterations: int,
    start: float | None = None,
    decay: float = 0.7,
    mask: Tensor | None = None,
) -> Tensor:
    """λ (batch, n) in [0, 1] in fp32 that maximises s·λ + ε·H(λ) under Σλ = k, with a gradient for s.

    Each iteration sets a = ε·ln k − ε·logsumexp((s + b)/ε), b = min(0, −(s + a)), from b = −s; then λ =
    exp((s + a + b)/ε). ε falls from `start` by `decay` in each iteration down to the `temperature`; without
    `start` it is that from the first. Lei et al. 2023, arXiv:2304.04947, as lucidrains/CoLT5-attention
    (colt5_attention/coor_descent.py) has it; other ports begin at b = 0, with the same limit. Σλ is k when
    the iterations have converged, which 20 of them need not. k = 1 gives the softmax of s/ε, and where k is
    all there is, λ is 1.

    Args:
        scores: s (batch, n).
        k: how many of each row, (batch,), at least 1.
        mask: (batch, n), 0 for what is not there.
    """
    with full_precision(scores.device):
        s = scores.float()
        there = torch.ones_like(s, dtype=torch.bool) if mask is None else mask.bool()
        s = s.masked_fill(~there, _LOWEST)
        eps = temperature if start is None else max(start, temperature)
        log_k, b = k.float().log()[:, None], -s
        b = b.masked_fill(~there, 0.0)
        a = torch.zeros_like(log_k)
        for _ in range(iterations):
            a = eps * (log_k - torch.logsumexp((s + b) / eps, dim=-1, keepdim=True))
            b = -torch.relu(s + a)
            last, eps = eps, max(eps * decay, temperature)
        found = torch.exp((s + a + b) / last)
        return torch.where(k[:, None] >= there.sum(-1, keepdim=True), 1.0, found) * there


class ConditionalAdapter(Bottleneck):
    """The adapter of a layer, and the vector w that scores its tokens."""

    def __init__(self, width: int, config: CoDA.Config) -> None:
        super().__init__(width, config.bottleneck, activation=config.activation, init="lora")
        self.router = nn.Parameter(torch.randn(width) * width**-0.5)


class CoDAModule(Bottlenecks[ConditionalAdapter]):
    """An adapter and a router for each layer, and deltas of the norms of these layers."""

    def __init__(
        self, children: dict[str, ConditionalAdapter], norms: Sequence[TensorSpec], config: CoDA.Config
    ) -> None:
        super().__init__(children)
        self.norms = TensorDeltas(norms)
        self.config = config

    def routed(self, site: Site, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which positions go through the layer, (batch, k) for the k of the longest row, and their λ, zero
        for those that a shorter row has no use for; from xₙ (batch, positions, hidden)."""
        c, (batch, n) = self.config, x.shape[:2]
        lengths = torch.full((batch,), n, device=x.device) if mask is None else mask.long().sum(1)
        k = ((lengths + c.reduction - 1) // c.reduction).clamp(min=1)
        # No product of matrices, whose rounding may depend on the place of a row, or be of 16 bits.
        scores = (x.float() * self[site].router.float()).sum(-1)
        weights = soft_top_k(
            scores,
            k,
            temperature=c.temperature,
            iterations=c.iterations,
            start=c.start,
            decay=c.decay,
            mask=mask,
        )
        # λ rises with the score, and is 1 for several. Equal tokens have equal scores where positions come
        # later: of these the first, whatever else is in the batch.
        there = scores if mask is None else scores.masked_fill(~mask.bool(), -torch.inf)
        most = torch.arange(int(k.max()), device=x.device)
        rows = there.argsort(dim=-1, descending=True, stable=True)[:, : len(most)]
        return rows, weights.gather(1, rows) * (most < k[:, None])

    def around(self, site: Site, x: Tensor, call: Call) -> Tensor:
        if call.region is None:
            raise CompositionError(f"coda takes the place of {site.path}, and was called outside of it.")
        normed = x if call.norm is None else call.norm(x)
        mask = call.context.told(f"coda at {site.path} is told which positions are padding by")
        rows, weights = self.routed(site, normed, mask)
        index = rows[..., None].expand(-1, -1, x.shape[-1])
        change = weights.to(x.dtype)[..., None] * (call.region(x, rows) - x.gather(1, index))
        adapter = self[site]
        light = adapter(normed.to(adapter.router.dtype)).to(x.dtype)
        return torch.scatter_add(x + light, 1, index, change)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        routers = [own.router for own in self.children_by_site()]
        return {**super().parts(), "router": routers, "norms": list(self.norms.parameters())}

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.norms.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.norms.apply_to(str(target.tensor), current)


@register("coda")
class CoDA:
    """Y = X + ReLU(Xₙ·W_dn + b_dn)·W_up + b_up + λ·(layer(X) − X), λ zero but at ⌈n/reduction⌉ chosen tokens.

    Lei et al. 2023, arXiv:2304.04947 (conditional adapters). The frozen layer runs for the chosen tokens
    alone, whose queries attend to all (k-to-all); all others pass by. Xₙ is X behind the layer's first norm,
    or X itself where norms come after. Scores are s = Xₙ·w. The k tokens of the largest scores are chosen, λ
    their soft weights (`soft_top_k`), by which the router learns. Gains and biases of the layer's norms are
    trained too (`train_norms`), as zero-initialised deltas. Training and evaluation choose alike; padding is
    not chosen and does not count in n. What else acts in the layer has an effect on chosen tokens alone.
    `reduction: 1` is the dense layer with a parallel adapter.

    The authors published no code, and of the paper only abstract and introduction could be read. The formula
    of Y, the scores and k-to-all are as a port to Whisper has them, which cites the paper's equations; that
    norms are trained is said by notes on the paper's second version. T, ε, its start and its decay are those
    that lucidrains/CoLT5-attention (coor_descent.py, transformer_block.py) reports of the paper: ε 0.03 for
    text, 1 for speech. That code is of another paper, CoLT5. By default it solves for 9/8·k, and λ is 1 in
    its forward (`straight_through`). W_up and biases start at zero. w is N(0, 1/√d), so that scores have a
    deviation of about 1 on every width, to which a start of ε at 4 fits; from N(0, 1), which
    lucidrains/CoLT5-attention has, nearly all chosen λ are 1 and the router gets no gradient.

    For encoders: the choice looks at the whole sequence, so that a causal stack would see the future. On an
    encoder-decoder it is listed for the encoder (the decoder stays dense, as in the paper). The authors'
    pretraining of the routed model on the backbone's own objective is not part of the method here. Not the
    identity at init; not mergeable. λ teaches the router by the chosen tokens alone. Where the head reads one
    token, as most encoders' does, and w does not choose that one in the last layer, the last router never
    learns, and its layer is passed by: leave the last layer out (`at: 0-4` of six), or let the head read the
    mean (`mean_pooling`).
    2dm + m + d + d parameters for each layer, and those of its norms, 2·2d in BERT.
    """

    traits = Traits(
        ways=frozenset({"region", "weight"}),
        sites=("layer",),
        default_sites=("layer",),
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "bottleneck"
    part_names: tuple[str, ...] = ("down", "up", "router", "norms")

    class Config(MethodConfig):
        bottleneck: int = Field(default=64, ge=1, le=8192, description="m")
        reduction: int = Field(default=3, ge=1, le=64, description="n/k")
        activation: Activation = "relu"
        iterations: int = Field(default=20, ge=1, le=1000, description="T of the router")
        temperature: float = Field(default=0.03, gt=0, le=10, description="ε of the router")
        start: float = Field(default=4.0, gt=0, le=100, description="ε of the first iteration")
        decay: float = Field(default=0.7, gt=0, le=1, description="of ε in each iteration")
        train_norms: bool = Field(default=True, description="gains and biases of its layers' norms")

    def __init__(self, config: Config) -> None:
        self.config = config
        if not config.train_norms:
            self.part_names = ("down", "up", "router")
            self.traits = replace(self.traits, ways=frozenset({"region"}))

    def _norms(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        layers = {(s.stack, s.layer) for s in sites}
        norms = [t for t in spec.tensors if t.role in {"norm_weight", "norm_bias"}]
        return [t for t in norms if self.config.train_norms and (t.stack, t.layer) in layers]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        causal = next((s for s in sites if spec.stack(s.stack).causal), None)
        if causal is not None:
            way_out = "list it with `stack: encoder`" if spec.encoder_decoder else "take an encoder"
            raise CompositionError(
                f"coda chooses tokens by the whole sequence, so that at {causal.path}, in a causal stack, "
                f"each would see those behind it; {way_out}, or use parallel_adapter."
            )
        n = sum(Bottleneck.size(s.in_features, self.config.bottleneck) + s.in_features for s in sites)
        n += sum(t.size for t in self._norms(sites, spec))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        self.parameter_count(sites, spec)
        adapters = {s.key: ConditionalAdapter(s.in_features, self.config) for s in sites}
        return CoDAModule(adapters, self._norms(sites, spec), self.config)
