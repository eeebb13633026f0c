"""A method in a package of its own: installed with pip, found through its entry point, usable like any
other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "elsewhere"
version = "1.0"
[project.entry-points."autopeft.methods"]
bias_vector = "elsewhere"
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

    traits = Traits(injection="hook", sites=("q", "v", "ffn"), default_sites=("ffn",))
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


def test_a_method_from_another_package(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "elsewhere.py").write_text(METHOD)
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
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "works", done.stderr
