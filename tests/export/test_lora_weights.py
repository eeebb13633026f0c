"""A hybrid as a LoRA: exact in plain transformers with peft, else near it, with what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.language import save_decoder, word_tokenizer, write_chats
from support.tiny import logits, randomise, snapshot, tiny_inputs, tiny_model
from transformers import PreTrainedModel

from autopeft.assets import load_model, resolve_model
from autopeft.errors import CompositionError
from autopeft.export.lora_factors import NotServable, factors_of, map_changes, weighted_factors
from autopeft.export.lora_fit import Moments, _take, _weights, exchanged, fitted, in_parts
from autopeft.export.lora_format import to_lora
from autopeft.export.lora_weights import LoRAWeights, Rows, lora_weights
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import load_task

LORA = {"lora": {"rank": 2, "sites": ["q", "down"]}}
IA3 = {"ia3": {"sites": ["k", "down"]}}
DORA = {"dora": {"rank": 2, "sites": ["o"]}}
KRONA = {"krona": {"sites": ["v"]}}
SERIAL = {"serial_adapter": {"bottleneck": 4}}
ALIGNER = {"ipa": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1}}
EXACT: dict[str, tuple[str, list[Any], list[Any]]] = {
    "bert-lora": ("bert", [LORA], []),
    "bert-side-by-side": ("bert", [LORA, {"lora": {"rank": 3, "sites": ["q", "up"]}}], []),
    "bert-dora-ia3-krona": ("bert", [LORA, IA3, DORA, KRONA], []),
    "bert-adamix": ("bert", [{"adamix": {"children": [LORA]}}, {"lora": {"rank": 1, "sites": ["q"]}}], []),
    "bert-chain": ("bert", [{"chain": [LORA, {"ia3": {"sites": ["q", "down"]}}]}], []),
    "bert-mask": ("bert", [LORA], [{"pafi": {"keep": "20%"}}]),
    "bert-bitfit": ("bert", [LORA], ["bitfit"]),
    "gpt2-fused": ("gpt2", [{"lora": {"rank": 2, "sites": ["qkv", "down"]}}, {"ia3": {"sites": ["up"]}}], []),
    "gpt2-parts-of-fused": ("gpt2", [{"lora": {"rank": 2, "sites": ["q", "v"]}}], []),
    "llama-mix": ("llama", [LORA, IA3, DORA, KRONA, {"vera": {"rank": 8, "sites": ["up"]}}], []),
    "llama-hiwi": ("llama", [LORA, {"hiwi": {"rank": 2, "sites": ["up"], "target": "weight"}}], []),
    "t5-lora": ("t5", [LORA, {"lora": {"rank": 2, "sites": ["cross_q", "cross_v"]}}], []),
}


def live(model: PreTrainedModel, layers: list[Any], whole: list[Any] | None = None) -> Hybrid:
    body: dict[str, Any] = {
        "name": "x",
        "layers": [{"attach": layers}] if layers else [],
        "model": whole or [],
    }
    hybrid = attach(model, Recipe.from_dict(body), seed=0)
    randomise(hybrid.root)
    return hybrid


@pytest.mark.parametrize("case", EXACT)
def test_changes_of_weights_are_exact_in_peft(case: str, tmp_path: Path) -> None:
    name, layers, whole = EXACT[case]
    inputs, base = tiny_inputs(name, pad=2), tiny_model(name)
    hybrid = live(tiny_model(name), layers, whole)
    expected = logits(hybrid.model, inputs, length=7)
    before = snapshot(hybrid.model)
    found = lora_weights(hybrid)
    assert found.exact
    assert found.cost is None
    to_lora(hybrid, found, tmp_path, base_model="x")
    assert all(torch.equal(before[k], v) for k, v in snapshot(hybrid.model).items())
    assert not torch.allclose(expected, logits(base, inputs, length=7), atol=1e-2)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs, length=7), expected, atol=1e-5, rtol=1e-5)


def test_ranks_are_those_of_the_change() -> None:
    found = lora_weights(live(tiny_model("llama"), [LORA, {"lora": {"rank": 3, "sites": ["q"]}}, KRONA]))
    assert {path.rpartition(".")[2]: f.rank for path, f in found.factors.items()} == {
        "q_proj": 5,
        "down_proj": 2,
        "v_proj": 16,
    }  # fmt: skip
    vera = lora_weights(live(tiny_model("llama"), [{"vera": {"rank": 3, "sites": ["up"]}}]))
    assert vera.rank == 3  # found by the decomposition


def test_factors_of_a_rounded_matrix_leave_the_rounding_out() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=generator)
    delta = torch.randn(40, 3, generator=generator) @ torch.randn(3, 30, generator=generator) / 10
    rounded = (weight + delta) - weight
    noise = float(weight.pow(2).mean().sqrt()) * torch.finfo(torch.float32).eps * (40**0.5 + 30**0.5)
    assert factors_of(rounded, noise).rank == 3
    torch.testing.assert_close(factors_of(rounded, noise).product(), delta, atol=1e-5, rtol=1e-5)


def test_weighted_factors_are_the_best_for_these_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    delta = torch.randn(9, 12, generator=generator)
    second = (x.t() @ x).double() / len(x)
    near = weighted_factors(delta, second, 9)
    torch.testing.assert_close(near.product(), delta, atol=1e-4, rtol=1e-4)

    def error(product: torch.Tensor) -> float:
        return float((x @ (product - delta).t()).pow(2).mean())

    plain = factors_of(delta, 0.0)
    for rank in (1, 3, 5):
        assert error(near.cut(rank).product()) < error(plain.cut(rank).product())


def test_least_squares_find_a_linear_change() -> None:
    generator = torch.Generator().manual_seed(0)
    x, delta = torch.randn(400, 6, generator=generator), torch.randn(5, 6, generator=generator)
    found = Moments.of(6, 5)
    for part in x.split(100):
        found.add(part, part @ delta.t(), torch.ones(100))
    assert found.weight == 400
    torch.testing.assert_close(fitted(found), delta, atol=1e-2, rtol=1e-2)


def test_one_enormous_position_does_not_decide_the_fit() -> None:
    """Decoders make the first token of a text hundreds of times as large, and it changes in another way."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 6, generator=generator)
    usual, there = torch.randn(5, 6, generator=generator), torch.randn(5, 6, generator=generator)
    base = torch.nn.Linear(6, 5, bias=False)
    with torch.no_grad():
        base.weight.zero_()
        wanted = x @ usual.t()
        wanted[:, 0] = 300 * x[:, 0] @ there.t()
    found = Moments.of(6, 5)
    base.register_forward_hook(_take(wanted, found, {"attention_mask": torch.ones(4, 50)}, None))
    assert torch.equal(base(x), wanted)
    assert found.weight < 200
    torch.testing.assert_close(fitted(found), usual, atol=0.15, rtol=0.0)


def test_a_position_counts_by_the_square_of_its_share() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert _weights(y).tolist() == [1.0, 1.0, 0.25, 1.0, 1.0]
    nothing = torch.zeros(9, 2)
    assert _weights(torch.cat([nothing, y])).tolist() == [1.0] * 9 + [1.0, 1.0, 0.25, 1.0, 1.0]
    assert _weights(nothing).tolist() == [1.0] * 9


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("decoder")
    save_decoder(folder / "model")
    task = load_task(str(write_chats(folder / "chats.jsonl", 80)), seed=0)
    encoded = {
        n: task.task_kind.encoder.encode(task.splits[n], word_tokenizer(), 64, cached=False)
        for n in task.splits
    }
    return folder / "model", Rows(encoded["train"], encoded["select"], task.metric)


def on_decoder(folder: Path, layers: list[Any]) -> Hybrid:
    from transformers import AutoModelForCausalLM

    model = load_model(resolve_model(str(folder)), AutoModelForCausalLM, {}, new_head=False)
    return live(model.eval(), layers)


def of_rows(hybrid: Hybrid, found: LoRAWeights, rows: Rows) -> tuple[torch.Tensor, ...]:
    """Logits on rows that nothing was fitted on: of the hybrid, of its LoRA, of the backbone."""
    batch = rows.measure.collate(list(range(len(rows.measure))), device=torch.device("cpu"))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        outputs = [hybrid.model(**batch).logits[real]]
        with hybrid.bare():
            base = hybrid.injection.base
            own = {f"{path}.weight": base.get_parameter(f"{path}.weight") for path in found.factors}
            new = {n: w + found.factors[n.removesuffix(".weight")].product() for n, w in own.items()}
            with exchanged(base, new):
                outputs.append(hybrid.model(**batch).logits[real])
            outputs.append(hybrid.model(**batch).logits[real])
    return tuple(outputs)


@pytest.mark.parametrize(
    "layers",
    [[SERIAL], [{"parallel_adapter": {"bottleneck": 4}}, LORA], [{"p_tuning_v2": {"length": 3}}],
     [{"linear_adapter": {"bottleneck": 4, "sites": ["up"]}}], [{"gate": [LORA, SERIAL]}],
     [{"ssf": {"sites": ["q", "attention_norm"], "outer": False}}]],
    ids=["serial", "parallel-lora", "prefix", "linear", "gate", "ssf"],
)  # fmt: skip
def test_what_is_no_change_of_a_weight_is_fitted(decoder: tuple[Path, Rows], layers: list[Any]) -> None:
    folder, rows = decoder
    hybrid = on_decoder(folder, layers)
    before = snapshot(hybrid.model)
    found = lora_weights(hybrid, rows=lambda: rows)
    assert all(torch.equal(before[k], v) for k, v in snapshot(hybrid.model).items())
    assert hybrid.attached
    assert not found.exact
    assert found.fitted
    assert found.cost is not None
    assert found.cost.before.loss is not None
    assert found.cost.after.loss is not None
    hybrid_s, lora_s, bare_s = of_rows(hybrid, found, rows)
    # It comes nearer to the hybrid than the backbone is, though a prefix is anything but linear.
    assert (lora_s - hybrid_s).pow(2).mean() < 0.6 * (bare_s - hybrid_s).pow(2).mean()


@pytest.mark.parametrize(
    "layers",
    [[SERIAL], [{"gate": [LORA, SERIAL]}], [{"lora": {"rank": 4, "sites": ["down"]}}, SERIAL]],
    ids=["serial", "gate", "lora-on-the-same-map"],
)
def test_a_second_fit_to_what_the_first_feeds_its_maps_comes_nearer(
    decoder: tuple[Path, Rows], layers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = decoder
    hybrid = on_decoder(folder, layers)

    def error() -> float:
        hybrid_s, lora_s, _ = of_rows(hybrid, lora_weights(hybrid, 32, lambda: rows), rows)
        return float((lora_s - hybrid_s).pow(2).mean())

    both = error()
    monkeypatch.setattr("autopeft.export.lora_fit._BYTES", 1)
    changes = map_changes(hybrid)
    assert list(in_parts(hybrid, changes, changes.paths())) == [[path] for path in changes.paths()]
    assert error() == pytest.approx(both, rel=1e-3), "the same, map by map"
    monkeypatch.setattr("autopeft.export.lora_weights.add_moments", lambda *ignored: None)
    assert both < error()


def test_the_loss_told_is_that_of_the_file(decoder: tuple[Path, Rows], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from autopeft.training.scoring import score_by_rows

    folder, rows = decoder
    hybrid = on_decoder(folder, [SERIAL, LORA])
    found = lora_weights(hybrid, 4, lambda: rows)
    assert found.cost is not None
    assert found.rank == 4
    to_lora(hybrid, found, tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    again = score_by_rows(loaded.base_model.model, rows.measure, rows.metric)
    assert again.loss == pytest.approx(found.cost.after.loss, abs=1e-4)


def test_what_is_exact_stays_exact_beside_what_is_fitted(decoder: tuple[Path, Rows]) -> None:
    folder, rows = decoder
    hybrid = on_decoder(folder, [LORA, SERIAL])
    found = lora_weights(hybrid, 4, lambda: rows)
    q = "layers.0.self_attn.q_proj"
    torch.testing.assert_close(
        found.factors[q].product(), map_changes(hybrid).deltas[q], atol=1e-5, rtol=1e-4
    )
    assert set(found.fitted) == {f"layers.{i}.mlp.down_proj" for i in range(3)}


def test_the_smallest_rank_that_costs_little_is_taken(decoder: tuple[Path, Rows]) -> None:
    folder, rows = decoder
    told: list[str] = []
    found = lora_weights(on_decoder(folder, [SERIAL]), rows=lambda: replace(rows, told=told.append))
    assert found.cost is not None
    # On a large model each of these sentences is minutes after the one before.
    first, hybrid, fit, *ranks = told
    assert fit.startswith("A first fit is there")
    assert f"fitted on {len(rows.fit)} rows of train" in first
    assert f"measured on {len(rows.measure)} rows of select" in first
    assert (
        hybrid == f"The hybrid: likelihood {found.cost.before.score:.4f}, loss {found.cost.before.loss:.4f}."
    )
    assert len(ranks) == len(found.cost.losses)
    for line, rank in zip(ranks, (32, *sorted(r for r in found.cost.losses if r != 32)), strict=True):
        assert line.startswith(f"A LoRA of rank {rank}: likelihood ")
        assert line.endswith(f", loss {found.cost.losses[rank]:.4f}.")
    least = min(
        (r for r, loss in found.cost.losses.items() if loss <= 1.01 * found.cost.losses[32]), default=None
    )
    assert found.cut == least
    assert found.rank <= found.cut


def test_a_full_rank_change_is_cut_where_a_rank_is_given(decoder: tuple[Path, Rows]) -> None:
    folder, rows = decoder
    hybrid = on_decoder(folder, [{"ia3": {"sites": ["k", "v", "down"]}}])
    assert lora_weights(hybrid).exact
    few, more = (lora_weights(hybrid, rank, lambda: rows) for rank in (2, 12))
    assert (few.rank, more.rank) == (2, 12)
    assert not few.fitted
    errors = []
    for found in (few, more):
        hybrid_s, lora_s, _ = of_rows(hybrid, found, rows)
        errors.append(float((lora_s - hybrid_s).pow(2).mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("name", "layers", "whole", "error", "says"),
    [
        ("llama", [], [{"prompt_tuning": {"length": 4}}], CompositionError, "prompt_tuning acts at decoder"),
        ("llama", [LORA], [ALIGNER], CompositionError, "ipa acts on logits, and no tensor of the backbone"),
        ("llama", [SERIAL], [], NotServable, r"Serial_adapter at decoder\.0\.ffn is no change of a weight"),
        ("llama", [{"lora_dropout": {"rank": 2}}], [], NotServable, "predicts with several models"),
        ("bert", ["ssf"], [], CompositionError, r"acts at encoder\.0\.attention_norm"),
        ("llama", ["ssf"], [], NotServable, r"changes norm\.weight, which belongs to no linear map"),
        ("bert", [], ["bitfit"], NotServable, "changes the weight of no linear map"),
    ],
)
def test_what_a_lora_cannot_hold_is_refused(
    name: str, layers: list[Any], whole: list[Any], error: type[Exception], says: str
) -> None:
    hybrid = live(tiny_model(name), layers, whole)
    with pytest.raises(error, match=says):
        lora_weights(hybrid)
    assert hybrid.attached


def test_where_biases_cannot_be_held_they_are_fitted() -> None:
    hybrid = live(tiny_model("gpt2"), [LORA], ["bitfit"])
    with pytest.raises(NotServable, match="belongs to no linear map"):
        lora_weights(hybrid, biases=False)  # those of norms
    some = live(tiny_model("gpt2"), [], [{"bitfit": {"terms": ["up"]}}])
    with pytest.raises(NotServable, match=r"A bias of h\.0\.mlp\.c_fc is no change of a weight"):
        lora_weights(some, biases=False)
