"""What is known of a trained hybrid: the manifest of a run, of an export or of a hybrid saved from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.assets.precision import PRECISIONS
from autopeft.errors import UsageError, near
from autopeft.export.from_python import is_saved_hybrid, manifest_of
from autopeft.foreign import file_in, read_table_in
from autopeft.runs.documents import read_result
from autopeft.runs.folder import RunFolder
from autopeft.tasks.kinds import get_kind, is_kind, kind_names
from autopeft.tasks.kinds.task_kind import plain_name

if TYPE_CHECKING:
    from autopeft.tasks import TaskKind

__all__ = ["MANIFEST", "Card", "read_manifest"]

MANIFEST = "manifest.json"
_DATA = ("text", "text_pair", "label", "seed", "drop_empty")
# Of a run's manifest: what a reader of the model card wants to know. Of the arguments only `_DATA` goes with
# it: others hold paths.
_MADE = ("kind", "created", "budget", "space", "sampler", "goal", "objective", "seed", "effort", "versions")


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
        arguments: what the data were read and split with: columns and seed.
        architecture: class of the model, of a hybrid that was saved from Python.
        kind: name of the kind of task; `None` of a hybrid saved from Python whose model is of no kind's.
        pairs: whether it was trained on pairs of texts; a hybrid saved from Python does not say.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: `data` or `training` lacks what is read from it, or
            has it in another form.
    """

    model: str
    backbone: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    result: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    kind: str | None = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    metric: str = field(init=False)
    max_length: int = field(init=False)
    pairs: bool | None = field(init=False)

    def __post_init__(self) -> None:
        kind, pairs = self.data["kind"], self.data.get("pairs")
        told = {
            "kind": None if kind is None else str(kind),
            "labels": tuple(str(label) for label in self.data["labels"]),
            "metric": str(self.data["metric"]),
            "max_length": int(self.training["max_length"]),
            "pairs": pairs if isinstance(pairs, bool) else None,
        }
        for name, value in told.items():
            object.__setattr__(self, name, value)

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of a run folder, an exported folder or a hybrid that was saved from Python.

        Raises:
            UsageError: the manifest is absent or damaged.
        """
        manifest = read_manifest(folder)
        result = manifest.get("result")
        if result is None and file_in(folder, "result.json") is not None:
            result = read_table_in(folder, "result.json")
            # The seeds of the scores on *test*: of a search those that `finals.jsonl` has for the winner.
            if manifest.get("kind") == "train":
                seeds: list[Any] = [manifest.get("seed")]
            else:
                records = RunFolder(folder).finals().records
                tests = [r for r in records if r.kind == "test" and r.number == result.get("number")]
                if not tests:  # a baseline is tested in its own runs
                    recipe = result.get("recipe")
                    tests = [r for r in records if "test" in r.scores and r.recipe == recipe]
                seeds = sorted({r.seed for r in tests if r.seed is not None})
            result["seeds"] = [seed for seed in seeds if seed is not None]
        try:
            card = cls(
                model=str(manifest["model"]),
                backbone=dict(manifest["backbone"]),
                data=dict(manifest["data"]),
                training=dict(manifest["training"]),
                result=dict(result or {}),
                made={key: manifest[key] for key in _MADE if manifest.get(key) is not None},
                arguments={
                    k: v for k, v in (manifest.get("arguments") or {}).items() if k in _DATA and v is not None
                },
                architecture=manifest.get("architecture"),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # 1e999 is JSON, but no number
            raise UsageError(
                f"{folder / MANIFEST} is not a manifest of a trained hybrid: {error!r}."
            ) from error
        if card.kind is None and card.architecture is not None:
            return card
        if not is_kind(str(card.kind)):
            plain = plain_name(str(card.kind))
            hint = near(plain, kind_names())
            raise UsageError(
                f"{folder / MANIFEST} names the unknown kind of task {plain!r}.{hint} "
                f"Kinds: {', '.join(kind_names())}; is the package with this one installed?"
            )
        get_kind(str(card.kind))  # what it was told is read before anything else is
        return card

    @property
    def task_kind(self) -> TaskKind:
        """The kind itself, which knows all that depends on it.

        Raises:
            UsageError: there is none.
        """
        if self.kind is None:
            raise UsageError(
                f"No kind of task has models like {self.architecture}, so this hybrid can be exported and "
                "loaded, but not asked or scored from here; autopeft.load(model, folder) brings it back."
            )
        return get_kind(self.kind)

    @property
    def precision(self) -> str:
        """Of the backbone under the weights, as they were trained: `fp32` where nothing is said of it."""
        found = read_result(self.result).precision
        return found if found is not None and found in PRECISIONS else "fp32"

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.task_kind.head.num_labels(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The manifest of an exported folder. Where a backbone that is found by its name lay on the machine
        of the training is left out."""
        found = self.backbone.get("alias") or self.backbone.get("origin") == "hub"
        return {
            "task": self.data.get("name"),
            "model": self.model,
            "backbone": {key: value for key, value in self.backbone.items() if key != "path" or not found},
            "data": dict(self.data),
            "training": dict(self.training),
            "arguments": dict(self.arguments),
            "result": dict(self.result),
            **({} if self.architecture is None else {"architecture": self.architecture}),
            **self.made,
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run or an export; of a hybrid saved from Python, what it would say.

    Raises:
        UsageError: it is absent or damaged.
    """
    if file_in(folder, MANIFEST) is None and is_saved_hybrid(folder):
        return manifest_of(folder)
    return read_table_in(folder, MANIFEST)
