"""Scores of baseline runs, kept between searches: a baseline is trained once per task and budget.

A run is known by all that decides its scores (`RunKey`): rows, backbone, recipe, seed, training plan, the
package's own code and the versions of what it is built on. The budget is not among them: it has decided the
recipe already, and the head alone serves every budget.

A kept score on *test* may be read again without touching *test* again: it is the figure of the one time that
this run was scored, and nothing is chosen by it. *Select* alone chooses, also among kept runs.

A run of other code or of other versions has another key, so that it is never found. Where such runs of the
same rows and backbone are kept, the user is told once that they are trained again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autopeft.assets import ModelSource, cache_folder, make_room, warn_once
from autopeft.composition import get_composition
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.method import get_method
from autopeft.recipe import CompositionItem, Recipe
from autopeft.runs.files import write_atomic
from autopeft.runs.records import CountTable
from autopeft.spec import BackboneSpec
from autopeft.tasks import METRICS, get_metric
from autopeft.tasks.task import SPLIT_NAMES, Task, rows_sha256
from autopeft.training import TrainingPlan

__all__ = ["BaselineCache", "KeptScores", "RunKey", "RunKeys"]

_FORMAT = 1
_LIMIT = 32 << 20  # bytes on disk: some 8,000 runs
_MAX_FILE = 1 << 14
_MOST_PARTS = 1000
_BLOCK = 4096
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
# What shows, stores or plans a run does not change its scores.
_OUTSIDE = ("cli", "report", "export", "search", "resources", "runs", "effort.py", "__main__.py")
_METHODS = "autopeft.methods"
_OWN = (f"{_METHODS}.", "autopeft.composition.")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/?$")
_log = logging.getLogger("autopeft")


@dataclass(frozen=True)
class RunKey:
    """All that decides the scores of a run.

    Attributes:
        data: hash of the rows of every split and of how they are scored.
        metric: that scores *test*.
        select_metric: that scores *select*.
        backbone: hash of its weights.
        recipe: trial hash of the recipe.
        seed, steps: of the run.
        plan: the rest of the training plan, as canonical JSON.
        precision: of the backbone.
        rank_by: see `Job`; it decides what is kept beside the scores.
        versions: of the packages it is built on, and a hash of this package's own code, as canonical JSON.
    """

    data: str
    metric: str
    select_metric: str
    backbone: str
    recipe: str
    seed: int
    steps: int
    plan: str
    precision: str
    rank_by: str
    versions: str


@dataclass(frozen=True)
class KeptScores:
    """What is kept of a run.

    Attributes:
        scores: by split.
        pseudo_values, select_values, merit, measured, by_task: see `JobResult`.
        place: where it was measured; times of another machine, or beside other work, are others.
        counts: parameters that it left; data-dependent methods leave others than their recipe says.
    """

    scores: Mapping[str, float]
    pseudo_values: tuple[float, ...] = ()
    select_values: tuple[float, ...] = ()
    merit: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    place: str = ""
    counts: CountTable | None = None
    by_task: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class RunKeys:
    """Makes the keys of a search's runs.

    Args:
        plan: its seed and steps are replaced by those of each run.
    """

    def __init__(
        self,
        task: Task,
        source: ModelSource,
        spec: BackboneSpec,
        plan: TrainingPlan,
    ) -> None:
        self._spec, self._metric = spec, task.metric
        self._own = task.task_kind.built_in and get_metric(task.metric).built_in
        described = [task.kind, list(task.labels), task.metric, task.class_weights]
        splits = [task.splits[name] for name in SPLIT_NAMES]
        rows = [rows_sha256(s.texts, s.pairs, s.labels, s.fields) for s in splits]
        self._data = hashlib.sha256(_canonical([described, rows]).encode()).hexdigest()
        self._backbone: str | None = None
        snapshot = _SNAPSHOT.search(Path(source.path).as_posix())
        how = f" in {source.quantize}" if source.quantize else ""
        if source.sha256 is not None:
            self._backbone = f"{source.alias or 'folder'} {source.sha256}{how}"
        elif snapshot is not None:
            self._backbone = f"hub {snapshot[1]}{how}"
        self._plan = _canonical({k: v for k, v in asdict(plan).items() if k not in ("seed", "steps")})

    def of(
        self,
        recipe: Mapping[str, Any],
        seed: int,
        steps: int,
        precision: str = "fp32",
        rank_by: str = "score",
        *,
        metric: str | None = None,
    ) -> RunKey | None:
        """The key of a run, or `None` where its scores cannot be kept. `metric` scores *select*,
        where that is not the task's.

        That is so for a backbone without a known hash (reached on the hub, or a folder above 2 GiB) and for
        methods, compositions, kinds of tasks and metrics of other packages, whose code may change unseen.
        """
        parsed = Recipe.from_dict(dict(recipe))
        names = [e.method for e in parsed.entries()] + [p.method for p in parsed.training.policies]
        used: list[type] = [get_method(name) for name in names]
        items = [*parsed.model, *(item for block in parsed.layers for item in block.attach)]
        while items:
            item = items.pop()
            if isinstance(item, CompositionItem):
                used.append(get_composition(item.kind))
                items += item.children
        own = self._own and all(str(cls.__module__).startswith(_OWN) for cls in used)
        if self._backbone is None or not own:
            return None
        trial = build_graph(parsed, self._spec).trial_hash()
        return RunKey(
            self._data,
            self._metric,
            metric or self._metric,
            self._backbone,
            trial,
            seed,
            steps,
            self._plan,
            precision,
            rank_by,
            _versions(),
        )


class BaselineCache:
    """Scores by run, one small JSON file each.

    Several processes may share a folder. Of two that store the same run at once the later one stays, which at
    worst costs a split's score. What was unused for longest goes where the folder gets too large. Nothing
    that fails here stops a search: it is logged, and the run is trained.

    Args:
        folder: where the files lie; default the folder `baselines` of the user's cache.
        reuse: `False` to find nothing, so that every run is trained and stored anew.
        limit: bytes on disk that all files together may take.
        notify: takes one line, once, where a run is not found and those of an earlier version are there.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        reuse: bool = True,
        limit: int = _LIMIT,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._folder, self._reuse, self._limit, self._notify = folder, reuse, limit, notify

    def get(self, key: RunKey | None) -> KeptScores | None:
        """Score of each split that is known of this run; `None` where nothing is, or nothing sound."""
        if key is None or not self._reuse:
            return None
        try:
            path = self._path(key)
            content = _content(path)
            found = None if content is None else _kept(content, key)
            if found is not None:
                with suppress(OSError):  # a cache that cannot be written
                    os.utime(path)
            elif self._notify is not None and not path.is_file():
                # The first time that a run is missing: how many like it other code has kept.
                notify, self._notify = self._notify, None
                outdated = 0
                for other in map(_content, path.parent.glob("*.json")):
                    of = None if other is None else other.get("key")
                    if isinstance(of, dict) and isinstance(of.get("versions"), str):
                        same = of.get("data") == key.data and of.get("backbone") == key.backbone
                        outdated += same and of["versions"] != key.versions
                if outdated:
                    notify(
                        f"{outdated} baseline {'run' if outdated == 1 else 'runs'} of this task and backbone "
                        f"were kept by an earlier version of autopeft, {', '.join(_PACKAGES[:-1])} or "
                        f"{_PACKAGES[-1]}: they are trained again, since their scores could differ."
                    )
        except (OSError, AutoPEFTError) as error:
            _log.info("a kept baseline run cannot be read: %s", error)
            return None
        return found

    def put(self, key: RunKey | None, run: KeptScores, seconds: float) -> None:
        """Keep the scores of a run, beside those of other splits that are known already.

        Scores that are not finite, or not possible for the metric, are not kept.
        """
        if key is None or not run.scores or not _sound(run.scores, key):
            return
        known = self.get(key) or KeptScores({})
        content = {
            "format": _FORMAT,
            "key": asdict(key),
            "scores": {**known.scores, **run.scores},
            "pseudo_values": list(run.pseudo_values or known.pseudo_values),
            "select_values": list(run.select_values or known.select_values),
            "merit": known.merit if run.merit is None else run.merit,
            "measured": {k: v for k, v in (run.measured or known.measured).items() if _is_finite(v)},
            "place": run.place if run.measured else known.place,
            "counts": run.counts or known.counts,
            "by_task": {**known.by_task, **run.by_task},
            "seconds": round(seconds, 3),
        }
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        try:
            path = self._path(key)
            if path.exists() or make_room(path.parent, max(len(text), _BLOCK), self._limit):
                write_atomic(path, text)
        except (OSError, AutoPEFTError) as error:
            warn_once(f"Baseline runs are not kept for later searches: {error}")

    def _path(self, key: RunKey) -> Path:
        folder = cache_folder("baselines") if self._folder is None else self._folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{hashlib.sha256(_canonical(asdict(key)).encode()).hexdigest()}.json"


def _content(path: Path) -> dict[str, Any] | None:
    """What a file holds that `put` could have written, `None` for any other and for one that is missing."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        return None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return None
    said = {name: value for name, value in content.items() if name != "sha256"}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return content if content.get("sha256") == found else None


def _kept(content: Mapping[str, Any], key: RunKey) -> KeptScores | None:
    """The scores that a file holds of a run, or `None` where it is not wholly as `put` writes it."""
    scores = content.get("scores")
    if content.get("key") != asdict(key) or not isinstance(scores, dict) or not scores:
        return None
    if not _sound(scores, key):
        return None
    parts = [content.get(name, []) for name in ("pseudo_values", "select_values")]
    for values in parts:
        short = isinstance(values, list) and len(values) <= _MOST_PARTS
        if not short or not all(map(_is_finite, values)):
            return None
    merit = content.get("merit")
    if merit is not None and not _is_finite(merit):
        return None
    measured, place = content.get("measured", {}), content.get("place", "")
    counts, by_task = content.get("counts"), content.get("by_task", {})
    if not isinstance(by_task, dict):
        return None
    for table in (measured, {} if counts is None else counts, *by_task.values()):
        if not isinstance(table, dict) or not all(map(_is_finite, table.values())):
            return None
    found, took = ({str(k): float(v) for k, v in numbers.items()} for numbers in (scores, measured))
    test, select = (tuple(map(float, values)) for values in parts)
    return KeptScores(
        found, test, select, None if merit is None else float(merit), took, str(place), counts, by_task
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sound(scores: Mapping[Any, Any], key: RunKey) -> bool:
    """Whether every score is a finite number that its metric can give, of a split that exists."""
    for split, score in scores.items():
        if split not in SPLIT_NAMES or not _is_finite(score):
            return False
        bounds = METRICS[key.select_metric if split == "select" else key.metric]
        if not bounds.low <= score <= bounds.high:
            return False
    return True


@cache
def _versions() -> str:
    """Versions of the packages, and SHA-256 of this package's code that takes part in a run: scores of other
    code are other scores."""
    root = Path(__file__).parents[2]
    methods = Path(next(iter(importlib.import_module(_METHODS).__path__)))
    own = [p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in _OUTSIDE]
    trains = (root / "search" / "execution" / name for name in ("worker.py", "runners.py"))
    named = {p.relative_to(root).as_posix(): p for p in (*own, *trains)}
    named |= {f"methods/{p.relative_to(methods).as_posix()}": p for p in methods.rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(named.items()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return _canonical({**{p: version(p) for p in _PACKAGES}, "autopeft": digest.hexdigest()})


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
