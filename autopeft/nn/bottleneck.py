"""The bottleneck of adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from autopeft.nn.per_site import PerSite

__all__ = ["ACTIVATIONS", "Activation", "Bottleneck", "Bottlenecks", "NormedBottleneck"]

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "swish", "tanh"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}
Init = Literal["bert", "houlsby", "lora", "glorot"]


class Bottleneck(nn.Module):
    """f(x) = dropout(φ(x·W_dnᵀ + b_dn))·W_upᵀ + b_up, shapes (…, d) → (…, d), without residual or scale;
    (…, d) → (…, out) where `out` is given.

    `init`: `bert` is N(0, 0.02) on both weights, `houlsby` a normal of std 1e-3 truncated at two deviations,
    `lora` Kaiming-uniform(a = √5) below and zero above (the identity at init), `glorot` Glorot-uniform.
    Biases start at zero; `bias=False` has none.
    """

    by_width: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "down.weight": (0,),
        "down.bias": (0,),
        "up.weight": (1,),
    }
    linear_in: ClassVar[Mapping[str, float]] = {"up.weight": 0.0, "up.bias": 0.0}

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        out: int | None = None,
        activation: Activation = "relu",
        init: Init = "bert",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias=bias)
        self.up = nn.Linear(bottleneck, width if out is None else out, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        for linear in (self.down, self.up):
            if init == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=1e-3, a=-2e-3, b=2e-3)
            elif init == "bert":
                nn.init.normal_(linear.weight, std=0.02)
            elif init == "glorot":
                nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)

    @staticmethod
    def size(width: int, bottleneck: int, *, out: int | None = None, bias: bool = True) -> int:
        """Parameters of one bottleneck: (d + out)·m, and m + out with biases; out is d where it is not
        given."""
        out = width if out is None else out
        return (width + out) * bottleneck + (out + bottleneck if bias else 0)

    @staticmethod
    def part_size(
        width: int, bottleneck: int, part: str, *, out: int | None = None, bias: bool = True
    ) -> int | None:
        """Parameters of the part `down` or `up` of one bottleneck; `None` for another."""
        out = width if out is None else out
        biases = {"down": bottleneck, "up": out}
        widths = {"down": width, "up": out}
        return widths[part] * bottleneck + biases[part] * bias if part in widths else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.down(x))
        if self.dropout:
            inner = nn.functional.dropout(inner, self.dropout, self.training)
        out: Tensor = self.up(inner)
        return out


class NormedBottleneck(Bottleneck):
    """A bottleneck with a LayerNorm of its own, in front of it or `after` it (`options`: see
    `Bottleneck`)."""

    def __init__(
        self, width: int, bottleneck: int, *, after: bool = False, epsilon: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(width, bottleneck, **options)
        self.norm, self.after = nn.LayerNorm(width, eps=epsilon), after

    def forward(self, x: Tensor) -> Tensor:
        if not self.after:
            return super().forward(self.norm(x))
        out: Tensor = self.norm(super().forward(x))
        return out


_B = TypeVar("_B", bound=Bottleneck)


class Bottlenecks(PerSite[_B]):
    """A bottleneck for each site."""

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The projections down and up, each with its bias, over all sites."""
        own = self.children_by_site()
        return {
            "down": [p for bottleneck in own for p in bottleneck.down.parameters()],
            "up": [p for bottleneck in own for p in bottleneck.up.parameters()],
        }
