"""Cross-attention tuning: train what the decoder reads the encoder with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import TensorDeltas
from autopeft.spec import BackboneSpec, Site, StackName, TensorSpec

__all__ = ["XattnTuning"]

SITES = ("cross_q", "cross_k", "cross_v", "cross_o", "cross_attention_norm")
_STACKS: dict[str, tuple[StackName, ...]] = {
    "none": (),
    "source": ("encoder",),
    "target": ("decoder",),
    "both": ("encoder", "decoder"),
}


class XattnTuningModule(nn.Module):
    """A zero-initialised delta for each trained tensor."""

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.tensors = TensorDeltas(tensors)

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.tensors.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.tensors.apply_to(str(target.tensor), current)


@register("xattn_tuning")
class XattnTuning:
    """θ = θ₀ + v for all of the decoder's cross-attention: q, k, v and o with their biases, and its norm.

    Gheini et al. 2021, arXiv:2104.08771; as in the authors' code (fairseq), whose names with `encoder_attn`
    hold the norm too. v has the tensor's shape and starts at zero, so θ at θ₀; weight decay pulls θ towards
    θ₀. Mergeable. Where there is no cross-attention, in encoders and in decoders alone, it is refused. Listed
    under `layers:`, it trains that of these layers alone.

    L·(4d² + 6d) parameters for L layers of BART, L·(4·d·d_attn + d) for T5, which has no biases.

    The authors give new languages new embeddings, and train them too. `embeddings` trains those of the
    encoder (`source`), of the decoder (`target`) or `both`, from what they are: tables of tokens and
    positions, and their norm. A table that the two sides share is one, which either side trains, and so is a
    projection to the vocabulary that is tied to it. They are counted beside the figure above, and are more:
    V·d for T5's shared table, for BART V·d + P·d + 2d with a side's P positions and its norm.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        sites=("cross_attention",),
        default_sites=("cross_attention",),
        level="model",
        also_in_layers=True,
        needs=frozenset({"encoder_decoder"}),
        mergeable=True,
        gateable=False,
    )

    class Config(MethodConfig):
        embeddings: Literal["none", "source", "target", "both"] = Field(
            default="none", description="whose embeddings are trained too"
        )

        @field_validator("sites")
        @classmethod
        def _is_whole(cls, value: tuple[str, ...] | None) -> None:
            if value is not None:
                raise ValueError(
                    f"xattn_tuning trains cross-attention whole, but got sites {list(value)}; for single "
                    "maps of it take lora with sites such as cross_q"
                )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _tensors(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        """What is trained: of the layers of `sites`, or of the whole model where there are none.

        Raises:
            MethodError: there is no cross-attention, or embeddings are asked for in layers.
        """
        layers = {(s.stack, s.layer) for s in sites}
        found = [t for t in spec.tensors if t.site in SITES and (not sites or (t.stack, t.layer) in layers)]
        if not found:
            raise MethodError(
                f"xattn_tuning finds no cross-attention in {spec.family!r}; take a backbone such as T5 or "
                "BART, or a method of its layers such as lora."
            )
        stacks = _STACKS[self.config.embeddings]
        if sites and stacks:
            raise MethodError(
                f"xattn_tuning with embeddings={self.config.embeddings!r} is listed under 'model:', as "
                "embeddings lie in no layer; leave the option out under 'layers:'."
            )
        return [*found, *(t for t in spec.tensors if stacks and _embeds(t, stacks))]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(t.size for t in self._tensors(sites, spec))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return XattnTuningModule(self._tensors(sites, spec))


def _embeds(tensor: TensorSpec, stacks: Sequence[StackName]) -> bool:
    """Whether a tensor belongs to the embeddings of one of the stacks, or is a table that they share."""
    own = tensor.site == "embeddings" and tensor.stack in stacks
    return own or (tensor.role == "embedding" and tensor.stack is None)
