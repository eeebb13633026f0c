"""FISH-DIP: masks of the hardest rows' Fisher information, one after another; the union of them is stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from autopeft.methods.selective.unstructured.fish_dip import FishDipModule
from pydantic import ValidationError
from safetensors.torch import load_file
from support.tiny import tiny_model
from support.toy import configured, toy_spec
from support.training import encoded_task, snapshot, tiny_bert
from support.two_layers import NetObjective, calibrate, net_of_seed, net_rows, singles
from torch import Tensor, nn

from autopeft.counting import count
from autopeft.errors import MethodError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.method import Session
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedTask
from autopeft.training.calibration import prepare
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult

PLAN = TrainingPlan(steps=10, batch_size=16, seed=5, device="cpu", shortcuts=False)
KEEP = 40


def recipe(optimizer: dict[str, Any] | None = None, **config: Any) -> Recipe:
    options = {"keep": KEEP, "every": 3, "least": 4, **config}
    training: dict[str, Any] = {"learning_rate": 0.02, "weight_decay": 0.1}
    if optimizer is not None:
        training["optimizer"] = optimizer
    return Recipe.from_dict({"name": "d", "model": [{"fish_dip": options}], "training": training})


def module_of(hybrid: Hybrid) -> FishDipModule:
    found = hybrid.modules["fish_dip"]
    assert isinstance(found, FishDipModule)
    return found


def mask_of(module: FishDipModule) -> list[int]:
    assert module.active is not None
    found: list[int] = module.entries.index[module.active].tolist()
    return found


def best(scores: Tensor, k: int) -> list[int]:
    return sorted(scores.argsort(descending=True, stable=True)[:k].tolist())


# The first mask
# ----------------------------------------------------------------------------------------------------


def test_of_the_same_rows_it_is_a_fish_mask() -> None:
    """With no further mask and as many rows as FISH has."""
    net, batches = net_of_seed(), net_rows(12, 4)
    one = calibrate("fish_dip", net, batches, keep=20, every=None, least=5, most=5)
    losses = torch.cat([NetObjective(net).losses(batch) for batch in batches])
    rows = list(singles(batches))
    hard = [rows[i] for i in losses.argsort(descending=True)[:5].tolist()]
    fish = calibrate("fish_mask", net, hard, keep=20, samples=5)
    assert mask_of(one) == fish.entries.index.tolist()
    assert calibrate("fish_mask", net, batches, keep=20).entries.index.tolist() != mask_of(one)
    assert len(one.entries.held) == 20


def test_absolute_sums_absolute_values() -> None:
    net, batches = net_of_seed(), net_rows(12, 4)
    masks = [
        mask_of(calibrate("fish_dip", net, batches, keep=20, least=6, grad_type=g))
        for g in ("square", "absolute")
    ]
    assert masks[0] != masks[1]


def test_it_is_measured_in_eval_mode_on_the_bare_backbone() -> None:
    data, bert = encoded_task(), tiny_bert(hidden_dropout_prob=0.5)
    with attach(bert, recipe(), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        found = mask_of(module_of(hybrid))
        scores = brute_force(hybrid, data, 4)
    assert found == best(scores, KEEP)


def brute_force(hybrid: Hybrid, data: Any, n: int) -> Tensor:
    """Σ of squared gradients of the n rows of *train* with the largest losses, at what acts now, without
    draws."""
    model, module = hybrid.model, module_of(hybrid)
    model.eval()
    rows = [data.train.collate([i]) for i in range(len(data.train))]
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(row["input_ids"], row["attention_mask"]).logits
            losses.append(float(nn.functional.cross_entropy(logits, row["labels"])))
    hard = torch.tensor(losses).argsort(descending=True)[:n].tolist()
    backbone = hybrid.backbone_parameters()
    wanted = [backbone[t.name] for t in module.entries.tensors]
    flags = [p.requires_grad for p in wanted]
    scores = torch.zeros(module.entries.total)
    for i in hard:
        for p in wanted:
            p.requires_grad_(True)
        logits = model(rows[i]["input_ids"], rows[i]["attention_mask"]).logits
        grads = torch.autograd.grad(nn.functional.cross_entropy(logits, rows[i]["labels"]), wanted)
        scores += torch.cat([g.flatten() for g in grads]).square()
    for p, flag in zip(wanted, flags, strict=True):
        p.requires_grad_(flag)
    return scores


# The masks that follow
# ----------------------------------------------------------------------------------------------------


class Watched:
    """What a training did: its masks, which step came after each, and what moved in each step."""

    def __init__(self) -> None:
        self.masks: list[tuple[int, list[int]]] = []
        self.expected: list[list[int]] = []
        self.moved: list[set[int]] = []
        self.result: TrainResult


@contextmanager
def watched(
    monkeypatch: pytest.MonkeyPatch, made: Recipe, plan: TrainingPlan = PLAN
) -> Iterator[tuple[Hybrid, Watched]]:
    data, seen = encoded_task(), Watched()
    hybrid = attach(tiny_bert(), made, seed=0)
    module = module_of(hybrid)
    look, after = FishDipModule.look, FishDipModule.after_step

    def looking(module: FishDipModule, session: Session) -> None:
        hybrid.refresh()
        with torch.enable_grad():
            scores = brute_force(hybrid, data, 4)
        held = set(module.entries.held.tolist())
        look(module, session)
        seen.masks.append((session.taken, mask_of(module)))
        new = [i for i in scores.argsort(descending=True, stable=True)[:KEEP].tolist() if i not in held]
        allowed = held | set(new[: module.bound - len(held)])
        order = [i for i in scores.argsort(descending=True, stable=True).tolist() if i in allowed]
        seen.expected.append(sorted(order[:KEEP]))

    def stepped(module: FishDipModule, step: int, total: int) -> None:
        after(module, step, total)
        values = dict(zip(module.entries.index.tolist(), module.entries.values.tolist(), strict=True))
        moved = {i for i, v in values.items() if v != stored.get(i, 0.0)}
        seen.moved.append(moved)
        stored.clear()
        stored.update(values)

    stored: dict[int, float] = {}
    monkeypatch.setattr(FishDipModule, "look", looking)
    monkeypatch.setattr(FishDipModule, "after_step", stepped)
    prepare(hybrid, data, plan)
    seen.masks.append((0, mask_of(module)))
    seen.expected.append(mask_of(module))
    seen.result = train(hybrid, data, plan)
    yield hybrid, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [{}, {"name": "sgd", "momentum": 0.9}, {"name": "adafactor"}, {"name": "adam"}],
    ids=["adamw", "momentum", "adafactor", "adam"],
)
@pytest.mark.parametrize("stored", ["5%", 45])
def test_every_step_moves_entries_of_its_mask_alone(
    optimizer: dict[str, Any], stored: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch, recipe(optimizer, stored=stored)) as (hybrid, seen):
        module = module_of(hybrid)
        assert [taken for taken, _ in seen.masks] == [0, 2, 5, 8], "before steps 1, 3, 6 and 9"
        assert all(len(set(mask)) == KEEP for _, mask in seen.masks)
        assert [mask for _, mask in seen.masks] == seen.expected
        assert len({tuple(mask) for _, mask in seen.masks}) > 1
        for step, moved in enumerate(seen.moved):
            present = [mask for taken, mask in seen.masks if taken <= step][-1]
            assert moved <= set(present), step
            assert len(moved) > 0.8 * KEEP
        union = sorted({i for _, mask in seen.masks for i in mask})
        assert module.entries.held.tolist() == union
        assert len(union) <= module.bound
        assert seen.result.outputs == {"train": {"stored": len(union), "bounded": stored == 45}}


def test_what_does_not_fit_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "autopeft"),
        watched(monkeypatch, recipe(stored=KEEP)) as (hybrid, seen),
    ):
        module = module_of(hybrid)
        assert {tuple(mask) for _, mask in seen.masks} == {tuple(module.entries.index.tolist())}
    said = [r.getMessage() for r in caplog.records if "fish_dip" in r.getMessage()]
    assert len(said) == 1
    assert f"stores {KEEP} entries at most" in said[0]


def test_all_that_no_mask_had_is_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(tiny_bert().bert)
    with watched(monkeypatch, recipe()) as (hybrid, seen):
        entries = module_of(hybrid).entries
        hybrid.merge()
        after = snapshot(hybrid.model.bert)
    moved = torch.cat([(after[t.name] != before[t.name]).flatten() for t in entries.tensors])
    ever = {i for moved_then in seen.moved for i in moved_then}
    assert set(moved.nonzero()[:, 0].tolist()) <= ever <= set(entries.held.tolist())
    assert int(moved.sum()) > KEEP


def test_the_optimizer_begins_anew_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Adam step that is its parameter's first is the rate times the gradient's sign."""
    made = recipe({"name": "adam"}, every=3)
    data = made.to_dict() | {
        "training": {
            "learning_rate": 0.02,
            "schedule": "constant",
            "warmup": 0.0,
            "optimizer": {"name": "adam"},
        }
    }
    before: list[Tensor] = []
    steps: list[float] = []
    hybrid = attach(tiny_bert(), Recipe.from_dict(data), seed=0)
    entries = module_of(hybrid).entries
    update, after = FishDipModule.before_update, FishDipModule.after_step

    def saw(module: FishDipModule, step: int, total: int) -> None:
        update(module, step, total)
        before.append(module.entries.values.detach().clone())

    def stepped(module: FishDipModule, step: int, total: int) -> None:
        after(module, step, total)
        change = (module.entries.values.detach() - before[-1]).abs()
        steps.append(float(change[change > 0].median()))

    monkeypatch.setattr(FishDipModule, "before_update", saw)
    monkeypatch.setattr(FishDipModule, "after_step", stepped)
    train(hybrid, encoded_task(), PLAN)
    assert len(entries.held) > KEEP
    assert all(steps[i] == pytest.approx(0.02, rel=1e-3) for i in (0, 2, 5, 8))
    assert any(abs(steps[i] - 0.02) > 1e-3 for i in (1, 3, 4))


def test_later_masks_are_measured_with_the_draws_of_training() -> None:
    """Where the recipe has the backbone's dropout, losses and gradients of a later mask draw."""
    drawn: list[bool] = []
    made = recipe().to_dict()
    for dropout in (False, True):
        modes: list[bool] = []
        data = made | {"training": {"learning_rate": 0.02, "dropout": dropout}}
        bert = tiny_bert()
        with attach(bert, Recipe.from_dict(data), seed=0) as hybrid:
            module = module_of(hybrid)
            look = module.look

            def looking(
                session: Session, look: Any = look, modes: list[bool] = modes, bert: Any = bert
            ) -> None:
                handle = bert.register_forward_pre_hook(lambda m, args: modes.append(m.training))
                look(session)
                handle.remove()

            module.look = looking  # type: ignore[method-assign]
            train(hybrid, encoded_task(), PLAN)
        assert len(set(modes)) == 1
        drawn.append(modes[0])
    assert drawn == [False, True]


# Keeping
# ----------------------------------------------------------------------------------------------------


def test_the_union_alone_is_saved_and_loaded(tmp_path: Any) -> None:
    data = encoded_task()
    batch = data.train.collate([0, 1])
    with attach(tiny_bert(), recipe(), seed=0) as hybrid:
        bound = count(hybrid.graph, hybrid.spec)
        assert (bound.deployed, bound.trained) == (4 * KEEP, 4 * KEEP)
        train(hybrid, data, PLAN)
        module = module_of(hybrid)
        union = len(module.entries.held)
        assert KEEP < union < 4 * KEEP
        assert hybrid.counts().deployed == union
        hybrid.save(tmp_path)
        hybrid.model.eval()
        wanted = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits
        assert module.active is not None, "the module itself goes on"
    saved = {k: v for k, v in load_file(tmp_path / "weights.safetensors").items() if "head." not in k}
    assert {k: tuple(v.shape) for k, v in saved.items()} == {
        "model.fish_dip.entries.index": (union,),
        "model.fish_dip.entries.values": (union,),
    }
    again = load(tiny_bert(), tmp_path)
    assert again.counts().deployed == union
    assert torch.equal(again.model(batch["input_ids"], batch["attention_mask"]).logits, wanted)
    # It trains on, from what it stores as the present mask.
    index = module_of(again).entries.index.tolist()
    train(again, data, TrainingPlan(steps=2, batch_size=16, seed=5, device="cpu"))
    assert mask_of(module_of(again)) == index
    train(again, data, TrainingPlan(steps=4, batch_size=16, seed=5, device="cpu"))
    assert len(mask_of(module_of(again))) == KEEP
    assert set(index) <= set(module_of(again).entries.held.tolist())
    assert_it_pauses(tmp_path, data)


def assert_it_pauses(folder: Any, data: EncodedTask) -> None:
    """A training that goes on from a saved hybrid can pause, and end as if it had not."""
    again = load(tiny_bert(), folder)
    whole = train(again, data, PLAN, calibrate=False)
    paused = train(load(tiny_bert(), folder), data, PLAN, until=5, calibrate=False)
    last = load(tiny_bert(), folder)
    assert train(last, data, PLAN, resume=paused.checkpoint).losses == whole.losses
    wanted = snapshot(again.root)
    assert all(torch.equal(v, wanted[k]) for k, v in snapshot(last.root).items())


@pytest.mark.parametrize("until", [2, 3, 5])
def test_a_pause_before_or_behind_a_mask_changes_nothing(until: int) -> None:
    data, made = encoded_task(), recipe()
    with attach(tiny_bert(), made, seed=0) as hybrid:
        whole = train(hybrid, data, PLAN)
        wanted = snapshot(hybrid.root)
    with attach(tiny_bert(), made, seed=0) as hybrid:
        paused = train(hybrid, data, PLAN, until=until)
    with attach(tiny_bert(), made, seed=0) as hybrid:
        last = train(hybrid, data, PLAN, resume=paused.checkpoint)
        assert last.losses == whole.losses
        assert all(torch.equal(v, wanted[k]) for k, v in snapshot(hybrid.root).items())


def test_an_early_best_state_has_its_own_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What training leaves acts as what is saved of it, also where masks came after the best score."""
    data, plan = (
        encoded_task(),
        TrainingPlan(
            steps=10, batch_size=16, seed=5, device="cpu", shortcuts=False, eval_every=2, patience=2
        ),
    )
    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr("autopeft.training.loop.evaluate", lambda *_, **__: next(scores))
    batch = data.train.collate([0, 1, 2])
    with attach(tiny_bert(), recipe(), seed=0) as hybrid:
        found = train(hybrid, data, plan)
        assert (found.stopped, found.steps) == ("patience", 6)
        module = module_of(hybrid)
        assert len(module.entries.held) == KEEP, "the first mask, though two others came"
        assert mask_of(module) == module.entries.held.tolist()
        hybrid.model.eval()
        wanted = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits
        hybrid.save(tmp_path)
    again = load(tiny_bert(), tmp_path)
    assert torch.equal(again.model(batch["input_ids"], batch["attention_mask"]).logits, wanted)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_it_counts_on_every_backbone(name: str) -> None:
    with attach(tiny_model(name), recipe(keep="1%"), seed=0) as hybrid:
        spec = hybrid.spec
        assert count(hybrid.recipe, spec).deployed == 4 * int(0.01 * spec.parameters)
        assert hybrid.counts().deployed == 0, "before anything is chosen"


def test_refusals() -> None:
    net = net_of_seed()
    with pytest.raises(UsageError, match="fish_dip needs at least one"):
        calibrate("fish_dip", net, [], keep=3)
    with pytest.raises(MethodError, match="fish_dip with keep=1000000 selects"):
        configured("fish_dip", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="stores 5 entries of 'toy'; choose from the 6 of a mask"):
        configured("fish_dip", keep=6, stored=5).parameter_count((), toy_spec())
    with pytest.raises(ValidationError, match="not a quantity"):
        configured("fish_dip", stored="much")
    with pytest.raises(ValidationError, match="least=9 is above most=8"):
        configured("fish_dip", least=9, most=8)
