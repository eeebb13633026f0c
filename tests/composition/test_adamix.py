"""`adamix`: copies of a part of its child, drawn while training, and their mean afterwards."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from transformers import BertConfig, Trainer, TrainingArguments

from autopeft.backbones import spec_of
from autopeft.composition import AdaMix, ChildSpec
from autopeft.counting import count
from autopeft.errors import CompositionError, UsageError
from autopeft.export.peft_format import to_peft
from autopeft.hybrid import Hybrid, attach, load
from autopeft.hybrid.loss_step import Step
from autopeft.injection.bind import BoundModule
from autopeft.method import Call, Context, get_method
from autopeft.recipe import Recipe
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.space import Space
from autopeft.spec import Site
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training import TrainingPlan, predict, run_trial
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient

ADAPTER: dict[str, Any] = {"linear_adapter": {"bottleneck": 4, "activation": "gelu", "bias": True}}
LORA: dict[str, Any] = {"lora": {"rank": 2}}
CPU = torch.device("cpu")


def recipe(child: Any = ADAPTER, *, training: Any = None, inputs: Any = None, **options: Any) -> Recipe:
    return recipe_alone({"adamix": {"children": [child], **options}}, training, inputs)


def recipe_alone(item: Any, training: Any = None, inputs: Any = None) -> Recipe:
    layers = [{"attach": [item]}]
    return Recipe.from_dict(
        {"name": "a", "inputs": inputs or {}, "layers": layers, "training": training or {}}
    )


def attached(child: Any = ADAPTER, *, name: str = "bert", spread: float = 0.3, **options: Any) -> Hybrid:
    """A hybrid with copies that differ, and a child whose effect is large enough to be seen."""
    hybrid = attach(tiny_model(name), recipe(child, **options), seed=0)
    randomise(hybrid.root, std=spread)
    return hybrid


def mix(hybrid: Hybrid) -> Any:
    return hybrid.modules["adamix"]


def child_of(hybrid: Hybrid) -> nn.Module:
    return hybrid.modules[mix(hybrid).copies_of]


def copies(hybrid: Hybrid) -> dict[str, list[Tensor]]:
    """All copies of each parameter that has some, the child's own first."""
    names = [name for name, _ in child_of(hybrid).named_parameters()]
    keys = {name: name.replace(".", "/") for name in names}
    further = mix(hybrid).further
    return {
        name: [child_of(hybrid).get_parameter(name), *(copied[key] for copied in further)]
        for name, key in keys.items()
        if len(further) and key in further[0]
    }


# Counts
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "size", "trained", "deployed"), [(768, 48, 2_223_360, 894_528), (1024, 16, 1_992_192, 811_392)]
)
def test_counts_are_those_of_the_released_files(width: int, size: int, trained: int, deployed: int) -> None:
    """L·(E·(d·m + m) + m·d + d) and L·(2·d·m + m + d), of BERT-base and RoBERTa-large."""
    layers, heads = (12, 12) if width == 768 else (24, 16)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    item = {"linear_adapter": {"bottleneck": size, "bias": True}}
    found = count(recipe(item), spec_of(config))
    assert (found.trained, found.deployed) == (trained, deployed)


CHILDREN: dict[str, Any] = {
    "linear": ADAPTER,
    "linear-input": {"linear_adapter": {"variant": "input", "bottleneck": 4, "sites": ["up"]}},
    "linear-parallel": {
        "linear_adapter": {"variant": "parallel", "bottleneck": 4, "sites": ["up", "down"], "bias": True}
    },
    "serial": {"serial_adapter": {"bottleneck": 4}},
    "serial-norms": {"serial_adapter": {"variant": "houlsby", "bottleneck": 4, "bias": False}},
    "parallel": {"parallel_adapter": {"bottleneck": 4, "scale": "learned"}},
    "lora": {"lora": {"rank": 3, "sites": ["q", "up", "down"]}},
}


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("copied", ["down", "up", "both"])
def test_what_is_counted_is_what_is_held(child: str, copied: str) -> None:
    hybrid = attached(CHILDREN[child], copied=copied, copies=3)
    counts, alone = hybrid.counts(), attach(tiny_model("bert"), recipe_alone(CHILDREN[child])).counts()
    assert counts.deployed == alone.deployed == alone.trained
    assert counts.trained == sum(p.numel() for p in hybrid.root.parameters())
    parts: dict[str, list[nn.Parameter]] = child_of(hybrid).parts()  # type: ignore[operator]
    wanted = {"down", "up"} if copied == "both" else {copied}
    own = sum(p.numel() for part in wanted for p in parts[part])
    assert counts.trained - counts.deployed == 2 * own


# First values
# ------------------------------------------------------------------------------------------------------------


def test_each_copy_is_drawn_as_the_child_is_and_the_child_is_what_it_would_be_alone() -> None:
    hybrid = attach(tiny_model("bert"), recipe({"linear_adapter": {"bottleneck": 64}}, copies=4), seed=3)
    alone = attach(tiny_model("bert"), recipe_alone({"linear_adapter": {"bottleneck": 64}}), seed=3)
    for name, found in copies(hybrid).items():
        assert torch.equal(found[0], alone.modules["linear_adapter"].get_parameter(name))
        together = torch.stack([value.detach() for value in found]).flatten(1)
        assert together.std(dim=1) == pytest.approx([0.02] * 4, rel=0.15)
        assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 0.15


def test_all_copies_may_begin_equal() -> None:
    hybrid = attach(tiny_model("bert"), recipe(LORA, init="equal"), seed=3)
    for found in copies(hybrid).values():
        assert len(found) == 4
        assert all(torch.equal(found[0], other) and found[0] is not other for other in found[1:])
    drawn = attach(tiny_model("bert"), recipe(LORA), seed=3)
    assert not any(torch.equal(found[0], found[1]) for found in copies(drawn).values())


def test_copies_of_what_starts_from_an_input_start_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = attach(tiny_model("bert"), recipe_alone(LORA), seed=1)
    randomise(source.root)
    source.save("source")
    made = recipe({**LORA, "from": "source"}, inputs={"source": "source"})
    hybrid = attach(tiny_model("bert"), made, seed=2)
    for name, found in copies(hybrid).items():
        assert all(torch.equal(value, source.modules["lora"].get_parameter(name)) for value in found)


# Draws
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("child", "copied"), [(ADAPTER, "down"), (ADAPTER, "both"), (LORA, "up")])
def test_a_forward_runs_one_copy_of_each_part_at_each_site_for_all_rows(child: Any, copied: str) -> None:
    hybrid = attached(child, copied=copied)
    hybrid.root.train()
    calls: list[Site] = []
    module: Any = child_of(hybrid)
    delta = module.delta
    module.delta = lambda site, *rest: calls.append(site) or delta(site, *rest)
    seed, inputs = 5, tiny_inputs("bert", batch=6)
    torch.manual_seed(seed)
    out = logits(hybrid.model, inputs)
    sites = next(iter(hybrid.graph.entries.values())).sites
    assert sorted(s.key for s in calls) == sorted(s.key for s in sites), "each once"
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    chosen: dict[tuple[str, str], set[int]] = {}
    parts = {id(p): part for part, held in module.parts().items() for p in held}
    for name, found in copies(hybrid).items():
        own = (name.split(".")[1], parts[id(found[0])])
        chosen.setdefault(own, set()).update(i for i, p in enumerate(found) if p.grad is not None)
    assert all(len(indices) == 1 for indices in chosen.values()), "weight and bias of one copy"
    assert len(chosen) == len(sites) * (2 if copied == "both" else 1)
    # Every row has that copy alone: none reads a number of the others.
    with torch.no_grad():
        for value in (value for found in copies(hybrid).values() for value in found if value.grad is None):
            value.fill_(torch.nan)
    torch.manual_seed(seed)
    assert torch.equal(logits(hybrid.model, inputs), out)


def test_draws_have_equal_chances_and_sites_and_parts_are_independent() -> None:
    hybrid = attached(LORA, copied="both", copies=4)
    hybrid.root.train()
    wrap = mix(hybrid)
    first, second = next(iter(hybrid.graph.entries.values())).sites[:2]
    torch.manual_seed(0)
    draws = 4000
    found = []
    for _ in range(draws):
        own = [wrap.values(site)[0].args[0] for site in (first, second)]
        found.append([one[part] for one in own for part in ("down", "up")])
    drawn = torch.tensor(found)  # (draws, site and part)
    error = math.sqrt(0.25 * 0.75 / draws)
    for column in drawn.T:
        shares = torch.bincount(column, minlength=4) / draws
        assert (shares - 0.25).abs().max() < 4 * error
    for i in range(4):
        for j in range(i):
            agree = float((drawn[:, i] == drawn[:, j]).float().mean())
            assert abs(agree - 0.25) < 4 * error, "independent columns agree in a quarter of the draws"


def test_what_is_drawn_does_not_depend_on_the_device_of_the_parameters() -> None:
    """It is torch's generator of the CPU that draws: that of another device stands still."""
    hybrid = attached(LORA)
    hybrid.root.train()
    torch.manual_seed(4)
    expected = [int(torch.randint(4, ())) for _ in range(8)]
    torch.manual_seed(4)
    with torch.device("meta"):
        found = [mix(hybrid).values(None)[0].args[0]["down"] for _ in range(8)]
    assert found == expected


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_recomputed_draws_the_same_again(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        hybrid = attached(LORA, copied="both")
        if checkpointed:
            hybrid.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            hybrid.model.enable_input_require_grads()
        hybrid.model.train()
        for module in hybrid.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(3)
        first, second = (hybrid.model(**tiny_inputs("bert")).logits for _ in range(2))
        (first.square().sum() + 0.3 * second.sum()).backward()  # type: ignore[no-untyped-call]
        found.append({n: p.grad.clone() for n, p in hybrid.root.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) < len(list(hybrid.root.parameters())), "some copies were not drawn"
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_outside_of_training_nothing_is_drawn() -> None:
    hybrid, inputs = attached(), tiny_inputs("bert")
    state = torch.get_rng_state()
    assert torch.equal(logits(hybrid.model, inputs), logits(hybrid.model, inputs))
    assert torch.equal(torch.get_rng_state(), state)
    hybrid.root.train()
    assert len({float(logits(hybrid.model, inputs).detach().sum()) for _ in range(20)}) > 5


# The mean
# ------------------------------------------------------------------------------------------------------------


def test_the_mean_is_of_the_parameters_and_not_of_what_the_copies_give() -> None:
    """d = m = 1, W_dn of 1 and 3, W_up of 1, no biases, y = 1: GELU(2), and not (GELU(1) + GELU(3)) / 2."""
    site = Site("encoder", 0, "down", "linear", 1, 1)
    method = get_method("linear_adapter")
    adapter = method(method.Config(bottleneck=1, activation="gelu"))
    child: Any = adapter.build((site,), None)
    build = partial(adapter.build, (site,), None)
    ways = frozenset({"hook"})
    specs = [ChildSpec("a", "a", ways, (site,), part_size=adapter.part_size, build=build)]
    options = {"copies": 2, "copied": "down", "init": "drawn", "consistency": 1.0}
    AdaMix.check(specs, options)
    wrap = AdaMix.build(specs, options)
    with torch.no_grad():
        child[site].down.weight.fill_(1.0)
        child[site].up.weight.fill_(1.0)
        for copied in wrap.further.parameters():
            copied.fill_(3.0)
    wrap.eval()
    y = torch.ones(1, 1, 1)
    delta = partial(wrap.delta, site, [BoundModule("a", child, site)], y, y, Call(Context()))
    assert float(delta()) == pytest.approx(1.95450, abs=5e-6)
    wrap.train()
    torch.manual_seed(0)
    single = {float(delta()) for _ in range(30)}
    assert len(single) == 2
    assert sum(single) / 2 == pytest.approx(1.91865, abs=5e-6)


@pytest.mark.parametrize("copied", ["down", "up", "both"])
@pytest.mark.parametrize("child", [ADAPTER, LORA])
def test_what_is_saved_is_the_child_alone_with_the_means(child: Any, copied: str, tmp_path: Path) -> None:
    hybrid, inputs = attached(child, copied=copied), tiny_inputs("bert", pad=2)
    expected = logits(hybrid.model, inputs)
    before = {n: p.clone() for n, p in hybrid.root.named_parameters()}
    hybrid.save(tmp_path / "mixed")
    assert all(torch.equal(p, before[n]) for n, p in hybrid.root.named_parameters()), "training goes on"
    alone = attach(tiny_model("bert"), recipe_alone(child), seed=0)
    alone.save(tmp_path / "alone")
    saved, plain = (load_file(tmp_path / n / "weights.safetensors") for n in ("mixed", "alone"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in plain.items()}
    means = {name: torch.stack(found).mean(0) for name, found in copies(hybrid).items()}
    assert means
    for name, mean in means.items():
        _, site, *rest = name.split(".")
        key = f"{site.replace('-', '.')}.{mix(hybrid).copies_of}.{'.'.join(rest)}"
        assert torch.equal(saved[key], mean)
    again = load(tiny_model("bert"), tmp_path / "mixed")
    assert torch.equal(logits(again.model, inputs), expected)
    assert sum(p.numel() for p in again.root.parameters()) == again.counts().deployed
    # What is loaded draws nothing any more, in training either.
    again.root.train()
    assert torch.equal(logits(again.model, inputs), expected)
    again.save(tmp_path / "again")
    once_more = load_file(tmp_path / "again" / "weights.safetensors")
    assert all(torch.equal(once_more[key], value) for key, value in saved.items())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_lora_merges_and_is_one_lora_in_peft(name: str, tmp_path: Path) -> None:
    hybrid, inputs = attached(LORA, name=name, copied="both"), tiny_inputs(name)
    expected = logits(hybrid.model, inputs)
    if name != "gpt2":  # whose q and v are parts of a fused map, which peft adapts as a whole
        to_peft(hybrid, tmp_path)
        theirs: Any = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
        torch.testing.assert_close(logits(theirs, inputs), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


def test_an_adapter_cannot_be_merged_and_says_so() -> None:
    with pytest.raises(CompositionError, match="linear_adapter cannot be folded"):
        attached().merge()


def test_compositions_around_it_use_the_mean_too(tmp_path: Path) -> None:
    item = {"gate": [{"adamix": {"children": [LORA]}}, {"serial_adapter": {"bottleneck": 3}}]}
    hybrid = attach(tiny_model("bert"), recipe_alone(item), seed=0)
    randomise(hybrid.root, std=0.3)
    inputs = tiny_inputs("bert")
    expected = logits(hybrid.model, inputs)
    hybrid.save(tmp_path)
    assert torch.equal(logits(load(tiny_model("bert"), tmp_path).model, inputs), expected)


# The consistency term
# ------------------------------------------------------------------------------------------------------------


def step_of(first: Tensor, second: Tensor) -> Step:
    """A step whose further forward gives `second`."""
    labels = torch.zeros(len(first), dtype=torch.long)
    return Step(
        nn.Identity(),
        {"labels": labels},
        first,
        forward=lambda batch, altered: second,
        total=CrossEntropy().total,
        divisor=float(len(first)),
    )


def test_the_term_and_its_gradient_are_those_of_the_authors_code() -> None:
    """p = (½, ½), q = (¾, ¼): ⅛·ln 3, and ½·(p − q) for the first logits, whose targets have no gradient."""
    wrap = mix(attached()).train()
    first = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
    second = torch.tensor([[0.75, 0.25]]).log().requires_grad_()
    term = wrap.loss_terms(step_of(first, second))
    term.backward()
    assert float(term) == pytest.approx(0.13733, abs=5e-6)
    for logits_of_one, sign in ((first, -1), (second, 1)):
        torch.testing.assert_close(logits_of_one.grad, sign * torch.tensor([[0.125, -0.125]]))
    wrap.consistency = 100.0
    assert float(wrap.loss_terms(step_of(first, second))) == pytest.approx(13.733, abs=5e-4)


def training_step(hybrid: Hybrid, micro_rows: int = 12) -> tuple[float, int]:
    """The loss of a step on the toy task, and how many forwards it took."""
    forwards = 0

    def counted(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = hybrid.model.register_forward_pre_hook(counted)
    batch = encoded_task().train.collate(range(12))
    batch.pop("task_id", None)
    gradient = Gradient(Forward(hybrid.model), CrossEntropy(), micro_rows=micro_rows, device=CPU)
    for parameter in hybrid.trainable_parameters():
        parameter.grad = None
    owners = list(hybrid.modules.values())
    loss = gradient.accumulate(batch, owners, hybrid.trainable_parameters())
    handle.remove()
    return loss, forwards


def toy(**options: Any) -> Hybrid:
    hybrid = attach(tiny_bert(), recipe(ADAPTER, **options), seed=0)
    randomise(hybrid.root, std=0.5)
    hybrid.root.train()
    return hybrid


def test_the_term_is_zero_where_both_forwards_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, plain = toy(), toy(consistency=0.0)
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(1))
    (with_term, two), (without, one) = training_step(mixed), training_step(plain)
    assert (two, one) == (2, 1)
    assert with_term == pytest.approx(without, abs=1e-7)
    for a, b in zip(mixed.root.parameters(), plain.root.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-7)  # type: ignore[arg-type]


def test_the_second_forward_draws_anew_and_its_term_trains_both() -> None:
    hybrid = toy(copies=16, consistency=1000.0)
    torch.manual_seed(1)
    loss, _ = training_step(hybrid)
    plain = toy(copies=16, consistency=0.0)
    torch.manual_seed(1)
    assert loss > training_step(plain)[0] + 1e-4
    drawn = [[p.grad is not None for p in found] for found in copies(hybrid).values()]
    assert max(map(sum, drawn)) == 2, "the copy of either forward"


def test_in_parts_the_term_is_the_mean_over_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first forward of each part has one copy here, and the second another."""
    hybrid, found = toy(copied="up"), []
    sites = len(next(iter(hybrid.graph.entries.values())).sites)
    for micro_rows in (12, 4, 1):
        turn = iter(i // sites % 2 for i in range(10_000))
        monkeypatch.setattr(torch, "randint", lambda *a, turn=turn, **k: torch.tensor(next(turn)))
        found.append(training_step(hybrid, micro_rows)[0])
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_regression_has_no_term_and_takes_one_forward() -> None:
    wrap = mix(attached()).train()
    assert wrap.loss_terms(step_of(torch.randn(3, 1), torch.full((3, 1), torch.nan))) is None


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([0.5, 1.5])])
def test_the_trainer_of_transformers_has_the_term(labels: Tensor, tmp_path: Path) -> None:
    numbers = labels.is_floating_point()
    model = tiny_model("bert", num_labels=1 if numbers else 2)
    hybrid = attach(model, recipe(ADAPTER), seed=0)
    inputs = tiny_inputs("bert")
    rows = [{**{k: v[i] for k, v in inputs.items()}, "labels": labels[i]} for i in range(2)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    before = [p.detach().clone() for p in hybrid.root.parameters()]
    Trainer(model, arguments, train_dataset=rows, **hybrid.for_trainer()).train()  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(before, hybrid.root.parameters(), strict=True))
    # Without the callback's loss there would be no term.
    alone = Trainer(model, arguments, train_dataset=rows, callbacks=[hybrid.callback()])  # type: ignore[arg-type]
    if not numbers:
        with pytest.raises(UsageError, match="adds terms to the loss"):
            alone.train()


# Training
# ------------------------------------------------------------------------------------------------------------


def test_a_copy_that_is_not_drawn_stays_as_it_is_with_its_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = toy(consistency=0.0, copies=3)
    optimizer = torch.optim.AdamW(hybrid.root.parameters(), lr=0.1, weight_decay=0.1)

    def step(index: int) -> None:
        monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(index))
        training_step(hybrid)
        optimizer.step()

    step(1)
    held = {
        name: (found[1].detach().clone(), {k: v.clone() for k, v in optimizer.state[found[1]].items()})
        for name, found in copies(hybrid).items()
    }
    assert all(state["exp_avg"].any() for _, state in held.values())
    for _ in range(2):
        step(2)
    for name, found in copies(hybrid).items():
        value, state = held[name]
        assert torch.equal(found[1], value)
        assert all(torch.equal(optimizer.state[found[1]][k], v) for k, v in state.items())
        assert found[0] not in optimizer.state
        assert optimizer.state[found[2]]["step"] == 2


def test_copies_train_with_the_settings_of_the_child_and_of_its_parts() -> None:
    training = {
        "learning_rate": 1e-3,
        "groups": {
            "lora": {"learning_rate": 1e-2},
            "lora.down": {"learning_rate": 2e-2, "weight_decay": 0.3},
        },
        "policies": [{"lora_plus": {"ratio": 4}}],
    }
    model = tiny_model("bert")
    hybrid = attach(model, recipe(LORA, copied="both", copies=3, training=training), seed=0)
    groups = {id(p): group for group in hybrid.optimizer().param_groups for p in group["params"]}
    parts: Any = child_of(hybrid).parts  # type: ignore[union-attr]
    for part, rate, decay in (("down", 2e-2, 0.3), ("up", 4e-2, 0.0)):
        own = {id(p) for p in parts()[part]}
        for found in copies(hybrid).values():
            if id(found[0]) in own:
                chosen = [groups[id(p)] for p in found]
                assert {g["lr"] for g in chosen} == {rate}
                assert {g["weight_decay"] for g in chosen} == {decay}
                assert len({id(g) for g in chosen}) == 1, "clipped together where groups are clipped apart"
    assert len(groups) == len(hybrid.trainable_parameters())


def test_it_trains_and_what_is_scored_is_what_is_saved(tmp_path: Path) -> None:
    data, plan = encoded_task(96), TrainingPlan(steps=60, batch_size=16, device="cpu", seed=1)
    child = {"lora": {"rank": 4, "sites": ["q", "v", "up", "down"]}}
    made = recipe(child, copies=3, init="equal", training={"learning_rate": 2e-2})
    live: list[Any] = []

    def keep(hybrid: Hybrid, scores: Any) -> None:
        hybrid.save(tmp_path)
        live.append(predict(hybrid.model, data.test))

    outcome = run_trial(tiny_bert(), made, data, plan, splits=("select",), keep=keep)
    losses = outcome.train.losses
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    again = load(tiny_bert(), tmp_path)
    assert np.allclose(predict(again.model, data.test), live[0], atol=1e-5)


# In searches
# ------------------------------------------------------------------------------------------------------------

SPACE = """
layers:
  - attach:
      - adamix:
          children:
            - lora: {rank: {choice: [1, 2, 4]}, sites: [q, v]}
          copies: {choice: [2, 4]}
          copied: {choice: [down, up, both]}
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
"""


def test_a_space_may_hold_it() -> None:
    bound = Space.from_yaml(SPACE).bind(spec_of(tiny_config("bert")))
    rng, counter, seen = random.Random(0), PointCounter(bound), set()
    for _ in range(40):
        point = bound.sample(rng)
        found, whole = counter.measure(point), bound.materialize(point)
        counts = count(whole, bound.spec)
        assert (found.deployed, found.trained) == (counts.deployed, counts.trained)
        (item,) = whole.layers[0].attach
        seen.add((item.options["copies"], item.options["copied"]))  # type: ignore[union-attr]
    assert len(seen) == 6


# What it cannot hold
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"adamix": ["lora", "ia3"]}, "wraps one child, but has 2"),
        ({"adamix": ["ia3"]}, "ia3 does not say how large its parts are"),
        ({"adamix": [{"sum": ["lora", "ia3"]}]}, r"sum\(lora, ia3\) does not say how large"),
        ({"adamix": ["prompt_tuning"]}, "list it beside"),
        ({"adamix": ["adalora"]}, "settles how large it is"),
    ],
)
def test_what_it_cannot_hold_is_refused(item: Any, said: str) -> None:
    level = {"model": [item]} if "prompt_tuning" in str(item) else {"layers": [{"attach": [item]}]}
    with pytest.raises(CompositionError, match=said):
        attach(tiny_model("bert"), Recipe.from_dict({"name": "r", **level}))


def test_a_frozen_child_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attach(tiny_model("bert"), recipe_alone(LORA), seed=1).save("source")
    made = recipe({**LORA, "from": "source", "frozen": True}, inputs={"source": "source"})
    with pytest.raises(CompositionError, match="lora is frozen"):
        attach(tiny_model("bert"), made)
