"""What a trained hybrid was made from, as the manifest of its run or export tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import UsageError, near
from autopeft.runs.files import read_json
from autopeft.runs.folder import RunFolder
from autopeft.tasks.kinds import get_kind, kind_names

if TYPE_CHECKING:
    from autopeft.tasks import TaskKind

__all__ = ["MANIFEST", "Card"]

MANIFEST = "manifest.json"
# Of a run's manifest: what a reader of the model card wants to know. Arguments stay behind: they hold paths.
_MADE = ("kind", "created", "budget", "space", "sampler", "objective", "seed", "effort", "versions")


@dataclass(frozen=True)
class Card:
    """What a trained hybrid was made from, as its manifest tells.

    Attributes:
        model: the backbone as it was named.
        backbone: where it came from, with its `sha256` where it is known.
        data: the task's own description (name, kind, labels, metric, source).
        training: how it was trained; `max_length` is the longest text in tokens.
        result: counts and scores, and the seeds of the scores on *test*, where they are known.
        made: what else the run's manifest says of how it came about (see `_MADE`).
    """

    model: str
    backbone: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    result: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of a run folder or an exported folder.

        Raises:
            UsageError: the manifest is absent or damaged.
        """
        manifest = read_json(folder / MANIFEST)
        result = manifest.get("result")
        if result is None and (folder / "result.json").is_file():
            result = read_json(folder / "result.json")
            result["seeds"] = _seeds(folder, result, manifest)
        try:
            card = cls(
                model=str(manifest["model"]),
                backbone=dict(manifest["backbone"]),
                data=dict(manifest["data"]),
                training=dict(manifest["training"]),
                result=dict(result or {}),
                made={key: manifest[key] for key in _MADE if manifest.get(key) is not None},
            )
            name, _, _ = card.kind, card.labels, card.max_length
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{folder / MANIFEST} is not a manifest of a trained hybrid: {error!r}."
            ) from error
        if name not in kind_names():
            raise UsageError(
                f"{folder / MANIFEST} names the unknown kind of task {name!r}.{near(name, kind_names())} "
                f"Kinds: {', '.join(kind_names())}; is the package with this one installed?"
            )
        return card

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return int(self.training["max_length"])

    @property
    def kind(self) -> str:
        """Name of the kind of task."""
        return str(self.data["kind"])

    @property
    def task_kind(self) -> TaskKind:
        """The kind itself, which knows all that depends on it."""
        return get_kind(self.kind)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(str(label) for label in self.data["labels"])

    @property
    def metric(self) -> str:
        return str(self.data["metric"])

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.task_kind.num_labels(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The manifest of an exported folder."""
        return {
            "task": self.data.get("name"),
            "model": self.model,
            "backbone": dict(self.backbone),
            "data": dict(self.data),
            "training": dict(self.training),
            "result": dict(self.result),
            **self.made,
        }


def _seeds(folder: Path, result: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[int]:
    """The seeds of the scores on *test*: of a search those that `finals.jsonl` has for the winner."""
    if manifest.get("kind") == "train":
        seed = manifest.get("seed")
        return [] if seed is None else [seed]
    tests = [r for r in RunFolder(folder).finals().records if r.kind == "test"]
    return sorted({r.seed for r in tests if r.number == result.get("number") and r.seed is not None})
