"""What holds for every method where label words of a language model stand in the place of a head: on a masked
language model and on a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contract.pairs import TRAINED, is_spared
from contract.test_contract import AT_TIMES
from support import on_logits, on_scores
from support.cases import recipe_of
from support.entries import choose_by_lot
from support.tiny import LogitsObjective, randomise, snapshot, tiny_config, tiny_inputs, tiny_model
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedModel

from autopeft.hybrid import Hybrid, attach, load
from autopeft.tasks.kinds.cloze import LABEL_WORDS, READ_AT
from autopeft.tasks.kinds.verbalised import verbalised
from autopeft.tasks.kinds.verbaliser import LabelWords, Template
from autopeft.training.forward import Forward
from autopeft.training.losses import logits_of

KINDS = {
    "bert": verbalised(LabelWords(("a", "b")), Template.parse("{text} {mask}")),
    "llama": verbalised(LabelWords(("a", "b")), Template.parse("{text}")),
}
AT = {"bert": [2, 4], "llama": [6, 6]}
ROWS = [
    pytest.param(case, name, marks=pytest.mark.slow if is_spared(case, "gpt2") else ())
    for case, name in TRAINED
    if name in KINDS
]


@pytest.fixture(scope="module", autouse=True)
def _methods_of_tests() -> Iterator[None]:
    with on_logits.registered(), on_scores.registered():
        yield


def language_model(name: str) -> PreTrainedModel:
    if name == "llama":
        return tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(tiny_config("bert"))
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2 or "bias" in key:
                torch.nn.init.normal_(parameter, std=0.15)
        model.tie_weights()
    return model.eval()


def batch_of(name: str, pad: int = 2) -> dict[str, Tensor]:
    words = torch.tensor([[7, 11], [7, 11]])
    return {**tiny_inputs(name, pad=pad), READ_AT: torch.tensor(AT[name]), LABEL_WORDS: words}


def attached(case: str, name: str) -> tuple[PreTrainedModel, Hybrid]:
    model = language_model(name)
    hybrid = attach(model, recipe_of(case), seed=0)
    if hybrid.needs_prepare:
        rows: list[dict[str, Any]] = [
            {**tiny_inputs(name, batch=1, seed=seed), "labels": torch.tensor([seed % 2])} for seed in range(4)
        ]
        hybrid.prepare(rows, _Objective(model, name))
    choose_by_lot(hybrid)
    return model, hybrid


class _Objective(LogitsObjective):
    """The loss of the label words."""

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        super().__init__(model)
        self.name = name

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        told = {key: value[:1] for key, value in batch_of(self.name).items() if key in (READ_AT, LABEL_WORDS)}
        return words_of(self.model, self.name, {**batch, **told})


def words_of(model: PreTrainedModel, name: str, batch: dict[str, Tensor]) -> Tensor:
    return Forward(model, kind=KINDS[name])(batch)


@pytest.mark.parametrize(("case", "name"), ROWS)
def test_the_label_words_logits_are_those_of_the_whole_model(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    batch, kind = batch_of(name), KINDS[name]
    whole = logits_of(model, batch)
    assert whole.shape[:2] == batch["input_ids"].shape, "rows of prompts are gone"
    rows = torch.arange(2)[:, None]
    wanted = whole[rows, batch[READ_AT][:, None], batch[LABEL_WORDS]]
    assert torch.equal(logits_of(model, batch, kind), wanted)
    torch.testing.assert_close(words_of(model, name, batch), wanted, atol=1e-6, rtol=1e-5)
    assert wanted.shape == (2, 2)


@pytest.mark.parametrize(("case", "name"), ROWS)
def test_every_parameter_gets_a_gradient_and_the_backbone_keeps_its_values(case: str, name: str) -> None:
    before = snapshot(language_model(name))
    model, hybrid = attached(case, name)
    assert hybrid.counts().head == 0
    assert hybrid.head_parameters() == []
    randomise(hybrid.root)
    (words_of(model, name, batch_of(name)) * torch.tensor([[1.0, -2.0], [3.0, 0.5]])).sum().backward()
    held = [(n, p) for n, p in hybrid.root.named_parameters() if p.numel()]
    dead = [n for n, p in held if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in dead if case not in AT_TIMES or not n.endswith(AT_TIMES[case])] == []
    assert hybrid.counts().trained == sum(p.numel() for p in hybrid.root.parameters())
    torch.optim.AdamW(hybrid.root.parameters(), lr=1e-2).step()
    state = model.state_dict()
    changed = [k for k, v in state.items() if not k.startswith("autopeft.") and not torch.equal(v, before[k])]
    assert changed == []


@pytest.mark.parametrize(("case", "name"), ROWS)
def test_save_and_load_round_trip(case: str, name: str, tmp_path: Any) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    expected = words_of(model, name, batch_of(name))
    hybrid.save(tmp_path)
    fresh = language_model(name)
    load(fresh, tmp_path)
    torch.testing.assert_close(words_of(fresh, name, batch_of(name)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("case", "name"), ROWS)
def test_padding_does_not_change_results(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    bare, padded = (words_of(model, name, batch_of(name, pad)) for pad in (0, 5))
    torch.testing.assert_close(padded, bare, atol=5e-5, rtol=1e-4)
