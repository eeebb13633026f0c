"""A search on a language model is compared with the backbone as it is, without and with examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.language import chats, save_decoder

import autopeft
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.search.execution.worker import WorkerSetup, loaded, release
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan, evaluate


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_decoder(tmp_path_factory.mktemp("model") / "llama"))


def write_turns(path: Path, rows: int = 150) -> str:
    found = [row[-2:] for row in chats(rows)]
    for i, row in enumerate(found):
        row[0]["content"] += " be" * (i % 7)
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in found))
    return str(path)


@pytest.mark.slow
def test_winner_and_what_trains_nothing(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    file = write_turns(tmp_path / "chats.jsonl")
    found = autopeft.search(
        budget="5%", task=file, model=backbone, max_length=48, trials=2, steps=8, confirm=1, confirm_seeds=2,
        workers=0, seed=3, out=str(tmp_path / "run"),
    )  # fmt: skip
    names = [b.name for b in found.baselines]
    assert names[0].startswith("LoRA")
    assert names[1:] == ["untuned backbone", "few-shot, 4 examples"]
    untuned, few = found.baselines[1:]

    kind, task, tokenizer = get_kind("causal_lm"), load_task(file, seed=3), load_tokenizer(backbone)
    model = kind.head.load_model(backbone, ())
    plain = evaluate(model, kind.encoder.encode(task.splits["test"], tokenizer, 48), "likelihood")
    assert untuned.test == pytest.approx([plain, plain])
    for seed, score in few.by_seed.items():
        train = task.splits["train"]
        drawn = train.take(np.random.default_rng(seed).permutation(len(train))[:4])
        rows = kind.encoder.with_examples(task.splits["test"], drawn, tokenizer, 48)
        assert rows is not None
        assert score == pytest.approx(evaluate(model, kind.encoder.encode(rows, tokenizer, 48), "likelihood"))
    assert len(few.by_seed) == 2

    by_name = {c.baseline: c for c in found.comparisons}
    assert by_name["untuned backbone"].low is not None
    assert by_name["untuned backbone"].by_rows
    assert by_name["few-shot, 4 examples"].by_rows
    page = write_report(load_run(tmp_path / "run")).read_text()
    assert "untuned backbone" in page
    assert "few-shot, 4 examples" in page


def test_a_worker_learns_every_token_where_that_is_asked_for(backbone: str, tmp_path: Path) -> None:
    task = load_task(write_turns(tmp_path / "chats.jsonl"), seed=3)
    plain = encode(task, load_tokenizer(backbone), 48)

    def learnt(learn_all: bool) -> int:
        plan = TrainingPlan(steps=1, max_length=48, device="cpu", learn_all=learn_all)
        setup = WorkerSetup(backbone, resolve_model(backbone), task, plan, threads=1, key=f"all {learn_all}")
        data = loaded(setup).data
        assert plain.select.labels is not None
        assert data.train.labels is not None
        assert np.array_equal(data.select.labels, plain.select.labels)
        return int(data.train.labels.sum())

    try:
        assert learnt(True) > 1.5 * learnt(False)
    finally:
        release()


def test_a_search_says_so_to_its_workers(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    file = write_turns(tmp_path / "chats.jsonl")
    for asked in (True, False):
        given = SearchArguments(budget="5%", task=file, model=backbone, max_length=48, learn_all=asked)
        assert prepare(given).plan.learn_all == asked
