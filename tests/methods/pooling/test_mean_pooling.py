"""Mean pooling: whatever the head reads is the mean of the text's own tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.training import encoded_task
from torch import Tensor, nn

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import CompositionError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, train

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra", "gpt2", "llama", "vit")
PROMPT = {"prompt_tuning": {"length": 3}}
POOLED = Recipe.from_dict({"name": "mean", "model": ["mean_pooling"]})


def recipe(*model: Any, layers: Any = ()) -> Recipe:
    blocks = [{"attach": list(layers)}] if layers else []
    return Recipe.from_dict({"name": "m", "layers": blocks, "model": ["mean_pooling", *model]})


def inputs_of(name: str) -> dict[str, Tensor]:
    return tiny_inputs(name) if name == "vit" else tiny_inputs(name, pad=2)


def last_layer(hybrid: Hybrid) -> nn.Module:
    return hybrid.injection.base.get_submodule(hybrid.injection.layout.stacks[-1].layers[-1])


def yielded(layer: nn.Module, seen: list[Tensor]) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    return layer.register_forward_hook(keep)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_position_has_the_mean_of_the_bare_models_tokens(name: str) -> None:
    model, inputs = tiny_model(name), inputs_of(name)
    bare, seen = copy.deepcopy(model), list[Tensor]()
    hybrid = attach(model, POOLED, seed=0)
    path = hybrid.injection.layout.stacks[-1].layers[-1]
    for base in (hybrid.injection.base, bare.base_model):
        yielded(base.get_submodule(path), seen)
    logits(model, inputs)
    logits(bare, inputs)
    ours, theirs = seen
    mask = inputs.get("attention_mask", torch.ones(theirs.shape[:2]))
    for row, states, real in zip(ours, theirs, mask, strict=True):
        mean = states[real.bool()].mean(0)
        torch.testing.assert_close(row, mean.expand_as(row), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("prompt", [(), (PROMPT,)])
@pytest.mark.parametrize("pooler", [True, False])
def test_the_head_reads_the_mean_through_a_pooler_or_past_it(pooler: bool, prompt: Any) -> None:
    model, inputs, seen = tiny_model("bert"), inputs_of("bert"), list[Tensor]()
    before = logits(model, inputs)
    made = Recipe.from_dict({"name": "m", "model": [{"mean_pooling": {"pooler": pooler}}, *prompt]})
    hybrid = attach(model, made, seed=0)
    yielded(last_layer(hybrid), seen)
    found = logits(model, inputs)
    read = model.bert.pooler(seen[0]) if pooler else seen[0][:, -1]
    torch.testing.assert_close(found, model.classifier(read), atol=1e-6, rtol=1e-5)
    hybrid.detach()
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("other", ["bitfit", {"child_tuning_d": {"keep": "20%"}}])
def test_nothing_of_a_pooler_that_is_left_out_trains(other: Any) -> None:
    spec, counted = spec_of(tiny_config("bert")), list[int]()
    for pooler in (True, False):
        made = Recipe.from_dict({"name": "m", "model": [{"mean_pooling": {"pooler": pooler}}, other]})
        with attach(tiny_model("bert"), made, seed=0) as hybrid:
            counted.append(hybrid.counts().deployed)
            names = [t.name for t in hybrid.spec.tensors]
            assert ("pooler.dense.bias" in names) == pooler
        assert counted[-1] == count(made, spec).deployed == build_graph(made, spec).parameter_count().deployed
    assert counted[0] > counted[1]


def test_what_is_saved_loads_as_it_was(tmp_path: Path) -> None:
    made = Recipe.from_dict({"name": "m", "model": [{"mean_pooling": {"pooler": False}}, "bitfit"]})
    hybrid = attach(tiny_model("bert"), made, seed=0)
    randomise(hybrid.root)
    hybrid.save(tmp_path / "saved")
    again = load(tiny_model("bert"), tmp_path / "saved")
    assert torch.equal(logits(again.model, inputs_of("bert")), logits(hybrid.model, inputs_of("bert")))


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_rows_of_prompts_are_no_tokens(name: str) -> None:
    model, inputs, seen = tiny_model(name), inputs_of(name), list[Tensor]()
    plain = copy.deepcopy(model)
    ours = attach(model, recipe(PROMPT), seed=0)
    theirs = attach(plain, Recipe.from_dict({"name": "p", "model": [PROMPT]}), seed=0)
    for hybrid in (ours, theirs):
        randomise(hybrid.root, std=0.5)
        yielded(last_layer(hybrid), seen)
    logits(model, inputs)
    logits(plain, inputs)
    pooled, states = seen
    for row, all_of_it, real in zip(pooled, states, inputs["attention_mask"], strict=True):
        torch.testing.assert_close(row[0], all_of_it[3:][real.bool()].mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_a_row_gives_does_not_depend_on_its_padding(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name, pad=3)
    attach(model, POOLED, seed=0)
    whole = logits(model, inputs)
    real = inputs["attention_mask"][0].bool()
    alone = logits(model, {key: value[:1, real] for key, value in inputs.items()})
    if name == "gpt2":  # whose map reads every position: all have the same
        whole, alone = whole[:, 0], alone[:, 0]
    torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=1e-4)


def test_a_mask_that_does_not_tell_padding_is_refused() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=3)
    attach(model, POOLED, seed=0)
    mask = inputs["attention_mask"][:, None, None].expand(-1, 1, inputs["input_ids"].shape[1], -1).bool()
    for other, came in ((mask, r"\(\d, 1, "), ({"full_attention": mask}, "a dict")):
        with pytest.raises(CompositionError, match=rf"mask of shape \(batch, positions\), but got {came}"):
            logits(model, {**inputs, "attention_mask": other})  # type: ignore[dict-item]


def test_a_layer_that_runs_several_times_has_no_last_one() -> None:
    with pytest.raises(CompositionError, match="runs 3 times"):
        attach(tiny_model("albert"), POOLED)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_padding_of_a_decoder_is_not_known(name: str) -> None:
    with pytest.raises(CompositionError, match="not told which of its tokens are padding"):
        attach(tiny_model(name), POOLED)


def test_it_is_alone_in_the_place_of_its_layer() -> None:
    coda = {"layers": [{"at": "all", "attach": ["coda"]}], "model": ["mean_pooling"]}
    with pytest.raises(CompositionError, match="coda and mean_pooling would each take the place"):
        build_graph(Recipe.from_dict(coda), spec_of(tiny_config("bert")))


def test_a_text_is_not_written_with_it() -> None:
    model = tiny_model("gpt2", head="lm")
    attach(model, POOLED, seed=0)
    with pytest.raises(CompositionError, match=r"What the head reads depends on the text.*use_cache=False"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)  # type: ignore[operator]


def test_shortcuts_and_plain_forwards_train_alike() -> None:
    """The last layer is no longer computed for one position alone."""
    found = []
    for shortcuts in (True, False):
        model, data = tiny_model("bert"), encoded_task()
        hybrid = attach(model, recipe(layers=[{"lora": {"rank": 2}}]), seed=0)
        train(hybrid, data, TrainingPlan(steps=3, batch_size=8, shortcuts=shortcuts, seed=1))
        found.append({name: value.clone() for name, value in hybrid.root.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4)
