"""A trained hybrid in a folder of its own: everything another process or another machine needs to use it.

```
recipe.yaml            the recipe                manifest.json   backbone, its hash, task, labels, length
*.safetensors, …       weights, head included    README.md       the model card
peft/                  the same in Hugging Face peft's format, where it can be said
```
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import AutoPEFTError, UsageError, near
from autopeft.export.card import README, model_card, write_card
from autopeft.export.from_python import is_saved_hybrid, manifest_of, model_class
from autopeft.recipe import Recipe
from autopeft.runs.files import read_json, write_json
from autopeft.runs.folder import RunFolder, load_run
from autopeft.tasks.kinds import get_kind, kind_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from autopeft.assets import ModelSource
    from autopeft.hybrid import Hybrid
    from autopeft.tasks import TaskKind

__all__ = ["Card", "Saved", "find_saved", "load_hybrid", "load_saved", "read_manifest", "write_package"]

_MANIFEST = "manifest.json"
_WEIGHTS = "winner"
_DATA = ("text", "text_pair", "label", "seed", "drop_empty")
_OF_A_HYBRID = ("hybrid.json", "recipe.yaml", "weights.safetensors")
# Of a run's manifest: what a reader of the model card wants to know. Of the arguments only `_DATA` goes with
# it: others hold paths.
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
        arguments: what the data were read and split with: columns and seed.
        architecture: class of the model, of a hybrid that was saved from Python.
    """

    model: str
    backbone: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    result: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of a run folder, an exported folder or a hybrid that was saved from Python.

        Raises:
            UsageError: the manifest is absent or damaged.
        """
        manifest = read_manifest(folder)
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
                arguments=_of_data(manifest.get("arguments") or {}),
                architecture=manifest.get("architecture"),
            )
            name, _, _ = card.kind, card.labels, card.max_length
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{folder / _MANIFEST} is not a manifest of a trained hybrid: {error!r}."
            ) from error
        if name is None and card.architecture is not None:
            return card
        if name not in kind_names():
            hint = near(str(name), kind_names())
            raise UsageError(
                f"{folder / _MANIFEST} names the unknown kind of task {name!r}.{hint} "
                f"Kinds: {', '.join(kind_names())}; is the package with this one installed?"
            )
        return card

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return int(self.training["max_length"])

    @property
    def kind(self) -> str | None:
        """Name of the kind of task; `None` of a hybrid saved from Python whose model is of no kind's."""
        found = self.data["kind"]
        return None if found is None else str(found)

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
            "arguments": dict(self.arguments),
            "result": dict(self.result),
            **({} if self.architecture is None else {"architecture": self.architecture}),
            **self.made,
        }


def _of_data(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {**said, **(said.get("columns") or {})}
    return {name: found[name] for name in _DATA if found.get(name) is not None}


def _seeds(folder: Path, result: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[int]:
    """The seeds of the scores on *test*: of a search those that `finals.jsonl` has for the winner."""
    if manifest.get("kind") == "train":
        seed = manifest.get("seed")
        return [] if seed is None else [seed]
    tests = [r for r in RunFolder(folder).finals().records if r.kind == "test"]
    return sorted({r.seed for r in tests if r.number == result.get("number") and r.seed is not None})


@dataclass(frozen=True)
class Saved:
    """A trained hybrid on disk: its `folder` (a run or an export), where the `weights` are, its `card`."""

    folder: Path
    weights: Path
    card: Card


def find_saved(ref: str | Path, *, runs: str | Path = "runs") -> Saved:
    """The trained hybrid that `ref` means: an exported folder, one that was saved from Python, a run folder,
    a run's name, or `latest`.

    Raises:
        UsageError: there is none, or the run has no trained weights.
    """
    folder = Path(ref).expanduser()
    if not (folder / _MANIFEST).is_file() and not is_saved_hybrid(folder):
        if folder.is_dir():
            raise UsageError(
                f"{folder} has no {_MANIFEST} and no hybrid.json: it is neither a run nor an exported hybrid "
                "nor what hybrid.save() or model.save_pretrained() wrote."
            )
        folder = load_run(ref, root=runs).path
    weights = folder / _WEIGHTS if (folder / _WEIGHTS).is_dir() else folder
    if not any(weights.glob("*.safetensors")):
        raise UsageError(f"{folder} holds no trained weights: the run did not come that far.")
    return Saved(folder, weights, Card.read(folder))


def load_saved(
    saved: Saved, *, model: str | None = None, notify: Callable[[str], None] | None = None
) -> tuple[Hybrid, PreTrainedTokenizerBase]:
    """The hybrid on its backbone, ready to predict, and the tokenizer. `model` is where the backbone is now.

    Raises:
        UsageError: the backbone is not the one that the hybrid was trained on, or the weights do not fit.
    """
    from autopeft.assets import load_tokenizer

    saved.card.task_kind  # noqa: B018  (says so where nothing can be asked)
    hybrid, source = load_hybrid(saved, model=model, notify=notify)
    return hybrid, load_tokenizer(source)


def load_hybrid(
    saved: Saved, *, model: str | None = None, notify: Callable[[str], None] | None = None
) -> tuple[Hybrid, ModelSource]:
    """The hybrid on its backbone, in eval mode, and where that came from; else as `load_saved`."""
    from autopeft.assets import load_model, resolve_model
    from autopeft.hybrid import load

    card = saved.card
    if not (model or card.model):
        raise UsageError(
            f"{saved.folder} names no backbone, as its model was made from a configuration; say where it is "
            "with --model."
        )
    source = resolve_model(model or card.model, notify=notify)
    trained_on = card.backbone.get("sha256")
    if trained_on and source.sha256 and trained_on != source.sha256:
        raise UsageError(
            f"The backbone {model or card.model!r} is not the one that this hybrid was trained on (sha256 "
            f"{source.sha256[:12]}…, but {str(trained_on)[:12]}… is needed); name the right one with --model."
        )
    if card.kind is None:
        outputs = {"num_labels": len(card.labels)}
        live = load_model(source, model_class(str(card.architecture)), outputs, new_head=False)
    else:
        live = card.task_kind.load_model(source, card.labels)
    hybrid = load(live, saved.weights)
    hybrid.model.eval()
    return hybrid, source


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run or an export; of a hybrid saved from Python, what it would say.

    Raises:
        UsageError: it is absent or damaged.
    """
    if not (folder / _MANIFEST).is_file() and is_saved_hybrid(folder):
        return manifest_of(folder)
    return read_json(folder / _MANIFEST)


def write_package(saved: Saved, folder: str | Path, *, notify: Callable[[str], None] | None = None) -> Path:
    """Copy a trained hybrid into a new or empty folder, with manifest and model card; returns the folder.

    A `README.md` that somebody wrote or changed is copied too, and the card then stands beside it.

    Raises:
        UsageError: the folder is not empty.
        RecipeError: the recipe of the weights cannot be read.
        AutoPEFTError: the folder cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder; choose another -o, or remove it.")
    own = saved.weights / "recipe.yaml"
    recipe = Recipe.from_file(own if own.is_file() else saved.folder / "recipe.yaml")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in (*_OF_A_HYBRID, README):
            # Beside them, a checkpoint of the Trainer has what only a training needs.
            if (saved.weights / name).is_file():
                shutil.copyfile(saved.weights / name, target / name)
        if not (target / "recipe.yaml").exists():
            shutil.copyfile(saved.folder / "recipe.yaml", target / "recipe.yaml")
    except OSError as error:
        raise AutoPEFTError(f"Cannot write {str(target)!r}: {error.strerror}.") from error
    write_json(target / _MANIFEST, saved.card.to_dict())
    write_card(target, model_card(saved.card, recipe), notify)
    return target
