"""What a search may be for: the goals, and what is made large and small on the way to each."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["COSTS", "GOALS", "OBJECTIVES", "Cost", "Goal"]

Goal = Literal["best", "smallest", "cheapest"]
Cost = Literal["deployed", "step_cost"]
"""What may be made small: an attribute of candidates and of records."""

COSTS: dict[Cost, str] = dict(
    zip(get_args(Cost), ("deployed parameters", "cost of a training step"), strict=True)
)
"""Each cost in words."""

OBJECTIVES: dict[str, Cost | None] = {"score": None, "score,params": "deployed", "score,cost": "step_cost"}
"""Names of objectives, and what is made small beside a large score."""

GOALS: dict[Goal, str] = dict(zip(get_args(Goal), OBJECTIVES, strict=True))
"""Each goal and the objective that leads there."""
