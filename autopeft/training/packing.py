"""Several short texts in one row: the logits of a batch from fewer rows, and less padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.tasks.kinds import TaskKind
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.training.losses import parameters_of
from autopeft.training.shared_prefix import is_by_position

__all__ = ["Packing", "check_packing"]

_TAKEN = {"input_ids", "attention_mask", "labels", "task_id"}
_OTHERWISE = "; train it without packing"


class Packing:
    """Lays the texts of a batch end to end, each behind the one before where both fit into a row.

    Positions begin again with each text, which is transformers' word for several texts in a row: its masks
    are then block-diagonal, and no text sees another. Texts stay in their order, so that the logits of the
    learnt tokens, row after row, are those of the batch.

    Args:
        length: tokens of a row, at most; a longer text has a row of its own.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch (B, L) as fewer rows (B', L'): `input_ids`, `position_ids` and `labels`, without a mask.

        Raises:
            UsageError: the batch says more of its rows than their tokens.
        """
        task = batch.get("task_id")
        several = {"task_id"} if task is not None and bool((task != task[0]).any()) else set()
        if more := sorted((batch.keys() - _TAKEN) | several):
            raise UsageError(
                f"Texts cannot share a row where a batch says {', '.join(more)} of each{_OTHERWISE}."
            )
        mask = batch["attention_mask"].bool()
        lengths = mask.sum(dim=1)
        row, start, ends = self._laid(lengths.cpu().tolist())
        width, device = max(ends), mask.device
        inside = (mask.cumsum(dim=1) - 1)[mask]
        first = torch.tensor([r * width + s for r, s in zip(row, start, strict=True)], device=device)
        place = first.repeat_interleave(lengths) + inside

        def laid(values: Tensor, filled: Tensor) -> Tensor:
            filled[place] = values
            return filled.view(len(ends), width)

        # What is behind the last text of a row stands at position 0, and so each of it apart.
        blank = torch.zeros(len(ends) * width, dtype=torch.long, device=device)
        found = {
            "input_ids": laid(batch["input_ids"][mask], blank.clone()),
            "position_ids": laid(inside, blank.clone()),
        }
        if "labels" in batch:
            # Nothing predicts the first token of a text.
            learnt = torch.where(inside == 0, IGNORED, batch["labels"][mask])
            found["labels"] = laid(learnt, torch.full_like(blank, IGNORED))
        if task is not None:
            found["task_id"] = task[:1].expand(len(ends))
        return found

    def _laid(self, lengths: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """The row of each text and where it starts there, and where each row ends."""
        row, start, ends = list[int](), list[int](), list[int]()
        for length in lengths:
            if not ends or ends[-1] + length > self.length:
                ends.append(0)
            row.append(len(ends) - 1)
            start.append(ends[-1])
            ends[-1] += length
        return row, start, ends


def check_packing(hybrid: Any, model: nn.Module, kind: TaskKind) -> None:
    """Refuse texts that share a row where something has to tell them apart by rows.

    Raises:
        UsageError: the task is of another kind, the model cannot take several texts in a row, or something in
            the recipe acts on rows as a whole.
    """
    if not (kind.head.causal and kind.encoder.tokenwise_trunk):
        raise UsageError(f"Packing is for language models (causal_lm), and not for {kind.plain}{_OTHERWISE}.")
    if "position_ids" not in parameters_of(model):
        raise UsageError(
            f"{type(model).__name__} takes no positions, which tell texts in one row apart{_OTHERWISE}."
        )
    attention = str(getattr(model.config, "_attn_implementation", "eager"))
    if "flash" in attention:  # there positions part texts in batches of one row alone
        raise UsageError(
            f"With {attention} texts are not told apart in batches of several rows; load the model with "
            f"attn_implementation='sdpa', or train it without packing."
        )
    if not isinstance(hybrid, Hybrid):
        return
    entries = hybrid.graph.entries.values()
    whole = [e for e in entries if e.traits.changes_length or e.traits.sees_text or "scores" in e.ways]
    rowwise = is_by_position(hybrid.graph, hybrid.injection.layout.stacks[-1])
    if whole or not rowwise:
        names = sorted({e.method.name for e in whole or entries})
        raise UsageError(
            f"In this recipe something acts on a row as a whole ({', '.join(names)}), and would take several "
            f"texts for one{_OTHERWISE}."
        )
