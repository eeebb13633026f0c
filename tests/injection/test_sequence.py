"""What the root of a stack makes of its inputs: their names, and masks that do not tell padding."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support.cases import CASES
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import attach
from autopeft.injection.sequence import named_inputs
from autopeft.recipe import Recipe


def attached(name: str, item: Any) -> PreTrainedModel:
    model = tiny_model(name)
    randomise(attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0).root)
    return model


def pairwise(mask: Tensor) -> Tensor:
    """The mask (batch, positions) as one for each pair of positions."""
    return mask[:, None, None].expand(-1, 1, mask.shape[1], -1).bool()


def test_inputs_by_position_get_their_names() -> None:
    def forward(a: int, b: int = 0, *, c: int = 0) -> None: ...

    signature = inspect.signature(forward)
    assert named_inputs(signature, (1, 2), {"c": 3}) == {"a": 1, "b": 2, "c": 3}
    with pytest.raises(UsageError, match=r"3 inputs by position, but names 2 .*: a, b; pass the inputs by"):
        named_inputs(signature, (1, 2, 3), {})


@pytest.mark.parametrize("case", ["gate", "route-sequence", "coda"])
def test_what_counts_real_positions_refuses_masks_that_do_not_tell_them(case: str) -> None:
    model, inputs = attached("bert", CASES[case][1]), tiny_inputs("bert", pad=3)
    other = pairwise(inputs["attention_mask"])
    with pytest.raises(CompositionError, match=r"of shape \(batch, positions\), but got \(2, 1, 10, 10\)"):
        model(input_ids=inputs["input_ids"], attention_mask=other)
    torch.testing.assert_close(logits(model, inputs), logits(model, tiny_inputs("bert")))


@pytest.mark.parametrize(
    "item",
    [
        {"lora": {"rank": 2}},
        {"prefix_tuning": {"length": 2}},
        {"route": {"children": [{"lora": {"rank": 2}}], "copies": 2}},
    ],
)
def test_a_mask_of_another_form_acts_as_before_where_nothing_counts_positions(item: Any) -> None:
    model, inputs = attached("bert", item), tiny_inputs("bert", pad=3)
    plain = logits(model, inputs)
    found = logits(model, {**inputs, "attention_mask": pairwise(inputs["attention_mask"])})
    torch.testing.assert_close(found, plain)


def test_the_mask_of_a_source_has_to_tell_padding_too() -> None:
    gate = {"gate": [{"lora": {"rank": 2, "sites": ["cross_k"]}}]}
    model, inputs = attached("t5", gate), tiny_inputs("t5", pad=3)
    other = inputs["attention_mask"][:, None, None].bool()
    with pytest.raises(CompositionError, match=r"cross_k is told .* got \(2, 1, 1, 10\)"):
        model(**{**inputs, "attention_mask": other})


@pytest.mark.parametrize("case", ["gate", "route-sequence"])
def test_the_mean_over_several_texts_in_a_row_is_refused(case: str) -> None:
    model, ids = attached("llama", CASES[case][1]), tiny_inputs("llama")["input_ids"]
    again = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2)
    with pytest.raises(CompositionError, match="give each text a row of its own"):
        model(input_ids=ids, position_ids=again, use_cache=False)
    plain = model(input_ids=ids, use_cache=False).logits
    for mask in (None, torch.ones_like(ids)):
        on = torch.arange(7).expand(2, -1)
        found = model(input_ids=ids, attention_mask=mask, position_ids=on, use_cache=False).logits
        torch.testing.assert_close(found, plain)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    padded = (mask.cumsum(1) - 1).clamp(min=0)  # which begins with the same number several times
    model(input_ids=ids, attention_mask=mask, position_ids=padded, use_cache=False)


_IN_FRONT = {
    "prompt": {"model": [{"prompt_tuning": {"length": 2}}]},
    "prefix": {"layers": [{"attach": [{"prefix_tuning": {"length": 2}}]}]},
    "late": {"model": [{"lpt": {"length": 2, "layer": 1, "generator": "none", "dropout": 0.0}}]},
}


def padded_on_the_left(inputs: dict[str, Tensor], pad: int) -> dict[str, Tensor]:
    return {name: torch.cat([v.new_zeros(len(v), pad), v], dim=1) for name, v in inputs.items()}


@pytest.mark.parametrize("body", _IN_FRONT.values(), ids=_IN_FRONT)
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2"])
def test_padding_on_the_left_does_not_move_a_text_away_from_what_stands_in_front(
    name: str, body: dict[str, Any]
) -> None:
    """Rotary positions tell distances, and the bare model does not depend on where a text begins."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    hybrid = attach(model, Recipe.from_dict(body), seed=0)
    randomise(hybrid.root, std=0.3)
    plain, padded = logits(model, inputs), padded_on_the_left(inputs, 4)
    torch.testing.assert_close(logits(model, padded)[:, 4:], plain, atol=1e-5, rtol=1e-4)
    if name == "qwen2":  # whose windows let go of rows in front of a layer
        return
    begun = model(**{k: v[:, :8] for k, v in padded.items()}, use_cache=True)
    rest = {"input_ids": padded["input_ids"][:, 8:], "attention_mask": padded["attention_mask"]}
    further = model(**rest, past_key_values=begun.past_key_values, use_cache=True).logits
    torch.testing.assert_close(further, plain[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "mt5", "umt5"])
def test_nor_where_distances_are_all_that_tells_positions(name: str) -> None:
    model = tiny_model(name)
    hybrid = attach(model, Recipe.from_dict(_IN_FRONT["prompt"]), seed=0)
    randomise(hybrid.root, std=0.3)
    inputs = tiny_inputs(name)
    source = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    moved = model(**{**inputs, **padded_on_the_left(source, 4)}).logits
    torch.testing.assert_close(moved, model(**inputs).logits, atol=1e-5, rtol=1e-4)


def test_positions_are_left_to_the_model_where_nothing_stands_in_front() -> None:
    model, inputs = attached("llama", {"lora": {"rank": 2}}), tiny_inputs("llama")
    seen: list[Any] = []
    root: Any = model.base_model
    root.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    logits(model, padded_on_the_left(inputs, 4))
    assert seen == [None]
