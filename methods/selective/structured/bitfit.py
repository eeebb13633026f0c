"""BitFit: train the bias terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from autopeft.errors import MethodError, near
from autopeft.method import MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import TensorDeltas
from autopeft.spec import SITE_NAMES, BackboneSpec, Site, TensorSpec

__all__ = ["BitFit"]

PARTIAL = ("q", "up")


class BitFitModule(nn.Module):
    """A zero-initialised delta for each trained bias."""

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.biases = TensorDeltas(tensors)

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.biases.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.biases.apply_to(str(target.tensor), current)


@register("bitfit")
class BitFit:
    """b = b₀ + v for every bias of the backbone, linear maps and norms alike; v starts at zero, so b at b₀.

    Ben Zaken et al. 2022, arXiv:2106.10199. `terms`: `all`; `partial`, the query's and the first FFN map's
    (§4.3), two vectors in a layer; or a list of sites. `pooler: false` leaves the pooler's bias out of `all`;
    other terms have it where they name it. (The authors' code trains it with any terms, so that its partial
    variant is `[q, up, pooler]`.) Weight decay pulls b towards b₀. Mergeable. One parameter for each bias
    entry: L·(7d + d_ff) + d for a BERT-like encoder, and d with its pooler. Listed under `layers:`, it trains
    the biases inside those layers and no others: 7d + d_ff for each. Backbones without biases (Llama, T5) are
    refused.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        sites=("layer",),
        default_sites=("layer",),
        level="model",
        also_in_layers=True,
        mergeable=True,
        gateable=False,
    )

    class Config(MethodConfig):
        terms: Literal["all", "partial"] | tuple[str, ...] = Field(
            default="all", description="'all', 'partial' (q and up) or site names"
        )
        pooler: bool = Field(default=True, description="whether 'all' has the pooler's bias")

        @field_validator("terms")
        @classmethod
        def _known_sites(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
            names = () if isinstance(value, str) else value
            for name in names:
                if name not in SITE_NAMES:
                    raise ValueError(
                        f"unknown site {name!r}.{near(name, SITE_NAMES)} Sites: {', '.join(SITE_NAMES)}"
                    )
            if not value:
                raise ValueError("terms is empty; leave it out to train all biases")
            return value

        @field_validator("sites")
        @classmethod
        def _names_terms(cls, value: tuple[str, ...] | None) -> None:
            if value is not None:
                raise ValueError(f"bitfit names where its biases are in `terms`; write terms: {list(value)}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _biases(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        """The trained biases: of the layers of `sites`, or of the whole model where there are none.

        Raises:
            MethodError: there are none, or none at one of the named sites.
        """
        layers = {(s.stack, s.layer) for s in sites}
        biases = [
            t
            for t in spec.tensors
            if t.role in {"bias", "norm_bias"} and (not sites or (t.stack, t.layer) in layers)
        ]
        if not biases:
            raise MethodError(
                f"bitfit trains biases, and {spec.family!r} has none; use ia3 (about as small) or lora."
            )
        terms = self.config.terms
        if terms == "all":
            return [t for t in biases if self.config.pooler or t.site != "pooler"]
        wanted = PARTIAL if terms == "partial" else terms
        have = sorted({t.site for t in biases if t.site})
        missing = [name for name in wanted if name not in have]
        if missing:
            raise MethodError(
                f"bitfit finds no bias at {missing} in {spec.family!r}; biases are at: {', '.join(have)}. "
                "Name some of these in `terms`."
            )
        return [t for t in biases if t.site in wanted]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(t.size for t in self._biases(sites, spec))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return BitFitModule(self._biases(sites, spec))
