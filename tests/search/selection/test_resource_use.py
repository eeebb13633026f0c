"""What winner and baselines take, in words."""

from __future__ import annotations

from dataclasses import replace

from support.tiny import tiny_model

from autopeft.backbones import spec_of
from autopeft.resources import Limits, Resources
from autopeft.search.selection.resource_use import ResourceUse, resource_uses

LIMITS = Limits(memory=2e9, file=1e6, serve="merged")


def test_prediction_and_measurement_stand_side_by_side_with_the_deviation() -> None:
    one = ResourceUse("winner", Resources(memory=1e9, file=5e5), Resources(memory=1.1e9, file=5e5))
    said = one.sentence(LIMITS)
    assert "1GB predicted, 1.1GB measured, +10%" in said
    assert "500kB predicted, 500kB measured, +0%" in said
    assert "can be served as merged" in said
    assert "over the limit" not in said


def test_what_is_over_a_limit_once_measured_is_said() -> None:
    one = ResourceUse("winner", Resources(memory=1.9e9), Resources(memory=2.5e9))
    assert "over the limit" in one.sentence(LIMITS)
    assert "2.5GB (at most 2GB)" in one.sentence(LIMITS)


def test_scores_of_an_earlier_search_were_not_measured_here() -> None:
    one = ResourceUse("LoRA", Resources(memory=1e9, unservable="lora cannot"), Resources())
    assert "1GB predicted, not measured" in one.sentence(LIMITS)
    assert "cannot be served as merged: lora cannot" in one.sentence(LIMITS)
    assert one.sentence(replace(LIMITS, serve="merged")).count("lora cannot") == 1
    assert one.sentence(Limits()) == ""


def test_predictions_come_from_the_graph_and_no_single_recipe_has_none() -> None:
    spec = spec_of(tiny_model("bert").config)
    recipe = {"autopeft": 2, "layers": [{"attach": ["ia3"]}]}
    found = resource_uses(
        [("winner", recipe, {"memory": 5.0}), ("broken", {"layers": "?"}, {}), ("random hybrids", {}, {})],
        spec,
        lambda graph: Resources(file=float(graph.parameter_count().deployed)),
    )
    assert found[0].predicted.file
    assert found[0].measured.memory == 5.0
    assert found[1].predicted == found[2].predicted == Resources()
