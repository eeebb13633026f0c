"""DeBERTa's attentions: the forwards that stand in for theirs, prefixes, and rows in front of a layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from torch import Tensor
from torch.nn.functional import pad
from transformers import DebertaV2ForSequenceClassification

from autopeft.backbones import base_model_of, layout_of, spec_of
from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.injection.attention import Prefix
from autopeft.injection.frames import PREFIX
from autopeft.injection.late import require_room
from autopeft.injection.regions import serves_itself
from autopeft.injection.rows import ReadRows
from autopeft.injection.undispatched import dispatching
from autopeft.recipe import Recipe

NAMES = ("deberta", "deberta-v2")


def case(name: str, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """The attention of a first layer, and what it is handed."""
    model = tiny_model(name, **options)
    module = base_model_of(model).encoder.layer[0].attention.self
    seen: list[dict[str, Any]] = []

    def watch(m: Any, args: Any, kwargs: Any) -> None:
        seen.append({"hidden_states": args[0], "attention_mask": args[1], **kwargs})

    handle = module.register_forward_pre_hook(watch, with_kwargs=True)
    model(**tiny_inputs(name, pad=2))
    handle.remove()
    return module, {**seen[0], "output_attentions": True}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deberta", {}),
        ("deberta", {"talking_head": True}),
        ("deberta", {"pos_att_type": ["p2c"]}),
        ("deberta", {"relative_attention": False}),
        ("deberta-v2", {}),
        ("deberta-v2", {"share_att_key": False, "position_buckets": -1}),
        ("deberta-v2", {"pos_att_type": ["c2p"]}),
        ("deberta-v2", {"relative_attention": False}),
    ],
)
def test_without_a_prefix_it_is_the_class_s_own_forward(name: str, options: Any, training: bool) -> None:
    module, given = case(name, **options)
    module.train(training)
    torch.manual_seed(1)
    expected = module(**given)
    (own,) = dispatching([module])
    torch.manual_seed(1)
    got = module(**given)
    own.remove()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_is_what_the_scores_between_contents_say(name: str) -> None:
    """Its columns have the products with queries over the same scale, and nothing of positions."""
    module, given = case(name)
    generator = torch.Generator().manual_seed(2)
    keys, values = (torch.randn(1, 3, 32, generator=generator) for _ in range(2))
    _, plain = module(**given)
    (own,) = dispatching([module])
    output, weights = module(**given, **{PREFIX: Prefix(keys, values)})
    own.remove()
    assert output.shape == given["hidden_states"].shape
    x, heads = given["hidden_states"], 4
    if name == "deberta":
        query = module.transpose_for_scores(module.in_proj(x)).chunk(3, dim=-1)[0]
        query = query + module.transpose_for_scores(module.q_bias[None, None])
    else:
        query = module.query_proj(x).view(2, -1, heads, 8).transpose(1, 2)
    front = query @ keys.view(1, 3, heads, 8).permute(0, 2, 3, 1) / (8 * 3) ** 0.5
    seen = slice(0, 7)  # what stands at padding sees all alike
    ratio = weights[:, :, seen, :3] / weights[:, :, seen, 3:4]
    by_hand = front[:, :, seen].exp() / (plain[:, :, seen, :1] * _normaliser(module, given, plain, query))
    torch.testing.assert_close(ratio, by_hand, atol=1e-4, rtol=1e-3)


def _normaliser(module: Any, given: dict[str, Any], plain: Tensor, query: Tensor) -> Tensor:
    """The sum of exponentiated scores that the plain weights are divided by, for the tokens that see."""
    scores: list[Tensor] = []

    def softmax(x: Tensor, dim: int) -> Tensor:
        scores.append(x)
        return original(x, dim=dim)

    original = torch.nn.functional.softmax
    torch.nn.functional.softmax = softmax  # type: ignore[assignment]
    try:
        module(**given)
    finally:
        torch.nn.functional.softmax = original
    return scores[0].view(plain.shape)[:, :, :7].exp().sum(-1, keepdim=True)


@pytest.mark.parametrize("name", NAMES)
def test_rows_in_front_have_no_distance_to_tokens(name: str) -> None:
    """The weights among tokens keep their proportions, whatever lies in front."""
    module, given = case(name)
    rows = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(3))
    longer = dict(given)
    longer["hidden_states"] = torch.cat([rows, given["hidden_states"]], dim=1)
    longer["attention_mask"] = pad(given["attention_mask"].bool(), (2, 0, 2, 0), value=True)
    _, plain = module(**given)
    (own,) = dispatching([module])
    _, weights = module(**longer)
    own.remove()
    among = weights[:, :, 2:9, 2:9]
    torch.testing.assert_close(among / among.sum(-1, keepdim=True), plain[:, :, :7, :7], atol=1e-5, rtol=1e-4)


def test_what_projects_positions_too_is_computed_for_all_of_them() -> None:
    model = tiny_model("deberta-v2")
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": ["lora"]}]}), seed=0)
    randomise(hybrid.root)
    (stack,) = hybrid.injection.layout.stacks
    last = {p.site.name: p for p in stack.places if p.site.layer == 2}
    assert [serves_itself(last[site]) for site in ("q", "o", "ffn")] == [False, True, True]
    inputs = tiny_inputs("deberta-v2", pad=2)
    expected = logits(model, inputs)
    with ReadRows(base_model_of(model), stack, "first", tuple).of(inputs["attention_mask"]):
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=1e-5)


def test_rows_are_not_put_between_what_a_convolution_blends() -> None:
    config = tiny_config("deberta-v2")
    config.conv_kernel_size = 3
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(config).eval()
    (stack,) = layout_of(model.base_model).stacks
    prompt: Any = SimpleNamespace(name="rows", slots=())
    with pytest.raises(CompositionError, match="blends what its first layer read"):
        require_room([prompt], stack, 0, spec_of(config))
    require_room([prompt], stack, 1, spec_of(config))
    with attach(model, Recipe.from_dict({"model": [{"prompt_tuning": {"length": 4}}]}), seed=0):
        assert logits(model, tiny_inputs("deberta-v2", pad=2)).shape == (2, 2)
