from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats
from support.searching import EFFORT
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.search.api import plan
from autopeft.search.planning import dry_run
from autopeft.search.planning.dry_run import Estimate, Work, Writing, estimate

MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)


def test_a_forward_pass_is_two_operations_for_each_weight_and_token() -> None:
    work = Work.of(MINILM, tokens=27)
    layers = 6 * (4 * 384 * 384 + 2 * 384 * 1536) + 384 * 384
    assert work.weights == layers
    assert work.forward == pytest.approx(2 * 27 * layers, rel=0.02)


def test_more_workers_take_less_time_and_more_memory() -> None:
    options = {"baselines": (), "batch_size": 32, "select_rows": 500, "test_rows": 1000, "speed": 1e11}
    one = estimate(Work.of(MINILM, 27), EFFORT, workers=1, **options)  # type: ignore[arg-type]
    two = estimate(Work.of(MINILM, 27), EFFORT, workers=2, **options)  # type: ignore[arg-type]
    assert two.seconds < one.seconds
    assert two.memory == 2 * one.memory
    assert two.trial_seconds == one.trial_seconds


OPTIONS: dict[str, Any] = {
    "batch_size": 32,
    "select_rows": 500,
    "test_rows": 1000,
    "speed": 1e11,
    "workers": 1,
}
WORK = Work.of(MINILM, 27)


def test_what_saves_memory_is_told() -> None:
    plain = estimate(WORK, EFFORT, baselines=(), **OPTIONS).memory
    for saving in ({"at_once": 4}, {"weight_bytes": 2}, {"memory_saving": True}):
        found = estimate(WORK, EFFORT, baselines=(), **OPTIONS, **saving)  # type: ignore[arg-type]
        assert found.memory < plain, saving
    assert estimate(WORK, EFFORT, baselines=(), **OPTIONS, at_once=32).memory == plain


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A machine on which each look at the clock is so many seconds after the one before."""
    ticks = count()
    monkeypatch.setattr(dry_run.time, "process_time", lambda: next(ticks) * seconds)


def longer(writing: Writing, **options: Any) -> float:
    """Seconds that writing adds."""
    given: dict[str, Any] = {"baselines": (), **OPTIONS, **options}
    return estimate(WORK, EFFORT, writing=writing, **given).seconds - estimate(WORK, EFFORT, **given).seconds


def test_the_time_of_answers_is_that_of_their_tokens_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slowed(monkeypatch, 1.0)
    rows = EFFORT.seeds * 1000  # the winner's tests
    speed = 2 * 64 * 2048**2 / 1.0  # one product in one second
    prompts = rows * WORK.forward / (0.7 * 1e11)
    assert longer(Writing(20)) == pytest.approx(prompts + rows * 20 * WORK.token / (0.7 * speed))
    assert longer(Writing(40)) - prompts == pytest.approx(2 * (longer(Writing(20)) - prompts))
    slow = longer(Writing(20))
    slowed(monkeypatch, 3.0)
    assert longer(Writing(20)) - prompts == pytest.approx(3 * (slow - prompts)), "a machine a third as fast"
    assert longer(Writing(20), workers=2) == pytest.approx(longer(Writing(20)) / 2)


def test_samples_alone_take_a_handful_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 1.0)
    speed = 2 * 6 * 2048**2 / 1.0
    expected = 6 * (WORK.forward / (0.7 * 1e11) + 10 * WORK.token / (0.7 * speed))
    assert longer(Writing(20, samples=6, sample_tokens=10)) == pytest.approx(expected)


def test_baselines_write_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of a search for written answers takes longer than the same one for likelihoods, and the more
    so the more baselines there are."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    slowed(monkeypatch, 1.0)
    monkeypatch.setattr(dry_run, "gemm_speed", lambda *shape: 1e9)
    options: dict[str, Any] = {
        "task": str(write_chats(tmp_path / "chats.jsonl")), "model": str(save_decoder(tmp_path / "llama")),
        "budget": "60%", "space": "lora", "trials": 2, "steps": 8, "max_length": 48, "portfolio": False,
    }  # fmt: skip

    def planned(metric: str, baselines: str) -> Estimate:
        return plan(**options, metric=metric, baselines=baselines, samples=0).estimate

    likely, written = planned("likelihood", "none"), planned("exact_match", "none")
    assert written.seconds > likely.seconds
    assert written.trial_seconds == pytest.approx(likely.trial_seconds), "trials write nothing"
    more = planned("exact_match", "untuned").seconds - planned("likelihood", "untuned").seconds
    assert more > written.seconds - likely.seconds
