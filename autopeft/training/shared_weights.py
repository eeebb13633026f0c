"""Weights that hybrids of several sizes share: the state of a large one, from which smaller ones are cut.

A tensor of a small hybrid is the leading part of the large one's, and so are its moments in the optimizer.
What a training of the small one has changed goes back to where it was cut from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from autopeft.devices import generators_kept
from autopeft.hybrid import Hybrid
from autopeft.hybrid.policies import Policies
from autopeft.method import get_method
from autopeft.method.narrowing import named_so
from autopeft.recipe import Recipe
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.plan import TrainingPlan

__all__ = ["SharedWeights", "linear_in_of", "trained_names"]

_CHECKPOINT, _NAMES = "checkpoint", "trained.json"


@dataclass(frozen=True)
class SharedWeights:
    """A large hybrid's training under way.

    Attributes:
        checkpoint: where it stands.
        trained: what it trains (`trained_names`).
    """

    checkpoint: Checkpoint
    trained: Sequence[str]

    @classmethod
    def of(cls, hybrid: Hybrid, plan: TrainingPlan) -> SharedWeights:
        """A hybrid as it was attached, before its first step."""
        device = plan.torch_device()
        with generators_kept(device, seed=plan.seed):
            start = Checkpoint.of(
                hybrid, _optimizer(hybrid), [], plan.micro_rows, device, plan.train_share, 0
            )
        return cls(start, trained_names(hybrid))

    def files(self) -> dict[str, bytes]:
        """As files that travel."""
        return {_CHECKPOINT: self.checkpoint.to_bytes(), _NAMES: json.dumps(list(self.trained)).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> SharedWeights:
        """What `files` gave.

        Raises:
            DataError: the checkpoint is damaged.
        """
        return cls(Checkpoint.from_bytes(files[_CHECKPOINT]), json.loads(files[_NAMES]))

    def cut(
        self, hybrid: Hybrid, origin: Mapping[str, str], gates: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """The state of a smaller hybrid, with gates multiplied into its weights.

        Where a gate z has gone into a tensor its gradient is 1/z times what it was, and so are the moments.

        Args:
            hybrid: the small one, attached. What it has and the large one lacks stays as it starts.
            origin: for each of its entries the name that it has in the large one.
            gates: z of entries of the large one.
        """
        old, linear, gates = self.checkpoint.tensors, linear_in_of(hybrid.recipe), gates or {}

        def gate(name: str) -> tuple[float, float] | None:
            """The gate in a tensor, and the tensor's neutral value."""
            if not name.startswith("module."):
                return None
            _, entry, rest = name.split(".", 2)
            z = gates.get(origin.get(entry, entry))
            found = (neutral for own, neutral in linear.get(entry, {}).items() if named_so(own, rest))
            neutral = next(found, None)
            return None if z is None or neutral is None else (z, neutral)

        found = {key: value for key, value in old.items() if key.startswith(("generator.", "head."))}
        kept = set[str]()
        for key, value in hybrid.root.state_dict().items():
            name = f"module.{key}"
            part = _leading(old.get(_source(name, origin)), value)
            if part is None:
                found[name] = value.detach().cpu().clone()
                continue
            kept.add(name)
            if (acting := gate(name)) is not None:
                part = (part - acting[1]) * acting[0] + acting[1]
            found[name] = part.contiguous().clone()
        state = _moments(old, self.trained)
        for position, name in enumerate(trained_names(hybrid)):
            if name not in kept and not name.startswith("head."):
                continue
            acting, like = gate(name), found[name]
            held = state.get(_source(name, origin), {})
            parts = {kind: _leading(moment, like) if moment.ndim else moment for kind, moment in held.items()}
            for kind, part in parts.items():
                if part is None or any(p is None for p in parts.values()):
                    continue  # what is kept by row and column alone begins anew
                if acting is not None:
                    part = part / acting[0] ** {"exp_avg": 1, "exp_avg_sq": 2}.get(kind, 0)
                found[f"optimizer.{position}.{kind}"] = part.contiguous().clone()
        return replace(self.checkpoint, tensors=found)

    def pasted(self, part: Checkpoint, hybrid: Hybrid, origin: Mapping[str, str]) -> SharedWeights:
        """With what a small hybrid, cut from these, has become: all else stays bit for bit as it was.

        A tensor's count of steps is the small one's, which is that of its most trained part.

        Args:
            part: the small hybrid's checkpoint.
            hybrid, origin: see `cut`.
        """
        found = dict(self.checkpoint.tensors)

        def paste(key: str, value: Tensor, whole: Callable[[], Tensor]) -> None:
            to = (found[key] if key in found else whole()).clone()
            to[tuple(slice(n) for n in value.shape)] = value
            found[key] = to

        for key, value in part.tensors.items():
            if key.startswith(("head.", "generator.")):
                found[key] = value
            elif key.startswith("module.") and (source := _source(key, origin)) in found:
                paste(source, value, lambda: value)  # noqa: B023  # it is there
        place = {name: position for position, name in enumerate(self.trained)}
        for name, moments in _moments(part.tensors, trained_names(hybrid)).items():
            source = _source(name, origin)
            like = found.get(source)
            if (
                source not in place
                or like is None
                or any(m.ndim not in (0, like.ndim) for m in moments.values())
            ):
                continue  # what is kept by row and column alone begins anew
            for kind, moment in moments.items():
                shape = like.shape if moment.ndim else ()
                whole = partial(torch.zeros, shape, dtype=moment.dtype)
                paste(f"optimizer.{place[source]}.{kind}", moment, whole)
        return replace(self, checkpoint=replace(part, tensors=found))


def linear_in_of(recipe: Recipe) -> dict[str, Mapping[str, float]]:
    """For each entry of a recipe the tensors that what it adds is linear in, with the value at which they add
    nothing; empty where no gate can act."""
    return {
        entry.name: getattr(get_method(entry.method)(entry.item.method_config()), "linear_in", {})
        for entry in recipe.entries()
    }


def trained_names(hybrid: Hybrid) -> list[str]:
    """Names of what a training of the hybrid's recipe trains, in its optimizer's order."""
    names = {id(p): f"module.{name}" for name, p in hybrid.root.named_parameters()}
    names |= {id(p): f"head.{name}" for name, p in hybrid.head().items()}
    return [names[id(p)] for p in _optimizer(hybrid).parameters]


def _optimizer(hybrid: Hybrid) -> PhaseOptimizer:
    groups = Policies(hybrid.recipe.training).adjust(hybrid.parameter_groups(), hybrid.trained_modules)
    return PhaseOptimizer(groups, hybrid.recipe.training, 1, hybrid.trained_modules.values())


def _source(name: str, origin: Mapping[str, str]) -> str:
    """The large hybrid's name of a tensor."""
    if not name.startswith("module."):
        return name
    _, entry, rest = name.split(".", 2)
    return f"module.{origin.get(entry, entry)}.{rest}"


def _moments(tensors: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """What an optimizer keeps of each tensor, by kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, kind = key.split(".", 2)
            # Behind those of the hybrid may stand others, as the logits of gates do.
            if int(index) < len(trained):
                found.setdefault(trained[int(index)], {})[kind] = value
    return found


def _leading(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """The leading part of a tensor that has another's shape; `None` where it has none."""
    if (
        tensor is None
        or tensor.ndim != like.ndim
        or any(a < b for a, b in zip(tensor.shape, like.shape, strict=True))
    ):
        return None
    return tensor[tuple(slice(n) for n in like.shape)]
