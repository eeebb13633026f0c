from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tiny import logits, tiny_inputs, tiny_model
from support.toy import CALL, build, counted, toy_spec, toy_specs
from support.training import encoded_task, stop_after, tiny_bert
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError, MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=8, batch_size=8, seed=3, device="cpu", shortcuts=False)
LENGTH, PIECES = 6, 4
TRAINING = {"learning_rate": 0.1, "warmup": 0.0, "weight_decay": 0.1}


def attached(model: Any = None, **options: Any) -> tuple[Hybrid, Any]:
    item = {"xprompt": {"length": LENGTH, "pieces": PIECES, "init": "uniform", **options}}
    recipe = Recipe.from_dict({"model": [item], "training": TRAINING})
    hybrid = attach(tiny_bert() if model is None else model, recipe, seed=5)
    return hybrid, hybrid.modules["xprompt"]


def by_autograd(hybrid: Hybrid, module: Any, session: Any) -> Tensor:
    """Gradients of the masks at 1, (examples, length, pieces), of a prompt that has masks of its own."""
    mask = torch.ones(LENGTH, PIECES, 1, requires_grad=True)
    table, rows = module.values.detach().view(LENGTH, PIECES, -1), module.token_index.clone()
    training = hybrid.model.training
    hybrid.model.eval()
    module.prompt = lambda site, x, call: (mask * table).view(LENGTH, -1)[rows][None]
    found = []
    with torch.enable_grad():
        for batch in session.batches(1):
            labels = batch.pop("labels")
            loss = F.cross_entropy(hybrid.model(**batch).logits, labels)
            found.append(torch.autograd.grad(loss, mask)[0][..., 0])
    del module.prompt
    hybrid.model.train(training)
    return torch.stack(found)


class Watched:
    """A training, and what the prompt was where it was measured, pruned and rewound."""

    def __init__(self, **options: Any) -> None:
        self.hybrid, self.module = attached(**options)
        self.expected: list[Tensor] = []
        self.lengths: list[int] = []
        deploy, gains = self.module.deploy, self.module._gains

        def measured(session: Any, rows: int) -> Any:
            self.expected.append(by_autograd(self.hybrid, self.module, session))
            self.lengths.append(len(self.module.token_index))
            return gains(session, rows)

        def pruned() -> None:
            again = self.module._left is None  # at the end, where it does nothing more
            before = self.module.values.detach().clone()
            deploy()
            if not again:
                self.tuned, self.rewound = before, self.module.values.detach().clone()

        self.module._gains, self.module.deploy = measured, pruned
        self.result = train(self.hybrid, encoded_task(), PLAN)
        del self.module._gains, self.module.deploy
        self.rows = self.module.prompt(None, None, None)[0].detach()


@pytest.fixture(scope="module")
def seen() -> Watched:
    return Watched(token_rate=0.4, piece_rate=0.3)


@given(toy_specs, st.integers(1, 9), st.integers(1, 4))
def test_count_is_what_it_holds(spec: BackboneSpec, length: int, pieces: int) -> None:
    assume(spec.stacks[0].hidden % pieces == 0)
    deployed, trained, held, held_trained = counted("xprompt", spec, length=length, pieces=pieces)
    assert deployed == trained == held == held_trained == length * spec.stacks[0].hidden


def test_pieces_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(MethodError, match=r"pieces=4.*1, 2, 3, 6"):
        build("xprompt", toy_spec(hidden=6), pieces=4)


def test_before_it_is_pruned_it_is_prompt_tuning() -> None:
    _, module = attached()
    plain = attach(tiny_bert(), Recipe.from_dict({"model": [{"prompt_tuning": {"length": LENGTH}}]}), seed=5)
    assert torch.equal(module.prompt(None, None, None), plain.root.get_parameter("prompt_tuning.table")[None])


def test_it_begins_with_words_of_the_vocabulary() -> None:
    model = tiny_bert()
    _, module = attached(model, init="vocabulary")
    embedding = model.get_input_embeddings().weight
    rows = module.prompt(None, None, None)[0]
    assert all(any(torch.equal(row, word) for word in embedding) for row in rows)


@pytest.mark.parametrize(
    ("token_rate", "piece_rate", "rows", "pieces"),
    [(0.4, 0.3, 4, 12), (0, 0, 6, 24), (0.99, 0.99, 1, 1), (0.5, 0, 3, 12), (0, 0.5, 6, 12)],
)
def test_as_many_are_pruned_as_the_rates_say(
    token_rate: float, piece_rate: float, rows: int, pieces: int
) -> None:
    """⌊0.4·6⌋ = 2 rows, then ⌊0.3·16⌋ = 4 pieces of the 4 rows that stay; one of each stays at least."""
    watched = Watched(token_rate=token_rate, piece_rate=piece_rate)
    assert watched.rows.shape[0] == len(watched.module.token_index) == rows
    assert watched.module.values.numel() == pieces * 16 // PIECES
    zero = watched.rows.view(rows, PIECES, -1).eq(0).all(-1)
    assert int(zero.sum()) == rows * PIECES - pieces
    assert watched.hybrid.counts().deployed == pieces * 16 // PIECES


def test_importance_is_the_mean_gradient_of_the_masks(seen: Watched) -> None:
    rows, pieces = seen.module.importance["rows"], seen.module.importance["pieces"]
    first, second = seen.expected
    assert len(first) == len(encoded_task().splits["train"])
    torch.testing.assert_close(rows, first.sum(2).abs().mean(0), rtol=1e-3, atol=1e-6)
    kept = seen.module.token_index
    torch.testing.assert_close(pieces, second[:, kept].abs().mean(0), rtol=1e-3, atol=1e-6)
    assert seen.lengths == [6, 4], "pieces are measured without the rows that are gone"


def test_the_least_important_go(seen: Watched) -> None:
    rows = seen.module.importance["rows"]
    assert set(seen.module.token_index.tolist()) == set(rows.topk(4).indices.tolist())
    pieces = seen.module.importance["pieces"].flatten()
    places = [seen.module.token_index[i // PIECES] * PIECES + i % PIECES for i in pieces.topk(12).indices]
    assert seen.module.piece_index.tolist() == sorted(int(p) for p in places)


def test_what_is_left_is_rewound_and_trained_again(seen: Watched) -> None:
    """It goes back to what it was when stage 1 ended, not to the first values."""
    assert torch.equal(seen.rewound, seen.tuned[seen.module.piece_index])
    _, fresh = attached()
    assert not torch.equal(seen.tuned, fresh.values)
    assert not torch.equal(seen.module.values, seen.rewound)


def test_pruned_pieces_stay_zero_through_decay_and_steps(seen: Watched) -> None:
    grid = seen.rows.view(4, PIECES, -1)
    places = {int(p) for p in seen.module.piece_index}
    for i, row in enumerate(seen.module.token_index.tolist()):
        for j in range(PIECES):
            assert bool(grid[i, j].any()) == (row * PIECES + j in places)


def test_the_sequence_gets_shorter_by_the_rows_that_are_gone(seen: Watched) -> None:
    """Removed rows are not zero rows, which attention would still see."""
    lengths = []
    layer = seen.hybrid.model.bert.encoder.layer[0]
    handle = layer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    text = torch.tensor([[5, 9, 17]])
    short = seen.hybrid.model(input_ids=text).logits
    assert lengths == [3 + 4]
    handle.remove()
    rows, module = seen.rows, seen.module
    zero = torch.zeros(LENGTH, rows.shape[1])
    zero[module.token_index] = rows
    plain = Recipe.from_dict({"model": [{"prompt_tuning": {"length": LENGTH}}]})
    state = seen.hybrid.model.classifier.state_dict()
    model = tiny_bert()
    model.classifier.load_state_dict(state)
    with attach(model, plain) as other, torch.no_grad():
        other.root.get_parameter("prompt_tuning.table").copy_(zero)
        assert not torch.allclose(model(input_ids=text).logits, short)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_a_pruned_prompt_acts_the_same_once_it_is_loaded(name: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name)
    hybrid, module = attached(model)
    module.token_index, module._left = torch.tensor([1, 4]), torch.tensor([5, 16, 18])
    expected = logits(model, inputs)
    module.deploy()
    assert not torch.equal(logits(model, inputs), expected), "pruned pieces acted until here"
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    fresh = tiny_model(name)
    again: Any = load(fresh, tmp_path).modules["xprompt"]
    assert len(again.token_index) == 2
    assert again.values.shape[0] == 3
    torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["piece_index", "token_index"])
@pytest.mark.parametrize("value", [-1, 10**6, 0])
def test_damaged_places_are_refused(name: str, value: int) -> None:
    """0 is there twice then."""
    _, module = attached()
    module.prompt(None, None, CALL)
    getattr(module, name)[1] = value
    with pytest.raises(DataError, match="damaged"):
        module.prompt(None, None, CALL)


def test_it_starts_from_a_stored_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = attach(tiny_bert(), Recipe.from_dict({"model": [{"prompt_tuning": {"length": LENGTH}}]}), seed=1)
    plain.save("source")
    item = {"xprompt": {"length": LENGTH, "pieces": PIECES, "init": "uniform"}, "from": "source"}
    hybrid = attach(tiny_bert(), Recipe.from_dict({"inputs": {"source": "source"}, "model": [item]}))
    module: Any = hybrid.modules["xprompt"]
    assert torch.equal(module.prompt(None, None, CALL)[0], plain.root.get_parameter("prompt_tuning.table"))


def test_fewer_examples_are_measured_where_so_many_are_asked_for() -> None:
    hybrid, module = attached(examples=5)
    asked = []
    gains = module._gains
    module._gains = lambda session, rows: asked.append(found := list(gains(session, rows))) or found
    train(hybrid, encoded_task(), PLAN)
    assert [len(found) for found in asked] == [5, 5]


def test_early_stopping_waits_until_it_is_pruned() -> None:
    hybrid, module = attached()
    plan = replace(PLAN, steps=24, eval_every=1, patience=1)
    result = train(hybrid, encoded_task(), plan)
    assert result.stopped == "patience"
    assert 12 < result.steps < 24, "scores count from the second phase on"
    assert (len(module.token_index), len(module.values)) == (3, 6)


@pytest.mark.parametrize(("step", "rows", "pieces"), [(3, 6, 24), (4, 3, 6)])
def test_a_training_that_is_asked_to_stop_leaves_what_it_acted_with(
    step: int, rows: int, pieces: int, tmp_path: Path
) -> None:
    """Before the pruning all of it; behind it, and before the second phase, what stays."""
    hybrid, module = attached()
    result = train(hybrid, encoded_task(), PLAN, should_stop=stop_after(step))
    assert (result.stopped, result.steps) == ("asked", step)
    assert (len(module.token_index), len(module.values)) == (rows, pieces)
    text = {"input_ids": torch.tensor([[5, 9, 17]])}
    expected = hybrid.model.eval()(**text).logits
    hybrid.save(tmp_path)
    fresh = tiny_bert()
    load(fresh, tmp_path)
    torch.testing.assert_close(fresh(**text).logits, expected, atol=1e-6, rtol=1e-6)
