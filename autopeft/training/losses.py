"""Logits of a batch; the loss itself belongs to the task's kind.

Labels never reach the model's forward: a labelled Hugging Face forward writes `config.problem_type`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from autopeft.errors import UsageError
from autopeft.injection.frames import FEATURES
from autopeft.method import FEATURE
from autopeft.tasks.kinds import TaskKind
from autopeft.tasks.tokens import BESIDE

__all__ = ["logits_of", "parameters_of", "slice_rows"]

_NO_INPUTS = ("labels", "task_id")
_NO_SUCH_ROW = "index out of range in self"  # what torch says of an embedding on the CPU


def logits_of(model: nn.Module, batch: Mapping[str, Any], kind: TaskKind | None = None) -> Tensor:
    """Logits (rows, …) of an unlabelled forward: what the kind of task takes from the model's output, by
    default its `logits`. What the model reads beside the batch comes from the kind too (`Head.inputs`).

    `task_id`, and what the batch says of its rows to modules (`FEATURE`), go to models with modules on them,
    whose forward takes further keyword arguments.

    Raises:
        UsageError: the batch says something to modules, and the model's forward does not hand it on; on the
            CPU, the model has no embedding of some token, position or token type; or see
            `Head.inputs`.
    """
    said = {k.removeprefix(FEATURE): v for k, v in batch.items() if k.startswith(FEATURE)}
    inputs: dict[str, Any] = {
        k: v for k, v in batch.items() if k not in _NO_INPUTS and not k.startswith((FEATURE, BESIDE))
    }
    if kind is not None:
        inputs |= kind.head.inputs(model, batch)
    names = parameters_of(model)
    modules: Any = getattr(model, "autopeft", nn.Module())
    hands_on = None in names and any(True for _ in modules.children())
    if "task_id" in batch and hands_on:
        inputs["task_id"] = batch["task_id"]
    if said and not hands_on:
        raise UsageError(
            f"{type(model).__name__} takes no further keyword arguments, by which modules would learn "
            f"{', '.join(sorted(said))} of the rows; take another model."
        )
    if said:
        inputs[FEATURES] = said
    if "use_cache" in names and "use_cache" not in inputs:
        inputs["use_cache"] = False  # nobody generates: keys and values would be kept for nothing
    try:
        if kind is not None:
            return kind.head.run(model, inputs, batch)
        output: Any = model(**inputs)
    except IndexError as error:
        if _NO_SUCH_ROW not in str(error):
            raise
        raise _not_embedded(model, inputs) from error
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _not_embedded(model: nn.Module, inputs: Mapping[str, Tensor]) -> UsageError:
    read = [inputs[name] for name in ("input_ids", "decoder_input_ids") if name in inputs]
    tokens, largest = max(ids.shape[-1] for ids in read), max(int(ids.max()) for ids in read)
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    table = getattr(embeddings, "num_embeddings", None)
    if table is not None and largest >= table:
        return UsageError(
            f"The tokenizer gives the token {largest:,}, but the model has embeddings of the tokens 0 to "
            f"{table - 1:,} alone: the tokenizer is another model's, or the model was not resized to it."
        )
    return UsageError(
        f"The model has no embedding of some position or token type in rows of {tokens:,} tokens; lower "
        "max_length (--max-length), and compare the tokenizer with the model's configuration."
    )


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str | None]:
    found = inspect.signature(forward).parameters.values()
    return frozenset(None if p.kind is p.VAR_KEYWORD else p.name for p in found)


def parameters_of(model: nn.Module) -> frozenset[str | None]:
    """Names of the parameters of a model's forward, and `None` where it takes further keywords."""
    return _parameters(type(model).forward)


def slice_rows(batch: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Rows start…stop of every tensor of a batch (padding stays that of the batch)."""
    return {k: v[start:stop] for k, v in batch.items()}
