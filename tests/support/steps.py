"""Steps of training as terms of the loss see them."""

from __future__ import annotations

from typing import Any

__all__ = ["NO_STEP"]

NO_STEP: Any = None
"""For terms that do not look at the step."""
