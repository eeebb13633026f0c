"""An interrupted experiment goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from lib.storage import Balance, Kept, append_row, read_rows


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.jsonl"
    balance = Balance(path)
    balance.add("a", {"side": "ours", "cpu": 1.0})
    balance.add("b", {"side": "dynamic", "cpu": 2.0})
    with path.open("a") as file:
        file.write('{"key": "c", "cpu": 3.')  # killed while writing
    again = Balance(path)
    assert "a" in again
    assert "c" not in again
    again.add("c", {"side": "ours", "cpu": 4.0})
    again.add("a", {"side": "ours", "cpu": 5.0})
    third = Balance(path)
    assert {key: row["cpu"] for key, row in third.rows.items()} == {"a": 5.0, "b": 2.0, "c": 4.0}
    third.forget(lambda row: row["side"] == "ours")
    assert list(Balance(path).rows) == ["b"]
    assert not Balance(path, fresh=True).rows
    assert not path.exists()


def test_results_are_kept_while_they_belong_to_the_same_recording(tmp_path: Path) -> None:
    calls: list[str] = []

    def make() -> int:
        calls.append("made")
        return 3

    path = tmp_path / "results.json"
    assert Kept(path, {"rows": 1}).get("a", make) == 3
    assert Kept(path, {"rows": 1}).get("a", make) == 3
    assert Kept(path, {"rows": 2}).get("a", make) == 3
    assert calls == ["made", "made"]


def test_processes_side_by_side_keep_what_each_makes(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    one, other = Kept(path, {"n": 1}), Kept(path, {"n": 1})
    assert (one.get("a", lambda: 1), other.get("b", lambda: 2), one.get("c", lambda: 3)) == (1, 2, 3)
    assert Kept(path, {"n": 1}).results == {"a": 1, "b": 2, "c": 3}


def test_a_line_that_was_cut_off_is_neither_read_nor_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    append_row(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert read_rows(path) == [{"a": 1}]
    append_row(path, {"a": 3})
    assert read_rows(path) == [{"a": 1}, {"a": 3}]
    assert read_rows(tmp_path / "none.jsonl") == []
