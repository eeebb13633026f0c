from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.errors import UsageError
from autopeft.runs.folder import RunFolder
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.resume import SPACE, prepare_again
from autopeft.search.space.space import Space


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder as a search leaves it that was killed before its first trial."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model, data = save_backbone(tmp_path / "model"), write_reviews(tmp_path / "data.csv")
    arguments = SearchArguments(
        task=str(data), text="body", label="verdict", budget="5%", model=str(model), trials=7, steps=130,
        space="lora", fidelity="data", objective="score,params", sampler="nsga2", seed=4, select_rows=9,
    )  # fmt: skip
    ready = prepare(arguments)
    folder = RunFolder.create("data", ready.key(), out=tmp_path / "run")
    folder.write_json("manifest.json", ready.manifest())
    folder.write_text(SPACE, ready.space.text)
    return folder


def test_it_goes_on_as_it_was_begun(begun: RunFolder) -> None:
    before, again = begun.manifest(), prepare_again(begun, {"workers": 3, "time": None, "log": "none"})
    now = json.loads(json.dumps(again.manifest()))
    for name in ("effort", "rungs", "objective", "sampler", "seed", "training", "data", "limits", "backbone"):
        assert now[name] == before[name]
    assert again.workers == 3
    assert again.arguments.log == "none"
    assert again.space.text == Space.named("lora").text
    assert again.rungs.steps == (43, 130)


def test_where_a_search_is_logged_does_not_decide_its_outcome(begun: RunFolder) -> None:
    ready = prepare_again(begun, {})
    logged = replace(ready, arguments=ready.arguments.changed(log="tensorboard"))
    assert logged.key() == ready.key()
    assert logged.manifest()["arguments"]["log"] == "tensorboard"
    assert replace(ready, sampler="random").key() != ready.key()


def test_what_decides_the_outcome_may_not_change(begun: RunFolder) -> None:
    with pytest.raises(UsageError, match="keeps its budget, seed"):
        prepare_again(begun, {"budget": "1%", "seed": 1})


def test_other_data_are_refused(begun: RunFolder) -> None:
    file = Path(begun.manifest()["task"])
    file.write_text(file.read_text().replace("good", "bad"))
    with pytest.raises(UsageError, match="data of run changed"):
        prepare_again(begun, {})


def test_a_finished_run_points_to_another_search(begun: RunFolder) -> None:
    begun.write_json("result.json", {"interrupted": False})
    with pytest.raises(UsageError, match="--from run"):
        prepare_again(begun, {})
    begun.write_json("result.json", {"interrupted": True})
    assert prepare_again(begun, {}).effort.trials == 7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arguments": {"nonsense": 1, "warm_start": []}}, "does not know: nonsense"),
        ({"arguments": None}, "incomplete"),
        ({"effort": {}}, "incomplete"),
    ],
)
def test_a_strange_manifest_is_an_error(begun: RunFolder, change: dict[str, Any], says: str) -> None:
    begun.write_json("manifest.json", {**begun.manifest(), **change})
    with pytest.raises(UsageError, match=says):
        prepare_again(begun, {})


def test_a_folder_without_its_space_cannot_go_on(begun: RunFolder) -> None:
    (begun.path / SPACE).unlink()
    with pytest.raises(UsageError, match=r"space\.yaml"):
        prepare_again(begun, {})


@pytest.mark.parametrize("sampler", ["linear", "evolution", "gp", "tpe", "nsga2", "random"])
def test_every_sampler_goes_with_two_objectives(begun: RunFolder, sampler: str) -> None:
    arguments = {**begun.manifest()["arguments"], "sampler": sampler, "space": "lora"}
    arguments["warm_start"] = ()
    assert prepare(SearchArguments(**arguments)).sampler == sampler
