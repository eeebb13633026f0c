"""A recommendation as a table."""

from __future__ import annotations

from autopeft.report.sheet import Sheet
from autopeft.report.text import number
from autopeft.search.portfolio.choices import Choice
from autopeft.search.portfolio.recommend import Recommendation

__all__ = ["recommend_sheet"]

_MOST = 8
_GAINS = "Gains are points of the score, drawn towards zero; a step is timed against LoRA's."


def recommend_sheet(found: Recommendation) -> Sheet:
    """The best recipes with their expected gains, and plain LoRA beside them."""
    shown = list(found.choices[:_MOST])
    if found.reference.key not in [choice.key for choice in shown]:
        shown.append(found.reference)
    rows = tuple(_row(choice, choice.key == found.reference.key) for choice in shown)
    left = len(found.choices) - len(shown)
    notes = [f"{left} more recipes rank lower; --json has all."] if left > 0 else []
    title = f"Recipes for {found.model} within {found.budget}, {found.rows:,} rows"
    return Sheet(
        ("recipe", "size", "rate", "gain over LoRA", "95 % interval", "parameters", "step", "evidence"),
        rows,
        title=f"{title}, by the gain that is exceeded with a probability of 75 %",
        notes=(_GAINS, *notes, *found.why),
        right=frozenset({"size", "rate", "gain over LoRA", "95 % interval", "parameters", "step"}),
        fold=frozenset({"evidence"}),
        drop=("evidence", "step", "parameters"),
    )


def _row(choice: Choice, reference: bool) -> tuple[str, ...]:
    estimate, fitted = choice.estimate, choice.fitted
    gain, interval, evidence = ("0", "", "what gains are over") if reference else ("–", "", "none")
    if estimate is not None:
        gain, interval = f"{estimate.gain:+.1f}", f"{estimate.low:+.1f} to {estimate.high:+.1f}"
        evidence = f"{estimate.trainings} trainings, {estimate.tasks} tasks, {estimate.clusters} clusters"
    rate = fitted.recipe.training.learning_rate
    return (
        fitted.template,
        "" if fitted.size is None else str(fitted.size),
        "" if rate is None else f"{rate:.3g}",
        gain,
        interval,
        number(fitted.counts.deployed),
        "" if choice.cost is None else f"{choice.cost:.2f} ×",
        evidence,
    )
