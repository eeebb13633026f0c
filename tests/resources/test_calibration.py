"""Probes on a tiny model: what is measured, kept and predicted. Nothing here asserts a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.training import assert_same_state, encoded_task, snapshot, tiny_bert
from transformers import BertConfig, BertForSequenceClassification

from autopeft.assets.precision import PRECISIONS, keep_head_exact
from autopeft.backbones import spec_of_model
from autopeft.errors import UsageError
from autopeft.graph import build_graph, first_layer
from autopeft.hybrid import head_of
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Predictor, calibration
from autopeft.resources.calibration import Calibration, calibrate, fitted
from autopeft.resources.features import Shape, features_of, training_state
from autopeft.resources.measuring import Bench, Measured, typical_rows
from autopeft.resources.probes import Offer, base_probes, method_probes
from autopeft.training import TrainingPlan, metering

SHAPE = Shape(8, 10, 8)


def recipe(*items: object, at: object = "all") -> Recipe:
    return Recipe.from_dict({"layers": [{"at": at, "attach": list(items)}]})


def made_up(features: dict[str, float]) -> float:
    """Seconds of a machine that multiplies, and takes a while for each layer and call."""
    return sum(
        value * (1e-7 if name.endswith(("values", "products")) else 1e-2 if ":" not in name else 1e-4)
        for name, value in features.items()
    )


def test_costs_that_add_up_are_predicted_for_recipes_that_were_not_measured() -> None:
    spec, _ = spec_of_model(tiny_bert())
    hybrids = [
        recipe({"lora": {"rank": 3}}, {"serial_adapter": {"bottleneck": 6}}),
        recipe({"serial_adapter": {"bottleneck": 2}}, at="last 1"),
        recipe({"lora": {"rank": 2}}, {"p_tuning_v2": {"length": 3}}),
    ]
    sizes = [recipe({"lora": {"rank": 1}}), recipe({"lora": {"rank": 8}})]
    sizes += [recipe({"serial_adapter": {"bottleneck": b}}) for b in (1, 8)]
    sizes += [recipe({"p_tuning_v2": {"length": n}}) for n in (1, 8)]
    offers = [offer for one in sizes for offer in Offer.of(one)]
    probes = [*base_probes(spec), *method_probes(offers, spec)]
    graphs = [build_graph(probe, spec) for probe in probes]
    costs = [made_up(dict(features_of(g, SHAPE))) for g in graphs]
    measured = [Measured(c, 1.0 + 0.4 * c, None) for c in costs]
    found = fitted(graphs, measured, SHAPE, trunk=True, head=10, base=5)
    for hybrid in hybrids:
        graph = build_graph(hybrid, spec)
        assert found.predict_step(graph) == pytest.approx(made_up(dict(features_of(graph, SHAPE))), rel=0.2)
        assert found.predict_memory(graph) is None


def test_memory_is_what_trains_what_is_held_and_what_is_predicted() -> None:
    spec, _ = spec_of_model(tiny_bert())
    graphs = [build_graph(probe, spec) for probe in base_probes(spec)]
    found = fitted(graphs, [Measured(1.0, 1.0, 10**6)] * len(graphs), SHAPE, trunk=True, head=10, base=10**8)
    deep = found.predict_memory(graphs[-1])
    assert deep is not None
    assert deep == pytest.approx(10**8 + 10**6, rel=0.01)


def test_what_is_counted_and_was_not_measured_leaves_the_others_alone() -> None:
    """A ranking that was kept from before takes no memory, and its recipe must not count as one of none."""
    spec, _ = spec_of_model(tiny_bert())
    probes = base_probes(spec)
    mask = Recipe.from_dict({"model": [{"fish_mask": {"keep": 9}}]})
    graphs = [build_graph(probe, spec) for probe in (*probes, mask)]
    counted = training_state(graphs[-1], 0)
    took = counted // 2
    measured = [Measured(1.0, 1.0, took + training_state(g, 0, interim=False)) for g in graphs]
    found = fitted(graphs, measured, SHAPE, trunk=True, head=0, base=0)
    assert found.predict_memory(graphs[0]) == pytest.approx(took, rel=0.25)
    assert found.predict_memory(graphs[-1]) == pytest.approx(took + counted, rel=0.25), "another has to rank"


def test_what_trains_is_there_once_before_it_is_measured() -> None:
    """What training adds to it is its gradient and its moments."""
    spec, _ = spec_of_model(tiny_bert())
    graphs = [build_graph(probe, spec) for probe in base_probes(spec)]
    measured = [Measured(1.0, 1.0, 5_000 + training_state(g, 10) * 3 // 4) for g in graphs]
    found = fitted(graphs, measured, SHAPE, trunk=True, head=10, base=10**6)
    for graph in graphs:
        assert found.predict_memory(graph) == pytest.approx(10**6 + 5_000 + training_state(graph, 10))


def test_a_recipe_of_which_all_is_counted_leaves_the_others_alone() -> None:
    spec, _ = spec_of_model(tiny_bert())
    graphs = [build_graph(probe, spec) for probe in base_probes(spec)]
    took = 10**6
    measured = [Measured(1.0, 1.0, took)] * len(graphs)
    known = fitted(graphs, measured, SHAPE, trunk=True, head=10, base=0)
    whole = build_graph(Recipe.from_dict({"model": ["bitfit"]}), spec)
    spoilt = [*measured, Measured(1.0, 1.0, training_state(whole, 10) // 2)]
    found = fitted([*graphs, whole], spoilt, SHAPE, trunk=True, head=10, base=0)
    for graph in graphs:
        assert found.predict_memory(graph) == pytest.approx(known.predict_memory(graph))


@pytest.mark.slow
def test_what_a_method_has_for_a_while_is_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model of MiniLM's size, from probes that none of these methods is among."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(**sizes, num_labels=2)).eval()
    spec, _ = spec_of_model(model)
    bench = Bench(model, encoded_task(64, 8), TrainingPlan(steps=4, batch_size=16, device="cpu"))
    offers = Offer.of(Recipe.from_dict({"model": [{"pafi": {"keep": "0.5%"}}]}))
    probes = [*base_probes(spec), *method_probes(offers, spec)]
    head = sum(p.numel() for p in head_of(model).values())
    forecast = calibrate(bench, spec, probes, head=head, backbone="x")
    wanted = [recipe({"lora": {"rank": 16}}), recipe({"far": {"retention": 0.02}})]
    for name, more in (
        ("u_diff_pruning", {}),
        ("lt_sft", {}),
        ("fish_mask", {"samples": 16}),
        ("child_tuning_d", {"rest": "frozen"}),
    ):
        wanted.append(Recipe.from_dict({"name": name, "model": [{name: {"keep": "0.5%", **more}}]}))
    said, was = [], []
    for one in wanted:
        said.append(forecast.predict_memory(build_graph(one, spec)))
        was.append(forecast.base + (bench(one).memory or 0))
    assert said == pytest.approx(was, rel=0.2)
    assert max(was) > 1.5 * was[0]


def test_features_tell_what_runs() -> None:
    spec, _ = spec_of_model(tiny_bert())
    layers = spec.stacks[0].layers
    low = build_graph(recipe({"lora": {"rank": 2}}), spec)
    high = build_graph(recipe({"lora": {"rank": 2}}, at="last 1"), spec)
    head = build_graph(Recipe(name="head"), spec)
    assert [first_layer(g) for g in (low, high, head)] == [0, layers - 1, layers]
    assert features_of(low, SHAPE)["layers"] == layers - 1
    assert features_of(high, SHAPE)["layers"] == 0
    assert "last" not in features_of(head, SHAPE)
    assert features_of(high, SHAPE, trunk=False)["layers below"] == layers - 1
    prompt = build_graph(Recipe.from_dict({"model": [{"prompt_tuning": {"length": 5}}]}), spec)
    assert features_of(prompt, SHAPE)["layers"] == pytest.approx(1.5 * (layers - 1))
    for length, at in ((5, "all"), (5 * layers, 0)):
        deep = build_graph(recipe({"deep_prompt": {"length": length}}, at=at), spec)
        assert features_of(deep, SHAPE)["layers"] == pytest.approx(1.5 * (layers - 1))
    gate = build_graph(recipe({"gate": [{"lora": {"rank": 2}}, "ia3"]}), spec)
    assert features_of(gate, SHAPE)["last, all positions"] == 1
    assert "composition/gate:places" in features_of(gate, SHAPE)


def test_entries_of_a_narrow_last_layer_meet_the_read_positions_behind_its_keys_and_values() -> None:
    spec, _ = spec_of_model(tiny_bert())
    rows, tokens = SHAPE.rows, SHAPE.rows * SHAPE.tokens
    width = 2 * next(s.in_features for s in spec.sites if s.name == "q")
    at_last = lambda *sites: recipe({"lora": {"rank": 1, "sites": list(sites)}}, at="last 1")  # noqa: E731
    found = features_of(build_graph(at_last("q", "o", "k", "v"), spec), SHAPE)
    assert found["hook/lora:values"] == width * (2 * rows + 2 * tokens)
    assert found["hook/lora:products"] == width * (2 * rows + 2 * tokens), "of rank 1"
    whole = features_of(build_graph(at_last("q", "o"), spec), SHAPE, inference=True)
    assert whole["hook/lora:values"] == width * 2 * tokens
    first = recipe({"lora": {"rank": 1, "sites": ["q", "o"]}}, at=[0])
    assert features_of(build_graph(first, spec), SHAPE)["hook/lora:values"] == width * 2 * tokens
    gate = recipe({"gate": [{"lora": {"rank": 1, "sites": ["q", "o"]}}, "ia3"]}, at="last 1")
    assert features_of(build_graph(gate, spec), SHAPE)["hook/lora:values"] == width * 2 * tokens


def test_products_count_numbers_that_are_drawn_and_do_not_train() -> None:
    spec, _ = spec_of_model(tiny_bert())
    products = [
        features_of(build_graph(recipe({"vera": {"rank": rank, "sites": ["q"]}}, at=[0]), spec), SHAPE)[
            "hook/vera:products"
        ]
        for rank in (16, 64)
    ]
    assert products[1] == 4 * products[0]
    drawn = 16 * 2 * next(s.in_features for s in spec.sites if s.name == "q")
    assert products[0] == SHAPE.rows * SHAPE.tokens * drawn


def test_probes_are_measured_once_and_the_model_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    model, data = tiny_bert(), encoded_task(24, 8)
    spec, _ = spec_of_model(model)
    before = snapshot(model)
    bench = Bench(model, data, TrainingPlan(steps=5, batch_size=4, device="cpu"), steps=2)
    offers = Offer.of(recipe({"serial_adapter": {"bottleneck": 4}}, "ia3"))
    probes = [*base_probes(spec), *method_probes(offers, spec)]
    said: list[str] = []
    first = calibrate(bench, spec, probes, head=10, backbone="x", notify=said.append)
    assert_same_state(model, before)
    assert f"Measuring {len({build_graph(p, spec).hash() for p in probes})} small recipes" in said[0]
    again = calibrate(bench, spec, probes, head=10, backbone="x", notify=said.append)
    assert len([line for line in said if line.startswith("Measuring")]) == 1
    assert again.step_time == first.step_time
    assert "in fp32 on this machine" in said[0]
    other = calibrate(bench, spec, probes[:2], head=10, backbone="y", notify=said.append)
    assert len([line for line in said if line.startswith("Measuring")]) == 2
    assert other.base
    damaged = next(p for p in (tmp_path / "resources").iterdir() if "step_time" in p.read_text())
    damaged.write_text("{not")
    calibrate(bench, spec, probes, head=10, backbone="x", notify=said.append)
    graph = build_graph(probes[-1], spec)
    found = Predictor(Limits(step_time=1.0), {}, first)(graph)
    assert found.step_time is not None
    assert found.step_time > 0
    assert found.latency is not None


def test_memory_that_is_limited_has_to_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    model = tiny_bert()
    spec, _ = spec_of_model(model)
    bench = Bench(model, encoded_task(24, 8), TrainingPlan(steps=5, batch_size=4, device="cpu"), steps=2)
    probes = base_probes(spec)[:2]
    told: list[str] = []

    def measured(*, memory: bool) -> Calibration:
        limit = 1e12 if memory else None
        return calibrate(bench, spec, probes, head=10, backbone="x", memory=limit, notify=told.append)

    with monkeypatch.context() as patch:
        patch.setattr(metering, "_CLEAR", tmp_path / "missing" / "clear_refs")
        with pytest.raises(UsageError, match=r"a training on the CPU takes: .*Leave max_memory"):
            measured(memory=True)
        assert told == [], "it is refused before anything is measured"
        assert measured(memory=False).memory is None
        with pytest.raises(UsageError, match="max_memory"):
            measured(memory=True)
    if bench.measures_memory:
        assert measured(memory=True).memory is not None, "what was kept without its memory is measured again"
        before = len(told)
        assert measured(memory=True).memory is not None
        assert len(told) == before


def test_what_a_process_holds_of_the_users_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(Bench, "measures_memory", True)
    model = tiny_bert()
    spec, _ = spec_of_model(model)
    bench = Bench(model, encoded_task(24, 8), TrainingPlan(steps=5, batch_size=4, device="cpu"), steps=2)
    monkeypatch.setattr(Bench, "__call__", lambda self, recipe: Measured(1.0, 1.0, 1000))

    def base(held: int, limit: float | None = 1e12) -> int:
        monkeypatch.setattr(Bench, "base", lambda self: held)
        return calibrate(bench, spec, base_probes(spec)[:2], head=10, backbone="x", memory=limit).base

    assert [base(3_000), base(600), base(590), base(3_000), base(5, None)] == [3_000, 600, 600, 600, 600]
    with pytest.raises(UsageError, match=r"max_memory=500B is less than .* \(600B here\): no recipe helps"):
        base(600, 500.0)


def test_kept_measurements_are_of_the_same_loss() -> None:
    model, data = tiny_bert(), encoded_task(24, 8)
    plan = TrainingPlan(steps=5, batch_size=4, device="cpu")
    told = {calibration._identity(Bench(model, data, p), "x") for p in (plan, replace(plan, learn_all=True))}
    other = replace(data, task=replace(data.task, kind="multi_label"))
    assert len({*told, calibration._identity(Bench(model, other, plan), "x")}) == 3


def test_it_says_which_precision_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    plan = TrainingPlan(steps=5, batch_size=4, device="cpu")
    for name, dtype in PRECISIONS.items():
        model = tiny_bert()
        model.base_model.to(dtype)
        keep_head_exact(model)
        bench, (spec, _) = Bench(model, encoded_task(24, 8), plan, steps=2), spec_of_model(model)
        found = calibrate(bench, spec, base_probes(spec)[:2], head=10, backbone="x")
        assert (bench.precision, found.precision) == (name, name)


def test_the_typical_batch_has_the_median_length() -> None:
    split = encoded_task(40, 8).train
    rows = typical_rows(split, 4)
    part = split.take(rows)
    assert len(part) == 4
    assert list(part.lengths) == list(split.lengths[rows])
    batch, same = part.collate(range(4)), split.collate(rows)
    assert all((batch[name] == same[name]).all() for name in same)
