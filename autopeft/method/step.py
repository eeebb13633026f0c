"""A step of training as terms of the loss see it: its rows, what the model made of them, further forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

__all__ = ["LossStep"]


class LossStep(Protocol):
    """What `loss_terms` is handed in each step.

    Where a batch goes through the model in parts, each part is a step of its own, and what `loss_terms` gives
    counts by the part's share of the rows. So a term of parameters alone counts once, and the mean over rows
    of something is that over the batch.

    Attributes:
        batch: what went through the model, labels included; it is not to be altered.
        labels: of these rows, (rows, …).
        logits: what the task's loss reads, (rows, …), with its graph.
    """

    @property
    def batch(self) -> Mapping[str, Tensor]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def logits(self) -> Tensor: ...

    def again(self, **overrides: Any) -> Tensor:
        """Logits of a further forward of the same rows, with everything attached as it is at the moment.

        What draws does so anew. Without overrides the forward takes the same short cuts as the first; with
        some every layer is computed, at all positions.

        Args:
            overrides: other tensors of the batch by name, `None` to leave one out. `embeddings` is a function
                of what the table of the (first) stack's text embeddings yields for the tokens of the rows,
                (rows, positions, width); what it returns stands in that place. Reserved rows are not among
                them, and ids stay, by which models find where rows end.

        Raises:
            UsageError: `embeddings` is given, and the model has no text embeddings.
        """

    def loss(self, logits: Tensor) -> Tensor:
        """The task's loss of logits of these rows, a scalar that as a term is exact over the parts of a
        batch, with class weights and numbers of tokens too."""

    def mean(self, values: Tensor) -> Tensor:
        """The mean of something over all that the task's loss counts: rows, or the tokens that are learnt.
        `values` are those of this part of a batch, and the scalar as a term is exact over its parts."""

    def divergence(self, logits: Tensor) -> Tensor:
        """½·[KL(q‖p) + KL(p‖q)] of the answers p that `logits` of this step stand for and q of a further
        forward's logits of these rows, the mean over all that the task's loss counts; the first argument of
        each KL has no gradient. A scalar that as a term is exact over the parts of a batch.

        Raises:
            UsageError: it is not known how the logits are to be read (in `transformers.Trainer`, of labels
                other than one for each row).
        """

    def average(self, draws: int) -> None:
        """Let the task's loss be its mean over `draws` forwards, `logits` of the first among them.

        Where several ask, the largest counts for all. The others are run one after the other, behind the
        terms.
        """
