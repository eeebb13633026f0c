from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
from support.classifiers import (
    DECODERS,
    FAMILIES,
    LAYERS,
    WITH_DECODERS,
    classifier,
    encoded_rows,
    encoded_rows_task,
)
from support.tiny import randomise
from torch import Tensor, nn

from autopeft.hybrid import Hybrid, attach
from autopeft.injection.rows import ReadRows, last_layer_is_rowwise, read_position, reader_of, some_of
from autopeft.method import Slot
from autopeft.recipe import Recipe
from autopeft.training.forward import shortest_forward
from autopeft.training.losses import logits_of
from autopeft.training.plan import TrainingPlan

ALL_LINEARS = {"lora": {"rank": 2, "sites": ["q", "k", "v", "o", "up", "down"]}}
CASES: dict[str, list[Any]] = {
    "lora": [ALL_LINEARS],
    "dora": [{"dora": {"rank": 2, "sites": ["q", "o", "up", "down"]}}],
    "adapters": [{"serial_adapter": {"bottleneck": 3}}, {"parallel_adapter": {"bottleneck": 3}}],
    "houlsby": [{"serial_adapter": {"bottleneck": 3, "variant": "houlsby"}}],
    "prefix-ia3": [{"prefix_tuning": {"length": 2}}, "ia3"],
    "chain": [{"chain": [{"serial_adapter": {"bottleneck": 3}}, {"parallel_adapter": {"bottleneck": 3}}]}],
    "nothing": [],
}


def recipe(items: list[Any], model: list[Any] | None = None) -> Recipe:
    layers = [{"at": "all", "attach": items}] if items else []
    return Recipe.from_dict({"autopeft": 2, "name": "r", "layers": layers, "model": model or []})


def of_family(name: str, items: list[Any]) -> list[Any]:
    """The items without sites that a mixture of experts lacks."""
    text = json.dumps(items)
    if name in ("mixtral", "gpt_oss"):
        text = text.replace(', "up", "down"', "")
    found: list[Any] = json.loads(text)
    return found


def attached(name: str, made: Recipe) -> Hybrid:
    hybrid = attach(classifier(name), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def reader(name: str) -> str:
    return "last" if name in ("gpt2", "llama", "gemma2", "t5", *DECODERS) else "first"


def gradients(hybrid: Hybrid, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    hybrid.model.zero_grad()
    logits = logits_of(hybrid.model, batch)
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    return logits.detach(), {
        n: p.grad.clone() for n, p in hybrid.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("name", WITH_DECODERS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_head_sees_is_exact(name: str, case: str) -> None:
    prompts = [{"prompt_tuning": {"length": 3}}] if case == "lora" and name != "t5" else []
    hybrid = attached(name, recipe(of_family(name, CASES[case]), prompts))
    batch = encoded_rows(name).collate(list(range(12)))
    stack = hybrid.injection.layout.stacks[-1]
    assert last_layer_is_rowwise(hybrid.graph, stack)
    slots = [Slot(3)] if prompts else []
    rows = ReadRows(hybrid.injection.base, stack, reader(name), lambda: slots)  # type: ignore[arg-type]
    logits, expected = gradients(hybrid, batch)
    with rows.of(batch["attention_mask"]):
        narrow, got = gradients(hybrid, batch)
    torch.testing.assert_close(narrow, logits, atol=1e-6, rtol=1e-5)
    assert got.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logits_of(hybrid.model, batch), logits, atol=0, rtol=0)


PLACES = {
    "behind the first token": [{"length": 3, "offset": 1}],
    "in several places": [{"length": 1}, {"length": 1, "offset": 2}, {"length": 1, "offset": 20}],
    "at the end": [{"length": 1, "offset": 1}, {"length": 2, "anchor": "end", "offset": 1}],
}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "t5"])
@pytest.mark.parametrize("where", PLACES)
def test_prompts_among_the_tokens_move_the_one_that_is_read(name: str, where: str) -> None:
    prompt = {"p_tuning": {"length": 3, "slots": PLACES[where], "encoder": "mlp"}}
    hybrid = attached(name, recipe([ALL_LINEARS], [prompt]))
    batch = encoded_rows(name).collate(list(range(12)))
    stack, module = hybrid.injection.layout.stacks[-1], cast(Any, hybrid.modules["p_tuning"])
    slots = module.slots(hybrid.graph.entries["p_tuning"].sites[0])
    layer = hybrid.injection.base.get_submodule(stack.layers[-1])
    mask = batch["attention_mask"]
    assert reader_of(layer, lambda: logits_of(hybrid.model, batch), mask, slots) == reader(name)
    rows = ReadRows(hybrid.injection.base, stack, reader(name), lambda: slots)  # type: ignore[arg-type]
    logits, expected = gradients(hybrid, batch)
    with rows.of(mask):
        narrow, got = gradients(hybrid, batch)
    torch.testing.assert_close(narrow, logits, atol=1e-6, rtol=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "t5"])
def test_rows_of_the_last_layer_alone_move_the_token_there(name: str) -> None:
    """And not behind it, where the head reads."""
    hybrid = attached(name, recipe([ALL_LINEARS, {"deep_prompt": {"length": 3}}]))
    stack = hybrid.injection.layout.stacks[-1]
    layer = hybrid.injection.base.get_submodule(stack.layers[-1])
    batch = encoded_rows(name).collate(list(range(12)))
    mask = batch["attention_mask"]
    assert reader_of(layer, lambda: logits_of(hybrid.model, batch), mask, []) == reader(name)
    forward = shortest_forward(
        hybrid, encoded_rows_task(name), TrainingPlan(steps=1, device="cpu"), dropout=False
    )
    assert forward.rows is not None
    assert list(forward.rows.slots()) == [Slot(3, leaves=True)]
    logits, expected = gradients(hybrid, batch)
    with forward.rows.of(mask):
        narrow, got = gradients(hybrid, batch)
    torch.testing.assert_close(narrow, logits, atol=1e-6, rtol=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, atol=1e-6, rtol=1e-4)


def test_where_the_read_token_lies() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    among = [Slot(2), Slot(3, offset=1), Slot(1, anchor="end")]
    assert read_position("first", [], mask) == 0
    assert read_position("first", among[:2], mask) == 2
    assert read_position("first", among, mask).tolist() == [2, 2]  # type: ignore[union-attr]
    assert read_position("last", among[:1], mask).tolist() == [4, 2]  # type: ignore[union-attr]
    assert read_position("last", among, mask).tolist() == [7, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WITH_DECODERS)
@pytest.mark.parametrize("case", ["lora", "adapters", "houlsby", "prefix-ia3"])
def test_several_positions_are_exact_too(name: str, case: str) -> None:
    """Rows of which fewer are read than of others as well; what acts inside of an FFN sees whole rows."""
    hybrid = attached(name, recipe(of_family(name, CASES[case])))
    batch = encoded_rows(name).collate(list(range(12)))
    mask = batch["attention_mask"]
    read = torch.zeros_like(mask, dtype=torch.bool)
    read[:, 0] = read[::2, 1] = True
    read[torch.arange(len(mask)), mask.sum(1) - 1] = True
    logits, expected = gradients(hybrid, batch)
    with ReadRows(hybrid.injection.base, hybrid.injection.layout.stacks[-1], None, list).of(mask, read):
        narrow, got = gradients(hybrid, batch)
    torch.testing.assert_close(narrow, logits, atol=1e-6, rtol=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, atol=1e-6, rtol=1e-4)


def test_where_nearly_all_are_read_nothing_is_narrowed() -> None:
    read = torch.tensor([[True, False, True, True], [False, False, True, False]])
    assert some_of(read[:, 2:]) is None
    found = some_of(torch.cat([read, torch.zeros_like(read)], dim=1))
    assert found is not None
    assert found.tolist() == [[0, 2, 3], [2, 0, 1]], "all differ"


@pytest.mark.parametrize("name", FAMILIES)
def test_less_is_computed(name: str) -> None:
    hybrid = attached(name, recipe([]))
    stack = hybrid.injection.layout.stacks[-1]
    last = {p.site.name: p for p in stack.places if p.site.layer == LAYERS - 1}
    down = hybrid.injection.base.get_submodule(last["down"].exit)
    seen: list[int] = []
    down.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    batch = encoded_rows(name).collate(list(range(12)))
    logits_of(hybrid.model, batch)
    with ReadRows(hybrid.injection.base, stack, reader(name), list).of(batch["attention_mask"]):  # type: ignore[arg-type]
        logits_of(hybrid.model, batch)
    assert seen == [batch["input_ids"].numel(), 12]


@pytest.mark.parametrize("name", WITH_DECODERS)
def test_the_reader_is_found_from_the_gradient(name: str) -> None:
    hybrid = attached(name, recipe([], [] if name == "t5" else [{"prompt_tuning": {"length": 2}}]))
    batch = encoded_rows(name).collate(list(range(12)))
    layer = hybrid.injection.base.get_submodule(hybrid.injection.layout.stacks[-1].layers[-1])
    slots = [] if name == "t5" else [Slot(2)]
    found = reader_of(layer, lambda: logits_of(hybrid.model, batch), batch["attention_mask"], slots)
    assert found == reader(name)


def test_a_head_that_averages_reads_no_single_position() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.layer(x).mean(1))
            return scores

    model, x = Mean(), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert reader_of(model.layer, lambda: model(x), mask, []) is None


@pytest.mark.parametrize("at", ["all", "first 2"])
def test_a_gate_in_the_last_layer_needs_all_rows(at: str) -> None:
    gate = {"gate": [{"lora": {"rank": 2}}, {"serial_adapter": {"bottleneck": 2}}]}
    made = Recipe.from_dict({"autopeft": 2, "name": "g", "layers": [{"at": at, "attach": [gate]}]})
    hybrid = attached("bert", made)
    assert last_layer_is_rowwise(hybrid.graph, hybrid.injection.layout.stacks[-1]) == (at != "all")
