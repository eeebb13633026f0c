"""`mole` against arithmetic by hand, and on tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.backbones import spec_of_model
from autopeft.composition import ChildSpec, MoLE, default_options
from autopeft.errors import CompositionError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load
from autopeft.method import Call, Context
from autopeft.recipe import Recipe
from autopeft.spec import Site

LORA = {"lora": {"rank": 2}}
NAMES = ("a", "b", "c")


def made(layers: int = 1, width: int = 384, experts: int = 3) -> MoLE:
    sites = tuple(
        Site("encoder", i, name, "linear", width, width) for i in range(layers) for name in ("q", "v")
    )
    specs = [ChildSpec(f"c{i}", f"c{i}", frozenset({"hook"}), sites) for i in range(experts)]
    return MoLE.build(specs, default_options("mole"))


def balance_of(*gates: list[float]) -> float:
    mole = made(len(gates))
    mole._weights = {f"encoder-{i}": torch.tensor([[g]]) for i, g in enumerate(gates)}
    term = mole.loss_terms(NO_STEP)
    assert term is not None
    return term.item() / 0.5


def test_the_balance_loss_by_hand() -> None:
    assert balance_of([1 / 3] * 3) == pytest.approx(3 * math.log(3), abs=1e-4)
    assert balance_of([0.68, 0.16, 0.16]) == pytest.approx(4.0508, abs=1e-4)
    # of the mean over layers, and no sum of each layer's
    assert balance_of([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]) == pytest.approx(3.3480, abs=1e-4)


def test_the_balance_loss_has_a_gradient() -> None:
    own = torch.tensor([0.5, 0.25, 0.25]).log().requires_grad_()
    mole = made(2)
    mole.balance = 1.0
    mole._weights = {
        "encoder-0": own.softmax(-1)[None, None],
        "encoder-1": torch.tensor([[[0.25, 0.5, 0.25]]]),
    }
    term = mole.loss_terms(NO_STEP)
    assert term is not None
    (found,) = torch.autograd.grad(term, own)
    torch.testing.assert_close(found, torch.tensor([0.0833, 0.0417, -0.1250]), atol=1e-4, rtol=0)


def test_a_further_forward_has_no_balance_of_its_own() -> None:
    mole = made().train()
    site, x = mole.first["encoder-0"], torch.randn(2, 5, 384)
    mole.weights(site, x, Call(Context()))
    mole.weights(site, -x, Call(Context(further=True)))
    found = mole.loss_terms(NO_STEP)
    mole.weights(site, x, Call(Context()))
    assert found is not None
    assert torch.equal(found, cast(Tensor, mole.loss_terms(NO_STEP)))


def test_a_balance_without_a_gradient_is_refused() -> None:
    mole = made().train()
    with torch.no_grad(), pytest.raises(CompositionError, match="gets no gradient here"):
        mole.weights(mole.first["encoder-0"], torch.randn(2, 5, 384), Call(Context()))


def test_gates_start_nearly_uniform() -> None:
    mole = made(6)
    assert sum(p.numel() for p in mole.parameters()) == 6_912
    for rows in mole.gates.values():
        torch.testing.assert_close(rows.norm(dim=1), torch.full((3,), 0.01))
        unit = rows / rows.norm(dim=1, keepdim=True)  # the inputs that part them most
        weights = torch.softmax(unit @ rows.T, -1)
        assert (weights - 1 / 3).abs().max() < 0.0045


# On a model
# ------------------------------------------------------------------------------------------------------------


def recipe_of(*items: Any, inputs: Any = None) -> Recipe:
    tree: dict[str, Any] = {"layers": [{"attach": [{"mole": list(items)}]}]}
    return Recipe.from_dict(tree | ({"inputs": inputs} if inputs else {}))


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hybrid:
    """Three LoRAs that were trained before, and the gates that mix them."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        recipe = Recipe.from_dict({"name": name, "layers": [{"attach": [LORA]}]})
        with attach(tiny_model("bert"), recipe, seed=seed) as hybrid:
            randomise(hybrid.root, seed=seed)
            hybrid.save(name)
    items = [{**LORA, "as": f"on_{name}", "from": name, "frozen": True} for name in NAMES]
    hybrid = attach(tiny_model("bert"), recipe_of(*items, inputs={n: n for n in NAMES}), seed=0)
    # Gates that depend on the input.
    with torch.no_grad():
        for rows in hybrid.modules["mole"].gates.values():  # type: ignore[operator, union-attr]
            rows.mul_(300)
    return hybrid


def test_a_gate_of_one_child_is_that_child(mixed: Hybrid) -> None:
    model: Any = tiny_model("bert")
    batch = tiny_inputs("bert")
    alone = load(model, "b")
    wanted = logits(alone.model, batch)
    mole: Any = mixed.modules["mole"]
    for rows in mole.gates.values():
        torch.nn.init.zeros_(rows)
    # No bias can force a gate: all inputs of a tiny model are made to point one way.
    mole.weights = lambda site, x, call: torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 1, 3)
    torch.testing.assert_close(logits(mixed.model, batch), wanted, atol=1e-6, rtol=1e-5)


def test_sites_of_a_layer_share_the_gate_of_its_first(mixed: Hybrid) -> None:
    mole: Any = mixed.modules["mole"]
    seen: dict[str, list[torch.Tensor]] = {}
    plain = mole.weights

    def noted(site: Site, x: torch.Tensor, call: Any) -> torch.Tensor:
        seen.setdefault(str(site.layer), []).append(plain(site, x, call))
        return seen[str(site.layer)][-1]

    mole.weights = noted
    logits(mixed.model, tiny_inputs("bert", batch=4))
    assert sorted(seen) == ["0", "1", "2"]
    for found in seen.values():
        assert len(found) == 2
        assert found[0] is found[1]
        assert found[0].shape == (4, 1, 3)
    assert not torch.allclose(seen["0"][0], seen["1"][0], atol=1e-3)
    assert (seen["0"][0][0] - seen["0"][0][1]).abs().max() > 1e-3  # rows have weights of their own


def test_padding_and_the_scale_of_the_input_change_nothing(mixed: Hybrid) -> None:
    batch = tiny_inputs("bert", pad=0)
    padded = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in batch.items()}
    torch.testing.assert_close(logits(mixed.model, padded), logits(mixed.model, batch), atol=1e-6, rtol=1e-5)
    mole: Any = mixed.modules["mole"]
    site, x = mole.first["encoder-0"], torch.randn(2, 5, 32)
    one, other = (mole.weights(site, scale * x, Call(Context())) for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)


def test_gates_alone_train_and_experts_stay(mixed: Hybrid) -> None:
    model: Any = mixed.model
    before = {k: v.clone() for k, v in mixed.root.state_dict().items()}
    optimizer = torch.optim.AdamW(mixed.parameter_groups(), lr=1e-2)
    model.train()
    mole: Any = mixed.modules["mole"]
    for seed in range(3):
        loss = model(**tiny_inputs("bert", seed=seed)).logits.square().sum() + mole.loss_terms(NO_STEP)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt = {k for k, v in mixed.root.state_dict().items() if not torch.equal(v, before[k])}
    assert learnt == {f"mole.gates.encoder-{i}" for i in range(3)}
    assert mixed.counts().trained == 3 * 3 * 32
    assert mole.loss_terms(NO_STEP) is None  # what a forward has left counts once


def test_recomputed_layers_find_the_same_gate(mixed: Hybrid) -> None:
    model: Any = mixed.model
    mole: Any = mixed.modules["mole"]
    batch = tiny_inputs("bert")

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        (model(**batch).logits.square().sum() + mole.loss_terms(NO_STEP)).backward()
        return [p.grad.clone() for p in mole.parameters()]

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_it_is_saved_and_loaded_without_its_inputs(mixed: Hybrid, tmp_path: Path) -> None:
    mixed.save("mixed")
    for name in NAMES:
        (tmp_path / name / "weights.safetensors").unlink()
    again = load(tiny_model("bert"), "mixed")
    batch = tiny_inputs("bert")
    assert torch.equal(logits(again.model, batch), logits(mixed.model, batch))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([LORA, {"dora": {}}], "dora alters weights"),
        ([LORA, {"prefix_tuning": {}}], "adds rows"),
    ],
)
def test_what_cannot_be_mixed_is_refused(items: Any, words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        build_graph(recipe_of(*items), spec_of_model(tiny_model("bert"))[0])


def test_the_first_site_is_the_first_of_the_forward_pass() -> None:
    items = [{"parallel_adapter": {}}, {"lora": {"sites": ["v", "down"]}}]
    graph = build_graph(recipe_of(*items), spec_of_model(tiny_model("bert"))[0])
    (node,) = graph.nodes()
    mole = MoLE.build([graph.child_spec(child) for child in node.children], dict(node.options))
    assert {site.name for site in mole.first.values()} == {"v"}
    batch = tiny_inputs("bert")
    hybrid = attach(tiny_model("bert"), recipe_of(*items))
    randomise(hybrid.root)
    assert logits(hybrid.model, batch).isfinite().all()
