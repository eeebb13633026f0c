"""Drawings of the graph."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.graph import build_graph, draw_mermaid, draw_svg, draw_text
from autopeft.recipe import Recipe

BERT = spec_of(tiny_config("bert"))


def graph(alias: str = "mine") -> object:
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


def test_svg_is_well_formed() -> None:
    root = ET.fromstring(draw_svg(graph()))  # type: ignore[attr-defined]
    texts = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("gate(mine[rank 3])" in t for t in texts)


def test_mermaid_quotes_every_label() -> None:
    drawn = draw_mermaid(graph())  # type: ignore[attr-defined]
    assert drawn.startswith("flowchart BT")
    assert "gate(mine&#91;rank 3&#93;)" in drawn
    assert drawn.count("subgraph") == drawn.count("\n  end")


def svg_of(recipe: dict[str, object]) -> ET.Element:
    return ET.fromstring(
        draw_svg(build_graph(Recipe.from_dict({"autopeft": 2, "name": "x", **recipe}), BERT))
    )


def test_svg_changes_nothing_in_the_page_that_it_lies_in() -> None:
    """Rules of a style sheet in a page's SVG hold for the whole page: each of ours names the drawing."""
    root = ET.fromstring(draw_svg(graph()))  # type: ignore[arg-type]
    assert root.get("class") == "composition-graph"
    (style,) = root.iter("{http://www.w3.org/2000/svg}style")
    rules = [rule for rule in (style.text or "").split("}") if rule]
    assert len(rules) >= 4
    assert all(rule.startswith(".composition-graph ") for rule in rules)


def test_svg_is_as_wide_as_its_words() -> None:
    """A single method fits on a telephone, and a long row is not cut off."""
    narrow = svg_of({"layers": [{"attach": [{"lora": {"rank": 8}}]}]})
    wide = svg_of({"layers": [{"attach": [{"gate": ["serial_adapter", "parallel_adapter", "ia3"]}]}]})
    assert 280 <= float(narrow.get("width", 0)) <= 380
    for root in (narrow, wide):
        width = float(root.get("width", 0))
        assert root.get("viewBox") == f"0 0 {width:g} {float(root.get('height', 0)):g}"
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert float(text.get("x", 0)) + 6 * len(text.text or "") <= width
    assert float(wide.get("width", 0)) > float(narrow.get("width", 0))


def test_svg_of_nothing_says_so() -> None:
    root = svg_of({})
    assert [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")] == [
        "(no modules: the head alone trains)"
    ]


def test_a_notebook_shows_the_drawing_in_its_own_colours() -> None:
    made = graph()._repr_html_()  # type: ignore[attr-defined]
    assert made.count("<svg") == 1
    assert "gate(mine[rank 3])" in made
    assert "--graph-text:currentColor" in made, "letters have the colour of the page, which may be dark"


def test_names_of_strangers_are_text_in_a_notebook() -> None:
    recipe = Recipe.from_dict({"name": "<script>alert(1)</script>", "layers": [{"attach": ["lora"]}]})
    built = build_graph(recipe, BERT)
    assert "<script" not in built._repr_html_()
    assert "&lt;script&gt;" in built._repr_html_()
    assert repr(built).startswith("CompositionGraph('<script>alert(1)</script>' on bert: lora, ")
    assert "\n" not in repr(built)
    assert " deployed (" in repr(built)
