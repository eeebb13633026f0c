"""The processes of one training: which rows of a step each takes, and what they add up.

Each process takes its part of the rows of a step, their losses are divided by the weight of all rows, and
gradients are summed once behind the backward. Then every process takes the same optimizer step. Everything
else, such as scoring, all processes do on all rows. What they hold in parts: `autopeft.training.sharded`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError

__all__ = ["ALONE", "Part", "Team", "current_team", "forget_teams", "set_team", "team_of", "working_in"]

_T = TypeVar("_T")


class Part(NamedTuple):
    """Rows `start` to `stop` of a batch, which go through the model at once. One that does not count goes
    through it for the others' sake: sharded layers are put together by all processes or by none."""

    start: int
    stop: int
    counts: bool


@dataclass(frozen=True)
class Team:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank: of this process.
        size: how many there are.
        device: on which this one computes.
        backbone: the fingerprint of the model that they hold in parts, taken when it was whole.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (nothing changes it)
    backbone: str = ""

    def parts(self, rows: int, at_once: int) -> Iterator[Part]:
        """This process' part of the rows of a batch, at most `at_once` at a time; as many parts in each
        process."""
        own = -(-rows // self.size)
        first, end = min(rows, self.rank * own), min(rows, (self.rank + 1) * own)
        for start in range(first, first + own, at_once):
            stop = min(start + at_once, end)
            yield Part(start, stop, True) if start < stop else Part(0, 1, False)

    def all_reduce(self, total: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        """Sum a loss (a scalar) and the parameters' gradients over the processes; returns the summed loss.

        A parameter without a gradient in every process has none afterwards.
        """
        if self.size == 1:
            return float(total)
        held = [p for p in parameters if p.requires_grad]
        told = [float(total), *(float(p.grad is not None) for p in held)]
        counted = torch.tensor(told, dtype=torch.float64, device=self.device)
        dist.all_reduce(counted)
        loss, *there = counted.cpu().tolist()
        learned = [p for p, count in zip(held, there, strict=True) if count]
        for dtype in sorted({p.dtype for p in learned}, key=str):
            self._add_gradients([p for p in learned if p.dtype == dtype])
        return float(loss)

    def _add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in found])
        dist.all_reduce(flat)
        summed = flat.split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def first(self, value: _T) -> _T:
        """What the first process has."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    @torch.no_grad()
    def align(self, values: Iterable[tuple[object, Tensor]]) -> None:
        """Give every process the values that the first one has."""
        if self.size > 1:
            for _, tensor in values:
                dist.broadcast(tensor.data, src=0)

    @torch.no_grad()
    def check_equal(self, values: Iterable[tuple[tuple[str, str], Tensor]]) -> None:
        """See whether all processes hold the same, bit by bit.

        Raises:
            AutoPEFTError: they do not; it names the first tensor.
        """
        if self.size == 1:
            return
        found = [(name, _bits(tensor)) for name, tensor in values]
        everywhere: list[Any] = [None] * self.size
        dist.all_gather_object(everywhere, found)
        for own, *others in zip(*everywhere, strict=True):
            if any(other != own for other in others):
                raise AutoPEFTError(
                    f"The {self.size} processes of this training have come to different values of "
                    f"{'.'.join(own[0])}: something in the recipe depends on the rows that a process sees, "
                    "beyond its loss; train it in one process."
                )


def _bits(tensor: Tensor) -> tuple[tuple[int, ...], int]:
    """Shape and checksum of a tensor's bytes: their sum, each times an odd number of its place."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).long()
    places = torch.arange(1, 2 * len(data) + 1, 2, device=data.device)
    return tuple(tensor.shape), int((data * places).sum())


ALONE = Team()
_TEAMS: WeakKeyDictionary[nn.Module, Team] = WeakKeyDictionary()
_working: Team | None = None


@contextmanager
def working_in(team: Team) -> Iterator[None]:
    """Within, this process does what the others of the team do."""
    global _working
    _working = team
    try:
        yield
    finally:
        _working = None


def forget_teams() -> None:
    """Forget which models lie in parts, as the other processes have ended."""
    _TEAMS.clear()


def current_team() -> Team | None:
    """The processes that this one works with at present; `None` where it works alone."""
    return _working


def set_team(model: nn.Module, team: Team) -> None:
    """Say that a model lies in parts in these processes."""
    _TEAMS[model] = team


def team_of(model: nn.Module) -> Team:
    """The processes that a model lies in parts in; `ALONE` where it is whole."""
    return _TEAMS.get(model, ALONE)
