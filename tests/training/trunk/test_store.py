from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.classifiers import encoded_rows

from autopeft.assets import cache
from autopeft.errors import UsageError
from autopeft.training.trunk import store as stores
from autopeft.training.trunk.store import StateStore, open_store, size_limit

WIDTH = 4
SPLIT = encoded_rows("bert", 12)
ALL = np.arange(12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def opened(**identity: Any) -> StateStore:
    store = open_store(SPLIT, identity, WIDTH)
    assert store is not None
    return store


def states(row: int) -> torch.Tensor:
    """Made-up states that fp16 holds exactly."""
    length = int(SPLIT.lengths[row])
    return (torch.arange(length * WIDTH).view(length, WIDTH) + 100 * row) / 8


def fill(store: StateStore, rows: Any = ALL) -> None:
    for row in rows:
        store.put(int(row), states(int(row)))


def gathered(store: StateStore, rows: Any) -> torch.Tensor:
    return store.gather(*SPLIT.layout(np.asarray(rows)))


def test_what_was_put_is_gathered_with_zeros_at_padding() -> None:
    store = opened()
    fill(store)
    got = gathered(store, [3, 0, 7])
    assert got.dtype == torch.float32
    for i, row in enumerate((3, 0, 7)):
        length = int(SPLIT.lengths[row])
        assert torch.equal(got[i, :length], states(row))
        assert not got[i, length:].any()


def test_rows_are_there_for_the_next_one_who_opens_it() -> None:
    fill(opened(k=1), [2, 5])
    again = opened(k=1)
    assert again.missing(ALL).tolist() == [r for r in range(12) if r not in (2, 5)]
    assert opened(k=2).missing(ALL).tolist() == list(range(12))
    assert torch.equal(gathered(again, [5])[0], states(5))


def test_a_torn_row_is_absent() -> None:
    store = opened()
    fill(store)
    with (store.folder / "states").open("r+b") as file:
        file.seek(int(SPLIT.offsets[4]) * WIDTH * 2)
        file.write(b"\xff\x01")
    assert opened().missing(ALL).tolist() == [4]


def test_a_file_of_another_size_is_replaced() -> None:
    store = opened()
    fill(store)
    with (store.folder / "sums").open("r+b") as file:
        file.truncate(8)
    assert opened().missing(ALL).tolist() == list(range(12))


def test_a_row_beyond_fp16_is_noted_and_the_others_are_kept() -> None:
    store = opened()
    wild = states(0)
    wild[0, 0] = 1e6
    store.put(0, wild)
    store.put(1, states(1))
    for found in (store, opened()):
        assert found.missing(ALL[:3]).tolist() == [2]
        assert found.beyond[ALL[:2]].any()
        assert not found.beyond[ALL[1:]].any()


def test_another_split_or_width_is_another_store() -> None:
    folders = {opened().folder, opened(backbone="b").folder}
    for split, width in ((encoded_rows("bert", 12, seed=1), WIDTH), (SPLIT, WIDTH + 1)):
        store = open_store(split, {}, width)
        assert store is not None
        folders.add(store.folder)
    assert len(folders) == 4


def test_the_store_unused_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [opened(k=k) for k in range(3)]
    for i, store in enumerate(made):
        fill(store)
        os.utime(store.folder, (i + 1, i + 1))
    os.utime(made[0].folder, (9, 9))
    taken = sum(f.stat().st_blocks * 512 for f in made[0].folder.iterdir())
    monkeypatch.setenv(stores.LIMIT_VARIABLE, str(3 * taken))
    fourth = opened(k=3)
    assert [s.folder.exists() for s in (*made, fourth)] == [True, False, True, True]
    assert torch.equal(gathered(made[1], [5])[0], states(5))  # who has it mapped keeps it


def test_no_room_and_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(stores.LIMIT_VARIABLE, "100B")
    assert open_store(SPLIT, {}, WIDTH) is None
    monkeypatch.setenv(stores.LIMIT_VARIABLE, "0")
    assert open_store(SPLIT, {}, WIDTH) is None
    monkeypatch.setenv(stores.LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match=r"AUTOPEFT_TRUNK_LIMIT.*'10GB'"):
        open_store(SPLIT, {}, WIDTH)


def test_a_full_disk_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": cache.SPARE_DISK})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    assert open_store(SPLIT, {}, WIDTH) is None


def test_sizes_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_limit() == 10 * 10**9
    for text, size in (("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("0", 0), ("123", 123)):
        monkeypatch.setenv(stores.LIMIT_VARIABLE, text)
        assert size_limit() == size


def _write_for_ever(cache: str) -> None:
    os.environ["AUTOPEFT_CACHE"] = cache
    store = opened()
    while True:
        fill(store)


def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_write_for_ever, args=(str(tmp_path),))
    writer.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("trunk/*/sums")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    store = opened()
    there = np.setdiff1d(ALL, store.missing(ALL))
    for row in there:
        assert torch.equal(gathered(store, [row])[0], states(int(row)))
    fill(store, store.missing(ALL))
    assert not len(store.missing(ALL))
