from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from support.tiny import tiny_config
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.report.html.drawing import draw_graph

SVG = "{http://www.w3.org/2000/svg}"


def bert(depth: int, /, **recipe: Any) -> CompositionGraph:
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64
    )
    return build_graph(Recipe.from_dict(recipe), spec_of(config))


def rows_of(svg: str) -> dict[tuple[str, str], ET.Element]:
    rows = [g for g in ET.fromstring(svg) if g.get("class") == "row"]
    return {(g.get("data-stack", ""), g.get("data-layer", "")): g for g in rows}


def texts(row: ET.Element, kind: str) -> list[str]:
    return [t.text or "" for t in row.iter(f"{SVG}text") if t.get("class") == kind]


def test_every_layer_has_a_row_with_its_sites_and_modules() -> None:
    graph = bert(
        4,
        layers=[
            {"at": [1, 3], "attach": [{"lora": {"sites": ["q", "v"], "rank": 8}}]},
            {"at": [3], "attach": [{"serial_adapter": {"bottleneck": 6}}]},
        ],
    )
    rows = rows_of(draw_graph(graph))
    assert [layer for stack, layer in rows if layer] == ["0", "1", "2", "3"]
    assert texts(rows["encoder", "0"], "site-name") == []
    assert texts(rows["encoder", "1"], "site-name") == ["q", "v"]
    assert texts(rows["encoder", "1"], "chip-name") == ["lora · rank 8"] * 2
    # A serial adapter sits behind both regions of a layer unless it is told otherwise.
    assert "serial_adapter · bottleneck 6" in texts(rows["encoder", "3"], "chip-name")


def test_compositions_are_frames_around_their_children() -> None:
    inner = {"chain": [{"lora": {"sites": ["q"], "rank": 2}}, {"ia3": {"sites": ["q"]}}]}
    graph = bert(1, layers=[{"attach": [{"sum": [inner, {"lora": {"sites": ["q"], "rank": 1}}]}]}])
    row = rows_of(draw_graph(graph))["encoder", "0"]
    assert texts(row, "composition-name") == ["sum", "chain"]
    assert texts(row, "chip-name") == ["1. lora · rank 2", "2. ia3", "lora · rank 1"]
    frames = [r for r in row.iter(f"{SVG}rect") if r.get("class") == "composition"]
    outer, nested = (
        [float(f.get(k, "0")) for k in ("x", "y", "width", "height")] for f in (frames[0], frames[1])
    )
    assert outer[0] < nested[0]
    assert outer[1] < nested[1]
    assert nested[0] + nested[2] < outer[0] + outer[2]
    assert nested[1] + nested[3] < outer[1] + outer[3]


def test_what_belongs_to_the_model_is_drawn() -> None:
    rows = rows_of(draw_graph(bert(2, model=[{"prompt_tuning": {"length": 3}}, "bitfit"])))
    assert texts(rows["encoder", ""], "chip-name") == ["prompt_tuning · length 3"]
    assert texts(rows["", ""], "chip-name") == ["bitfit"]


def test_an_encoder_and_a_decoder_have_rows_of_their_own() -> None:
    graph = build_graph(Recipe.from_dict({"layers": [{"attach": ["lora"]}]}), spec_of(tiny_config("t5")))
    rows = rows_of(draw_graph(graph))
    assert {stack for stack, layer in rows if layer} == {"encoder", "decoder"}


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = [r for r in ET.fromstring(svg).iter(f"{SVG}rect") if r.get("class") != "composition"]
    return [tuple(float(r.get(k, "0")) for k in ("x", "y", "width", "height")) for r in found]  # type: ignore[misc]


@pytest.mark.parametrize("layers", [1, 6, 48])
def test_nothing_overlaps_and_everything_lies_inside(layers: int) -> None:
    gate = {"gate": [{"prefix_tuning": {"length": 3}}, {"serial_adapter": {"bottleneck": 4}}]}
    graph = bert(
        layers,
        layers=[{"attach": [{"lora": {"rank": 8}}, "ia3", gate]}, {"at": "last 1", "attach": ["lora"]}],
        model=[{"prompt_tuning": {"length": 2}}, "bitfit"],
    )
    svg = draw_graph(graph)
    width, height = (float(ET.fromstring(svg).get(k, "0")) for k in ("width", "height"))
    found = boxes(svg)
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in found)
    for i, (x, y, w, h) in enumerate(found):
        for other_x, other_y, other_w, other_h in found[:i]:
            apart = x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
            assert apart
    # Sizes do not shrink with depth: a row of 48 is as tall as a row of 6.
    assert len(rows_of(svg)) == layers + 2
    assert min(h for _, _, _, h in found) >= 20


def test_names_of_strangers_are_escaped_and_cut() -> None:
    name = "x" * 60
    graph = bert(1, layers=[{"attach": [{"lora": {"sites": ["q"]}, "as": name}]}])
    entry = graph.entries[name]
    object.__setattr__(entry, "name", f"<script>alert(1)</script>{name}")
    svg = draw_graph(graph)
    assert "<script" not in svg
    row = rows_of(svg)["encoder", "0"]
    (label,) = texts(row, "chip-name")
    assert label.startswith("<script>alert(1)</script>")
    assert label.endswith("…")
    assert len(label) < 40
    titles = [t.text or "" for t in row.iter(f"{SVG}title")]
    assert any(name in t for t in titles)


def test_colours_are_named_by_the_style_sheet_alone() -> None:
    svg = draw_graph(bert(2, layers=[{"attach": ["lora", "ia3"]}]))
    assert re.search(r'\b(fill|stroke|style)="', svg) is None
    assert {"chip c0", "chip c1"} <= set(re.findall(r'class="(chip c\d)"', svg))


def test_an_entry_with_a_name_of_its_own_says_it() -> None:
    items = [{"lora": {"sites": ["q"], "rank": 2}, "as": "mine"}, {"ia3": {"sites": ["k"]}}]
    row = rows_of(draw_graph(bert(1, layers=[{"attach": items}])))["encoder", "0"]
    assert texts(row, "chip-name") == ["mine: lora · rank 2", "ia3"]
