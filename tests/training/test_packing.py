"""Several texts in one row: equal losses and gradients; refused where only rows tell them apart."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import families
from support.language import count_tokens, loss_and_gradients, save_decoder, write_chats
from support.tiny import randomise, tiny_model
from support.training import LORA
from torch import Tensor

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.training import TrainingPlan
from autopeft.training.forward import Forward, alike, packed_forward, shortest_forward
from autopeft.training.packing import Packing, check_packing

CAUSAL = get_kind("causal_lm")
WITHOUT_POSITIONS = {"bloom"}
# Their masks do not tell texts apart in this version of transformers: refused by what two texts come to.
MIXED = {"opt", "gpt_oss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("packing")
    save_decoder(found / "llama")
    write_chats(found / "chats.jsonl")
    return found


@pytest.fixture(scope="module")
def data(folder: Path) -> EncodedTask:
    return encode(load_task(str(folder / "chats.jsonl")), load_tokenizer(str(folder / "llama")), 48)


def hybrid_on(folder: Path, *items: Any, model: list[Any] | None = None) -> Hybrid:
    layers = [{"at": "all", "attach": list(items)}] if items else []
    made = Recipe.from_dict({"name": "r", "layers": layers, "model": model or []})
    hybrid = attach(CAUSAL.head.load_model(str(folder / "llama"), ()), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def batch_of(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Texts of these lengths, padded on the right, whose second half is learnt."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, families.VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))[None]
    mask = (places < torch.tensor(lengths)[:, None]).long()
    learnt = (mask == 1) & (places >= torch.tensor(lengths)[:, None] // 2)
    return {
        "input_ids": torch.where(mask == 1, ids, 0),
        "attention_mask": mask,
        "labels": torch.where(learnt, ids, IGNORED),
    }


# Rows
# ----------------------------------------------------------------------------------------------------------


def test_texts_are_laid_end_to_end() -> None:
    batch = batch_of([3, 2, 4, 1])
    found = Packing(5)(batch)
    ids = batch["input_ids"]
    assert found["input_ids"].tolist() == [
        [*ids[0, :3].tolist(), *ids[1, :2].tolist()],
        [*ids[2].tolist(), int(ids[3, 0])],
    ]
    assert found["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    labels = found["labels"].tolist()
    assert labels[0] == [IGNORED, *ids[0, 1:3].tolist(), IGNORED, int(ids[1, 1])]
    assert labels[1][-1] == IGNORED, "nothing predicts the first token of a text, though it is learnt"
    assert set(found) == {"input_ids", "position_ids", "labels"}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(2, 30))
def test_every_text_is_there_once_and_whole(lengths: list[int], room: int) -> None:
    batch = batch_of(lengths)
    found = Packing(room)(batch)
    ids, places = found["input_ids"], found["position_ids"]
    texts = list[list[int]]()
    for row, at in zip(ids.tolist(), places.tolist(), strict=True):
        starts = [i for i, place in enumerate(at) if place == 0] + [len(row)]
        parts = list(pairwise(starts))
        assert all(at[a:b] == list(range(b - a)) for a, b in parts)
        texts += [row[a:b] for a, b in parts if any(row[a:b])]  # what is behind the last text is all zeros
    wanted = [row[:n].tolist() for row, n in zip(batch["input_ids"], lengths, strict=True)]
    assert texts == wanted, "in their order"
    assert ids.shape[1] <= max(room, *lengths)
    learnt = [int(t) for t in batch["labels"][:, 1:].flatten() if t != IGNORED]
    assert [int(t) for t in found["labels"].flatten() if t != IGNORED] == learnt


def test_what_a_batch_says_of_its_rows_is_refused() -> None:
    batch = batch_of([2, 3])
    for more in ("feature_topic", "token_type_ids"):
        with pytest.raises(UsageError, match=f"where a batch says {more} of each; train it without packing"):
            Packing(9)({**batch, more: torch.tensor([0, 1])})
    with pytest.raises(UsageError, match="where a batch says task_id of each"):
        Packing(9)({**batch, "task_id": torch.tensor([0, 1])})
    assert Packing(9)({**batch, "task_id": torch.tensor([4, 4])})["task_id"].tolist() == [4]


# Losses
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        [LORA],
        [{"serial_adapter": {"bottleneck": 4}}, {"parallel_adapter": {"bottleneck": 4}}],
        [{"prefix_tuning": {"length": 3}}],
        [{"ia3": {}}],
    ],
    ids=["lora", "adapters", "prefix", "scales"],
)
def test_losses_and_gradients_are_those_of_a_row_each(
    folder: Path, data: EncodedTask, monkeypatch: pytest.MonkeyPatch, items: list[Any]
) -> None:
    tokens = count_tokens(monkeypatch)
    with hybrid_on(folder, *items) as hybrid:
        packed = shortest_forward(hybrid, data, TrainingPlan(steps=1, packing=True), dropout=False)
        assert packed.packs is not None
        assert packed.packs.length == 48
        tokens.clear()
        loss, gradients = loss_and_gradients(hybrid, packed, data)
        few = tokens[-1]
        expected, wanted = loss_and_gradients(hybrid, Forward(hybrid.model, kind=CAUSAL), data)
        assert few < tokens[-1], "padding is saved"
        assert loss == pytest.approx(expected, rel=1e-5)
        assert gradients.keys() == wanted.keys() != set()
        for name, gradient in wanted.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * max(1.0, scale), rtol=1e-5)


def test_a_training_ends_where_it_ends_with_a_row_each(folder: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "recipe": Recipe.from_dict({"name": "r", "layers": [{"attach": [LORA]}]}),
        "task": str(folder / "chats.jsonl"), "model": str(folder / "llama"), "steps": 6, "batch_size": 8,
        "max_length": 48, "shortcuts": False,
    }  # fmt: skip
    apart = autopeft.train(**common, out=tmp_path / "apart")
    packed = autopeft.train(**common, packing=True, out=tmp_path / "packed")
    assert json.loads((tmp_path / "packed/manifest.json").read_text())["training"]["packing"]
    assert dict(packed.history.losses) == pytest.approx(dict(apart.history.losses), rel=1e-5)
    assert packed.scores == pytest.approx(apart.scores, rel=1e-4)


@pytest.mark.parametrize("name", sorted(families.DECODERS))
def test_families_give_texts_in_a_row_their_own_logits_or_are_refused(name: str) -> None:
    model = tiny_model(name)
    forward, packed = Forward(model, kind=CAUSAL), Forward(model, kind=CAUSAL)
    packed.packs = Packing(12)
    if name in WITHOUT_POSITIONS:
        with pytest.raises(UsageError, match="takes no positions"):
            check_packing(None, model, CAUSAL)
        return
    check_packing(None, model, CAUSAL)
    batch = batch_of([5, 7, 6, 3, 2, 9])
    with torch.no_grad():
        assert alike(packed(batch), forward(batch), model) == (name not in MIXED)


# Refused
# ----------------------------------------------------------------------------------------------------------


SCORED = {"aprompt": {"length": 0, "kv_length": 0, "qk_width": 2}}


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([{"prompt_tuning": {"length": 2}}], "prompt_tuning"),
        ([{"gate": [LORA]}], "lora"),
        (["idpg"], "idpg"),
        ([SCORED], "aprompt"),
    ],
)
def test_what_acts_on_whole_rows_is_refused(
    folder: Path, data: EncodedTask, items: list[Any], named: str
) -> None:
    own = [i for i in items if i in ("idpg", SCORED) or "prompt_tuning" in i]
    rest = [i for i in items if i not in own]
    with (
        hybrid_on(folder, *rest, model=own) as hybrid,
        pytest.raises(UsageError, match=rf"acts on a row as a whole \({named}\).*without packing"),
    ):
        packed_forward(hybrid, data.train, CAUSAL)


def test_other_kinds_and_attentions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Packing is for language models .* not for classification"):
        check_packing(None, tiny_model("bert"), get_kind("classification"))
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UsageError, match=r"With flash_attention_2 .* load the model with .*'sdpa'"):
        check_packing(None, model, CAUSAL)


def test_a_family_that_mixes_texts_is_refused(
    folder: Path, data: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.masking_utils

    with hybrid_on(folder, LORA) as hybrid:
        packed_forward(hybrid, data.train, CAUSAL)
        monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda places: None)
        with pytest.raises(UsageError, match="LlamaForCausalLM gives texts that share a row other logits"):
            packed_forward(hybrid, data.train, CAUSAL)
