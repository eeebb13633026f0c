"""Hybrids that were saved from Python, by `hybrid.save(folder)` or `model.save_pretrained(folder)`, in the
terms of a run: what `hybrid.json` tells instead of `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autopeft.errors import TaskError, UsageError
from autopeft.foreign import file_in, read_table_in
from autopeft.tasks.kinds import TaskKind, generative_kind, kind_of_model

__all__ = ["is_saved_hybrid", "longest_of", "manifest_of", "model_class"]

_HYBRID = "hybrid.json"
_LONGEST, _LONGEST_TALK = 128, 1024
_SOURCE = {"name": "not recorded", "origin": "saved from Python", "notice": None}


def is_saved_hybrid(folder: Path) -> bool:
    """Whether a folder is a hybrid saved from Python."""
    return file_in(folder, _HYBRID) is not None


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a run's manifest would say of it, as far as it is known: neither data nor scores are.

    Raises:
        UsageError: `hybrid.json` is damaged.
    """
    told = read_table_in(folder, _HYBRID)
    try:
        config = SimpleNamespace(**{"problem_type": None, **told["config"]})
        config.id2label = {int(k): str(v) for k, v in (config.id2label or {}).items()}
        config.num_labels = len(config.id2label)
        kind, labels = _kind(str(told["architecture"]), config)
        most = longest_of(generative_kind(str(told["architecture"])))
        longest = min(most, int(getattr(config, "max_position_embeddings", None) or most))
        return {
            "model": str(told["model"]),
            "backbone": {"path": str(told["model"]), "sha256": None},
            "architecture": str(told["architecture"]),
            "data": {"name": None, "labels": list(labels), "source": _SOURCE, **kind},
            "training": {"max_length": longest},
            "result": {"counts": told["counts"]},
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{folder / _HYBRID} is not what a saved hybrid has: {error!r}.") from error


def _kind(architecture: str, config: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The kind of task with its metric, and the labels; no kind where none has models of this class."""
    none = {"kind": None, "metric": None}, tuple(config.id2label.values())
    if (writes := generative_kind(architecture)) is not None:
        return {"kind": writes.name, "metric": writes.scorer.metric_for(())}, ()
    try:
        kind, labels = kind_of_model(config, architecture)
    except TaskError:
        return none
    if not architecture.endswith(kind.head.auto_class.__name__.removeprefix("AutoModel")):
        return none
    return {"kind": kind.name, "metric": kind.scorer.metric_for(labels)}, labels


def longest_of(kind: TaskKind | None) -> int:
    """Tokens that are read at most where no training says it: conversations are longer than texts."""
    return _LONGEST_TALK if kind is not None and kind.scorer.writes else _LONGEST


def model_class(architecture: str) -> type[Any]:
    """The class of `transformers` of that name.

    Raises:
        UsageError: it has no model of that name.
    """
    import transformers

    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UsageError(f"transformers has no model {architecture!r}; load the hybrid with autopeft.load().")
    return found
