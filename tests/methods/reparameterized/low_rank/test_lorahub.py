from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autopeft.methods.reparameterized.low_rank.lorahub import searched_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.cloze import NAMES, WORDS, save_masked
from support.saved_model import write_reviews
from support.tiny import randomise
from support.toy import CALL, GATED, build, counted, toy_spec, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.assets.heads import reset_head
from autopeft.backbones import spec_of, spec_of_model
from autopeft.cli import main
from autopeft.counting import Counter
from autopeft.errors import AutoPEFTError, CompositionError, MethodError, RecipeError
from autopeft.export.peft_format import to_peft
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load, with_inputs
from autopeft.method import Stored
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import TrainJob
from autopeft.search.execution.input_transfer import pack_inputs
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.spec import BackboneSpec
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial, train

PLAN = TrainingPlan(steps=8, batch_size=8, seed=3, device="cpu", shortcuts=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stored(factors: dict[str, Tensor], name: str = "one", **changes: Any) -> Stored:
    """A LoRA of rank 1 and s = 1, by the names that its tensors have."""
    told: dict[str, Any] = {"method": "lora", "options": {"rank": 1, "alpha": 1.0}, "family": "toy"}
    return Stored(name, "lora", **{"tensors": factors, **told, **changes})


def loras(spec: BackboneSpec, n: int) -> list[dict[str, Tensor]]:
    """Factors of n LoRAs of rank 1 at q and v, drawn from a normal."""
    module, _ = build("lora", spec, rank=1, alpha=1.0)
    made = []
    for seed in range(n):
        randomise(module, std=1.0, seed=seed)
        names = {key: key.removeprefix("at.").replace("-", ".") for key in module.state_dict()}
        made.append({names[key]: value.clone() for key, value in module.state_dict().items()})
    return made


def hub(spec: BackboneSpec, *sources: dict[str, Tensor], **options: Any) -> tuple[Any, Any]:
    module, sites = build("lorahub", spec, **{"rank": 1, "alpha": 1.0, **options})
    module.start_from(tuple(stored(s, f"s{i}", family=spec.family) for i, s in enumerate(sources)))
    return module, sites


@given(toy_specs, st.integers(1, 9))
def test_the_lora_counts_as_deployed_and_nothing_as_trained(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, _ = counted("lorahub", spec, rank=rank)
    sites = [site for site in spec.sites if site.name in ("q", "v")]
    assert deployed == held == sum(rank * (s.in_features + s.out_features) for s in sites)
    assert trained == 0
    module, _ = build("lorahub", spec, rank=rank)
    assert not any(p.requires_grad for p in module.parameters())


# The average
# --------------------------------------------------------------------------------------------------------


def test_factors_are_averaged_and_not_products() -> None:
    """The catalogue's numbers: cross terms, and quadratic in w."""
    spec = toy_spec(layers=1, hidden=2, kv=2)
    unit = torch.eye(2)
    made = []
    for i in range(2):
        made.append({f"encoder.0.{site}.{n}": v for site in "qv" for n, v in _pair(unit[i]).items()})
    module, sites = hub(spec, *made)
    module.mix((0.5, -1.0))
    expected = torch.tensor([[0.25, -0.5], [-0.5, 1.0]])
    for site in sites:
        weight, bias = module.merged(site, torch.zeros(2, 2), None)
        assert torch.equal(weight, expected)
        assert bias is None
        x = torch.randn(3, 2)
        torch.testing.assert_close(module.delta(site, x, x, CALL), x @ expected.T)
        a, b, scale = module.as_lora(site)
        assert torch.equal(scale * b @ a, expected)


def _pair(unit: Tensor) -> dict[str, Tensor]:
    return {"A": unit[None], "B": unit[:, None]}


def test_a_weight_of_one_is_that_lora_bit_for_bit_and_so_is_minus_one() -> None:
    spec = toy_spec()
    sources = loras(spec, 3)
    module, sites = hub(spec, *sources)
    for i, source in enumerate(sources):
        for sign in (1.0, -1.0):
            module.mix([sign * (j == i) for j in range(3)])
            for key, value in module.state_dict().items():
                assert torch.equal(value, sign * source[key.removeprefix("at.").replace("-", ".")])
            for site in sites:
                at = f"{site.stack}.{site.layer}.{site.name}"
                assert torch.equal(module[site].product(), source[f"{at}.B"] @ source[f"{at}.A"])
    module.mix((0.0, 0.0, 0.0))
    assert not any(value.any() for value in module.state_dict().values())


def test_the_scale_acts_and_a_gate_takes_its_place() -> None:
    spec = toy_spec()
    module, sites = build("lorahub", spec, rank=2, alpha=6.0)
    randomise(module)
    x, y = torch.randn(2, 3, sites[0].in_features), torch.randn(2, 3, sites[0].out_features)
    bare = x @ module[sites[0]].product().T
    torch.testing.assert_close(module.delta(sites[0], x, y, CALL), 3 * bare)
    torch.testing.assert_close(module.delta(sites[0], x, y, GATED), bare)


# The search
# ---------------------------------------------------------------------------------------------------------


def watched(
    objective: Callable[[np.ndarray], float],
) -> tuple[Callable[[Sequence[float]], float], list[list[float]]]:
    points: list[list[float]] = []

    def at(w: Sequence[float]) -> float:
        points.append([round(v, 5) for v in w])
        return objective(np.array(w))

    return at, points


def bowl(centre: Sequence[float]) -> Callable[[np.ndarray], float]:
    """With a mixed term, and LoRAHub's L1."""

    def at(w: np.ndarray) -> float:
        return float(((w - centre) ** 2).sum() + 0.5 * w.sum() ** 2 + 0.05 * np.abs(w).mean())

    return at


# What NGOpt(parametrization=Array(init=0, lower=-1.5, upper=1.5), budget=…) of nevergrad 0.8.0 asked for,
# with SciPy 1.11.1. The further points of Powell's code and of PRIMA, which SciPy has since 1.16, differ.
ASKED = {
    (0.4, -0.3, 0.9): [
        [0.0, 0.0, 0.0],
        [0.5, 0.0, 0.0],
        [0.5, 0.5, 0.0],
        [0.5, 0.0, 0.5],
        [0.50858, -0.48069, 0.63734],
        [0.52734, -0.8802, 0.93741],
    ],
    (9.0, -9.0): [[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.83317, -0.37282]],
}


@pytest.mark.parametrize("centre", ASKED)
def test_the_points_are_those_of_the_authors_optimizer(centre: tuple[float, ...]) -> None:
    at, points = watched(bowl(centre))
    found = searched_weights(at, len(centre), evaluations=12, bound=1.5)
    assert points[: len(ASKED[centre])] == ASKED[centre]
    assert found.evaluations == len(points) == 12
    assert found.start == bowl(centre)(np.zeros(len(centre)))
    assert found.value == min(bowl(centre)(np.array(p)) for p in [found.weights])
    assert [round(w, 5) for w in found.weights] in points


def test_fewer_evaluations_than_sources_try_the_first_ones_alone() -> None:
    """As nevergrad's do: SciPy itself would take seven."""
    at, points = watched(bowl((0.4, -0.3, 0.9, 0.2, 0.1)))
    found = searched_weights(at, 5, evaluations=4, bound=1.5)
    assert points == [[0.0] * 5, [0.5, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.5, 0, 0.5, 0, 0]]
    assert found.weights == (0.5, 0.0, 0.5, 0.0, 0.0)
    assert found.evaluations == 4


def test_what_leaves_the_bounds_is_mirrored_at_them() -> None:
    at, points = watched(lambda w: -float(w[0]))
    searched_weights(at, 1, evaluations=6, bound=1.5)
    assert points[:3] == [[0.0], [0.5], [1.0]]
    assert points.count([1.0]) == 2  # 2 came, and 1.5 is not where it would have been cut off
    at, points = watched(lambda w: -float(w[0]))
    searched_weights(at, 1, evaluations=2, bound=0.3)
    assert points == [[0.0], [0.1]]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_no_search_ends_above_its_start_or_out_of_bounds(n: int, evaluations: int, seed: int) -> None:
    centre = np.random.default_rng(seed).normal(size=n) * 3
    at, points = watched(bowl(centre))
    found = searched_weights(at, n, evaluations=evaluations, bound=1.5)
    assert len(points) == found.evaluations <= evaluations
    assert points[0] == [0.0] * n
    assert np.abs(points).max() <= 1.5
    assert found.value == min(bowl(centre)(np.array(w)) for w in (found.weights, [0.0] * n))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_bad_one(wrong: float) -> None:
    found = searched_weights(lambda w: wrong if w[0] > 0 else 1.0 + w[0], 2, evaluations=9, bound=1.5)
    assert found.weights[0] < 0
    assert found.value < found.start == 1.0
    with pytest.raises(AutoPEFTError, match="no source at all is"):
        searched_weights(lambda w: wrong, 2, evaluations=9, bound=1.5)


class Constant:
    """A task whose loss is the same everywhere."""

    def __init__(self, loss: float) -> None:
        self.loss = loss

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tensor(self.loss)


def rows(n: int) -> dict[str, Tensor]:
    return {"labels": torch.zeros(n)}


def test_the_objective_is_that_of_the_authors_code_with_their_divisor() -> None:
    spec = toy_spec()
    task: Any = Constant(1.2)
    theirs, _ = hub(spec, *loras(spec, 2), divisor=5)
    assert theirs.objective((0.5, -1.0), [rows(5)], task) == pytest.approx(0.2775)
    ours, _ = hub(spec, *loras(spec, 2))
    assert ours.objective((0.5, -1.0), [rows(5)], task) == pytest.approx(1.2375)
    heavy, _ = hub(spec, *loras(spec, 2), l1=1.0)
    assert heavy.objective((0.5, -1.0), [rows(5)], task) == pytest.approx(1.95)


def test_the_best_average_stays_and_not_the_last_one() -> None:
    spec = toy_spec()
    sources = loras(spec, 2)
    module, _ = hub(spec, *sources, evaluations=3)
    losses = iter((1.0, 0.5, 2.0))  # at w = 0, (0.5, 0) and (0.5, 0.5)
    module.conclude([rows(5)], lambda batch: torch.tensor(next(losses)))
    assert module.found.weights == (0.5, 0.0)
    for key, value in module.state_dict().items():
        assert torch.equal(value, 0.5 * sources[0][key.removeprefix("at.").replace("-", ".")])


def test_rows_weigh_alike_however_many_go_through_at_once() -> None:
    spec = toy_spec()
    module, _ = hub(spec, *loras(spec, 1), l1=0.0)
    losses = iter((1.0, 4.0))
    task: Any = lambda batch: torch.tensor(next(losses))  # noqa: E731
    assert module.objective((1.0,), [rows(4), rows(1)], task) == pytest.approx(1.6)


# What it takes
# ---------------------------------------------------------------------------------------------------------


def test_a_source_that_does_not_fit_is_refused_with_a_way_out() -> None:
    spec = toy_spec()
    (good,) = loras(spec, 1)
    some = dict(list(good.items())[:-2])
    wide = {key: torch.zeros(value.shape[0] + 1, value.shape[1]) for key, value in good.items()}
    broken = {**good, next(iter(good)): torch.full_like(next(iter(good.values())), math.nan)}
    cases = (
        (stored(good, method="serial_adapter"), "lora or of lorahub itself, but got 'lora' .serial_adapter"),
        (stored(good, family="bert"), "family 'bert', and this one is of 'toy'"),
        (stored(good, options={"rank": 2, "alpha": 2.0}), r"has rank 2 .*give lorahub \{rank: 2, alpha: 2\}"),
        (stored(good, options={"rank": 1, "alpha": 3.0}), r"s = 3; give lorahub \{rank: 1, alpha: 3\}"),
        (stored(some), "only one of .*has encoder.*leave that source out"),
        (
            stored({**good, "encoder.9.q.A": torch.zeros(1, 6)}),
            r"has encoder\.9\.q\.A; give lorahub the sites",
        ),
        (stored(wide), r"was to give 'encoder\.0\.q\.A' of shape"),
        (stored(broken), "not finite; give lorahub the size"),
    )
    module, _ = build("lorahub", spec, rank=1, alpha=1.0)
    fits = stored(good, family=spec.family)
    for source, message in cases:
        told = source if source.family == "bert" else Stored(**{**vars(source), "family": spec.family})
        with pytest.raises(MethodError, match=message.replace("'toy'", repr(spec.family))):
            module.start_from((fits, told))


def test_a_rank_stabilised_lora_has_a_scale_of_its_own() -> None:
    spec = toy_spec()
    (good,) = loras(spec, 1)
    told = {"rank": 4, "alpha": 8.0, "rank_stabilized": True}
    wide = {key: value.repeat(*((4, 1) if key.endswith("A") else (1, 4))) for key, value in good.items()}
    source = stored(wide, options=told, family=spec.family)
    module, _ = build("lorahub", spec, rank=4, alpha=16.0)
    module.start_from((source,))
    module, _ = build("lorahub", spec, rank=4, alpha=8.0)
    with pytest.raises(MethodError, match=r"\{rank: 4, alpha: 16\}"):
        module.start_from((source,))


@pytest.mark.parametrize("kind", ["gate", "route", "fuse", "mole", "weight_drop", "masked_copies", "adamix"])
@pytest.mark.parametrize("inner", [False, True])
def test_nothing_holds_it_that_would_learn_beside_zeros(kind: str, inner: bool) -> None:
    hub: Any = {"lorahub": {"rank": 2}, "from": "a"}
    child = {"sum": [hub, {"ia3": {"sites": ["v"]}}]} if inner else hub
    single = kind in ("weight_drop", "masked_copies", "adamix")
    children = [child] if single else [child, {"lora": {"rank": 2}}]
    tree = {"inputs": {"a": "a"}, "layers": [{"attach": [{kind: children}]}]}
    spec = spec_of_model(tiny_bert())[0]
    with pytest.raises(CompositionError, match="zero until all else has trained"):
        build_graph(Recipe.from_dict({"name": "x", **tree}), spec)
    with pytest.raises(CompositionError, match="zero until all else has trained"):
        Counter(spec).measure(Recipe.from_dict({"name": "x", **tree}))


@pytest.mark.parametrize("kind", ["sum", "chain"])
def test_what_adds_up_holds_it(kind: str) -> None:
    items = [{"lorahub": {"rank": 2}, "from": "a"}, {"lora": {"rank": 2}}]
    tree = {"name": "x", "inputs": {"a": "a"}, "layers": [{"attach": [{kind: items}]}]}
    graph = build_graph(Recipe.from_dict(tree), spec_of_model(tiny_bert())[0])
    (node,) = graph.nodes()
    assert (node.kind, [entry.name for entry in graph.leaves(node)]) == (kind, ["lorahub", "lora"])


def test_the_scale_that_a_message_advises_is_taken() -> None:
    """An irrational scale, in the digits that the message has."""
    spec = toy_spec()
    (good,) = loras(spec, 1)
    told = {"rank": 2, "alpha": 4.0, "rank_stabilized": True}
    wide = {key: value.repeat(*((2, 1) if key.endswith("A") else (1, 2))) for key, value in good.items()}
    source = stored(wide, options=told, family=spec.family)
    module, _ = build("lorahub", spec, rank=2, alpha=4.0)
    with pytest.raises(MethodError) as said:
        module.start_from((source,))
    advised = float(str(said.value).partition("alpha: ")[2].partition("}")[0])
    module, _ = build("lorahub", spec, rank=2, alpha=advised)
    module.start_from((source,))


# In a training
# ---------------------------------------------------------------------------------------------------------


def lora_recipe(**options: Any) -> Recipe:
    layers = [{"attach": [{"lora": {"rank": 2, **options}}]}]
    return Recipe.from_dict({"name": "source", "layers": layers, "training": {"learning_rate": 0.05}})


SGD = {"learning_rate": 0.1, "optimizer": {"name": "sgd"}}


def hub_recipe(*names: str, beside: Sequence[Any] = (), **options: Any) -> Recipe:
    item = {"lorahub": {"rank": 2, **options}, "from": list(names)}
    inputs, layers = {name: name for name in names}, [{"attach": [item, *beside]}]
    return Recipe.from_dict({"name": "hub", "inputs": inputs, "layers": layers, "training": SGD})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, and three LoRAs of tasks that share its label words: the task itself, the task
    with its words exchanged, and noise."""
    folder = tmp_path_factory.mktemp("hub")
    save_masked(folder / "model")
    write_reviews(folder / "data.csv", 160)
    data = _label_words(folder)
    for name, swap in (("same", False), ("opposite", True)):
        model = data.task.task_kind.head.load_model(str(folder / "model"), NAMES)
        with attach(model, lora_recipe(), seed=0) as hybrid:
            labels = _label_words(folder, swap=swap)
            train(hybrid, labels, TrainingPlan(steps=60, batch_size=16, device="cpu"))
            hybrid.save(folder / name)
    with attach(AutoModelForMaskedLM.from_pretrained(folder / "model"), lora_recipe(), seed=0) as hybrid:
        randomise(hybrid.root, std=0.3, seed=5)
        hybrid.save(folder / "noise")
    return folder


def _label_words(folder: Path, *, swap: bool = False) -> EncodedTask:
    words = ",".join(reversed(WORDS.split(","))) if swap else WORDS
    model = str(folder / "model")
    task = load_task(
        str(folder / "data.csv"), text="body", label="verdict", label_words=words,
        backbone=spec_of(load_config(model)),
    )  # fmt: skip
    return encode(task, load_tokenizer(model), 40)


def attached(place: Path, recipe: Recipe) -> Hybrid:
    model = _label_words(place).task.task_kind.head.load_model(str(place / "model"), NAMES)
    return attach(model, recipe, seed=0)


def test_a_language_model_takes_no_step_and_ends_with_the_lora_that_fits(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    data, phases = _label_words(place), list[str]()
    hybrid = attached(place, hub_recipe("noise", "opposite", "same", rows=40))
    module: Any = hybrid.modules["lorahub"]
    counts = hybrid.counts()
    assert (counts.trained, counts.deployed) == (0, sum(p.numel() for p in module.parameters()))
    before = {k: v.clone() for k, v in hybrid.backbone_parameters().items()}
    result = train(hybrid, data, PLAN, on_phase=lambda name, steps: phases.append(name))
    assert (result.steps, result.losses, phases) == (0, [], ["conclusion"])
    assert all(p.grad is None for p in hybrid.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in hybrid.backbone_parameters().items())
    found = module.found
    assert found.value < 0.9 * found.start
    assert found.evaluations <= 40
    assert abs(found.weights[2]) > max(map(abs, found.weights[:2]))
    there = [load_file(f"{name}/weights.safetensors") for name in ("noise", "opposite", "same")]
    for key, value in module.state_dict().items():
        saved = key.removeprefix("at.").replace("-", ".").replace(".A", ".lora.A").replace(".B", ".lora.B")
        average = sum(w * tensors[saved] for w, tensors in zip(found.weights, there, strict=True))
        torch.testing.assert_close(value, average)
    (said,) = hybrid.remarks()
    assert f"{found.weights[2]:.2f} of same.lora" in said

    # One LoRA is left: as itself, as a LoRA of peft, and in the backbone's weights.
    (batch,) = (b for _, b in zip(range(1), _batches(data), strict=False))
    hybrid.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "weights.safetensors")
    assert sum(v.numel() for v in saved.values()) == counts.deployed
    with torch.no_grad():
        expected = hybrid.model(**batch).logits
        again = load(AutoModelForMaskedLM.from_pretrained(place / "model"), tmp_path / "saved")
        torch.testing.assert_close(again.model(**batch).logits, expected)
        train(again, data, PLAN)
        assert torch.equal(again.modules["lorahub"].at["encoder-0-q"].A, module.at["encoder-0-q"].A)  # type: ignore
        to_peft(hybrid, tmp_path / "peft")
        plain = AutoModelForMaskedLM.from_pretrained(place / "model")
        theirs = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
        torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hybrid.merge()(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def _batches(data: EncodedTask) -> Any:
    for batch in data.select.batches(4, shuffle=False):
        yield {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}


def test_beside_a_new_head_all_else_trains_first() -> None:
    """The head is that of a training without it; then the search begins."""
    for seed in range(2):
        with attach(tiny_bert(), lora_recipe(), seed=seed) as hybrid:
            randomise(hybrid.root, std=0.5, seed=seed)
            hybrid.save(f"s{seed}")
    adapter = {"serial_adapter": {"bottleneck": 2}}
    heads, adapters, losses = [], [], []
    for recipe in (
        hub_recipe("s0", "s1", beside=[adapter], rows=7),
        Recipe.from_dict({"name": "plain", "layers": [{"attach": [adapter]}], "training": SGD}),
    ):
        model = tiny_bert()
        reset_head(model, 0)
        torch.manual_seed(0)
        hybrid = attach(model, recipe)
        for parameter in hybrid.modules["serial_adapter"].parameters():
            nn.init.constant_(parameter, 0.1)
        result = train(hybrid, encoded_task(), PLAN)
        assert result.steps == 8
        losses.append(result.losses)
        heads.append([p.detach().clone() for p in hybrid.head_parameters()])
        adapters.append([p.detach().clone() for p in hybrid.modules["serial_adapter"].parameters()])
        if "lorahub" in hybrid.modules:
            module: Any = hybrid.modules["lorahub"]
            assert module.found.evaluations > 2
            assert not module.at["encoder-0-q"].A.grad
    for one, other in (heads, adapters):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_it_goes_on_from_a_pause_as_if_there_had_been_none() -> None:
    for seed in range(2):
        with attach(tiny_bert(), lora_recipe(), seed=seed) as hybrid:
            randomise(hybrid.root, std=0.5, seed=seed)
            hybrid.save(f"s{seed}")
    whole = run_trial(tiny_bert(), hub_recipe("s0", "s1"), encoded_task(), PLAN)
    paused = run_trial(tiny_bert(), hub_recipe("s0", "s1"), encoded_task(), PLAN, until=3)
    assert paused.train.stopped == "paused"
    on = run_trial(tiny_bert(), hub_recipe("s0", "s1"), encoded_task(), PLAN, resume=paused.train.checkpoint)
    assert on.scores == whole.scores
    assert on.losses == whole.losses
    assert on.counts == whole.counts


def test_a_run_says_that_no_step_was_taken_and_what_was_found(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "hub.yaml").write_text(hub_recipe("noise", "same", rows=40).to_yaml())
    told = ["--task", "data.csv", "--text", "body", "--label", "verdict", "--model", "model", "--steps", "60"]
    words = ["--label-words", WORDS, "--out", str(tmp_path / "run")]
    assert main(["train", "--recipe", str(tmp_path / "hub.yaml"), *told, *words]) == 0
    out = capsys.readouterr().out
    assert "one seed, 0 steps" in out
    assert "Loss:" not in out
    assert "of same.lora" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["history"]["first_loss"], result["counts"]["trained"]) == (0, None, 0)


def test_a_job_of_a_search_ends_at_its_first_rung(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is nothing to pause."""
    monkeypatch.chdir(place)
    model, task = str(place / "model"), _label_words(place).task
    recipe, inputs = with_inputs(hub_recipe("noise", "same"))
    plan, files = replace(PLAN, max_length=40), pack_inputs(inputs.values())
    setup = WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(tmp_path), inputs=files)
    job = TrainJob("trial-0", "trial", "trial 0", recipe.to_dict(), steps=8, until=3)
    found = execute(setup, job, lambda step, loss: None, lambda: False)
    assert (found.error, found.paused, found.train_loss) == (None, False, None)
    assert found.score is not None


def test_sources_that_were_never_tried_are_named_in_the_remarks(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    hybrid = attached(place, hub_recipe("noise", "opposite", "same", evaluations=2))
    train(hybrid, _label_words(place), PLAN)
    assert "the last 2 of the 3 sources were never tried" in hybrid.remarks()[1]


def test_a_damaged_source_is_one_clear_sentence() -> None:
    with attach(tiny_bert(), lora_recipe(), seed=0) as hybrid:
        hybrid.save("s0")
        hybrid.save("s1")
    weights = load_file("s1/weights.safetensors")
    weights["encoder.0.q.lora.A"][0, 0] = math.nan
    save_file(weights, "s1/weights.safetensors")
    with pytest.raises(MethodError, match=r"'lora' \(lora\) of the input 's1' holds numbers .* not finite"):
        attach(tiny_bert(), hub_recipe("s0", "s1"), seed=0)
    with attach(tiny_bert(), lora_recipe(rank=3), seed=0) as hybrid:
        hybrid.save("s2")
    model = tiny_bert()
    names = set(model.state_dict())
    with pytest.raises(MethodError, match=r"'s2' has rank 3"):
        attach(model, hub_recipe("s0", "s2"), seed=0)
    assert set(model.state_dict()) == names


def test_it_cannot_be_frozen_and_needs_a_source() -> None:
    layers = [{"attach": [{"lorahub": {}, "from": "one", "frozen": True}]}]
    with pytest.raises(RecipeError, match="'lorahub' cannot be frozen"):
        Recipe.from_dict({"name": "x", "inputs": {"one": "one"}, "layers": layers})
    with pytest.raises(RecipeError, match="needs what another training has left"):
        Recipe.from_dict({"name": "x", "layers": [{"attach": ["lorahub"]}]})
