"""Limits as people write them, and what is over them."""

from __future__ import annotations

import pytest

from autopeft.errors import UsageError
from autopeft.resources import Limits, Resources
from autopeft.resources.limits import read_size, read_span, size_text, span_text


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("300kB", 300_000), ("4GiB", 4 << 30), (1000, 1000), ("1.5 MB", 1_500_000)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert read_size("max_file", text) == size


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("1.5s", 1.5), (0.25, 0.25), ("1s500ms", 1.5)])
def test_spans(text: str | float, seconds: float) -> None:
    assert read_span("max_step_time", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "1" + "0" * 20 + "B", 10**4_000])
def test_sizes_that_no_machine_has_are_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="max_file is more than any machine has"):
        read_size("max_file", text)


@pytest.mark.parametrize("text", ["", "big", "-1MB", "0", 0, True, "6 gigs", -(10**30)])
def test_sizes_that_are_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="max_memory"):
        read_size("max_memory", text)


@pytest.mark.parametrize("text", ["", "soon", "0ms", -1.0, "ms"])
def test_spans_that_are_refused(text: str | float) -> None:
    with pytest.raises(UsageError, match="max_latency is a time such as '200ms'"):
        read_span("max_latency", text)


def test_a_span_without_a_unit_is_not_taken_for_minutes() -> None:
    with pytest.raises(UsageError, match="'200' has no unit; write '200ms'"):
        read_span("max_step_time", "200")


def test_texts() -> None:
    assert [size_text(n) for n in (12, 1_500, 2_340_000, 6_100_000_000)] == [
        "12B",
        "1.5kB",
        "2.34MB",
        "6.1GB",
    ]
    assert [span_text(s) for s in (0.0214, 0.2, 1.44)] == ["21.4ms", "200ms", "1.44s"]
    assert [span_text(s) for s in (0.9994, 0.9999, 1200.0)] == ["999ms", "1s", "1200s"]


def test_what_is_over_a_limit_is_said() -> None:
    limits = Limits(file=1_000_000, step_time=0.2, serve="merged")
    assert limits
    assert limits.calibrated
    assert not Limits()
    assert not Limits(file=5).calibrated
    inside = Resources(file=900_000, step_time=0.1)
    assert limits.excess(inside) == 0
    assert limits.broken(inside) == []
    over = Resources(file=1_500_000, step_time=0.3, unservable="lora cannot be folded into weights")
    assert limits.excess(over) == pytest.approx(0.5 + 0.5 + 1.0)
    said = "; ".join(limits.broken(over))
    assert "300ms (at most 200ms)" in said
    assert "1.5MB (at most 1MB)" in said
    assert "not to be served as merged: lora" in said


def test_several_processes_admit_what_they_can_train() -> None:
    limits, refused = Limits(processes=2), Resources(on_sharded="fish_mask is calibrated")
    assert limits
    assert not Limits(processes=1)
    assert not limits.calibrated
    assert (limits.excess(Resources()), limits.excess(refused), Limits().excess(refused)) == (0, 1, 0)
    assert limits.broken(refused) == ["not for 2 processes: fish_mask is calibrated"]
    assert str(limits) == "methods that 2 processes can train"
    assert limits.to_dict() == {"processes": 2}
    assert Resources.from_dict(refused.to_dict()) == refused


def test_resources_to_a_table_and_back() -> None:
    found = Resources(memory=1e9, step_time=0.2, unmergeable="because")
    assert Resources.from_dict(found.to_dict()) == found
    assert (
        Resources.from_dict({"memory": "much", "file": True, "latency": float("nan"), "step_time": -1})
        == Resources()
    )
