"""P-tuning: rows among the input embeddings, made by an LSTM or an MLP while they train."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, PeftFormat, Slot, Traits, register
from autopeft.spec import BackboneSpec, Site

__all__ = ["PTuning"]

Encoder = Literal["lstm", "mlp"]


class SlotConfig(BaseModel):
    """See `autopeft.method.Slot`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: int = Field(ge=1, le=4096)
    offset: int = Field(default=0, ge=0, le=1 << 20)
    anchor: Literal["front", "end"] = "front"

    @property
    def slot(self) -> Slot:
        """The slot that it says."""
        return Slot(self.length, self.offset, self.anchor)


class PTuningModule(nn.Module):
    """The rows (length, d), or the embedding and the encoder that make them.

    Args:
        slots: where the rows lie; their lengths add up to the rows.
        width: d.
        encoder: `lstm` or `mlp`.
        hidden: h, the width of either direction of the LSTM, or of the MLP.
        layers: of the LSTM.
        dropout: between the layers of the LSTM.
    """

    lstm: nn.LSTM | None
    mlp: nn.Sequential | None

    def __init__(
        self, slots: Sequence[Slot], width: int, encoder: Encoder, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self._slots = tuple(slots)
        self.embedding = nn.Parameter(torch.randn(sum(slot.length for slot in slots), width))
        if encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden, layers, dropout=dropout, bidirectional=True, batch_first=True)
            widths = [2 * hidden, 2 * hidden, width]
        else:
            self.lstm = None
            widths = [width, hidden, hidden, width]
        self.mlp = nn.Sequential()
        for before, after in pairwise(widths):
            self.mlp.extend([nn.ReLU()] if len(self.mlp) else []).append(nn.Linear(before, after))

    def slots(self, site: Site) -> Sequence[Slot]:
        return self._slots

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self._rows()[None]

    def _rows(self) -> Tensor:
        if self.mlp is None:
            return self.embedding
        rows = self.embedding if self.lstm is None else self.lstm(self.embedding[None])[0][0]
        return cast(Tensor, self.mlp(rows))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The vectors that are learnt, and the encoder that makes the rows of them."""
        encoder = [p for module in (self.lstm, self.mlp) if module is not None for p in module.parameters()]
        return {"rows": [self.embedding], "encoder": encoder}

    def deploy(self) -> None:
        """Keep the rows, drop the encoder that made them."""
        self.eval()  # without the encoder's dropout
        with torch.enable_grad():  # as in a forward: without gradients an LSTM rounds differently
            rows = self._rows().detach().clone()
        self.embedding, self.lstm, self.mlp = nn.Parameter(rows), None, None


@register("p_tuning")
class PTuning:
    """Rows R = MLP(LSTM(E)) among the token embeddings, E (length × d) trained; in the encoder of two stacks.

    Liu et al. 2021, arXiv:2103.10385. As in the authors' code for LAMA (THUDM/P-tuning,
    LAMA/p_tuning/prompt_encoder.py), E goes through a bidirectional LSTM of two layers, h = `hidden` wide in
    either direction, and W₂·ReLU(W₁·z + b₁) + b₂ with W₁ (2h × 2h), W₂ (d × 2h); h is d/2 there. With
    `encoder: mlp` it is W₃·ReLU(W₂·ReLU(W₁·E + b₁) + b₂) + b₃ with h = d, the recommended one of peft's
    PromptEncoder. E is N(0, 1), all else as torch starts it. `deploy()` keeps R. `slots` says where the rows
    lie: `{length, offset, anchor}`, so many tokens behind the front or before the end of each text; without
    it all stand in front. The authors' templates put rows around what they ask, `[3, 3, 3]` in LAMA. The
    backbone stays frozen, as their LAMA code leaves it. Not the identity at init; not mergeable.

    Deployed: l·d. Trained: l·d + 8(dh + h² + 2h) for the first layer of the LSTM, 8(2h·h + h² + 2h) for each
    other, (2h)² + 2h + 2h·d + d for the MLP behind it; with `mlp` l·d + 2dh + h² + 2h + d.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    part_names: ClassVar[tuple[str, ...]] = ("rows", "encoder")
    peft = PeftFormat("prompt")

    class Config(MethodConfig):
        length: int = Field(default=9, ge=1, le=4096, description="l")
        slots: tuple[SlotConfig, ...] | None = Field(
            default=None, description="where the rows lie; null: all in front"
        )
        encoder: Encoder = Field(default="lstm", description="what makes the rows")
        hidden: int | None = Field(
            default=None, ge=1, le=16384, description="h; null: d/2 in an LSTM, d in an MLP"
        )
        layers: int = Field(default=2, ge=1, le=8, description="of the LSTM")
        dropout: float = Field(default=0.0, ge=0, lt=1, description="between the layers of the LSTM")

        @model_validator(mode="after")
        def _slots_hold_the_rows(self) -> PTuning.Config:
            if self.slots is not None and sum(slot.length for slot in self.slots) != self.length:
                lengths = [slot.length for slot in self.slots]
                raise ValueError(
                    f"slots of lengths {lengths} do not hold {self.length} rows; let them add up to `length`"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.slots is not None:
            against = "peft's prompt stands in front of the text, and this one lies in it (`slots`)"
            self.peft = PeftFormat("prompt", against)

    def _widths(self, sites: Sequence[Site]) -> tuple[int, int]:
        """d and h."""
        if len(sites) != 1:
            raise MethodError(
                "p_tuning sits on the input embeddings of one stack, but got "
                f"{[s.path for s in sites]}; leave `sites` out."
            )
        width, c = sites[0].out_features, self.config
        return width, c.hidden or (max(1, width // 2) if c.encoder == "lstm" else width)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        (d, h), c = self._widths(sites), self.config
        deployed = c.length * d
        if c.encoder == "mlp":
            return ParameterCount(deployed, deployed + 2 * d * h + h * h + 2 * h + d)
        lstm = 8 * (d * h + h * h + 2 * h) + (c.layers - 1) * 8 * (2 * h * h + h * h + 2 * h)
        return ParameterCount(deployed, deployed + lstm + 4 * h * h + 2 * h + 2 * h * d + d)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        (d, h), c = self._widths(sites), self.config
        slots = [slot.slot for slot in c.slots] if c.slots is not None else [Slot(c.length)]
        return PTuningModule(slots, d, c.encoder, h, c.layers, c.dropout)
