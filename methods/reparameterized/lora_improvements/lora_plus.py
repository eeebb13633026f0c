"""LoRA+: a higher learning rate for the factor that starts at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from autopeft.method import MethodConfig, Traits, register

__all__ = ["LoRAPlus"]


@register("lora_plus")
class LoRAPlus:
    """η_B = ratio·η_A: the up factors of every module that names some learn `ratio` times faster.

    Hayou et al. 2024, arXiv:2402.12354. A training policy: it places nothing and has no parameters. Modules
    name their up factors by `up_parameters()`: B of LoRA and DoRA, P of AdaLoRA, the factor of a Kronecker
    product that is zero at init, the up projection of a parallel adapter. The authors' code also moves all
    one-dimensional parameters to the faster group; here only up factors move. Schedules multiply both rates
    alike, so the ratio holds at every step.
    """

    traits = Traits(level="training")

    class Config(MethodConfig):
        ratio: float = Field(default=16.0, ge=1, le=1024, description="η_B / η_A")

    def __init__(self, config: Config) -> None:
        self.config = config

    def adjust(
        self, groups: Sequence[Mapping[str, Any]], modules: Mapping[str, nn.Module]
    ) -> list[dict[str, Any]]:
        """Split optimizer groups (`params`, `lr`, `name`, …) into the up factors and the rest.

        A split-off group keeps all else of its group, has `lr` times ratio and `.up` behind its name. Every
        parameter stays in exactly one group, and the given groups are left as they are.
        """
        up = {id(p) for m in modules.values() for p in getattr(m, "up_parameters", list)()}
        out: list[dict[str, Any]] = []
        for group in groups:
            params = list(group["params"])
            fast = [p for p in params if id(p) in up]
            slow = [p for p in params if id(p) not in up]
            if slow or not fast:
                out.append({**group, "params": slow})
            if fast:
                name = f"{group['name']}.up" if "name" in group else "up"
                out.append({**group, "params": fast, "lr": group["lr"] * self.config.ratio, "name": name})
        return out
