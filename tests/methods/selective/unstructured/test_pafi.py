"""PaFi: the mask is the k smallest pretrained magnitudes, whatever the data; all else stays bit-identical."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import randomise, tiny_model
from support.toy import configured, toy_spec
from support.training import encoded_task, snapshot, tiny_bert
from torch import Tensor

from autopeft.backbones import spec_of_model
from autopeft.counting import count
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=4, batch_size=16, device="cpu")


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"name": "p", "model": [{"pafi": config}], "training": {"learning_rate": 0.1}})


def chosen(hybrid: Hybrid) -> tuple[dict[str, Tensor], Tensor]:
    """The ranked tensors, and whether each entry of their concatenation is in the mask."""
    entries: Any = hybrid.modules["pafi"].entries
    base = dict(hybrid.injection.base.named_parameters())
    tensors = {t.name: base[t.name].detach() for t in entries.tensors}
    inside = torch.zeros(entries.total, dtype=torch.bool)
    inside[entries.index] = True
    return tensors, inside


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_the_mask_is_an_argsort_of_magnitudes(name: str) -> None:
    with attach(tiny_model(name), recipe(keep=300), seed=0) as hybrid:
        tensors, inside = chosen(hybrid)
    flat = np.concatenate([t.abs().numpy().ravel() for t in tensors.values()])
    assert sorted(inside.nonzero()[:, 0].tolist()) == sorted(np.argsort(flat, kind="stable")[:300].tolist())
    assert flat[inside.numpy()].max() <= flat[~inside.numpy()].min()
    apart = ("norm", "embed", "wte", "wpe", "pooler")
    assert not any(part in n.lower() for n in tensors for part in apart)


def test_it_is_the_same_for_any_task_and_seed() -> None:
    found = []
    for seed, rows in ((0, 48), (1, 30)):
        with attach(tiny_bert(), recipe(keep=200), seed=seed) as hybrid:
            plan = TrainingPlan(steps=2, batch_size=16, device="cpu", seed=seed)
            train(hybrid, encoded_task(train=rows), plan)
            found.append(chosen(hybrid)[1])
    assert torch.equal(*found)


def test_exactly_k_differ_and_the_others_are_bit_identical() -> None:
    bert = tiny_bert()
    before = snapshot(bert.bert)
    hybrid = attach(bert, recipe(keep=150), seed=0)
    train(hybrid, encoded_task(), PLAN)
    tensors, inside = chosen(hybrid)
    hybrid.merge()
    after = snapshot(bert.bert)
    moved = torch.cat([(after[n] != before[n]).flatten() for n in tensors])
    assert int(moved.sum()) > 100
    assert not bool((moved & ~inside).any())
    assert all(torch.equal(after[n], before[n]) for n in before if n not in tensors)


def test_each_tensor_keeps_its_share() -> None:
    with attach(tiny_model("bert"), recipe(keep="2%", scope="per_tensor"), seed=0) as hybrid:
        entries: Any = hybrid.modules["pafi"].entries
        tensors, inside = chosen(hybrid)
        spec = spec_of_model(hybrid.model)[0]
        k, start = int(0.02 * spec.parameters), 0
        for weight in tensors.values():
            part = inside[start : start + weight.numel()]
            size = k * weight.numel() // entries.total
            magnitudes = weight.abs().flatten()
            assert int(part.sum()) == size
            assert size == 0 or magnitudes[part].max() <= magnitudes[~part].min()
            start += weight.numel()
        assert count(hybrid.recipe, spec).deployed == int(inside.sum())


def test_a_saved_one_is_loaded_as_it_was(tmp_path: Any) -> None:
    batch = encoded_task().train.collate([0, 1])
    with attach(tiny_bert(), recipe(keep=90), seed=0) as hybrid:
        randomise(hybrid.modules["pafi"])
        hybrid.save(tmp_path / "kept")
        wanted = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits
    again = load(tiny_bert(), tmp_path / "kept")
    assert torch.equal(again.model(batch["input_ids"], batch["attention_mask"]).logits, wanted)


def test_refusals() -> None:
    with pytest.raises(MethodError, match="pafi with keep=1000000 selects 1,000,000 entries"):
        configured("pafi", keep=10**6).parameter_count((), toy_spec())
    with pytest.raises(MethodError, match="less than one entry of each tensor"):
        configured("pafi", keep=1, scope="per_tensor").parameter_count(
            (), spec_of_model(tiny_model("bert"))[0]
        )
