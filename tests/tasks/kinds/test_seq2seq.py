"""An encoder-decoder learns targets from end to end; its loss is that of transformers, also by shortcuts."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import (
    encoder_decoder,
    pairs,
    save_decoder,
    save_encoder_decoder,
    side_tokenizer,
    write_chats,
    write_pairs,
)
from support.saved_model import save_backbone
from support.tiny import randomise
from support.training import LORA, lora_recipe
from torch import Tensor
from transformers import MBartConfig, MBartForConditionalGeneration

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.backbones import spec_of_model
from autopeft.errors import DataError, TaskError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.tasks import EncodedTask, Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.seq2seq import EncodedTargets, TargetEncoder
from autopeft.tasks.split import Split
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.losses import logits_of

CPU = torch.device("cpu")
NAMES = ("t5", "bart")
KIND = get_kind("seq2seq")
RECIPE = lora_recipe(rate=0.03)


def rows(count: int = 6) -> EncodedTargets:
    sources, targets = pairs(count)
    return TargetEncoder().encode(Split(sources, None, targets), side_tokenizer(), 20, cached=False)


def batch_of(count: int = 6) -> dict[str, Tensor]:
    return rows(count).collate(range(count))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# Loss
# ------------------------------------------------------------------------------------------------------


def test_the_decoder_begins_by_the_model_s_own_rule() -> None:
    batch = batch_of(2)
    labels = batch["labels"]
    t5 = KIND.head.inputs(encoder_decoder("t5"), batch)["decoder_input_ids"]
    bart = KIND.head.inputs(encoder_decoder("bart"), batch)["decoder_input_ids"]
    moved = labels[:, :-1].masked_fill(labels[:, :-1] == -100, 0)
    assert torch.equal(t5[:, 1:], moved)
    assert torch.equal(bart[:, 1:], moved)
    assert t5[:, 0].tolist() == [0, 0]
    assert bart[:, 0].tolist() == [3, 3]
    config = MBartConfig(vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, pad_token_id=0)
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    mbart = KIND.head.inputs(MBartForConditionalGeneration(config), batch)["decoder_input_ids"]
    assert mbart[:, 0].tolist() == [3, 3], "the last token of the target goes round to its front"


def test_what_has_no_rule_or_no_first_token_is_refused() -> None:
    with pytest.raises(UsageError, match="does not say what its decoder reads"):
        KIND.head.inputs(torch.nn.Linear(2, 2), batch_of())
    model = encoder_decoder("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(UsageError, match="decoder_start_token_id"):
        logits_of(model, batch_of(), KIND)


# Training and use
# ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def pairs_file(folder: Path) -> str:
    return str(write_pairs(folder / "pairs.jsonl", 120))


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_recipe_is_trained_and_used(name: str, folder: Path, pairs_file: str) -> None:
    backbone = str(save_encoder_decoder(folder / name, name))
    options: dict[str, Any] = {
        "steps": 120 if name == "t5" else 100,
        "max_length": 32,
        "batch_size": 16,
        "out": str(folder / "run"),
    }
    found = autopeft.train(recipe=RECIPE, task=pairs_file, model=backbone, **options)
    assert found.task.kind == "seq2seq", "the names of the columns say so"
    assert found.scores["test"] > 0.4, "1/19 to begin with"
    assert found.counts["head"] == 0
    assert autopeft.evaluate(found).score == pytest.approx(found.scores["test"])
    assert autopeft.evaluate(folder / "run").score == pytest.approx(found.scores["test"], rel=1e-5)
    assert autopeft.evaluate(found, metric="exact_match").score >= 0.5
    assert autopeft.evaluate(found, metric="rouge_l").score >= 0.5
    texts = ["what is follows one", "be brief what is follows four"]
    answers = [row["answer"] for row in autopeft.predict(folder / "run", texts)]
    assert answers == [row["answer"] for row in autopeft.predict(found, texts, beams=2)]
    assert all(set(answer.split()) <= {"one", "two", "three", "four", "five"} for answer in answers)
    first = autopeft.predict(found, Path(pairs_file))[0]
    assert {"answer", "loss", "perplexity", "tokens"} < set(first)
    assert first["tokens"] == 3


def test_a_table_is_asked_row_for_row(folder: Path, pairs_file: str) -> None:
    backbone = str(save_encoder_decoder(folder / "t5"))
    found = autopeft.train(
        recipe=RECIPE, task=pairs_file, model=backbone, steps=1, max_length=32, out=str(folder / "run")
    )
    table = folder / "more.csv"
    table.write_text("source,target\nwhat follows one,two three\nwhat is,\n,one\n")
    first, second, third = autopeft.predict(found, table)
    assert first["tokens"] == 3
    assert "loss" not in second
    assert third["problem"] == "an empty prompt"


def test_examples_stand_before_a_source() -> None:
    sources, targets = pairs(6)
    task = load_in_memory(sources, targets)
    split = task.splits["train"]
    shots = split.take([1])
    found = KIND.encoder.with_examples(split.take([0]), shots, side_tokenizer(), 60)
    assert found is not None
    assert found.texts == [f"{shots.texts[0]}\n{shots.labels[0]}\n\n{split.texts[0]}"]
    assert found.labels == [split.labels[0]]
    short = KIND.encoder.with_examples(split.take([0]), shots, side_tokenizer(), 6)
    assert short is not None
    assert short.texts == [split.texts[0]], "a source is not cut for an example"


def load_in_memory(sources: list[str], targets: list[str], **options: Any) -> Task:
    import pandas

    frame = pandas.DataFrame({"source": sources * 4, "target": targets * 4})
    frame["source"] += [" is" * (i // len(sources)) for i in range(len(frame))]
    return load_task(frame, **options)


# Shortcuts
# ------------------------------------------------------------------------------------------------------

UPPER: dict[str, list[dict[str, Any]]] = {
    "upper encoder": [{"at": [2], "stack": "encoder", "attach": [LORA]}],
    "decoder": [{"at": "all", "stack": "decoder", "attach": [LORA]}],
    "upper decoder": [{"at": [2], "stack": "decoder", "attach": [LORA]}],
    "both": [
        {"at": [1, 2], "stack": "encoder", "attach": [LORA]},
        {"at": [2], "stack": "decoder", "attach": [LORA, "serial_adapter"]},
    ],
}
DEPTHS = {
    "upper encoder": {"encoder": 2},
    "decoder": {"encoder": 3},
    "upper decoder": {"encoder": 3, "decoder": 2},
    "both": {"encoder": 1},
}


def task_of(model: Path, file: str) -> EncodedTask:
    return encode(load_task(file, kind="seq2seq"), load_tokenizer(str(model)), 32)


def loss_and_gradients(
    hybrid: Hybrid, forward: Forward, data: EncodedTask
) -> tuple[float, dict[str, Tensor]]:
    total, found = 0.0, dict[str, Tensor]()
    for batch in forward.batches(data.train, 9, shuffle=False, device=CPU):
        loss = data.task.loss().mean(forward(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    found = {n: p.grad.clone() for n, p in hybrid.model.named_parameters() if p.grad is not None}
    hybrid.model.zero_grad()
    return total, found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", UPPER)
def test_the_cached_trunk_gives_the_same(name: str, place: str, folder: Path) -> None:
    path = save_encoder_decoder(folder / name, name)
    data = task_of(path, str(write_pairs(folder / "few.jsonl", 30)))
    recipe = Recipe.from_dict({"name": "r", "layers": UPPER[place]})
    with attach(KIND.head.load_model(str(path), ()), recipe, seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        assert forward.trunk is not None
        assert forward.trunk.depths == DEPTHS[place]
        plain = Forward(hybrid.model, kind=KIND)
        wanted, expected = loss_and_gradients(hybrid, plain, data)
        for _ in range(2):  # computed and kept in fp16, then read
            found, own = loss_and_gradients(hybrid, forward, data)
            assert found == pytest.approx(wanted, rel=2e-3)
            assert far(own, expected) <= 5e-3
        near = predict(hybrid.model, data.test, forward=forward)
        assert np.allclose(near, predict(hybrid.model, data.test), rtol=2e-3, atol=1e-3)


def far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """How far gradients are apart, in shares of their length."""
    assert found.keys() == wanted.keys()
    apart = sum(float((found[key] - gradient).square().sum()) for key, gradient in wanted.items())
    return float((apart / sum(float(g.square().sum()) for g in wanted.values())) ** 0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", UPPER)
def test_states_of_full_precision_are_exact(name: str, place: str, folder: Path) -> None:
    path = save_encoder_decoder(folder / name, name)
    data = task_of(path, str(write_pairs(folder / "few.jsonl", 30)))
    recipe = Recipe.from_dict({"name": "r", "layers": UPPER[place]})
    with attach(KIND.head.load_model(str(path), ()), recipe, seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        assert forward.trunk is not None
        batch, found = data.train.collate(range(9)), []
        for within in (nullcontext(), forward.trunk.laid(forward.trunk.compute(batch))):
            with within:
                loss = data.task.loss().mean(Forward(hybrid.model, kind=KIND)(batch), batch)
                loss.backward()  # type: ignore[no-untyped-call]
            found.append((float(loss.detach()), gradients(hybrid.model)))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert far(found[1][1], found[0][1]) <= 1e-5


def test_states_of_a_decoder_are_those_of_its_targets(folder: Path, pairs_file: str) -> None:
    """The same sources with other targets do not find them."""
    path = save_encoder_decoder(folder / "t5")
    data = task_of(path, pairs_file)
    other = folder / "other.jsonl"
    lines = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    other.write_text("".join(json.dumps({**row, "target": row["target"][::-1]}) + "\n" for row in lines))
    turned = task_of(path, str(other))
    recipe = Recipe.from_dict({"name": "r", "layers": UPPER["upper decoder"]})
    with attach(KIND.head.load_model(str(path), ()), recipe, seed=0) as hybrid:
        randomise(hybrid.root)
        for rows in (data, turned):
            forward = shortest_forward(hybrid, rows, TrainingPlan(steps=1), dropout=False)
            wanted, _ = loss_and_gradients(hybrid, Forward(hybrid.model, kind=KIND), rows)
            assert loss_and_gradients(hybrid, forward, rows)[0] == pytest.approx(wanted, rel=1e-3)


# Which kind
# ------------------------------------------------------------------------------------------------------


def test_the_backbone_decides_between_kinds_that_learn_the_same(folder: Path, pairs_file: str) -> None:
    chats = str(write_chats(folder / "chats.jsonl"))
    prompts = str(write_pairs(folder / "prompts.jsonl", 60, ("prompt", "completion")))
    t5 = spec_of_model(encoder_decoder("t5"))[0]
    llama = spec_of_model(get_kind("causal_lm").head.load_model(str(save_decoder(folder / "llama")), ()))[0]
    for file, alone in ((pairs_file, "seq2seq"), (prompts, "causal_lm"), (chats, "causal_lm")):
        assert load_task(file).kind == alone
        assert load_task(file, backbone=t5).kind == "seq2seq"
        assert load_task(file, backbone=llama).kind == "causal_lm"
        assert load_task(file, backbone=llama, kind="seq2seq").kind == "seq2seq", "what is named is taken"
        assert load_task(file, backbone=llama, metric="rouge_l").kind == "causal_lm"
    assert load_task(chats, backbone=t5).splits["train"].texts[0].count("user: ") in (0, 1, 2)


def test_classes_stay_classes_on_an_encoder_decoder(folder: Path) -> None:
    file = folder / "classes.csv"
    file.write_text("text,label\n" + "".join(f"what is {i},{'yes' if i % 2 else 'no'}\n" for i in range(40)))
    task = load_task(str(file), backbone=spec_of_model(encoder_decoder("t5"))[0])
    assert (task.kind, task.labels) == ("classification", ("no", "yes"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_classification_on_an_encoder_decoder(name: str, folder: Path) -> None:
    file = folder / "classes.csv"
    lines = (f"{'be ' * (i % 2)}what is {'is ' * (i // 2)}one,{'yes' if i % 2 else 'no'}" for i in range(60))
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    backbone = str(save_encoder_decoder(folder / name, name))
    found = autopeft.train(
        recipe=RECIPE, task=str(file), model=backbone, steps=30, batch_size=8, max_length=48,
        out=str(folder / "run"),
    )  # fmt: skip
    assert found.task.kind == "classification"
    assert found.scores["test"] >= 0.5


def test_another_architecture_is_refused_with_the_way_out(folder: Path) -> None:
    decoder, encoder = str(save_decoder(folder / "llama")), str(save_backbone(folder / "bert"))
    with pytest.raises(UsageError, match=r"no encoder with a decoder.*--kind causal_lm.*T5 or BART"):
        KIND.head.load_model(decoder, ())
    with pytest.raises(UsageError, match=r"which seq2seq needs: take a model such as T5 or BART"):
        KIND.head.load_model(encoder, ())
    t5 = str(save_encoder_decoder(folder / "t5"))
    with pytest.raises(UsageError, match=r"causal_lm .*--kind seq2seq"):
        get_kind("causal_lm").head.load_model(t5, ())
    with pytest.raises(UsageError, match=r"is an encoder-decoder, and multiple_choice is for decoders"):
        get_kind("multiple_choice").head.load_model(t5, ())


# Bad data
# ------------------------------------------------------------------------------------------------------


def written(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


GOOD = [{"source": f"what {'is ' * i}one", "target": "two"} for i in range(12)]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"source": "what", "target": " "}, r"column 'target' has an empty answer in row 13"),
        ({"source": "what"}, r"column 'target' has an empty answer in row 13"),
        ({"source": "", "target": "two"}, r"column 'source' has an empty prompt in row 13"),
        ({"source": "what", "target": 3.5}, r"has a message that is not text in row 13"),
        ({"source": "what", "target": "\ud800"}, r"has text that is not Unicode in row 13"),
    ],
)
def test_bad_rows_are_named(record: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(DataError, match=said):
        load_task(written(folder / "bad.jsonl", *GOOD, record))


def test_a_column_that_is_missing_is_named(folder: Path) -> None:
    file = written(folder / "bad.jsonl", *({"source": row["source"]} for row in GOOD))
    with pytest.raises(DataError, match=r"sources and targets \(source, target\).*it has 'source'.*--label"):
        load_task(file, kind="seq2seq")
    texts = written(folder / "texts.jsonl", *({"text": row["source"]} for row in GOOD))
    with pytest.raises(DataError, match=r"without targets"):
        load_task(texts, kind="seq2seq")
    with pytest.raises(DataError, match=r"has no column 'out' for --label"):
        load_task(written(folder / "more.jsonl", *GOOD), label="out")


def test_sources_that_are_too_long_are_counted(
    folder: Path, pairs_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = str(save_encoder_decoder(folder / "t5"))
    with caplog.at_level(logging.WARNING, "autopeft"):
        found = autopeft.train(
            recipe=RECIPE, task=pairs_file, model=backbone, steps=1, max_length=9, out=str(folder / "run")
        )
    share = next(line for line in found.summary.lines() if line.startswith("truncated"))
    assert "0.0 % of train" not in share
    assert "to 9 tokens" in share
    assert any("sources do not fit into 9 tokens and are cut" in r.getMessage() for r in caplog.records)


def test_class_weights_and_metrics_of_classes_are_refused(pairs_file: str) -> None:
    with pytest.raises(TaskError, match="Class weights are for classification"):
        load_task(pairs_file, class_weights="balanced")
    with pytest.raises(TaskError, match="accuracy"):
        load_task(pairs_file, kind="seq2seq", metric="accuracy")


@pytest.mark.parametrize(
    "said", [{"decoder_start_token_id": 10**6}, {"decoder_start_token_id": -1}, {"forced_bos_token_id": 19}]
)
def test_a_decoder_that_would_begin_with_no_token_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, int]
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file = save_encoder_decoder(tmp_path / "t5") / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    given = {"task": str(write_pairs(tmp_path / "pairs.jsonl", 40)), "model": "t5", "max_length": 32}
    recipe = Recipe.from_dict({"name": "l", "layers": [{"attach": ["lora"]}]})
    (name,) = said

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("it is trained")

    monkeypatch.setattr("autopeft.training.fixed.train_hybrid", never)
    with pytest.raises(UsageError, match=f"begin with {name}=.* 0 to 18"):
        autopeft.train(recipe=recipe, out="run", **given)
    with pytest.raises(UsageError, match=f"begin with {name}="):
        prepare(SearchArguments(budget="20%", space="lora", **given))
    assert not (tmp_path / "run").exists()
