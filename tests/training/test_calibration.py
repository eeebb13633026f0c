from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise
from support.training import Bag, FakeHybrid, assert_same_state, encoded_task, snapshot, tiny_bert
from torch import nn
from torch.nn import functional as F

from autopeft.hybrid import attach
from autopeft.method import Calibration
from autopeft.recipe import Recipe
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training.calibration import TaskObjective, conclude, prepare, single_examples
from autopeft.training.errors import OutOfMemory
from autopeft.training.forward import Forward
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

CPU = torch.device("cpu")
PLAN = TrainingPlan(steps=2, seed=5, device="cpu")


def test_every_row_comes_once_and_alone_in_an_order_of_the_seed() -> None:
    split = encoded_task(train=30).train
    orders = []
    for seed in (1, 1, 2):
        batches = list(single_examples(split, seed, CPU))
        assert {len(b["labels"]) for b in batches} == {1}
        assert all(bool(b["attention_mask"].all()) for b in batches)
        orders.append([tuple(b["input_ids"][0].tolist()) for b in batches])
    expected = [tuple(split.ids[split.offsets[i] : split.offsets[i + 1]].tolist()) for i in range(len(split))]
    assert sorted(orders[0]) == sorted(expected)
    assert orders[0] == orders[1] != orders[2]


def test_the_objective_is_the_training_loss() -> None:
    bert, data = tiny_bert(), encoded_task()
    batch = data.train.collate([0, 1, 2])
    objective = TaskObjective(bert, CrossEntropy([1.0, 3.0]))
    logits = objective.logits(batch)
    expected = F.cross_entropy(logits, batch["labels"], weight=torch.tensor([1.0, 3.0]))
    assert torch.allclose(objective(batch), expected)
    assert logits.requires_grad


def test_a_hybrid_that_needs_nothing_sees_nothing() -> None:
    fake = FakeHybrid(Bag())
    prepare(fake, encoded_task(), PLAN)
    assert fake.seen == []
    fake.needs_prepare = True
    prepare(fake, encoded_task(), PLAN)
    assert len(fake.seen) == 48


def test_training_calibrates_first_unless_it_goes_on() -> None:
    data = encoded_task()
    with attach(tiny_bert(), mask_recipe(), seed=0) as hybrid:
        entries = hybrid.modules["fish_mask"].entries
        train(hybrid, data, PLAN)
        chosen = entries.index.clone()
        values = entries.values.detach().clone()
        assert int(chosen.min()) >= 0
        assert bool(values.abs().sum() > 0)
        train(hybrid, data, TrainingPlan(steps=1, seed=99, device="cpu"), calibrate=False)
        assert torch.equal(entries.index, chosen)
        assert float((entries.values.detach() - values).abs().max()) < float(values.abs().max())


def mask_recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"name": "m", "model": [{"fish_mask": {"keep": 40, "samples": 12, **config}}]})


def test_fish_mask_scores_single_examples_of_the_deterministic_model() -> None:
    """The chosen entries are those of an explicit loop over the first rows of the seed's order."""
    data, bert = encoded_task(), tiny_bert(hidden_dropout_prob=0.5).train()
    before = snapshot(bert)
    scores = {name: torch.zeros_like(p) for name, p in bert.bert.named_parameters()}
    bert.eval()
    for batch, _ in zip(single_examples(data.train, PLAN.seed, CPU), range(12), strict=False):
        bert.zero_grad()
        logits = bert(batch["input_ids"], batch["attention_mask"]).logits
        F.cross_entropy(logits, batch["labels"]).backward()
        for name, parameter in bert.bert.named_parameters():
            if parameter.grad is not None:
                scores[name] += parameter.grad.square()
    bert.zero_grad()
    bert.train()
    expected = torch.cat([s.flatten() for s in scores.values()]).topk(40).indices.sort().values
    with attach(bert, mask_recipe(), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        assert hybrid.modules["fish_mask"].entries.index.tolist() == expected.tolist()
        assert bert.training
        assert [n for n, p in bert.bert.named_parameters() if p.requires_grad] == []
    assert_same_state(bert, before)


def test_after_calibration_the_hooks_follow_the_mask() -> None:
    """A mask that was chosen after attaching must act in the next forward."""
    data, bert = encoded_task(), tiny_bert()
    batch = data.train.collate([0, 1])
    with attach(bert, mask_recipe(), seed=0) as hybrid:
        prepare(hybrid, data, PLAN)
        plain = bert(batch["input_ids"], batch["attention_mask"]).logits
        nn.init.constant_(hybrid.modules["fish_mask"].entries.values, 0.5)
        moved = bert(batch["input_ids"], batch["attention_mask"]).logits
    assert not torch.allclose(plain, moved, atol=1e-3)


@pytest.mark.parametrize("seed", [5, 6])
def test_the_mask_depends_on_the_seed_alone(seed: int) -> None:
    chosen = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        bert = tiny_bert()
        with attach(bert, mask_recipe(), seed=0) as hybrid:
            prepare(hybrid, encoded_task(), TrainingPlan(steps=2, seed=seed, device="cpu"))
            chosen.append(hybrid.modules["fish_mask"].entries.index.tolist())
    assert chosen[0] == chosen[1]


def measured_with(monkeypatch: pytest.MonkeyPatch, calibration: Calibration, **config: Any) -> list[Any]:
    """What a FISH mask's module sees while it measures, with another calibration than its own."""
    from autopeft.methods.selective.unstructured.fish_mask import FishMaskModule

    seen: list[Any] = []

    def measure(module: nn.Module, base: nn.Module, batches: Any, objective: Any) -> dict[str, torch.Tensor]:
        sizes, first = [], None
        for batch in batches:
            sizes.append(len(batch["labels"]))
            first = batch if first is None else first
        assert first is not None
        with torch.no_grad():
            seen.append((sizes, objective(first), objective(first), first))
        return {"ranking": torch.arange(64)}

    monkeypatch.setattr(FishMaskModule, "calibration", calibration, raising=False)
    monkeypatch.setattr(FishMaskModule, "measure", measure)
    items = {"model": mask_recipe().to_dict()["model"], "layers": [{"attach": ["lora"]}]}
    bert = tiny_bert(hidden_dropout_prob=0.5)
    with attach(bert, Recipe.from_dict({"name": "m", **items}), seed=0) as hybrid:
        randomise(hybrid.modules["lora"], std=0.5)
        prepare(
            hybrid,
            encoded_task(),
            TrainingPlan(steps=1, batch_size=20, seed=5, device="cpu", shortcuts=False),
        )
        first = seen[0][3]
        logits = bert.eval()(first["input_ids"], first["attention_mask"]).logits
        seen.append(F.cross_entropy(logits, first["labels"]))
    logits = bert(first["input_ids"], first["attention_mask"]).logits
    seen.append(F.cross_entropy(logits, first["labels"]))
    return seen


def test_a_method_says_how_it_wants_to_see_data(monkeypatch: pytest.MonkeyPatch) -> None:
    (sizes, first, again, _), attached, bare = measured_with(monkeypatch, Calibration())
    assert sizes == [1] * 48
    assert torch.equal(first, again)
    assert torch.allclose(first, bare, atol=1e-6)
    assert not torch.allclose(attached, bare, atol=1e-4)
    (sizes, first, again, _), attached, bare = measured_with(
        monkeypatch, Calibration(rows=None, attached=True)
    )
    assert sorted(sizes) == [8, 20, 20]
    assert torch.equal(first, again)
    assert torch.allclose(first, attached, atol=1e-6)
    (sizes, first, again, _), _, _ = measured_with(monkeypatch, Calibration(rows=7, training=True))
    assert sorted(sizes) == [6] + [7] * 6
    assert not torch.equal(first, again), "the backbone's dropout draws"


def test_the_objective_has_the_loss_of_each_row() -> None:
    bert, data = tiny_bert(), encoded_task()
    batch = data.train.collate([0, 1, 2])
    losses = TaskObjective(bert, CrossEntropy()).losses(batch)
    logits = bert(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.allclose(losses, F.cross_entropy(logits, batch["labels"], reduction="none"))
    assert not losses.requires_grad


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_objectives_losses_and_gradients_are_of_whole_batches(kind: str) -> None:
    """However many rows go through the model at once, and where memory is full, fewer do."""
    bert, data = tiny_bert(num_labels=2 if kind == "classification" else 1), encoded_task(kind=kind)
    if kind == "regression":
        bert.config.problem_type = "regression"
    batch, most = data.train.collate(range(10)), [100]
    wanted = [p for n, p in bert.named_parameters() if "query" in n or "classifier" in n]
    apart = nn.Parameter(torch.zeros(3))

    def forward(part: Any) -> torch.Tensor:
        if len(part["labels"]) > most[0]:
            raise torch.OutOfMemoryError("full")
        seen.append(len(part["labels"]))
        return bert(part["input_ids"], part["attention_mask"]).logits

    seen: list[int] = []
    loss = data.task.loss()
    plain = TaskObjective(bert, loss, forward)
    (expected,), losses = torch.autograd.grad(plain(batch), wanted[:1]), plain.losses(batch)
    for micro, limit in ((None, 100), (4, 100), (None, 3), (1, 1)):
        objective = TaskObjective(bert, loss, forward, micro)
        most[0] = limit
        seen.clear()
        gradients = objective.gradients(batch, [*wanted, apart])
        assert torch.allclose(gradients[0], expected, atol=1e-6)
        assert not gradients[-1].any()
        assert torch.allclose(objective.losses(batch), losses, atol=1e-6)
        assert max(seen) <= limit
        assert all(p.grad is None for p in wanted)
    most[0] = 0
    with pytest.raises(OutOfMemory, match="single rows"):
        TaskObjective(bert, loss, forward).losses(batch)


@pytest.mark.parametrize("rows", [1, 7, None])
def test_each_pass_over_the_batches_has_an_order_of_its_own(
    rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.methods.selective.unstructured.fish_mask import FishMaskModule

    orders: list[list[tuple[int, ...]]] = []

    def measure(module: nn.Module, base: nn.Module, batches: Any, objective: Any) -> dict[str, torch.Tensor]:
        for _ in range(2):
            ids = [row for batch in batches for row in batch["input_ids"].tolist()]
            orders.append([tuple(i for i in row if i) for row in ids])
        return {"ranking": torch.arange(64)}

    monkeypatch.setattr(FishMaskModule, "calibration", Calibration(rows=rows), raising=False)
    monkeypatch.setattr(FishMaskModule, "measure", measure)
    plan = TrainingPlan(steps=1, batch_size=16, seed=5, device="cpu", shortcuts=False)
    for _ in range(2):
        with attach(tiny_bert(), mask_recipe(), seed=0) as hybrid:
            prepare(hybrid, encoded_task(), plan)
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[:2] == orders[2:], "drawn from the plan's seed"


def test_what_one_method_draws_moves_no_others_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.methods.selective.unstructured.fish_mask import FishMaskModule

    drawn: list[float] = []

    def measure(module: nn.Module, base: nn.Module, batches: Any, objective: Any) -> dict[str, torch.Tensor]:
        drawn.append(float(torch.rand(())))
        return {"ranking": torch.arange(64)}

    monkeypatch.setattr(FishMaskModule, "measure", measure)
    masks = [{"fish_mask": {"keep": 8, "samples": n}} for n in (1, 2)]
    plan = TrainingPlan(steps=1, seed=5, device="cpu", shortcuts=False)
    with attach(tiny_bert(), Recipe.from_dict({"name": "m", "model": masks}), seed=0) as hybrid:
        prepare(hybrid, encoded_task(), plan)
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


# What comes after training


class Concluding(nn.Linear):
    """Looks at all rows after training, one forward for each batch."""

    def __init__(self, most: int = 100) -> None:
        super().__init__(6, 6)
        self.most = most
        self.calls: list[list[dict[str, torch.Tensor]]] = []
        self.log: list[str] = []
        self.draws: list[float] = []
        self.conclusion_rows: int | None = None

    def conclude(self, batches: Any, objective: Any) -> None:
        self.log.append("conclude")
        self.calls.append([])
        self.draws.append(float(torch.rand(())))
        for batch in batches:
            if len(batch["labels"]) > self.most:
                raise torch.OutOfMemoryError("full")
            assert objective.logits(batch).requires_grad
            assert not self.training
            assert torch.allclose(
                objective(batch), F.cross_entropy(objective.logits(batch), batch["labels"]), atol=1e-6
            )
            self.calls[-1].append(batch)

    def after_step(self, step: int, total: int) -> None:
        self.log.append("step")

    def finish(self) -> None:
        self.log.append("finish")

    def rows(self) -> list[tuple[int, ...]]:
        return sorted(tuple(i[m.bool()].tolist()) for b in self.calls[-1] for i, m in _texts(b))


def _texts(batch: dict[str, torch.Tensor]) -> Any:
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def _concluding(**options: Any) -> tuple[FakeHybrid, Concluding]:
    bag = Bag()
    bag.adapter = Concluding(**options)
    return FakeHybrid(bag), bag.adapter


def test_training_is_concluded_once_at_its_end_with_every_row() -> None:
    fake, module = _concluding()
    data = encoded_task(train=30)
    state = torch.get_rng_state()
    fake.model.train()
    flags = [m.training for m in fake.model.modules()]
    train(fake, data, TrainingPlan(steps=3, batch_size=7, micro_batch=4, device="cpu"))
    assert module.log == ["step"] * 3 + ["finish", "conclude"]
    assert max(len(b["labels"]) for b in module.calls[0]) == 4
    split = data.train
    texts = [tuple(split.ids[split.offsets[i] : split.offsets[i + 1]].tolist()) for i in range(30)]
    assert module.rows() == sorted(texts)
    assert [m.training for m in fake.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_that_was_stopped_or_paused_is_not_concluded() -> None:
    data = encoded_task()
    fake, module = _concluding()
    train(fake, data, PLAN, should_stop=lambda: True)
    assert train(fake, data, PLAN, until=1).stopped == "paused"
    assert "conclude" not in module.log
    train(fake, data, TrainingPlan(steps=4, device="cpu", eval_every=1, patience=1))
    assert module.log[-1] == "conclude"


def test_a_training_on_a_share_is_concluded_on_that_share() -> None:
    fake, module = _concluding()
    conclude(fake, encoded_task(train=30), TrainingPlan(steps=1, train_share=0.4, device="cpu"))
    assert len(module.rows()) == 12
    small = set(module.rows())
    conclude(fake, encoded_task(train=30), TrainingPlan(steps=1, train_share=0.8, device="cpu"))
    assert small <= set(module.rows())
    assert module.draws[0] == module.draws[1], "draws come from the plan's seed"


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_what_concludes_from_a_few_rows_gets_them_by_the_seed_alone(share: float) -> None:
    fake, module = _concluding()
    module.conclusion_rows = 5
    data, seen = encoded_task(train=30), []
    for seed, micro in ((0, 8), (0, 2), (1, 8)):
        plan = TrainingPlan(
            steps=1, batch_size=8, micro_batch=micro, seed=seed, train_share=share, device="cpu"
        )
        conclude(fake, data, plan)
        assert max(len(b["labels"]) for b in module.calls[-1]) == min(micro, 5)
        seen.append(module.rows())
        assert len(seen[-1]) == 5
        module.conclusion_rows = 100
        conclude(fake, data, plan)
        assert set(seen[-1]) <= set(module.rows())
        assert len(module.rows()) == 30 * share
        module.conclusion_rows = 5
    assert seen[0] == seen[1] != seen[2]
    lengths = {len(row) for row in seen[0]}
    assert len(lengths) > 1, "not those of one batch, which are alike in length"


def test_full_memory_halves_the_rows_until_there_is_one() -> None:
    fake, module = _concluding(most=3)
    conclude(fake, encoded_task(train=30), TrainingPlan(steps=1, batch_size=16, device="cpu"))
    assert len(module.calls) == 4
    assert max(len(b["labels"]) for b in module.calls[-1]) == 2
    assert len(module.rows()) == 30
    fake, module = _concluding(most=0)
    with pytest.raises(OutOfMemory, match="single rows; lower `max_length`"):
        conclude(fake, encoded_task(), PLAN)


def test_what_concludes_goes_the_given_way() -> None:
    fake, module = _concluding()
    seen = []

    class Way(Forward):
        def __call__(self, batch: Any) -> torch.Tensor:
            seen.append(len(batch["labels"]))
            return super().__call__(batch)

    conclude(fake, encoded_task(train=6), PLAN, forward=Way(fake.model), micro_rows=4)
    assert seen == [4, 4, 4, 2, 2, 2]
    assert len(module.rows()) == 6
