"""attach and detach as exact inverses, inside and outside of transformers' own machinery."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fingerprint import changed, fingerprint
from support.tiny import ARCHITECTURES, LogitsObjective, logits, randomise, tiny_inputs, tiny_model

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe

ITEMS: list[Any] = [
    {"lora": {"rank": 2}},
    {"lora": {"rank": 1, "sites": ["down"]}, "as": "second"},
    {"dora": {"rank": 2, "sites": ["o"]}},
    {"prefix_tuning": {"length": 2}},
    {"serial_adapter": {"bottleneck": 2}},
    {"parallel_adapter": {"bottleneck": 2}},
    "ia3",
    {
        "gate": [
            {"lora": {"rank": 1, "sites": ["k"]}, "as": "gated"},
            {"parallel_adapter": {"bottleneck": 1}, "as": "gated2"},
        ]
    },
]


def hybrid_recipe(number: int) -> Recipe:
    """A different hybrid for every number: each bit switches one item."""
    chosen = [item for i, item in enumerate(ITEMS) if (number * 37 + 11) >> i & 1] or [ITEMS[0]]
    model: list[Any] = [{"prompt_tuning": {"length": 2}}] if number % 3 == 0 else []
    if number % 4 == 1:
        model.append({"fish_mask": {"keep": "1%", "samples": 2}})
    return Recipe.from_dict(
        {
            "autopeft": 2,
            "name": f"h{number}",
            "layers": [{"at": [0, number % 2 + 1], "attach": chosen}],
            "model": model,
        }
    )


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "t5")]


@pytest.mark.parametrize("name", ["bert", *SLOWER])
def test_fifty_hybrids_in_a_row_leave_no_trace(name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name, pad=2)
    before, expected = fingerprint(model), logits(model, inputs).detach()
    live: list[int] = []
    for number in range(50):
        hybrid = attach(model, hybrid_recipe(number), seed=number)
        if hybrid.needs_prepare:
            rows = [{**tiny_inputs(name, batch=1, seed=s), "labels": torch.tensor([s])} for s in range(2)]
            hybrid.prepare(rows, LogitsObjective(model))
        logits(model, inputs).pow(2).sum().backward()
        torch.optim.SGD(hybrid.trainable_parameters(), lr=0.0).step()
        for parameter in hybrid.head_parameters():
            parameter.grad = None
        hybrid.detach()
        assert changed(before, fingerprint(model)) == [], f"hybrid {number}"
        del hybrid
        if number in (5, 49):
            gc.collect()
            live.append(sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor)))
    assert torch.equal(logits(model, inputs), expected)
    assert live[1] <= live[0] + 5, "tensors of earlier hybrids are still alive"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_failed_attach_changes_nothing(name: str) -> None:
    model = tiny_model(name)
    before = fingerprint(model)
    recipe = Recipe.from_dict({"autopeft": 2, "name": "x", "layers": [{"at": [0, 7], "attach": ["lora"]}]})
    with pytest.raises(UsageError, match="Layer 7"):
        attach(model, recipe)
    assert changed(before, fingerprint(model)) == []


def test_attached_twice_is_refused() -> None:
    model = tiny_model("bert")
    recipe = hybrid_recipe(1)
    with attach(model, recipe, seed=0), pytest.raises(UsageError, match="attached already"):
        attach(model, recipe)
    attach(model, recipe, seed=0).detach()


def test_the_seed_decides_the_init_and_leaves_the_global_generator_alone() -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [{"at": "all", "attach": ["lora"]}],
            "model": [{"prompt_tuning": {"length": 3, "init": "vocabulary"}}],
        }
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    states = []
    for seed in (1, 1, 2):
        with attach(model, recipe, seed=seed) as hybrid:
            states.append({k: v.clone() for k, v in hybrid.root.state_dict().items()})
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["lora.at.encoder-0-q.A"], states[2]["lora.at.encoder-0-q.A"])
    assert not torch.equal(states[0]["prompt_tuning.table"], states[2]["prompt_tuning.table"])


def test_config_that_a_labelled_forward_writes_is_restored() -> None:
    model = tiny_model("bert")
    before = dict(model.config.__dict__)
    with attach(model, hybrid_recipe(1), seed=0):
        model(**tiny_inputs("bert"), labels=torch.tensor([0, 1]))
        model.config.use_cache = False
        assert model.config.problem_type == "single_label_classification"
    assert model.config.__dict__ == before


def test_base_keys_never_change_and_added_ones_start_with_autopeft() -> None:
    model = tiny_model("llama")
    before = set(model.state_dict())
    with attach(model, hybrid_recipe(3), seed=0):
        after = set(model.state_dict())
        assert before <= after
        assert all(k.startswith("autopeft.") for k in after - before)
        assert len(after) > len(before)


def test_pickle_of_an_attached_model() -> None:
    model = tiny_model("bert")
    hybrid = attach(model, hybrid_recipe(2), seed=0)
    randomise(hybrid.root)
    inputs = tiny_inputs("bert")
    copied = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(logits(copied, inputs), logits(model, inputs))


def test_a_module_s_own_groups_take_its_settings_and_stand_behind_its_name() -> None:
    recipe = Recipe.from_dict(
        {
            "name": "x",
            "layers": [{"attach": ["lora"]}],
            "training": {"groups": {"lora": {"learning_rate": 2e-2, "weight_decay": 0.3}}},
        }
    )
    with attach(tiny_model("bert"), recipe, seed=0) as hybrid:
        module: Any = hybrid.modules["lora"]
        first, *rest = module.parameters()
        own = [{"params": rest}, {"name": "first", "params": [first], "weight_decay": 0.0}]
        module.parameter_groups = lambda: own
        groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in hybrid.parameter_groups()}
    assert groups == {"lora": (2e-2, 0.3), "lora.first": (2e-2, 0.0), "head": (1e-3, 0.0)}


def test_parameter_groups_follow_the_recipe() -> None:
    recipe = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [{"at": "all", "attach": ["lora", {"lora": {"sites": ["up"]}, "as": "up"}]}],
            "model": [{"prompt_tuning": {"length": 2}}],
            "training": {
                "learning_rate": 2e-3,
                "weight_decay": 0.01,
                "groups": {
                    "prompt_tuning": {"learning_rate": 3e-2},
                    "head": {"learning_rate": 1e-3},
                    "up": {"weight_decay": 0.5},
                },
            },
        }
    )
    with attach(tiny_model("bert"), recipe, seed=0) as hybrid:
        groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in hybrid.parameter_groups()}
        held = [id(p) for g in hybrid.parameter_groups() for p in g["params"]]
        assert groups == {
            "lora": (2e-3, 0.01),
            "up": (2e-3, 0.5),
            "prompt_tuning": (3e-2, 0.01),
            "head": (1e-3, 0.01),
        }
        assert sorted(held) == sorted(id(p) for p in hybrid.trainable_parameters())


def test_bf16_backbone_with_fp32_modules() -> None:
    model = tiny_model("bert").to(torch.bfloat16)
    with attach(model, hybrid_recipe(4), seed=0) as hybrid:
        randomise(hybrid.root)
        out = logits(model, tiny_inputs("bert"))
        assert out.dtype == torch.bfloat16
        out.float().pow(2).sum().backward()
        assert all(p.dtype == torch.float32 and p.grad is not None for p in hybrid.root.parameters())


def test_modules_start_in_the_mode_of_the_model() -> None:
    """A loaded model is in eval mode: dropout of a module must not act there."""
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    recipe = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"lora": {"dropout": 0.5}}]}]})
    with attach(model, recipe, seed=0) as hybrid:
        randomise(hybrid.root)
        assert torch.equal(logits(model, inputs), logits(model, inputs))
    with attach(model.train(), recipe, seed=0) as hybrid:
        assert hybrid.root.training


def test_a_device_that_fails_in_attach_leaves_the_flags_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    before = fingerprint(model)

    def fail(self: Any, *args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("autopeft.hybrid.modules.Root.to", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attach(model, hybrid_recipe(1), seed=0)
    assert changed(before, fingerprint(model)) == []


def test_a_base_model_with_a_hybrid_is_attached_already() -> None:
    model = tiny_model("bert")
    with (
        attach(model.base_model, hybrid_recipe(1), seed=0),
        pytest.raises(UsageError, match="attached already"),
    ):
        attach(model, hybrid_recipe(1), seed=0)


def test_calibration_is_wanted_once(tmp_path: Path) -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict({"name": "x", "model": [{"fish_mask": {"keep": 20, "samples": 1}}]})
    with attach(model, recipe, seed=0) as hybrid:
        assert hybrid.needs_prepare
        with pytest.raises(UsageError, match="not calibrated"):
            hybrid.callback().on_train_begin(None, None, None)
        rows = [{**tiny_inputs("bert", batch=1), "labels": torch.tensor([1])}]
        hybrid.prepare(rows, LogitsObjective(model))
        assert not hybrid.needs_prepare
        hybrid.save(tmp_path)
    with load(model, tmp_path) as hybrid:
        assert not hybrid.needs_prepare


@pytest.mark.parametrize("damage", ["beyond", "below", "twice", "turned"])
def test_a_damaged_mask_is_refused_and_the_model_keeps_its_head(damage: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict({"name": "x", "model": [{"fish_mask": {"keep": 20, "samples": 1}}]})
    with attach(model, recipe, seed=0) as hybrid:
        rows = [{**tiny_inputs("bert", batch=1), "labels": torch.tensor([1])}]
        hybrid.prepare(rows, LogitsObjective(model))
        hybrid.save(tmp_path)
    file = tmp_path / "weights.safetensors"
    held = {k: v.clone() for k, v in load_file(file).items()}
    index = held["model.fish_mask.entries.index"]
    if damage == "turned":
        index.copy_(index.flip(0).clone())
    else:
        index[{"beyond": -1, "below": 0, "twice": 1}[damage]] = {"beyond": 10**9, "below": -3}.get(
            damage, int(index[0])
        )
    held["head.classifier.weight"] += 1
    save_file(held, file)
    before = fingerprint(model)
    with pytest.raises(DataError, match="damaged"):
        load(model, tmp_path)
    assert changed(before, fingerprint(model)) == []


def test_a_hybrid_shows_itself_on_one_line() -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict({"name": "<b>x", "layers": [{"attach": [{"lora": {"rank": 2}}, "ia3"]}]})
    hybrid = attach(model, recipe, seed=0)
    counts, kind = hybrid.counts(), type(model).__name__
    size = f"{counts.deployed:,} deployed ("
    assert repr(hybrid).startswith(f"Hybrid('<b>x' attached to {kind}: lora + ia3, {size}")
    made = hybrid._repr_html_()
    assert "&lt;b&gt;x" in made
    assert "<b>x" not in made
    assert f">{counts.head:,}<" in made
    assert "<svg" in made
    hybrid.detach()
    assert f"detached from {kind}" in repr(hybrid)
    assert f"detached from {kind}" in hybrid._repr_html_()
