from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.permissions import modes_hold, sealed

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.runs import folder as module
from autopeft.runs.files import write_atomic
from autopeft.runs.folder import RunFolder, go_on, list_runs, load_run, no_runs
from autopeft.runs.records import FrontPoint, Records, TrialRecord


def make(root: Path, name: str, **manifest: Any) -> RunFolder:
    run = RunFolder.create("sst2", "abcdef123", root=root, out=root / name)
    run.write_json("manifest.json", {"task": "sst2", **manifest})
    return run


def test_names_are_safe_and_new(tmp_path: Path) -> None:
    run = RunFolder.create("../weird dir/my data.csv", "abcdef123", root=tmp_path)
    assert run.path.parent == tmp_path
    assert run.path.is_dir()
    assert run.name.endswith("-my-data-abcdef")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    RunFolder.create("t", "k", out=tmp_path / "x")
    (tmp_path / "x" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        RunFolder.create("t", "k", out=tmp_path / "x")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AutoPEFTError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_vanished_folder_is_a_clear_error(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    for path in run.path.iterdir():
        path.unlink()
    run.path.rmdir()
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        run.append_line("trials.jsonl", {})
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        run.write_winner({"a": b""})


def _hold(path: str, ready: Any) -> None:
    with RunFolder(Path(path)).locked():
        ready.set()
        time.sleep(60)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(run.path), ready))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UsageError, match="Another search"), run.locked():
            pass
        assert run.running
        assert run.summary()["state"] == "running"
        process.kill()
        process.join(30)
        assert (run.path / ".lock").exists()
        assert not run.running, "the lock's file alone says nothing"
        assert run.summary()["state"] == "unfinished"
    finally:
        process.kill()
        process.join(30)
    with run.locked():
        assert run.running
    assert not run.running


def test_what_lies_in_the_locks_place_is_not_waited_for_and_not_followed(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    os.mkfifo(run.path / ".lock")
    assert not run.running
    (run.path / ".lock").unlink()
    with RunFolder(make(tmp_path, "b").path).locked():
        (run.path / ".lock").symlink_to(tmp_path / "b" / ".lock")
        assert not run.running, "the lock is another run's"


def _taken(path: Path) -> int | None:
    """The lock of a run by another process: a descriptor that holds it, or `None` where it is held."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def test_the_lock_is_removed_before_another_can_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the other holds a file that is gone, and a third makes a new one and holds that."""
    run, plain, taken = make(tmp_path, "a"), Path.unlink, list[int | None]()

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".lock":
            taken.append(_taken(path))  # a second process, at the worst of moments
        plain(path, missing_ok)

    with run.locked():
        monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(Path, "unlink", plain)
    with run.locked():
        pass
    assert taken == [None], "two processes hold the run"


def test_whoever_waited_for_a_lock_that_was_removed_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = make(tmp_path, "a"), fcntl.flock
    held = run.locked()
    held.__enter__()
    pending = [held]

    def flock(descriptor: int, operation: int) -> None:
        if pending and operation & fcntl.LOCK_EX:
            # The second process has opened the file, and has not locked it yet.
            pending.pop().__exit__(None, None, None)
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with run.locked():
        assert pending == []
        assert (run.path / ".lock").exists()
        assert _taken(run.path / ".lock") is None, "a third process takes it as well"
    assert not run.running


def test_what_came_to_nothing_is_discarded(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    (run.logs / "ray").mkdir(parents=True)
    (run.path / ".scratch" / "deep").mkdir(parents=True)
    with run.locked():
        run.discard()
    assert [p.name for p in run.path.iterdir()] == ["logs"], "Ray's own logs say why"
    empty = tmp_path / "given"
    empty.mkdir()
    for out, stays in ((empty, True), (tmp_path / "new", False)):
        made = RunFolder.create("t", "key", out=out)
        made.write_json("manifest.json", {})
        with made.locked():
            made.discard()
        assert out.exists() is stays
        assert list(tmp_path.glob(f"{out.name}/*")) == []


def test_records_are_strict_json_and_come_back(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    record = TrialRecord(
        "trial",
        "trial 0",
        "failed",
        {"name": "x"},
        number=0,
        train_loss=math.nan,
        scores={"select": math.inf},
    )
    run.append_line("trials.jsonl", record)
    text = (run.path / "trials.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run.lines()[0]["recipe"] == {"name": "x"}
    assert run.lines()[0]["train_loss"] is None


def test_a_torn_last_line_is_left_out_and_a_bad_one_refused(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    run.append_line("trials.jsonl", {"number": 0})
    with (run.path / "trials.jsonl").open("a") as file:
        file.write('{"number": 1, "sc')
    assert run.lines() == [{"number": 0}]
    (run.path / "trials.jsonl").write_text("[1]\n")
    with pytest.raises(UsageError, match="not a table"):
        run.lines()


def test_records_are_typed_and_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    assert run.trials() == Records()
    record = TrialRecord("trial", "trial 0", "complete", {"name": "x"}, number=0, score=0.5)
    run.append_line("trials.jsonl", record)
    with (run.path / "trials.jsonl").open("ab") as file:
        file.write(b'{"number": 1}\nnot json\n\xff\n' + b"[" * 100_000 + b'\n{"kind": "tri')
    found = run.trials()
    assert found.records == (record,)
    assert found.problem == "4 lines of trials.jsonl are not records of a run: they are left out."
    assert (run.finals().records, run.finals().problem) == ((), None)
    run.append_line("finals.jsonl", {"job": 3})
    assert run.finals().problem == "One line of finals.jsonl is not a record of a run: it is left out."


def test_the_front_is_typed_and_what_is_no_point_is_counted(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    with pytest.raises(UsageError, match="did not come that far"):
        run.front()
    point = FrontPoint(3, 10, 0.1, 0.5, "h", "small")
    run.write_json("front.json", [point, {**asdict(point), "score": None}, [point], "x"])
    assert run.front().points == (point,)
    assert str(run.front().problem).startswith("3 points of front.json")
    run.write_json("front.json", {"points": []})
    with pytest.raises(UsageError, match="does not hold a list"):
        run.front()


def test_foreign_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, "a")
    monkeypatch.setattr(module, "_MAX_LINE", 10)
    (run.path / "manifest.json").write_bytes(b"[" + b"0," * (4 << 20) + b"0]")
    with pytest.raises(UsageError, match="at most 8 MiB are read"):
        run.manifest()
    run.append_line("trials.jsonl", {"a": "b" * 20})
    for read in (run.lines, run.trials):
        with pytest.raises(UsageError, match="too large"):
            read()
    (run.path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="nested too deeply"):
        run.manifest()


def test_the_winner_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    run.write_winner({"a": b"1", "b": b"2"})
    run.write_winner({"a": b"3"})
    assert {p.name: p.read_bytes() for p in run.winner.iterdir()} == {"a": b"3"}
    assert not list(run.path.glob(".winner*"))
    with pytest.raises(AutoPEFTError, match="plain files"):
        run.write_winner({"../evil": b""})
    assert (run.winner / "a").exists()


def test_runs_are_found_by_path_name_part_and_latest(tmp_path: Path) -> None:
    one, two = make(tmp_path, "2026-01-01-sst2-aa"), make(tmp_path, "2026-01-02-trec-bb")
    os.utime(one.path / "manifest.json", (1, 1))
    (tmp_path / "stray").mkdir()
    assert [r.name for r in list_runs(tmp_path)] == [two.name, one.name]
    assert load_run("latest", root=tmp_path).path == two.path
    assert load_run(one.path).path == one.path
    assert load_run("sst2", root=tmp_path).path == one.path
    with pytest.raises(UsageError, match="several"):
        load_run("2026", root=tmp_path)
    with pytest.raises(UsageError, match="Did you mean '2026-01-02-trec-bb'"):
        load_run("2026-01-02-trek-bb", root=tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'latest'"):
        load_run("lates", root=tmp_path)
    with pytest.raises(UsageError, match="no run under"):
        load_run("latest", root=tmp_path / "none")


def test_a_summary_tells_how_far_a_run_came(tmp_path: Path) -> None:
    run = make(tmp_path, "a", budget="0.5%")
    assert run.summary()["state"] == "unfinished"
    with pytest.raises(UsageError, match="did not come that far"):
        run.result()
    run.write_json("result.json", {"interrupted": True, "counts": {"share": 0.004}, "metric": "accuracy"})
    assert (run.summary()["state"], run.summary()["share"], run.summary()["budget"]) == (
        "interrupted",
        0.004,
        "0.5%",
    )


def test_what_goes_on_with_a_search_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, "my run", arguments={"task": "trec"})
    assert go_on(run.path) == f"autopeft search --resume '{run.path}'"
    monkeypatch.chdir(tmp_path)
    assert go_on(run.path) == "autopeft search --resume 'my run'"
    assert go_on(tmp_path / "gone") == "autopeft search --resume gone"
    memory = make(tmp_path, "rows", arguments={"task": {"memory": "DataFrame (3 rows)"}})
    assert go_on(memory.path) == "autopeft.search(resume='rows', task=rows), with the same rows"
    assert go_on(make(tmp_path, "strange", arguments=[]).path) == "autopeft search --resume strange"


def test_where_there_is_no_run_a_search_is_proposed_that_leaves_one_there() -> None:
    assert no_runs("runs").endswith("`autopeft search --task sst2 --budget 0.5%` makes one.")
    assert "--out 'a b/first'`" in no_runs("a b")


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "torn": (b'{"task": "ss', "line 1 column"),
    "binary": (b'{"task":\n "\xff\xfe"}', "not UTF-8 text: line 2"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "null": (b"null", "does not hold a JSON object"),
    "a number beyond reading": (b'{"seed": ' + b"9" * 5_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", ["manifest.json", "result.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_listed_as_such_and_hides_no_other(tmp_path: Path, name: str, damage: str) -> None:
    sound, damaged = make(tmp_path, "sound"), make(tmp_path, "damaged", task="trec")
    content, said = DAMAGE[damage]
    (damaged.path / name).write_bytes(content)
    rows = {row["run"]: row for row in (run.summary() for run in list_runs(tmp_path))}
    assert rows["sound"]["state"] == "unfinished"
    assert "problem" not in rows["sound"]
    assert rows["damaged"]["state"] == "damaged"
    assert said in rows["damaged"]["problem"]
    assert str(damaged.path / name) in rows["damaged"]["problem"]
    assert rows["damaged"].get("task") == (None if name == "manifest.json" else "trec")
    assert load_run(sound.name, root=tmp_path).summary() == rows["sound"]


def test_a_copy_keeps_the_order_in_which_runs_were_begun(tmp_path: Path) -> None:
    """A copy's files are as old as the copy; and no manifest says that it is newer than its file."""
    written = {"03": 300, "02": 200, "01": 400, "never": 100, "99999": 500}
    for day, at in written.items():
        run = make(tmp_path, day, created=f"1970-01-{day}T00:00:00+00:00")
        os.utime(run.path / "manifest.json", (at * 86_400, at * 86_400))
    boaster = make(tmp_path, "boaster", created="9000-01-01T00:00:00+00:00")
    os.utime(boaster.path / "manifest.json", (86_400, 86_400))
    names = [run.name for run in list_runs(tmp_path)]
    assert names == ["99999", "never", "03", "02", "boaster", "01"]


def test_latest_is_the_newest_run_that_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = make(tmp_path, "older"), make(tmp_path, "newer")
    os.utime(older.path / "manifest.json", (1, 1))
    assert load_run("latest", root=tmp_path).name == "newer"
    assert not caplog.records
    (newer.path / "manifest.json").write_text("{")
    assert load_run("latest", root=tmp_path).name == "older"
    assert "older" in caplog.text
    assert str(newer.path / "manifest.json") in caplog.text
    (older.path / "manifest.json").write_text("{")
    os.utime(older.path / "manifest.json", (1, 1))
    with pytest.raises(UsageError, match=r"No run under .* can be read.*newer"):
        load_run("latest", root=tmp_path)


def test_an_export_beside_runs_is_none_of_them(tmp_path: Path) -> None:
    """It is known by its path and by its whole name."""
    run, export = make(tmp_path, "aa"), make(tmp_path, "aa-exported", result={"test_mean": 0.5})
    os.utime(run.path / "manifest.json", (1, 1))
    assert [found.name for found in list_runs(tmp_path)] == ["aa"]
    for ref in ("latest", "aa", "a"):
        assert load_run(ref, root=tmp_path).path == run.path
    for ref in ("aa-exported", str(export.path)):
        assert load_run(ref, root=tmp_path).path == export.path
    assert export.summary()["state"] == "exported"
    (run.path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="There is no run under"):
        load_run("latest", root=tmp_path)


def test_a_run_that_nobody_may_read_is_listed_too(tmp_path: Path) -> None:
    mine, theirs = make(tmp_path, "mine"), make(tmp_path, "theirs")
    for sealed_path in (theirs.path, theirs.path / "manifest.json"):
        with sealed(sealed_path), modes_hold():
            rows = {row["run"]: row for row in (run.summary() for run in list_runs(tmp_path))}
            assert rows["mine"]["state"] == "unfinished"
            assert rows["theirs"]["state"] == "damaged"
            assert "Permission denied" in rows["theirs"]["problem"]
            assert load_run("latest", root=tmp_path).path == mine.path
            for read in (theirs.manifest, theirs.result, theirs.trials, theirs.front):
                if read is theirs.manifest or sealed_path == theirs.path:
                    with pytest.raises(UsageError, match="Permission denied"):
                        read()
            assert load_run(theirs.path).path == theirs.path
    with sealed(tmp_path), modes_hold(), pytest.raises(UsageError, match="Permission denied"):
        list_runs(tmp_path)


def test_names_that_no_file_can_have_are_no_runs(tmp_path: Path) -> None:
    make(tmp_path, "a")
    for name in ("x" * 300, "a\0b", "\udc80"):
        with pytest.raises(UsageError, match="is no path"):
            load_run(name, root=tmp_path)


def test_links_lead_to_nothing_outside_of_a_run(tmp_path: Path) -> None:
    run = make(tmp_path / "runs", "a")
    secret = tmp_path / "secret.json"
    secret.write_text('{"task": "stolen"}\n')
    for name, read in (
        ("manifest.json", run.manifest),
        ("result.json", run.result),
        ("front.json", run.front),
        ("trials.jsonl", run.trials),
        ("finals.jsonl", run.finals),
    ):
        path = run.path / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
        with pytest.raises(UsageError, match="leads out of its folder"):
            read()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UsageError, match="not a plain file"):
            read()
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    (run.path / "real.jsonl").write_text("")
    (run.path / "trials.jsonl").symlink_to("real.jsonl")
    assert run.trials().records == ()
