from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from autopeft.composition import composition_names
from autopeft.errors import MethodError
from autopeft.method import MethodConfig, method_names
from autopeft.recipe import Recipe
from autopeft.report.methods import config_sheet, describe, explain, fields_sheet, methods_sheet


def test_every_method_can_be_explained() -> None:
    """A method without a docstring, a summary or a describable config would fail or show nothing."""
    for name in method_names():
        text = explain(name)
        assert "arXiv" in text or "20" in text
        data = describe(name)
        assert data["summary"]
        assert data["config"]["properties"]
        assert "/" in data["kind"] or data["kind"] == "pooling"


def test_what_can_be_made_of_a_method_is_told() -> None:
    said = {name: (describe(name)["peft"], describe(name)["narrow"]) for name in ("lora", "ia3", "vera")}
    assert said == {"lora": ("lora", ["rank"]), "ia3": ("ia3", []), "vera": (None, [])}
    assert explain("lora").split("can be cut by")[1].split()[0] == "rank"


def test_the_list_has_them_all() -> None:
    assert tuple(row[0] for row in methods_sheet().rows) == method_names()


def test_defaults_and_ranges_come_from_the_config() -> None:
    class Toy:
        class Config(MethodConfig):
            size: int = Field(ge=1, le=9, description="how many")
            rate: float = Field(default=0.5, gt=0, lt=1)
            mode: Literal["a", "b"] = "a"

    rows = {row[0]: row for row in fields_sheet(Toy.Config, "Config").rows}
    assert rows["size"] == ("size", "int", "required", "≥ 1, ≤ 9", "how many")
    assert rows["rate"] == ("rate", "float", "0.5", "> 0, < 1", "")
    assert rows["mode"][1:3] == ("['a', 'b']", "a")


def test_an_unknown_method_is_named_with_near_matches() -> None:
    with pytest.raises(MethodError, match="'prefix_tuning'"):
        explain("prefix_tunning")


def test_compositions_are_explained_with_a_way_to_write_them_that_parses() -> None:
    for kind in composition_names():
        assert kind in " ".join(methods_sheet().notes)
        text = explain(kind)
        assert describe(kind)["summary"] in text
        written = text.rpartition("written  ")[2].partition(", or ")[0].partition(";")[0]
        recipe = Recipe.from_yaml(f"layers: [{{attach: [{{{written}}}]}}]")
        assert [entry.method for entry in recipe.entries()] == ["lora", "ia3"]
    rows = {row[0]: row for row in config_sheet("route").rows}
    assert rows["top_k"][1:4] == ("int | None", "–", "≥ 1, ≤ 64")
    assert all(meaning for *_, meaning in rows.values())
