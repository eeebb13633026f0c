"""Drawings of the graph."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from support.tiny import tiny_config
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.graph import CompositionGraph, build_graph, draw_mermaid, draw_svg, draw_text
from autopeft.recipe import Recipe

BERT = spec_of(tiny_config("bert"))
SVG = "{http://www.w3.org/2000/svg}"


def graph(alias: str = "mine") -> CompositionGraph:
    return build_graph(
        Recipe.from_dict(
            {
                "autopeft": 2,
                "name": "x",
                "layers": [
                    {
                        "at": "0-1",
                        "attach": [
                            {"gate": [{"lora": {"rank": 3}, "as": alias}, {"prefix_tuning": {"length": 2}}]}
                        ],
                    },
                    {"at": [2], "attach": ["ia3"]},
                ],
                "model": [{"prompt_tuning": {"length": 4}}, {"fish_mask": {"keep": "1%"}}],
            }
        ),
        BERT,
    )


def test_text_draws_equal_layers_once() -> None:
    text = draw_text(graph())
    assert text.count("encoder · layers 0-1") == 1
    assert "encoder · layer 2" in text
    assert "gate(mine[rank 3])" in text
    assert "prompt_tuning[length 4]" in text
    assert "fish_mask[keep 1%]" in text


def test_an_empty_recipe_says_so() -> None:
    empty = build_graph(Recipe.from_dict({"autopeft": 2, "name": "x"}), BERT)
    assert draw_text(empty) == "(no modules: the head alone trains)"


def test_mermaid_quotes_every_label() -> None:
    drawn = draw_mermaid(graph())
    assert drawn.startswith("flowchart BT")
    assert "gate(mine&#91;rank 3&#93;)" in drawn
    assert drawn.count("subgraph") == drawn.count("\n  end")


def test_a_notebook_shows_the_drawing_in_its_own_colours() -> None:
    made = graph()._repr_html_()
    assert made.count("<svg") == 1
    assert "mine: lora · rank 3" in made
    assert "--graph-ink:currentColor" in made, "letters have the colour of the page, which may be dark"


def test_names_of_strangers_are_text_in_a_notebook() -> None:
    recipe = Recipe.from_dict({"name": "<script>alert(1)</script>", "layers": [{"attach": ["lora"]}]})
    built = build_graph(recipe, BERT)
    assert "<script" not in built._repr_html_()
    assert "&lt;script&gt;" in built._repr_html_()
    assert repr(built).startswith("CompositionGraph('<script>alert(1)</script>' on bert: lora, ")
    assert "\n" not in repr(built)
    assert " deployed (" in repr(built)


# SVG
# ------------------------------------------------------------------------------------------------------------


def bert(depth: int, /, **recipe: Any) -> CompositionGraph:
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64
    )
    return build_graph(Recipe.from_dict(recipe), spec_of(config))


def rows_of(svg: str) -> dict[str, ET.Element]:
    """By their titles."""
    rows = [g for g in ET.fromstring(svg) if g.get("class") == "row"]
    return {g.findtext(f"{SVG}title", ""): g for g in rows}


def texts(row: ET.Element, kind: str) -> list[str]:
    return [t.text or "" for t in row.iter(f"{SVG}text") if t.get("class") == kind]


def test_layers_have_rows_and_consecutive_ones_that_carry_the_same_have_one() -> None:
    lora = {"lora": {"sites": ["q", "v"], "rank": 8}}
    graph = bert(
        6,
        layers=[
            {"at": [2, 3, 5], "attach": [lora]},
            {"at": [5], "attach": [{"serial_adapter": {"bottleneck": 6}}]},
        ],
    )
    rows = rows_of(draw_svg(graph))
    assert list(rows) == [
        "encoder · layers 0-1: as before",
        "encoder · layers 2-3",
        "encoder · layer 4: as before",
        "encoder · layer 5",
    ]
    assert [texts(row, "label") for row in rows.values()] == [["0-1"], ["2-3"], ["4"], ["5"]]
    assert texts(rows["encoder · layer 4: as before"], "site-name") == []
    assert texts(rows["encoder · layers 2-3"], "site-name") == ["q", "v"]
    assert texts(rows["encoder · layers 2-3"], "chip-name") == ["lora · rank 8"] * 2
    # A serial adapter sits behind both regions of a layer unless it is told otherwise.
    assert "serial_adapter · bottleneck 6" in texts(rows["encoder · layer 5"], "chip-name")


def test_compositions_are_frames_around_their_children() -> None:
    inner = {"chain": [{"lora": {"sites": ["q"], "rank": 2}}, {"ia3": {"sites": ["q"]}}]}
    graph = bert(1, layers=[{"attach": [{"sum": [inner, {"lora": {"sites": ["q"], "rank": 1}}]}]}])
    row = rows_of(draw_svg(graph))["encoder · layer 0"]
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
    rows = rows_of(draw_svg(bert(2, model=[{"prompt_tuning": {"length": 3}}, "bitfit"])))
    assert texts(rows["encoder input"], "chip-name") == ["prompt_tuning · length 3"]
    assert texts(rows["backbone tensors"], "chip-name") == ["bitfit"]


def test_an_encoder_and_a_decoder_have_rows_of_their_own() -> None:
    graph = build_graph(Recipe.from_dict({"layers": [{"attach": ["lora"]}]}), spec_of(tiny_config("t5")))
    labels = [label for row in rows_of(draw_svg(graph)).values() for label in texts(row, "label")]
    assert [label.split()[0] for label in labels] == ["encoder", "decoder"]


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = [
        r
        for r in ET.fromstring(svg).iter(f"{SVG}rect")
        if r.get("class") in ("site", "chip c0", "chip c1", "chip c2")
    ]
    return [tuple(float(r.get(k, "0")) for k in ("x", "y", "width", "height")) for r in found]  # type: ignore[misc]


@pytest.mark.parametrize("layers", [1, 6, 48])
def test_nothing_overlaps_and_everything_lies_inside(layers: int) -> None:
    gate = {"gate": [{"prefix_tuning": {"length": 3}}, {"serial_adapter": {"bottleneck": 4}}]}
    graph = bert(
        layers,
        layers=[
            {"attach": [{"lora": {"rank": 8}}, "ia3", gate]},
            {"at": list(range(0, layers, 2)), "attach": ["lora"]},
        ],
        model=[{"prompt_tuning": {"length": 2}}, "bitfit"],
    )
    svg = draw_svg(graph)
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
    svg = draw_svg(graph)
    assert "<script" not in svg
    row = rows_of(svg)["encoder · layer 0"]
    (label,) = texts(row, "chip-name")
    assert label.startswith("<script>alert(1)</script>")
    assert label.endswith("…")
    assert len(label) < 40
    titles = [t.text or "" for t in row.iter(f"{SVG}title")]
    assert any(name in t for t in titles)


def test_methods_have_colours_of_their_own() -> None:
    svg = draw_svg(bert(2, layers=[{"attach": ["lora", "ia3"]}]))
    assert set(re.findall(r'class="(chip c\d)"', svg)) == {"chip c0", "chip c1"}
    assert "\n" not in svg, "a page of Markdown takes it as one element"


def test_an_entry_with_a_name_of_its_own_says_it() -> None:
    items = [{"lora": {"sites": ["q"], "rank": 2}, "as": "mine"}, {"ia3": {"sites": ["k"]}}]
    row = rows_of(draw_svg(bert(1, layers=[{"attach": items}])))["encoder · layer 0"]
    assert texts(row, "chip-name") == ["mine: lora · rank 2", "ia3"]


def test_svg_changes_nothing_in_the_page_that_it_lies_in() -> None:
    """Rules of a style sheet in a page's SVG hold for the whole page: each of ours names the drawing."""
    root = ET.fromstring(draw_svg(graph()))
    assert root.get("class") == "composition-graph"
    (style,) = root.iter(f"{SVG}style")
    rules = [rule for rule in (style.text or "").split("}") if rule]
    assert len(rules) >= 4
    assert all(re.match(r"\.composition-graph[ {]", rule) for rule in rules)


def test_svg_of_nothing_says_so() -> None:
    root = ET.fromstring(draw_svg(bert(3)))
    assert "(no modules: the head alone trains)" in [t.text for t in root.iter(f"{SVG}text")]
