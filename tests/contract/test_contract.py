"""What holds for every method on every architecture; a row in `support.cases` gives a method all of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest
import torch
from contract.pairs import (
    CASES,
    LEARNING,
    NOT_REENTRANT,
    OF_TEXTS,
    ON_DECODERS,
    PAIRS,
    PARAMETERLESS,
    REFUSED,
    SELECTIVE,
    TRAINED,
    USUAL,
    drawn,
    is_first_way,
    is_spared,
)
from support import families, on_logits, on_scores
from support.cases import attach_case
from support.entries import choose_by_lot
from support.families import FAMILIES
from support.selection import selected
from support.steps import NO_STEP
from support.tiny import (
    LogitsObjective,
    logits,
    randomise,
    snapshot,
    tiny_inputs,
    tiny_model,
)
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.hybrid.caching import generates_from_cache
from autopeft.hybrid.events import fire, loss_terms
from autopeft.hybrid.modules import deployed_form
from autopeft.method import (
    Call,
    Context,
    Reserved,
    decay_targets,
    get_method,
    method_names,
    part_names,
    parts_of,
    reserved_rows,
)
from autopeft.method.narrowing import named_so
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import acts_by_task
from autopeft.training.shared_weights import linear_in_of

COMPOSED = ("gate", "chain", "route", "route-sequence", "fuse", "fuse-loras", "mole")
LENGTH = 7
# Parameters without a gradient where the token that a head reads is not among those that a router chose, and
# those that terms of the loss alone read; a softmax does not see what is added to all of its scores.
AT_TIMES: dict[str, tuple[str, ...]] = {
    "coda": (".router",),
    "fuse": (".key.bias",),
    "fuse-loras": (".key.bias",),
    "infoprompt": tuple(f"{n}.{p}" for n in ("log_std", "critic") for p in ("weight", "bias")),
}


@pytest.fixture(scope="module", autouse=True)
def _methods_of_tests() -> Iterator[None]:
    with on_logits.registered(), on_scores.registered():
        yield


def _labelled(name: str, n: int) -> list[dict[str, Tensor]]:
    rows = []
    for seed in range(n):
        rows.append({**tiny_inputs(name, batch=1, seed=seed), "labels": torch.tensor([seed % 2])})
    return rows


def attached(case: str, name: str, **kwargs: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name, **kwargs)
    hybrid = attach_case(model, case)
    if hybrid.needs_prepare:
        hybrid.prepare(_labelled(name, 4), LogitsObjective(model))
    choose_by_lot(hybrid)
    return model, hybrid


def test_every_method_has_a_row() -> None:
    used = {key for _, item in CASES.values() for key in _names(item)}
    placed = {n for n in method_names() if get_method(n).traits.level != "training"}
    assert placed - {n for n in placed if acts_by_task(n)} <= used  # see test_acting_by_task.py


def _names(item: Any) -> set[str]:
    if isinstance(item, str):
        return {item}
    bodies = [v.get("children", v) if isinstance(v, dict) else v for v in item.values()]
    return set(item) | {n for v in bodies if isinstance(v, list) for c in v for n in _names(c)}


@pytest.mark.parametrize(("case", "name"), drawn(PAIRS))
def test_identity_at_init(case: str, name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name, pad=2)
    before = logits(model, inputs, length=LENGTH)
    hybrid = attach_case(model, case)
    after = logits(model, inputs, length=LENGTH)
    if all(e.traits.identity and _claims_identity(e.method) for e in hybrid.graph.entries.values()):
        torch.testing.assert_close(after, before, atol=2e-6, rtol=1e-6)
    else:
        assert not torch.equal(after, before)


def _claims_identity(method: Any) -> bool:
    return bool(getattr(method, "identity", True))


@pytest.mark.parametrize(("case", "name"), drawn(LEARNING, one=True))
def test_every_parameter_gets_a_gradient_and_the_count_is_real(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    out = logits(model, tiny_inputs(name, pad=2), length=LENGTH)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    held = [(n, p) for n, p in hybrid.root.named_parameters() if p.numel()]  # some is nothing, as settled
    dead = [n for n, p in held if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in dead if case not in AT_TIMES or not n.endswith(AT_TIMES[case])] == []
    assert hybrid.counts().trained == sum(p.numel() for p in hybrid.root.parameters())
    base = {id(p) for p in model.parameters()} - {id(p) for p in hybrid.trainable_parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) in base)


@pytest.mark.parametrize(("case", "name"), drawn(TRAINED, one=True))
def test_backbone_is_bit_identical_after_training(case: str, name: str) -> None:
    reference = tiny_model(name)
    inputs = tiny_inputs(name, pad=2)
    expected, before = logits(reference, inputs), snapshot(reference)
    model, hybrid = attached(case, name)
    head = {n for n, p in model.named_parameters() if any(p is q for q in hybrid.head_parameters())}
    optimizer = torch.optim.AdamW(hybrid.root.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        logits(model, inputs).pow(2).sum().backward()
        optimizer.step()
    trained = logits(model, inputs)
    assert not torch.allclose(trained, expected)
    assert [
        k
        for k, v in model.state_dict().items()
        if not k.startswith("autopeft.") and not torch.equal(v, before[k])
    ] == []
    hybrid.detach()
    assert model.state_dict().keys() == before.keys()
    assert head <= set(before)
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize(("case", "name"), drawn(PAIRS, one=True))
def test_save_and_load_round_trip(case: str, name: str, tmp_path: Any) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    with torch.no_grad():
        for parameter in hybrid.head_parameters():
            parameter.add_(0.1)
    inputs = tiny_inputs(name, pad=2)
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    assert hybrid.counts().deployed == sum(
        v.numel() for k, v in _saved(tmp_path).items() if not k.startswith("head.") and not _is_storage(k)
    )
    fresh = tiny_model(name)
    load(fresh, tmp_path)
    torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-6, rtol=1e-6)


def _is_storage(key: str) -> bool:
    """What is saved beside parameters: which entries a mask chose, how uncertain parameters are, and by what
    a task is told from others."""
    return key.endswith(("index", ".task_prompt")) or ".posterior_" in key


@pytest.mark.parametrize("case", [c for c, a in PAIRS if a == "bert"])
def test_what_has_other_parameters_once_it_is_deployed_says_so(case: str) -> None:
    """A wrap that alters values at inference too refuses what says so (`Traits.remade`)."""
    _, hybrid = attached(case, "bert")
    for name, entry in hybrid.graph.entries.items():
        traits = entry.method.traits
        if entry.ways & {"kv", "prompt"} or traits.phased or traits.data_dependent:
            continue  # refused for that
        trained, deployed = (
            {n: p.shape for n, p in module.named_parameters()}
            for module in (hybrid.modules[name], deployed_form(hybrid.modules[name]))
        )
        assert (trained != deployed) == traits.remade


def _data_dependent(case: str) -> bool:
    placed = _names(CASES[case][1]) & set(method_names())
    return any(get_method(n).traits.data_dependent for n in placed)


@pytest.mark.parametrize(
    ("case", "name"), [(c, a) for c, a in PAIRS if a in ("bert", "t5") and _data_dependent(c)]
)
def test_what_training_leaves_fits_the_closed_form_and_is_saved(case: str, name: str, tmp_path: Any) -> None:
    """Where the deployed size depends on the data, the closed form is an upper bound for what is left."""
    model, hybrid = attached(case, name)
    inputs, modules = tiny_inputs(name, pad=2), list(hybrid.modules.values())
    hybrid.root.train()
    optimizer = hybrid.optimizer()
    for step in range(10):
        fire("before_step", modules, step, 10)
        optimizer.zero_grad()
        loss, terms = logits(model, inputs).pow(2).mean(), loss_terms(modules, NO_STEP)
        (loss if terms is None else loss + terms).backward()
        fire("after_backward", modules, step, 10)
        optimizer.step()
        fire("after_step", modules, step, 10)
    fire("finish", modules)
    hybrid.root.eval()
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    saved = _saved(tmp_path)
    held = sum(v.numel() for k, v in saved.items() if not (k.startswith("head.") or _is_storage(k)))
    assert held == hybrid.counts().deployed <= count(hybrid.graph, hybrid.spec).deployed
    fresh = tiny_model(name)
    again = load(fresh, tmp_path)
    assert again.counts().deployed == held
    torch.testing.assert_close(logits(fresh, inputs), expected, atol=1e-5, rtol=1e-5)


def _saved(folder: Any) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("case", "name", "attention"),
    selected(
        [
            pytest.param(
                *(c, a, attention),
                marks=pytest.mark.slow
                if is_spared(c, a) or (i and not (a in USUAL and is_first_way(c)))
                else (),
            )
            for c, a in PAIRS
            for i, attention in enumerate(FAMILIES[a].attentions)
            if FAMILIES[a].modality == "text"
        ]
    ),
)
def test_padding_does_not_change_results(case: str, name: str, attention: str) -> None:
    model, hybrid = attached(case, name, attention=attention)
    randomise(hybrid.root)
    bare = logits(model, tiny_inputs(name), length=LENGTH)
    padded = logits(model, tiny_inputs(name, pad=5), length=LENGTH)
    torch.testing.assert_close(padded, bare, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("case", "name"), drawn(ON_DECODERS, one=True))
def test_generate_with_and_without_cache(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    inputs = {k: v for k, v in tiny_inputs(name, length=5).items() if k != "decoder_input_ids"}
    if name not in families.ENCODER_DECODERS:  # left padding, as decoders want it
        inputs["attention_mask"][0, :2] = 0
        inputs["input_ids"][0, :2] = 0
    kwargs: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    assert generates_from_cache(model, 3)
    cached = model.generate(**inputs, use_cache=True, **kwargs)
    plain = model.generate(**inputs, use_cache=False, **kwargs)
    assert torch.equal(cached, plain)
    beams = model.generate(**inputs, use_cache=True, num_beams=2, **kwargs)
    assert torch.equal(beams, model.generate(**inputs, use_cache=False, num_beams=2, **kwargs))


def _reenters(case: str) -> bool:
    """Which of the two checkpoints a case has by default: half of the cases each."""
    return crc32(case.encode()) % 2 == 1


@pytest.mark.parametrize(
    ("case", "name", "reentrant"),
    [
        pytest.param(
            *pair.values, again, marks=pair.marks if again == _reenters(pair.values[0]) else pytest.mark.slow
        )
        for pair in drawn((p for p in LEARNING if FAMILIES[p[1]].checkpoints), one=True)
        for again in (False, True)
        if not (again and pair.values in NOT_REENTRANT)
    ],
)
def test_gradient_checkpointing_gives_the_same_gradients(case: str, name: str, reentrant: bool) -> None:
    assert_checkpointing_changes_nothing(*attached(case, name), name, reentrant)


def assert_checkpointing_changes_nothing(
    model: PreTrainedModel, hybrid: Hybrid, name: str, reentrant: bool
) -> None:
    randomise(hybrid.root)
    inputs = tiny_inputs(name, pad=2)
    _zero_dropout(model)
    plain = _gradients(model, hybrid, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    again = _gradients(model, hybrid, inputs)
    for key, value in plain.items():
        # Under checkpointing decoders keep no cache: another order of sums, which a large scale amplifies. A
        # context that is lost or another forward's changes gradients by their own size.
        torch.testing.assert_close(again[key], value, atol=2e-4, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "vit"])
def test_a_gate_at_a_norm_before_the_attention_knows_its_forward_when_it_is_recomputed(
    name: str, reentrant: bool
) -> None:
    ssf = {"ssf": {"sites": ["attention_norm"], "outer": False}}
    gate = {"gate": [ssf, {"lora": {"sites": ["o"]}}]}
    model = tiny_model(name)
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [gate]}]}), seed=0)
    assert_checkpointing_changes_nothing(model, hybrid, name, reentrant)


# Rows that are put in front stay there at zero; of a choice that is not renormalised a share is missing.
WITHOUT_IDENTITY = (
    *("prefix", "prefix-mlp", "p-tuning-v2", "p-tuning-v2-mlp", "apt", "apt-layer", "aprompt"),
    *("prompt", "p-tuning", "p-tuning-slots", "idpg", "idpg-sentence", "infoprompt"),
    *("spot", "tpt", "xprompt", "deep-prompt"),
    *("lpt", "lpt-appg", "lpt-table", *SELECTIVE, "prefix-propagation", "smop", "smop-two", "dept"),
    *("gate", "route-sequence", "mov-top", "weight-drop", "coda", *PARAMETERLESS),
)


@pytest.mark.parametrize(("case", "name"), drawn(p for p in PAIRS if p[1] in USUAL))
def test_where_everything_has_decayed_the_backbone_acts_as_before(case: str, name: str) -> None:
    """What multiplies the backbone's own values must say so by `decays`, or decay would take these away."""
    inputs = tiny_inputs(name, pad=2)
    before = logits(tiny_model(name), inputs, length=LENGTH)
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    targets = decay_targets(hybrid.modules.values())
    with torch.no_grad():
        for parameter in hybrid.root.parameters():
            target = targets.get(id(parameter), 0.0)
            if target is not None:
                parameter.copy_(torch.as_tensor(target).expand_as(parameter))
    same = torch.allclose(logits(model, inputs, length=LENGTH), before, atol=2e-6, rtol=1e-6)
    assert same == (case not in WITHOUT_IDENTITY)


@pytest.mark.parametrize("case", [c for c in CASES if (c, "bert") in PAIRS])
def test_parts_are_declared_and_do_not_overlap(case: str) -> None:
    _, hybrid = attached(case, "bert")
    for name, entry in hybrid.graph.entries.items():
        module = hybrid.modules[name]
        parts = parts_of(module)
        held = [id(p) for parameters in parts.values() for p in parameters]
        assert len(held) == len(set(held)), name
        assert set(held) <= {id(p) for p in module.parameters()}, name
        assert hasattr(module, "parts") == hasattr(entry.method, "part_names"), name
        assert set(parts) == set(part_names(entry.method) or ()), name
        assert set(parts) <= set(part_names(type(entry.method)) or ()), name
        for part, parameters in parts.items() if hasattr(entry.method, "part_size") else ():
            sizes = [entry.method.part_size(site, part) for site in entry.sites]
            assert None in sizes or sum(sizes) == sum(p.numel() for p in parameters), (name, part)


@pytest.mark.parametrize("name", method_names())
def test_phases_are_declared(name: str) -> None:
    """What trains in phases says so beforehand, so that two of them are refused before anything is built."""
    cases = [c for c in CASES if name in str(CASES[c])]
    for case in cases:
        graph = attached(case, "bert")[1].graph if (case, "bert") in PAIRS else None
        if graph is None:
            continue
        for entry in graph.entries.values():
            phased = hasattr(entry.method.build(entry.sites, graph.spec), "phases")
            assert entry.traits.phased == phased, entry.name


def _zero_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)
    model.train()


def _gradients(model: PreTrainedModel, hybrid: Hybrid, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two forwards are open at once, the second with other data: state shared between them would show."""
    torch.manual_seed(0)
    hybrid.root.zero_grad()
    other = {k: v.clone() for k, v in inputs.items()}
    if "attention_mask" in other:
        other["attention_mask"][:, 4:] = 0
    first, second = model(**inputs).logits, model(**other).logits
    (first.pow(2).mean() + 0.5 * second.sin().mean()).backward()
    return {n: p.grad.clone() for n, p in hybrid.root.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("case", "name"), drawn(p for p in TRAINED if p[1] in USUAL))
def test_deepcopy_is_independent(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    inputs = tiny_inputs(name, pad=2)
    expected = logits(model, inputs)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(logits(copied, inputs), expected, atol=1e-6, rtol=1e-6)
    randomise(hybrid.root, std=0.3, seed=9)
    torch.testing.assert_close(logits(copied, inputs), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(logits(model, inputs), expected)


@pytest.mark.parametrize(("case", "name"), drawn((p for p in PAIRS if p[0] not in COMPOSED), one=True))
def test_merge_equals_unmerged(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    randomise(hybrid.root)
    inputs = tiny_inputs(name, pad=2)
    expected = logits(model, inputs, length=LENGTH)
    if not all(e.traits.mergeable for e in hybrid.graph.entries.values()):
        with pytest.raises(UsageError, match="cannot be folded"):
            hybrid.merge()
        torch.testing.assert_close(logits(model, inputs, length=LENGTH), expected, atol=1e-6, rtol=1e-6)
        return
    merged = hybrid.merge()
    assert not any(k.startswith("autopeft.") for k in merged.state_dict())
    # Random values of a KAdaptation of full rank make weights several times as large, and sums less exact.
    atol = 3e-4 if case == "kadaptation-full" else 3e-5
    torch.testing.assert_close(logits(merged, inputs, length=LENGTH), expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(("case", "name"), sorted(REFUSED))
def test_refused_with_a_reason(case: str, name: str) -> None:
    model = tiny_model(name)
    before = set(model.state_dict())
    with pytest.raises(UsageError, match=REFUSED[case, name]):
        attach_case(model, case)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("case", ["gate", "route-sequence", "mole", *OF_TEXTS])
def test_what_pools_the_sequence_is_refused_in_cached_generation(case: str) -> None:
    model, _ = attached(case, "llama")
    assert not generates_from_cache(model, 3)
    with pytest.raises(UsageError, match="use_cache=False"):
        model.generate(**tiny_inputs("llama"), max_new_tokens=3, use_cache=True)


@pytest.mark.parametrize(("case", "name"), drawn(PAIRS))
def test_what_says_that_it_acts_position_by_position_does(case: str, name: str) -> None:
    """The last layer is computed for one position alone where everything in it is `rowwise`."""
    _, hybrid = attached(case, name)
    randomise(hybrid.root)
    hybrid.root.eval()
    generator = torch.Generator().manual_seed(4)
    for entry in hybrid.graph.entries.values():
        if not (entry.traits.rowwise and "hook" in entry.ways):
            continue
        module: Any = hybrid.modules[entry.name]
        rows = reserved_rows(module, entry.sites) if "prompt" in entry.ways else 0
        reserved = Reserved(rows, 5 - rows, owners=((entry.name, rows),))
        context = Context(mask=torch.ones(2, 5), reserved=reserved)
        for site in [s for s in entry.sites if module.side(s) is not None][:4]:
            output = module.side(site) == "output"
            x = torch.randn(2, 5, site.in_features, generator=generator)
            y = torch.randn(2, 5, site.out_features, generator=generator) if output else x
            call = Call(context, residual=x, norm=torch.nn.Identity(), owner=entry.name)
            before = module.delta(site, x, y, call)
            x, y = x.clone(), y.clone()
            x[:, 3] += 1.0
            y[:, 3] += 1.0
            call = Call(context, residual=x, norm=torch.nn.Identity(), owner=entry.name)
            after = module.delta(site, x, y if output else x, call)
            others = [0, 1, 2, 4]
            torch.testing.assert_close(after[:, others], before[:, others], atol=1e-6, rtol=1e-5)


def _gated() -> list[tuple[str, str]]:
    """A family for each case of a method that says what it is linear in."""
    told = {n for n in method_names() if hasattr(get_method(n), "linear_in")}
    found = {case: name for case, name in reversed(PAIRS) if _names(CASES[case][1]) & told}
    return sorted(found.items())


@pytest.mark.parametrize(("case", "name"), _gated())
def test_what_is_added_is_linear_in_what_says_so(case: str, name: str) -> None:
    """A gate multiplies what is added by multiplying these tensors, counted from where they add nothing."""
    _, hybrid = attached(case, name)
    randomise(hybrid.root)
    hybrid.root.eval()
    generator = torch.Generator().manual_seed(4)
    linear = linear_in_of(hybrid.recipe)
    for entry in hybrid.graph.entries.values():
        module: Any = hybrid.modules[entry.name]
        factors = [
            (parameter, neutral)
            for key, parameter in module.named_parameters()
            for own, neutral in linear[entry.name].items()
            if named_so(own, key)
        ]
        assert factors or not linear[entry.name]
        for site in [s for s in entry.sites if factors and module.side(s) is not None][:4]:
            x = torch.randn(2, 5, site.in_features, generator=generator)
            y = torch.randn(2, 5, site.out_features, generator=generator)
            y = y if module.side(site) == "output" else x
            call = Call(
                Context(mask=torch.ones(2, 5)), residual=x, norm=torch.nn.Identity(), owner=entry.name
            )
            whole = module.delta(site, x, y, call)
            values = [parameter.detach().clone() for parameter, _ in factors]
            with torch.no_grad():
                for (parameter, neutral), value in zip(factors, values, strict=True):
                    parameter.copy_(neutral + 0.25 * (value - neutral))
                gated = module.delta(site, x, y, call)
                for (parameter, _), value in zip(factors, values, strict=True):
                    parameter.copy_(value)
            torch.testing.assert_close(gated, 0.25 * whole, atol=1e-6, rtol=1e-4)
            assert float(whole.detach().abs().max()) > 0
