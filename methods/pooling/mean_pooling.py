"""Mean pooling: the head reads the mean of all tokens, in the place of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import Call, MethodConfig, ParameterCount, Traits, register
from autopeft.nn import summarised
from autopeft.spec import BackboneSpec, Site

__all__ = ["MeanPooling"]


class MeanPoolingModule(nn.Module):
    """No parameters."""

    def around(self, site: Site, x: Tensor, call: Call) -> Tensor:
        if call.region is None or call.context.lost:
            raise CompositionError(
                f"mean_pooling does not know of which tokens {site.path} is to give the mean, as this model "
                "hands nothing on to its layers; leave it out."
            )
        states = call.region(x)
        mean = summarised(call.rows.text(states), call.context.text_mask, "mean")
        return mean[:, None].expand_as(states)


@register("mean_pooling")
class MeanPooling:
    """hₜ ← Σᵢ hᵢ / n at every position t, over the n tokens of the input, for h the last layer's output.

    Reimers and Gurevych 2019, arXiv:1908.10084 (the pooling of sentence encoders). Whichever position the
    head reads ([CLS], the last token), and through whatever the model puts between (a final norm, BERT's
    pooler), it reads the mean. With `pooler: false` a pooler is left out, which learnt to read another state:
    the head reads the mean itself, as sentence encoders do, and what acts on the pooler's weights leaves them
    alone. Rows of prompts and padding do not count. Backbones that learnt to embed texts by it tell more to a
    head that way, before and after fine-tuning, above all where there are few rows. For heads that read one
    position of each row, of models with one stack. Not the identity; not mergeable. No parameters.
    """

    traits = Traits(
        ways=frozenset({"region"}),
        sites=("layer",),
        default_sites=("layer",),
        level="model",
        sees_text=True,
        identity=False,
        gateable=False,
        pools=True,
    )

    class Config(MethodConfig):
        pooler: bool = Field(
            default=True, description="whether a pooler stands between the mean and the head"
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        if not config.pooler:
            self.traits = replace(self.traits, skips_pooler=True)

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """The last layer."""
        if spec.encoder_decoder:
            raise CompositionError(
                f"mean_pooling takes the mean of what a head reads, and {spec.family!r} gives it the states "
                "of a decoder that is not told which of its tokens are padding; leave it out."
            )
        stack = spec.stacks[0]
        if stack.runs > 1:
            raise CompositionError(
                f"mean_pooling takes the mean behind the last layer, and a layer of {spec.family!r} runs "
                f"{stack.runs} times; leave it out."
            )
        return tuple(s for s in sites if (s.stack, s.layer) == (stack.name, stack.layers - 1))

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        return ParameterCount(0, 0)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return MeanPoolingModule()
