"""One declaration for one option: everything that is said of an option elsewhere follows from it."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st
from support.saved_model import save_backbone, write_reviews

import autopeft.report.html.words as words
from autopeft.arguments import Option, command_line
from autopeft.arguments.call import signature_of
from autopeft.cli.declared import Given, declared, typed_command
from autopeft.effort import EFFORTS, parse_duration
from autopeft.errors import UsageError
from autopeft.report.html.load import read_run
from autopeft.runs.folder import RunFolder
from autopeft.search.api import plan, search
from autopeft.search.core.goals import GOALS, OBJECTIVES
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.optimization.successive_halving import FIDELITIES
from autopeft.search.planning.arguments import SearchArguments, SearchCall
from autopeft.search.selection.baselines import BASELINE_KINDS
from autopeft.search.strategies.registry import DEFAULT, STRATEGIES
from autopeft.search.tracking.reporter import TRACKERS


class WithPatience(SearchArguments):
    """The one declaration."""

    patience: Annotated[
        int | None,
        Option(help="Trials without a better one.", panel="Search", least=1, after="trials", changeable=True),
    ] = None


def parsed(arguments: type[SearchArguments], argv: list[str]) -> dict[str, Any]:
    """What the command with these options makes of a command line."""
    found: dict[str, Any] = {}

    @declared(arguments)
    def command(given: Given) -> None:
        """Search."""
        found.update(given)

    app = typer.Typer(rich_markup_mode="rich")
    app.command(cls=typed_command(command))(command)
    typer.main.get_command(app).main(args=argv, prog_name="search", standalone_mode=False)
    return found


def test_a_new_option_is_in_the_reports_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SearchArguments", WithPatience)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    arguments = WithPatience(task="trec", budget="1%", patience=4).record()
    folder.write_json("manifest.json", {"task": "trec", "arguments": arguments})
    blocks = dict(words.reproduction(read_run(folder)))
    assert shlex.split(blocks["Search again"])[-2:] == ["--patience", "4"]
    assert "patience=4," in blocks["The same in Python"]


# --- the options there are ---


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model, data = save_backbone(tmp_path / "model"), write_reviews(tmp_path / "data.csv")
    named = {"text": "body", "label": "verdict"}
    return {
        "task": str(data),
        "model": str(model),
        "budget": "5%",
        "space": "lora",
        "max_length": 32,
        **named,
    }


@pytest.mark.parametrize(
    ("option", "registered"),
    [
        ("sampler", SAMPLERS),
        ("strategy", STRATEGIES.names()),
        ("effort", EFFORTS),
        ("fidelity", FIDELITIES),
        ("goal", GOALS),
        ("objective", OBJECTIVES),
        ("baselines", BASELINE_KINDS),
        ("log", TRACKERS),
    ],
)
def test_help_and_docstring_name_every_registered_choice(option: str, registered: Any) -> None:
    declared_ = SearchCall.declared()[option]
    explained = (search.__doc__ or "").split(f"\n    {option}: ")[1].split("\n    ")[0]
    for name in registered:
        assert name in declared_.filled(declared_.help)
        assert name in (search.__doc__ or "")
    assert explained


def test_the_default_strategy_is_the_registrys() -> None:
    assert SearchArguments.model_fields["strategy"].default == DEFAULT


def test_signatures_hold_for_editors_and_checkers() -> None:
    assert list(inspect.signature(search).parameters) == list(SearchCall.declared())
    shown = str(signature_of(SearchCall))
    for part in (
        "task: str | Path | Dataset | DatasetDict | DataFrame | Task = None",
        "trials: int | None = None",
    ):
        assert part in shown
    assert "resume" not in inspect.signature(plan).parameters


def test_a_call_that_is_wrong_in_several_ways_says_so_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        search(taks="sst2", budget="lots", trials="3", workers=-1)  # type: ignore[call-arg, arg-type]
    said = str(caught.value).splitlines()
    assert len(said) == 4
    assert any("'taks'" in line and "'task'" in line for line in said)
    assert any("trials='3'" in line for line in said)


def test_a_search_without_task_or_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="A search needs budget"):
        search(task="sst2")


# --- there and back ---

text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=12)
paths = text.filter(lambda value: str(Path(value)) == value)  # `a/` and `a` are one folder
counts = st.integers(1, 10**6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "task": text,
    "budget": st.sampled_from(["0.5%", "300k", "1.2M", "0.1%..1%"]),
    "model": text,
    "space": text,
    "effort": st.sampled_from(sorted(EFFORTS)),
    "trials": counts,
    "time": st.sampled_from(["90s", "30m", "2h", "1h30m"]),
    "strategy": st.sampled_from(STRATEGIES.names()),
    "sampler": st.sampled_from(sorted({*SAMPLERS} - {"nehvi"})),  # which needs BoTorch
    "fidelity": st.sampled_from(FIDELITIES),
    "goal": st.sampled_from(sorted(GOALS)),
    "objective": st.sampled_from(sorted(OBJECTIVES)),
    "warm_start": st.lists(text, max_size=3).map(tuple),
    "baselines": st.lists(st.sampled_from(BASELINE_KINDS), min_size=1, unique=True).map(",".join),
    "portfolio": st.booleans(),
    "fresh_baselines": st.booleans(),
    "steps": counts,
    "seed": st.integers(0, 2**31),
    "max_length": st.integers(4, 4096),
    "batch_size": counts,
    "micro_batch": counts,
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "final_precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "quantize": st.sampled_from(["int8", "int4"]),
    "memory_saving": st.booleans(),
    "learn_all": st.booleans(),
    "shortcuts": st.booleans(),
    "text": text,
    "text_pair": text,
    "label": text,
    "kind": st.sampled_from(["classification", "regression"]),
    "label_words": st.sampled_from(["bad,great", "negative=bad,positive=great", "%25,%2C,%3D"]),
    "template": st.sampled_from(["{text} It was {mask} .", "{{ {text} }}\nMood:", "{text_pair} ' {text}"]),
    "metric": st.sampled_from(["accuracy", "f1", "pearson"]),
    "class_weights": st.just("balanced") | st.lists(st.floats(0.01, 1e6), min_size=1, max_size=4).map(tuple),
    "drop_empty": st.booleans(),
    "stand_in": st.booleans(),
    "workers": st.integers(1, 64),
    "cpus_per_trial": st.integers(1, 64),
    "device": st.sampled_from(["auto", "cpu", "cuda", "xpu"]),
    "gpus_per_trial": st.sampled_from([0.0, 0.25, 0.5, 1.0, 4.0]),
    "processes_per_trial": st.sampled_from([1, 2, 4]),
    "address": text,
    "grace": st.floats(0.0, 1e6),
    "rank_by": st.sampled_from(["calibrated-loss", "loss", "score"]),
    "pooling": st.sampled_from(["auto", "own", "mean"]),
    "margin": st.floats(0.0, 100.0),
    "max_memory": st.sampled_from(["6GB", "500MB", "4GiB"]),
    "max_step_time": st.sampled_from(["200ms", "1.5s"]),
    "max_latency": st.sampled_from(["20ms", "0.5s"]),
    "max_file": st.sampled_from(["1MB", "300kB"]),
    "serve": st.none() | st.sampled_from(["peft", "merged", "vllm"]),
    "head_start": st.sampled_from(["probe", "random"]),
    "listen": st.ip_addresses().map(str),
    "log": st.sampled_from(["none"]),
    "train_rows": counts,
    "select_rows": counts,
    "test_rows": counts,
    "confirm": counts,
    "confirm_seeds": counts,
    "out": paths,
    "runs": paths,
}
any_arguments = st.fixed_dictionaries({}, optional=VALUES).map(lambda v: SearchArguments(**v))


def test_the_strategy_knows_every_option() -> None:
    assert set(VALUES) == set(SearchArguments.model_fields)


@given(any_arguments)
@settings(max_examples=200, deadline=None)
def test_arguments_to_manifest_and_back(arguments: SearchArguments) -> None:
    assert SearchArguments(**json.loads(json.dumps(arguments.record()))) == arguments


@given(any_arguments)
@settings(max_examples=100, deadline=None)
def test_arguments_to_command_line_and_back(arguments: SearchArguments) -> None:
    options = SearchArguments.declared()
    spoken = {k: v for k, v in SearchArguments.unlike_defaults(arguments.record()).items() if options[k].cli}
    line = shlex.split(shlex.join(command_line(SearchArguments, spoken)))
    again = SearchArguments(**parsed(SearchArguments, line))
    assert again == SearchArguments(**spoken)


@given(st.floats(1e-9, 1e6) | st.integers(1, 10**6))
@settings(max_examples=50, deadline=None)
def test_seconds_are_seconds_on_the_command_line_too(seconds: float) -> None:
    (_, spelt) = command_line(SearchArguments, {"time": seconds})
    assert parse_duration(spelt) == seconds
