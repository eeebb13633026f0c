"""XPrompt: a prompt whose unimportant rows and pieces are pruned, and what is left trained again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import DataError, MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Phase, Session, Slot, Stored, Traits, register
from autopeft.nn import PromptInit, PromptTable, only_prompt, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["XPrompt"]


class XPromptModule(nn.Module):
    """Pieces of the rows of a prompt (length, d), each d/k wide.

    Attributes:
        values: of the pieces that are there, (pieces, d/k).
        piece_index: where they are, (pieces,): row · k + number in the row, of the whole prompt.
        token_index: the rows that are put in front of the text, (rows,).
        importance: of rows and of pieces, once they were measured.
    """

    piece_index: Tensor
    token_index: Tensor

    def __init__(self, width: int, config: XPrompt.Config) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.whole = (config.length * config.pieces, width // config.pieces)
        self._start = [PromptTable(config.length, width, config.init)]  # in a list: no module of this one
        self.values = nn.Parameter(self._start[0].table.detach().view(self.whole).clone())
        self.register_buffer("piece_index", torch.arange(self.whole[0]))
        self.register_buffer("token_index", torch.arange(config.length))
        self.importance: dict[str, Tensor] = {}
        self._left: Tensor | None = None  # the pieces that stay, from when they are known to the next phase
        self._sound: list[tuple[Tensor, int]] = []

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(len(self.token_index)),)

    def initialise_prompt(self, embedding: Tensor) -> None:
        """See `PromptTable.initialise_prompt`."""
        self._start[0].initialise_prompt(embedding)
        self._put(self._start[0].table)

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Begin with a stored prompt (length, d)."""
        self._put(only_prompt(stored, self.config.length, self.width))

    @torch.no_grad()
    def _put(self, table: Tensor) -> None:
        self.values.copy_(table.view(self.whole))

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        self._check()
        grid = self.values.new_zeros(self.whole).index_copy(0, self.piece_index, self.values)
        return grid.view(self.config.length, self.width)[self.token_index][None]

    def _check(self) -> None:
        """Raise DataError where a damaged file names rows or pieces that there are not; once for each."""
        now = [(index, index._version) for index in (self.piece_index, self.token_index)]
        if self._sound and all(a is b and v == w for (a, v), (b, w) in zip(self._sound, now, strict=True)):
            return
        for (index, _), size in zip(now, (self.whole[0], self.config.length), strict=True):
            if not (index.unique().numel() == len(index) > 0 and index.min() >= 0 and index.max() < size):
                raise DataError("The saved rows or pieces of a prompt (xprompt) are damaged; save it again.")
        self._sound = now

    # Training
    # --------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """`tune` and `retrain`; or one, of a prompt that was pruned before."""
        if len(self.values) < self.whole[0] or len(self.token_index) < self.config.length:
            return [Phase("retrain")]
        share = self.config.tuning
        return [
            Phase("tune", share, run=self._tune),
            Phase("retrain", 1 - share, begin=self.deploy, output=lambda: self.token_index.clone()),
        ]

    def _tune(self, session: Session) -> None:
        """All steps; then rows are measured and pruned, and the pieces of those that stay."""
        while session.step():
            pass
        if session.taken < session.steps:  # the training was asked to stop
            return
        c = self.config
        per_piece = torch.stack(list(self._gains(session, 1)))
        rows = per_piece.view(len(per_piece), c.length, c.pieces).sum(2).abs().mean(0)
        self.importance["rows"] = rows
        self.token_index = _kept(rows, c.token_rate)
        # What a row that is gone does to the others counts for their pieces.
        pieces = torch.stack(list(self._gains(session, 1))).abs().mean(0).view(c.length, c.pieces)
        self.importance["pieces"] = pieces[self.token_index]
        left = _kept(self.importance["pieces"].flatten(), c.piece_rate)
        places = torch.arange(self.whole[0], device=left.device).view(c.length, c.pieces)[self.token_index]
        self._left = places.flatten()[left]

    def settled(self, step: int, total: int) -> bool:
        """Once rows and pieces were measured: a stop before that would leave out the pruning."""
        return bool(self.importance) or len(self.phases()) == 1

    def finish(self) -> None:
        """A training that was asked to stop between the phases has pruned what it has measured."""
        self.deploy()

    def _gains(self, session: Session, rows: int) -> Iterator[Tensor]:
        """dL/dζ of every piece at ζ = 1, (pieces,), of one example after the other: ⟨dL/dP, P⟩ there."""
        for batch in islice(session.batches(rows), self.config.examples):
            (gradient,) = session.gradients(batch, [self.values])
            yield (gradient * self.values.detach()).sum(1)

    # Saving
    # ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def deploy(self) -> None:
        """Keep the pieces that were chosen, with the values that they have, and no others."""
        if self._left is not None:
            self.values = nn.Parameter(self.values[self._left].clone())
            self.piece_index, self._left = self._left, None

    @torch.no_grad()
    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        (pieces, width), (rows,) = shapes["values"], shapes["token_index"]
        if 0 < pieces <= self.whole[0] and width == self.whole[1] and 0 < rows <= self.config.length:
            self.values = nn.Parameter(self.values[:pieces].clone())
            self.piece_index = self.piece_index[:pieces].clone()
            self.token_index = self.token_index[:rows].clone()


def _kept(importance: Tensor, rate: float) -> Tensor:
    """Places in order of all but the ⌊rate·n⌋ least important, at least one; of equal ones the first stay."""
    pruned = min(math.floor(rate * len(importance) + 1e-9), len(importance) - 1)  # 0.29 · 100 is 28.999…
    return importance.argsort(descending=True, stable=True)[: len(importance) - pruned].sort().values


@register("xprompt")
class XPrompt:
    """H₀ = [P''; Emb(x)] with P''ᵢⱼ = γᵢ·ζᵢⱼ·Pᵢⱼ, masks γ of rows and ζ of the k pieces of each row.

    Ma et al. 2022, arXiv:2210.04457 (not the attribution method of the same name). P is trained for the share
    `tuning` of the steps. Then the ⌊`token_rate`·l⌋ rows with the least Iᵢ = E|∂L/∂γᵢ| at γ = 1 are pruned,
    and among all pieces of the l' rows that stay the ⌊`piece_rate`·l'·k⌋ with the least E|∂L/∂ζᵢⱼ|, measured
    without the pruned rows. E is over training rows, one at a time, `examples` of them or all. Then the
    pieces that are left go back to what they were before the pruning (rewinding) and are trained for the
    other steps with a new optimizer. At least one row and one piece stay.

    Rows that are pruned are removed, so that the sequence is shorter; pruned pieces are zero. The paper
    searches the rates from 10% to 90% in steps of 10% on dev, which a search over them does here. Not the
    identity at init; not mergeable. l·d parameters while tuning; d/k for each piece that is left, at most
    l·d, which a budget counts, are deployed.

    The authors' repository holds a README alone, and the paper was read in a translation (§4 and §5.3 of it).
    That gives I as it stands here, the order (rows, then pieces of those that stay), the return to the values
    before the pruning, and the sizes. What it leaves open is this project's reading: that a pruned row goes
    where the paper sets its mask to zero, that pieces compete among all rows and not within each, that E is
    taken anew once the rows are pruned, and that both trainings have as many steps.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        identity=False,
        gateable=False,
        phased=True,
        data_dependent=True,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=20, ge=1, le=4096, description="l")
        pieces: int = Field(default=16, ge=1, le=1024, description="k, which divides the width")
        init: PromptInit = "vocabulary"
        token_rate: float = Field(default=0.5, ge=0, lt=1, description="share of the rows to prune")
        piece_rate: float = Field(default=0.5, ge=0, lt=1, description="share of the pieces left to prune")
        tuning: float = Field(default=0.5, gt=0, lt=1, description="share of the steps before the pruning")
        examples: int | None = Field(
            default=None, ge=1, description="to measure on; all training rows by default"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        width = prompt_width("xprompt", sites, spec, self.config.init)
        if width % self.config.pieces:
            fitting = [k for k in range(1, min(width, 64) + 1) if width % k == 0]
            raise MethodError(
                f"xprompt cuts rows of {width} numbers into pieces={self.config.pieces} equal ones; "
                f"take one of {', '.join(map(str, fitting))}."
            )
        return width

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.length * self._width(sites, spec)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return XPromptModule(self._width(sites, spec), self.config)
