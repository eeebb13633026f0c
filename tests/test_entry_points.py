"""A method and a composition in packages of their own: installed with pip, found through their entry points,
usable like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "elsewhere"
version = "1.0"
[project.entry-points."autopeft.{group}"]
{name} = "elsewhere"
[tool.setuptools]
py-modules = ["elsewhere"]
"""

METHOD = '''
"""A trained vector added to a site's output."""
import torch
from torch import nn
from autopeft.method import MethodConfig, ParameterCount, Traits, register


class Vectors(nn.Module):
    def __init__(self, sites):
        super().__init__()
        self.at = nn.ParameterDict({s.key: nn.Parameter(torch.zeros(s.out_features)) for s in sites})

    def side(self, site):
        return "output"

    def delta(self, site, x, y, call):
        return self.at[site.key].expand_as(y)


@register("bias_vector")
class BiasVector:
    """y + v."""

    traits = Traits(ways=frozenset({"hook"}), sites=("q", "v", "ffn"), default_sites=("ffn",))
    Config = MethodConfig

    def __init__(self, config):
        self.config = config

    def parameter_count(self, sites, spec):
        n = sum(s.out_features for s in sites)
        return ParameterCount(n, n)

    def build(self, sites, spec):
        return Vectors(sites)
'''

PROGRAM = """
import torch
from transformers import BertConfig, BertForSequenceClassification
import autopeft
assert "bias_vector" in autopeft.method_names()
config = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
)
model = BertForSequenceClassification(config).eval()
layers = [{"at": "all", "attach": [{"gate": ["lora", "bias_vector"]}]}]
hybrid = autopeft.attach(model, autopeft.Recipe.from_dict({"name": "x", "layers": layers}), seed=0)
assert hybrid.graph.entries["bias_vector"].count.deployed == 16
for p in hybrid.root.parameters():
    torch.nn.init.normal_(p)
model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
assert all(p.grad is not None for p in hybrid.modules["bias_vector"].parameters())
print("works")
"""


COMPOSITION = '''
"""Children that halve each other."""
from torch import nn
from autopeft.composition import CompositionTraits, NoOptions, Sum, added, register
from autopeft.method import ParameterCount


@register("mean")
class Mean(nn.Module):
    """y + (Σ δᵢ) / n."""

    summary = "the mean of what its children add"
    traits = CompositionTraits(mergeable=True, rowwise=True)
    Options = NoOptions

    def __init__(self, n):
        super().__init__()
        self.n = n

    @classmethod
    def check(cls, children, options):
        pass

    @classmethod
    def parameter_count(cls, children, options):
        return ParameterCount(0, 0)

    @classmethod
    def build(cls, children, options):
        return cls(len(children))

    def delta(self, site, children, x, y, call):
        return Sum().delta(site, children, x, y, call) / self.n

    def weight(self, target, children, original, current):
        return current + (Sum().weight(target, children, original, original) - original) / self.n

    def key_value(self, site, children, x, call):
        return Sum().key_value(site, children, x, call)

    def merged(self, site, children, weight, bias):
        new, new_bias = added(children, weight, bias)
        if bias is not None and new_bias is not None:
            new_bias = bias + (new_bias - bias) / self.n
        return weight + (new - weight) / self.n, new_bias
'''

COMPOSED = """
import torch
from transformers import BertConfig, BertForSequenceClassification
import autopeft
from autopeft.cli import main
from autopeft.graph import draw_text
config = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
)
torch.manual_seed(0)
model = BertForSequenceClassification(config).eval()
text = "layers: [{attach: [{mean: [{lora: {rank: 2}}, {ia3: {sites: [q, v]}}]}]}]"
recipe = autopeft.Recipe.from_yaml(text)
hybrid = autopeft.attach(model, recipe, seed=0)
optimizer = hybrid.optimizer(lr=0.1)
rows = torch.tensor([[3, 4, 5]])
for _ in range(2):
    optimizer.zero_grad()
    model(input_ids=rows).logits[0, 0].backward()
    optimizer.step()
assert "mean(lora[rank 2], ia3)" in draw_text(hybrid.graph)
before = model(input_ids=rows).logits.detach()
torch.testing.assert_close(hybrid.merge()(input_ids=rows).logits.detach(), before, atol=1e-5, rtol=1e-4)
assert main(["methods", "mean"]) == 0
print("works")
"""


def run(tmp_path: Path, group: str, name: str, module: str, program: str) -> str:
    """What a program prints where a package with this module and entry point is installed."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT.format(group=group, name=name))
    (source / "elsewhere.py").write_text(module)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_from_another_package(tmp_path: Path) -> None:
    assert run(tmp_path, "methods", "bias_vector", METHOD, PROGRAM).strip() == "works"


@pytest.mark.slow
def test_a_composition_from_another_package(tmp_path: Path) -> None:
    printed = run(tmp_path, "compositions", "mean", COMPOSITION, COMPOSED)
    assert "mean — a composition: the mean of what its children add" in printed
    assert printed.endswith("works\n")
