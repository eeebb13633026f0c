"""Where a prompt's rows lie, as a recipe says it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autopeft.method import Slot

__all__ = ["SlotConfig"]


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
