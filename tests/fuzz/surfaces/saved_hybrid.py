"""Folders of trained hybrids, saved from Python or exported, and of their backbones: loaded, shown, exported
and asked."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from support.fingerprint import changed, fingerprint
from support.tiny import randomise
from transformers import PreTrainedModel

from autopeft import load
from autopeft.assets import load_model
from autopeft.errors import AutoPEFTError
from autopeft.export.package import find_saved, write_package
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

from .. import mutate
from ..canary import PICKLE
from ..folders import Edit, Files, Move, cut, edit, linked, nested, put, read, replace, told, write
from ..products import check_markdown, command
from ..surface import Call, First
from ..weights import changed_header

SHARE = 0.2

_RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
_FOLDER, _BACKBONE = "hybrid", "bert"
_TWO = {"gate": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2, "reparameterization": 4}}]}
_SORTS = {"route": {"children": [{"lora": {"rank": 1}}], "copies": 2}}
_RECIPES: tuple[dict[str, Any], ...] = (
    {
        "name": "gated",
        "layers": [{"attach": [_TWO, {"serial_adapter": {"bottleneck": 2}, "as": "small"}]}],
        "model": [{"prompt_tuning": {"length": 2}}],
    },
    {
        "name": "of data",
        "layers": [{"attach": [{"sora": {"rank": 2}}, "ia3"]}, {"at": [1], "attach": ["bitfit"]}],
    },
    {"name": "routed", "layers": [{"attach": [_SORTS]}]},
    {"name": "plain", "layers": [{"attach": [{"lora": {"rank": 2}}]}]},  # peft's format can say it
)
_LABELS = (
    "\x1b[31mred\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "[a](javascript:0)",
    "\x9b2J",
    "\u202eevil",
)


@cache
def _backbone() -> Files:
    return read(_RUNS / _BACKBONE)


@cache
def _model() -> PreTrainedModel:
    return load_model(str(_RUNS / _BACKBONE))


@cache
def _valid() -> tuple[Files, ...]:
    """Folders that `hybrid.save` and `autopeft export` wrote."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for i, recipe in enumerate(_RECIPES):
            hybrid = attach(copy.deepcopy(_model()), Recipe.from_dict(recipe), seed=0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                randomise(hybrid.root)
            folder = hybrid.save(Path(place, str(i)))
            files = read(folder)
            told("hybrid.json", lambda manifest: manifest.update(model=_BACKBONE))(files)
            found.append(files)
        for run in ("finished", "fixed"):
            found.append(read(write_package(find_saved(_RUNS / run), Path(place, run))))
    return tuple(found)


def use(*, ask: bool = False) -> None:
    """What is done with a hybrid that somebody sent."""
    model = copy.deepcopy(_model())
    before = fingerprint(model)
    refused: list[AutoPEFTError] = []

    def attempt(step: Callable[[], object]) -> bool:
        try:
            step()
        except AutoPEFTError as error:
            refused.append(error)
            return False
        return True

    if attempt(lambda: _asked(load(model, _FOLDER))):
        del model
    else:
        differences = changed(before, fingerprint(model))
        assert not differences, f"a refused load left {differences[:3]} changed"
    recipe = Path(_FOLDER, "recipe.yaml")
    if not recipe.is_symlink():  # where a link leads that is named by itself, whoever names it decides
        attempt(lambda: command("show", str(recipe), "--model", _BACKBONE))
    if attempt(lambda: command("export", _FOLDER, "-o", "out")):
        _check_cards(Path("out"))
        if ask:
            attempt(lambda: command("predict", "out", "--text", "the good film", "--json"))
    if ask:
        attempt(
            lambda: command("predict", _FOLDER, "--text", "the good film", "--text", "", "--model", _BACKBONE)
        )
    if refused:
        raise refused[0]


def _asked(hybrid: Any) -> None:
    with torch.no_grad():
        hybrid.model(input_ids=torch.tensor([[2, 5, 6, 3]]))
    hybrid.detach()


def _check_cards(folder: Path) -> None:
    """Check the cards that are the package's own; a stranger's README is copied as it is."""
    theirs = Path(_FOLDER, "README.md")
    copied = theirs.read_bytes() if theirs.is_file() and not theirs.is_symlink() else None
    for path in (folder / "README.md", folder / "MODEL_CARD.md", folder / "peft" / "README.md"):
        if path.is_file() and path.read_bytes() != copied:
            check_markdown(path.read_text(encoding="utf-8"), str(path))


def hostile(random: Random, folder: Path) -> Call:
    files, backbone = dict(random.choice(_valid())), dict(_backbone())
    for name in random.sample(sorted(files), random.choice((1, 1, 2))):
        edit(random, files, name, tree=_with_labels)
    if random.random() < 0.15:
        edit(random, backbone, random.choice(sorted(backbone)))
    _write(folder, files, backbone)
    if random.random() < 0.2:
        _add(random, folder / _FOLDER)
    ask = random.random() < 0.4
    return lambda: use(ask=ask)


def _write(folder: Path, files: Files, backbone: Files) -> None:
    write(folder / _FOLDER, files)
    write(folder / _BACKBONE, backbone)


def _add(random: Random, folder: Path) -> None:
    """Something that does not belong there, or is no plain file."""
    if random.randrange(6) == 0:
        (folder / random.choice(("adapter_model.bin", "head.pt", "weights.pkl"))).write_bytes(PICKLE)
        return
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    name = random.choice((*names, "manifest.json", "README.md", "result.json", "winner"))
    replace(random, folder / name, f"{_BACKBONE}/config.json")


def _with_labels(random: Random, told: Any) -> Any:
    """A tree that was mutated, or has other names of classes, or both."""
    kind = random.randrange(6)
    if kind < 4:
        _name_labels(told, [random.choice((*_LABELS, mutate.word(random))) for _ in range(2)])
    return mutate.tree(random, told) if kind >= 2 else told


def _name_labels(told: Any, names: list[str]) -> None:
    if "config" in told:
        told["config"]["id2label"] = {str(i): name for i, name in enumerate(names)}
    if "data" in told:
        told["data"]["labels"] = names
        told["data"]["name"] = names[0]
        told["data"]["source"]["name"] = names[1]


# First cases
# ----------------------------------------------------------------------------------------------------------


def _with(
    change: Edit | None = None,
    *,
    number: int = 0,
    backbone: Edit | None = None,
    also: Move | None = None,
) -> First:
    def write(folder: Path) -> Call:
        files, other = dict(_valid()[number]), dict(_backbone())
        for made, edited in ((change, files), (backbone, other)):
            if made is not None:
                made(edited)
        _write(folder, files, other)
        if also is not None:
            also(folder / _FOLDER)
        return lambda: use(ask=True)

    return write


def _weights(change: Callable[[dict[str, Any]], Any], name: str = "weights.safetensors") -> Edit:
    def edit(files: Files) -> None:
        files[name] = changed_header(files[name], change)

    return edit


def _tensor(**said: Any) -> Edit:
    return _weights(lambda header: header["head.classifier.weight"].update(said))


def _nothing_of_2_63(header: dict[str, Any]) -> None:
    """A tensor of no numbers, with a dimension that is none."""
    last = max(told["data_offsets"][1] for name, told in header.items() if name != "__metadata__")
    header["extra"] = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [last, last]}


def _labels(name: str) -> Edit:
    return told(name, lambda told: _name_labels(told, list(_LABELS[:2])))


def _lists(depth: int) -> Any:
    return nested(depth, lambda found: [found])


def _one_by_one(folder: Path) -> None:
    shutil.move(folder / "recipe.yaml", folder / "other.yaml")
    (folder / "recipe.yaml").symlink_to("other.yaml")


def _config(**values: Any) -> Edit:
    return told("hybrid.json", lambda told: told["config"].update(values))


def _manifest(**values: Any) -> Edit:
    return told("hybrid.json", lambda told: told.update(values))


def _data(**values: Any) -> Edit:
    return told("manifest.json", lambda told: told["data"].update(values))


def _half_a_letter(name: str) -> Edit:
    return told(name, lambda told: _name_labels(told, ["\ud800", "b"]))


def _many_tensors(header: dict[str, Any]) -> None:
    header |= {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}


def _half_precision(header: dict[str, Any]) -> None:
    header["bert.embeddings.word_embeddings.weight"]["dtype"] = "F6_E2M3"


_WEIGHTS = "weights.safetensors"
_WRONG: dict[str, Edit] = {
    "F4": _tensor(dtype="F4"),
    "F6_E2M3": _tensor(dtype="F6_E2M3"),
    "whole numbers": _tensor(dtype="I32"),
    "no numbers and a dimension of 2^63": _weights(_nothing_of_2_63),
    "a dimension of 2^63": _tensor(shape=[2**63, 16]),
    "another shape": _tensor(shape=[16, 2]),
    "offsets that overlap": _tensor(data_offsets=[0, 128]),
    "weights that were cut": cut(_WEIGHTS, -40),
    "weights of 4 bytes": cut(_WEIGHTS, 4),
    "a header of 2^63 bytes": put(_WEIGHTS, b"\0" * 7 + b"\x80{}"),
    "a header of 20 MB": _weights(lambda h: json.dumps(h).encode()[:-1] + b" " * (20 << 20) + b"}"),
    "a header of brackets": _weights(lambda header: b'{"a":' + b"[" * 100_000),
    "50,000 tensors": _weights(_many_tensors),
    "a pickle": put(_WEIGHTS, PICKLE),
    "a manifest that is null": put("hybrid.json", b"null"),
    "a manifest of brackets": put("hybrid.json", b"[" * 100_000),
    "a manifest of 90 lists": _config(x=_lists(90)),
    "a manifest of 400 lists": _config(x=_lists(400)),
    "labels that are commands and HTML": _labels("hybrid.json"),
    "labels of 400 digits": _config(id2label={"9" * 400: "a", "1": "b"}),
    "labels that are half a letter": _half_a_letter("hybrid.json"),
    "a model in a home of nobody's": _manifest(model="~nosuchuser/x"),
    "a model of 300 letters": _manifest(model="x" * 300),
    "a class that is code": _manifest(architecture="fuzz_canary.Thing"),
}
_WRONG_EXPORT: dict[str, Edit] = {
    "a manifest of 90 lists": _data(x=_lists(90)),
    "a manifest of 400 lists": _data(x=_lists(400)),
    "a manifest of NaN": told("manifest.json", lambda told: told["training"].update(batch_size=float("nan"))),
    "labels that are half a letter": _half_a_letter("manifest.json"),
    "a manifest that is null": put("manifest.json", b"null"),
    "labels that are commands and HTML": _labels("manifest.json"),
    "a kind that is code": _data(kind="fuzz_canary:run"),
    "a kind with one label word": _data(kind="classification?label_words=a"),
    "a kind with label words, of a model with a head": _data(
        kind="classification?label_words=good,bad&template=%7Btext%7D%7Bmask%7D"
    ),
    "a kind whose options are commands and HTML": _data(
        kind="classification?label_words=%1b[31m,<script>alert(1)</script>&template=%7Btext%7D"
    ),
}
_WRONG_BACKBONE: dict[str, Edit] = {
    "cut": cut("model.safetensors", 20_000),
    "in F6": _weights(_half_precision, "model.safetensors"),
    "whose config is null": put("config.json", b"null"),
    "with an adapter of peft": put("adapter_config.json", b'{"peft_type": "LORA"}'),
    "whose tokenizer is null": put("tokenizer.json", b"null"),
}
_MOVED: dict[str, Move] = {
    "a link to weights outside": linked(_WEIGHTS, "../../outside/secret.csv"),
    "a link to a recipe outside": linked("recipe.yaml", "../../outside/recipe.yaml"),
    "a link to a manifest outside": linked("hybrid.json", "../../outside/secret.jsonl"),
    "a link to the zero device": linked("hybrid.json", "/dev/zero"),
    "a link to itself": linked("hybrid.json", "hybrid.json"),
    "a link that stays inside": _one_by_one,
}
FIRST: dict[str, First] = {
    **{f"valid {i}": _with(number=i) for i in range(6)},
    **{name: _with(edit) for name, edit in _WRONG.items()},
    **{f"an export: {name}": _with(edit, number=-2) for name, edit in _WRONG_EXPORT.items()},
    **{f"a backbone {name}": _with(backbone=edit) for name, edit in _WRONG_BACKBONE.items()},
    **{name: _with(also=move) for name, move in _MOVED.items()},
    "labels that are commands and HTML, for peft": _with(_labels("hybrid.json"), number=3),
    "a link to a README outside": _with(number=-2, also=linked("README.md", "../../outside/secret.csv")),
}
