"""A training that was paused, as bytes: it goes on later, in another process, as if it had never stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autopeft.devices import generator_state, restore_generator
from autopeft.errors import DataError
from autopeft.hybrid import Hybrid
from autopeft.recipe.optimizer import DEFAULT_OPTIMIZER
from autopeft.training.optimizer import PhaseOptimizer

__all__ = ["Checkpoint"]

_FORMAT = 1
_META = "autopeft"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stood after some of its steps.

    Attributes:
        tensors: of the modules (`module.…`), the head (`head.…`), the optimizer (`optimizer.<i>.…`) and the
            random generators (`generator.…`), on the CPU.
        losses: of each step taken.
        micro_rows: rows at once that memory had sufficed for.
        share, since: of the training rows, and the step from which that share was drawn from.
        optimizer: the name of the optimizer whose state it holds.
        scores: (step, score on *select*), as far as any were taken.
    """

    tensors: Mapping[str, Tensor]
    losses: tuple[float, ...]
    micro_rows: int
    share: float = 1.0
    since: int = 0
    optimizer: str = "adamw"
    scores: tuple[tuple[int, float], ...] = ()

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    @classmethod
    def of(
        cls,
        hybrid: Hybrid,
        optimizer: PhaseOptimizer,
        losses: list[float],
        micro_rows: int,
        device: torch.device,
        share: float,
        since: int,
    ) -> Checkpoint:
        """Copy what the rest of the training depends on."""
        found = {f"module.{k}": v for k, v in hybrid.root.state_dict().items()}
        found.update({f"head.{k}": v for k, v in hybrid.head().items()})
        for i, state in optimizer.inner.state_dict()["state"].items():
            kept = {k: v for k, v in state.items() if v is not None}
            found.update({f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in kept.items()})
        cpu, own = generator_state(device)
        found["generator.cpu"] = cpu
        if own is not None:
            found[f"generator.{device.type}"] = own
        copied = {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}
        return cls(copied, tuple(losses), micro_rows, share, since, optimizer.training.optimizer.name)

    def to_bytes(self) -> bytes:
        """One safetensors file; equal states give equal bytes."""
        meta = {
            "format": _FORMAT,
            "losses": list(self.losses),
            "micro_rows": self.micro_rows,
            "share": self.share,
            "since": self.since,
            "optimizer": self.optimizer,
        }
        if self.optimizer == DEFAULT_OPTIMIZER.name:
            del meta["optimizer"]  # as checkpoints have been from the first
        if self.scores:
            meta["scores"] = [list(point) for point in self.scores]
        return save(dict(self.tensors), metadata={_META: json.dumps(meta)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises:
            DataError: the bytes are no checkpoint.
        """
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            meta = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_META])
            losses = tuple(float(x) for x in meta["losses"])
            share, since = float(meta["share"]), int(meta["since"])
            name = str(meta.get("optimizer", DEFAULT_OPTIMIZER.name))
            scores = tuple((int(step), float(score)) for step, score in meta.get("scores", ()))
            found = cls(tensors, losses, int(meta["micro_rows"]), share, since, name, scores)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise DataError(f"This is not the checkpoint of a training: {error}.") from error
        if meta.get("format") != _FORMAT or found.micro_rows < 1 or not all(map(math.isfinite, losses)):
            raise DataError("This checkpoint of a training is of another version, or damaged.")
        return found

    def fill(self, hybrid: Hybrid) -> None:
        """Put modules and head of a freshly attached hybrid where they were.

        Raises:
            DataError: names or shapes differ: the checkpoint belongs to another recipe, backbone or head.
        """
        modules = self._part("module.")
        for name, module in hybrid.modules.items():
            _resize(
                module,
                {k.removeprefix(f"{name}."): v for k, v in modules.items() if k.startswith(f"{name}.")},
            )
        _copy(modules, hybrid.root.state_dict(), "modules")
        _copy(self._part("head."), hybrid.head(), "head")
        hybrid.refresh()
        hybrid.prepared = True

    def rewind(self, optimizer: PhaseOptimizer, device: torch.device) -> None:
        """Put a new optimizer over the same parameters, and the random generators, where they were.

        Raises:
            DataError: the optimizer is another, or over other parameters.
        """
        name: str = optimizer.training.optimizer.name
        if name != self.optimizer:
            raise DataError(f"This checkpoint's optimizer is {self.optimizer}, but the recipe's is {name}.")
        now = optimizer.inner.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for key, value in self._part("optimizer.").items():
            index, _, name = key.partition(".")
            # The optimizer keeps what it is given and writes into it.
            state.setdefault(int(index), {})[name] = value.clone()
        if any(
            i >= len(optimizer.parameters) or not _belongs(s, optimizer.parameters[i].shape)
            for i, s in state.items()
        ):
            raise DataError("This checkpoint's optimizer has seen other parameters than there are here.")
        optimizer.inner.load_state_dict({"state": state, "param_groups": now["param_groups"]})
        for i, kept in state.items():  # torch gives it the type of its parameter: Adafactor's is finer
            held = optimizer.inner.state[optimizer.parameters[i]]
            held.update({k: v.to(held[k].device) for k, v in kept.items() if v.dtype != held[k].dtype})
        # On a device of another kind than before its own generator goes on from the plan's seed.
        own = None if device.type == "cpu" else self.tensors.get(f"generator.{device.type}")
        restore_generator((self.tensors["generator.cpu"], own), device)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def _resize(module: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Give a module whose size calibration had settled that size again, as far as it can be its own."""
    resize: Any = getattr(module, "resize", None)
    held = module.state_dict()
    if resize is None or any(k not in kept or kept[k].ndim != held[k].ndim for k in held):
        return
    if kept.keys() != held.keys() or any(kept[k].shape != held[k].shape for k in held):
        resize({name: tuple(tensor.shape) for name, tensor in kept.items()})


def _belongs(state: Mapping[str, Tensor], shape: torch.Size) -> bool:
    """Whether an optimizer's state is of a parameter of this shape: all of it, or its rows and columns."""
    fitting = {tuple(shape), tuple(shape[:-1]), (*shape[:-2], *shape[-1:]), ()}
    return all(tuple(value.shape) in fitting for value in state.values())


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor | nn.Parameter], what: str) -> None:
    wrong = sorted(
        k
        for k in {*source, *target}
        if k not in source or k not in target or source[k].shape != target[k].shape
    )
    if wrong:
        raise DataError(f"This checkpoint does not fit the {what} here: {', '.join(wrong[:3])} differ.")
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(source[key])
