from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.registries import keep
from transformers import BertConfig

from autopeft.assets import ModelSource
from autopeft.backbones import spec_of
from autopeft.method import Traits, register
from autopeft.search.selection import baseline_cache
from autopeft.search.selection.baseline_cache import BaselineCache, KeptScores, RunKey, RunKeys
from autopeft.search.selection.baselines import lora_baseline
from autopeft.tasks.task import Source, Split, Task
from autopeft.training import TrainingPlan

SPEC = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)
MODEL = ModelSource("/models/x", None, "folder", "a" * 64)
PLAN = TrainingPlan(steps=60, batch_size=8, max_length=32, device="cpu")
KEY = RunKey("d", "accuracy", "accuracy", "b", "r", 1000, 60, "{}", "fp32", "score", "{}")
SCORES = {"select": 0.75, "test": 0.625}


def task(**changes: Any) -> Task:
    splits = {
        name: Split([f"{name} {i}" for i in range(4)], None, [0, 1, 0, 1])
        for name in ("train", "select", "test")
    }
    base = Task("t", "classification", ("no", "yes"), splits, "accuracy", None, Source("file", "t", "0"))  # type: ignore[arg-type]
    return replace(base, **changes)


def recipe() -> dict[str, Any]:
    found = lora_baseline(SPEC, (0, 5000), 1)
    assert found is not None
    return dict(found.candidates[0])


def key_of(
    data: Task | None = None, source: ModelSource = MODEL, plan: TrainingPlan = PLAN, **more: Any
) -> RunKey | None:
    run = {"recipe": recipe(), "seed": 1000, "steps": 60} | {
        k: more.pop(k) for k in ("recipe", "seed", "steps", "precision", "rank_by") if k in more
    }
    return RunKeys(data or task(), source, SPEC, plan, **more).of(**run)


@pytest.fixture
def store(tmp_path: Path) -> BaselineCache:
    return BaselineCache(tmp_path)


def file_of(folder: Path, key: RunKey = KEY) -> Path:
    """Where the run lies: the file is named after all that decides its scores."""
    text = json.dumps(asdict(key), sort_keys=True, separators=(",", ":"))
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def test_what_was_put_comes_back(store: BaselineCache, tmp_path: Path) -> None:
    assert store.get(KEY) is None
    store.put(KEY, KeptScores({"select": 0.75}), 12.5)
    assert store.get(KEY) == KeptScores({"select": 0.75})
    store.put(KEY, KeptScores({"test": 0.625}), 1.0)
    assert BaselineCache(tmp_path).get(KEY) == KeptScores(SCORES)
    assert store.get(replace(KEY, seed=1001)) is None
    store.put(KEY, KeptScores({"test": 0.625}, (0.5, 0.75)), 1.0)
    store.put(KEY, KeptScores({"select": 0.75}), 1.0)
    assert store.get(KEY) == KeptScores(SCORES, (0.5, 0.75))
    took = KeptScores({"select": 0.75}, measured={"step_time": 0.25, "file": 900.0}, place="here")
    store.put(KEY, took, 1.0)
    store.put(KEY, KeptScores({"select": 0.75}, place="elsewhere"), 1.0)
    assert store.get(KEY) == replace(took, scores=SCORES, pseudo_values=(0.5, 0.75))
    store.put(KEY, replace(took, measured={"step_time": math.nan, "file": 900.0}), 1.0)
    found = store.get(KEY)
    assert found is not None
    assert found.measured == {"file": 900.0}
    store.put(KEY, KeptScores({"select": 0.75}, counts={"deployed": 7, "share": 0.5}), 1.0)
    store.put(KEY, KeptScores({"select": 0.75}), 1.0)
    found = store.get(KEY)
    assert found is not None
    assert found.counts == {"deployed": 7, "share": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name], "nothing else is left behind"


def test_without_reuse_every_run_is_new_and_is_kept(store: BaselineCache, tmp_path: Path) -> None:
    store.put(KEY, KeptScores(SCORES), 1.0)
    fresh = BaselineCache(tmp_path, reuse=False)
    assert fresh.get(KEY) is None
    fresh.put(KEY, KeptScores({"select": 0.5}), 1.0)
    assert store.get(KEY) == KeptScores({"select": 0.5}), "the old score of another split is not mixed in"


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    BaselineCache().put(KEY, KeptScores(SCORES), 1.0)
    assert file_of(tmp_path / "baselines").is_file()
    assert BaselineCache().get(KEY) == KeptScores(SCORES)


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"select": math.nan},
        {"select": 0.5, "test": math.inf},
        {"select": 1.5},
        {"select": -0.1},
        {"train_loss": 0.5},
    ],
)
def test_impossible_scores_are_not_kept(
    store: BaselineCache, tmp_path: Path, scores: dict[str, float]
) -> None:
    store.put(KEY, KeptScores(scores), 1.0)
    assert list(tmp_path.iterdir()) == []


def test_negative_correlations_are(store: BaselineCache) -> None:
    key = replace(KEY, metric="matthews", select_metric="matthews")
    store.put(key, KeptScores({"select": -0.25}), 1.0)
    assert store.get(key) == KeptScores({"select": -0.25})
    store.put(replace(KEY, select_metric="matthews"), KeptScores({"select": -0.25, "test": 0.5}), 1.0)
    assert store.get(replace(KEY, select_metric="matthews")) is not None
    store.put(replace(KEY, metric="matthews"), KeptScores({"select": -0.25, "test": 0.5}), 1.0)
    assert store.get(replace(KEY, metric="matthews")) is None, "no accuracy on select"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_miss(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    file_of(folder).write_bytes(raw)
    assert BaselineCache(folder).get(KEY) is None


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_entry_gives_sound_scores_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    BaselineCache(folder).put(KEY, KeptScores(SCORES), 1.0)
    path = file_of(folder)
    content = json.loads(path.read_text())
    where = data.draw(
        st.sampled_from(["format", "key", "scores", "pseudo_values", "select", "seed", "cut", "flip"])
    )
    raw = path.read_bytes()
    if where == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 3))]
    elif where == "flip":
        i = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:i] + bytes([data.draw(st.integers(0, 255))]) + raw[i + 1 :]
    else:
        place = {"select": content["scores"], "seed": content["key"]}.get(where, content)
        place[where] = data.draw(ANY_JSON)
        raw = json.dumps(content).encode()
    path.write_bytes(raw)
    found = BaselineCache(folder).get(KEY)
    if where == "cut":
        assert found is None
    for split, score in (found.scores if found else {}).items():
        assert split in ("train", "select", "test")
        assert type(score) is float
        assert 0 <= score <= 1
    assert all(
        type(value) is float and abs(value) < float("inf")
        for value in (found or KeptScores({})).pseudo_values
    )


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"key": {**asdict(KEY), "seed": 7}},
        {"scores": {"select": True}},
        {"scores": {"select": "0.5"}},
        {"scores": {"select": None}},
        {"scores": {"select": 10**400}},
        {"scores": {"secret": 0.5}},
        {"scores": {}},
        {"scores": [0.5]},
        {"pseudo_values": 7},
        {"pseudo_values": [0.5, "0.5"]},
        {"pseudo_values": [0.5] * 1001},
        {"measured": [0.5]},
        {"measured": {"step_time": "1"}},
        {"measured": {"step_time": 10**400}},
        {"counts": ""},
        {"counts": {"deployed": "7"}},
        {"padding": "x" * baseline_cache._MAX_FILE},
    ],
    ids=lambda change: "-".join(change),
)
def test_what_put_would_not_write_is_a_miss(
    store: BaselineCache, tmp_path: Path, change: dict[str, Any]
) -> None:
    store.put(KEY, KeptScores(SCORES), 1.0)
    content = json.loads(file_of(tmp_path).read_text())
    file_of(tmp_path).write_text(json.dumps(content))
    assert store.get(KEY) == KeptScores(SCORES)
    file_of(tmp_path).write_text(json.dumps({**content, **change}))
    assert store.get(KEY) is None
    store.put(KEY, KeptScores(SCORES), 1.0)
    assert store.get(KEY) == KeptScores(SCORES), "a damaged file is replaced"


@pytest.mark.parametrize("text", ["[" * 5000, '{"scores": {"select": NaN}}', '{"scores": {"select": 1e999}}'])
def test_hostile_json_is_a_miss(store: BaselineCache, tmp_path: Path, text: str) -> None:
    file_of(tmp_path).write_text(text)
    assert store.get(KEY) is None


def test_a_file_that_is_too_long_is_not_read(store: BaselineCache, tmp_path: Path) -> None:
    store.put(KEY, KeptScores(SCORES), 1.0)
    file_of(tmp_path).write_text(file_of(tmp_path).read_text() + " " * baseline_cache._MAX_FILE)
    assert store.get(KEY) is None


def test_a_figure_that_was_changed_is_not_reused(store: BaselineCache, tmp_path: Path) -> None:
    store.put(KEY, KeptScores(SCORES), 1.0)
    text = file_of(tmp_path).read_text()
    file_of(tmp_path).write_text(text.replace("0.625", "0.925"))
    assert store.get(KEY) is None
    store.put(KEY, KeptScores(SCORES), 1.0)
    assert store.get(KEY) == KeptScores(SCORES)
    content = json.loads(file_of(tmp_path).read_text())
    del content["sha256"]
    file_of(tmp_path).write_text(json.dumps(content))
    assert store.get(KEY) is None


def test_a_folder_in_the_way_is_a_miss(store: BaselineCache, tmp_path: Path) -> None:
    file_of(tmp_path).mkdir()
    assert store.get(KEY) is None
    store.put(KEY, KeptScores(SCORES), 1.0)
    assert store.get(KEY) is None


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    blocked = BaselineCache(tmp_path / "file" / "folder")
    with caplog.at_level("INFO", logger="autopeft"):
        assert blocked.get(KEY) is None
        blocked.put(KEY, KeptScores(SCORES), 1.0)
    assert "are not kept for later searches" in caplog.text


def test_what_was_unused_for_longest_goes(tmp_path: Path) -> None:
    small = BaselineCache(tmp_path, limit=4 * 4096)
    keys = [replace(KEY, seed=i) for i in range(5)]
    for i, key in enumerate(keys[:4]):
        small.put(key, KeptScores(SCORES), 1.0)
        os.utime(file_of(tmp_path, key), (i, i))
    assert small.get(keys[0]) == KeptScores(SCORES), "it is the oldest, and has just been used"
    small.put(keys[4], KeptScores(SCORES), 1.0)
    assert small.get(keys[1]) is None
    assert [small.get(k) for k in (keys[0], *keys[2:])] == [KeptScores(SCORES)] * 4


def _write(folder: str, split: str, times: int) -> None:
    store = BaselineCache(Path(folder))
    for i in range(times):
        store.put(KEY, KeptScores({split: 0.5}), float(i))
        found = store.get(KEY)
        assert found is not None
        assert found.scores.items() <= {"select": 0.5, "test": 0.5}.items()


def test_two_processes_write_the_same_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(tmp_path), s, 60)) for s in ("select", "test")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = BaselineCache(tmp_path).get(KEY)
    assert found is not None
    assert found.scores.items() <= {"select": 0.5, "test": 0.5}.items()
    assert [p.name for p in tmp_path.iterdir()] == [file_of(tmp_path).name]


def _other_rows(split: str) -> Task:
    changed = dict(task().splits)
    changed[split] = Split([f"other {i}" for i in range(4)], None, [0, 1, 0, 1])  # type: ignore[index]
    return task(splits=changed)


@pytest.mark.parametrize(
    "change",
    [
        {"data": _other_rows("train")},
        {"data": _other_rows("select")},
        {"data": _other_rows("test")},
        {"data": task(class_weights=[0.5, 1.5])},
        {"data": task(labels=("yes", "no"))},
        {"data": task(metric="f1")},
        {"source": replace(MODEL, sha256="b" * 64)},
        {"source": replace(MODEL, alias="minilm")},
        {"plan": replace(PLAN, batch_size=16)},
        {"plan": replace(PLAN, max_length=64)},
        {"plan": replace(PLAN, shortcuts=False)},
        {"plan": replace(PLAN, device="cuda")},
        {"precision": "bf16"},
        {"rank_by": "loss"},
        {"seed": 1001},
        {"steps": 61},
        {"recipe": {"autopeft": 2, "name": "head-only"}},
        {"recipe": {**recipe(), "training": {"learning_rate": 0.007}}},
    ],
    ids=lambda change: "-".join(change),
)
def test_whatever_changes_a_score_changes_the_key(change: dict[str, Any]) -> None:
    before, after = key_of(), key_of(**change)
    assert before is not None
    assert after is not None
    assert before == key_of()
    assert before != after


def test_what_does_not_change_a_score_does_not() -> None:
    before = key_of()
    assert before == key_of(plan=replace(PLAN, seed=5, steps=1))
    assert before == key_of(recipe={**recipe(), "name": "another name"})
    assert before == key_of(source=replace(MODEL, path="/elsewhere"))
    assert before == key_of(data=task(name="another name"))


def test_another_version_makes_another_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = key_of()
    assert before is not None
    versions = json.loads(before.versions)
    assert {"autopeft", "torch", "transformers"} <= versions.keys()
    baseline_cache._versions.cache_clear()
    monkeypatch.setattr(baseline_cache, "version", lambda name: "0")
    after = key_of()
    baseline_cache._versions.cache_clear()
    assert after is not None
    assert json.loads(after.versions)["autopeft"] == versions["autopeft"]
    assert after != before


def test_the_code_that_trains_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Path.read_bytes

    def watched(path: Path) -> bytes:
        read.append(path.as_posix())
        return whole(path) + (b"#" if path.name == "loop.py" else b"")

    before = key_of()
    monkeypatch.setattr(Path, "read_bytes", watched)
    baseline_cache._versions.cache_clear()
    after = key_of()
    baseline_cache._versions.cache_clear()
    assert before is not None
    assert after is not None
    assert json.loads(before.versions)["autopeft"] != json.loads(after.versions)["autopeft"]
    for part in (
        "training/loop.py",
        "nn/__init__.py",
        "low_rank/lora.py",
        "tasks/metrics.py",
        "search/execution/worker.py",
        "search/execution/runners.py",
    ):
        assert any(path.endswith(part) for path in read), part
    assert not any("/cli/" in path or "/report/" in path or path.endswith("/study.py") for path in read)


def test_runs_of_an_earlier_version_are_told_once_and_never_used(
    store: BaselineCache, tmp_path: Path
) -> None:
    said: list[str] = []
    told = BaselineCache(tmp_path, notify=said.append)
    store.put(KEY, KeptScores(SCORES), 1.0)
    store.put(replace(KEY, seed=1001), KeptScores(SCORES), 1.0)
    now = replace(KEY, versions='{"autopeft":"other code"}')
    assert told.get(now) is None
    assert told.get(replace(now, seed=1001)) is None
    (line,) = said
    assert line.startswith("2 baseline runs of this task and backbone were kept by an earlier version")
    assert "trained again" in line
    told.put(now, KeptScores({"select": 0.5, "test": 0.5}), 1.0)
    assert told.get(now) == KeptScores({"select": 0.5, "test": 0.5})
    assert store.get(KEY) == KeptScores(SCORES), "the earlier version still finds its own"


@pytest.mark.parametrize(
    "change",
    [
        {"data": "other rows"},
        {"backbone": "another"},
        {"seed": 1001},
        {"recipe": "another"},
    ],
    ids=lambda change: "-".join(change),
)
def test_nothing_is_told_of_other_tasks_and_of_runs_that_are_missing(
    store: BaselineCache, tmp_path: Path, change: dict[str, Any]
) -> None:
    said: list[str] = []
    other = {"versions": "{}x"} if {"data", "backbone"} & change.keys() else {}
    store.put(replace(KEY, **change, **other), KeptScores(SCORES), 1.0)
    assert BaselineCache(tmp_path, notify=said.append).get(KEY) is None
    assert said == []


@pytest.mark.parametrize(
    "raw", [b"[" * 5000, b"[]", b"{}", b'{"format": 1, "key": {"versions": 3}}', b"\xff", b'{"format": 1}']
)
def test_damaged_files_are_no_earlier_version(tmp_path: Path, raw: bytes) -> None:
    said: list[str] = []
    (tmp_path / "x.json").write_bytes(raw)
    (tmp_path / "folder.json").mkdir()
    assert BaselineCache(tmp_path, notify=said.append).get(KEY) is None
    assert said == []


def test_with_fresh_baselines_nothing_is_told(store: BaselineCache, tmp_path: Path) -> None:
    said: list[str] = []
    store.put(KEY, KeptScores(SCORES), 1.0)
    fresh = BaselineCache(tmp_path, reuse=False, notify=said.append)
    assert fresh.get(replace(KEY, versions="{}x")) is None
    assert said == []


def test_a_backbone_without_a_hash_is_not_kept(store: BaselineCache, tmp_path: Path) -> None:
    hub = ModelSource("org/model", None, "hub", None)
    key = key_of(source=hub)
    assert key is None
    store.put(key, KeptScores(SCORES), 1.0)
    assert store.get(key) is None
    assert list(tmp_path.iterdir()) == []
    snapshot = key_of(source=replace(hub, path=f"/hub/models--org--model/snapshots/{'c' * 40}"))
    assert snapshot is not None
    assert snapshot.backbone == "hub " + "c" * 40


def test_methods_of_other_packages_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.method import get_method, registry

    keep(monkeypatch, registry.REGISTRY)
    lora = get_method("lora")

    class Foreign(lora):  # type: ignore[misc,valid-type]
        traits: Traits = lora.traits

    register("foreign_lora")(Foreign)
    assert key_of(recipe={"layers": [{"attach": [{"foreign_lora": {"rank": 2}}]}]}) is None


def test_compositions_and_policies_of_other_packages_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.composition import get_composition
    from autopeft.composition import register as register_composition
    from autopeft.composition.registry import REGISTRY
    from autopeft.method import get_method, registry

    keep(monkeypatch, registry.REGISTRY, REGISTRY)
    monkeypatch.setattr(registry, "RESERVED", set(registry.RESERVED))
    register_composition("foreign_gate")(type("Foreign", (get_composition("gate"),), {}))
    register("foreign_plus")(type("Foreign", (get_method("lora_plus"),), {}))

    def recipe(inner: str, policy: str) -> dict[str, Any]:
        attached = {"chain": ["lora", {inner: ["ia3", "serial_adapter"]}]}
        return {"layers": [{"attach": [attached]}], "training": {"policies": [policy]}}

    assert key_of(recipe=recipe("gate", "lora_plus")) is not None
    assert key_of(recipe=recipe("foreign_gate", "lora_plus")) is None
    assert key_of(recipe=recipe("gate", "foreign_plus")) is None
