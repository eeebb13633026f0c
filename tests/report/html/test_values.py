from __future__ import annotations

import json
import math
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.report.html.figure import log_ticks, script_json, short
from autopeft.report.html.values import plotly_text, real, shown

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_anything_is_a_finite_number_or_none(value: Any) -> None:
    found = real(value)
    assert found is None or math.isfinite(found)
    assert (found is not None) == (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )


def test_no_number() -> None:
    assert real(True) is None
    assert real(10**400) is None
    assert real("7") is None


@given(st.text())
def test_shown_text_can_be_written_and_hides_nothing(text: str) -> None:
    out = shown(text, 50)
    out.encode("utf-8")
    assert len(out) <= 50


@pytest.mark.parametrize("trick", ["\u202e", "\u200b", "\x00", "\x1b", "\ud800"])
def test_characters_that_hide_text_are_marked(trick: str) -> None:
    assert shown(f"a{trick}b") == "a�b"


def test_long_text_says_that_it_was_cut() -> None:
    assert shown("x" * 100, 10) == "x" * 9 + "…"
    assert shown(None) == "–"


@given(st.text(alphabet="<>&;abc/%{} \"'"))
def test_text_for_plots_holds_no_tag_and_no_template(text: str) -> None:
    out = plotly_text(text)
    assert "<" not in out
    assert ">" not in out
    assert "%{" not in out
    assert "".join(unescape(out).split()) == "".join(text.split())


@given(JSON)
def test_json_in_a_script_is_the_same_and_ends_no_script(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    out = script_json(text)
    assert not set("<>&\u2028\u2029") & set(out)
    assert json.dumps(json.loads(out), ensure_ascii=False) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (384, "384"), (1200, "1.2k"), (50_000, "50k"), (113_040, "113k"), (2_500_000, "2.5M")],
)
def test_short(n: int, text: str) -> None:
    assert short(n) == text


def test_close_values_have_round_ticks_between_them() -> None:
    ticks = log_ticks([95_280, 110_640])
    assert ticks["ticktext"] == ["95,000", "100,000", "105,000", "110,000", "115,000"]


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_a_logarithmic_axis_has_ticks_around_its_values(values: list[float]) -> None:
    ticks = log_ticks(values)
    assert len(ticks["tickvals"]) == len(ticks["ticktext"]) <= 40
    assert ticks["tickvals"] == sorted(ticks["tickvals"])
    assert ticks["tickvals"][0] <= min(values) * 1.0001
    assert max(values) <= ticks["tickvals"][-1] * 1.0001
