"""What acts on logits: the formula on heads and on language models, also where some positions alone are
computed; and where it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import save_decoder, word_tokenizer, write_chats
from support.on_logits import registered
from support.saved_model import save_backbone, small_search
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import autopeft
from autopeft.backbones import projection_of, spec_of_model
from autopeft.counting import count
from autopeft.errors import AutoPEFTError, CompositionError, MethodError, UsageError
from autopeft.graph import build_graph, draw_svg, draw_text, first_layer, unservable
from autopeft.hybrid import attach, load
from autopeft.method import Traits
from autopeft.recipe import Recipe
from autopeft.report.html.heat import heat_of
from autopeft.report.recipe import entries_sheet
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.space.space import Space
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan, train
from autopeft.training.forward import Forward

MAP: dict[str, Any] = {"logit_map": {"rank": 2}}
_LAST: dict[str, Any] = {"at": "last 1", "attach": [{"lora": {"rank": 2}}]}
with registered():
    BOTH = Recipe.from_dict(
        {"name": "both", "model": [MAP, "logit_bias"], "training": {"learning_rate": 0.05}}
    )
    WITH_LORA = Recipe.from_dict({"name": "with", "model": [MAP], "layers": [_LAST]})


@pytest.fixture(scope="module", autouse=True)
def methods() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedTask:
    folder = tmp_path_factory.mktemp("chats")
    return encode(load_task(str(write_chats(folder / "chats.jsonl"))), word_tokenizer(), 48)


@pytest.fixture
def decoder(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "vit"])
def test_what_is_added_is_a_function_of_what_the_last_map_reads(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name, pad=2)
    seen: list[Tensor] = []
    project = projection_of(model)
    assert project is not None
    watch = project.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    before = model(**inputs).logits
    watch.remove()
    hybrid = attach(model, BOTH, seed=0)
    randomise(hybrid.root)
    mapped, bias = (hybrid.modules[n] for n in ("logit_map", "logit_bias"))
    added = seen[0] @ mapped.A.T @ mapped.B.T + bias.bias
    torch.testing.assert_close(model(**inputs).logits, before + added, atol=1e-5, rtol=1e-5)
    assert float(added.detach().abs().max()) > 1e-3
    assert hybrid.counts().deployed == before.shape[-1] * 3 + 2 * hybrid.spec.logits.hidden


def test_a_loss_that_reads_some_positions_is_that_of_all(decoder: Any, data: EncodedTask) -> None:
    """And so is its gradient, in fp32 as in the dtype of another backbone."""
    kind, batch = get_kind("causal_lm"), data.train.collate(range(4))
    hybrid = attach(decoder, BOTH, seed=0)
    randomise(hybrid.root)
    loss, gradients = kind.scorer.loss(()), []
    for way in (Forward(decoder, kind=kind), lambda b: decoder(b["input_ids"], b["attention_mask"]).logits):
        hybrid.root.zero_grad()
        found = way(batch)
        value = loss.mean(found, batch)
        value.backward()
        gradients.append((found.shape, float(value), [p.grad.clone() for p in hybrid.root.parameters()]))
    (narrow, value, some), (wide, expected, every) = gradients
    assert len(narrow) == 2
    assert len(wide) == 3
    assert value == pytest.approx(expected, rel=1e-5)
    for a, b in zip(some, every, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("recipe", [BOTH, WITH_LORA], ids=lambda r: r.name)
def test_training_is_the_same_with_and_without_shortcuts(
    decoder: Any, data: EncodedTask, recipe: Recipe, tmp_path: Path
) -> None:
    """The layers below are no concern of it: their states are stored, and all the same it acts."""
    runs = []
    for shortcuts in (True, False):
        plan = TrainingPlan(steps=4, batch_size=8, device="cpu", shortcuts=shortcuts)
        with attach(decoder, recipe, seed=0) as hybrid:
            result = train(hybrid, data, plan)
            runs.append([*result.losses, *(float(p.abs().sum()) for p in hybrid.root.parameters())])
    assert runs[0] == pytest.approx(runs[1], rel=2e-3)
    assert runs[0][3] < runs[0][0]


def test_another_dtype_of_the_backbone(decoder: Any) -> None:
    hybrid = attach(decoder.to(torch.bfloat16), BOTH, seed=0)
    hybrid.root.float()
    assert decoder(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


def test_it_leaves_the_layers_to_the_trunk() -> None:
    spec, _ = spec_of_model(tiny_model("llama"))
    assert first_layer(build_graph(BOTH, spec)) == 3


def test_it_is_drawn_where_it_acts() -> None:
    graph = build_graph(BOTH, spec_of_model(tiny_model("llama"))[0])
    text = draw_text(graph)
    assert "logits ← logit_map" in text
    assert "weights" not in text
    picture = draw_svg(graph)
    assert "logits" in picture
    assert "backbone weights" not in picture
    assert all("logits" in row for row in entries_sheet(graph).rows)
    heat = heat_of(graph)
    assert heat is not None
    assert [row[0] for row in heat.rows] == ["logits"]


# Refused
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sum", "chain", "gate", "route"])
def test_no_composition_holds_it(kind: str) -> None:
    children: list[Any] = [MAP, "logit_bias"] if kind != "route" else ["logit_bias"]
    item = {kind: {"children": children, "copies": 2}} if kind == "route" else {kind: children}
    recipe = Recipe.from_dict({"name": "r", "model": [item]})
    spec, _ = spec_of_model(tiny_model("bert"))
    with pytest.raises(CompositionError, match=rf"acts on logits, and no {kind} holds .* under 'model:'"):
        build_graph(recipe, spec)
    with pytest.raises(CompositionError, match=rf"no {kind} holds"):
        count(recipe, spec)


def test_it_is_listed_under_model() -> None:
    recipe = {"name": "r", "layers": [{"attach": ["logit_bias"]}]}
    with pytest.raises(UsageError, match="logit_bias"):
        Recipe.from_dict(recipe)


def test_a_model_without_logits_is_refused(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(save_backbone(tmp_path / "bert"))
    with pytest.raises(CompositionError, match="acts on logits, but this model has none: load 'bert' with a"):
        attach(model, BOTH)


@pytest.mark.parametrize("changes", [{"level": "layers"}, {"sites": ("q",)}], ids=str)
def test_traits_that_cannot_be(changes: dict[str, Any]) -> None:
    good = Traits(ways=frozenset({"logits"}), level="model")
    with pytest.raises(MethodError, match="level 'model' and"):
        replace(good, **changes)


@pytest.mark.parametrize("way", ["peft", "merged", "vllm"])
def test_it_is_not_servable_as(way: str) -> None:
    spec, _ = spec_of_model(tiny_model("llama"))
    assert unservable(build_graph(BOTH, spec), way, head=False)


@pytest.mark.parametrize("format", ["peft", "merged", "lora"])
def test_no_format_of_others_says_it(decoder: Any, tmp_path: Path, format: str) -> None:
    hybrid = attach(decoder, WITH_LORA, seed=0)
    randomise(hybrid.root)
    hybrid.save(tmp_path / "saved")
    with pytest.raises(AutoPEFTError, match="logit"):
        autopeft.export(tmp_path / "saved", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


# Counts and files
# ------------------------------------------------------------------------------------------------------------


def test_a_search_counts_it_for_the_head_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    rows = "".join(f"film {i},{'abc'[i % 3]}\n" for i in range(60))
    given = small_search(tmp_path, trials=1, steps=2)
    (tmp_path / "three.csv").write_text("body,verdict\n" + rows)
    tree = {"autopeft": 2, "name": "s", "model": [{"logit_map": {"rank": {"choice": [1, 2]}}}]}
    (tmp_path / "space.yaml").write_text(json.dumps(tree))
    given |= {"task": str(tmp_path / "three.csv"), "space": Space.load(str(tmp_path / "space.yaml"))}
    ready = prepare(SearchArguments(**given))
    assert ready.spec.logits is not None
    assert ready.spec.logits.width == 3
    planned = count(BOTH, ready.spec).deployed
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=3, ignore_mismatched_sizes=True
    )
    assert attach(model, BOTH, seed=0).counts().deployed == planned


def test_it_is_saved_and_comes_back_on_another_model(decoder: Any, tmp_path: Path) -> None:
    hybrid = attach(decoder, WITH_LORA, seed=0)
    randomise(hybrid.root)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    expected = logits(decoder, inputs)
    hybrid.save(tmp_path / "saved")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    load(fresh, tmp_path / "saved")
    torch.testing.assert_close(logits(fresh, inputs), expected)
