"""Each checklist of CONTRIBUTING.md is walked: its code is taken from the page, registered and used."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from fuzz.harness import bench
from fuzz.surface import Surface, cases
from support.defaults import configs, problems
from support.documents import ROOT, block, marks, text_of
from support.laws import ZEROS, starts
from support.registries import keep
from support.saved_model import save_backbone, write_reviews
from support.searching import Events, MemoryCheckpoints, Stage
from support.tiny import logits, tiny_inputs, tiny_model
from support.toy import build, toy_spec
from support.training import encoded_task, tiny_bert

import autopeft
from autopeft.arguments import takes
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.backbones import spec_of_model
from autopeft.cli import main
from autopeft.cli.declared import Given, declared, typed_command
from autopeft.composition import registry as compositions
from autopeft.counting import Budget
from autopeft.effort import Effort
from autopeft.errors import CompositionError, DataError
from autopeft.graph import draw_text
from autopeft.method import registry as methods
from autopeft.recipe import Recipe
from autopeft.report.defaults import published_defaults, read_defaults
from autopeft.runs.records import TrialRecord
from autopeft.search.api import search
from autopeft.search.controller.controller import Controller
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.planning import arguments as planning
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.resume import changeable
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.candidate import candidate
from autopeft.search.space.space import Space
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric, metrics_of
from autopeft.tasks.kinds import registry as kinds
from autopeft.training import TrainingPlan, predict, run_trial, train

PAGE = "CONTRIBUTING.md"
PLAN = TrainingPlan(steps=3, batch_size=4, device="cpu", seed=0)
Import = Callable[[str], types.ModuleType]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Import]:
    """Imports the block of a checklist as a module of its own; what it registers is gone after the test."""
    keep(
        monkeypatch, methods.REGISTRY, compositions.REGISTRY, SAMPLERS, STRATEGIES, kinds.KINDS, kinds.METRICS
    )
    monkeypatch.setattr(methods, "RESERVED", set(methods.RESERVED))
    monkeypatch.setattr(compositions, "_DEFAULTS", dict(compositions._DEFAULTS))
    monkeypatch.setattr(kinds, "_BY_KIND", {k: dict(v) for k, v in kinds._BY_KIND.items()})

    def load(name: str) -> types.ModuleType:
        file = tmp_path / f"added_{name}.py"
        file.write_text(block(PAGE, f"checklist: {name}"))
        found = importlib.util.spec_from_file_location(file.stem, file)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, file.stem, module)
        found.loader.exec_module(module)
        return module

    return load


def help_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


def bound() -> BoundSpace:
    text = """\
autopeft: 2
name: small
layers: [{at: all, attach: [{lora: {sites: [q, v], rank: {choice: [1, 2, 4, 8]}}}]}]
training: {learning_rate: {float: [1.0e-4, 1.0e-1], log: true}}
"""
    return Space.from_yaml(text).bind(spec_of_model(tiny_bert())[0])


def test_there_is_a_checklist_for_each_thing_that_is_added() -> None:
    named = ["method", "composition", "sampler", "strategy", "kind", "metric", "option", "surface"]
    assert marks(PAGE, "checklist") == named


def test_files_that_it_names_exist() -> None:
    """Of `methods/<family>/<name>.py`, which is still to be written, the folder."""
    folders = "autopeft|tests|methods|experiments|docs|search_spaces"
    found = re.findall(rf"(?<![\w/.])((?:{folders})/[\w./<>]*[\w/])", text_of(PAGE))
    paths = [path.partition("<")[0].rpartition("/")[0] if "<" in path else path for path in found]
    assert len(paths) > 15
    # Tests have the same folders as what they test; a folder of theirs may be the first thing to make.
    mirrored = [path.replace("tests", "autopeft", 1) for path in paths]
    there = [(ROOT / a).exists() or (ROOT / b).is_dir() for a, b in zip(paths, mirrored, strict=True)]
    assert [path for path, exists in zip(paths, there, strict=True) if not exists] == []


def test_a_method_is_attached_and_trained(take: Import, capsys: pytest.CaptureFixture[str]) -> None:
    take("method")
    recipe = Recipe.from_dict({"layers": [{"attach": [{"gate": ["lora", "output_shift"]}]}]})
    model = tiny_bert()
    hybrid = autopeft.attach(model, recipe, seed=0)
    entry, module = hybrid.graph.entries["output_shift"], hybrid.modules["output_shift"]
    assert entry.count.deployed == sum(p.numel() for p in module.parameters()) == 2 * 2 * 16
    train(hybrid, encoded_task(), PLAN)
    assert all(p.detach().any() for p in module.parameters())
    assert main(["methods", "output_shift"]) == 0
    assert "y + v, with v zero at init" in capsys.readouterr().out


def test_a_method_has_rows_for_its_defaults_and_a_law_for_each_parameter(take: Import) -> None:
    assert problems(published_defaults(), configs()) == []
    take("method")
    assert problems(published_defaults(), configs()) == ["output_shift: no entry"]
    rows = read_defaults(block(PAGE, "defaults: method"))
    assert problems({**published_defaults(), **rows}, configs()) == []
    module, _ = build("output_shift", toy_spec())
    assert starts(module, {"at.*.vector": ZEROS}) == []
    assert starts(module, {}) != []


def test_a_composition_is_read_attached_and_trained(take: Import) -> None:
    take("composition")
    recipe = Recipe.from_yaml("layers: [{attach: [{mean: [serial_adapter, parallel_adapter]}]}]")
    model = tiny_bert()
    hybrid = autopeft.attach(model, recipe, seed=0)
    assert "mean(serial_adapter" in draw_text(hybrid.graph)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    before = [p.detach().clone() for p in hybrid.root.parameters()]
    train(hybrid, encoded_task(), PLAN)
    assert not any(torch.equal(a, b) for a, b in zip(before, hybrid.root.parameters(), strict=True))
    hybrid.detach()
    with pytest.raises(CompositionError, match="but got dora; use a sum"):
        autopeft.attach(model, Recipe.from_yaml("layers: [{attach: [{mean: [lora, dora]}]}]"))


def test_the_mean_is_a_mean(take: Import) -> None:
    """Two alike children add what one does."""
    take("composition")
    inputs = tiny_inputs("bert")
    found = []
    for attach in (["lora"], [{"mean": ["lora", "lora"]}]):
        model = tiny_model("bert")
        hybrid = autopeft.attach(model, Recipe.from_dict({"layers": [{"attach": attach}]}), seed=0)
        for parameter in hybrid.root.parameters():
            with torch.no_grad():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
        found.append(logits(model, inputs).detach())
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], logits(tiny_model("bert"), inputs), atol=1e-2)


def test_a_sampler_proposes(
    take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take("sampler")
    space, budget = bound(), Budget.parse("20%")
    study = SearchStudy(
        tmp_path / "journal.log",
        space.parameters,
        lambda values: candidate(space, values, budget),
        sampler="univariate_tpe",
        seed=0,
        trials=9,
        rungs=Rungs.of(5),
    )
    hashes = set()
    for score in range(8):
        proposal = study.propose()
        assert proposal is not None
        hashes.add(proposal.hash)
        study.record(proposal.number, JobResult("x", {"select": score / 10}))
    assert len(hashes) == 8
    assert "univariate_tpe" in help_of("search", capsys, monkeypatch)
    assert SearchArguments(sampler="univariate_tpe").sampler == "univariate_tpe"


EFFORT = Effort("tiny", 5, 10, None, None, None, top=2, seeds=2, rates=2)


def context(folder: Path, past: list[TrialRecord], store: MemoryCheckpoints) -> StrategyContext:
    return StrategyContext(
        bound(), Budget.parse("20%"), EFFORT, 0, "tpe", Rungs.of(10), 1, folder, store, past=past
    )


def stage_of(folder: Path, past: list[TrialRecord]) -> Stage:
    """A controller with the strategy of the page."""
    events, store = Events(), MemoryCheckpoints()
    records: list[TrialRecord] = []
    strategy = STRATEGIES.find("draws").open(context(folder, past, store))
    controller = Controller(strategy, EFFORT, [], events, store, records.append, seed=0, workers=2)
    return Stage(controller, events, store, records)


def honest(job: Job) -> JobResult:
    """The score grows with the rank; finalists keep their weights."""
    rank = job.recipe["layers"][0]["attach"][0]["lora"]["rank"]
    return JobResult(job.id, dict.fromkeys(job.splits, rank / 10 + job.seed / 1e6), 1.0, files={"w": b""})


def test_a_strategy_runs_through_the_controller(
    take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take("strategy")
    stage = stage_of(tmp_path, [])
    stage.play(honest)
    trials = [r for r in stage.records if r.kind == "trial"]
    assert sorted(r.number for r in trials if r.number is not None) == [0, 1, 2, 3, 4]
    assert {r.state for r in trials} == {"complete"}
    winner = stage.controller.selection.winner
    assert winner is not None
    assert winner.recipe == max(trials, key=lambda r: r.score or 0).recipe
    assert stage.controller.finished
    assert {job.kind for job in stage.jobs} == {"trial", "confirm", "test"}
    # A run that was cut off after two trials, one of them the last, draws the other three alike.
    again = stage_of(tmp_path, [trials[0], trials[-1]])
    again.play(honest)
    assert again.controller.strategy.launched == 5
    assert {r.number: r.recipe for r in again.controller.strategy.records()} == {
        r.number: r.recipe for r in trials
    }
    assert "draws" in help_of("search", capsys, monkeypatch)


def test_a_strategy_ends_without_time_and_with_failures(take: Import, tmp_path: Path) -> None:
    take("strategy")
    strategy: Any = STRATEGIES.find("draws").open(context(tmp_path, [], MemoryCheckpoints()))
    job = strategy.next(room=True)
    assert strategy.next(room=False) is None
    assert not strategy.finished
    strategy.complete(job, JobResult(job.id, error="boom", failure="failed"))
    assert (strategy.finished, strategy.out_of_time, strategy.candidates(1)) == (True, True, [])
    assert [(r.state, r.error) for r in strategy.updates()] == [("failed", "boom")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model, data = save_backbone(tmp_path / "model"), write_reviews(tmp_path / "data.csv")
    return {"task": str(data), "model": str(model), "text": "body", "label": "verdict"}


def test_a_search_with_a_strategy(take: Import, place: dict[str, Any], tmp_path: Path) -> None:
    """From arguments to a result, with a job log for each of its trials."""
    take("strategy")
    result = search(
        **place, budget="20%", space="lora", strategy="draws", trials=3, steps=4, confirm=1, confirm_seeds=1,
        baselines="none", max_length=16, batch_size=8, workers=0, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert result.confirmed
    assert [(r.number, r.state) for r in result.trials] == [(i, "complete") for i in range(3)]
    assert not (tmp_path / "run/journal.log").exists(), "that is the file of another strategy"
    assert len(list((tmp_path / "run/logs").glob("trial-*.txt"))) == 3


def test_a_kind_loads_rows_and_trains(take: Import, place: dict[str, Any], tmp_path: Path) -> None:
    take("kind")
    rows = Path(place["task"]).read_text().splitlines()
    counted = tmp_path / "counts.csv"
    counted.write_text(
        "body,films\n" + "\n".join(f"{b},{b.count('film')}" for b in (r.split(",")[0] for r in rows[1:]))
    )
    task = load_task(str(counted), text="body", label="films", kind="count")
    assert (task.kind, task.metric, task.labels, task.num_labels) == ("count", "exact_count", (), 1)
    source = resolve_model(place["model"])
    model = task.task_kind.head.load_model(source, task.labels)
    data = encode(task, load_tokenizer(source), 32)
    plan = TrainingPlan(steps=60, batch_size=16, max_length=32, device="cpu")
    lora = {"layers": [{"attach": [{"lora": {"rank": 4}}]}], "training": {"learning_rate": 0.02}}
    outcome = run_trial(model, Recipe.from_dict(lora), data, plan)
    losses = outcome.train.losses
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert 0 <= outcome.score <= 1
    kind = get_kind("count")
    (output,) = predict(model, data.splits["select"])[:1]
    assert kind.scorer.present(output, ()) == {"value": kind.scorer.decisions(output[None])[0]}
    assert kinds.kind_of_model(model.config)[0] is kind
    # The data of other kinds are still theirs.
    assert load_task(place["task"], text="body", label="verdict").kind == "classification"
    with pytest.raises(DataError, match="no whole number from 0"):
        load_task(place["task"], text="body", label="verdict", kind="count")


def test_a_metric_scores(take: Import, place: dict[str, Any]) -> None:
    take("metric")
    assert "balanced_accuracy" in metrics_of("classification")
    metric = get_metric("balanced_accuracy")
    assert metric.score(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])) == 0.5
    assert (
        load_task(place["task"], text="body", label="verdict", metric="balanced_accuracy").metric
        == metric.name
    )
    data = encoded_task()
    scored = replace(data, task=replace(data.task, metric=metric.name))
    outcome = run_trial(tiny_bert(), Recipe.from_dict({"name": "head"}), scored, PLAN)
    assert 0 <= outcome.score <= 1


def test_an_option_is_in_help_signature_docstring_manifest_and_resume(
    place: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the page declares on top of the others."""
    scope: dict[str, Any] = {**vars(planning), "Arguments": SearchArguments}
    exec(compile(block(PAGE, "checklist: option"), PAGE, "exec", dont_inherit=True), scope)
    arguments: type[SearchArguments] = scope["SearchArguments"]
    assert set(arguments.model_fields) - set(SearchArguments.model_fields) == {"patience"}

    @declared(arguments)
    def command(given: Given) -> None:
        """Search."""
        assert given["patience"] == 3

    monkeypatch.setenv("COLUMNS", "160")
    app = typer.Typer()
    app.command(cls=typed_command(command))(command)
    cli = typer.main.get_command(app)
    cli.main(args=["--patience", "3"], standalone_mode=False)
    cli.main(args=["--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "without a better one" in " ".join(shown.split())
    assert shown.index("--trials") < shown.index("--patience") < shown.index("--time")

    @takes(arguments)
    def find(given: SearchArguments) -> Any:
        """Find.

        Args:
            {arguments}
        """
        return given

    assert inspect.signature(find).parameters["patience"].annotation == (int | None)
    assert "patience: end the search after so many trials" in (find.__doc__ or "")
    assert find(patience=2).patience == 2
    ready = prepare(arguments(**place, budget="5%", space="lora", patience=4, max_length=24))
    assert ready.manifest()["arguments"]["patience"] == 4
    assert "patience" in changeable(arguments)


def test_a_surface_is_attacked(take: Import) -> None:
    module = take("surface")
    surface = Surface("quantities", module.hostile, module.FIRST)
    with bench() as place:
        found = place.run(cases({surface.name: surface}, 50))
        assert [str(finding) for finding in found] == []
        assert place.tried[surface.name] == 51
        assert 0 < place.returned[surface.name] < 51
