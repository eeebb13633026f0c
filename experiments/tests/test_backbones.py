"""What is taken out of a text is learnt, and a pretraining that was stopped goes on as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lib.tiny_rows import tiny_rows
from support.tiny import tiny_config

FOLDER = "backbones"
Import = Callable[[str], Any]
SENTINELS = list(range(90, 100))


@pytest.fixture(scope="module")
def spans(load: Import) -> Any:
    return load("spans")


@pytest.fixture(scope="module")
def run(load: Import) -> Any:
    return load("run")


@pytest.mark.parametrize("length", [4, 7, 20, 48])
def test_the_source_lacks_spans_of_the_target(spans: Any, length: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        text = rng.integers(3, 90, length)
        source, target = spans.corrupted(text, SENTINELS, 1, rng)
        assert target == [*text.tolist(), 1]
        assert source[-1] == 1
        told = [token for token in source if token in SENTINELS]
        assert told == SENTINELS[: len(told)]
        gone = max(1, round(0.15 * length))
        assert len(source) == length - gone + len(told) + 1
        # Between the sentinels stands what the text has, in its order.
        rest = iter(target)
        assert all(token in rest for token in source if token not in SENTINELS)


def test_spans_do_not_touch(spans: Any) -> None:
    for seed in range(50):
        found = spans.noise_spans(128, np.random.default_rng(seed))
        assert found[0][0] > 0
        assert found[-1][1] == 128
        assert all(stop < start for (_, stop), (start, _) in pairwise(found))
        assert len(found) == round(0.15 * 128 / 3)


def test_texts_of_a_batch_have_about_one_length(spans: Any) -> None:
    lengths = np.random.default_rng(0).integers(4, 48, 1_003)
    found = list(spans.places_of(lengths, 10, np.random.default_rng(1)))
    assert len(found) == 100
    assert len(np.unique(np.concatenate(found))) == 1_000
    assert np.mean([np.ptp(lengths[own]) for own in found]) < 3
    first = [lengths[own].mean() for own in found[:50]]
    assert first != sorted(first), "short ones come first"
    assert not np.array_equal(found, list(spans.places_of(lengths, 10, np.random.default_rng(2))))


def equal(left: Iterator[dict[str, torch.Tensor]], right: Iterator[dict[str, torch.Tensor]]) -> bool:
    pairs = list(zip(islice(left, 3), islice(right, 3), strict=True))
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


def test_a_step_has_the_same_batch_whenever_it_is_asked_for(run: Any) -> None:
    rows = [[3 + i % 80] * 20 for i in range(60)]
    whole = islice(run.batches(rows, SENTINELS, 0, 2), 3, None)
    later = run.batches(rows, SENTINELS, 3, 2)
    assert equal(whole, later)


def test_a_stopped_training_goes_on(run: Any, tmp_path: Path) -> None:
    small = run.T5Config(
        vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    small.decoder_start_token_id = small.pad_token_id = 0
    small.dropout_rate = 0.0

    def begun(folder: Path) -> Any:
        torch.manual_seed(0)
        return run.begun(folder, run.T5ForConditionalGeneration(small))

    rows = [[3 + i % 80] * 20 for i in range(60)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = begun(tmp_path / "whole")
    for batch in islice(run.batches(rows, SENTINELS, 0, 2), 4):
        whole.step(batch, 4)
    for start in (0, 2):
        part = begun(tmp_path / "parts")
        assert len(part.losses) == start
        for batch in islice(run.batches(rows, SENTINELS, start, 2), 2):
            part.step(batch, 4)
        part.keep(4)
    assert part.losses == whole.losses
    for (name, left), right in zip(part.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(left, right), name


# Images
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(load: Import) -> Any:
    return load("vit")


def test_each_image_is_seen_once_in_an_epoch_and_stays_near_what_it_is(vit: Any) -> None:
    values = torch.arange(6).view(6, 1, 1, 1).expand(6, 3, 28, 28) / 3.0 - 1.0
    labels = torch.arange(6)
    seen = [vit.batch_at(step, values, labels, 4) for step in range(3)]
    told = torch.cat([batch["labels"] for batch in seen])
    assert sorted(told[:6].tolist()) == sorted(told[6:].tolist()) == list(range(6))
    again = vit.batch_at(1, values, labels, 4)
    assert all(torch.equal(again[key], seen[1][key]) for key in again)
    # The middle of a flat image is what it was, however it is turned, moved and scaled.
    for batch in seen:
        middle = batch["pixel_values"][:, 0, 14, 14]
        torch.testing.assert_close(middle, values[batch["labels"], 0, 0, 0])


# Cross-attention
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross(load: Import) -> Any:
    return load("cross_attention")


def test_all_recipes_of_cross_attention_count_on_the_backbone(cross: Any, run: Any) -> None:
    """LoRA is about as large as what it stands beside."""
    from autopeft.backbones import spec_of
    from autopeft.counting import count

    spec = spec_of(run.model_of(8_100).config)
    sizes = {
        name: count(cross.recipe_of(cross.Training(name, 1e-3, 0, 1)), spec).deployed
        for name in cross.RECIPES
    }
    whole = 4 * (4 * 256 * 256 + 256)
    assert sizes["cross-attention"] == whole
    assert sizes["cross-attention and embeddings"] == whole + 8_100 * 256
    for name in ("lora, cross-attention", "lora, all attention", "far"):
        assert abs(sizes[name] - whole) < 0.01 * whole, (name, sizes[name], whole)


def test_what_is_known_is_not_trained_again(cross: Any) -> None:
    todo = list(cross.missing([], 6))
    assert len(todo) == len(cross.RECIPES) * len(cross.RATES)
    assert {t.seed for t in todo} == {0}
    rows: list[dict[str, Any]] = []
    while (training := next(cross.missing(rows, 6), None)) is not None:
        score = 0.5 + (training.rate == 3e-3) * 0.1
        rows.append({**cross.asdict(training), "score": score, "loss": 0.7, "deployed": 7})
    assert len(rows) == len(cross.RECIPES) * (len(cross.RATES) + cross.SEEDS - 1)
    assert {r["rate"] for r in rows if r["seed"]} == {3e-3}
    plain = {"recipe": cross.UNTUNED, "rate": 0.0, "seed": 0, "steps": 0, "score": 0.2, "loss": 1.61}
    told = cross.tables([*rows, plain])
    assert told.count("| 3 |") == len(cross.RECIPES)
    assert "| nothing | 0 |  | 0.2000 | 1.610 |" in told


def test_the_backbone_as_it_is_is_scored(cross: Any) -> None:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(tiny_config("t5"))
    found = cross.untuned((model, tiny_rows("seq2seq", model.config)))
    assert found["recipe"] == cross.UNTUNED
    assert found["score"] == pytest.approx(math.exp(-found["loss"]), rel=1e-3)


def test_a_dry_run_says_what_would_be_trained(
    cross: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.model_of(8_100).save_pretrained(tmp_path / "t5")
    monkeypatch.setattr(cross, "FILE", tmp_path / "none.jsonl")
    monkeypatch.setattr("sys.argv", ["run", "--model", str(tmp_path / "t5"), "--dry-run", "--steps", "7"])
    cross.main()
    told = capsys.readouterr().out
    assert "cross-attention: 1,049,600 parameters, rate 0.001, seed 0, 7 steps" in told
    assert "10 trainings, and two further seeds" in told
    assert not (tmp_path / "none.jsonl").exists()


def test_a_training_is_a_row_that_is_found_again(cross: Any, run: Any) -> None:
    """On a task of a test's own, so that nothing is fetched."""
    from autopeft.training import trial

    seen: list[Any] = []

    def trained(model: Any, recipe: Any, data: Any, plan: Any, **options: Any) -> Any:
        seen.append((recipe, plan.steps, plan.seed))
        counts = trial.Counts(5, 5, 0, 100)
        return trial.TrialOutcome({"select": 0.5}, counts, 1.0, None, losses={"select": 2.0})  # type: ignore[arg-type]

    before, cross.run_trial = cross.run_trial, trained
    try:
        first = next(cross.missing([], 3))
        row = cross.measure((None, None), first)
    finally:
        cross.run_trial = before
    assert seen[0][1:] == (3, 0)
    assert list(seen[0][0].training.optimizer.betas) == [0.9, 0.98]
    assert next(cross.missing([row], 3)) != first
