from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from autopeft.errors import MethodError
from autopeft.method import MethodConfig, method_names
from autopeft.report.methods import config_sheet, describe_method, explain_method, methods_sheet


def test_every_method_can_be_explained() -> None:
    """A method without a docstring, a summary or a describable config would fail or show nothing."""
    for name in method_names():
        text = explain_method(name)
        assert "arXiv" in text or "20" in text
        data = describe_method(name)
        assert data["summary"]
        assert data["config"]["properties"]
        assert "/" in data["kind"]


def test_the_list_has_them_all() -> None:
    assert tuple(row[0] for row in methods_sheet().rows) == method_names()


def test_defaults_and_ranges_come_from_the_config() -> None:
    class Toy:
        class Config(MethodConfig):
            size: int = Field(ge=1, le=9, description="how many")
            rate: float = Field(default=0.5, gt=0, lt=1)
            mode: Literal["a", "b"] = "a"

    rows = {row[0]: row for row in config_sheet(Toy).rows}
    assert rows["size"] == ("size", "int", "required", "≥ 1, ≤ 9", "how many")
    assert rows["rate"] == ("rate", "float", "0.5", "> 0, < 1", "")
    assert rows["mode"][1:3] == ("['a', 'b']", "a")


def test_an_unknown_method_is_named_with_near_matches() -> None:
    with pytest.raises(MethodError, match="'prefix_tuning'"):
        explain_method("prefix_tunning")
