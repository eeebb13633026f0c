"""A model that holds a hybrid saves the hybrid and the head, and the Trainer goes on from them."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from support.fingerprint import changed, fingerprint
from support.tiny import LogitsObjective, logits, randomise, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe

FILES = ["README.md", "hybrid.json", "model.safetensors", "recipe.yaml", "weights.safetensors"]


def recipe(*attached: Any, model: list[Any] | None = None, **training: Any) -> Recipe:
    return Recipe.from_dict(
        {"name": "r", "layers": [{"attach": list(attached)}], "model": model or [], "training": training}
    )


GATED = {
    "gate": [{"lora": {"rank": 2, "dropout": 0.1}}, {"prefix_tuning": {"length": 2, "reparameterization": 8}}]
}
MIXED = recipe(
    GATED,
    "ia3",
    groups={"lora": {"learning_rate": 3e-2}, "head": {"learning_rate": 5e-3}},
    policies=[{"lora_plus": {"ratio": 4}}],
    weight_decay=0.1,
    schedule="cosine",
)
RECIPES = {
    "mixed": MIXED,
    "adalora": recipe({"adalora": {"rank": 2}}),
    "fish": Recipe.from_dict({"name": "f", "model": [{"fish_mask": {"keep": "1%", "samples": 4}}]}),
    "head": Recipe.from_dict({"name": "h", "layers": []}),
    "momentum": recipe("lora", optimizer={"name": "sgd", "momentum": 0.9}, learning_rate=0.1),
}


def rows(n: int = 16) -> list[dict[str, Any]]:
    batch = encoded_task(train=n).train.collate(range(n))
    return [{name: batch[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(n)]


def calibrated(hybrid: Hybrid) -> Hybrid:
    if hybrid.needs_prepare:
        batches = [{k: v[None] for k, v in row.items()} for row in rows(4)]
        hybrid.prepare(batches, LogitsObjective(hybrid.model))
    return hybrid


def trainer(folder: Path, hybrid: Hybrid, **options: Any) -> Trainer:
    """Six steps of four of 16 rows, with a checkpoint after the third, in the middle of an epoch."""
    given: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "seed": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(folder), **{**given, **options})
    data: Any = rows()
    return Trainer(hybrid.model, args, train_dataset=data, eval_dataset=data, **hybrid.for_trainer())


def trained_values(hybrid: Hybrid) -> dict[str, Tensor]:
    return {**hybrid.root.state_dict(), **{k: v.detach() for k, v in hybrid.head().items()}}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


# Trainer
# -----------------------------------------------------------------------------------------------------------


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in ("mixed", "adalora")]


@pytest.mark.parametrize("name", ["mixed", "adalora", *SLOWER])
def test_the_trainer_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    hybrid = calibrated(attach(tiny_bert(), RECIPES[name], seed=0))
    start = {k: v.clone() for k, v in trained_values(hybrid).items()}
    trainer(tmp_path / "whole", hybrid).train()
    expected = trained_values(hybrid)
    assert differing(start, expected)

    stopped = calibrated(attach(tiny_bert(), RECIPES[name], seed=0))
    first = trainer(tmp_path / "parts", stopped)
    assert first.args.max_steps == 6
    first.callback_handler.on_step_end = _stop_at(first.callback_handler.on_step_end, 3)  # type: ignore[method-assign]
    first.train()
    assert first.state.global_step == 3

    fresh = attach(tiny_bert(), RECIPES[name], seed=9)  # neither its init nor a calibration matters
    second = trainer(tmp_path / "parts", fresh)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert differing(expected, trained_values(fresh)) == []


def _stop_at(inner: Any, step: int) -> Any:
    def on_step_end(args: Any, state: Any, control: Any) -> Any:
        control = inner(args, state, control)
        control.should_training_stop |= state.global_step == step
        return control

    return on_step_end


def test_a_checkpoint_holds_the_hybrid_and_the_head_alone(tmp_path: Path) -> None:
    hybrid = attach(tiny_bert(hidden_dropout_prob=0.0), MIXED, seed=0)
    trainer(tmp_path, hybrid, save_only_model=True).train()
    folder = tmp_path / "checkpoint-6"
    assert set(FILES) <= {p.name for p in folder.iterdir()}
    assert not (folder / "config.json").exists()
    held = load_file(folder / "model.safetensors")
    assert differing(held, {**_named(hybrid)}) == []
    backbone = sum(p.numel() for n, p in hybrid.model.named_parameters() if n.startswith("bert."))
    assert 0 < sum(v.numel() for v in held.values()) < backbone
    assert json.loads((folder / "hybrid.json").read_text())["architecture"] == "BertForSequenceClassification"

    inputs = {k: torch.stack([row[k] for row in rows()]) for k in ("input_ids", "attention_mask")}
    other = tiny_bert()
    load(other, folder)
    torch.testing.assert_close(other(**inputs).logits, hybrid.model.eval()(**inputs).logits)


def _named(hybrid: Hybrid) -> dict[str, Tensor]:
    inner = {f"autopeft.{k}": v for k, v in hybrid.root.state_dict().items()}
    return {**inner, **{k: v.detach() for k, v in hybrid.head().items()}}


@pytest.mark.parametrize("name", ["mixed", "fish"])
def test_the_best_checkpoint_comes_back_at_the_end(name: str, tmp_path: Path) -> None:
    hybrid = calibrated(attach(tiny_bert(), RECIPES[name], seed=0))
    run = trainer(
        tmp_path,
        hybrid,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst, which is not the last one
    )
    run.train()
    best = Path(str(run.state.best_model_checkpoint))
    assert best.name != "checkpoint-6"
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert differing(load_file(best / "model.safetensors"), _named(hybrid)) == []
    assert differing(last, _named(hybrid))


def test_the_trainer_misses_no_backbone(tmp_path: Path) -> None:
    """It would log a warning that names every tensor of it."""
    hybrid = attach(tiny_bert(), MIXED, seed=0)
    hybrid.model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for strict in (True, False):
        found = hybrid.model.load_state_dict(state, strict=strict)
        assert (found.missing_keys, found.unexpected_keys) == ([], [])
    del state["classifier.bias"]
    with pytest.raises(DataError, match=r"classifier\.bias: missing in the file"):
        hybrid.model.load_state_dict(state, strict=False)
    whole = {k: v for k, v in hybrid.model.state_dict().items() if k != "bert.pooler.dense.bias"}
    assert hybrid.model.load_state_dict(whole, strict=False).missing_keys == ["bert.pooler.dense.bias"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (recipe({"lora": {"rank": 3}}), r"at\.encoder-0-q\.A: missing in the file|\(2, 16\) in the file"),
        (RECIPES["fish"], "missing in the model"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_and_nothing_changes(
    other: Recipe, says: str, tmp_path: Path
) -> None:
    trainer(tmp_path, attach(tiny_bert(), recipe({"lora": {"rank": 2}}), seed=0)).train()
    hybrid = calibrated(attach(tiny_bert(), other, seed=0))
    before = {k: v.clone() for k, v in hybrid.model.state_dict().items()}
    with pytest.raises(DataError, match=says):
        trainer(tmp_path, hybrid).train(resume_from_checkpoint=True)
    assert differing(before, hybrid.model.state_dict()) == []


# save_pretrained
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "vit"])
def test_what_is_saved_is_loaded_with_equal_logits(architecture: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(architecture), tiny_inputs(architecture)
    plain = logits(model, inputs)
    hybrid = attach(model, recipe(GATED, {"lora": {"rank": 1}, "as": "mine"}), seed=0)
    randomise(hybrid.root)
    for parameter in hybrid.head_parameters():
        torch.nn.init.normal_(parameter)
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    other = tiny_model(architecture)
    load(other, tmp_path)
    torch.testing.assert_close(logits(other, inputs), expected)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_from_pretrained_does_not_take_it_for_a_model_without_a_word(tmp_path: Path) -> None:
    model = attach(tiny_bert(), MIXED, seed=0).model
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    # A class of its own asks for no config.json; transformers lists what is missing then.
    _, told = BertForSequenceClassification.from_pretrained(
        tmp_path, config=model.config, output_loading_info=True
    )
    backbone = {name for name in model.state_dict() if name.startswith("bert.")}
    assert told["missing_keys"] == backbone


def test_the_files_of_a_whole_model_are_left_alone(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    hybrid = attach(model, MIXED, seed=0)
    randomise(hybrid.root)
    with pytest.warns(UserWarning, match="holds a whole model"):
        model.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    fresh = BertForSequenceClassification.from_pretrained(tmp_path)
    load(fresh, tmp_path)
    inputs = tiny_inputs("bert")
    inputs["input_ids"] %= 40
    torch.testing.assert_close(logits(fresh, inputs), logits(model.eval(), inputs))


def test_afterwards_the_model_saves_itself_as_before(tmp_path: Path) -> None:
    model = tiny_bert()
    before = fingerprint(model)
    hybrid = attach(model, recipe("lora"), seed=0)
    randomise(hybrid.root)
    assert "save_pretrained" in model.__dict__
    expected = model(torch.tensor([[5, 6, 7]])).logits
    hybrid.detach()
    assert changed(before, fingerprint(model)) == []

    model.save_pretrained = mine = lambda *args, **options: "mine"  # type: ignore[assignment]
    attach(model, recipe("lora"), seed=0).detach()
    assert model.save_pretrained is mine
    del model.save_pretrained

    again = attach(model, recipe("lora"), seed=0)
    randomise(again.root)
    again.merge().save_pretrained(tmp_path)
    reloaded = BertForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(torch.tensor([[5, 6, 7]])).logits, expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_the_model_saves_itself(how: str, tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe(GATED), seed=0)
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    randomise(copied.autopeft)
    copied.save_pretrained(tmp_path / "copied")
    model.save_pretrained(tmp_path / "first")
    for saved, source in (("copied", copied), ("first", model)):
        other = tiny_model("bert")
        load(other, tmp_path / saved)
        torch.testing.assert_close(logits(other, inputs), logits(source, inputs))
    copied.load_state_dict(load_file(tmp_path / "first" / "model.safetensors"))
    torch.testing.assert_close(logits(copied, inputs), logits(model, inputs))
    assert hybrid.attached


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_hybrid_comes_off_its_model_as_any_other(how: str, tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe("lora"), seed=0)
    randomise(hybrid.root)
    expected = logits(model, inputs)
    copied = copy.deepcopy(hybrid) if how == "deepcopy" else pickle.loads(pickle.dumps(hybrid))
    merged = copied.merge()
    merged.save_pretrained(tmp_path / "merged")
    reloaded = type(model).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(reloaded, inputs), expected)
    assert merged.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    model.save_pretrained(tmp_path / "first")
    assert (tmp_path / "first" / "hybrid.json").is_file(), "the first one is as it was"


def test_what_is_not_saved_is_said(tmp_path: Path) -> None:
    model = tiny_bert()
    hybrid = attach(model, recipe("lora"), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "fine")
    model.bert.pooler.dense.bias.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"bert\.pooler\.dense\.bias train, but belong neither"):
        model.save_pretrained(tmp_path / "more")
    plain = {k: v for k, v in model.state_dict().items() if not k.startswith("autopeft.")}
    with pytest.warns(UserWarning, match="does not bring back the hybrid"):
        model.save_pretrained(tmp_path / "plain", state_dict=dict(plain))
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == plain.keys()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    assert hybrid.attached


@pytest.mark.parametrize(
    ("prefix", "within"),
    [
        ("", ""),
        ("_orig_mod.", ""),
        ("module.", ""),
        ("module._orig_mod.", ""),
        ("_orig_mod.module._fsdp_wrapped_module.", ""),
        ("module.", "_fsdp_wrapped_module._orig_mod."),
    ],
)
def test_tensors_that_were_gathered_elsewhere_are_those_that_are_saved(
    prefix: str, within: str, tmp_path: Path
) -> None:
    model = tiny_bert()
    hybrid = attach(model, recipe({"prefix_tuning": {"length": 2, "reparameterization": 4}}), seed=0)
    parts = {k: k.partition(".") for k in model.state_dict()}  # what is below each child of the model
    elsewhere = {f"{prefix}{parts[k][0]}.{within}{parts[k][2]}": v + 1 for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", state_dict=elsewhere)
    model.save_pretrained(tmp_path / "not", state_dict=elsewhere, is_main_process=False)
    assert not (tmp_path / "not").exists()
    with torch.no_grad():
        for value in _named(hybrid).values():
            value.add_(1)
    hybrid.save(tmp_path / "own")
    found, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("other", "own"))
    assert differing(found, expected) == []


def test_it_is_uploaded_from_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach(tiny_bert(), recipe("lora"), seed=0).model
    asked: list[Any] = []
    monkeypatch.setattr(type(model), "push_to_hub", lambda self, name, **o: asked.append((name, o)))
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, token="t", max_shard_size="1GB")
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/it")
    assert asked == [("mine", {"token": "t"}), ("me/it", {})]


def test_values_of_another_kind_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    model = attach(tiny_bert(), MIXED, seed=0).model
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for dtype in (torch.int64, torch.bool):
        wrong = {**state, "classifier.bias": state["classifier.bias"].to(dtype)}
        with pytest.raises(DataError, match=r"classifier\.bias: \(2,\) of torch\.\w+ in the file"):
            model.load_state_dict(wrong)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.load_state_dict({k: v.double() for k, v in state.items()})


def test_the_readme_loads_a_backbone_with_a_head_of_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of images often have one."""
    tiny_model("vit", num_labels=10).save_pretrained(tmp_path / "base")
    model = ViTForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    attach(model, Recipe.from_dict({"name": "x", "layers": [{"attach": ["lora"]}]}), seed=0)
    model.save_pretrained(tmp_path / "saved")
    code = (tmp_path / "saved" / "README.md").read_text().split("```python\n")[1].split("```\n")[0]
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "saved")
    exec(code, found)
    assert found["hybrid"].model.config.num_labels == 3


def test_the_readme_names_the_backbone_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_bert()
    model.config._name_or_path = "<img src=x onerror=alert(1)>\x1b[31m\n```\n# title"
    attach(model, MIXED, seed=0)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    shown = MarkdownIt("commonmark", {"html": True}).render(text)
    assert "<img" not in shown
    assert shown.count("<h1>") == 1
    assert "\x1b" not in text
    compile(text.split("```python\n")[1].split("```\n")[0], "README.md", "exec")
