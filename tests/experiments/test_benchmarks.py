"""The benchmarks' own arithmetic, and that both sides of a comparison train the same thing."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone
from support.tiny import VOCABULARY
from transformers import BertConfig, BertForSequenceClassification

from autopeft import Recipe, count, spec_of
from autopeft.hybrid import attach

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"
Import = Callable[[str], Any]


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).eval()


# Order, statistics, resuming
# ---------------------------------------------------------------------------------------------------------


def test_every_side_stands_at_every_place_once(load: Import) -> None:
    common = load("common")
    orders = [common.rotated(["a", "b", "c"], repeat) for repeat in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert common.rotated(["a", "b", "c"], 3) == orders[0]
    assert common.rotated([], 2) == []


def test_sides_take_turns(load: Import) -> None:
    common = load("common")
    calls: list[str] = []

    def side(name: str) -> Callable[[], int]:
        def run() -> int:
            calls.append(name)
            return len(calls)

        return run

    told: list[tuple[str, int, int]] = []
    found = common.interleave(
        {"a": side("a"), "b": side("b")}, 3, lambda name, repeat, result: told.append((name, repeat, result))
    )
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert told[2] == ("b", 1, 3)
    with pytest.raises(ValueError, match="repeats=0"):
        common.interleave({"a": side("a")}, 0)


def test_median_and_range(load: Import) -> None:
    common = load("common")
    found = common.summarise([3.0, 1.0, 8.0, 2.0])
    assert found.to_dict() == {"median": 2.5, "low": 1.0, "high": 8.0, "count": 4}
    assert found.text() == "2.5 (1.0–8.0)"
    assert common.summarise([1234.5]).text(2) == "1,234.50"
    # Repeat by repeat: the ratio of the medians would be 2.
    assert common.ratios([2.0, 4.0, 9.0], [1.0, 4.0, 2.0]).median == 2.0
    assert common.ratios([2.0, 4.0, 9.0], [1.0, 4.0, 2.0]).high == 4.5
    with pytest.raises(ValueError, match="no values"):
        common.summarise([])
    with pytest.raises(ValueError):
        common.ratios([1.0, 2.0], [1.0])


def test_an_interrupted_run_goes_on(load: Import, tmp_path: Path) -> None:
    balance_of, path = load("common").Balance, tmp_path / "results" / "x.jsonl"
    balance = balance_of(path)
    balance.add("a", {"side": "ours", "cpu": 1.0})
    balance.add("b", {"side": "dynamic", "cpu": 2.0})
    with path.open("a") as file:
        file.write('{"key": "c", "cpu": 3.')  # killed while writing
    again = balance_of(path)
    assert "a" in again
    assert "c" not in again
    again.add("c", {"side": "ours", "cpu": 4.0})
    again.add("a", {"side": "ours", "cpu": 5.0})
    third = balance_of(path)
    assert {key: row["cpu"] for key, row in third.rows.items()} == {"a": 5.0, "b": 2.0, "c": 4.0}
    third.forget(lambda row: row["side"] == "ours")
    assert list(balance_of(path).rows) == ["b"]
    assert not balance_of(path, fresh=True).rows
    assert not path.exists()


def test_results_name_what_they_depend_on(load: Import, tmp_path: Path) -> None:
    load("common").write_json(tmp_path / "deep" / "x.json", {"figure": 1})
    found = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert found["figure"] == 1
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert found["environment"]["cpu"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_the_first_steps_are_left_out(load: Import) -> None:
    run = load("step").Run.of(10.0, [11.0, 11.5, 11.75, 11.875], 2, 0.7)
    assert run.ms == [250.0, 125.0]
    assert run.mean == 187.5
    assert run.seconds == 1.875


# The same recipes on both sides
# ---------------------------------------------------------------------------------------------------------


def _on(item: Any, at: str = "1-2", **more: Any) -> Recipe:
    return Recipe.from_dict({"name": "x", "layers": [{"at": at, "attach": [item]}], **more})


def test_the_draw_is_fixed_and_fits(load: Import) -> None:
    draws = load("draws")
    spec = spec_of(BertConfig(vocab_size=3000, hidden_size=96, num_hidden_layers=6, intermediate_size=384))
    first, second = (draws.draw(8, "2%", spec) for _ in range(2))
    assert [d.recipe for d in first] == [d.recipe for d in second]
    assert len({d.recipe.hash() for d in first}) == 8
    assert max(d.counts.deployed for d in first) <= 0.02 * spec.parameters
    assert [d.recipe for d in draws.draw(3, "2%", spec)] == [d.recipe for d in first[:3]]


@pytest.mark.parametrize(
    ("recipe", "k"),
    [
        (_on("lora"), 1),
        (_on("prefix_tuning", at="last 1"), 2),
        (_on("lora", model=[{"prompt_tuning": {"length": 2}}]), 0),
        (Recipe.from_dict({"name": "x", "model": ["bitfit"]}), 0),
        (Recipe.from_dict({"name": "x"}), 3),
    ],
)
def test_the_lowest_layer_that_a_recipe_alters(load: Import, recipe: Recipe, k: int) -> None:
    assert load("draws").lowest_layer(recipe, spec_of(tiny_bert().config)) == k


@pytest.mark.parametrize(
    "recipe",
    [
        _on({"lora": {"sites": ["q", "v"], "rank": 3}}),
        _on({"lora": {"sites": ["o", "up", "down"], "rank": 2, "alpha": 5.0}}, at="0-1"),
        _on({"dora": {"sites": ["q", "down"], "rank": 2}}),
        _on("ia3"),
        Recipe.from_dict({"name": "x", "model": [{"prompt_tuning": {"length": 5}}]}),
    ],
    ids=["lora", "lora-on-outputs", "dora", "ia3", "prompt"],
)
def test_peft_trains_as_many_parameters_as_we_do(load: Import, recipe: Recipe) -> None:
    model = tiny_bert()
    spec = spec_of(model.config)
    words = load("draws").peft_words(recipe, spec)
    wrapped = load("obvious")._say_in_peft(model, words)
    modules = [n for n, p in wrapped.named_parameters() if p.requires_grad and "modules_to_save" not in n]
    trained = sum(p.numel() for n, p in wrapped.named_parameters() if n in modules)
    assert trained == count(recipe, spec).deployed


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.from_dict({"name": "x", "layers": [{"attach": ["lora", "ia3"]}]}),
        _on({"gate": ["lora"]}),
        _on("serial_adapter"),
        _on({"lora": {"rank_stabilized": True}}),
        _on("lora", training={"policies": ["lora_plus"]}),
        Recipe.from_dict({"name": "x", "model": ["bitfit"]}),
    ],
)
def test_what_peft_cannot_say(load: Import, recipe: Recipe) -> None:
    assert load("draws").peft_words(recipe, spec_of(tiny_bert().config)) is None


def test_learning_rates_are_those_of_the_recipe(load: Import) -> None:
    rate_of = load("draws").rate_of
    recipe = _on("lora", training={"learning_rate": 0.1, "groups": {"lora": {"learning_rate": 0.2}}})
    assert rate_of(recipe, "lora") == 0.2
    assert rate_of(recipe, "head") == 0.1


def test_the_hand_injected_adapter_is_ours(load: Import) -> None:
    recipe = _on({"serial_adapter": {"bottleneck": 4}})
    ids = torch.randint(0, VOCABULARY, (3, 7))
    with torch.no_grad():
        model = tiny_bert()
        with attach(model, recipe, seed=1) as hybrid:
            for parameter in hybrid.modules["serial_adapter"].parameters():
                parameter.normal_(std=0.5)
            ours = model(ids).logits
            expected = count(recipe, spec_of(model.config)).deployed
            children = {site.layer: hybrid.modules["serial_adapter"][site] for site in hybrid.graph.sites()}
        theirs = load("obvious").inject_adapters(tiny_bert(), (1, 2), 4)
        trained = [n for n, p in theirs.named_parameters() if p.requires_grad]
        for layer, child in children.items():
            output = theirs.bert.encoder.layer[layer].output
            weights = [p for p in child.parameters() if p.dim() == 2]
            biases = [p for p in child.parameters() if p.dim() == 1]
            for linear, weight, bias in zip((output.down, output.up), weights, biases, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-6)
        assert not torch.allclose(tiny_bert()(ids).logits, ours, atol=1e-2), "the adapter does nothing"
    adapters = [n for n in trained if not n.startswith("classifier.")]
    assert sum(theirs.get_parameter(n).numel() for n in adapters) == expected


# What the results come to
# ---------------------------------------------------------------------------------------------------------


def _row(k: int, ours: float, dynamic: float, error: str | None = None) -> dict[str, Any]:
    sides = {
        "ours": {"cpu": ours, "error": error, "outside": 0.1},
        "dynamic": {"cpu": dynamic, "error": None},
    }
    return {"k": k, "sides": sides}


def test_totals_leave_out_what_failed(load: Import) -> None:
    tables = load("search_tables")
    rows = [
        _row(0, 10.0, 30.0),
        _row(0, 20.0, 40.0),
        _row(3, 2.0, 20.0),
        _row(3, 1.0, 50.0, error="diverged"),
    ]
    found = tables.summarise_all(rows, [8.0])
    total = found["dynamic"]["total"]
    assert (total["recipes"], total["left_out"]) == (3, 1)
    assert total["times"] == pytest.approx(90 / 32)
    assert total["times_with_start"] == pytest.approx(90 / 40)
    assert found["dynamic"]["by_k"][0]["times"] == pytest.approx(70 / 30)
    assert found["dynamic"]["by_k"][3]["times"] == 10.0
    assert found["outside"]["share"]["high"] == pytest.approx(0.05)
    assert "pad" not in found


def test_the_clock_counts_calls_and_lets_go(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    home = SimpleNamespace(work=lambda n: sum(range(n)), other=lambda: 1)
    monkeypatch.setitem(sys.modules, "some_home", home)  # type: ignore[arg-type]
    before = home.work
    with load("search").clocked("some_home", "work") as spent:
        assert home.work(1_000_000) == 499_999_500_000
    assert spent["work"] > 0
    assert home.work is before
    with pytest.raises(AttributeError), load("search").clocked("some_home", "renamed"):
        pass


def test_profiles_credit_the_callers(load: Import) -> None:
    profile = load("step_profile")
    ours = str(Path(importlib.import_module("autopeft.hybrid").__file__ or ""))
    bert = str(Path(importlib.import_module("transformers").__file__ or ""))
    a, b = (ours, 5, "forward"), (bert, 9, "forward")
    table = {
        a: (4, 4, 0.2, 1.0, {}),
        b: (2, 2, 0.1, 0.5, {}),
        ("~", 0, "<built-in method torch._C._nn.linear>"): (
            6,
            6,
            0.5,
            0.5,
            {a: (4, 4, 0.4, 0.4), b: (2, 2, 0.1, 0.1)},
        ),
        ("~", 0, "<built-in method builtins.len>"): (4, 4, 0.1, 0.1, {a: (4, 4, 0.1, 0.1)}),
    }
    rows, called = profile.python_rows(SimpleNamespace(stats=table), 1.0, 2)
    assert [(r.group, round(r.share, 3), r.calls) for r in rows] == [
        ("autopeft", 0.3, 2),
        ("transformers", 0.1, 1),
    ]
    assert called == pytest.approx({"autopeft": 0.4, "transformers": 0.1})
    assert profile.group_of(torch.nn.__file__) == "torch"
    assert profile.group_of(json.__file__) == "other"


SMAPS = """\
7f00-7f10 rw-p 00000000 00:00 0
Size:               2048 kB
Pss:                1000 kB
Pss_Anon:           1000 kB
7f10-7f20 r-xp 00000000 08:01 42                         /usr/lib/libtorch.so.2
Pss:               90000 kB
7f20-7f30 r--s 00000000 08:01 43                         /cache/a model.safetensors
Pss:                  24 kB
VmFlags: rd mr
"""


def test_memory_is_counted_without_libraries(load: Import) -> None:
    assert load("startup_memory").pss(SMAPS) == 1024 << 10


# Whole runs, on a tiny model
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a tiny backbone and task."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(200):
            word = (GOOD if i % 2 else BAD)[i % 3]
            writer.writerow([f"{NEUTRAL[i % 5]} {'the ' * (i % 9)}{word} {'film ' * (i % 11)}", i % 2])
    model = save_backbone(tmp_path / "model")
    return ["--model", str(model), "--task", str(tmp_path / "data.csv")]


def _script(name: str, *options: str) -> str:
    """Run a script; what it told on standard error."""
    command = [sys.executable, str(FOLDER / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_steps_of_every_side(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--steps", "3", "--pad-steps", "2", "--pad", "24", "--repeats", "2", "--batch-size", "8"]
    sides = "ours,dynamic,pad,bare,grouped"
    _script(
        "step.py", *tiny, *options, "--sides", sides, "--ks", "0,2", "--rows", "64", "--max-length", "24",
        "--profile", "--profile-steps", "2", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert [row["k"] for row in found["steps"]] == [0, 2]
    for row in found["steps"]:
        assert list(row["sides"]) == sides.split(",")
        assert all(len(run["ms"]) == 3 for run in row["sides"]["dynamic"]["runs"])
        assert all(len(run["ms"]) == 2 for run in row["sides"]["pad"]["runs"])
    groups = found["profiles"][0]["groups"]
    assert {"autopeft", "torch", "transformers", "torch operators"} <= groups.keys()
    assert sum(groups.values()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_interrupted(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    options = [
        *tiny, "--recipes", "2", "--budget", "30%", "--steps", "2", "--rows", "64", "--select", "16",
        "--max-length", "24", "--pad", "24", "--pad-recipes", "1", "--out", str(out),
    ]  # fmt: skip
    assert _script("search.py", *options).count("CPU s  select") == 5
    first = json.loads(out.read_text())
    lines = out.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 6  # five trials and one start of our worker
    out.with_suffix(".jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert _script("search.py", *options).count("CPU s  select") == 1
    second = json.loads(out.read_text())
    kept = [row["sides"]["ours"]["cpu"] for row in first["recipes"]]
    assert [row["sides"]["ours"]["cpu"] for row in second["recipes"]][:1] == kept[:1]
    assert second["summary"]["dynamic"]["total"]["recipes"] == 2


@pytest.mark.slow
def test_startup_measures_every_part(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    _script(
        "startup.py", *tiny, "--repeats", "1", "--attach-repeats", "2", "--trials", "2",
        "--idle-seconds", "2", "--select", "8", "--max-length", "24", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    marks = {mark: summary["cpu"]["median"] for mark, summary in found["first"]["ours"].items()}
    assert marks["imports"] < marks["backbone and data"] < marks["first step"]
    assert found["ray"]["through_ray"]["cpu"] > 0
    assert found["memory"]["ours"]["loaded_and_bare"] > found["memory"]["ours"]["bare_and_bare"]
    assert set(found["attach"]) == {"lora", "prompt", "hybrid"}
