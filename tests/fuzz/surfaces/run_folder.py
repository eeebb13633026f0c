"""Run folders of searches and of fixed recipes: listed, shown, reported, exported, gone on with up to the
first job, and begun from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from autopeft.assets import load_config
from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search import api
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.space import Space

from .. import mutate
from ..canary import PICKLE
from ..products import check_page, command
from ..surface import Call, First
from ..weights import safetensors

SHARE = 0.2

_RECORDED = Path(__file__).parents[2] / "fixtures" / "runs"
_RUNS = ("finished", "fixed", "interrupted", "interrupted")
_BESIDE = ("bert/config.json", "bert/model.safetensors", "bert/tokenizer.json", "bert/tokenizer_config.json")
_DATA = ("reviews.csv", "space.yaml")
_FOLDER = "run"
# What a search names is the user's own, wherever it lies: data, backbone, other runs.
_THEIR_OWN = ("task", "model", "warm_start", "out", "runs")
_OUTSIDE = "../outside"
Files = dict[str, bytes]
Edit = Callable[[Files], object]


@cache
def _valid(run: str) -> Files:
    folder = _RECORDED / run
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    if run == "interrupted":
        found[".state/clock.json"] = b'{"seconds": 12.5}\n'
        best = {
            name.removeprefix("winner/"): data
            for name, data in _valid("finished").items()
            if "winner" in name
        }
        found |= {f".state/files/best-3/{name}": data for name, data in best.items()}
        found["logs/jobs.jsonl"] = b'{"id": "trial-0", "kind": "trial", "steps": 50}\n'
    return found


@cache
def _space() -> BoundSpace:
    return Space.load(_RECORDED / "space.yaml").bind(spec_of(load_config(str(_RECORDED / "bert"))))


def use(step: str) -> None:
    """One of the things that are done with a run."""
    _STEPS[step]()


def _listed() -> None:
    command("runs", "--root", ".")
    command("runs", "--root", ".", "--json")
    command("runs", _FOLDER, "--root", ".")
    json.loads(command("runs", _FOLDER, "--root", ".", "--json"))


def _reported() -> None:
    command("report", _FOLDER, "--runs", ".", "--out", "report.html")
    check_page(Path("report.html").read_text(encoding="utf-8"), "report.html")


def _resumed() -> None:
    """Gone on with, up to the first job that would train."""
    if _names_outside():
        return
    executor, before = _NoExecutor(), _content("result.json")
    try:
        with mock.patch.object(api, "_executor", return_value=executor):
            command("search", "--resume", _FOLDER, "--workers", "0")
    except AutoPEFTError:
        if not executor.reached:  # else it says what it says of a search that was interrupted there
            raise
    if _content("result.json") != before:
        assert _content("winner/weights.safetensors"), "a winner without weights was written"


def _begun_from() -> None:
    found, notices = points_from([_FOLDER], _space(), runs=".")
    for notice in notices:
        notice.encode()
    for point in found:
        _space().materialize(point)


def _scored_again() -> None:
    """A job of the run once more, as far as it is told without training."""
    command("export", _FOLDER, "-o", "out", "--no-peft")


_STEPS: Mapping[str, Callable[[], None]] = {
    "runs": _listed,
    "report": _reported,
    "resume": _resumed,
    "from": _begun_from,
    "export": _scored_again,
}


class _NoExecutor:
    """Takes the first job and trains nothing: the search ends as one that was interrupted there."""

    reached = False

    def run_jobs(self, source: Any, runner: Any, setup: Any, *, ending: Any = None) -> None:
        source.scale(1)
        source.next()
        self.reached = True
        source.interrupt()
        ending()


def _names_outside() -> bool:
    """Whether a manifest names what is a user's own in the folder that no input may lead to."""
    try:
        said = json.loads(_content("manifest.json") or b"")["arguments"]
        return any(_OUTSIDE in str(said.get(name)) for name in _THEIR_OWN)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _content(name: str) -> bytes | None:
    """What a plain file of the run holds."""
    path = Path(_FOLDER, name)
    return path.read_bytes() if path.is_file() and path.resolve().is_relative_to(Path.cwd()) else None


def hostile(random: Random, folder: Path) -> Call:
    run = random.choice(_RUNS)
    files = dict(_valid(run))
    for name in random.sample(sorted(files), random.choice((1, 1, 2))):
        _edit(random, files, name)
    _write(folder, files)
    if random.random() < 0.2:
        _add(random, folder / _FOLDER)
    steps = [step for step in _STEPS if run != "fixed" or step != "resume"]
    step = random.choice(("resume", "report", *steps) if run == "interrupted" else steps)
    return lambda: use(step)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name in (*_BESIDE, *_DATA):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(_RECORDED / name, folder / name)
    for name, content in files.items():
        path = folder / _FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _edit(random: Random, files: Files, name: str) -> None:
    valid = files[name]
    kind = random.randrange(10)
    if kind == 0:
        del files[name]
    elif name.endswith(".safetensors"):
        files[name] = safetensors(random, valid)
    elif kind == 1:
        files[name] = mutate.data(random, valid)
    elif kind == 2 or not name.endswith((".json", ".jsonl", ".log", ".yaml")):
        files[name] = mutate.text(random, valid.decode("utf-8", "replace"))
    elif name.endswith(".yaml"):
        files[name] = mutate.written(random, mutate.tree(random, read_yaml(valid.decode("utf-8"), name)))
    elif name.endswith(".json"):
        files[name] = _json(_with_words(random, json.loads(valid)))
    else:
        files[name] = _lines(random, valid)


def _lines(random: Random, valid: bytes) -> bytes:
    """Lines of JSON, some of them changed, gone, said again or moved."""
    lines = valid.splitlines(keepends=True)
    for _ in range(mutate.many(random, 3)):
        at = random.randrange(len(lines)) if lines else 0
        kind = random.randrange(8)
        if not lines or kind == 0:
            lines.insert(
                at, random.choice((b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 5000 + b"\n"))
            )
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind == 3:
            lines[at] = lines[at][: random.randrange(len(lines[at]))]
        else:
            lines[at] = _json(_with_words(random, _loads(lines[at])))
    return b"".join(lines)


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # it was changed before
        return {}


def _with_words(random: Random, tree: Any) -> Any:
    """A tree that was mutated or has hostile texts in place of some of its own."""
    if random.random() < 0.6:
        return mutate.tree(random, tree)
    return _reworded(random, tree, random.choice((0.1, 0.5)))


def _reworded(random: Random, tree: Any, share: float) -> Any:
    if isinstance(tree, dict):
        return {key: _reworded(random, value, share) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_reworded(random, value, share) for value in tree]
    return mutate.word(random) if isinstance(tree, str) and random.random() < share else tree


def _json(value: Any) -> bytes:
    try:
        return mutate.bytes_of(json.dumps(value)) + b"\n"
    except ValueError:  # more digits than Python writes
        return b'{"seed": ' + b"9" * 5000 + b"}\n"


def _add(random: Random, folder: Path) -> None:
    """Something that is no plain file, or leads elsewhere, or was not put there by a run."""
    names = ("manifest.json", "result.json", "trials.jsonl", "journal.log", "space.yaml", "recipe.yaml")
    more = (
        "finals.jsonl",
        "front.json",
        "winner",
        ".state",
        ".state/files",
        "logs",
        "report.html",
        "journal.log.lock",
    )
    path = folder / random.choice((*names, *more, ".lock", ".scratch"))
    if path.is_dir():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    kind = random.randrange(6)
    if kind == 0:
        path.symlink_to(
            random.choice(("../../outside/secret.jsonl", "../../outside/recipe.yaml", "../../outside"))
        )
    elif kind == 1:
        path.symlink_to(random.choice((path.name, ".", "/dev/zero", "../bert/config.json", "nothing")))
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.write_bytes(PICKLE)
    else:
        path.write_bytes(b"")


# First cases
# ----------------------------------------------------------------------------------------------------------


def _with(
    run: str,
    step: str,
    change: Edit | None = None,
    *,
    also: Callable[[Path], object] | None = None,
) -> First:
    def write(folder: Path) -> Call:
        files = dict(_valid(run))
        if change is not None:
            change(files)
        _write(folder, files)
        if also is not None:
            also(folder / _FOLDER)
        return lambda: use(step)

    return write


def _put(name: str, content: bytes) -> Edit:
    return lambda files: files.update({name: content})


def _line(name: str, number: int, content: bytes) -> Edit:
    def edit(files: Files) -> None:
        lines = files[name].splitlines(keepends=True)
        lines[number - 1] = content + b"\n"
        files[name] = b"".join(lines)

    return edit


def _told(name: str, change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(files: Files) -> None:
        told = json.loads(files[name])
        change(told)
        files[name] = _json(told)

    return edit


def _worded(*words: str) -> Edit:
    """These words in place of every text that decides nothing."""

    def edit(files: Files) -> None:
        for name in ("manifest.json", "result.json", "front.json"):
            if name in files:
                files[name] = _json(_rewritten(json.loads(files[name]), words))
        for name in ("trials.jsonl", "finals.jsonl"):
            if name in files:
                lines = [_rewritten(json.loads(line), words) for line in files[name].splitlines()]
                files[name] = b"".join(map(_json, lines))

    return edit


_DECIDING = {"kind", "state", "failure", "model", "recipe", "method", "arguments", "hash", "metric"}


def _rewritten(tree: Any, words: tuple[str, ...], key: str = "") -> Any:
    if key in _DECIDING:
        return tree
    if isinstance(tree, dict):
        return {k: _rewritten(v, words, k) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_rewritten(v, words) for v in tree]
    return "".join(words) if isinstance(tree, str) else tree


def _linked(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


def _asked(**arguments: Any) -> Edit:
    return _told("manifest.json", lambda told: told["arguments"].update(arguments))


def _said(**values: Any) -> Edit:
    return _told("manifest.json", lambda told: told.update(values))


def _after(name: str, more: bytes) -> Edit:
    return lambda files: files.update({name: files[name] + more})


def _trial(depth: int) -> Edit:
    return _told("trials.jsonl", lambda told: told.update(recipe=_nested(depth)))


def _code_for(name: bytes) -> Edit:
    return lambda files: files.update(
        {"journal.log": files["journal.log"].replace(name, b"fuzz_canary.Thing")}
    )


def _pipe(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return put


def _called(name: str) -> Callable[[Path], None]:
    """The run once more, under another name."""

    def copy(folder: Path) -> None:
        shutil.copytree(folder, folder.parent / os.fsdecode(mutate.bytes_of(name)))

    return copy


_ESCAPES = ("\x1b[31mred\x1b]0;title\x07", "\x9b2J", "\u202eevil")
_HTML = ("<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(2)>", "<!--", '" onload="x')
_SECRET, _HOST = "../../outside/secret.jsonl", "203.0.113.7"
# By the step that meets it, what is wrong with a search that was interrupted.
_EDITED: dict[str, dict[str, Edit]] = {
    "resume": {
        "a garbled journal": _line("journal.log", 6, b"garbled"),
        "a journal of another type": _line("journal.log", 6, b'{"op_code": 8, "trial_id": "x"}'),
        "a journal that is no UTF-8": _line("journal.log", 2, b"\xff\xfe"),
        "a journal of brackets": _line("journal.log", 2, b"[" * 100_000),
        "a journal of no study": _put("journal.log", b""),
        "a journal that names code": _code_for(b"FloatDistribution"),
        "a space that is no UTF-8": _after("space.yaml", b"\xff"),
        "a space that is no YAML": _after("space.yaml", b"x: ["),
        "a manifest that is no JSON": _after("manifest.json", b"{"),
        "a manifest that is null": _put("manifest.json", b"null"),
        "an effort of other words": _told("manifest.json", lambda told: told["effort"].update(x=1)),
        "a seed that is a text": _asked(seed="0"),
        "a clock without seconds": _put(".state/clock.json", b'{"seconds": "many"}'),
        "a clock of brackets": _put(".state/clock.json", b"[" * 100_000),
        "an address of a stranger's": _asked(address=f"ray://{_HOST}:10001"),
        "a tracker of a stranger's": _asked(log=f"mlflow:http://{_HOST}"),
        "a tracker that is code": _asked(log="fuzz_canary:run"),
        "a strategy that is code": _asked(strategy="fuzz_canary:run"),
        "a task of 300 letters": _asked(task="x" * 300),
        "a task of nobody's": _asked(task="~nosuchuser/x.csv"),
    },
    "runs": {
        "a manifest that is null": _put("manifest.json", b"null"),
        "a manifest of brackets": _put("manifest.json", b"[" * 100_000),
        "a manifest of 90 tables": _said(x=_nested(90)),
        "trials of 90 tables": _trial(90),
        "trials of 400 tables": _trial(400),
    },
    "report": {
        "a garbled journal": _line("journal.log", 6, b"garbled"),
        "a manifest of 90 tables": _said(x=_nested(90)),
        "a manifest of 400 tables": _said(x=_nested(400)),
        "trials of 90 tables": _trial(90),
        "a backbone of nobody's": _said(model="~nosuchuser/x"),
        "a backbone of 300 letters": _said(model="x" * 300),
        "HTML": _worded(*_HTML),
    },
}
_MOVED: dict[str, dict[str, Callable[[Path], None]]] = {
    "resume": {
        "a journal linked from outside": _linked("journal.log", _SECRET),
        "a state linked from outside": _linked(".state", "../../outside"),
        "a lock that is a pipe": _pipe(".lock"),
    },
    "runs": {
        "trials linked from outside": _linked("trials.jsonl", _SECRET),
        "a lock linked from outside": _linked(".lock", _SECRET),
        "a lock that is a pipe": _pipe(".lock"),
        "a manifest that is a pipe": _pipe("manifest.json"),
        "a name with escapes": _called("\x1b[31mred\x1b]0;title\x07"),
        "a name of several lines": _called("a\nb\tc"),
        "a name that is no UTF-8": _called("\ud800"),
        "a name as long as names can be": _called("x" * 255),
    },
    "report": {
        "a journal linked from outside": _linked("journal.log", _SECRET),
        "a journal that is a device": _linked("journal.log", "/dev/zero"),
        "a journal that is a pipe": _pipe("journal.log"),
        "a report linked from outside": _linked("report.html", _SECRET),
    },
    "from": {"trials linked from outside": _linked("trials.jsonl", _SECRET)},
    "export": {"a winner linked from outside": _linked("winner", "../../outside")},
}
FIRST: dict[str, First] = {
    **{f"{run}, {step}": _with(run, step) for run in ("finished", "interrupted") for step in _STEPS},
    **{f"fixed, {step}": _with("fixed", step) for step in ("runs", "report", "from", "export")},
    **{f"escapes, {step}": _with("finished", step, _worded(*_ESCAPES)) for step in _STEPS},
    **{f"HTML in all texts, {step}": _with("finished", step, _worded(*_HTML)) for step in _STEPS},
    **{f"halves of letters, {step}": _with("finished", step, _worded("\ud800")) for step in _STEPS},
    **{
        f"{name}, {step}": _with("interrupted", step, edit)
        for step, found in _EDITED.items()
        for name, edit in found.items()
    },
    **{
        f"{name}, {step}": _with("finished" if step == "export" else "interrupted", step, also=put)
        for step, moved in _MOVED.items()
        for name, put in moved.items()
    },
}
