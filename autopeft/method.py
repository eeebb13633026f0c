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

Methods in other packages register through the entry-point group `autopeft.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from autopeft.errors import MethodError, near
from autopeft.phase import OuterStep, Phase, PhasePart
from autopeft.spec import SITE_NAMES, BackboneSpec, Site

__all__ = [
    "COMPOSITION_NAMES",
    "Call",
    "Concludes",
    "Context",
    "Ensembles",
    "HookModule",
    "KeyValueModule",
    "Merges",
    "Method",
    "MethodConfig",
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

COMPOSITION_NAMES = ("sum", "chain", "gate", "route", "fuse")
Injection = Literal["hook", "weight", "kv", "training"]
Need = Literal["calibration", "decoder", "seq2seq", "several_tasks", "artefacts", "text"]


class MethodConfig(BaseModel):
    """Base of every method's config: unknown keys, wrong types and values out of range are errors.

    `sites` names where the method sits; left out, it takes the method's default sites that exist.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sites: tuple[str, ...] | None = Field(default=None, description="site names; default: the method's own")


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one entry: `deployed` at inference, `trained` while training (fewer only where a small
    adapter makes a whole weight, as HiWi's does, or where stages leave one after the other what stays).

    Of a `data_dependent` method `deployed` is a bound for what a training leaves that has ended. `state` are
    numbers that are saved beside the parameters and that no budget counts (a posterior).
    """

    deployed: int
    trained: int
    state: int = 0

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(
            self.deployed + other.deployed, self.trained + other.trained, self.state + other.state
        )


@dataclass(frozen=True)
class Traits:
    """What a method declares of itself; the graph checks it before anything is built.

    Attributes:
        injection: the way in (`training` for policies that place nothing).
        sites: site names it may take.
        default_sites: where it sits when the recipe names none; those that a backbone lacks are left out.
        level: `layers` (listed under `layers:`), `model` (under `model:`) or `training` (under `policies:`).
        needs: what must be there: calibration batches, a decoder, two stacks, several tasks, artefacts, text
            input.
        mergeable: can be folded into the backbone's weights exactly.
        changes_length: lengthens the sequence.
        stochastic: draws random numbers while training.
        identity: leaves the backbone's function exactly as it is before training.
        direction: replaces the direction of a weight (DoRA): at most one for each weight.
        pretrained: what it makes of a tensor depends on the pretrained values alone (HiWi): in a chain no
            other may have altered the tensor before.
        phased: trains in phases of its own, of which a training can have only one entry's.
        gateable: a gate may stand in front of it.
        rowwise: what it adds at a position depends on that position's x and y alone (hook methods).
        data_dependent: its deployed size is settled at the end of training: by the data, for which
            `parameter_count` gives an upper bound, or by a choice afterwards, for which it gives the default.
            That figure is what a budget counts; the module `Resizes`.
    """

    injection: Injection
    sites: tuple[str, ...] = ()
    default_sites: tuple[str, ...] = ()
    level: Literal["layers", "model", "training"] = "layers"
    needs: frozenset[Need] = field(default_factory=frozenset)
    mergeable: bool = False
    changes_length: bool = False
    stochastic: bool = False
    identity: bool = True
    direction: bool = False
    pretrained: bool = False
    phased: bool = False
    gateable: bool = True
    rowwise: bool = False
    data_dependent: bool = False

    def __post_init__(self) -> None:
        unknown = [s for s in (*self.sites, *self.default_sites) if s not in SITE_NAMES]
        if unknown:
            raise MethodError(f"Unknown sites {unknown} in traits; sites are: {', '.join(SITE_NAMES)}.")


@dataclass(frozen=True)
class Context:
    """Data of one forward of a stack, the same for all its sites.

    Where several hybrids share a model, each has a context of its own, for its own rows of the batch.

    Attributes:
        mask: (batch, positions), 1 for real positions and 0 for padding, reserved rows included; `None`
            where no mask was given.
        source_mask: of a decoder behind an encoder, the same for what cross-attention reads.
        task_id: (batch,) or `None`.
        reserved: rows at the front (or, for vision, at the end) that prompts fill.
        cached: whether keys and values of earlier positions come from a cache (a decoding step).
        hybrid: token of the hybrid that this forward belongs to.
        lost: nothing is known of the forward: a layer is recomputed after it, and its family does not hand
            the context on.
    """

    mask: Tensor | None = None
    source_mask: Tensor | None = None
    task_id: Tensor | None = None
    reserved: int = 0
    cached: bool = False
    hybrid: int = 0
    lost: bool = False


@dataclass(frozen=True)
class Call:
    """One call of a site: the stack's context and what the region around the site offers.

    Attributes:
        context: see `Context`.
        gated: a gate stands in front and replaces the module's own constant scale (UniPELT drops LoRA's α/r).
        residual: for regions, the residual stream that the region's output is added to, (batch, positions,
            hidden).
        norm: for regions of post-norm layers, the frozen norm that follows the residual add.
        entered: on the output side, the x that came before the site's input side altered it; `None` where
            nothing did.
    """

    context: Context
    gated: bool = False
    residual: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    entered: Tensor | None = None


@dataclass(frozen=True)
class WeightTarget:
    """A backbone tensor that a weight method alters: the weight of a linear `site`, or a `tensor` by name.

    For a site the weight is handed over as (out, in), whatever the backbone's layout (Conv1D, fused
    projections); for a tensor as it is stored.
    """

    site: Site | None = None
    tensor: str | None = None

    @property
    def key(self) -> str:
        return self.site.key if self.site is not None else str(self.tensor)


class HookModule(Protocol):
    """Acts on activations. `side(site)` says whether it alters the site's input or its output.

    `delta(site, x, y, call)` returns what is added, in the shape of the altered tensor: of y (batch, …,
    out) on the output side, of x on the input side (where y is x).
    """

    def side(self, site: Site) -> Literal["input", "output"]: ...

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor: ...


class WeightModule(Protocol):
    """Alters backbone tensors. `weight` returns the new tensor.

    `original` is the backbone's tensor, `current` what earlier weight methods made of it; an additive
    method returns current + Δ, a direction method current + (f(original) − original).
    """

    def weight_targets(self) -> Sequence[WeightTarget]: ...

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor: ...


class KeyValueModule(Protocol):
    """Prepends keys and values to an attention region.

    Returns two tensors (1 or batch, length, kv_features).
    """

    def key_value(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]: ...


class PromptModule(Protocol):
    """Fills reserved rows at the embeddings. `prompt` returns (1 or batch, length, hidden)."""

    length: int

    def prompt(self, site: Site, call: Call) -> Tensor: ...


class Objective(Protocol):
    """What calibration may ask of the model: the task's loss and the scores behind it, both differentiable.

    `objective(batch)` is the mean loss over the batch (a scalar), `objective.logits(batch)` the model's
    output scores (batch, classes), or (batch, 1) for regression. Both run one forward of the attached model
    on a batch with labels.
    """

    def __call__(self, batch: dict[str, Tensor]) -> Tensor: ...

    def logits(self, batch: dict[str, Tensor]) -> Tensor: ...


@runtime_checkable
class Prepares(Protocol):
    """Needs calibration before training (`needs` holds `calibration`): it measures, then settles.

    `measure` gets the bare base model (tensor names of the spec are relative to it; nothing that the recipe
    attaches acts meanwhile), an iterator over batches of training examples with labels, and the task's
    `Objective`; it must leave the model as it was: values, gradients and what requires grad. What it returns
    depends on backbone, head, data and `measurement` alone, so it is kept and used again by later trials.

    `measurement` returns what else `measure` depends on, as JSON values: the config without the entry's size.
    `settle` takes what was measured and makes the module ready to train, from any earlier state.
    """

    def measurement(self) -> dict[str, Any]: ...

    def measure(
        self, base: nn.Module, batches: Iterable[dict[str, Tensor]], objective: Objective
    ) -> dict[str, Tensor]: ...

    def settle(self, measured: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Resizes(Protocol):
    """Has a deployed size that training settles (`data_dependent`): ranks that are pruned, say.

    `deploy()` keeps exactly what acts, so that the module's function stays as it was. `resize` is called on
    the deployed form of a fresh module before saved tensors are filled in. `shapes` holds the saved shape for
    each key of its state, with the number of dimensions that the tensor has; the module then has tensors of
    these shapes, with any values. What its config forbids it leaves as it is, and loading is refused.
    """

    def deploy(self) -> None: ...

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None: ...


@runtime_checkable
class Merges(Protocol):
    """Can be folded into a linear site: returns the new (out, in) weight and bias for this site.

    At a norm the weight is its gain (out,). A bias may also come back where the backbone has none: a linear
    map then gets one, and what is added behind a norm goes into the biases of the maps that read it.
    """

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class Ensembles(Protocol):
    """Stands for several models at test time, whose output distributions are averaged.

    `members` is how many (0: one, alone). After `choose(i)` the module acts in eval mode as member i, for any
    i ≥ 0, the same in every forward; after `choose(None)` as without an ensemble.
    """

    members: int

    def choose(self, member: int | None) -> None: ...


@runtime_checkable
class Concludes(Protocol):
    """Learns something more when training has ended, `finish` included: the curvature at what was found.

    `conclude` gets an iterator over batches that hold each row of *train* that was trained on once, and the
    task's `Objective`, in eval mode. It starts from any earlier state, leaves values, gradients and what
    requires grad of the model as they were, and keeps what it learned in buffers of a fixed shape, which are
    saved and do not count as parameters. A training that was paused or was asked to stop is not concluded;
    `before_step` tells of one that goes on.
    """

    def conclude(self, batches: Iterable[dict[str, Tensor]], objective: Objective) -> None: ...


@runtime_checkable
class Posterior(Protocol):
    """Has a normal distribution over parameters, under which the logits of the linearised model are normal.

    `samples` is how many draws of the logits a prediction averages (0: there is none yet, or none wanted).
    `covariance` gives J·Σ·Jᵀ (rows, classes, classes) for the logits (rows, classes) of a forward in eval
    mode within `recording()`, gradients on, and may be asked once for it.
    """

    @property
    def samples(self) -> int: ...

    def recording(self) -> AbstractContextManager[None]: ...

    def covariance(self, logits: Tensor) -> Tensor: ...


class Method(Protocol):
    """The contract: see the module's docstring. The class docstring holds formula, paper and shapes."""

    name: ClassVar[str]
    traits: ClassVar[Traits]
    Config: ClassVar[type[MethodConfig]]
    config: Any

    def __init__(self, config: Any) -> None: ...

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount: ...

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module: ...


_REGISTRY: dict[str, type[Any]] = {}
_LOADED = False
_C = TypeVar("_C", bound=type)


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator that enters a method under `name`.

    Raises:
        MethodError: the name is taken, reserved for a composition or malformed, or the class lacks a part of
        the contract.
    """

    def enter(cls: _C) -> _C:
        if name in COMPOSITION_NAMES:
            raise MethodError(f"{name!r} is reserved for a composition; choose another method name.")
        if not name.isidentifier() or name != name.lower() or hasattr(nn.ModuleDict(), name):
            raise MethodError(
                f"A method name is a lower-case identifier that torch's modules leave free, but got {name!r}."
            )
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise MethodError(f"The method name {name!r} is taken by {_REGISTRY[name].__module__}.")
        traits = getattr(cls, "traits", None)
        policy = traits is not None and traits.level == "training"
        required = ("traits", "Config", *(("adjust",) if policy else ("parameter_count", "build")))
        missing = [m for m in required if not hasattr(cls, m)]
        if missing:
            raise MethodError(f"Method {name!r} ({cls.__qualname__}) lacks {', '.join(missing)}.")
        cls.name = name  # type: ignore[attr-defined]
        _REGISTRY[name] = cls
        return cls

    return enter


def _load_all() -> None:
    """Import the built-in methods and those of installed packages, once."""
    global _LOADED
    if _LOADED:
        return
    _LOADED = True
    package = importlib.import_module("autopeft.methods")
    for module in _walk(package.__path__, "autopeft.methods."):
        importlib.import_module(module)
    for point in entry_points(group="autopeft.methods"):
        point.load()


def _walk(path: Iterable[str], prefix: str) -> Iterator[str]:
    for info in sorted(pkgutil.walk_packages(path, prefix), key=lambda i: i.name):
        if not info.ispkg:
            yield info.name


def get_method(name: str) -> type[Any]:
    """The method class registered under `name`.

    Raises:
        MethodError: there is none; the message names near matches.
    """
    _load_all()
    if name not in _REGISTRY:
        raise MethodError(
            f"There is no method {name!r}.{near(name, _REGISTRY)} `autopeft methods` lists all "
            f"{len(_REGISTRY)}; one from another "
            "package registers through the entry-point group 'autopeft.methods'."
        )
    return _REGISTRY[name]


def method_names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    _load_all()
    return tuple(sorted(_REGISTRY))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters live (CPU for one without any)."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
