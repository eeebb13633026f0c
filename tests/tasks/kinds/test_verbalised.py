"""Label words in the place of a head: the logits of the plain language model; training, saving, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import on_logits
from support.cloze import MASKED, NAMES, TEMPLATES, WORDS, save_causal, save_masked
from support.language import encoder_decoder, loss_and_gradients, side_tokenizer
from support.saved_model import write_reviews
from support.tiny import randomise
from support.training import LORA
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import autopeft
from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.cli import main
from autopeft.errors import TaskError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.api import plan
from autopeft.search.core.events import SilentReporter
from autopeft.tasks import EncodedTask, Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds.cloze import label_logits, read_words
from autopeft.tasks.kinds.verbalised import ClozeEncoder
from autopeft.training import TrainingPlan, evaluate, predict, train
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.losses import logits_of

BOTH = ("bert", "llama")
PROMPTS: tuple[Any, ...] = (
    {"prompt_tuning": {"length": 4}},
    {"p_tuning": {"length": 3}},
)
AUTO = {"bert": AutoModelForMaskedLM, "llama": AutoModelForCausalLM}


def recipe(*items: Any, at: Any = "all", model: Any = ()) -> Recipe:
    layers = [{"at": at, "attach": list(items)}] if items else []
    training = {"learning_rate": 0.02}
    return Recipe.from_dict({"name": "r", "layers": layers, "model": list(model), "training": training})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_masked(folder / "bert")
    save_causal(folder / "llama")
    write_reviews(folder / "data.csv", 160)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(place / "cache"))


def task_for(name: str, **options: Any) -> Task:
    told: dict[str, Any] = {"text": "body", "label": "verdict", "label_words": WORDS, **options}
    return load_task("data.csv", backbone=spec_of(load_config(name)), **told)


def data_for(name: str, **options: Any) -> EncodedTask:
    return encode(task_for(name, **options), load_tokenizer(name), 40)


def hybrid_on(name: str, made: Recipe) -> Hybrid:
    hybrid = attach(task_for(name).task_kind.head.load_model(name, NAMES), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def by_hand(model: Any, name: str, texts: list[str], *, left: bool = False) -> Tensor:
    """Logits of the label words as one writes it with transformers alone, a row at a time, or in a batch that
    is padded on the left."""
    tokenizer = load_tokenizer(name)
    words = tokenizer.convert_tokens_to_ids(WORDS.split(","))
    filled = [TEMPLATES[name].format(text=text, mask=tokenizer.mask_token) for text in texts]
    if left:
        batch = tokenizer(filled, return_tensors="pt", padding=True, padding_side="left")
        places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        found: Tensor = model(**batch, position_ids=places).logits
        at = (batch["input_ids"] == tokenizer.mask_token_id).float().argmax(1) if MASKED[name] else -1
        rows = torch.arange(len(texts))
        return found[rows, at][:, words]
    parts = []
    for text in filled:
        batch = tokenizer(text, return_tensors="pt")
        ids = batch["input_ids"][0].tolist()
        at = ids.index(tokenizer.mask_token_id) if MASKED[name] else -1
        parts.append(model(**batch).logits[0, at, words])
    return torch.stack(parts)


# What is computed
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_logits_and_loss_are_those_of_the_plain_language_model(name: str) -> None:
    data = data_for(name)
    assert data.task.labels == NAMES
    model = data.task.task_kind.head.load_model(name, NAMES)
    plain = AUTO[name].from_pretrained(name).eval()
    texts = data.task.splits["test"].texts
    with torch.no_grad():
        wanted, sideways = (by_hand(plain, name, texts, left=left) for left in (False, True))
    found = torch.from_numpy(predict(model, data.test, batch_size=5))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(found, sideways, atol=1e-5)
    assert float((wanted[:, 0] - wanted[:, 1]).std()) > 0.1, "the rows differ"
    labels = torch.tensor(data.task.splits["test"].labels)
    loss = data.task.task_kind.scorer.row_loss(found.numpy(), labels.numpy())
    assert loss == pytest.approx(float(F.cross_entropy(wanted, labels)), rel=1e-5)
    assert float(data.task.loss().mean(found, {"labels": labels})) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_a_batch_may_be_padded_on_the_left(name: str) -> None:
    data = data_for(name)
    model = data.task.task_kind.head.load_model(name, NAMES)
    batch = data.test.collate(range(6))
    mask = batch["attention_mask"]
    turned = dict(batch)
    for row, length in enumerate(mask.sum(1).tolist()):
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            if key in batch:
                turned[key] = turned[key].clone()
                turned[key][row] = batch[key][row].roll(mask.shape[1] - length)
    turned["position_ids"] = (turned["attention_mask"].cumsum(1) - 1).clamp(min=0)
    forward = Forward(model, kind=data.task.task_kind)
    with torch.no_grad():
        assert torch.allclose(forward(turned), forward(batch), atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("prompt", [*PROMPTS, {"prefix_tuning": {"length": 3}}], ids=lambda p: next(iter(p)))
def test_prompts_move_no_mask(name: str, prompt: dict[str, Any]) -> None:
    """With rows in front of a text the logits are those of the model that is given the rows' states."""
    data = data_for(name)
    layered = "prefix_tuning" in prompt
    made = recipe(prompt) if layered else recipe(model=[prompt])
    with hybrid_on(name, made) as hybrid:
        with torch.no_grad():
            wanted = by_hand(hybrid.model, name, data.task.splits["test"].texts)
        way = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        for forward in (None, way):
            found = predict(hybrid.model, data.test, batch_size=5, forward=forward)
            assert np.allclose(found, wanted.numpy(), atol=1e-4), "padding changes the order of sums"
    if layered:
        return
    with hybrid_on(name, made) as hybrid, torch.no_grad():
        (module,) = hybrid.modules.values()
        tokenizer = load_tokenizer(name)
        text = data.task.splits["test"].texts[0]
        whole = tokenizer(TEMPLATES[name].format(text=text, mask=tokenizer.mask_token), return_tensors="pt")
        told = hybrid.model(**whole).logits
        found = predict(hybrid.model, data.test)[0]
    assert told.shape[1] == whole["input_ids"].shape[1], "what leaves the model is without the prompt's rows"
    ids = whole["input_ids"][0].tolist()
    at = ids.index(tokenizer.mask_token_id) if MASKED[name] else -1
    words = tokenizer.convert_tokens_to_ids(WORDS.split(","))
    assert np.allclose(found, told[0, at, words].numpy(), atol=1e-5)
    assert module is not None


@pytest.mark.parametrize("name", BOTH)
def test_the_label_words_rows_of_the_projection_are_enough(name: str) -> None:
    """To 1e-6 of the projection to all words, with the same gradients, and the model is as before."""
    data = data_for(name)
    batch = data.train.collate(range(7))
    kind = data.task.task_kind
    with hybrid_on(name, recipe(LORA)) as hybrid:
        whole = logits_of(hybrid.model, batch)
        assert whole.shape[-1] == len(load_tokenizer(name))
        with read_words(hybrid.model, batch):
            few = logits_of(hybrid.model, batch, kind)
        assert few.shape == (7, 2)
        assert torch.allclose(few, label_logits(whole, batch), atol=1e-6, rtol=1e-6)
        assert torch.equal(logits_of(hybrid.model, batch), whole), "nothing stays behind"
        wanted, gradients = loss_and_gradients(hybrid, _Plain(hybrid.model, kind=kind), data)
        found, own = loss_and_gradients(hybrid, Forward(hybrid.model, kind=kind), data)
    assert found == pytest.approx(wanted, rel=1e-6)
    for key, gradient in gradients.items():
        assert torch.allclose(own[key], gradient, atol=1e-5, rtol=1e-4), key


class _Plain(Forward):
    """Logits of all positions and words, from which those that count are picked."""

    def logits(self, batch: Any, states: Any) -> Tensor:
        return logits_of(self.model, batch, self.kind)


@pytest.fixture
def _on_logits() -> Iterator[None]:
    with on_logits.registered():
        yield


@pytest.mark.usefixtures("_on_logits")
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("case", sorted(on_logits.CASES))
def test_what_acts_on_logits_is_told_of_all_words(name: str, case: str) -> None:
    level, item = on_logits.CASES[case]
    assert level == "model"
    data = data_for(name)
    with hybrid_on(name, recipe(model=[item])) as hybrid, torch.no_grad():
        wanted = by_hand(hybrid.model, name, data.task.splits["test"].texts)
        found = predict(hybrid.model, data.test, batch_size=5)
        assert np.allclose(found, wanted.numpy(), atol=1e-4)
        hybrid.detach()
        assert not np.allclose(predict(hybrid.model, data.test), found, atol=1e-3)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("made", "trunk", "rows"),
    [
        (recipe(LORA), False, True),
        (recipe(LORA, at=[2]), True, True),
        (recipe("serial_adapter", at=[1, 2]), True, True),
        (recipe(model=PROMPTS[:1]), False, True),
        (recipe({"prefix_tuning": {"length": 3}}, at=[2]), True, True),
    ],
    ids=["lora", "lora above", "adapter", "prompt", "prefix"],
)
def test_shortcuts_give_the_same(name: str, made: Recipe, trunk: bool, rows: bool) -> None:
    """Untouched layers come from the store, and the last one is computed for the read position alone."""
    data = data_for(name)
    with hybrid_on(name, made) as hybrid:
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        assert (forward.trunk is not None, forward.rows is not None) == (trunk, rows)
        assert forward.rows is None or forward.rows.reader is None, "each batch says where"
        wanted, gradients = loss_and_gradients(hybrid, _Plain(hybrid.model, kind=data.task.task_kind), data)
        found, own = loss_and_gradients(hybrid, forward, data)
        assert found == pytest.approx(wanted, rel=2e-3 if trunk else 1e-5), "states are kept in fp16"
        for key, gradient in gradients.items():
            scale = (5e-3 if trunk else 1e-4) * max(1e-3, float(gradient.abs().max()))
            assert torch.allclose(own[key], gradient, atol=scale), key
        near = predict(hybrid.model, data.test, forward=forward)
        assert np.allclose(near, predict(hybrid.model, data.test), atol=2e-2 if trunk else 1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_a_late_prompt_that_is_made_of_the_text_learns(name: str) -> None:
    """On a decoder too: one word is predicted, behind all that it is made of."""
    data = data_for(name)
    with hybrid_on(name, recipe(model=[{"lpt": {"length": 3, "bottleneck": 8}}])) as hybrid:
        found = train(hybrid, data, TrainingPlan(steps=40, batch_size=16, device="cpu"))
    assert found.final_loss < 0.8 * found.first_loss


# From end to end
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_a_recipe_is_trained_saved_and_asked(name: str, tmp_path: Path) -> None:
    plain = AUTO[name].from_pretrained(name)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    found = autopeft.train(
        recipe=recipe(LORA), task="data.csv", text="body", label="verdict", model=name, steps=60,
        batch_size=16, label_words={"yes": "good", "no": "bad"}, out=tmp_path / "run",
    )  # fmt: skip
    losses = [loss for _, loss in found.history.losses]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert MASKED[name] or found.scores["test"] >= 0.8
    assert found.counts["head"] == 0
    after = found.hybrid.model.state_dict()
    heads = [key for key in before if key.startswith(("lm_head", "cls"))]
    assert heads
    assert all(torch.equal(after[key], before[key]) for key in heads)
    kind = found.task.task_kind
    assert isinstance(kind.encoder, ClozeEncoder)
    assert kind.encoder.words.words == ("bad", "good"), "in the order of the classes"
    assert str(kind.encoder.template) == TEMPLATES[name], "the backbone's default"
    assert dict(found.summary.facts)["template"] == repr(TEMPLATES[name])
    assert dict(found.summary.facts)["label words"] == "'bad' for 'no', 'good' for 'yes'"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["kind"] == kind.name
    assert manifest["arguments"]["label_words"] == "yes=good,no=bad"
    assert autopeft.evaluate(tmp_path / "run").score == pytest.approx(found.scores["test"])
    exported = autopeft.export(tmp_path / "run", tmp_path / "exported")
    assert exported.format == "peft"
    scored = autopeft.evaluate(tmp_path / "exported", task="data.csv", text="body", label="verdict", seed=0)
    assert scored.score == pytest.approx(found.scores["test"])
    texts = found.task.splits["test"].texts
    answers = [autopeft.predict(where, texts) for where in (found, tmp_path / "exported")]
    assert [a["label"] for a in answers[0]] == [a["label"] for a in answers[1]]
    outputs = predict(found.hybrid.model, encode(found.task, found.tokenizer, 48).test)
    assert np.allclose([a["logits"] for a in answers[0]], outputs, atol=1e-4)


def test_rows_with_some_of_the_classes_are_scored(tmp_path: Path) -> None:
    three = Path("data.csv").read_text() + "".join(f"the story {'a ' * i},so\n" for i in range(40))
    (tmp_path / "three.csv").write_text(three)
    found = autopeft.train(
        recipe=recipe(LORA), task=tmp_path / "three.csv", text="body", label="verdict", model="bert", steps=2,
        label_words={"no": "bad", "so": "dull", "yes": "good"}, out=tmp_path / "run",
    )  # fmt: skip
    for seed in (None, 0):  # as a whole, and cut as for training
        scored = autopeft.evaluate(found, task="data.csv", text="body", label="verdict", seed=seed)
        assert scored.task.labels == ("no", "so", "yes")
        assert scored.task.kind == found.task.kind
    (tmp_path / "some.csv").write_text("body,verdict\n" + "the good film,yes\nthe film,yes\n" * 6)
    scored = autopeft.evaluate(found, task=tmp_path / "some.csv", text="body", label="verdict")
    assert scored.rows == 12
    (tmp_path / "pairs.csv").write_text("a,b,verdict\n" + "the good film,a,yes\nthe film,a,no\n" * 6)
    with pytest.raises(TaskError, match="have two texts each"):
        autopeft.evaluate(found, task=tmp_path / "pairs.csv", text="a", text_pair="b", label="verdict")


def test_pairs_of_texts(tmp_path: Path) -> None:
    path, lines = tmp_path / "pairs.csv", ["sentence1,sentence2,label"]
    for i in range(60):
        word = ("bad", "good")[i % 2]
        lines.append(f"{'the ' * (i % 7)}film,{'a ' * (i // 7)}{word},{NAMES[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    for name, template in (
        ("bert", "{text} ? {mask} , {text_pair}"),
        ("llama", "{text} {text_pair} Answer:"),
    ):
        task = load_task(path, label_words=WORDS, backbone=spec_of(load_config(name)))
        kind = task.task_kind
        assert isinstance(kind.encoder, ClozeEncoder)
        assert str(kind.encoder.template) == template
        found = predict(kind.head.load_model(name, NAMES), encode(task, load_tokenizer(name), 48).test)
        assert found.shape == (len(task.splits["test"]), 2)
    with pytest.raises(TaskError, match=re.escape("has no {text_pair}; write for example '{text} ? {mask}")):
        load_task(path, label_words=WORDS, template="{text} {mask}")


class Dies(SilentReporter):
    """Ends the process, as far as the search can tell, when its first trial has ended."""

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        raise RuntimeError("killed")


@pytest.mark.slow
def test_a_search_goes_on_and_compares_with_the_backbone_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "budget": "30%", "task": "data.csv", "text": "body", "label": "verdict", "model": "bert",
        "space": "lora", "trials": 2, "steps": 8, "confirm": 1, "confirm_seeds": 1, "batch_size": 8,
        "label_words": ["bad", "good"], "workers": 0, "baselines": "lora,head,untuned", "effort": "quick",
        "max_length": 40, "out": str(tmp_path / "run"),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        autopeft.search(**options, reporter=Dies())
    assert main(["search", "--resume", options["out"], "--label-words", "poor,fine"]) == 2
    assert "keeps its label_words" in capsys.readouterr().err
    found = autopeft.search(resume=options["out"])
    names = [baseline.name for baseline in found.baselines]
    assert "untuned backbone" in names
    assert not any("head" in name for name in names), "there is no head that could train alone"
    untuned = next(b for b in found.baselines if b.name == "untuned backbone")
    data = data_for("bert")
    whole = evaluate(data.task.task_kind.head.load_model("bert", NAMES), data.test, "accuracy")
    assert untuned.test_mean == pytest.approx(whole)
    assert main(["report", options["out"], "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "label_words=&#39;bad,good&#39;" in page


# What is refused
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_weights_without_a_language_models_head(name: str, tmp_path: Path) -> None:
    save = save_masked if MASKED[name] else save_causal
    folder = str(save(tmp_path / name, head=False))
    kind = task_for(name).task_kind
    said = "have no head that predicts tokens: [1-9] tensors are missing .* and would be random"
    with pytest.raises(UsageError, match=said):
        kind.head.load_model(folder, NAMES)
    with pytest.raises(UsageError, match=said):
        kind.head.check_weights(resolve_model(folder))
    kind.head.check_weights(resolve_model(name))
    with pytest.raises(UsageError, match=said):
        plan(
            budget="30%", task="data.csv", text="body", label="verdict", model=folder, space="lora",
            label_words=WORDS,
        )  # fmt: skip


def test_a_tied_head_is_the_embeddings(tmp_path: Path) -> None:
    folder = str(save_causal(tmp_path / "tied", head=False, tie_word_embeddings=True))
    kind = task_for("llama").task_kind
    kind.head.check_weights(resolve_model(folder))
    model = kind.head.load_model(folder, NAMES)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_does_not_fit_the_backbone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("has no {mask}, but 'bert' is no decoder")):
        _train("bert", template="{text} It was", out=tmp_path / "a")
    with pytest.raises(UsageError, match=re.escape("has a {mask}, but 'llama' is a decoder")):
        _train("llama", template="{text} {mask}", out=tmp_path / "a")
    encoder_decoder("t5").save_pretrained(tmp_path / "t5")
    side_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(UsageError, match="is an encoder-decoder"):
        _train(str(tmp_path / "t5"), out=tmp_path / "a")
    with pytest.raises(TaskError, match="'awful' is unknown to the model's tokenizer"):
        _train("bert", label_words="awful,good", out=tmp_path / "a")
    with pytest.raises(TaskError, match=r"3 label words.* 2 classes"):
        _train("bert", label_words="bad,good,fine", out=tmp_path / "a")
    with pytest.raises(UsageError, match="kind 'regression' can be told nothing"):
        _train("bert", kind="regression", out=tmp_path / "a")
    with pytest.raises(UsageError, match="unknown field"):
        _train("bert", template="{texts} {mask}", out=tmp_path / "a")


def _train(name: str, **options: Any) -> None:
    told = {"task": "data.csv", "text": "body", "label": "verdict", "label_words": WORDS, **options}
    autopeft.train(recipe=recipe(LORA), model=name, steps=1, **told)


def test_without_a_backbone_the_template_is_asked_for() -> None:
    options: dict[str, Any] = {"text": "body", "label": "verdict", "label_words": ("bad", "good")}
    with pytest.raises(TaskError, match="none is named: write"):
        load_task("data.csv", **options)
    task = load_task("data.csv", template="{text} {mask}", **options)
    assert task.task_kind.head.auto_class is AutoModelForMaskedLM
    assert (
        load_task("data.csv", template="{text}", **options).task_kind.head.auto_class is AutoModelForCausalLM
    )
