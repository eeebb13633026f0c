from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.dropped import assert_dropped
from support.tiny import ARCHITECTURES, logits, randomise, tiny_inputs, tiny_model
from support.toy import build, configured, sites_of, size
from support.training import VOCABULARY, encoded_task
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, RobertaConfig

from autopeft.backbones import base_model_of, spec_of
from autopeft.counting import count
from autopeft.errors import DataError, MethodError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.injection.depth import trunk_depths
from autopeft.method import Call, Context
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan
from autopeft.training.checks import check_recipe
from autopeft.training.gradient import Gradient
from autopeft.training.loop import train

SMALL = {"length": 3, "bottleneck": 4, "dropout": 0.0, "keep": 1}
FORMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "shared": {"shared": True},
    "phm": {"phm_dim": 2},
    "phm-shared": {"phm_dim": 4, "shared": True},
}
PLAN = TrainingPlan(steps=12, batch_size=8, seed=3, device="cpu", shortcuts=False)
TRAINING = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}


def recipe(*others: Any, **config: Any) -> Recipe:
    return of(*others, {"selective_prompt": {**SMALL, **config}})


def of(*items: Any, layers: list[Any] | None = None) -> Recipe:
    blocks = [{"attach": layers}] if layers else []
    made = {"autopeft": 2, "name": "s", "layers": blocks, "model": list(items), "training": TRAINING}
    return Recipe.from_dict(made)


def deep_bert() -> BertForSequenceClassification:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=48,
    )
    return BertForSequenceClassification(config).eval()


def attached(name: str | PreTrainedModel, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name) if isinstance(name, str) else name
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["selective_prompt"], hybrid


def kept(name: str | PreTrainedModel, places: list[int], **config: Any) -> tuple[Any, Any, Hybrid]:
    """With the layers found that the gates are made to say."""
    model, module, hybrid = attached(name, keep=len(places), **config)
    with torch.no_grad():
        module.gates[places] = 2.0 + torch.arange(len(places)).flip(0)
    module.finish()
    hybrid.refresh()
    return model, module, hybrid


# Form and counts
# ---------------------------------------------------------------------------------------------------


def test_counts_of_a_roberta_large() -> None:
    """LPT's generator has 791,680 parameters there."""
    spec = spec_of(RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))
    method = configured("selective_prompt")
    found = method.parameter_count(sites_of(method, spec), spec)
    assert (found.deployed, found.trained) == (4 * 791_680, 24 * 791_680 + 24)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.sampled_from(list(FORMS)))
def test_count_is_what_it_holds(layers: int, keep: int, length: int, form: str) -> None:
    spec = spec_of(
        BertConfig(hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=8)
    )
    config = {"keep": keep, "length": length, "bottleneck": 4, **FORMS[form]}
    method = configured("selective_prompt", **config)
    found = method.parameter_count(sites_of(method, spec), spec)
    module, _ = build("selective_prompt", spec, **config)
    assert found.trained == size(module)
    assert module.searching == (layers > keep)
    module.finish()
    assert found.deployed == size(module)
    assert len(module.layer_index) == min(keep, layers)


def test_defaults_without_a_source_are_those_of_lpt() -> None:
    ours, theirs = configured("selective_prompt").config, configured("lpt").config
    assert all(getattr(ours, k) == getattr(theirs, k) for k in ("length", "bottleneck", "dropout"))


def _generated(module: Any, place: int, text: Tensor) -> Tensor:
    """ReLU(h·W₁ + b₁)·W₂ + b₂ of one place, with W as a sum of `torch.kron`."""

    def matrix(maps: Any) -> Tensor:
        copy = 0 if module.config.shared else place
        if maps.rules is None:
            return maps.weight[copy]
        pairs = zip(maps.rules[copy], maps.weight[copy], strict=True)
        return sum((torch.kron(a, b) for a, b in pairs), torch.zeros(()))

    down, up = module.down, module.up
    hidden = F.relu(text[:, 0] @ matrix(down) + down.bias[place])
    return (hidden @ matrix(up) + up.bias[place]).view(len(text), module.config.length, -1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("places", [None, [0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_it_computes_the_formula(places: list[int] | None, form: str, attention: str) -> None:
    """In a search (`None`) every layer mixes; afterwards those chosen replace, and the others hand on."""
    model = tiny_model("bert", attention=attention)
    if places == [0, 1, 2]:
        module, hybrid = (made := attached(model, keep=3, **FORMS[form]))[1], made[2]
    elif places is None:
        module, hybrid = (made := attached(model, **FORMS[form]))[1], made[2]
        assert len(module.gates.unique()) == 3
    else:
        module, hybrid = (made := kept(model, places, **FORMS[form]))[1], made[2]
    inputs = tiny_inputs("bert", pad=2)
    inputs["attention_mask"][0, 5:] = 0
    mask = inputs["attention_mask"]
    ours = model.base_model(**inputs).last_hidden_state
    hybrid.detach()
    base = base_model_of(model)
    text = base.embeddings(input_ids=inputs["input_ids"])
    rows: Tensor | None = None
    for i, layer in enumerate(base.encoder.layer):
        if places is None:
            gate = module.gates[i].sigmoid()
            assert 0 < float(gate) < 1
            fresh = gate * _generated(module, i, text)
            rows = fresh if rows is None else (1 - gate) * rows + fresh
        elif i in places:
            rows = _generated(module, places.index(i), text)
        count = 0 if rows is None else 3
        states = text if rows is None else torch.cat([rows, text], dim=1)
        hide = torch.zeros(2, 1, 1, count + 9)
        hide[:, 0, 0, count:] = (1 - mask).float() * torch.finfo(torch.float32).min
        states = layer(states, hide.expand(-1, -1, count + 9, -1))
        rows, text = (None if rows is None else states[:, :3]), states[:, count:]
    torch.testing.assert_close(ours[mask == 1], text[mask == 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("searching", [True, False])
def test_dropout_acts_on_what_is_made_while_it_trains(searching: bool) -> None:
    """Not on the rows of the layers below, of which a search keeps a share."""
    options = {"dropout": 0.25}
    model = tiny_model("bert")
    module, hybrid = (attached(model, **options) if searching else kept(model, [0, 2], **options))[1:]
    sites = {site.key: site for site in hybrid.graph.sites()}
    x, carried = torch.randn(100, 9, 32), torch.randn(100, 3, 32)
    assert len(module._there()) > 1
    for i, key in enumerate(module._there()):
        made, below = _generated(module, i, x), torch.zeros(())
        call = Call(Context(), carried=carried if i else None)
        if searching:
            gate = module.gates[i].sigmoid()
            made, below = gate * made, (1 - gate) * carried if i else below
        torch.testing.assert_close(module.eval().prompt(sites[key], x, call), made + below)
        found = module.train().prompt(sites[key], x, call)
        assert_dropped(found - below, made, 0.25)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_all_gates_at_zero_the_backbone_is_as_it_was(name: str) -> None:
    """No row is there that a softmax could give a share to, and no parameter."""
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    bare = logits(tiny_model(name).requires_grad_(False), inputs)  # of T5 gradients change the kernel
    model, module, hybrid = kept(name, [1])
    assert not torch.allclose(logits(model, inputs), bare)
    module._hold(torch.tensor([], dtype=torch.long))
    assert torch.equal(logits(model, inputs), bare)
    hybrid.refresh()
    assert torch.equal(logits(model, inputs), bare)
    assert size(module) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_layer_is_late_prompt_tuning(name: str) -> None:
    """The layers below run without the rows, have no gradients and can be kept."""
    model, module, hybrid = kept(name, [1])
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    ours = logits(model, inputs)
    stack = hybrid.spec.stacks[0].name
    assert trunk_depths(hybrid.injection)[stack] == 1
    down, up = ((m.weight[0].detach().T, m.bias[0].detach()) for m in (module.down, module.up))
    hybrid.detach()
    item = {"lpt": {"length": 3, "bottleneck": 4, "dropout": 0.0, "layer": 1}}
    late = attach(model, of(item), seed=0)
    prompt: Any = late.modules["lpt"]
    with torch.no_grad():
        for linear, (weight, bias) in ((prompt.down, down), (prompt.up, up)):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    torch.testing.assert_close(logits(model, inputs), ours, atol=1e-6, rtol=1e-6)


def test_where_there_are_no_more_layers_nothing_is_searched_for() -> None:
    _, module, hybrid = attached("bert", keep=7)
    assert not module.searching
    assert [phase.name for phase in module.phases()] == ["train"]
    counts = hybrid.counts()
    assert counts.deployed == counts.trained == count(hybrid.graph, hybrid.spec).deployed


def test_of_equal_gates_the_lowest_layers_stay() -> None:
    _, module, _ = attached("bert", keep=2)
    with torch.no_grad():
        module.gates.zero_()
    module.finish()
    assert module.layer_index.tolist() == [0, 1]


def test_a_prompt_at_the_input_and_a_late_one_beside_it_keep_their_rows() -> None:
    """Rows made anew are its own alone, wherever they lie among the others'."""
    early = {"p_tuning": {"length": 2, "slots": [{"length": 2, "offset": 1}], "encoder": "mlp"}}
    late = {"lpt": {"length": 2, "bottleneck": 4, "dropout": 0.0, "layer": 1}}
    for others in ([early], [late], [early, late]):
        model = tiny_model("bert")
        hybrid = attach(model, recipe(*others, keep=2), seed=0)
        randomise(hybrid.root, std=0.3)
        bare = logits(model, tiny_inputs("bert"))
        torch.testing.assert_close(logits(model, tiny_inputs("bert", pad=4)), bare, atol=1e-5, rtol=1e-4)
        module: Any = hybrid.modules["selective_prompt"]
        module.finish()
        stale = logits(model, tiny_inputs("bert"))
        hybrid.refresh()
        assert torch.equal(logits(model, tiny_inputs("bert")), stale)
        assert not torch.allclose(stale, bare)


def test_rows_are_made_anew_exactly_in_16_bits() -> None:
    """However large what the layers below have made of them is, nothing of it is left."""
    model, module, _ = kept(tiny_model("bert").to(torch.bfloat16), [0, 2])
    seen: list[Tensor] = []
    made: list[Tensor] = []
    prompt = module.prompt

    def watched(*args: Any) -> Tensor:
        made.append(prompt(*args))
        return made[-1]

    module.prompt = watched
    layer = base_model_of(model).get_submodule("encoder.layer.2")
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, tiny_inputs("bert"))
    assert len(made) == 2
    assert made[1].dtype == torch.float32
    assert torch.equal(seen[0][:, :3], made[1].to(torch.bfloat16))


# Training
# ---------------------------------------------------------------------------------------------------


def test_the_config_says_how_long_and_on_what_it_searches() -> None:
    spec = spec_of(BertConfig(hidden_size=8, num_hidden_layers=4, num_attention_heads=2))
    config = {"search": 0.75, "held_out": 0.4, "gate_learning_rate": 0.02, "keep": 2}
    module, _ = build("selective_prompt", spec, **config)
    first, second = module.phases()
    assert (first.name, first.share, first.held_out, first.anew) == ("search", 0.75, 0.4, False)
    assert (second.name, second.share, second.held_out, second.anew) == ("retrain", 0.25, 0.0, True)
    assert second.outer is None
    first.begin()
    (group,) = module._optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.5, 0.999), 0)
    assert all(p is not module.gates for g in module.parameter_groups() for p in g["params"])


class Watched:
    """A training, what moved the gates in it, and what it left."""

    def __init__(self, layers: list[Any] | None = None, **options: Any) -> None:
        self.model = deep_bert()
        config = {**SMALL, "keep": 2, "gate_learning_rate": 0.1, **options}
        self.hybrid = attach(self.model, of({"selective_prompt": config}, layers=layers), seed=0)
        self.module: Any = self.hybrid.modules["selective_prompt"]
        self.first = self._state()
        self.gates: list[Tensor] = []
        self.begun: dict[str, Tensor] = {}
        outer, choose = self.module._step_gates, self.module._choose

        def stepped(step: Any) -> None:
            self.gates.append(self.module.gates.detach().clone())
            outer(step)
            self.gates.append(self.module.gates.detach().clone())

        def chosen() -> None:
            self.ranked = self.module.gates.detach().clone()
            self.restored = self._state()
            choose()
            self.begun = self._state()

        self.module._step_gates, self.module._choose = stepped, chosen
        self.result = train(self.hybrid, encoded_task(), PLAN)

    def _state(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items() if "autopeft" in k}


def test_it_searches_and_trains_what_is_left_from_its_first_values() -> None:
    seen = Watched([{"serial_adapter": {"bottleneck": 4}}])
    best = sorted(seen.ranked.topk(2).indices.tolist())
    assert len(seen.ranked.unique()) == 4
    assert seen.result.outputs == {"search": best, "retrain": best}
    assert seen.module.layer_index.tolist() == best
    said = f"Prompts are made in front of {best[0]}, {best[1]} of the 4 layers, counted from 0."
    assert seen.module.remarks() == [said]
    own = "autopeft.selective_prompt."
    for name, value in seen.restored.items():  # the neighbour's too
        assert torch.equal(value, seen.first[name]) == (name != f"{own}gates"), name
    for name in ("down.weight", "down.bias", "up.weight", "up.bias"):
        assert torch.equal(seen.begun[own + name], seen.first[own + name][best])
        assert not torch.equal(seen.module.get_parameter(name), seen.begun[own + name])
    assert {n for n, p in seen.module.named_parameters() if p.numel()} == {
        f"{maps}.{kind}" for maps in ("down", "up") for kind in ("weight", "bias")
    }
    assert size(seen.module) == seen.hybrid.graph.entries["selective_prompt"].count.deployed


def test_gates_move_on_held_out_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, set[tuple[int, ...]]] = {"gates": set(), "generators": set()}
    real = Gradient.of

    def gradients(self: Any, batch: Any, owners: Any, wanted: Any) -> Any:
        if [p.ndim for p in wanted] == [1]:
            rows["gates"] |= {tuple(r[r != 0].tolist()) for r in batch["input_ids"]}
        return real(self, batch, owners, wanted)

    monkeypatch.setattr(Gradient, "of", gradients)
    seen = Watched(search=0.9)
    before, after = seen.gates[::2], seen.gates[1::2]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, before[1:], strict=False)), "by the upper level alone"
    assert len(rows["gates"]) == 24


def test_the_rows_of_both_levels_are_apart() -> None:
    model, seen = deep_bert(), []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    with attach(model, recipe(search=0.5), seed=0) as hybrid:
        train(hybrid, encoded_task(), replace(PLAN, steps=6))
    assert len(seen) == 3 * 2 + 3, "first order: two passes in a step"
    upper, lower = ({tuple(r[r != 0].tolist()) for ids in seen[i:6:2] for r in ids} for i in (0, 1))
    assert upper.isdisjoint(lower)


def test_the_gates_follow_the_gradient_at_the_present_generators() -> None:
    model, module, _ = attached("bert")
    inputs = tiny_inputs("bert")
    (expected,) = torch.autograd.grad(logits(model, inputs).pow(2).sum(), [module.gates])
    start = module.gates.detach().clone()
    module._begin()

    class Step:
        def upper(self, wanted: Any) -> list[Tensor]:
            return list(torch.autograd.grad(logits(model, inputs).pow(2).sum(), wanted))

    step: Any = Step()
    module._step_gates(step)
    torch.testing.assert_close(module.gates, start - 0.01 * expected.sign(), atol=1e-6, rtol=1e-5)
    assert module.gates.grad is None


def test_a_search_that_is_stopped_leaves_the_best_layers_so_far(tmp_path: Path) -> None:
    model = deep_bert()
    hybrid, steps = attach(model, recipe(keep=2), seed=0), []
    result = train(
        hybrid,
        encoded_task(),
        PLAN,
        on_step=lambda s, _: steps.append(s),
        should_stop=lambda: len(steps) == 3,
    )
    assert result.stopped == "asked"
    module: Any = hybrid.modules["selective_prompt"]
    assert not module.searching
    assert hybrid.counts().deployed == count(hybrid.graph, hybrid.spec).deployed
    assert {s.layer for s in hybrid.injection.sites()} == set(module._layers())
    batch = encoded_task().select.collate([0, 1])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    expected = model(**inputs).logits
    hybrid.save(tmp_path)
    fresh = deep_bert()
    load(fresh, tmp_path)
    torch.testing.assert_close(fresh(**inputs).logits, expected, atol=1e-6, rtol=1e-6)


def test_what_was_found_is_trained_in_one_phase() -> None:
    _, module, hybrid = kept(deep_bert(), [1, 3])
    before = {k: v.detach().clone() for k, v in module.state_dict().items()}
    assert [phase.name for phase in module.phases()] == ["train"]
    train(hybrid, encoded_task(), PLAN)
    assert module.layer_index.tolist() == [1, 3]
    assert not torch.equal(module.down.weight, before["down.weight"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_a_second_hybrid_from_disk_acts_the_same(name: str, form: str, tmp_path: Path) -> None:
    inputs = tiny_inputs(name)
    for searching in (True, False):
        made = attached(name, **FORMS[form]) if searching else kept(name, [1], **FORMS[form])
        model, module, hybrid = made
        expected = logits(model, inputs)
        hybrid.save(tmp_path / str(searching))
        fresh = tiny_model(name)
        again = load(fresh, tmp_path / str(searching))
        other: Any = again.modules["selective_prompt"]
        assert other.searching == searching
        assert other._there() == module._there()
        assert again.counts().deployed == hybrid.counts().deployed == size(module)
        torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-6, rtol=1e-6)


# Refusals
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[-1, 1], [0, 7], [1, 1], [2, 0]])
def test_damaged_layers_are_refused(index: list[int]) -> None:
    model, module, _ = kept("bert", [0, 1])
    logits(model, tiny_inputs("bert"))
    module.layer_index.copy_(torch.tensor(index))
    with pytest.raises(DataError, match="damaged"):
        logits(model, tiny_inputs("bert"))


def test_blocks_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(MethodError, match="divides both"):
        attach(tiny_model("bert"), recipe(phm_dim=3, bottleneck=6))


def test_a_language_model_is_refused() -> None:
    with pytest.raises(UsageError, match="see what they are to predict"):
        check_recipe(attached("gpt2")[2], get_kind("causal_lm"))
