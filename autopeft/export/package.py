"""A trained hybrid in a folder of its own: everything another process or another machine needs to use it.

```
recipe.yaml            the recipe                manifest.json   backbone, its hash, task, labels, length
*.safetensors, …       weights, head included    README.md       the model card
peft/, merged/, …      a format that others load (see `autopeft.export.formats`)
```
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.devices import AUTO, device_named
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.export.card import README, model_card, write_card
from autopeft.export.from_python import is_saved_hybrid, model_class
from autopeft.export.manifest import MANIFEST, Card
from autopeft.foreign import file_in, local_path
from autopeft.recipe import Recipe
from autopeft.runs.files import empty_folder, write_json
from autopeft.runs.folder import load_run, why_not_here

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from autopeft.assets import ModelSource
    from autopeft.hybrid import Hybrid

__all__ = ["Ready", "Saved", "find_saved", "load_hybrid", "load_saved", "write_package"]

_WINNER = "winner/"  # of a run folder
_OF_A_HYBRID, RECIPE, WEIGHTS = "hybrid.json", "recipe.yaml", "weights.safetensors"


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
    folder = local_path(ref)
    if file_in(folder, MANIFEST) is None and not is_saved_hybrid(folder):
        if folder.is_dir():
            raise UsageError(
                f"{folder} has no {MANIFEST} and no hybrid.json: it is neither a run nor an exported hybrid "
                "nor what hybrid.save() or model.save_pretrained() wrote."
            )
        folder = load_run(ref, root=runs).path
    place = next((p for p in (_WINNER, "") if file_in(folder, f"{p}{WEIGHTS}") is not None), None)
    if place is None:
        raise UsageError(f"{folder} holds no trained weights: the run did not come that far.")
    return Saved(folder, folder / place, Card.read(folder))


def load_saved(
    saved: Saved,
    *,
    model: str | None = None,
    notify: Callable[[str], None] | None = None,
    quantize: str | None = None,
    precision: str | None = None,
    device: str = AUTO,
) -> tuple[Hybrid, PreTrainedTokenizerBase]:
    """The hybrid on its backbone, ready to predict, and the tokenizer, or what its kind of task has in its
    place. `model` is where the backbone is now, `quantize` how it is quantised: `none`, or one of
    `autopeft.assets.QUANTIZED`, and `precision` that of its weights; default: as it was trained. `device` is
    where it computes.

    Raises:
        UsageError: the backbone is not the one that the hybrid was trained on, or the weights do not fit.
    """
    kind = saved.card.task_kind  # says so where nothing can be asked
    hybrid, source = load_hybrid(
        saved,
        model=model,
        notify=notify,
        quantize=quantize,
        precision=precision or saved.card.precision,
        device=device,
    )
    return hybrid, kind.encoder.load_processor(source)


def load_hybrid(
    saved: Saved,
    *,
    model: str | None = None,
    notify: Callable[[str], None] | None = None,
    quantize: str | None = None,
    precision: str = "fp32",
    device: str = AUTO,
) -> tuple[Hybrid, ModelSource]:
    """The hybrid on its backbone, in eval mode, and where that came from; else as `load_saved`."""
    from autopeft.assets import check_quantize, dtype_of, load_model, resolve_model
    from autopeft.hybrid import load

    card, place = saved.card, device_named(device)
    if not (model or card.model):
        raise UsageError(
            f"{saved.folder} names no backbone, as its model was made from a configuration; say where it is "
            "with --model."
        )
    wanted = quantize or card.backbone.get("quantize")
    how = None if wanted in (None, "none") else check_quantize(str(wanted))
    if model is None and card.backbone.get("origin") == "folder":
        why = why_not_here(saved.folder, "backbone", card.model)
        if why is not None:
            raise UsageError(f"{why}. Say where it is now with --model.")
    source = resolve_model(model or card.model, notify=notify, quantize=how)
    trained_on = card.backbone.get("sha256")
    if trained_on and source.sha256 and trained_on != source.sha256:
        raise UsageError(
            f"The backbone {model or card.model!r} is not the one that this hybrid was trained on (sha256 "
            f"{source.sha256[:12]}…, but {str(trained_on)[:12]}… is needed); name the right one with --model."
        )
    if card.kind is None:
        outputs = {"num_labels": len(card.labels)}
        live = load_model(
            source, model_class(str(card.architecture)), outputs, new_head=False, dtype=dtype_of(precision)
        )
    else:
        live = card.task_kind.head.load_model(source, card.labels, dtype=dtype_of(precision))
    live.to(place)  # type: ignore[arg-type]
    hybrid = load(live, saved.weights)
    hybrid.model.eval()
    return hybrid, source


@dataclass(frozen=True)
class Ready:
    """A format that can be written.

    Attributes:
        write: writes it into a folder.
        section: of the model card, how it is loaded and served.
        lines: what else is to be said of it.
        facts: the same and more as data.
    """

    write: Callable[[Path], object]
    section: str
    lines: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_package(
    saved: Saved,
    folder: str | Path,
    *,
    name: str | None = None,
    ready: Ready | None = None,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Copy a trained hybrid into a new or empty folder, with manifest and model card; returns the folder.

    Args:
        name, ready: a format that is written beside it, into a folder of that name.

    A `README.md` that somebody wrote or changed is copied too, and the card then stands beside it. Manifest
    and card come last, so that they speak of nothing that is not whole; where the work fails or is
    interrupted, nothing stays in the folder. Every file has the mode that the umask gives a new one.

    Raises:
        UsageError: the folder is not empty.
        RecipeError: the recipe of the weights cannot be read.
        AutoPEFTError: the folder cannot be written.
    """
    target = empty_folder(local_path(folder), "-o")
    place = saved.weights.relative_to(saved.folder)
    recipe = file_in(saved.folder, (place / RECIPE).as_posix()) or file_in(saved.folder, RECIPE)
    if recipe is None:
        raise UsageError(f"{saved.folder} has no {RECIPE}, which says what its weights are.")
    more = () if ready is None else (f"## Load and serve\n\n{ready.section}",)
    text = model_card(saved.card, Recipe.from_file(recipe), more)
    manifest = saved.card.to_dict()
    made = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        # A folder from Python has a README of ours; beside it, a checkpoint has what only a training needs.
        kept = (WEIGHTS, _OF_A_HYBRID, *(() if saved.card.architecture is not None else (README,)))
        for file in kept:
            path = file_in(saved.folder, (place / file).as_posix())
            if path is not None:
                shutil.copyfile(path, target / file)
        shutil.copyfile(recipe, target / RECIPE)
        if ready is not None:
            ready.write(target / str(name))
            for path in target.rglob("*"):
                if path.is_file():  # safetensors lets nobody else read what it writes
                    shutil.copymode(target / RECIPE, path)
            manifest["exported"] = {"format": name, **ready.facts}
        write_json(target / MANIFEST, manifest)
        write_card(target, text, notify)
    except BaseException as error:  # Ctrl-C too: nothing stays of what is not whole, as far as that goes
        with suppress(OSError):
            for path in list(target.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if made:
                target.rmdir()
        if isinstance(error, OSError):
            raise AutoPEFTError(f"Cannot write {str(target)!r}: {error.strerror or error}.") from error
        raise
    return target
