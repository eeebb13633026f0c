"""A look at a user's task: measured only where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evidence import evidence
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.search.portfolio import look
from autopeft.search.portfolio.arguments import RecommendArguments
from autopeft.search.portfolio.evidence import Evidence, Features, Setting
from autopeft.search.portfolio.sharpening import Finding
from autopeft.tasks import load_task

HELPS, NOT = Finding({"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0}), Finding({})


@pytest.fixture(scope="module")
def known() -> Evidence:
    from dataclasses import replace

    found = evidence(lambda key, setting: 0.0, seeds=1)
    looked = tuple(replace(o, first_step=0.1) for o in found.observations)
    features = {
        Setting("minilm", task, 500, 0): Features(2 + i, 10.0 + i, 0.1 * i)
        for i, task in enumerate(("trec", "sms-spam", "subjectivity"))
    }
    return replace(found, observations=looked, features=features)


def looked_at(
    known: Evidence, place: Path, patch: pytest.MonkeyPatch, like: Finding, slope: Finding
) -> tuple[look.Sharpening, list[str]]:
    patch.setenv("AUTOPEFT_CACHE", str(place / "cache"))
    patch.setattr(look, "worth_of_likeness", lambda *a, **k: like)
    patch.setattr(look, "slope_of_first_steps", lambda *a, **k: slope)
    source = resolve_model(str(save_backbone(place / "model")))
    task = load_task(write_reviews(place / "data.csv"), text="body", label="verdict")
    asked = RecommendArguments(budget="5%", max_length=24)
    said: list[str] = []
    spec = spec_of(load_config(source))
    found = look.sharpen(known, spec, Budget.parse("5%"), task, source, asked, (), said.append)
    return found, said


def test_what_does_not_help_is_not_measured(
    known: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "probe_task", lambda *a, **k: pytest.fail("measured"))
    found, said = looked_at(known, tmp_path, monkeypatch, NOT, NOT)
    assert (found.likeness, found.shifts, said) == (None, None, [])
    assert [line.split(":")[0] for line in found.why] == [
        "Not sharpened by what tasks are like", "Not sharpened by the recipes' first gradients",
    ]  # fmt: skip


def test_features_alone_take_no_gradients(
    known: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = looked_at(known, tmp_path, monkeypatch, HELPS, NOT)
    assert found.shifts is None
    assert set(found.likeness or {}) == {"trec", "sms-spam", "subjectivity"}
    assert not [line for line in said if "gradients" in line]
    assert any("The task has 2 classes" in line for line in found.why)


def test_first_steps_shift_what_is_expected_and_progress_is_told(
    known: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = looked_at(known, tmp_path, monkeypatch, NOT, HELPS)
    assert found.likeness is None
    assert len(found.shifts or {}) > 10
    assert [line for line in said if "gradients of" in line]
    assert "Sharpened by the recipes' first gradients" in found.why[1]


def test_gradients_that_there_was_no_time_for_shift_nothing(
    known: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "SECONDS", -1.0)
    found, _ = looked_at(known, tmp_path, monkeypatch, NOT, HELPS)
    assert found.shifts is None
    assert found.why[1].startswith("Not sharpened by the recipes' first gradients: -1 s did not suffice")


def test_a_look_that_fails_sharpens_nothing(
    known: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise IndexError("index 0 is out of bounds.")

    monkeypatch.setattr(look, "probe_task", failing)
    found, _ = looked_at(known, tmp_path, monkeypatch, HELPS, HELPS)
    assert (found.likeness, found.shifts) == (None, None)
    assert found.why == ["Not sharpened by a look at the task: a probe failed (index 0 is out of bounds)."]
