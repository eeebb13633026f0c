"""SPT: the budget is spent as a brute-force count of the first τ entries has it, and on what is there."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from autopeft.methods.selective.structured.sensitivity_tuning import SensitivityTuningModule
from pydantic import ValidationError
from support.dropped import assert_dropped
from support.tiny import LogitsObjective, logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import configured, toy_spec
from support.training import encoded_task, snapshot, tiny_bert
from torch import Tensor

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import AutoPEFTError, DataError, MethodError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.injection.depth import trunk_depths
from autopeft.recipe import Recipe
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=4, batch_size=16, device="cpu")
SMALL: dict[str, Any] = {"rank": 2, "batches": 2, "batch_size": 3}
MATRICES = {"q", "k", "v", "o", "qkv", "cross_q", "cross_k", "cross_v", "cross_o", "up", "gate_proj", "down"}


def recipe(**config: Any) -> Recipe:
    body = {"name": "s", "model": [{"sensitivity_tuning": {**SMALL, **config}}]}
    return Recipe.from_dict({**body, "training": {"learning_rate": 1e-2, "weight_decay": 0.1}})


def module_of(hybrid: Hybrid) -> SensitivityTuningModule:
    found = hybrid.modules["sensitivity_tuning"]
    assert isinstance(found, SensitivityTuningModule)
    return found


def batches(name: str, rows: int, n: int = 4) -> list[dict[str, Tensor]]:
    labels = torch.arange(rows) % 2
    return [{**tiny_inputs(name, batch=rows, seed=i), "labels": labels} for i in range(n)]


def prepared(name: str, **config: Any) -> Hybrid:
    model = tiny_model(name)
    _no_dropout(model)
    hybrid = attach(model, recipe(**config), seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hybrid.prepare(lambda rows: batches(name, rows or 1), LogitsObjective(model))
    return hybrid


def _no_dropout(model: torch.nn.Module) -> None:
    """So that a brute-force pass sees what calibration saw."""
    for module in model.modules():
        for key, value in vars(module).items():
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def sensitivity(name: str, size: int = 3, n: int = 2) -> dict[str, Tensor]:
    """Σ (gradient of a batch's mean loss)² of each tensor of the base model."""
    model = tiny_model(name)
    _no_dropout(model)
    base = dict(model.base_model.named_parameters())
    found = {n: torch.zeros_like(p) for n, p in base.items()}
    for batch in islice(batches(name, size), n):
        model.zero_grad()
        LogitsObjective(model)(batch).backward()
        for key, p in base.items():
            if p.grad is not None:
                found[key] += p.grad**2
    return found


def ranked(hybrid: Hybrid) -> dict[str, int]:
    """The ranked tensors by name: what stands for each, by the rules of the paper."""
    c, found = hybrid.graph.entries["sensitivity_tuning"].method.config, {}
    for t in hybrid.spec.tensors:
        names = t.maps if t.layer is not None and t.role == "weight" else ()
        sites = [s for n in names if n in MATRICES and (s := hybrid.spec.find(str(t.stack), t.layer, n))]
        if sites:
            r, inputs, out = c.rank, sites[0].in_features, sum(s.out_features for s in sites)
            adapters = 2 * r * out + len(sites) * r + out
            found[t.name] = adapters if c.module == "adapter" else r * (len(sites) * inputs + out)
        elif (t.role in ("norm_weight", "norm_bias") and t.site != "embeddings") or (
            t.role == "bias" and t.layer is not None
        ):
            found[t.name] = t.size
    return found


def brute(hybrid: Hybrid, scores: dict[str, Tensor], budget: int) -> tuple[dict[str, int], set[str], int]:
    """Of all τ the last that the budget suffices for: entries of each tensor, what is whole, the total."""
    c, sizes = hybrid.graph.entries["sensitivity_tuning"].method.config, ranked(hybrid)
    flat = torch.cat([scores[n].flatten() for n in sizes])
    order = torch.sort(flat, descending=True, stable=True).indices.tolist()
    owner = [n for n in sizes for _ in range(scores[n].numel())]
    counts, whole, total = dict.fromkeys(sizes, 0), set[str](), 0
    best: tuple[dict[str, int], set[str], int] = (dict(counts), set(), 0)
    for i in order:
        name = owner[i]
        counts[name] += 1
        share = c.alpha if scores[name].ndim > 1 else c.beta
        if name not in whole:
            if counts[name] >= sizes[name] / share:
                whole.add(name)
                total += sizes[name] - (counts[name] - 1)
            else:
                total += 1
        if total > budget:
            break
        best = (dict(counts), set(whole), total)
    return best


def settled(hybrid: Hybrid) -> tuple[dict[str, int], set[str]]:
    """Single entries of each tensor, and the tensors with a pair, an adapter or a whole vector."""
    module, spec = module_of(hybrid), hybrid.spec
    entries, whole = {}, set()
    for t in spec.tensors:
        keys = [key for n in t.maps if (key := f"{t.stack}-{t.layer}-{n}") in module.at]
        if t.role == "weight" and keys:
            children: list[Any] = [module.at[key] for key in keys]
            assert len({child.there for child in children}) == 1
            if children[0].there:
                whole.add(t.name)
        if t.name in module.entries.offsets:
            lo, hi = module.entries.spans()[t.name]
            entries[t.name] = hi - lo
    return entries, whole


@pytest.mark.parametrize("keep", ["0.2%", "2%", "9%", "40%"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_the_budget_is_spent_as_by_brute_force(name: str, keep: str) -> None:
    _spent_as_by_brute_force(name, keep=keep)


@pytest.mark.parametrize(
    "options", [{"module": "adapter"}, {"alpha": 1.0, "beta": 1.0}, {"alpha": 40.0}, {"rank": 1}]
)
def test_so_it_is_with_other_options(options: dict[str, Any]) -> None:
    _spent_as_by_brute_force("bert", keep="6%", **options)


def _spent_as_by_brute_force(name: str, **options: Any) -> None:
    with prepared(name, **options) as hybrid:
        budget = count(hybrid.graph, hybrid.spec).deployed
        scores = sensitivity(name)
        counts, whole, total = brute(hybrid, scores, budget)
        entries, there = settled(hybrid)
        matrices = {n for n in whole if scores[n].ndim > 1}
        assert there == matrices
        for tensor, c in counts.items():
            expected = 0 if tensor in matrices else scores[tensor].numel() if tensor in whole else c
            assert entries[tensor] == expected, tensor
        held = sum(p.numel() for p in hybrid.root.parameters())
        assert held == total == hybrid.counts().deployed == hybrid.counts().trained <= budget


def test_chosen_entries_are_the_most_sensitive_ones() -> None:
    with prepared("bert", keep=40, alpha=1.0, beta=1.0, rank=64) as hybrid:
        scores, sizes = sensitivity("bert"), ranked(hybrid)
        flat = torch.cat([scores[n].flatten() for n in sizes])
        module = module_of(hybrid)
        assert [t.name for t in module.tensors] == list(sizes)
        assert sorted(flat.topk(40).indices.tolist()) == module.entries.index.tolist()


@pytest.mark.parametrize("module", ["lora", "adapter"])
def test_dropout_at_inputs_but_for_the_output_projections_and_whole_rows_left_out(module: str) -> None:
    """Modules that hand on what they are fed, or its GELU, and are fed ones."""
    spec = spec_of(tiny_config("bart"))
    drops = {"dropout": 0.25, "drop_path": 0.4}
    built: Any = configured("sensitivity_tuning", module=module, rank=32, keep="40%", **drops).build(
        spec.sites, spec
    )
    sites = [s for s in spec.sites if s.key in built.at and (s.in_features, s.out_features) == (32, 32)]
    assert {s.name for s in sites} == {"q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o"}
    ones, one = torch.ones(400, 32), torch.ones(())
    f = torch.nn.functional.gelu if module == "adapter" else torch.clone
    for site in sites:
        child = built[site]
        child.put_in()
        with torch.no_grad():
            for p in child.parameters():
                p.copy_(torch.eye(32) if p.ndim == 2 else torch.zeros(32))
        torch.testing.assert_close(child.eval().added(ones, ones), f(ones))
        found = child.train().added(ones, ones)
        gone = (found == 0).all(1)
        assert abs(float(gone.double().mean()) - 0.4) < 4 * (0.4 * 0.6 / 400) ** 0.5
        left = found[~gone] * 0.6
        if site.name in ("o", "cross_o"):
            torch.testing.assert_close(left, f(one).expand_as(left))
        else:
            assert_dropped(left, f(one / 0.75) * 0.75, 0.25)


def test_budgets_of_all_sizes_share_a_measurement() -> None:
    base = tiny_model("bert").base_model
    module = [
        configured("sensitivity_tuning", **SMALL, keep=k).build(
            spec_of(base.config).sites, spec_of(base.config)
        )
        for k in (50, 3000)
    ]
    assert module[0].measurement() == module[1].measurement()
    other = configured("sensitivity_tuning", **{**SMALL, "rank": 3}, keep=50)
    assert (
        other.build(spec_of(base.config).sites, spec_of(base.config)).measurement() != module[0].measurement()
    )


def test_modules_start_alike_whether_it_was_measured_or_kept() -> None:
    """Measuring draws dropout, and what is put in is drawn behind it."""
    kept: dict[str, Any] = {}

    class Kept:
        def get(self, method: str, measurement: Any) -> Any:
            return kept.get(method)

        def put(self, method: str, measurement: Any, measured: Any) -> None:
            kept[method] = measured

    found = []
    for _ in range(2):
        model = tiny_model("bert")
        with attach(model, recipe(keep="9%"), seed=0) as hybrid, torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            hybrid.prepare(lambda rows: batches("bert", rows or 1), LogitsObjective(model), kept=Kept())
            found.append(snapshot(hybrid.root))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(found[0][n].any() for n in found[0] if n.endswith(".A"))


def test_batches_are_seen_in_training_mode_and_as_many_as_asked_for() -> None:
    seen: list[tuple[int, bool]] = []
    model = tiny_model("bert")
    hybrid = attach(model, recipe(keep=50, batches=3, batch_size=5), seed=0)

    class Watched(LogitsObjective):
        def __call__(self, batch: dict[str, Tensor]) -> Tensor:
            seen.append((len(batch["labels"]), self.model.training))
            return super().__call__(batch)

    hybrid.prepare(lambda rows: batches("bert", rows or 1, n=9), Watched(model))
    assert seen == [(5, True)] * 3
    assert not model.training


@pytest.mark.parametrize("module", ["lora", "adapter"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit", "phi3"])
def test_it_is_the_identity_at_the_start(name: str, module: str) -> None:
    inputs = tiny_inputs(name)
    before = logits(tiny_model(name), inputs)
    with prepared(name, keep="9%", module=module) as hybrid:
        assert settled(hybrid)[1], "some modules are there"
        torch.testing.assert_close(logits(hybrid.model, inputs), before, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "modernbert"])
def test_merging_is_exact_with_lora_and_refused_with_adapters(name: str) -> None:
    inputs = tiny_inputs(name)
    hybrid = prepared(name, keep="9%")
    randomise(hybrid.root)
    expected = logits(hybrid.model, inputs)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)
    adapters = prepared(name, keep="9%", module="adapter")
    with pytest.raises(UsageError, match="cannot be folded"):
        adapters.merge()


@pytest.mark.parametrize(
    ("name", "sites", "said"),
    [
        ("gpt2", ["q", "up"], "name only q of it; name qkv"),
        ("gpt2", ["q", "v"], "name only q and v of it; name qkv"),
        ("phi3", ["up", "down"], "name only up of it; name up and gate_proj"),
    ],
)
def test_a_fused_map_is_ranked_as_a_whole(name: str, sites: list[str], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        attach(tiny_model(name), recipe(keep="5%", sites=sites))


def test_training_leaves_all_other_entries_bit_identical() -> None:
    bert = tiny_bert()
    before = snapshot(bert.bert)
    hybrid = attach(bert, recipe(keep="8%"), seed=0)
    train(hybrid, encoded_task(), PLAN)
    entries, there = settled(hybrid)
    module = module_of(hybrid)
    spans, offsets = module.entries.spans(), module.entries.offsets
    index = {n: (module.entries.index[slice(*spans[n])] - offsets[n][0]).tolist() for n in entries}
    hybrid.merge()
    after = snapshot(bert.bert)
    for name, old in before.items():
        if name in there:
            continue
        moved = (old != after[name]).flatten().nonzero()[:, 0].tolist()
        assert set(moved) <= set(index.get(name, ())), name
    assert any(index.values())


def test_what_is_trained_is_what_is_there() -> None:
    """No optimizer state for what is nothing; the module's parts are all that it has."""
    with prepared("bert", keep="6%") as hybrid:
        parts = module_of(hybrid).parts()
        assert sum(p.numel() for group in parts.values() for p in group) == hybrid.counts().trained
        logits(hybrid.model, tiny_inputs("bert")).pow(2).mean().backward()
        optimizer = hybrid.optimizer()
        optimizer.step()
        state = sum(s["exp_avg"].numel() for s in optimizer.state.values())
        assert state == hybrid.counts().trained + hybrid.counts().head


def test_an_optimizer_of_what_is_not_settled_yet_is_refused() -> None:
    """It would hold the parameters that calibration throws away, and nothing of the method would move."""
    model = tiny_model("bert")
    with attach(model, recipe(keep="6%"), seed=0) as hybrid:
        for make in (hybrid.optimizer, hybrid.for_trainer):
            with pytest.raises(UsageError, match=r"sensitivity_tuning settles by calibration.*prepare\("):
                make()
        hybrid.prepare(lambda rows: batches("bert", rows or 1), LogitsObjective(model))
        held = {id(p) for group in hybrid.optimizer().param_groups for p in group["params"]}
        assert all(id(p) in held for p in hybrid.root.parameters())


def test_the_class_token_is_trained_in_any_case() -> None:
    with prepared("vit", keep="3%") as hybrid:
        module = module_of(hybrid)
        lo, hi = module.entries.spans()["embeddings.cls_token"]
        assert hi - lo == 32
        assert sum(p.numel() for p in hybrid.root.parameters()) <= count(hybrid.graph, hybrid.spec).deployed
    with pytest.raises(MethodError, match="class token"):
        configured("sensitivity_tuning", keep=20).parameter_count(
            spec_of(tiny_config("vit")).sites, spec_of(tiny_config("vit"))
        )


@pytest.mark.parametrize("module", ["lora", "adapter"])
def test_a_saved_one_is_loaded_as_it_was(module: str, tmp_path: Any) -> None:
    inputs = tiny_inputs("bert")
    with prepared("bert", keep="9%", module=module) as hybrid:
        randomise(hybrid.root)
        wanted, counts = logits(hybrid.model, inputs), hybrid.counts()
        hybrid.save(tmp_path)
    again = load(tiny_model("bert"), tmp_path)
    assert again.counts() == counts
    assert torch.equal(logits(again.model, inputs), wanted)


def test_a_file_of_more_than_the_budget_is_refused(tmp_path: Path) -> None:
    with prepared("bert", keep="9%") as hybrid:
        hybrid.save(tmp_path)
        held = sum(p.numel() for p in hybrid.root.parameters())
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("9%", str(held - 1)))
    model = tiny_model("bert")
    before = snapshot(model)
    with pytest.raises(DataError, match="does not fit"):
        load(model, tmp_path)
    assert all(torch.equal(v, before[n]) for n, v in snapshot(model).items())
    file.write_text(file.read_text().replace(str(held - 1), str(held)))
    load(model, tmp_path)


def test_a_training_that_was_paused_goes_on_with_what_was_settled() -> None:
    def losses(pause: bool) -> list[float]:
        with attach(tiny_bert(), recipe(keep="8%"), seed=0) as hybrid:
            result = train(hybrid, encoded_task(), PLAN, until=2 if pause else None)
        if not pause:
            return result.losses
        assert result.checkpoint is not None
        again = Checkpoint.from_bytes(result.checkpoint.to_bytes())
        with attach(tiny_bert(), recipe(keep="8%"), seed=0) as hybrid:
            return train(hybrid, encoded_task(), PLAN, resume=again).losses

    assert losses(pause=True) == losses(pause=False)


def test_where_nothing_is_there_nothing_is_installed() -> None:
    """At no site before it is settled, and then at those of the modules: layers below stay untouched."""
    hybrid = attach(tiny_model("bert"), recipe(keep="6%", sites=["down"]), seed=0)
    assert hybrid.injection.sites() == ()
    assert hybrid.injection.site_hooks() == {}
    hybrid.detach()
    with prepared("bert", keep="6%") as hybrid:
        there = {s.key for s in hybrid.injection.sites()}
        assert there == {key for key, child in module_of(hybrid).at.items() if child.there}  # type: ignore[union-attr]
        assert 0 < len(there) < len(module_of(hybrid).at)
        lowest = min(s.layer or 0 for s in hybrid.injection.sites())
        touched = [t.layer for t in hybrid.spec.tensors if t.name in module_of(hybrid).entries.selected()]
        assert trunk_depths(hybrid.injection)["encoder"] == min(
            [lowest, *(n for n in touched if n is not None)]
        )


def test_at_some_sites() -> None:
    with prepared("bert", keep="4%", sites=["q", "v"]) as hybrid:
        names = {t.name for t in module_of(hybrid).tensors}
        assert all("query" in n or "value" in n or "LayerNorm" in n for n in names)
        assert {key.rpartition("-")[2] for key in module_of(hybrid).at} == {"q", "v"}


def test_the_bound_is_the_budget_or_all_there_is() -> None:
    spec = toy_spec()
    sites = spec.sites
    method = configured("sensitivity_tuning", keep=60)
    assert method.parameter_count(sites, spec).deployed == 60
    everything = configured("sensitivity_tuning", keep=500, rank=1).parameter_count(sites, spec).deployed
    maps = [s for s in sites if s.kind == "linear"]
    vectors = sum(s.out_features for s in maps) + sum(2 * s.out_features for s in sites if s.kind == "norm")
    assert everything == sum(s.in_features + s.out_features for s in maps) + vectors < 500


def test_refusals() -> None:
    with pytest.raises(MethodError, match="which has"):
        configured("sensitivity_tuning", keep=10**7).parameter_count(toy_spec().sites, toy_spec())
    with pytest.raises(MethodError, match="use fish_mask"):
        configured("sensitivity_tuning").parameter_count((), toy_spec())
    for wrong in ({"alpha": 0.5}, {"beta": 0}, {"module": "prefix"}, {"keep": "some"}):
        with pytest.raises(ValidationError):
            configured("sensitivity_tuning", **wrong)
    model = tiny_model("bert")
    hybrid = attach(model, recipe(keep=50), seed=0)
    with pytest.raises(UsageError, match="got none"):
        hybrid.prepare(lambda rows: [], LogitsObjective(model))
    torch.nn.init.constant_(model.classifier.weight, float("nan"))  # type: ignore[operator, union-attr, arg-type]
    with pytest.raises(AutoPEFTError, match="finite"):
        hybrid.prepare(lambda rows: batches("bert", rows or 1), LogitsObjective(model))
    assert math.isfinite(hybrid.counts().deployed)
