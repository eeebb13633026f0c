from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.callback import HybridCallback
from autopeft.method import Phase
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

LORA = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})


class _Spy(nn.Module):
    """Listens to all events, beside a hybrid's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []

    def before_step(self, step: int, total: int) -> None:
        self.log.append(("before", step, total))

    def after_backward(self, step: int, total: int) -> None:
        self.log.append(("backward", step, total))

    def after_step(self, step: int, total: int) -> None:
        self.log.append(("after", step, total))

    def finish(self) -> None:
        self.log.append("finish")


class _Penalty(_Spy):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def loss_terms(self, step: Any) -> Tensor:
        return self.weight.square().sum()


class _Carrier:
    """A hybrid's modules and one more."""

    needs_prepare = False
    recipe = Recipe(name="carried")

    def __init__(self, modules: dict[str, nn.Module], more: nn.Module) -> None:
        self.trained_modules = {**modules, "spy": more}


def rows(n: int) -> list[dict[str, Any]]:
    batch = encoded_task(train=n).train.collate(range(n))
    return [{name: batch[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(n)]


def trainer(
    tmp_path: Path, model: Any, callback: HybridCallback, *, batch: int = 8, **options: Any
) -> Trainer:
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        seed=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data: Any = rows(8)
    return Trainer(model=model, args=args, train_dataset=data, callbacks=[callback], **options)


def test_events_fire_in_order_inside_the_trainer(tmp_path: Path) -> None:
    bert = tiny_bert()
    with attach(bert, LORA, seed=0) as hybrid:
        spy = _Spy()
        before = hybrid.modules["lora"].state_dict()["at.encoder-0-q.B"].clone()
        trainer(tmp_path, bert, HybridCallback(_Carrier(hybrid.modules, spy))).train()
        assert not torch.equal(hybrid.modules["lora"].state_dict()["at.encoder-0-q.B"], before)
    once = [("before", 0, 2), ("backward", 0, 2), ("after", 0, 2)]
    assert spy.log == [*once, *[(name, 1, 2) for name, _, _ in once], "finish"]


def test_gradients_are_still_there_after_the_step(tmp_path: Path) -> None:
    bert = tiny_bert()
    seen: list[tuple[Tensor, Tensor]] = []
    with attach(bert, LORA, seed=0) as hybrid:
        weight: Any = hybrid.modules["lora"].get_parameter("at.encoder-0-q.B")

        class Watch(_Spy):
            def after_step(self, step: int, total: int) -> None:
                seen.append((weight.detach().clone(), weight.grad.clone()))

        trainer(tmp_path, bert, HybridCallback(_Carrier(hybrid.modules, Watch()))).train()
        assert torch.equal(seen[-1][0], weight)
    assert len(seen) == 2
    assert all(bool(value.any()) and bool(grad.any()) for value, grad in seen)


def test_loss_terms_need_the_callback_s_loss(tmp_path: Path) -> None:
    bert = tiny_bert()
    with attach(bert, LORA, seed=0) as hybrid:
        callback = HybridCallback(_Carrier(hybrid.modules, _Penalty(bert.classifier.weight)))
        with pytest.raises(UsageError, match=r"compute_loss_func=callback\.loss"):
            trainer(tmp_path, bert, callback).train()


def test_a_route_that_has_no_loss_trains_as_it_is_and_one_that_has_is_asked_for_it(tmp_path: Path) -> None:
    for options, refused in (({}, False), ({"top_k": 2, "balance": 0.1}, True)):
        bert = tiny_bert()
        item = {"route": {"children": ["lora"], "copies": 2, **options}}
        with attach(bert, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0) as hybrid:
            node: Any = hybrid.modules["route"]
            before = {k: v.clone() for k, v in node.state_dict().items()}
            training = trainer(tmp_path, bert, hybrid.callback())
            if refused:
                with pytest.raises(UsageError, match=r"compute_loss_func=callback\.loss"):
                    training.train()
            else:
                training.train()
                assert all(not torch.equal(v, before[k]) for k, v in node.state_dict().items())


@pytest.mark.parametrize("batch", [8, 2])
def test_gradients_are_those_of_loss_and_terms_also_when_they_accumulate(tmp_path: Path, batch: int) -> None:
    """Eight rows in all, so that the first step's gradient does not depend on the Trainer's order."""
    bert = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weight = bert.classifier.weight
    together = encoded_task(train=8).train.collate(range(8))
    loss = F.cross_entropy(bert(together["input_ids"], together["attention_mask"]).logits, together["labels"])
    (expected,) = torch.autograd.grad(loss + weight.square().sum(), weight)
    grads: list[Tensor] = []

    class Watch(_Penalty):
        def after_backward(self, step: int, total: int) -> None:
            assert self.weight.grad is not None
            grads.append(self.weight.grad.clone())

    with attach(bert, LORA, seed=0) as hybrid:
        callback = HybridCallback(_Carrier(hybrid.modules, Watch(weight)))
        run = trainer(tmp_path, bert, callback, batch=batch, compute_loss_func=callback.loss)
        run.args.max_grad_norm = 0.0
        run.train()
    assert len(grads) == 2
    assert torch.allclose(grads[0], expected, atol=1e-6)


def test_loss_of_real_labels_is_the_squared_error() -> None:
    callback = HybridCallback(_Carrier({}, nn.Identity()))
    loss = callback.loss({"logits": torch.tensor([[1.0], [4.0]])}, torch.tensor([3.0, 3.0]))
    assert float(loss) == pytest.approx(2.5)
    with pytest.raises(UsageError, match="one label per row"):
        callback.loss({"logits": torch.zeros(2, 3, 4)}, torch.zeros(2, 3))


def test_the_loss_of_a_kind_of_task_is_taken_where_it_is_given() -> None:
    callback = HybridCallback(
        _Carrier({}, nn.Identity()), lambda logits, batch: logits.sum() - batch["labels"].sum()
    )
    loss = callback.loss({"logits": torch.ones(2, 3, 4)}, torch.ones(2, 3), num_items_in_batch=6)
    assert float(loss) == pytest.approx((24 - 6) / 6)


class _Phased(nn.Module):
    def __init__(self, *phases: Phase) -> None:
        super().__init__()
        self.phases = lambda: list(phases)


def _nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize(
    "phases",
    [
        [],
        [Phase("one", 0.5), Phase("two", 0.5)],
        [Phase("one", run=_nothing)],
        [Phase("one", begin=_nothing)],
        [Phase("one", held_out=0.5)],
        [Phase("one", held_out=0.5, outer=_nothing)],
        [Phase("one", split="select")],
        [Phase("one", trains=frozenset(("own", "head")))],
        [Phase("one", output=_nothing)],
    ],
)
def test_phases_are_refused_at_once(phases: list[Phase]) -> None:
    names = ", ".join(p.name for p in phases)
    says = rf"spy trains in phases \(spy: {names}\).*cannot run; use `autopeft\.training\.train`"
    with pytest.raises(UsageError, match=says):
        HybridCallback(_Carrier({}, _Phased(*phases)))


def test_one_plain_phase_is_the_trainer_s_own_and_those_of_two_follow_each_other() -> None:
    HybridCallback(_Carrier({}, _Phased(Phase("one"))))
    with pytest.raises(UsageError, match=r"other, spy trains in phases \(other: one; spy: one\)"):
        HybridCallback(_Carrier({"other": _Phased(Phase("one"))}, _Phased(Phase("one"))))


def _spot() -> tuple[Hybrid, Any]:
    hybrid = attach(tiny_bert(), _prompt({"spot": {"length": 4, "task_share": 0.5}}), seed=0)
    return hybrid, hybrid.modules["spot"]


def _pruned() -> tuple[Hybrid, Any]:
    hybrid = attach(tiny_bert(), _prompt({"xprompt": {"length": 4, "pieces": 4, "init": "uniform"}}), seed=0)
    module: Any = hybrid.modules["xprompt"]
    module.token_index, module._left = torch.tensor([1, 3]), torch.tensor([4, 6, 13])
    module.deploy()
    return hybrid, module


def _found() -> tuple[Hybrid, Any]:
    item = {"selective_prompt": {"length": 2, "bottleneck": 4, "dropout": 0.0, "keep": 1}}
    hybrid = attach(tiny_bert(), _prompt(item), seed=0)
    module: Any = hybrid.modules["selective_prompt"]
    module.finish()
    hybrid.refresh()
    return hybrid, module


def _prompt(item: Any) -> Recipe:
    training = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0.0, "max_grad_norm": 1.0}
    return Recipe.from_dict({"name": "p", "model": [item], "training": training})


@pytest.mark.parametrize("made", [_spot, _pruned, _found])
def test_one_plain_phase_trains_in_the_trainer_as_in_our_loop(tmp_path: Path, made: Any) -> None:
    left = []
    for ours in (True, False):
        hybrid, module = made()
        for part in hybrid.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        if ours:
            plan = TrainingPlan(steps=4, batch_size=8, device="cpu", shortcuts=False)
            train(hybrid, encoded_task(train=8), plan, calibrate=False)
        else:
            args = TrainingArguments(
                output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, use_cpu=True,
                report_to=[], save_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            data: Any = rows(8)
            Trainer(hybrid.model, args, train_dataset=data, **hybrid.for_trainer()).train()
        assert any(not torch.equal(p, before[name]) for name, p in module.named_parameters())
        left.append(module.state_dict())
    assert left[0].keys() == left[1].keys()
    for name, value in left[0].items():
        torch.testing.assert_close(left[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_groups_of_a_module_reach_the_trainer_or_it_says_so(tmp_path: Path) -> None:
    model = tiny_bert()
    with attach(model, Recipe.from_dict({"layers": [{"attach": ["sora"]}]}), seed=0) as hybrid:
        callback = hybrid.callback()
        with pytest.warns(UserWarning, match="parameter groups of its own"):
            trainer(tmp_path, model, callback, compute_loss_func=callback.loss).train()


def test_rates_of_the_recipe_reach_the_trainer_or_it_says_so() -> None:
    model = tiny_bert()
    recipe = Recipe.from_dict(
        {
            "name": "x",
            "layers": [{"attach": ["lora"]}],
            "training": {
                "groups": {"lora": {"learning_rate": 0.02}},
                "policies": [{"lora_plus": {"ratio": 4}}],
            },
        }
    )
    hybrid = attach(model, recipe, seed=0)
    rates = {g["name"]: g["lr"] for g in hybrid.optimizer().param_groups}
    assert rates == {"lora": 0.02, "lora.up": 0.08, "head": 1e-3}
    callback = hybrid.callback()
    state, control = TrainerState(), TrainerControl()
    with pytest.warns(UserWarning, match="hybrid.for_trainer"):
        callback.on_train_begin(
            None, state, control, optimizer=torch.optim.AdamW(hybrid.trainable_parameters())
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.on_train_begin(None, state, control, optimizer=hybrid.optimizer())


@pytest.mark.parametrize(
    ("method", "training", "decay", "warns"),
    [
        ("lora", {"optimizer": {"name": "sgd"}}, 0.0, True),
        ("lora", {"optimizer": {"epsilon": 1e-6}}, 0.0, True),
        ("ia3", {}, 0.1, True),  # the Trainer's own decay would pull the factors to zero
        ("ia3", {}, 0.0, False),
        ("lora", {}, 0.1, False),
    ],
)
def test_the_trainer_is_told_of_an_optimizer_and_of_decay_of_its_own(
    method: str, training: dict[str, Any], decay: float, warns: bool
) -> None:
    recipe = Recipe.from_dict({"name": "x", "layers": [{"attach": [method]}], "training": training})
    hybrid = attach(tiny_bert(), recipe, seed=0)
    args: Any = SimpleNamespace(weight_decay=decay)
    theirs = torch.optim.AdamW(hybrid.trainable_parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hybrid.callback().on_train_begin(args, TrainerState(), TrainerControl(), optimizer=theirs)
    assert any("hybrid.for_trainer" in str(w.message) for w in caught) == warns


def default_trainer(folder: Path, model: Any, *, rate: float | None = None, **options: Any) -> Trainer:
    chosen = {} if rate is None else {"learning_rate": rate}
    args = TrainingArguments(
        str(folder), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **chosen
    )
    data: Any = rows(8)
    return Trainer(model, args, train_dataset=data, **options)


@pytest.mark.parametrize(
    ("given", "warns"), [("callback", True), ("rate", False), ("for_trainer", False), ("own", False)]
)
def test_the_trainer_s_default_rate_is_warned_of(tmp_path: Path, given: str, warns: bool) -> None:
    model = tiny_bert()
    hybrid = attach(model, LORA, seed=0)
    options: dict[str, Any] = {"callbacks": [hybrid.callback()]}
    if given == "for_trainer":
        options = hybrid.for_trainer()
    elif given == "own":
        options["optimizers"] = (torch.optim.AdamW(hybrid.trainable_parameters(), lr=2e-3), None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        default_trainer(tmp_path, model, rate=3e-3 if given == "rate" else None, **options).train()
    said = [str(w.message) for w in caught if "for_trainer" in str(w.message)]
    assert len(said) == int(warns)
    if warns:
        assert "5e-05" in said[0]
        assert "0.001" in said[0]


def test_a_second_training_has_the_schedule_from_its_beginning(tmp_path: Path) -> None:
    model = tiny_bert()
    hybrid = attach(model, LORA, seed=0)
    options = hybrid.for_trainer()
    assert set(options) == {"callbacks", "optimizers"}
    run = default_trainer(tmp_path, model, **options)
    run.train()
    moved = {k: v.clone() for k, v in hybrid.root.state_dict().items()}
    assert run.lr_scheduler is not None
    assert run.lr_scheduler.get_last_lr() == [0.0, 0.0]
    run.train()
    after = hybrid.root.state_dict()
    assert not any(torch.equal(after[k], moved[k]) for k in moved)


def test_what_adds_to_the_loss_reaches_the_trainer_by_itself(tmp_path: Path) -> None:
    model = tiny_bert()
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": ["adalora"]}]}), seed=0)
    default_trainer(tmp_path, model, **hybrid.for_trainer()).train()
    other = attach(tiny_bert(), LORA, seed=0)

    def total(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return F.cross_entropy(logits, batch["labels"])

    assert other.for_trainer(total)["compute_loss_func"](([torch.zeros(2, 2)]), torch.zeros(2).long()) > 0


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"max_grad_norm": 0.3}, r"norm 0\.3 and the Trainer to 1; pass max_grad_norm=0\.3"),
        ({"optimizer": {"clip": "group"}}, "clips gradients of groups by themselves"),
        ({}, None),
    ],
)
def test_other_clipping_than_the_recipe_s_is_said(
    tmp_path: Path, training: dict[str, Any], says: str | None
) -> None:
    model = tiny_bert()
    recipe = Recipe.from_dict({"layers": [{"attach": ["lora"]}], "training": training})
    run = default_trainer(tmp_path, model, **attach(model, recipe, seed=0).for_trainer())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    said = [str(w.message) for w in caught if "clips" in str(w.message)]
    assert len(said) == int(says is not None)
    assert says is None or re.search(says, said[0])


def test_a_group_that_is_clipped_by_itself_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.nn import ScaledPairs

    def groups(self: Any) -> list[dict[str, Any]]:
        own = {"schedule": "constant", "warmup": 0.0, "clip": "group"}
        return [{"params": list(self.parameters()), **own}]

    monkeypatch.setattr(ScaledPairs, "parameter_groups", groups, raising=False)
    model = tiny_bert()
    given = attach(model, LORA, seed=0).for_trainer()
    with pytest.warns(UserWarning, match="clips gradients of groups by themselves"):
        default_trainer(tmp_path, model, **given).train()
    rates = {group["name"]: group["lr"] for group in given["optimizers"][0].param_groups}
    assert rates["lora"] == pytest.approx(1e-3)
    assert rates["head"] < 0.6e-3


def test_copies_on_several_gpus_are_refused_before_the_first_step() -> None:
    callback = attach(tiny_bert(), LORA).callback()
    several = SimpleNamespace(n_gpu=2, max_grad_norm=1.0)
    with pytest.raises(UsageError, match=r"With 2 GPUs .*torchrun --nproc-per-node 2"):
        callback.on_train_begin(several, TrainerState(), TrainerControl())
    callback.on_train_begin(SimpleNamespace(n_gpu=1, max_grad_norm=1.0), TrainerState(), TrainerControl())
