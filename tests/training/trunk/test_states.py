from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.classifiers import (
    FAMILIES,
    LAYERS,
    WITH_DECODERS,
    classifier,
    encoded_rows,
    encoded_rows_task,
)
from support.tiny import randomise
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.assets import backbone_fingerprint, cache_dir
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.depth import trunk_depths
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.training import TrainingPlan, predict, run_trial
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.loop import train
from autopeft.training.trunk import Trunk, store
from autopeft.training.trunk import states as trunk_states

CPU = torch.device("cpu")
PLAN = TrainingPlan(steps=6, batch_size=8, max_length=16)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def recipe(*items: Any, at: Any = (LAYERS - 1,), model: list[Any] | None = None) -> Recipe:
    layers = [{"at": at if isinstance(at, str) else list(at), "attach": list(items)}] if items else []
    return Recipe.from_dict({"autopeft": 2, "name": "r", "layers": layers, "model": model or []})


LORA = {"lora": {"rank": 3, "sites": ["q", "v"]}}


def hybrid_on(name: str, made: Recipe, **kwargs: Any) -> Hybrid:
    hybrid = attach(classifier(name, **kwargs), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def task_of(split: EncodedSplit, name: str) -> EncodedTask:
    return EncodedTask(encoded_rows_task(name).task, {"train": split, "select": split, "test": split}, 16)


def gradients(hybrid: Hybrid, forward: Forward, split: EncodedSplit) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of all rows and the gradients of their cross-entropy."""
    hybrid.model.zero_grad()
    (batch,) = forward.batches(split, len(split), shuffle=False, device=CPU)
    logits = forward(batch)
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    found = {n: p.grad.clone() for n, p in hybrid.model.named_parameters() if p.grad is not None}
    return logits.detach(), found


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float) -> None:
    assert ours.keys() == theirs.keys()
    got, expected = (torch.cat([g[n].flatten() for n in theirs]) for g in (ours, theirs))
    assert float((got - expected).norm() / expected.norm()) <= relative


# Depth
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "depth"),
    [
        (recipe(), 3),
        (recipe(LORA, at=[2]), 2),
        (recipe(LORA, at="0-2"), 0),
        (recipe({"dora": {"rank": 2}}, at="1-2"), 1),
        (recipe({"prefix_tuning": {"length": 2}}, at=[1]), 1),
        (recipe({"serial_adapter": {"bottleneck": 2}}, at=[2]), 2),
        (recipe({"gate": [LORA, {"prefix_tuning": {"length": 2}}]}, at="1-2"), 1),
        (recipe("ia3", at=[2]), 2),
        (recipe(LORA, at=[2], model=[{"prompt_tuning": {"length": 2}}]), 0),
        (recipe(LORA, at=[2], model=["bitfit"]), 0),
        (recipe(LORA, at=[2], model=[{"lpt": {"layer": 1}}]), 1),
        (recipe(LORA, at=[1], model=[{"lpt": {"layer": 2}}]), 1),
        (recipe({"serial_adapter": {"bottleneck": 2, "variant": "houlsby"}}, at="1-2"), 1),
        (recipe({"serial_adapter": {"bottleneck": 2, "variant": "houlsby"}}, at=[0]), 0),
        (
            recipe(
                LORA,
                at=[2],
                model=[{"intrinsic_said": {"dimension": 40, "tensors": ["embeddings.LayerNorm.*"]}}],
            ),
            0,
        ),
    ],
)
def test_the_depth_is_what_the_recipe_leaves_alone(made: Recipe, depth: int) -> None:
    with attach(classifier("bert"), made, seed=0) as hybrid:
        assert trunk_depths(hybrid.injection) == {"encoder": depth}


def test_a_mask_reaches_as_low_as_the_entries_that_it_chose() -> None:
    with attach(classifier("bert"), recipe(model=[{"fish_mask": {"keep": 3}}]), seed=0) as hybrid:
        assert trunk_depths(hybrid.injection)["encoder"] == 0  # before calibration: anything
        module: Any = hybrid.modules["fish_mask"]
        start = 0
        for tensor in module.entries.tensors:
            if tensor.layer == 1 and tensor.site == "down":
                module.entries.select(torch.arange(start, start + 3))
            start += tensor.size
        hybrid.refresh()
        assert trunk_depths(hybrid.injection)["encoder"] == 1


@pytest.mark.parametrize(
    ("made", "depths"),
    [
        (recipe(LORA, at=[2]), {"encoder": 2, "decoder": 0}),
        (
            Recipe.from_dict(
                {"autopeft": 2, "name": "r", "layers": [{"at": [1], "stack": "decoder", "attach": [LORA]}]}
            ),
            {"encoder": 3, "decoder": 1},
        ),
        (recipe(), {"encoder": 3, "decoder": 3}),
    ],
)
def test_a_decoder_is_untouched_only_behind_an_untouched_encoder(made: Recipe, depths: Any) -> None:
    with attach(classifier("t5"), made, seed=0) as hybrid:
        assert trunk_depths(hybrid.injection) == depths


# Exactness
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_DECODERS)
@pytest.mark.parametrize("made", [recipe(LORA), recipe(LORA, at="1-2"), recipe()], ids=["2", "1", "all"])
def test_cached_and_plain_agree(name: str, made: Recipe) -> None:
    split = encoded_rows(name)
    hybrid = hybrid_on(name, made)
    forward = shortest_forward(hybrid, task_of(split, name), PLAN, dropout=False)
    assert forward.trunk is not None, "the trunk did not reproduce the plain logits"
    expected, wanted = gradients(hybrid, Forward(hybrid.model), split)
    for _ in range(2):  # computed, then read
        logits, got = gradients(hybrid, forward, split)
        torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-3)
        assert_close(got, wanted, 1e-3)
    assert not any("forward" in m.__dict__ for m in hybrid.model.modules())


def test_layers_that_return_their_states_alone_are_not_run() -> None:
    """T5's are, for one row: the first of them returns the bias that the others add."""
    split = encoded_rows("mpnet")
    hybrid = hybrid_on("mpnet", recipe(LORA))
    forward = shortest_forward(hybrid, task_of(split, "mpnet"), PLAN, dropout=False)
    gradients(hybrid, forward, split)
    seen: list[int] = []
    for number, layer in enumerate(hybrid.injection.base.encoder.layer):
        layer.attention.attn.q.register_forward_hook(lambda m, args, out, n=number: seen.append(n))
    gradients(hybrid, forward, split)
    assert seen == [LAYERS - 1]


def test_a_decoder_behind_an_untouched_encoder_is_cached_too() -> None:
    made = Recipe.from_dict(
        {"autopeft": 2, "name": "r", "layers": [{"at": [2], "stack": "decoder", "attach": [LORA]}]}
    )
    split = encoded_rows("t5")
    hybrid = hybrid_on("t5", made)
    forward = shortest_forward(hybrid, task_of(split, "t5"), PLAN, dropout=False)
    assert forward.trunk is not None
    assert forward.trunk.depths == {"encoder": 3, "decoder": 2}
    expected, wanted = gradients(hybrid, Forward(hybrid.model), split)
    logits, got = gradients(hybrid, forward, split)
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-3)
    assert_close(got, wanted, 1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_it_holds_under_gradient_checkpointing(reentrant: bool) -> None:
    split = encoded_rows("llama")
    hybrid = hybrid_on("llama", recipe(LORA, at="1-2"))
    hybrid.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for module in hybrid.model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
    if reentrant:  # such a checkpoint needs an input that requires a gradient
        hybrid.model.enable_input_require_grads()
    forward = shortest_forward(hybrid, task_of(split, "llama"), PLAN, dropout=False)
    assert (forward.trunk is None) == reentrant
    assert forward.rows is None
    _, wanted = gradients(hybrid, Forward(hybrid.model), split)
    assert any("encoder-1" in n or "decoder-1" in n for n in wanted)
    _, got = gradients(hybrid, forward, split)
    assert_close(got, wanted, 1e-3)


def test_what_does_not_reproduce_the_logits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = hybrid_on("distilbert", recipe(LORA))
    inner = trunk_states._answer

    def skewed(layer: Any, states: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        return inner(layer, None if states is None else states + 0.1, *args, **kwargs)

    monkeypatch.setattr(trunk_states, "_answer", skewed)
    split = encoded_rows("distilbert")
    assert shortest_forward(hybrid, task_of(split, "distilbert"), PLAN, dropout=False).trunk is None


def test_dropout_and_the_plan_turn_it_off() -> None:
    hybrid = hybrid_on("bert", recipe(LORA))
    task = task_of(encoded_rows("bert"), "bert")
    off = TrainingPlan(steps=1, shortcuts=False)
    for plan, dropout in ((PLAN, True), (off, False)):
        forward = shortest_forward(hybrid, task, plan, dropout=dropout)
        assert forward.trunk is None
        assert forward.rows is None


def test_a_mask_that_moves_while_it_trains_ends_it() -> None:
    hybrid = hybrid_on("bert", recipe({"dora": {"rank": 2}}))
    split = encoded_rows("bert")
    forward = shortest_forward(hybrid, task_of(split, "bert"), PLAN, dropout=False)
    kept = [set(b) for b in forward.batches(split, 4, shuffle=False, device=CPU)]
    hybrid.refresh()
    after = [set(b) for b in forward.batches(split, 4, shuffle=False, device=CPU)]
    assert all("trunk_encoder" in keys for keys in kept)
    assert not any("trunk_encoder" in keys for keys in after)


# Trials
# ----------------------------------------------------------------------------------------------------


def losses(model: PreTrainedModel, task: EncodedTask, made: Recipe, **plan: Any) -> list[float]:
    chosen = TrainingPlan(**{**vars(PLAN), **plan})
    return run_trial(model, made, task, chosen).train.losses


def test_a_trial_does_not_depend_on_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = encoded_rows_task("bert")
    model = classifier("bert")
    first = losses(model, task, recipe(LORA))
    again = losses(model, task, recipe(LORA))
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "other"))
    losses(model, task, recipe(LORA), seed=7, batch_size=3)  # the store is filled in another order
    assert list((tmp_path / "other/trunk").iterdir()), "a cache that is named later is used"
    assert first == again == losses(model, task, recipe(LORA))
    plain = losses(model, task, recipe(LORA), shortcuts=False)
    np.testing.assert_allclose(first, plain, atol=2e-3)


def test_a_changed_backbone_is_another_backbone() -> None:
    task = encoded_rows_task("bert")
    model = classifier("bert")
    before, mark = losses(model, task, recipe(LORA)), backbone_fingerprint(model)
    weight = model.base_model.get_parameter("encoder.layer.0.output.dense.weight")
    with torch.no_grad():
        weight.mul_(1.5)
    assert backbone_fingerprint(model) != mark
    changed = losses(model, task, recipe(LORA))
    np.testing.assert_allclose(changed, losses(model, task, recipe(LORA), shortcuts=False), atol=2e-3)
    assert not np.allclose(changed, before, atol=1e-3)
    with torch.no_grad():
        weight.copy_(classifier("bert").base_model.get_parameter("encoder.layer.0.output.dense.weight"))
    assert backbone_fingerprint(model) == mark


def test_states_beyond_fp16_are_computed_every_time() -> None:
    task = encoded_rows_task("llama")
    model = classifier("llama")
    with torch.no_grad():
        for layer in range(LAYERS):
            model.base_model.get_parameter(f"layers.{layer}.mlp.down_proj.weight").mul_(1e6)
    got = losses(model, task, recipe(LORA))
    assert got == losses(model, task, recipe(LORA))
    np.testing.assert_allclose(got, losses(model, task, recipe(LORA), shortcuts=False), rtol=1e-4)


def test_one_row_beyond_fp16_does_not_make_a_training_depend_on_those_before_it() -> None:
    task = encoded_rows_task("llama")
    rare = 7
    task.train.ids[task.train.ids == rare] = rare + 1
    task.train.ids[task.train.offsets[3] + 1] = rare
    losses_of = []
    for _ in range(3):
        model = classifier("llama")
        with torch.no_grad():
            model.get_input_embeddings().weight[rare] *= 1e8
        losses_of.append(losses(model, task, recipe(LORA)))
        trunk_states._OPEN.clear()  # as in another process
    assert losses_of[0] == losses_of[1] == losses_of[2]


def test_rows_are_read_in_parts_that_memory_suffices_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = encoded_rows_task("bert"), list[int]()
    whole = losses(classifier("bert"), task, recipe(LORA))
    compute = Trunk.compute

    def small(trunk: Trunk, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen.append(len(batch["input_ids"]))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("not enough")
        return compute(trunk, batch)

    monkeypatch.setattr(Trunk, "compute", small)
    for most, options in ((2, {}), (100, {"micro_batch": 2})):
        shutil.rmtree(cache_dir() / "trunk")
        trunk_states._OPEN.clear()
        seen.clear()
        found = losses(classifier("bert"), task, recipe(LORA), **options)
        np.testing.assert_allclose(found, whole, rtol=1e-4)
        assert (max(seen) > 2) == (most == 2)


def test_a_disk_that_fills_up_costs_no_more_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, content: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    task = encoded_rows_task("bert")
    model = classifier("bert")
    plain = losses(model, task, recipe(LORA), shortcuts=False)
    monkeypatch.setattr(store, "_write_at", full)
    np.testing.assert_allclose(losses(model, task, recipe(LORA)), plain, rtol=1e-5)


def test_micro_batches_take_their_own_states() -> None:
    task = encoded_rows_task("bert")
    model = classifier("bert")
    whole = losses(model, task, recipe(LORA))
    np.testing.assert_allclose(losses(model, task, recipe(LORA), micro_batch=3), whole, rtol=1e-4)


def test_the_trunk_stops_the_forward_once_the_states_are_there() -> None:
    hybrid = hybrid_on("bert", recipe(LORA))
    forward = shortest_forward(hybrid, task_of(encoded_rows("bert"), "bert"), PLAN, dropout=False)
    trunk = forward.trunk
    assert isinstance(trunk, Trunk)
    reached: list[str] = []
    last = hybrid.model.base_model.get_submodule("encoder.layer.2")
    handle = last.register_forward_hook(lambda *_: reached.append("2"))
    states = trunk.compute(encoded_rows("bert").collate([0, 1]))
    handle.remove()
    assert reached == []
    assert list(states) == ["encoder"]
    assert not any("forward" in m.__dict__ for m in hybrid.model.modules())


# Prompts
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", ["npg", "appg", "none"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_late_prompt_leaves_the_layers_below_to_the_store(name: str, generator: str) -> None:
    """Rows that enter at layer 2 change nothing below, and the last layer is narrowed as without them."""
    made = recipe(model=[{"lpt": {"layer": 2, "length": 3, "generator": generator, "dropout": 0.0}}])
    split, hybrid = encoded_rows(name), hybrid_on(name, made)
    hybrid.model.train()
    forward = shortest_forward(hybrid, task_of(split, name), PLAN, dropout=False)
    assert forward.trunk is not None
    first = hybrid.spec.stacks[0].name
    assert forward.trunk.depths[first] == 2
    assert forward.rows is not None
    hybrid.model.eval()
    logits, ours = gradients(hybrid, forward, split)
    plain, theirs = gradients(hybrid, Forward(hybrid.model), split)
    torch.testing.assert_close(logits, plain, atol=2e-3, rtol=2e-3)
    assert_close(ours, theirs, 5e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_gates_of_prefixes_read_the_text_where_layers_below_come_from_the_store(name: str) -> None:
    made = recipe({"apt": {"length": 3, "dropout": 0.0}}, at=[2])
    split, hybrid = encoded_rows(name), hybrid_on(name, made)
    hybrid.model.train()
    forward = shortest_forward(hybrid, task_of(split, name), PLAN, dropout=False)
    assert forward.trunk is not None
    assert forward.trunk.depths[hybrid.spec.stacks[0].name] == 2
    hybrid.model.eval()
    logits, ours = gradients(hybrid, forward, split)
    plain, theirs = gradients(hybrid, Forward(hybrid.model), split)
    torch.testing.assert_close(logits, plain, atol=2e-3, rtol=2e-3)
    assert_close(ours, theirs, 5e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_rows_among_the_tokens_move_where_the_last_layer_is_computed(name: str) -> None:
    slots = [{"length": 1, "offset": 1}, {"length": 2, "anchor": "end"}]
    split = encoded_rows(name)
    hybrid = hybrid_on(name, recipe(model=[{"p_tuning": {"length": 3, "slots": slots}}]))
    forward = shortest_forward(hybrid, task_of(split, name), PLAN, dropout=False)
    assert forward.trunk is None
    assert forward.rows is not None
    hybrid.model.eval()
    logits, ours = gradients(hybrid, forward, split)
    plain, theirs = gradients(hybrid, Forward(hybrid.model), split)
    torch.testing.assert_close(logits, plain, atol=1e-6, rtol=1e-5)
    assert_close(ours, theirs, 1e-5)


# Phases
# ----------------------------------------------------------------------------------------------------


def test_a_phase_has_the_layers_that_it_leaves_alone_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search acts in front of every layer, what it has found in front of the last one alone."""
    depths: list[dict[str, int]] = []

    def found(*args: Any, **kwargs: Any) -> Forward:
        forward = shortest_forward(*args, **kwargs)
        depths.append(dict(forward.trunk.depths) if forward.trunk is not None else {})
        return forward

    monkeypatch.setattr("autopeft.training.loop.shortest_forward", found)
    made = recipe(model=[{"selective_prompt": {"keep": 1, "length": 3, "dropout": 0.0}}])
    losses = []
    for shortcuts in (True, False):
        hybrid = hybrid_on("bert", made)
        module: Any = hybrid.modules["selective_prompt"]
        module._best = lambda: torch.tensor([LAYERS - 1])
        plan = TrainingPlan(steps=8, batch_size=8, max_length=16, shortcuts=shortcuts)
        losses.append(train(hybrid, encoded_rows_task("bert"), plan).losses)
    assert depths == [{}, {"encoder": LAYERS - 1}, {}, {}]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_prompt_that_gets_shorter_moves_what_the_head_reads() -> None:
    item = {"xprompt": {"length": 6, "pieces": 4, "init": "uniform", "token_rate": 0.5}}
    losses = []
    for shortcuts in (True, False):
        hybrid = attach(classifier("bert"), recipe(model=[item]), seed=0)
        plan = TrainingPlan(steps=8, batch_size=8, max_length=16, shortcuts=shortcuts)
        losses.append(train(hybrid, encoded_rows_task("bert"), plan).losses)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_text_that_ends_in_the_padding_token_is_read_where_the_model_reads_it() -> None:
    """The end token pads where a tokenizer has no padding; heads of decoders read the last other token."""
    model, data = classifier("gpt2"), encoded_rows_task("gpt2")
    train = data.train
    inner = [i for i, n in enumerate(train.lengths) if train.lengths.min() < n < train.lengths.max()][:4]
    ids = train.ids.copy()
    for row in inner:
        ids[train.offsets[row + 1] - 1] = model.config.pad_token_id
    data = replace(data, splits={**data.splits, "train": replace(train, ids=ids)})
    lora = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    with attach(model, lora, seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        assert forward.rows is not None
        assert forward.rows.reader == "last"
        assert inner
        np.testing.assert_allclose(
            predict(model, data.train, forward=forward), predict(model, data.train), atol=1e-4
        )


def test_what_a_layer_makes_of_its_first_row_is_made_of_that_rows_tables() -> None:
    """Rotary tables come as a pair, with a row for each text where its positions are told."""
    each, shared = torch.randn(3, 5, 4), torch.randn(1, 5, 4)
    cos, sin = trunk_states._first((each, shared), 3)
    assert torch.equal(cos, each[:1])
    assert torch.equal(sin, shared)
