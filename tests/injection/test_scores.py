"""What acts on the scores of attention: the formula, which token a query and a key is, and where it is
refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from injection.test_traps import Aloof
from support.classifiers import classifier, encoded_rows
from support.on_scores import registered
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, PreTrainedModel

from autopeft.backbones import base_model_of
from autopeft.errors import CompositionError, MethodError
from autopeft.graph import first_layer
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.attention import attending
from autopeft.injection.depth import trunk_depths
from autopeft.injection.rows import ReadRows
from autopeft.injection.scores import Scores
from autopeft.method import Call, Places, Traits
from autopeft.recipe import Recipe
from autopeft.training.losses import logits_of

SLOPE = 0.4
PLACES: dict[str, Any] = {"score_places": {"width": 3}}


def recipe(*layers: Any, model: Sequence[Any] = ()) -> Recipe:
    body: dict[str, Any] = {"name": "r", "model": list(model)}
    return Recipe.from_dict({**body, "layers": [{"attach": list(layers)}]} if layers else body)


@pytest.fixture(scope="module", autouse=True)
def methods() -> Iterator[None]:
    with registered():
        yield


def sloped(model: PreTrainedModel, *model_items: Any, layers: Any = ("score_slope",)) -> Hybrid:
    hybrid = attach(model, recipe(*layers, model=model_items), seed=0)
    randomise(hybrid.root, std=0.3)
    with torch.no_grad():
        for own in hybrid.modules["score_slope"].children_by_site():
            own.slope.fill_(SLOPE)
    return hybrid


def ordinals(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1) * mask


def biased(mask: Tensor, scale: float, *, causal: bool) -> Tensor:
    """What an attention adds to its scores: the slope's term as it is scaled, and the mask."""
    i = ordinals(mask).float()
    term = SLOPE * scale * (i[:, None, :] - i[:, :, None])
    seen = mask[:, None, :].bool().expand(-1, mask.shape[1], -1)
    if causal:
        seen = seen & torch.ones(seen.shape[1:], dtype=torch.bool).tril()
    return term.masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def padded(name: str, side: str) -> dict[str, Tensor]:
    inputs = tiny_inputs(name)
    if side != "none":
        inputs["attention_mask"][0, slice(0, 2) if side == "left" else slice(4, None)] = 0
    return inputs


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_the_term_is_scaled_with_the_scores(name: str, attention: str, side: str) -> None:
    model, inputs = tiny_model(name, attention=attention), padded(name, side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    causal = name in ("gpt2", "llama")
    given = {"position_ids": ordinals(mask)} if causal else {}
    base = base_model_of(model)
    expected = base(ids, attention_mask=biased(mask, 8**-0.5, causal=causal), **given).last_hidden_state
    plain = base(ids, attention_mask=mask, **given).last_hidden_state
    sloped(model)
    got = base(ids, attention_mask=mask, **given).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[real], plain[real], atol=1e-2)
    if side == "none":
        torch.testing.assert_close(base(ids, **given).last_hidden_state, got, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_t5_does_not_scale_and_keeps_its_position_bias(attention: str) -> None:
    model, inputs = tiny_model("t5", attention=attention), tiny_inputs("t5")
    mask = torch.ones(2, 7, dtype=torch.long)
    states = model.encoder(inputs["input_ids"], attention_mask=biased(mask, 1.0, causal=False))[0]
    of_decoder = {
        "encoder_hidden_states": states,
        "attention_mask": biased(mask[:, :5], 1.0, causal=True),
    }
    expected = model.decoder(inputs["decoder_input_ids"], **of_decoder)[0]
    sloped(model)
    got = model.encoder(inputs["input_ids"], attention_mask=mask)[0]
    torch.testing.assert_close(got, states, atol=1e-5, rtol=1e-5)
    got = model.decoder(inputs["decoder_input_ids"], encoder_hidden_states=states)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_family_that_dispatches_by_a_forward_of_ours_has_terms_too() -> None:
    model, inputs = tiny_model("mpnet"), padded("mpnet", "right")
    mask = inputs["attention_mask"]
    term, layers = biased(mask, 8**-0.5, causal=False), base_model_of(model).encoder.layer

    def attend(_: Any, args: Any, kwargs: Any) -> Any:
        return (args[0], term, *args[2:]), kwargs

    handles = [layer.attention.attn.register_forward_pre_hook(attend, with_kwargs=True) for layer in layers]
    expected = base_model_of(model)(**inputs).last_hidden_state
    for handle in handles:
        handle.remove()
    sloped(model)
    got = base_model_of(model)(**inputs).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)


IN_FRONT: dict[str, tuple[list[Any], list[Any]]] = {
    "alone": ([], []),
    "prefix": ([{"prefix_tuning": {"length": 2, "reparameterization": None}}], []),
    "prompt": ([], [{"prompt_tuning": {"length": 2}}]),
    "among": ([], [{"p_tuning": {"length": 3, "slots": [{"length": 1}, {"length": 2, "offset": 2}]}}]),
    "late": ([], [{"lpt": {"length": 2, "layer": 1, "generator": "none", "dropout": 0.0}}]),
    "all": (
        [{"prefix_tuning": {"length": 2, "reparameterization": None}}],
        [
            {"prompt_tuning": {"length": 2}},
            {"lpt": {"length": 2, "layer": 1, "generator": "none", "dropout": 0.0}},
        ],
    ),
}


def in_front(model: PreTrainedModel, case: str) -> Hybrid:
    layers, items = IN_FRONT[case]
    return sloped(model, *items, layers=["score_slope", PLACES, *layers])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("case", IN_FRONT)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_step_from_a_cache_knows_which_tokens_its_keys_are(name: str, case: str, masked: bool) -> None:
    model = tiny_model(name)
    in_front(model, case)
    inputs = padded(name, "left" if masked else "none")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if case == "among" and not masked:
        pytest.skip("where rows lie among the tokens is told by the mask")
    positions = ordinals(mask)

    def given(first: int, last: int) -> dict[str, Tensor]:
        shown = {"attention_mask": mask[:, :last]} if masked else {}
        return {"input_ids": ids[:, first:last], "position_ids": positions[:, first:last], **shown}

    whole = model(**given(0, 7)).logits
    first = model(**given(0, 4), use_cache=True)
    second = model(**given(4, 6), past_key_values=first.past_key_values, use_cache=True)
    third = model(**given(6, 7), past_key_values=second.past_key_values, use_cache=True)
    stepped = torch.cat([first.logits, second.logits, third.logits], dim=1)
    real = mask.bool()
    torch.testing.assert_close(stepped[real], whole[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", IN_FRONT)
def test_fused_and_eager_attention_agree(case: str) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        model = tiny_model("bert", attention=attention)
        in_front(model, case)
        found.append(logits(model, padded("bert", "right")))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def places_seen(name: str, *items: Any, mask: Tensor | None = None) -> list[Places]:
    """The places that each layer's attention has."""
    model = tiny_model(name)
    hybrid = sloped(model, *items)
    module: Any = hybrid.modules["score_slope"]
    seen: list[Places] = []
    plain = type(module).query_key

    def watched(site: Any, x: Tensor, call: Call) -> Any:
        assert call.places is not None
        seen.append(call.places)
        return plain(module, site, x, call)

    module.query_key = watched
    inputs = tiny_inputs(name, batch=1, length=4)
    model(**inputs if mask is None else {**inputs, "attention_mask": mask})
    assert all(torch.equal(p.queries, p.keys) for p in seen)
    return seen


def test_reserved_rows_and_padding_are_no_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 0]])
    late = {"lpt": {"length": 1, "layer": 1, "generator": "none", "dropout": 0.0}}
    slots = [{"length": 1, "offset": 1}, {"length": 1, "offset": 2}]
    among = {"p_tuning": {"length": 2, "slots": slots}}
    first, second, third = (p.keys.tolist() for p in places_seen("bert", among, late, mask=mask))
    assert first == [[0, -1, 1, -1, 2, -1]]
    assert second == third == [[-1, 0, -1, 1, -1, 2, -1]]
    left = torch.tensor([[0, 0, 1, 1]])
    assert places_seen("llama", {"prompt_tuning": {"length": 2}}, mask=left)[0].keys.tolist() == [
        [-1, -1, -1, -1, 0, 1]
    ]
    images = places_seen("vit", {"prompt_tuning": {"length": 2}})[0]
    assert images.keys.tolist() == [[0, 1, 2, 3, 4, -1, -1]]


def test_where_tokens_stand_has_to_be_told() -> None:
    model = tiny_model("llama")
    sloped(model)
    ids = tiny_inputs("llama")["input_ids"]
    several = torch.arange(ids.shape[1]).expand(len(ids), -1) % 4
    with pytest.raises(CompositionError, match="holds several texts, and what comes to scores"):
        model(input_ids=ids, position_ids=several, use_cache=False)
    pairs = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with pytest.raises(CompositionError, match="stand in their text is told by a mask of shape"):
        model(input_ids=ids, attention_mask=pairs, use_cache=False)


def test_a_cache_of_fixed_size_is_refused_as_its_masks_tell_no_padding() -> None:
    model = tiny_model("llama")
    sloped(model)
    inputs = padded("llama", "left")
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    plain = model.generate(**inputs, use_cache=False, **settings)
    assert torch.equal(model.generate(**inputs, cache_implementation="dynamic", **settings), plain)
    with pytest.raises(CompositionError, match="pass the 2-D mask"):
        model.generate(**inputs, cache_implementation="static", **settings)


def test_a_window_keeps_the_last_keys() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**sizes, vocab_size=50, num_key_value_heads=2, sliding_window=4, pad_token_id=0)
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    randomise(model, std=0.15)
    sloped(model, layers=["score_slope", PLACES])  # a slope alone does not know where its keys begin
    ids = tiny_inputs("llama", length=9)["input_ids"]
    whole = model(ids).logits
    cache = DynamicCache(config=config)
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([6, 1, 1, 1], 1)]
    assert cache.layers[0].keys.shape[2] < 9
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_last_layer_is_computed_for_the_read_position_alone(name: str) -> None:
    hybrid = attach(classifier(name), recipe("score_slope", PLACES), seed=0)
    randomise(hybrid.root, std=0.3)
    batch = encoded_rows(name).collate(list(range(6)))
    stack = hybrid.injection.layout.stacks[-1]
    rows = ReadRows(hybrid.injection.base, stack, "first" if name == "bert" else "last", list)
    expected = logits_of(hybrid.model, batch)
    with rows.of(batch["attention_mask"]):
        torch.testing.assert_close(logits_of(hybrid.model, batch), expected, atol=1e-5, rtol=1e-5)


def test_layers_below_stay_untouched() -> None:
    made = Recipe.from_dict({"layers": [{"at": [2], "attach": ["score_slope"]}]})
    hybrid = attach(tiny_model("bert"), made, seed=0)
    assert first_layer(hybrid.graph) == trunk_depths(hybrid.injection)["encoder"] == 2


def test_terms_of_several_entries_add() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe("score_slope", {"score_slope": {}, "as": "second"}), seed=0)
    for name, slope in (("score_slope", 0.3), ("second", SLOPE - 0.3)):
        for own in hybrid.modules[name].children_by_site():
            torch.nn.init.constant_(own.slope, slope)
    got = logits(model, inputs)
    hybrid.detach()
    sloped(model)
    torch.testing.assert_close(got, logits(model, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sum", "gate", "chain", "route"])
def test_no_composition_holds_it(kind: str) -> None:
    made = recipe({kind: ["score_slope", "lora"]})
    with pytest.raises(CompositionError, match=rf"acts on the scores .* no {kind} holds such a method"):
        attach(tiny_model("bert"), made, seed=0)


def test_an_attention_that_does_not_dispatch_is_told_of() -> None:
    model = tiny_model("bert")
    for layer in base_model_of(model).encoder.layer:
        layer.attention.self = Aloof(layer.attention.self)
    attach(model, recipe("score_slope"), seed=0)
    with pytest.raises(CompositionError, match=r"term on the scores at .* ignored in silence"):
        logits(model, tiny_inputs("bert"))
    model = tiny_model("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(CompositionError, match="attn_implementation='sdpa'"):
        attach(model, recipe("score_slope"), seed=0)


@pytest.mark.parametrize("given", [{}, {"scaling": None}, {"scaling": 0.25}])
def test_the_scale_is_that_of_the_models_own_heads(given: dict[str, Any]) -> None:
    """Where the model names none, a function would take it from queries that are wider now."""
    queries, keys, values = torch.randn(3, 2, 4, 5, 6)
    features = torch.randn(2, 1, 5, 3)
    seen: dict[str, Any] = {}

    def delegate(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, widths=(query.shape[-1], key.shape[-1], value.shape[-1]))
        return (query @ key.mT * kwargs["scaling"]).softmax(-1) @ value, None

    handed = {"autopeft_scores": Scores(lambda q, k: (features[0], features[1])), **given}
    module = torch.nn.Identity()
    module.is_causal = False  # type: ignore[assignment]
    output, _ = attending(delegate, fused=True)(module, queries, keys, values, None, **handed)
    assert seen["widths"] == (16, 16, 16), "wide enough, and a multiple of eight"
    scores = queries @ keys.mT + features[0] @ features[1].mT
    expected = (scores * (given.get("scaling") or 6**-0.5)).softmax(-1) @ values
    torch.testing.assert_close(output, expected)


def test_features_of_another_shape_are_refused() -> None:
    model = tiny_model("bert")
    module: Any = sloped(model).modules["score_slope"]
    module.query_key = lambda site, x, call: (x.new_zeros(1, 7, 2), x.new_zeros(1, 6, 2))
    with pytest.raises(MethodError, match="where there are 7 queries and 7 keys"):
        logits(model, tiny_inputs("bert"))


def test_traits_name_the_attention() -> None:
    with pytest.raises(MethodError, match="has 'attention' among its sites"):
        Traits(ways=frozenset({"scores"}), sites=("cross_attention",))


def test_detaching_leaves_nothing() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    before = logits(model, inputs)
    hybrid = sloped(model)
    assert not torch.allclose(logits(model, inputs), before, atol=1e-3)
    hybrid.detach()
    assert torch.equal(logits(model, inputs), before)


def test_terms_of_full_precision_on_a_backbone_of_half() -> None:
    model = tiny_model("bert").to(torch.bfloat16)
    hybrid = attach(model, recipe("score_slope", PLACES), seed=0)
    hybrid.root.float()
    randomise(hybrid.root, std=0.3)
    logits(model, tiny_inputs("bert")).float().pow(2).sum().backward()
    assert {p.grad.dtype for p in hybrid.root.parameters() if p.grad is not None} == {torch.float32}
