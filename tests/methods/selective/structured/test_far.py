"""FAR: nodes of the FFN are chosen by how far priming moves them; the others end as they began, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autopeft.methods.selective.structured.far import FARModule, learners
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import configured, counted, toy_spec, toy_specs
from support.training import encoded_task, snapshot, stop_after, tiny_bert
from torch import Tensor, nn
from transformers import BertConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult

PLAN = TrainingPlan(steps=10, batch_size=16, device="cpu")
WIDTH, INNER = 16, 24  # of the tiny BERT


def recipe(*others: Any, **config: Any) -> Recipe:
    body = {"name": "f", "layers": [{"attach": [{"far": config}, *others]}]}
    return Recipe.from_dict({**body, "training": {"learning_rate": 1e-2, "weight_decay": 0.1}})


def module_of(hybrid: Hybrid) -> FARModule:
    found = hybrid.modules["far"]
    assert isinstance(found, FARModule)
    return found


def trained(hybrid: Hybrid, **options: Any) -> TrainResult:
    return train(hybrid, encoded_task(), PLAN, **options)


class Primed:
    """What priming came to: the changes of all rows at each site, as they are chosen from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        narrow = FARModule.narrow

        def watched(module: FARModule, *, keep: bool) -> None:
            for site, child in zip(module.at, module.children_by_site(), strict=True):
                self.values[site] = child.values.detach().clone()
                if child.bias is not None:
                    self.bias[site] = child.bias.detach().clone()
            narrow(module, keep=keep)

        monkeypatch.setattr(FARModule, "narrow", watched)


@given(toy_specs, st.sampled_from([0.01, 0.1, 0.37, 1.0]), st.sampled_from(["frozen", "trained"]))
def test_count_is_what_it_holds(spec: BackboneSpec, retention: float, rest: str) -> None:
    deployed, both, held, held_trained = counted("far", spec, retention=retention, rest=rest)
    assert deployed == both == held == held_trained


def test_counts_in_closed_form() -> None:
    def deployed(config: Any, at: Any = "all", **options: Any) -> int:
        entry = {"name": "f", "layers": [{"at": at, "attach": [{"far": options}]}]}
        from autopeft.counting import count

        return count(Recipe.from_dict(entry), spec_of(config)).deployed

    both = 307 * (768 + 1) + 77 * (3072 + 1)
    assert deployed(BertConfig()) == 12 * both
    assert deployed(BertConfig(), at="last 2", sites=["down"]) == 2 * 77 * 3073
    rest = 4 * (768 * 768 + 768) + 2 * 2 * 768
    assert deployed(BertConfig(), at=[3], rest="trained") == both + rest
    gated = T5Config(feed_forward_proj="gated-gelu", d_model=64, d_ff=100, num_layers=2, num_heads=2)
    assert deployed(gated) == 4 * (2 * 10 * 64 + 6 * 100), "three maps without biases, in both stacks"


def test_learners_are_the_rows_of_largest_l1_norm_and_ties_go_to_the_first() -> None:
    values = torch.tensor([[3.0, -3.0], [0.0, 4.0], [-2.0, 4.0], [6.0, 0.0], [0.0, 0.0]])
    assert learners(values, 2).tolist() == [0, 2]
    assert learners(values, 4).tolist() == [0, 2, 3, 1]
    assert learners(torch.zeros(5, 2), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2"])
def test_priming_trains_the_maps_of_the_ffn_as_they_are(name: str) -> None:
    """The gradients of all rows are those of the backbone's own weights and biases."""
    model, inputs = tiny_model(name), tiny_inputs(name)
    base = dict(model.base_model.named_parameters())
    logits(model, inputs).pow(2).mean().backward()
    wanted = {n: p.grad.clone() for n, p in base.items() if p.grad is not None}
    with attach(model, recipe(), seed=0) as hybrid:
        module = module_of(hybrid)
        module.widen()
        logits(model, inputs).pow(2).mean().backward()
        places = hybrid.injection.places
        for key, child in zip(module.at, module.children_by_site(), strict=True):
            assert child.index.tolist() == list(range(child.out_features))
            weight = wanted[f"{places[key].exit}.weight"]
            weight = weight.t() if places[key].transposed else weight
            torch.testing.assert_close(child.values.grad, weight, atol=1e-5, rtol=1e-4)
            if child.bias is not None:
                bias = wanted[f"{places[key].exit}.bias"]
                torch.testing.assert_close(child.bias.grad, bias, atol=1e-5, rtol=1e-4)
        names = {key.rpartition("-")[2] for key in module.at}
        assert names == ({"up", "gate_proj", "down"} if name == "llama" else {"up", "down"})


def test_chosen_are_those_that_priming_moved_furthest(monkeypatch: pytest.MonkeyPatch) -> None:
    primed = Primed(monkeypatch)
    with attach(tiny_bert(), recipe(retention=0.25, prime=0.3), seed=0) as hybrid:
        result = trained(hybrid)
        module = module_of(hybrid)
    assert list(result.outputs) == ["train"]
    assert result.outputs["train"] == module.nodes()
    for key, values in primed.values.items():
        k = {"up": INNER // 4, "down": WIDTH // 4}[key.rpartition("-")[2]]
        far = values.abs().sum(dim=1)
        order = sorted(range(len(far)), key=lambda i, far=far: (-float(far[i]), i))
        assert module.nodes()[key.replace("-", ".")] == sorted(order[:k])
        assert float(far.min()) > 0, "all rows were trained"


@pytest.mark.parametrize("rest", ["frozen", "trained"])
def test_frozen_rows_are_bit_identical_at_the_end(rest: str) -> None:
    bert = tiny_bert()
    before = snapshot(bert.bert)
    hybrid = attach(bert, recipe(retention=0.25, rest=rest), seed=0)
    trained(hybrid)
    nodes, places = module_of(hybrid).nodes(), hybrid.injection.places
    hybrid.merge()
    after = snapshot(bert.bert)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    maps = {f"{places[path.replace('.', '-')].exit}.{leaf}" for path in nodes for leaf in ("weight", "bias")}
    if rest == "frozen":
        assert moved == maps
    else:
        assert moved == {n for n in before if ".layer." in n}
    for path, rows in nodes.items():
        for leaf in ("weight", "bias"):
            name = f"{places[path.replace('.', '-')].exit}.{leaf}"
            changed = (before[name] != after[name]).reshape(len(before[name]), -1).any(dim=1)
            assert changed.nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize("name", ["modernbert", "phi3"])
def test_rows_of_a_fused_map_are_no_part_of_the_rest(name: str) -> None:
    model = tiny_model(name)
    fused = [
        n for n, _ in model.base_model.named_parameters() if n.endswith(("mlp.Wi.weight", "up_proj.weight"))
    ]
    before = snapshot(model.base_model)
    hybrid = attach(model, recipe(retention=0.1, prime=0.3, rest="trained"), seed=0)
    module = module_of(hybrid)
    assert fused
    assert not set(fused) & set(module.rest.names)
    randomise(hybrid.root)
    learners = [len(rows) for path, rows in module.nodes().items() if not path.endswith("down")]
    hybrid.merge()
    after = snapshot(model.base_model)
    changed = [(before[weight] != after[weight]).any(dim=1) for weight in fused]
    assert sum(int(rows.sum()) for rows in changed) == sum(learners) < sum(len(rows) for rows in changed)
    with pytest.raises(MethodError, match=r"name (gate_proj and up|up and gate_proj) in its sites"):
        attach(tiny_model(name), recipe(rest="trained", sites=["up", "down"]))


@pytest.mark.parametrize("rewind", [False, True])
def test_training_goes_on_or_starts_from_the_first_values(
    rewind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    primed = Primed(monkeypatch)
    starts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    with attach(
        tiny_bert(), recipe({"lora": {"rank": 2}}, retention=0.25, prime=0.5, rewind=rewind), seed=0
    ) as hybrid:
        module = module_of(hybrid)

        def others() -> dict[str, Tensor]:
            head = {f"head.{n}": p.detach().clone() for n, p in hybrid.head().items()}
            return {**snapshot(hybrid.modules["lora"]), **head}

        def before_step(self: FARModule, step: int, total: int) -> None:
            if self.chosen and not starts:
                starts.append((snapshot(self), others()))

        monkeypatch.setattr(FARModule, "before_step", before_step, raising=False)
        first = others()
        trained(hybrid)
        ((own, rest),) = starts
        for key, values in primed.values.items():
            nodes = module.nodes()[key.replace("-", ".")]
            zeros = torch.zeros(len(nodes), values.shape[1])
            assert torch.equal(own[f"at.{key}.values"], zeros if rewind else values[nodes])
            bias = torch.zeros(len(nodes)) if rewind else primed.bias[key][nodes]
            assert torch.equal(own[f"at.{key}.bias"], bias)
    assert all(torch.equal(first[n], rest[n]) for n in first) == rewind
    assert any(not torch.equal(first[n], rest[n]) for n in first) != rewind


def test_what_is_dense_is_there_in_priming_alone() -> None:
    sizes: list[int] = []
    with attach(tiny_bert(), recipe(retention=0.25, prime=0.3), seed=0) as hybrid:
        module = module_of(hybrid)
        kept = hybrid.counts().deployed
        assert sum(p.numel() for p in module.parameters()) == kept, "attaching is cheap"
        trained(hybrid, on_step=lambda step, loss: sizes.append(sum(p.numel() for p in module.parameters())))
        assert hybrid.counts().deployed == sum(p.numel() for p in module.parameters()) == kept
    whole = 2 * (INNER * (WIDTH + 1) + WIDTH * (INNER + 1))
    assert sizes == [whole] * 3 + [kept] * 7
    assert kept == 2 * (6 * (WIDTH + 1) + 4 * (INNER + 1))


class Split(nn.Module):
    """A map as the paper has it: learners and frozen rows apart, whose outputs are put back in order."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: list[int]) -> None:
        super().__init__()
        others = [i for i in range(len(weight)) if i not in rows]
        self.learning, self.frozen = (weight[rows], bias[rows]), (weight[others], bias[others])
        self.back = torch.tensor([*rows, *others]).argsort()

    def forward(self, x: Tensor) -> Tensor:
        parts = [nn.functional.linear(x, *part) for part in (self.learning, self.frozen)]
        return torch.cat(parts, dim=-1)[..., self.back]


def split(model: nn.Module, changed: dict[str, tuple[Tensor, Tensor]], nodes: dict[str, list[int]]) -> None:
    """Put a `Split` in the place of each of these maps."""
    for path, (weight, bias) in changed.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Split(weight, bias, nodes[path]))


@pytest.mark.parametrize("train_it", [False, True])
def test_it_is_the_split_and_permuted_forward(train_it: bool) -> None:
    """To an ulp of single precision, with what is learnt and without."""
    bert = tiny_bert()
    inputs = encoded_task().select.collate([0, 1, 2])
    given_inputs = {n: inputs[n] for n in ("input_ids", "attention_mask")}
    hybrid = attach(bert, recipe(retention=0.3), seed=0)
    if train_it:
        trained(hybrid)
    bert.double()
    ours = bert(**given_inputs).logits
    module, places = module_of(hybrid), hybrid.injection.places
    changed, nodes = {}, {}
    for key, child in zip(module.at, module.children_by_site(), strict=True):
        linear: Any = bert.bert.get_submodule(places[key].exit)
        weight, bias = child.added_to(linear.weight.detach(), linear.bias.detach())
        assert bias is not None
        changed[places[key].exit], nodes[places[key].exit] = (weight, bias), child.index.tolist()
    hybrid.detach()
    split(bert.bert, changed, nodes)
    assert torch.equal(bert(**given_inputs).logits.float(), ours.float())


def test_retention_of_all_trains_all() -> None:
    with attach(tiny_bert(), recipe(retention=1.0), seed=0) as hybrid:
        trained(hybrid)
        nodes = module_of(hybrid).nodes()
    assert {len(rows) for rows in nodes.values()} == {WIDTH, INNER}


@pytest.mark.parametrize("after", [1, 10])
def test_a_saved_one_is_loaded_as_it_was(after: int, tmp_path: Any) -> None:
    """Also one that was stopped while it was primed: the rows are chosen where it ends."""
    batch = encoded_task().train.collate([0, 1])
    given_inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    with attach(tiny_bert(), recipe(retention=0.25, prime=0.3), seed=0) as hybrid:
        trained(hybrid, should_stop=stop_after(after))
        hybrid.save(tmp_path)
        kept, wanted = hybrid.counts().deployed, hybrid.model(**given_inputs).logits
        assert sum(p.numel() for p in module_of(hybrid).parameters()) == kept, "what acts is what is counted"
    again = load(tiny_bert(), tmp_path)
    module = module_of(again)
    assert sum(p.numel() for p in module.parameters()) == kept
    assert [phase.name for phase in module.phases()] == ["train"]
    assert torch.equal(again.model(**given_inputs).logits, wanted)


def test_values_are_fp32_on_a_backbone_of_less() -> None:
    model = tiny_model("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    with attach(model, recipe(), seed=0) as hybrid:
        module = module_of(hybrid)
        module.widen()
        randomise(module)
        out = logits(model, tiny_inputs("llama"))
        out.float().pow(2).mean().backward()
        module.narrow(keep=True)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert out.dtype is torch.bfloat16


def test_refusals() -> None:
    for wrong in ({"retention": 0}, {"retention": 1.5}, {"prime": 0}, {"prime": 1}, {"rest": "some"}):
        with pytest.raises(ValidationError):
            configured("far", **wrong)
    assert configured("far", retention=0.001).parameter_count(
        [s for s in toy_spec().sites if s.name == "down"], toy_spec()
    ).deployed == 2 * (10 + 1), "at least one node of each map"
    with pytest.raises(Exception, match="'q'"):
        attach(tiny_model("bert"), recipe(sites=["q"]))
    assert tiny_config("bert").num_hidden_layers == 3
