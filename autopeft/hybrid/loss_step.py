"""One step of training, or a part of its rows, as terms of the loss see it (`autopeft.method.LossStep`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from autopeft.backbones import base_model_of, layout_of
from autopeft.errors import UsageError
from autopeft.injection.frames import frames, further_forward
from autopeft.nn import symmetric_divergence

__all__ = ["Divergence", "Step", "Total", "apart_by_labels"]

Total = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
Divergence = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
_EMBEDDINGS = "embeddings"
_TABLES: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def apart_by_labels(logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """How far apart two answers are, summed over rows that have one label each.

    Raises:
        UsageError: they have several, so that it is not known how the logits are to be read.
    """
    if batch["labels"].ndim != 1:
        raise UsageError(
            "A term of the loss compares the answers of two forwards, which is known here for one label per "
            f"row, but got labels of shape {tuple(batch['labels'].shape)}; give the task's own loss "
            "(`total=task.loss().total`), or set the term's factor to 0 (`consistency` of adamix)."
        )
    return symmetric_divergence(logits, others).sum()


@dataclass(eq=False)
class Step:
    """See `autopeft.method.LossStep`.

    Attributes:
        model: that is trained.
        batch: rows of it that went through the model, with `labels`.
        logits: of these rows.
        forward: logits of a batch; told whether it is another one than `batch`, or other embeddings are in
            place.
        total: the task's loss, summed over what counts in some rows, of logits and the batch.
        divisor: what that sum is divided by to be a term.
        apart: how far apart the answers of two forwards are, summed over what counts in some rows, of both
            logits and the batch.
        draws: over how many forwards the task's loss is the mean.
    """

    model: nn.Module
    batch: Mapping[str, Tensor]
    logits: Tensor
    _: KW_ONLY
    forward: Callable[[Mapping[str, Any], bool], Tensor]
    total: Total
    divisor: float
    apart: Divergence = apart_by_labels
    draws: int = 1

    @property
    def labels(self) -> Tensor:
        return self.batch["labels"]

    def again(self, **overrides: Any) -> Tensor:
        embeddings = overrides.pop(_EMBEDDINGS, None)
        batch = {k: v for k, v in {**self.batch, **overrides}.items() if v is not None}
        altered = bool(overrides) or embeddings is not None
        replaced: AbstractContextManager[None] = nullcontext()
        if embeddings is not None:
            replaced = _replaced(table_of(self.model), embeddings, batch["input_ids"].shape[1])
        with further_forward(), replaced:
            return self.forward(batch if altered else self.batch, altered)

    def loss(self, logits: Tensor) -> Tensor:
        return self.total(logits, self.batch) / self.divisor

    def mean(self, values: Tensor) -> Tensor:
        return values.sum() / self.divisor

    def divergence(self, logits: Tensor) -> Tensor:
        return self.apart(self.logits, logits, self.batch) / self.divisor

    def average(self, draws: int) -> None:
        self.draws = max(self.draws, draws)


def table_of(model: nn.Module) -> nn.Module:
    """The table of the first stack's text embeddings.

    Raises:
        UsageError: there is none.
    """
    base = base_model_of(cast(Any, model))
    if model not in _TABLES:
        layout = layout_of(base)
        places = layout.stacks[0].places if layout.family.modality == "text" else ()
        _TABLES[model] = next((p.entry for p in places if p.site.name == _EMBEDDINGS), None)
    path = _TABLES[model]
    if path is None:
        raise UsageError(
            f"{type(model).__name__} has no table of text embeddings that is known here, so that nothing can "
            "stand in their place; take what needs it out of the recipe."
        )
    return base.get_submodule(path)


@contextmanager
def _replaced(table: nn.Module, embeddings: Callable[[Tensor], Tensor], length: int) -> Iterator[None]:
    """Within, the next forward of the model has other embeddings in place of those of its `length` tokens.

    Behind the table and before all that acts there: whatever alters embeddings, and the rows of prompts, come
    as ever. A model may look up its token types in the same table afterwards. A pre-pass of the bare backbone
    has them as well.
    """
    done: set[bool] = set()

    def behind(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        bare = bool(frames.bare)
        if bare in done:
            return None
        done.add(bare)
        count = output.shape[1] - length
        if not count:
            new = embeddings(output)
        else:
            laid = frames.context(*frames.entered).reserved
            rows = output.new_zeros(output.shape[0], count, output.shape[2])  # which prompts fill
            new = laid.around(embeddings(laid.text(output)), rows)
        # Reentrant checkpointing wants an input that requires a gradient.
        return new if new.requires_grad or not output.requires_grad else new.requires_grad_()

    handle = table.register_forward_hook(behind, prepend=True)
    try:
        yield
    finally:
        handle.remove()
