"""Run folders of searches and of fixed recipes: listed, shown, reported, exported, evaluated, begun from,
gone on with up to the first job, and debugged for a few steps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from autopeft.assets import load_config
from autopeft.backbones import spec_of
from autopeft.cli import debug
from autopeft.errors import AutoPEFTError
from autopeft.runs.folder import RunFolder
from autopeft.search import api
from autopeft.search.controller.rerun import Rerun
from autopeft.search.core.jobs import JobResult, Progress, ScoreJob, TrainJob
from autopeft.search.execution.logged_jobs import JOBS, LoggedJobs
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.space import Space

from .. import mutate
from ..folders import (
    Edit,
    Files,
    Move,
    after,
    edit,
    json_bytes,
    linked,
    nested,
    piped,
    put,
    read,
    replace,
    told,
    write,
)
from ..products import check_page, command
from ..surface import Call, First

SHARE = 0.2

_RECORDED = Path(__file__).parents[2] / "fixtures" / "runs"
_RUNS = ("finished", "fixed", "interrupted", "interrupted")
_BESIDE = ("bert/config.json", "bert/model.safetensors", "bert/tokenizer.json", "bert/tokenizer_config.json")
_DATA = ("reviews.csv", "space.yaml")
_FOLDER = "run"
_KEPT = ".state/files/best-3"
# What a run may have, and where something else may lie.
_PLACES = (
    *("manifest.json", "result.json", "trials.jsonl", "journal.log", "space.yaml", "recipe.yaml"),
    *("finals.jsonl", "front.json", "winner", ".state", ".state/files", "logs", "report.html"),
    *("journal.log.lock", ".lock", ".scratch"),
)
# What a search names is the user's own, wherever it lies: data, backbone, other runs.
_THEIR_OWN = ("task", "model", "warm_start", "out", "runs")
_OUTSIDE = "../outside"
_MOST_STEPS = 3  # what a job asks for may take long


@cache
def _valid(run: str) -> Files:
    found = read(_RECORDED / run)
    if run == "interrupted":
        found[".state/clock.json"] = b'{"seconds": 12.5}\n'
        best = {
            name.removeprefix("winner/"): data
            for name, data in _valid("finished").items()
            if "winner" in name
        }
        found |= {f"{_KEPT}/{name}": data for name, data in best.items()}
        first, *_ = found["trials.jsonl"].splitlines()
        found[JOBS] = _jobs(json.loads(first)["recipe"], best)
    return found


def _jobs(recipe: dict[str, Any], best: Files) -> bytes:
    """What a search writes of the training of a trial and of the test of its weights."""
    jobs = (
        TrainJob("trial-3", "trial", "trial 3", recipe, steps=150, number=3, keep_above=float("-inf")),
        ScoreJob("test-best-3", "test", "the winner", recipe, splits=("select", "test"), files=best),
    )
    with tempfile.TemporaryDirectory() as place:
        source = mock.Mock(next=mock.Mock(side_effect=jobs))
        logged = LoggedJobs(source, RunFolder(Path(place)))
        for _ in jobs:
            logged.next()
        return Path(place, JOBS).read_bytes()


@cache
def _space() -> BoundSpace:
    return Space.load(_RECORDED / "space.yaml").bind(spec_of(load_config(str(_RECORDED / "bert"))))


def use(step: str) -> None:
    """One of the things that are done with a run."""
    _STEPS[step]()


def _listed() -> None:
    command("runs", "--runs", ".")
    command("runs", "--runs", ".", "--json")
    command("runs", _FOLDER, "--runs", ".")
    json.loads(command("runs", _FOLDER, "--runs", ".", "--json"))


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


def _exported() -> None:
    command("export", _FOLDER, "-o", "out", "--as", "autopeft")


def _evaluated() -> None:
    """Scored on its own task, on which the rows of a split are those of its training."""
    if not _names_outside():
        command("evaluate", _FOLDER)
        json.loads(command("evaluate", _FOLDER, "--split", "select", "--json"))


def _debugged(job: str) -> None:
    """A job of the run once more, but for its length."""
    failed: list[Exception] = []
    with (
        mock.patch.object(Rerun, "run", _few_steps),
        mock.patch.object(debug, "_post_mortem", failed.append),
    ):
        if not _names_outside():
            command("debug", _FOLDER, job, "--pdb")
    if failed:  # told with a traceback, whatever it is
        raise failed[0]


_run = Rerun.run


def _few_steps(rerun: Rerun, on_step: Progress) -> JobResult:
    steps = min(rerun.job.steps, _MOST_STEPS)
    return _run(dataclasses.replace(rerun, job=dataclasses.replace(rerun.job, steps=steps)), on_step)


_STEPS: Mapping[str, Callable[[], None]] = {
    "runs": _listed,
    "report": _reported,
    "resume": _resumed,
    "from": _begun_from,
    "export": _exported,
    "evaluate": _evaluated,
    "debug": lambda: _debugged("3"),
    "debug a test": lambda: _debugged("test-best-3"),
}
_SEARCHED = ("resume", "debug", "debug a test")  # the steps that a fixed recipe has not


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
        manifest = json.loads(_content("manifest.json") or b"")
        said = (manifest, manifest["arguments"], json.loads(_content("winner/hybrid.json") or b"{}"))
        return any(_OUTSIDE in str(part.get(name)) for part in said for name in _THEIR_OWN)
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
        edit(random, files, name, tree=_with_words)
    _write(folder, files)
    if random.random() < 0.2:
        replace(random, folder / _FOLDER / random.choice(_PLACES), _BESIDE[0])
    steps = [step for step in _STEPS if run == "interrupted" or step not in _SEARCHED]
    step = random.choice(("resume", "report", *steps) if run == "interrupted" else ("evaluate", *steps))
    return lambda: use(step)


def _write(folder: Path, files: Files) -> None:
    write(folder, {name: (_RECORDED / name).read_bytes() for name in (*_BESIDE, *_DATA)})
    write(folder / _FOLDER, files)


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


# First cases
# ----------------------------------------------------------------------------------------------------------


def _with(
    run: str,
    step: str,
    change: Edit | None = None,
    *,
    also: Move | None = None,
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


def _line(name: str, number: int, content: bytes) -> Edit:
    def edit(files: Files) -> None:
        lines = files[name].splitlines(keepends=True)
        lines[number - 1] = content + b"\n"
        files[name] = b"".join(lines)

    return edit


def _worded(*words: str) -> Edit:
    """These words in place of every text that decides nothing."""

    def edit(files: Files) -> None:
        for name in ("manifest.json", "result.json", "front.json"):
            if name in files:
                files[name] = json_bytes(_rewritten(json.loads(files[name]), words))
        for name in ("trials.jsonl", "finals.jsonl"):
            if name in files:
                lines = [_rewritten(json.loads(line), words) for line in files[name].splitlines()]
                files[name] = b"".join(map(json_bytes, lines))

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


def _tables(depth: int) -> Any:
    return nested(depth, lambda found: {"a": found})


def _asked(**arguments: Any) -> Edit:
    return told("manifest.json", lambda told: told["arguments"].update(arguments))


def _said(**values: Any) -> Edit:
    return told("manifest.json", lambda told: told.update(values))


def _data(**values: Any) -> Edit:
    return told("manifest.json", lambda told: told["data"].update(values))


def _plan(**values: Any) -> Edit:
    return told("manifest.json", lambda told: told["training"].update(values))


def _trial(depth: int) -> Edit:
    def change(files: Files) -> None:
        first, *rest = files["trials.jsonl"].splitlines(keepends=True)
        changed = json.dumps({**json.loads(first), "recipe": _tables(depth)})
        files["trials.jsonl"] = changed.encode() + b"\n" + b"".join(rest)

    return change


def _job(**values: Any) -> Edit:
    """The first job that was handed out, with other values."""

    def change(files: Files) -> None:
        first, rest = files[JOBS].split(b"\n", 1)
        files[JOBS] = json_bytes({**json.loads(first), **values}) + rest

    return change


def _code_for(name: bytes) -> Edit:
    return lambda files: files.update(
        {"journal.log": files["journal.log"].replace(name, b"fuzz_canary.Thing")}
    )


def _called(name: str) -> Move:
    """The run once more, under another name."""

    def copy(folder: Path) -> None:
        shutil.copytree(folder, folder.parent / os.fsdecode(mutate.bytes_of(name)))

    return copy


_ESCAPES = ("\x1b[31mred\x1b]0;title\x07", "\x9b2J", "\u202eevil")
_HTML = ("<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(2)>", "<!--", '" onload="x')
_SECRET, _HOST = "../../outside/secret.jsonl", "203.0.113.7"
_WORDS = {"escapes": _ESCAPES, "HTML in all texts": _HTML, "halves of letters": ("\ud800",)}
# By the step that meets it, what is wrong with a search that was interrupted.
_EDITED: dict[str, dict[str, Edit]] = {
    "resume": {
        "a garbled journal": _line("journal.log", 6, b"garbled"),
        "a journal of another type": _line("journal.log", 6, b'{"op_code": 8, "trial_id": "x"}'),
        "a journal that is no UTF-8": _line("journal.log", 2, b"\xff\xfe"),
        "a journal of brackets": _line("journal.log", 2, b"[" * 100_000),
        "a journal of no study": put("journal.log", b""),
        "a journal that names code": _code_for(b"FloatDistribution"),
        "a space that is no UTF-8": after("space.yaml", b"\xff"),
        "a space that is no YAML": after("space.yaml", b"x: ["),
        "a manifest that is no JSON": after("manifest.json", b"{"),
        "a manifest that is null": put("manifest.json", b"null"),
        "an effort of other words": told("manifest.json", lambda told: told["effort"].update(x=1)),
        "a seed that is a text": _asked(seed="0"),
        "a clock without seconds": put(".state/clock.json", b'{"seconds": "many"}'),
        "a clock of brackets": put(".state/clock.json", b"[" * 100_000),
        "an address of a stranger's": _asked(address=f"ray://{_HOST}:10001"),
        "a tracker of a stranger's": _asked(log=f"mlflow:http://{_HOST}"),
        "a tracker that is code": _asked(log="fuzz_canary:run"),
        "a strategy that is code": _asked(strategy="fuzz_canary:run"),
        "kept weights without a byte": put(f"{_KEPT}/weights.safetensors", b""),
        "kept weights that are gone": lambda files: files.pop(f"{_KEPT}/weights.safetensors"),
        "a task of 300 letters": _asked(task="x" * 300),
        "a task of nobody's": _asked(task="~nosuchuser/x.csv"),
    },
    "runs": {
        "a manifest that is null": put("manifest.json", b"null"),
        "a manifest of brackets": put("manifest.json", b"[" * 100_000),
        "a manifest of 90 tables": _said(x=_tables(90)),
        "trials of 90 tables": _trial(90),
        "trials of 400 tables": _trial(400),
    },
    "report": {
        "a garbled journal": _line("journal.log", 6, b"garbled"),
        "a manifest of 90 tables": _said(x=_tables(90)),
        "a manifest of 400 tables": _said(x=_tables(400)),
        "trials of 90 tables": _trial(90),
        "a backbone of nobody's": _said(model="~nosuchuser/x"),
        "a backbone of 300 letters": _said(model="x" * 300),
        "HTML": _worded(*_HTML),
    },
    "debug": {
        "a job that is no table": put(JOBS, b"[]\n"),
        "a job of brackets": put(JOBS, b"[" * 100_000),
        "a job of a type that is code": _job(type="fuzz_canary.Thing"),
        "a job that scores what no task has": _job(splits=["select", "../outside"]),
        "a job that scores nothing": _job(splits=[]),
        "a job of less than no steps": _job(steps=-1),
        "a job of 10^400 steps": _job(steps=10**400),
        "a job that begins at its end": _job(start=3, until=2),
        "a seed below none": _job(seed=-1),
        "a seed of 10^40": _job(seed=10**40),
        "no share of the rows": _job(share=0.0),
        "more than all rows": _job(share=float("nan")),
        "10^9 attempts": _job(attempt=10**9),
        "a recipe of 90 tables": _job(recipe=_tables(90)),
        "a recipe with escapes": _job(recipe={"autopeft": 2, "name": _ESCAPES[0], "layers": []}),
        "a label with escapes": _job(label="".join(_ESCAPES)),
        "no rows at once": _asked(batch_size=0),
        "-1 threads": _asked(cpus_per_trial=-1),
    },
    "debug a test": {
        "weights of another hybrid": put(f"{_KEPT}/weights.safetensors", b"{}"),
    },
}
_EVALUATED: dict[str, Edit] = {
    "labels that nothing has": _data(labels=["a", "b"]),
    "one label twice": _data(labels=["no", "no"]),
    "a kind that is code": _data(kind="fuzz_canary:run"),
    "a metric that is code": _data(metric="fuzz_canary:run"),
    "rows that are none": _data(rows=[1]),
    "a source that is a text": _data(source="x"),
    "a seed of 10^400": _asked(seed=10**400),
    "a column of 300 letters": _asked(text="x" * 300),
    "a column that is a table": _asked(text={"a": 1}),
    "a length of -1": _plan(max_length=-1),
    "a length of 10^12": _plan(max_length=10**12),
    "a task that is a list": _said(task=["reviews.csv"]),
    "data that are none": _said(data=[1]),
    "versions that are none": _said(versions=[1]),
    "a backbone that is none": _said(backbone=[1]),
    "figures that are texts": told("result.json", lambda told: told.update(test_mean="x", select_mean=[1])),
}
_MOVED: dict[str, dict[str, Move]] = {
    "resume": {
        "a journal linked from outside": linked("journal.log", _SECRET),
        "a state linked from outside": linked(".state", "../../outside"),
        "jobs linked to what is not there": linked(JOBS, "../../../outside/new.jsonl"),
        "a state that is a pipe": piped(".state"),
        "logs that are a pipe": piped("logs"),
        "checkpoints that are a pipe": piped(".state/files"),
        "a lock that is a pipe": piped(".lock"),
    },
    "runs": {
        "trials linked from outside": linked("trials.jsonl", _SECRET),
        "a lock linked from outside": linked(".lock", _SECRET),
        "a lock that is a pipe": piped(".lock"),
        "a manifest that is a pipe": piped("manifest.json"),
        "a name with escapes": _called("\x1b[31mred\x1b]0;title\x07"),
        "a name of several lines": _called("a\nb\tc"),
        "a name that is no UTF-8": _called("\ud800"),
        "a name as long as names can be": _called("x" * 255),
    },
    "report": {
        "a journal linked from outside": linked("journal.log", _SECRET),
        "a journal that is a device": linked("journal.log", "/dev/zero"),
        "a journal that is a pipe": piped("journal.log"),
        "a report linked from outside": linked("report.html", _SECRET),
    },
    "from": {"trials linked from outside": linked("trials.jsonl", _SECRET)},
    "export": {"a winner linked from outside": linked("winner", "../../outside")},
}
FIRST: dict[str, First] = {
    **{f"{run}, {step}": _with(run, step) for run in ("finished", "interrupted") for step in _STEPS},
    **{f"fixed, {step}": _with("fixed", step) for step in ("runs", "report", "from", "export", "evaluate")},
    **{
        f"{name}, {step}": _with(
            "interrupted" if step.startswith("debug") else "finished", step, _worded(*words)
        )
        for name, words in _WORDS.items()
        for step in _STEPS
    },
    **{
        f"{name}, {step}": _with("interrupted", step, edit)
        for step, found in _EDITED.items()
        for name, edit in found.items()
    },
    **{f"{name}, evaluate": _with("finished", "evaluate", edit) for name, edit in _EVALUATED.items()},
    **{
        f"{name}, {step}": _with("finished" if step == "export" else "interrupted", step, also=put)
        for step, moved in _MOVED.items()
        for name, put in moved.items()
    },
}
