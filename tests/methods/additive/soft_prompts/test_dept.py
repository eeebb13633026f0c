from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import ENCODER_DECODERS, randomise, tiny_inputs, tiny_model
from support.toy import configured, counted, sites_of, toy_specs
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach
from autopeft.method import Stored
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

TEXTS = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart", "mpnet")
SMALL = {"length": 3, "rank": 2, "max_length": 16}


def recipe(training: dict[str, Any] | None = None, **config: Any) -> Recipe:
    entry = {"dept": {**SMALL, **config}}
    return Recipe.from_dict({"autopeft": 2, "name": "d", "model": [entry], "training": training or {}})


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["dept"], hybrid


def test_count_and_defaults_of_the_authors_code() -> None:
    """ZhengxiangShi/DePT, README.md: as many parameters as 100 rows of T5-base's width."""
    method, spec = configured("dept"), spec_of(BertConfig())
    assert method.parameter_count(sites_of(method, spec), spec).deployed == 76_800
    c = method.config
    assert (c.length, c.rank, c.alpha, c.max_length) == (40, 45, 8.0, 256)
    module = method.build(sites_of(method, spec), spec)
    assert module.scale == 8 / 45**0.5


@given(toy_specs, st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_count_is_what_it_holds(spec: BackboneSpec, length: int, rank: int, most: int) -> None:
    d = spec.stacks[0].hidden
    expected = length * d + rank * (most + d)
    assert counted("dept", spec, length=length, rank=rank, max_length=most) == (expected,) * 4


def _table(model: PreTrainedModel) -> Any:
    return (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()


def _update(module: Any, count: int) -> Tensor:
    """The first rows of α/√r·A·B."""
    return 8 / 2**0.5 * module.A[:count] @ module.B


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("given_embeddings", [False, True])
def test_it_computes_the_papers_formula(name: str, given_embeddings: bool) -> None:
    """[P; Emb(x) + α/√r·A·B], whether the model looks the embeddings up or is given them."""
    model, module, hybrid = attached(name)
    inputs = tiny_inputs(name)
    run = model if name in ENCODER_DECODERS else model.base_model
    words = _table(model).weight[inputs["input_ids"]] * getattr(_table(model), "embed_scale", 1.0)
    if given_embeddings:
        ids = inputs.pop("input_ids")
        ours = run(inputs_embeds=words, **inputs)[0]
        torch.testing.assert_close(ours, run(input_ids=ids, **inputs)[0], atol=1e-5, rtol=1e-5)
    else:
        ours = run(**inputs)[0]
        del inputs["input_ids"]
    hybrid.detach()
    embeds = torch.cat([module.table.expand(2, -1, -1), words + _update(module, 7)], dim=1)
    inputs["attention_mask"] = torch.ones(2, 10, dtype=torch.long)
    expected = run(inputs_embeds=embeds, **inputs)[0]
    if name not in ENCODER_DECODERS:
        expected = expected[:, 3:]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_without_an_update_it_is_prompt_tuning(name: str) -> None:
    model = tiny_model(name)
    hybrid = attach(model, recipe(), seed=0)
    module: Any = hybrid.modules["dept"]
    assert not module.B.any()
    inputs = tiny_inputs(name, pad=2)
    ours = model(**inputs).logits
    hybrid.detach()
    plain = Recipe.from_dict({"autopeft": 2, "name": "p", "model": [{"prompt_tuning": {"length": 3}}]})
    with torch.no_grad():
        attach(model, plain).root.get_parameter("prompt_tuning.table").copy_(module.table)
    assert torch.equal(model(**inputs).logits, ours)


@pytest.mark.parametrize("name", TEXTS)
def test_rows_go_by_the_real_tokens_wherever_padding_is(name: str) -> None:
    """The table's output: prompt rows as they are, row k of the update at the k-th token of each text."""
    model, module, _ = attached(name)
    seen: list[Tensor] = []
    _table(model).register_forward_hook(lambda _, __, y: seen.append(y))
    inputs = tiny_inputs(name)
    inputs["attention_mask"][0, :2] = 0
    inputs["attention_mask"][1, 5:] = 0
    model(**inputs)
    ids = inputs["input_ids"]
    words = _table(model).weight[ids] * getattr(_table(model), "embed_scale", 1.0)
    (found,) = seen
    if name == "t5":  # whose distances count positions: rows stand beside the text, behind its padding
        found = torch.stack([torch.cat([found[0, 2:5], found[0, :2], found[0, 5:]]), found[1]])
    assert torch.equal(found[:, :3], module.table.expand(2, -1, -1))
    added = found[:, 3:] - words
    update = _update(module, 5)
    torch.testing.assert_close(added[0, 2:], update, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(added[1, :5], update, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, _, _ = attached(name)
    inputs = tiny_inputs(name)
    alone = model(**{k: v[:, 2:] for k, v in inputs.items()}).logits
    inputs["attention_mask"][:, :2] = 0
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    padded = model(**inputs, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("embedded", [True, False])
def test_a_step_from_a_cache_counts_on(name: str, masked: bool, embedded: bool) -> None:
    model, _, _ = attached(name)
    ids = tiny_inputs(name)["input_ids"]
    whole = model(input_ids=ids).logits
    mask = torch.ones_like(ids)
    cache, found = None, []
    for start, end in ((0, 3), (3, 5), (5, 6), (6, 7)):
        part: dict[str, Any] = {"attention_mask": mask[:, :end]} if masked else {}
        if embedded:
            part["inputs_embeds"] = _table(model).weight[ids[:, start:end]]
        else:
            part["input_ids"] = ids[:, start:end]
        out = model(**part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_token_types_that_are_looked_up_in_the_same_table_stay() -> None:
    model, module, hybrid = attached("gpt2")
    ids, types = tiny_inputs("gpt2")["input_ids"], torch.full((2, 7), 4)
    ours = model(input_ids=ids, token_type_ids=types).logits
    hybrid.detach()
    table = _table(model).weight
    rows = torch.cat([module.table.expand(2, -1, -1), table[ids] + _update(module, 7)], dim=1)
    types = torch.cat([types.new_zeros(2, 3), types], dim=1)
    expected = model(inputs_embeds=rows, token_type_ids=types).logits[:, 3:]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_table_that_is_called_outside_of_a_forward_yields_its_rows() -> None:
    model, _, _ = attached("t5")
    inputs = tiny_inputs("t5")
    ids = inputs["input_ids"]
    for _ in range(2):
        for table in (_table(model), model.get_decoder().get_input_embeddings()):
            assert torch.equal(table(ids), table.weight[ids])
        model(**inputs)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_longer_texts_are_refused(name: str) -> None:
    model, _, _ = attached(name, max_length=6)
    inputs = tiny_inputs(name)
    with pytest.raises(MethodError, match="a text has 7; shorten the texts"):
        model(**inputs)
    inputs["attention_mask"][:, 6:] = 0
    assert model(**inputs).logits.isfinite().all(), "padding is no text"


def test_rows_among_the_tokens_get_no_update() -> None:
    """Beside a prompt whose rows lie in the text."""
    slots = [{"length": 2, "offset": 2}]
    inside = {"p_tuning": {"length": 2, "slots": slots, "encoder": "mlp"}}
    made = Recipe.from_dict({"autopeft": 2, "name": "d", "model": [{"dept": SMALL}, inside]})
    model = tiny_model("bert")
    hybrid = attach(model, made, seed=0)
    randomise(hybrid.root, std=0.5)
    module: Any = hybrid.modules["dept"]
    seen: list[Tensor] = []
    _table(model).register_forward_hook(lambda _, __, y: seen.append(y))
    inputs = tiny_inputs("bert")
    model(**inputs)
    words = _table(model).weight[inputs["input_ids"]] + _update(module, 7)
    text = torch.cat([seen[0][:, 3:5], seen[0][:, 7:]], dim=1)
    torch.testing.assert_close(text, words, atol=1e-5, rtol=1e-5)


def test_the_two_parts_have_rates_of_their_own() -> None:
    groups = {"dept.prompt": {"learning_rate": 0.3}, "dept.low_rank": {"learning_rate": 5e-4}}
    with attach(tiny_model("bert"), recipe({"groups": groups})) as hybrid:
        module: Any = hybrid.modules["dept"]
        found = {g["name"]: (g["lr"], g["params"]) for g in hybrid.parameter_groups()}
        assert {n for n in found if n.startswith("dept")} == set(groups)
        assert found["dept.prompt"] == (0.3, [module.table])
        assert found["dept.low_rank"] == (5e-4, [module.A, module.B])


def test_the_prompt_begins_as_the_words_of_a_text() -> None:
    model = tiny_model("bert")
    table = _table(model).weight
    for words, ids in (([7, 9], [7, 9, 7]), ([5, 6, 7, 8], [5, 6, 7])):
        with attach(model, recipe(words=words)) as hybrid:
            module: Any = hybrid.modules["dept"]
            assert torch.equal(module.table, table[torch.tensor(ids)])
    for wrong in (50, -1):
        with pytest.raises(MethodError, match=f"the token {wrong}, .*ids of this model's tokenizer"):
            attach(model, recipe(words=[4, wrong]))


def test_it_starts_from_a_prompt_or_from_one_with_its_update() -> None:
    _, module, _ = attached("bert")
    tensors = {"table": torch.randn(3, 32), "A": torch.randn(16, 2), "B": torch.randn(2, 32)}
    before = module.A.detach().clone()
    module.start_from((Stored("i", "p", "prompt_tuning", {"table": tensors["table"]}),))
    assert torch.equal(module.table, tensors["table"])
    assert torch.equal(module.A, before)
    module.start_from((Stored("i", "d", "dept", tensors, own=True),))
    assert torch.equal(module.A, tensors["A"])
    assert torch.equal(module.B, tensors["B"])
    with pytest.raises(MethodError, match="same `max_length`"):
        module.start_from((Stored("i", "d", "dept", {**tensors, "A": torch.randn(8, 2)}, own=True),))
