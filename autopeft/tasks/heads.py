"""Task heads, under the room that uses them; they live beside the model loading that draws them first."""

from __future__ import annotations

from autopeft.assets.heads import head_names, reset_head

__all__ = ["head_names", "reset_head"]
