"""A two-layer net with its head, rows and a spec: what masks are measured on by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.spec import BackboneSpec, StackSpec, TensorSpec
from support.toy import configured

__all__ = ["NetObjective", "TwoLayers", "calibrate", "net_of_seed", "net_rows", "net_spec", "singles"]

Batch = dict[str, Tensor]


class TwoLayers(nn.Module):
    """A two-layer net, its head beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.head = nn.Linear(5, 3)


class NetObjective:
    """Cross-entropy of the head's scores (see `autopeft.method.Objective`)."""

    def __init__(self, net: TwoLayers, temperature: float = 1.0) -> None:
        self.model, self.temperature = net, temperature

    def logits(self, batch: Batch) -> Tensor:
        out: Tensor = self.model.head(self.model.base(batch["x"])) * self.temperature
        return out

    def __call__(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.logits(batch), batch["labels"])

    def losses(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(self.logits(batch), batch["labels"], reduction="none")

    def gradients(self, batch: Batch, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        found = torch.autograd.grad(self(batch), wanted, allow_unused=True, materialize_grads=True)
        return list(found)


def net_of_seed() -> TwoLayers:
    """A net whose base is frozen, the same each time."""
    torch.manual_seed(0)
    net = TwoLayers()
    net.base.requires_grad_(False)
    return net


def net_rows(n: int = 6, size: int = 2) -> list[Batch]:
    """Batches of `size` rows."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)
    return [{"x": x[i : i + size], "labels": labels[i : i + size]} for i in range(0, n, size)]


def singles(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Each row as a batch of its own."""
    for batch in batches:
        for i in range(len(batch["labels"])):
            yield {k: v[i : i + 1] for k, v in batch.items()}


def net_spec(net: TwoLayers, outside: str = "none") -> BackboneSpec:
    """The base's tensors, in layer 0 except those whose name begins with `outside`."""
    tensors = tuple(
        TensorSpec(n, tuple(p.shape), "weight", "encoder", None if n.startswith(outside) else 0)
        for n, p in net.base.named_parameters()
    )
    stack = StackSpec("encoder", 1, 4, False)
    return BackboneSpec("toy", (stack,), (), tensors, sum(t.size for t in tensors))


def calibrate(name: str, net: TwoLayers, batches: Any, /, outside: str = "none", **config: Any) -> Any:
    """A method's module on the net, calibrated on the batches."""
    module = configured(name, **config).build((), net_spec(net, outside))
    module.settle(module.measure(net.base, batches, NetObjective(net)))
    return module
