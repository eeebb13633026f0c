"""Parameters of small modules, written by hypernetworks from vectors of the task, the layer and the place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from autopeft.spec import Site

__all__ = ["Heads", "Shapes", "TaskGenerator", "bottleneck_shapes", "rows_through"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of what is written for a site, by name."""
Heads = Literal["site", "place", "stack"]
"""Who has linear heads of its own: each site, each place of a stack (its attentions, its FFNs), or each
stack."""


def bottleneck_shapes(width: int, bottleneck: int) -> dict[str, tuple[int, ...]]:
    """Those of a `Bottleneck` with biases."""
    return {
        "down.weight": (bottleneck, width),
        "down.bias": (bottleneck,),
        "up.weight": (width, bottleneck),
        "up.bias": (width,),
    }


class TaskGenerator(nn.Module):
    """θ = U·I + b for each parameter θ of a site, with I = LN(W₂·ReLU(W₁·[zₜ; l; p] + b₁) + b₂) in R^q.

    zₜ (t,) is the vector of the task, l of the layer and p of the place, all trained and N(0, 1). With heads
    of `site` one projector without LN reads zₜ alone; with those of `place` one of each stack reads the layer
    too, and with those of `stack` the place as well, where a stack has several. Karimi Mahabadi et al. 2021,
    arXiv:2106.04489; Zhao et al. 2023, arXiv:2310.11670.

    Args:
        sites: that it writes for. Those with one head have the same shapes.
        shapes: of what it writes for a site.
        tasks, vector, hidden, width: T, t, the projector's inner width, and q.
        std: of all weights of maps, whose biases are zero then; `None` for torch's own start, and heads whose
            values begin with a variance of 1e-6/fan (uniform; fan is the second dimension of a matrix, 1 of a
            vector), biases zero.
        epsilon: of LN.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        shapes: Callable[[Site], Shapes],
        *,
        heads: Heads,
        tasks: int,
        vector: int = 64,
        hidden: int = 128,
        width: int = 64,
        std: float | None = 0.01,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.of, self.shapes = heads, {_head(site, heads): shapes(site) for site in sites}
        self.layer_index, self.place_index = _indices(sites)
        self.tasks = nn.Parameter(torch.randn(tasks, vector))
        self.layers, self.places = nn.ParameterDict(), nn.ParameterDict()
        self.projectors, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for stack, read in _vectors_read(sites, heads).items():
            self.projectors[stack] = nn.Sequential(
                nn.Linear(read * vector, hidden), nn.ReLU(), nn.Linear(hidden, width)
            )
            if heads != "site":
                self.layers[stack] = nn.Parameter(torch.randn(len(self.layer_index[stack]), vector))
                self.norms[stack] = nn.LayerNorm(width, eps=epsilon)
            if read == 3:
                self.places[stack] = nn.Parameter(torch.randn(len(self.place_index[stack]), vector))
        self.heads = nn.ModuleDict(
            {
                head: nn.ModuleDict(
                    {_key(name): nn.Linear(width, torch.Size(shape).numel()) for name, shape in own.items()}
                )
                for head, own in self.shapes.items()
            }
        )
        if std is not None:
            for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
            return
        for head, own in self.shapes.items():
            for name, shape in own.items():
                linear = cast(nn.Linear, cast(nn.ModuleDict, self.heads[head])[_key(name)])
                fan = shape[1] if len(shape) == 2 else 1
                nn.init.uniform_(
                    linear.weight, *(sign * 1e-3 * (3 / (width * fan)) ** 0.5 for sign in (-1, 1))
                )
                nn.init.zeros_(linear.bias)

    @staticmethod
    def size(
        sites: Sequence[Site],
        shapes: Callable[[Site], Shapes],
        *,
        heads: Heads,
        tasks: int,
        vector: int = 64,
        hidden: int = 128,
        width: int = 64,
    ) -> int:
        """Its parameters."""
        layers, places = _indices(sites)
        own = {_head(site, heads): shapes(site) for site in sites}
        total = tasks * vector
        for stack, read in _vectors_read(sites, heads).items():
            total += (read * vector + 1) * hidden + (hidden + 1) * width
            if heads != "site":
                total += len(layers[stack]) * vector + 2 * width
            if read == 3:
                total += len(places[stack]) * vector
        written = sum(torch.Size(shape).numel() for head in own.values() for shape in head.values())
        return total + (width + 1) * written

    def forward(self, site: Site, tasks: Tensor) -> dict[str, Tensor]:
        """What it writes for a site: by name, (numbers, …) for the numbers of tasks (numbers,)."""
        stack = "all" if self.of == "site" else site.stack
        told = [self.tasks[tasks]]
        if stack in self.layers:
            told.append(self.layers[stack][self.layer_index[stack][site.layer]].expand_as(told[0]))
        if stack in self.places:
            told.append(self.places[stack][self.place_index[stack][site.name]].expand_as(told[0]))
        found = self.projectors[stack](torch.cat(told, dim=-1))
        if stack in self.norms:
            found = self.norms[stack](found)
        head = _head(site, self.of)
        maps = cast(nn.ModuleDict, self.heads[head])
        return {name: maps[_key(name)](found).view(-1, *shape) for name, shape in self.shapes[head].items()}


def _key(name: str) -> str:
    return name.replace(".", "-")


def _head(site: Site, heads: Heads) -> str:
    return {"site": site.key, "place": f"{site.stack}-{site.name}", "stack": site.stack}[heads]


def _indices(sites: Sequence[Site]) -> tuple[dict[str, dict[int | None, int]], dict[str, dict[str, int]]]:
    """By stack: which layers, and which places, there are, numbered."""
    layers: dict[str, dict[int | None, int]] = {}
    places: dict[str, dict[str, int]] = {}
    for site in sites:
        own = layers.setdefault(site.stack, {})
        own.setdefault(site.layer, len(own))
        names = places.setdefault(site.stack, {})
        names.setdefault(site.name, len(names))
    return layers, places


def _vectors_read(sites: Sequence[Site], heads: Heads) -> dict[str, int]:
    """How many vectors each projector reads."""
    if heads == "site":
        return {"all": 1}
    _, places = _indices(sites)
    return {stack: 3 if heads == "stack" and len(names) > 1 else 2 for stack, names in places.items()}


def rows_through(
    x: Tensor, written: Mapping[str, Tensor], which: Tensor | None, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """φ(x·W_dnᵀ + b_dn)·W_upᵀ + b_up of each row, (rows, …, d), with the bottleneck that was written for its
    task.

    Args:
        written: (numbers, …) of the numbers of tasks.
        which: (rows,), the number of each row; `None` where there is one for all.
    """

    def through(x: Tensor, name: str) -> Tensor:
        weight, bias = written[f"{name}.weight"], written[f"{name}.bias"]
        if which is None:
            return nn.functional.linear(x, weight[0], bias[0])
        return torch.baddbmm(bias[which][:, None], x, weight[which].transpose(1, 2))

    flat = x if which is None else x.flatten(1, -2)
    return through(activation(through(flat, "down")), "up").view_as(x)
