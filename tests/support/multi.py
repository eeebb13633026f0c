"""Hybrids in one batch against each of them alone: recipes, inputs and the comparison."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification, PreTrainedModel

from autopeft.hybrid import Hybrid, MultiHybrid, attach, attach_many
from autopeft.recipe import Recipe

from .tiny import LogitsObjective, randomise, tiny_inputs, tiny_model

LORA, PREFIX = {"lora": {"rank": 2}}, {"prefix_tuning": {"length": 3, "reparameterization": None}}
PFEIFFER = {"serial_adapter": {"bottleneck": 12}}
HOULSBY = {"serial_adapter": {"bottleneck": 4, "variant": "houlsby"}}
GATE = {"gate": [LORA, {"prefix_tuning": {"length": 2, "reparameterization": None}}, PFEIFFER]}
FISH = {"fish_mask": {"keep": "5%", "samples": 2}}
B = 2  # rows of each hybrid


def recipe(*layers: Any, model: Sequence[Any] = ()) -> Recipe:
    body: dict[str, Any] = {"name": "r", "model": list(model)}
    return Recipe.from_dict({**body, "layers": [{"attach": list(layers)}]} if layers else body)


# Hooks and weights meet on the same modules (HiWi and SAID have tests of their own).
MULTIS: dict[str, list[Recipe]] = {
    "lora+prefix, houlsby+dora, gate": [recipe(LORA, PREFIX), recipe(HOULSBY, "dora"), recipe(GATE)],
    "fish, dora+ia3+lora, pfeiffer": [recipe(model=[FISH]), recipe("dora", "ia3", LORA), recipe(PFEIFFER)],
    "prefixes of three lengths": [
        recipe({"prefix_tuning": {"length": 4, "reparameterization": 8}}),
        recipe(PREFIX, {"prefix_tuning": {"length": 2, "reparameterization": None}, "as": "second"}),
        recipe(HOULSBY),
    ],
    "chain, parallel, one method twice": [
        recipe({"chain": [PFEIFFER, {"parallel_adapter": {"bottleneck": 4}}]}),
        recipe({"parallel_adapter": {"bottleneck": 4, "sites": ["attention"]}}, "ia3"),
        recipe(LORA),
    ],
    "vera+krona, moslora+capaboost, krona beside the ffn+lora dropout": [
        recipe({"vera": {"rank": 5}}, {"krona": {"sites": ["up", "down"]}}),
        recipe("moslora", {"capaboost": {"rank": 3}}),
        recipe({"krona": {"variant": "parallel_residual"}}, "lora_dropout", LORA),
    ],
    "ssf+pfeiffer, compacter, kadaptation": [
        recipe("ssf", PFEIFFER),
        recipe({"compacter": {"bottleneck": 8}}, LORA),
        recipe({"kadaptation": {"phm_dim": 4, "scale": 8}}, PREFIX),
    ],
    "mov+lora, route, route by sequence": [
        recipe({"mov": {"experts": 3}}, LORA),
        recipe({"route": {"children": [LORA], "copies": 3, "top_k": 2}}),
        recipe({"route": {"children": [LORA, PREFIX, "ia3"], "level": "sequence"}}),
    ],
}
PROMPTS = {
    "prompts of one length": [
        recipe(model=[{"prompt_tuning": {"length": 3}}]),
        recipe(GATE, model=[{"prompt_tuning": {"length": 3}}]),
        recipe(model=[{"prompt_tuning": {"length": 1}}, {"prompt_tuning": {"length": 2}, "as": "second"}]),
    ],
    "prompts of three lengths": [
        recipe(model=[{"prompt_tuning": {"length": 3}}]),
        recipe(GATE, PREFIX),
        recipe(model=[{"prompt_tuning": {"length": 5}}]),
    ],
}
WITH_BIASES = [recipe(HOULSBY, model=["bitfit"]), recipe(LORA, model=["bitfit", FISH]), recipe(PREFIX)]
NAMES = ["bert", "gpt2", "llama", "t5"]


def inputs_of(name: str, hybrids: int = 3) -> dict[str, Tensor]:
    """B rows for each hybrid, all different, with as much padding in each slice as its number says."""
    inputs = tiny_inputs(name, batch=B * hybrids, length=7)
    if "attention_mask" in inputs:
        for i in range(hybrids):
            inputs["attention_mask"][i * B : (i + 1) * B, 7 - i :] = 0
    return inputs


def cut(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in inputs.items()}


def classifier(name: str, **kwargs: Any) -> PreTrainedModel:
    """A tiny model with a task head, where the family's tiny model has none."""
    if name != "gpt2":
        return tiny_model(name, **kwargs)
    plain = tiny_model("gpt2", **kwargs)
    plain.config.num_labels = 3
    model = GPT2ForSequenceClassification(plain.config)
    model.transformer.load_state_dict(plain.transformer.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        torch.nn.init.normal_(model.score.weight, std=0.5)
    return model.eval()


def ready(hybrid: Hybrid, name: str, seed: int) -> None:
    """Calibrated, with a head of its own and modules that act, in the model's precision."""
    hybrid.root.to(hybrid.model.dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hybrid.head_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.2)
    if hybrid.needs_prepare:
        label = {"labels": torch.tensor([seed % 2])}
        rows = [{**tiny_inputs(name, batch=1, seed=seed + n), **label} for n in range(2)]
        hybrid.prepare(rows, LogitsObjective(hybrid.model))
    randomise(hybrid.root, seed=seed)


def loss_of(logits: Tensor, seed: int) -> Tensor:
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    return (logits * weights.to(logits.dtype)).sum() + logits.sin().mean()


def gradients(hybrid: Hybrid) -> list[Tensor]:
    found = [p.grad for p in hybrid.trainable_parameters()]
    assert all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in key or isinstance(module, torch.nn.Dropout)):
                setattr(module, key, 0.0)
    return model.train()


Result = tuple[Tensor, list[Tensor]]


def alone(
    model: PreTrainedModel,
    name: str,
    recipes: Sequence[Recipe],
    inputs: dict[str, Tensor],
    rows: Sequence[slice],
) -> Iterator[Result]:
    """Logits and gradients of each recipe attached by itself, on its rows."""
    for i, (item, mine) in enumerate(zip(recipes, rows, strict=True)):
        head = copy.deepcopy(model.state_dict())
        with attach(model, item, seed=i) as hybrid:
            ready(hybrid, name, i)
            out = model(**cut(inputs, mine)).logits
            loss_of(out, i).backward()
            yield out.detach(), gradients(hybrid)
        model.load_state_dict(head)
        model.zero_grad()


def together(
    model: PreTrainedModel,
    name: str,
    recipes: Sequence[Recipe],
    inputs: dict[str, Tensor],
    rows: Sequence[slice],
) -> Iterator[Result]:
    """The same, of all recipes in one batch."""
    with attach_many(model, recipes, seeds=range(len(recipes))) as multi:
        for i, hybrid in enumerate(multi.hybrids):
            ready(hybrid, name, i)
        sizes = [r.stop - r.start for r in rows]
        out = model(**inputs, **({} if len(set(sizes)) == 1 else {"rows": sizes})).logits
        total: Any = sum(loss_of(out[mine], i) for i, mine in enumerate(rows))
        total.backward()
        yield from [(out[r].detach(), gradients(h)) for r, h in zip(rows, multi.hybrids, strict=True)]


def assert_equals_alone(
    model: PreTrainedModel,
    name: str,
    recipes: Sequence[Recipe],
    inputs: dict[str, Tensor] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    logits: float = 1e-6,
    grads: float = 1e-5,
) -> None:
    """Fail unless multi equals alone; tolerances are relative to the largest number of a tensor, as are
    those of gradients in double precision (in fp32 to the hybrid's largest gradient: sums cancel)."""
    inputs = inputs_of(name, len(recipes)) if inputs is None else inputs
    sizes = [B] * len(recipes) if sizes is None else sizes
    ends = torch.tensor(sizes).cumsum(0).tolist()
    rows = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    expected = list(alone(model, name, recipes, inputs, rows))
    got = list(together(model, name, recipes, inputs, rows))
    for i, ((a, wanted), (b, found)) in enumerate(zip(expected, got, strict=True)):
        assert_near(b, a, logits, f"logits of hybrid {i}")
        assert len(found) == len(wanted)
        largest = max(float(g.abs().max()) for g in wanted)
        floor = 1e-4 * largest if model.dtype == torch.float64 else largest
        for n, (g, h) in enumerate(zip(wanted, found, strict=True)):
            assert_near(h, g, grads, f"gradient {n} of hybrid {i}", floor=floor)


def assert_near(got: Tensor, expected: Tensor, tolerance: float, what: str, floor: float = 1e-12) -> None:
    scale = max(float(expected.abs().max()), floor)
    error = float((got - expected).abs().max()) / scale
    assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"


def checkpointed(model: PreTrainedModel, reentrant: bool) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()


def multi_of(name: str, recipes: Sequence[Recipe], **kwargs: Any) -> tuple[PreTrainedModel, MultiHybrid]:
    model = classifier(name, **kwargs)
    multi = attach_many(model, recipes, seeds=range(len(recipes)))
    for i, hybrid in enumerate(multi.hybrids):
        ready(hybrid, name, i)
    return model, multi
