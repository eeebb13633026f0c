"""Which part of its rows a process trains."""

from __future__ import annotations

import pytest
import torch
from lib.parts import asked_part


@pytest.mark.parametrize(
    ("words", "mine"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6]),
        (["--part", "0/2"], [0, 2, 4, 6]),
        (["--part", "1/2"], [1, 3, 5]),
        (["--part", "2/3"], [2, 5]),
    ],
)
def test_parts_share_all_rows(words: list[str], mine: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    try:
        asked = asked_part("What is asked.", "row")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert asked is not None
    assert list(range(7))[asked] == mine


def test_tables_alone_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--tables", "--part", "1/2"])
    assert asked_part(None, "row") is None


def test_a_part_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--part", "half"])
    with pytest.raises(SystemExit):
        asked_part("What is asked.", "row")
    assert "--part" in capsys.readouterr().err
