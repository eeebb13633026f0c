"""AdapterSoup: which domains are chosen for new texts, and what their average is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.saved_model import reviews_in, save_backbone
from support.tiny import randomise, tiny_model
from transformers import AutoTokenizer

import autopeft
from autopeft import bank
from autopeft.assets import load_model
from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.starts.soup import by_clusters, by_similarity, soup, text_vectors


def test_domains_with_a_tenth_of_the_new_texts_in_their_clusters_are_chosen() -> None:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(6, 48))

    def texts(i: int, n: int) -> Any:
        return centres[i] + 0.5 * draw.normal(size=(n, 48))

    domains = {f"d{i}": texts(i, 100) for i in range(6)}
    new = np.concatenate([texts(3, 48), texts(0, 27), texts(5, 16), texts(1, 9)])
    assert by_clusters(domains, new) == ["d3", "d0", "d5"]
    even = np.concatenate([texts(i, 20) for i in range(6)])
    assert len(by_clusters(domains, even)) == 5, "of six with as many texts"
    with pytest.raises(UsageError, match="two or more domains"):
        by_clusters({"d0": domains["d0"]}, new)
    with pytest.raises(UsageError, match="the smallest of 9 texts"):
        by_clusters({**domains, "d0": domains["d0"][:9]}, new)


def test_domains_whose_texts_are_similar_are_chosen() -> None:
    def at(cosine: float) -> Any:
        return 7 * np.array([[cosine, (1 - cosine**2) ** 0.5, 0.0]] * 3)

    cosines = (0.31, 0.42, 0.1501, 0.1499, 0.16)
    domains = {str(c): at(c) for c in cosines}
    assert by_similarity(domains, np.array([[2.0, 0.0, 0.0]] * 4)) == ["0.42", "0.31", "0.16", "0.1501"]
    assert len(by_similarity({str(i): at(0.5) for i in range(9)}, at(1.0))) == 5


def test_the_vector_of_a_text_is_the_mean_over_its_tokens_alone(tmp_path: Path) -> None:
    save_backbone(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), load_model(tmp_path)
    short, long = "a good film", "a good film and a bad book that was a good film"
    both = text_vectors([short, long, short], model, tokenizer, batch_size=2)
    alone = text_vectors([short], model, tokenizer)
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(both[2], alone[0], atol=1e-5)
    with torch.no_grad():
        states = model.base_model(**tokenizer(long, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(both[1], states[0].mean(0).numpy(), atol=1e-5)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three adapters in a bank, with norms of their own."""
    monkeypatch.chdir(tmp_path)
    item = {"serial_adapter": {"variant": "bapna", "bottleneck": 4}}
    names = ["films", "books", "news"]
    for i, name in enumerate(names):
        with attach(
            tiny_model("bert"), Recipe.from_dict({"name": "a", "layers": [{"attach": [item]}]})
        ) as one:
            randomise(one.root, seed=i)
            one.save(name)
        bank.add(name, name)
    return names


def test_a_soup_is_the_mean_of_every_tensor_and_trains_nothing(kept: list[str]) -> None:
    states = [load_file(f"bank/{name}/weights.safetensors") for name in kept]
    recipe = soup(kept)
    with attach(tiny_model("bert"), recipe) as hybrid:
        assert not [p for p in hybrid.root.parameters() if p.requires_grad]
        hybrid.save("soup")
    found = load_file("soup/weights.safetensors")
    assert {key.rpartition(".serial_adapter.")[2] for key in found} > {"norm.weight", "down.bias"}
    for key, value in found.items():
        torch.testing.assert_close(value, sum(state[key] for state in states) / 3)
    with attach(tiny_model("bert"), soup(kept[::-1])) as hybrid:
        hybrid.save("reversed")
    for key, value in load_file("reversed/weights.safetensors").items():
        torch.testing.assert_close(value, found[key])
    with attach(tiny_model("bert"), soup(kept[:1])) as hybrid:
        hybrid.save("one")
    one = load_file("one/weights.safetensors")
    assert all(torch.equal(value, states[0][key]) for key, value in one.items())
    with pytest.raises(UsageError, match="none was chosen"):
        soup([])


def test_adapters_of_different_seeds_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe.from_dict({"name": "a", "layers": [{"attach": ["serial_adapter"]}]})
    with reviews_in(tmp_path):
        for name, seed in (("one", 1), ("same", 1), ("other", 2)):
            autopeft.train(
                task="reviews.csv", text="body", label="verdict", model="model", recipe=recipe, steps=1,
                max_length=16, seed=seed, out=name,
            )  # fmt: skip
            bank.add(name, name)
        caplog.clear()
        soup(["one", "same"])
        assert not caplog.records
        soup(["one", "other"])
    assert "one 1, other 2" in caplog.text
