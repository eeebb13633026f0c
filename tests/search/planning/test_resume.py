from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from support.saved_model import save_backbone, write_reviews
from transformers import AutoModel, AutoTokenizer

from autopeft.errors import UsageError
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.api import search
from autopeft.search.planning import probes, resume
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.resume import SPACE, prepare_again, resume_command
from autopeft.search.space.space import Space


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, and the run folder of a search that was killed before its first trial."""
    place = tmp_path_factory.mktemp("prepared")
    model, data = save_backbone(place / "model"), write_reviews(place / "data.csv")
    arguments = SearchArguments(
        task=str(data), text="body", label="verdict", budget="5%", model=str(model), trials=7, steps=130,
        space="lora", fidelity="data", objective="score,params", sampler="gp", seed=4, select_rows=9,
        pooling="own", max_length=32,
    )  # fmt: skip
    ready = prepare(arguments)
    folder = RunFolder.create("data", ready.key(), out=place / "run")
    folder.write_json("manifest.json", ready.manifest())
    folder.write_text(SPACE, ready.space.text)
    return place


@pytest.fixture
def begun(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run folder; its model and data are those of all tests."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return RunFolder(Path(shutil.copytree(prepared / "run", tmp_path / "run")))


def test_it_goes_on_as_it_was_begun(begun: RunFolder) -> None:
    before, again = begun.manifest(), prepare_again(begun, {"workers": 3, "time": None, "log": "none"})
    now = json.loads(json.dumps(again.manifest()))
    for name in ("effort", "rungs", "objective", "sampler", "seed", "training", "data", "limits", "backbone"):
        assert now[name] == before[name]
    assert again.workers == 3
    assert again.arguments.log == "none"
    assert again.space.text == Space.named("lora").text
    # A range that is meant for 300 steps, in trainings of 130.
    rate = again.space.bind(again.spec).parameter("learning_rate")
    assert (rate.low, rate.high) == (pytest.approx(1e-4 * 300 / 130, rel=0.01), 1e-2)
    assert again.rungs.steps == (43, 130)


@pytest.mark.parametrize("copies", [0, 30])
def test_a_run_that_counted_copies_as_rows_of_their_own_does_not_go_on(
    prepared: Path, tmp_path: Path, copies: int
) -> None:
    """Its manifest tells no `texts`. Without copies it goes on as ever, and before its finals with them."""
    lines = write_reviews(tmp_path / "data.csv", 120 - copies).read_text().splitlines(keepends=True)
    lines += [line.replace(",", " .,") for line in lines[1 : 1 + copies]]
    (tmp_path / "data.csv").write_text("".join(lines))
    ready = prepare(
        SearchArguments(
            task=str(tmp_path / "data.csv"), text="body", label="verdict", budget="5%",
            model=str(prepared / "model"), trials=7, steps=9, space="lora", max_length=24,
        )
    )  # fmt: skip
    folder = RunFolder.create("data", ready.key(), out=tmp_path / "run")
    folder.write_text(SPACE, ready.space.text)
    manifest = json.loads(json.dumps(ready.manifest()))
    folder.write_json("manifest.json", manifest)
    assert prepare_again(folder, {}).task.splits == ready.task.splits
    assert sum(manifest["data"].pop("texts").values()) == 120 - copies
    folder.write_json("manifest.json", manifest)
    assert prepare_again(folder, {}).task.splits == ready.task.splits, "nothing was compared yet"
    folder.append_line("finals.jsonl", TrialRecord("confirm", "a", "complete", {}, select_values=[0.5, 0.6]))
    if copies:
        with pytest.raises(UsageError, match=r"copies .* --from "):
            prepare_again(folder, {})
    else:
        assert prepare_again(folder, {}).task.splits == ready.task.splits


@pytest.mark.parametrize("rank_by", ["loss", "calibrated-loss"])
def test_it_ranks_and_proposes_as_its_trials_were(begun: RunFolder, rank_by: str) -> None:
    """A default may be another one in the version that goes on."""
    manifest = begun.manifest()
    assert manifest["arguments"]["rank_by"] is None
    assert manifest["rank_by"] == "calibrated-loss"
    begun.write_json("manifest.json", {**manifest, "rank_by": rank_by, "sampler": "gp"})
    again = prepare_again(begun, {})
    assert (again.rank_by, again.sampler) == (rank_by, "gp")


@pytest.mark.parametrize("asked", ["auto", None])
@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling": "own"}, "own"),
        ({"pooling": "mean"}, "mean"),
    ],
)
def test_its_heads_read_what_those_of_its_trials_did(
    begun: RunFolder, said: dict[str, Any], pooling: str, asked: str | None
) -> None:
    """What a probe found is not probed again."""
    manifest = begun.manifest()
    assert manifest.pop("pooling") == "own"
    arguments = {**manifest["arguments"], "pooling": asked or said["pooling"]}
    begun.write_json("manifest.json", {**manifest, "arguments": arguments, **said})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "find_pooling", lambda *_, **__: pytest.fail("it was probed again"))
        again = prepare_again(begun, {})
    assert again.space.pooling == pooling


def test_limits_beside_the_budget_stay(begun: RunFolder) -> None:
    manifest = begun.manifest()
    told = {**manifest["arguments"], "max_file": "40kB", "serve": "merged"}
    begun.write_json("manifest.json", {**manifest, "arguments": told})
    again = prepare_again(begun, {})
    assert again.within.to_dict() == {"file": 40_000, "serve": "merged"}
    assert again.budget.within == again.within  # type: ignore[attr-defined]
    assert again.manifest()["arguments"]["max_file"] == "40kB"
    with pytest.raises(UsageError, match="keeps its max_file"):
        prepare_again(begun, {"max_file": "80kB"})


def test_where_a_search_is_logged_does_not_decide_its_outcome(begun: RunFolder) -> None:
    ready = prepare_again(begun, {})
    logged = replace(ready, arguments=ready.arguments.changed(log="tensorboard"))
    assert logged.key() == ready.key()
    assert logged.manifest()["arguments"]["log"] == "tensorboard"
    assert replace(ready, sampler="random").key() != ready.key()


def test_a_run_folder_does_not_decide_where_work_and_figures_are_sent_and_who_listens(
    begun: RunFolder,
) -> None:
    said: list[str] = []
    manifest = begun.manifest()
    theirs = {"address": "evil.example:6379", "log": "wandb", "listen": "0.0.0.0"}
    begun.write_json("manifest.json", {**manifest, "arguments": {**manifest["arguments"], **theirs}})
    with pytest.raises(UsageError, match=r"evil\.example:6379.*give --address again, or --workers"):
        prepare_again(begun, {}, said.append)
    here = prepare_again(begun, {"workers": 2}, said.append)
    assert (here.arguments.address, here.arguments.log, here.arguments.listen) == (None, None, None)
    assert here.workers == 2
    assert here.gpus == 0.0, "as by default on the cluster"
    assert [next(w for w in line.split() if w.startswith("--")) for line in said[-3:]] == [
        "--address",
        "--listen",
        "--log",
    ]
    alone = prepare_again(begun, {"workers": 0, "log": "none"}, said.append)
    assert alone.workers == 0
    assert len(said) == 3, "what is decided anew needs no word"
    there = prepare_again(begun, {"address": "10.0.0.1:6379"}, said.append)
    assert there.arguments.address == "10.0.0.1:6379"
    assert there.workers is None


def test_the_command_that_goes_on_names_what_the_folder_does_not_decide(tmp_path: Path) -> None:
    given = {"address": "10.0.0.1:6379", "log": "tensorboard", "seed": 3, "workers": 2}
    begin = f"autopeft search --resume {tmp_path}"
    assert resume_command(tmp_path, given) == f"{begin} --address 10.0.0.1:6379 --log tensorboard"
    assert resume_command(tmp_path, {}) == begin


def test_foreign_text_in_a_refusal_is_escaped_and_short(begun: RunFolder) -> None:
    manifest = begun.manifest()
    theirs = {"address": "\x1b[2J" + "x" * 10_000}
    begun.write_json("manifest.json", {**manifest, "arguments": {**manifest["arguments"], **theirs}})
    with pytest.raises(UsageError) as caught:
        prepare_again(begun, {})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_decides_the_outcome_may_not_change(begun: RunFolder) -> None:
    with pytest.raises(UsageError, match="keeps its budget, seed"):
        prepare_again(begun, {"budget": "1%", "seed": 1})


def test_other_data_are_refused(begun: RunFolder) -> None:
    file = Path(begun.manifest()["task"])
    before = file.read_text()
    file.write_text(before.replace("good", "bad"))
    try:
        with pytest.raises(UsageError, match="data of run changed"):
            prepare_again(begun, {})
    finally:
        file.write_text(before)


@pytest.mark.parametrize("absent", ["model", "data.csv"])
def test_a_run_that_was_moved_says_so(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    """Relative paths are those from the folder that it was begun in."""
    monkeypatch.chdir(prepared)
    named = {"text": "body", "label": "verdict", "budget": "5%", "space": "lora"}
    run = _begin(tmp_path / "moved", task="data.csv", model="model", **named)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for name in {"model", "data.csv"} - {absent}:
        (elsewhere / name).symlink_to(prepared / name)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UsageError, match=f"was begun with the .* {absent!r}.*Go on from that folder"):
        prepare_again(run, {})
    (elsewhere / absent).symlink_to(prepared / absent)
    assert prepare_again(run, {}).model_name == "model"


def test_a_finished_run_points_to_another_search(begun: RunFolder) -> None:
    begun.write_json("result.json", {"interrupted": False})
    with pytest.raises(UsageError, match=r"autopeft search --task \S+ --budget 5% .*--from \S*run$"):
        prepare_again(begun, {})
    begun.write_json("result.json", {"interrupted": True})
    assert prepare_again(begun, {}).effort.trials == 7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arguments": {"nonsense": 1, "warm_start": []}}, "does not know: nonsense"),
        ({"arguments": None}, "no table 'arguments' but None"),
        ({"arguments": ["budget"]}, "no table 'arguments'"),
        ({"effort": {}}, "effort.name: "),
        ({"effort": None}, "An effort is a table, but got None"),
        ({"effort": {"trials": "many"}}, "effort.trials: Input should be a valid integer"),
        ({"effort": {"steps": 0}}, "positive whole numbers, but got steps=0"),
        ({"effort": {"seeds": 10**40}}, "positive whole numbers"),
        ({"effort": {"seconds": 10**400}}, "effort.seconds"),
        ({"effort": {"evil": 1}}, "effort.evil"),
        ({"arguments": {"budget": [1]}}, "budget"),
        ({"arguments": {"seed": "4"}}, "seed"),
        ({"arguments": {"batch_size": -3}}, "batch_size"),
        ({"arguments": {"text": {"a": 1}}}, "text"),
        ({"arguments": {"warm_start": 7}}, "warm_start"),
        ({"arguments": {"strategy": "os:system"}}, "There is no strategy 'os:system'"),
        ({"arguments": {"strategy": "named_in_a_file.Thing"}}, "There is no strategy"),
        ({"arguments": {"sampler": "named_in_a_file:Thing"}}, "named_in_a_file:Thing"),
        ({"arguments": {"kind": "named_in_a_file"}}, "named_in_a_file"),
        ({"arguments": {"metric": "named_in_a_file.score"}}, "named_in_a_file.score"),
    ],
)
def test_a_strange_manifest_is_an_error(
    begun: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    """Names are looked up among what is registered; nothing is imported for them."""
    (tmp_path / "named_in_a_file.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    before = begun.manifest()
    changed = {
        k: {**before[k], **v} if isinstance(v, dict) and v and "nonsense" not in v else v
        for k, v in change.items()
    }
    begun.write_json("manifest.json", {**before, **changed})
    with pytest.raises(UsageError, match=re.escape(says)):
        prepare_again(begun, {})
    assert "named_in_a_file" not in sys.modules


def test_a_damaged_manifest_says_what_is_left(begun: RunFolder) -> None:
    begun.write_json("manifest.json", {**begun.manifest(), "effort": None})
    with pytest.raises(
        UsageError, match=rf"`autopeft report {begun.path}` shows.*--from {begun.path} starts"
    ):
        prepare_again(begun, {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"layers:\n  - at: \xff\n", "not UTF-8"),
        (b"layers:\n  - at: [\n", "space.yaml:"),
        (b"layers: 3\n", "space.yaml:1"),
        (b"", "space.yaml"),
        (b"[" * 100_000, "space.yaml"),
    ],
)
def test_a_damaged_space_is_named_with_its_line(begun: RunFolder, content: bytes, says: str) -> None:
    (begun.path / SPACE).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        prepare_again(begun, {})
    assert str(begun.path / SPACE) in str(caught.value)


def test_links_out_of_the_run_are_not_followed(begun: RunFolder, tmp_path: Path) -> None:
    (begun.path / SPACE).rename(tmp_path / "outside")
    (begun.path / SPACE).symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="leads out of its folder"):
        prepare_again(begun, {})


def test_a_folder_without_its_space_cannot_go_on(begun: RunFolder) -> None:
    (begun.path / SPACE).unlink()
    with pytest.raises(UsageError, match=r"space\.yaml"):
        prepare_again(begun, {})


@pytest.mark.parametrize("sampler", ["linear", "gp", "tpe", "random"])
def test_every_sampler_goes_with_two_objectives(begun: RunFolder, sampler: str) -> None:
    arguments = {**begun.manifest()["arguments"], "sampler": sampler, "space": "lora"}
    arguments["warm_start"] = ()
    assert prepare(SearchArguments(**arguments)).sampler == sampler


def _begin(folder: Path, **given: Any) -> RunFolder:
    ready = prepare(SearchArguments(max_length=32, **given))
    begun = RunFolder.create(ready.task_name, ready.key(), out=folder)
    begun.write_json("manifest.json", ready.manifest())
    begun.write_text(SPACE, ready.space.text)
    return begun


@pytest.fixture
def in_memory(begun: RunFolder, tmp_path: Path) -> tuple[RunFolder, pandas.DataFrame]:
    """A run that was begun with a data frame, and the frame."""
    frame = pandas.read_csv(begun.manifest()["task"])
    named = {"text": "body", "label": "verdict", "budget": "5%", "space": "lora"}
    return _begin(tmp_path / "rows", task=frame, model=begun.manifest()["model"], **named), frame


def test_rows_in_memory_have_to_come_again(in_memory: tuple[RunFolder, pandas.DataFrame]) -> None:
    run, frame = in_memory
    manifest = run.manifest()
    assert manifest["task"] == "memory"
    assert manifest["arguments"]["task"] == {"memory": "DataFrame (120 rows)"}
    source = manifest["data"]["source"]
    assert (source["origin"], len(source["sha256"])) == ("memory", 64)
    with pytest.raises(UsageError, match=rf"rows in memory.*{source['sha256'][:12]}.*task=rows") as caught:
        prepare_again(run, {})
    assert str(run.path) in str(caught.value)
    again = prepare_again(run, {"task": frame.copy(), "workers": 2})
    assert again.task.source.sha256 == source["sha256"]
    assert again.workers == 2


def test_other_rows_in_memory_are_refused(in_memory: tuple[RunFolder, pandas.DataFrame]) -> None:
    run, frame = in_memory
    other = frame.assign(body=frame["body"] + " film")
    with pytest.raises(UsageError, match="data of rows changed"):
        prepare_again(run, {"task": other})
    with pytest.raises(UsageError, match="keeps its task"):
        prepare_again(run, {"task": "data.csv"})


def test_a_named_task_takes_no_rows_in_memory(begun: RunFolder) -> None:
    with pytest.raises(UsageError, match="was begun with"):
        prepare_again(begun, {"task": pandas.read_csv(begun.manifest()["task"])})


def test_a_loaded_model_is_found_again_or_handed_over_again(begun: RunFolder, tmp_path: Path) -> None:
    folder, data = begun.manifest()["model"], begun.manifest()["task"]
    pair = (AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    named = {"task": data, "text": "body", "label": "verdict", "budget": "5%", "space": "lora"}
    run = _begin(tmp_path / "live", model=pair, **named)
    manifest = run.manifest()
    assert len(manifest["backbone"]["sha256"]) == 64
    assert manifest["arguments"]["model"] == manifest["model"]
    assert prepare_again(run, {}).model_name == manifest["model"]
    shutil.rmtree(manifest["model"])
    with pytest.raises(UsageError, match="nothing is there any more"):
        prepare_again(run, {})
    assert prepare_again(run, {"model": pair}).source.sha256 == manifest["backbone"]["sha256"]
    with torch.no_grad():
        pair[0].embeddings.word_embeddings.weight[3, 3] += 1e-3
    with pytest.raises(UsageError, match="backbone of live changed"):
        prepare_again(run, {"model": pair})


def test_a_run_whose_journal_is_gone_keeps_its_trials(begun: RunFolder) -> None:
    """As in a copy without `*.log`: the search would begin anew, over what was found."""
    recipe = {"layers": [{"attach": [{"lora": {"rank": 2}}]}]}
    for number, state in enumerate(("complete", "failed", "stopped")):
        record = TrialRecord("trial", f"trial {number}", state, recipe, number=number, score=0.5)  # type: ignore[arg-type]
        begun.append_line("trials.jsonl", record)
    before = (begun.path / "trials.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(UsageError, match=r"journal.log lacks 2 of the 2 trials .*--from \S*run"):
            search(resume=begun.path, workers=0)
        assert (begun.path / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("said", "gpus"),
    [
        ({"address": "auto", "gpus_per_trial": 0.5, "workers": 4}, None),
        ({"address": "auto", "gpus_per_trial": 1.0, "processes_per_trial": 1}, None),
        ({"address": "auto", "gpus_per_trial": None}, 0.0),
        ({"address": None, "gpus_per_trial": None}, None),
    ],
)
def test_a_run_that_was_begun_on_ray_goes_on_in_this_process(
    said: dict[str, Any], gpus: float | None
) -> None:
    """Also one that had named GPUs of a cluster, which this process does not use."""
    here = resume.on_same_device(said, {"workers": 0})
    assert (here["address"], here["gpus_per_trial"]) == (None, gpus)
