"""Rows of a batch divided among hybrids: the places where a wrong slice would go unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from injection.test_traps import Aloof, prefix_recipe, prompt_recipe
from support.fingerprint import changed, fingerprint
from support.tiny import VOCABULARY, LogitsObjective, randomise, tiny_config, tiny_inputs, tiny_model
from torch import Tensor
from transformers import (
    BertForMultipleChoice,
    BloomConfig,
    BloomModel,
    PreTrainedModel,
)

from autopeft.backbones import base_model_of
from autopeft.errors import CompositionError
from autopeft.hybrid import MultiHybrid, attach, attach_many
from autopeft.injection.attention import Prefix, _padded_mask
from autopeft.injection.frames import Split, frames
from autopeft.injection.lanes import StackBias
from autopeft.recipe import Recipe

LORA = {"lora": {"rank": 2}}


def recipe(*layers: Any, model: Any = ()) -> Recipe:
    body: dict[str, Any] = {"name": "x", "model": list(model)}
    return Recipe.from_dict({**body, "layers": [{"attach": list(layers)}]} if layers else body)


def multi(model: PreTrainedModel, *recipes: Recipe) -> MultiHybrid:
    together = attach_many(model, recipes, seeds=range(len(recipes)))
    for i, hybrid in enumerate(together.hybrids):
        randomise(hybrid.root, std=0.3, seed=i)
    return together


def alone(model: PreTrainedModel, item: Recipe, number: int, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    """The output of a recipe by itself on its two rows."""
    with attach(model, item, seed=number) as hybrid:
        randomise(hybrid.root, std=0.3, seed=number)
        return model(**{k: v[2 * number : 2 * number + 2] for k, v in inputs.items()}, **kwargs)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_base_model_without_a_head_is_its_own_root(name: str) -> None:
    model = base_model_of(tiny_model(name))
    items = [prompt_recipe(3), recipe(LORA, "ia3"), prompt_recipe(1)]
    inputs = tiny_inputs(name, batch=6)
    wanted = [alone(model, item, i, inputs) for i, item in enumerate(items)]
    with multi(model, *items):
        for _ in range(2):
            got = model(**inputs)
            for i, out in enumerate(wanted):
                rows = slice(2 * i, 2 * i + 2)
                torch.testing.assert_close(got.last_hidden_state[rows], out.last_hidden_state)
                if name == "bert":
                    torch.testing.assert_close(got.pooler_output[rows], out.pooler_output)
        assert not frames.splits  # nothing is left that the next forward could take for its own
        assert not frames.open


def test_all_hidden_states_lose_the_rows_of_each_hybrids_own_prompt() -> None:
    model = tiny_model("bert")
    items, inputs = [prompt_recipe(3), prompt_recipe(1), recipe(LORA)], tiny_inputs("bert", batch=6)
    wanted = [alone(model, item, i, inputs, output_hidden_states=True) for i, item in enumerate(items)]
    with multi(model, *items):
        got = model(**inputs, output_hidden_states=True)
        as_tuple = base_model_of(model)(**inputs, output_hidden_states=True, return_dict=False)
    for i, out in enumerate(wanted):
        rows = slice(2 * i, 2 * i + 2)
        for mine, its, tupled in zip(got.hidden_states, out.hidden_states, as_tuple[2], strict=True):
            torch.testing.assert_close(mine[rows], its)
            torch.testing.assert_close(tupled[rows], its)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("length", [4, 7])
def test_t5s_table_of_positions_is_looked_up_for_each_hybrid(length: int, cache: bool) -> None:
    """Its lookup has (queries, keys) where others have (rows, positions), and here both are four."""
    assert_the_table_is_looked_up_for_each("t5", length, tables=2, use_cache=cache)


@pytest.mark.parametrize("length", [4, 7])
def test_mpnets_table_of_positions_is_looked_up_for_each_hybrid(length: int) -> None:
    assert_the_table_is_looked_up_for_each("mpnet", length, tables=1)


def assert_the_table_is_looked_up_for_each(name: str, length: int, tables: int, **options: bool) -> None:
    model = tiny_model(name)
    items, inputs = (
        [recipe(model=[{"fish_mask": {"keep": "30%"}}]), recipe(LORA)],
        tiny_inputs(name, batch=4, length=length),
    )
    rows = [{**tiny_inputs(name, batch=1), "labels": torch.tensor([1])}]
    wanted = []
    for i, item in enumerate(items):
        with attach(model, item, seed=i) as hybrid:
            if hybrid.needs_prepare:
                hybrid.prepare(rows, LogitsObjective(model))
                touched = hybrid.modules["fish_mask"].entries.selected()
                assert sum("relative_attention_bias" in tensor for tensor in touched) == tables
            randomise(hybrid.root, std=0.3, seed=i)
            mine = {k: v[2 * i : 2 * i + 2] for k, v in inputs.items()}
            wanted.append(model(**mine, **options).logits)
    with attach_many(model, items, seeds=(0, 1)) as together:
        together.hybrids[0].prepare(rows, LogitsObjective(model))
        for i, hybrid in enumerate(together.hybrids):
            randomise(hybrid.root, std=0.3, seed=i)
        got = model(**inputs, **options).logits
    torch.testing.assert_close(got, torch.cat(wanted), atol=1e-6, rtol=1e-6)


def test_a_table_of_positions_that_nothing_known_makes_a_bias_of_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StackBias, "fits", lambda module: False)
    model = tiny_model("mpnet")
    attach_many(model, [recipe(model=[{"fish_mask": {"keep": "50%"}}]), recipe(LORA)])
    with pytest.raises(CompositionError, match="has no rows of a batch"):
        model(**tiny_inputs("mpnet", batch=8, length=8))


def test_a_backbone_that_is_called_with_other_rows_is_refused() -> None:
    model = BertForMultipleChoice(tiny_config("bert")).eval()
    attach_many(model, [recipe(LORA)] * 2)
    with pytest.raises(CompositionError, match="called with 2 rows and calls its backbone with 6"):
        model(**{k: v.view(2, 3, 7) for k, v in tiny_inputs("bert", batch=6).items()})


@pytest.mark.parametrize(
    "item",
    [
        recipe({"serial_adapter": {"bottleneck": 4}}),
        recipe({"lora": {"sites": ["up"]}}),
        recipe({"ssf": {"sites": ["ffn_norm"]}}),
        recipe(model=["bitfit"]),
    ],
    ids=["ffn", "up", "norm", "biases"],
)
def test_what_sees_all_rows_as_one_list_is_refused_at_attach(item: Recipe) -> None:
    """OPT's FFN, and the norm in front of it."""
    model = tiny_model("opt")
    before = fingerprint(model)
    with pytest.raises(CompositionError, match=r"as one list, .*leave the sites ffn, up, down, ffn_norm out"):
        attach_many(model, [item, recipe(LORA)])
    assert changed(before, fingerprint(model)) == []


def test_what_sees_all_rows_as_one_list_may_lie_beside_what_is_altered() -> None:
    """In OPT's small layers too, where the norm comes behind the FFN and sees rows of the batch."""
    for first, site in ((True, "attention_norm"), (False, "ffn_norm")):
        model = tiny_model("opt", do_layer_norm_before=first)
        items = [recipe({"ssf": {"sites": [site]}}), recipe(LORA)]
        inputs = tiny_inputs("opt", batch=4)
        wanted = [alone(model, item, i, inputs).logits for i, item in enumerate(items)]
        multi(model, *items)
        torch.testing.assert_close(model(**inputs).logits, torch.cat(wanted), atol=1e-5, rtol=1e-4)


def test_a_module_that_sees_other_rows_is_refused() -> None:
    model = tiny_model("bert")
    attach_many(model, [recipe(LORA)] * 2)
    layer = base_model_of(model).encoder.layer[0]
    layer.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1)[None], *args[1:]))
    with pytest.raises(CompositionError, match="in chunks or flattened"):
        model(**tiny_inputs("bert", batch=4))


def test_attention_that_does_not_dispatch_raises_for_several_hybrids_too() -> None:
    model = tiny_model("bert")
    for layer in base_model_of(model).encoder.layer:
        layer.attention.self = Aloof(layer.attention.self)
    attach_many(model, [recipe(LORA), prefix_recipe()])
    with pytest.raises(CompositionError, match="did not call the attention function"):
        model(**tiny_inputs("bert", batch=4))


def test_a_family_that_hands_nothing_on_keeps_its_rows_with_the_checkpoint() -> None:
    """BLOOM hands no keyword arguments on to its layers; what is laid down travels with the checkpoint."""
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0
    )
    model = BloomModel(config).train()
    gate = recipe({"gate": [{"lora": {"rank": 2, "sites": ["up"]}}]})
    together = multi(model, gate, recipe({"lora": {"sites": ["up"]}}, model=["bitfit"]))
    inputs, found = tiny_inputs("bert", batch=4, pad=2), []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        first = model(**inputs).last_hidden_state
        second = model(**inputs, rows=(1, 3)).last_hidden_state
        model.zero_grad()
        (first.pow(2).mean() + second.sin().sum()).backward()
        found.append([p.grad.clone() for p in together.trainable_parameters() if p.grad is not None])
    assert len(found[0]) == len(together.trainable_parameters())
    for again in found[1:]:
        torch.testing.assert_close(again, found[0], atol=1e-5, rtol=1e-5)


def test_one_hybrid_alone_has_its_batch_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `attach` installs cuts no rows: BERT itself splits nothing either."""
    model = tiny_model("bert")
    attach(model, recipe(LORA, "dora", {"prefix_tuning": {"length": 2}}, model=["bitfit"]), seed=0)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("rows were cut")

    for name in ("split", "narrow"):
        monkeypatch.setattr(Tensor, name, fail)
    assert model(**tiny_inputs("bert")).logits.shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, None])
def test_hidden_columns_of_a_prefix_are_hidden_in_any_kind_of_mask(dtype: torch.dtype | None) -> None:
    keys = torch.zeros(2, 3, 4)
    visible = torch.tensor([[False, True, True], [True, True, True]])
    query = torch.zeros(2, 1, 5, 4)
    mask = None
    if dtype is not None:
        mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
        mask = mask if dtype == torch.bool else torch.zeros(1, 1, 5, 5).masked_fill(~mask, -1e9)
    made = _padded_mask(
        mask, Prefix(keys, keys, visible), query, 5, causal=True, fused=dtype != torch.float32
    )
    assert made is not None
    assert made.shape == (2, 1, 5, 8)
    seen = made if made.dtype == torch.bool else made > -1
    assert torch.equal(seen[:, 0, :, :3], visible[:, None].expand(-1, 5, -1))
    assert torch.equal(seen[:, 0, :, 3:], torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1))


def test_an_eager_attention_without_a_mask_gets_one_that_it_can_add() -> None:
    keys, visible = torch.zeros(2, 1, 4), torch.tensor([[False], [True]])
    made = _padded_mask(
        None, Prefix(keys, keys, visible), torch.zeros(2, 1, 2, 4), 2, causal=False, fused=False
    )
    assert made is not None
    assert made.dtype == torch.float32
    assert made[1].eq(0).all()
    assert made[0, 0, :, 0].eq(torch.finfo(torch.float32).min).all()


def test_a_split_knows_who_takes_part() -> None:
    assert Split((2, 0, 1)).total == 3
    assert Split((2, 0, 1)).active() == [0, 2]
    assert Split.alone(1, 3, 5) == Split((0, 5, 0))
