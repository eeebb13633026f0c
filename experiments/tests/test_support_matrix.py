"""What works with what: the recorded matrix is that of the methods, families and kinds that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.method import method_names
from autopeft.tasks.kinds import kind_names

FOLDER = "support_matrix"
Import = Callable[[str], Any]
AGAIN = "record it anew: python experiments/support_matrix/run.py"


def test_the_record_is_of_what_is_there(load: Import) -> None:
    cells, found = load("cells"), load("run").recorded()
    assert found["stamp"] == cells.stamp(), AGAIN
    taken = {str(place) for place in cells.places() if cells.refusal(place) is None}
    assert set(found["cells"]) == taken, AGAIN
    assert all(set(methods) == set(method_names()) for methods in found["cells"].values()), AGAIN
    assert {p: found["reasons"][n] for p, n in found["refused"].items()} == {
        str(place): cells.refusal(place) for place in cells.places() if str(place) not in taken
    }, AGAIN


def test_nothing_is_broken(load: Import) -> None:
    assert load("run").recorded()["broken"] == {}


def _differ(found: dict[str, Any], cells: Any, wanted: Any) -> list[str]:
    """Cells that another thing comes of than what was recorded."""
    differ = []
    for cell in wanted:
        outcome, reason = cells.verdict(cell)
        number = found["cells"][str(cell.place)][cell.method]
        kept = ("works", "") if number is None else ("refused", found["reasons"][number])
        if (outcome, reason) != kept:
            differ.append(f"{cell.place} {cell.method}: recorded {kept}, but now {outcome}: {reason}")
    return differ


@pytest.mark.slow
def test_twenty_cells_are_as_recorded(load: Import) -> None:
    cells = load("cells")
    assert _differ(load("run").recorded(), cells, cells.sampled(cells.cells(), 20)) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_cells_are_as_recorded(load: Import) -> None:
    cells = load("cells")
    assert _differ(load("run").recorded(), cells, cells.cells()) == []


def test_a_change_of_a_default_makes_it_stale(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = load("cells")
    before = cells.stamp()
    monkeypatch.setattr(cells, "method_names", lambda: method_names()[1:])
    assert cells.stamp() != before


def test_every_kind_that_is_registered_is_tried_somewhere(load: Import) -> None:
    cells = load("cells")
    assert {cell.place.kind for cell in cells.cells()} == set(kind_names())


def test_a_run_goes_on_where_it_stopped(
    load: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, cells, tried = load("run"), load("cells"), list[str]()
    where = [cells.Place("bert", "classification"), cells.Place("vit", "classification")]

    def verdict(cell: Any) -> tuple[str, str]:
        if len(tried) == 5:
            raise KeyboardInterrupt
        tried.append(cell.method)
        return ("refused", "no") if cell.method == "ipa" else ("works", "")

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "verdict", verdict)
    monkeypatch.setattr(run, "places", lambda: where)
    monkeypatch.setattr(run, "cells", lambda: cells.cells(where))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    done, tried[:] = set(tried), [""] * 6
    found = run.run()
    assert not done & set(tried)
    own = found["cells"]["bert classification"]
    assert set(own) == set(method_names())
    assert {m for m, number in own.items() if number is not None} == {"ipa"}
    assert found["reasons"][own["ipa"]] == "no"
    assert list(found["refused"]) == ["vit classification"]
    assert run.recorded() == json.loads(json.dumps(found))
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]
    tried[:] = [""] * 6
    assert run.run(families=("vit",)) == found, "bert's are taken from the record"
    assert tried == [""] * 6
    tried.clear()
    assert run.run(methods=("lora",)) == found
    assert tried == ["lora"]
    assert f"| classification | 1 | {len(method_names())} | {len(method_names()) - 1} | 1 |" in run.told(
        found
    )
