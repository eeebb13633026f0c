from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_config, tiny_model

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid import attach, pinned
from autopeft.recipe import Recipe
from autopeft.report.recipe import (
    counts_sheet,
    describe_graph,
    entries_sheet,
    inputs_sheet,
    layers_sheet,
    ranges,
)


def graph_of(name: str, **sections: Any) -> CompositionGraph:
    return build_graph(Recipe.from_dict({"name": "x", **sections}), spec_of(tiny_config(name)))


@pytest.mark.parametrize(
    ("layers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([2, 0, 1, 1], "0-2")]
)
def test_ranges(layers: list[int], text: str) -> None:
    assert ranges(layers) == text


def test_inputs_are_listed_with_their_state_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attach(tiny_model("bert"), Recipe.from_dict({"layers": [{"attach": ["lora"]}]})).save("left")
    inputs = {"a": "left", "b": {"folder": "left", "sha256": "0" * 64}, "c": {"run": "gone"}}
    items = [{"lora": {}, "from": name} for name in inputs]
    graph = graph_of("bert", inputs=inputs, layers=[{"at": [i], "attach": [x]} for i, x in enumerate(items)])
    first, altered, missing = inputs_sheet(graph.recipe).rows
    sha256 = pinned(
        Recipe.from_dict({"inputs": {"a": "left"}, "model": [], "layers": [{"attach": items[:1]}]})
    )
    assert first == ("a", "'left'", "there", sha256.inputs["a"].sha256)
    assert altered[1:2] + altered[3:] == ("'left'", "0" * 64)
    assert "altered" in altered[2]
    assert missing[1] == "the run 'gone'"
    assert "missing" in missing[2]
    assert entries_sheet(graph).rows[0][4] == "defaults, from a"
    assert describe_graph(graph, count(graph, graph.spec, head=0))["entries"][2]["from"] == ["c"]


def test_equal_neighbours_share_a_row_and_others_do_not() -> None:
    blocks = [{"attach": ["lora"]}, {"at": [1], "attach": [{"ia3": {"sites": ["k"]}}]}]
    rows = layers_sheet(graph_of("bert", layers=blocks)).rows
    assert [row[1] for row in rows] == ["0", "1", "2"]
    assert "k: ia3" in rows[1][2]
    assert rows[0][2] == rows[2][2] == "q: lora   v: lora"
    assert [r[1] for r in layers_sheet(graph_of("bert", layers=[{"attach": ["lora"]}])).rows] == ["0-2"]


def test_both_stacks_and_the_whole_model_have_rows() -> None:
    graph = graph_of("t5", layers=[{"attach": ["prefix_tuning"]}], model=[{"prompt_tuning": {"length": 2}}])
    rows = layers_sheet(graph).rows
    assert [row[:2] for row in rows] == [("encoder", "–"), ("encoder", "0-2"), ("decoder", "0-2")]
    assert "cross_attention: prefix_tuning" in rows[2][2]


def test_compositions_are_written_where_they_act() -> None:
    nested: dict[str, Any] = {"gate": ["lora", {"chain": ["serial_adapter", "parallel_adapter"]}]}
    graph = graph_of("bert", layers=[{"attach": [nested]}])
    assert "q: gate(lora)" in layers_sheet(graph).rows[0][2]
    assert "ffn: gate(chain(serial_adapter, parallel_adapter))" in layers_sheet(graph).rows[0][2]


def test_the_entries_add_up_to_the_total() -> None:
    """Gates have parameters of their own; a table that left them out would not add up."""
    graph = graph_of("bert", layers=[{"attach": [{"gate": ["lora", "prefix_tuning"]}]}])
    shown = sum(int(row[5].replace(",", "")) for row in entries_sheet(graph).rows)
    assert shown == graph.parameter_count().deployed
    assert any(row[1] == "gate" for row in entries_sheet(graph).rows)


def test_the_four_counts_and_what_they_mean() -> None:
    graph = graph_of("bert", layers=[{"attach": ["lora"]}])
    counts = count(graph, graph.spec, head=66)
    rows = {row[0]: row for row in counts_sheet(counts, budget="1%").rows}
    assert rows["deployed"][1] == f"{counts.deployed:,}"
    assert rows["head"][1] == "66"
    assert rows["with modules"][1] == f"{counts.backbone + counts.deployed:,}"
    assert counts_sheet(counts, budget="1%").notes == ("Budget: 1%.",)


def test_a_recipe_of_the_head_alone_says_so() -> None:
    sheet = entries_sheet(graph_of("bert"))
    assert sheet.rows == ()
    assert "head alone" in sheet.notes[0]


def test_the_description_names_every_site() -> None:
    graph = graph_of("bert", layers=[{"at": [2], "attach": ["lora"]}])
    data = describe_graph(graph, count(graph, graph.spec))
    assert data["entries"][0]["sites"] == ["encoder.2.q", "encoder.2.v"]
    assert data["entries"][0]["config"]["rank"] == 8
