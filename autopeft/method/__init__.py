"""The method contract and its open registry.

A **method** is a small class: a strict config, its `Traits`, a closed-form `parameter_count` and `build`,
which is called once per recipe entry and returns one `nn.Module` that owns what the entry trains at all its
sites. How that module acts is told by the injection way of its traits and the protocol of the same name
below (`HookModule`, `WeightModule`, `KeyValueModule`, `PromptModule`). Everything else is optional and
found by its presence (`Prepares`, `Deploys`, `Merges`, the events):

| member of the module | called |
|---|---|
| `initialise(target, weight)`, `initialise_prompt(embedding)` | at attach, with what the init reads off the
backbone |
| `measurement()`, `measure(base, batches, objective)`, `settle(measured)` (`Prepares`) | once before
training, with calibration batches |
| `loss_terms() -> Tensor or None` | each step, added to the loss |
| `before_step(step, total)`, `after_backward(step, total)`, `after_step(step, total)`, `finish()` | by the
loop |
| `settled(step, total) -> bool` | by early stopping: while it is false (there still are ranks that training
is to take away) no state counts as the best |
| `phases() -> list[Phase]` | before training, by a module that trains in stages |
| `parameter_groups() -> list[dict]` | when the optimizer is built: `params`, settings of their own, and a
`name` that comes behind the entry's |
| `up_parameters() -> list[Parameter]` | by policies that treat the zero-initialised factor apart (LoRA+) |
| `deploy()` | drops what only training needed (a prefix MLP) |
| `resize(shapes)` (`Resizes`) | at loading, by methods whose deployed size training settles |
| `conclude(batches, objective)` (`Concludes`) | once after training, with the rows that were trained on |
| `members`, `choose(member)` (`Ensembles`) | by predictions, when one hybrid stands for several models |
| `samples`, `recording()`, `covariance(logits)` (`Posterior`) | by predictions, under a posterior |
| `as_lora(site) -> (A, B, s)` | by the export to peft, of the deployed form: what acts there as LoRA |
| `reads(site, x, y, call)` | what a gate in front of it reads (default: the site's input x) |

The method class itself may have `size_field` (the config field whose zero means absent), `default_sites`
(where they depend on the config) and `also_weights` (true where a module that acts on activations alters
weights too). A configured method may narrow its class's `traits` by some of its own: a variant that has fewer
sites, or cannot be merged.
"""

from __future__ import annotations

from autopeft.method.contract import (
    Call,
    Context,
    Injection,
    Method,
    MethodConfig,
    Need,
    ParameterCount,
    Traits,
)
from autopeft.method.lifecycle import Concludes, Ensembles, Merges, Objective, Posterior, Prepares, Resizes
from autopeft.method.modules import HookModule, KeyValueModule, PromptModule, WeightModule, WeightTarget
from autopeft.method.phase import OuterStep, Phase, PhasePart
from autopeft.method.registry import COMPOSITION_NAMES, get_method, method_names, register

__all__ = [
    "COMPOSITION_NAMES",
    "Call",
    "Concludes",
    "Context",
    "Ensembles",
    "HookModule",
    "Injection",
    "KeyValueModule",
    "Merges",
    "Method",
    "MethodConfig",
    "Need",
    "Objective",
    "OuterStep",
    "ParameterCount",
    "Phase",
    "PhasePart",
    "Posterior",
    "Prepares",
    "PromptModule",
    "Resizes",
    "Traits",
    "WeightModule",
    "WeightTarget",
    "get_method",
    "method_names",
    "register",
]
