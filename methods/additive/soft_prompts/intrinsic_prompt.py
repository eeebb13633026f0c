"""Intrinsic prompt tuning (IPT): prompts of many tasks through one narrow auto-encoder, whose decoder turns a
few numbers into the prompt of a new task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import (
    Call,
    LossStep,
    MethodConfig,
    ParameterCount,
    PeftFormat,
    Slot,
    Stored,
    Traits,
    WrittenOut,
    register,
    required_tasks,
    task_numbers,
)
from autopeft.nn import only_prompt, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["IntrinsicPrompt"]

_STD = 0.02
_DECODER = ("0.weight", "0.bias", "2.weight", "2.bias")


def _decoder(width: int, config: IntrinsicPrompt.Config) -> nn.Sequential:
    """From z (…, d_I) to a prompt as one vector: W₃·tanh(W₂·z + b₂) + b₃."""
    hidden = config.hidden
    return nn.Sequential(
        nn.Linear(config.dimension, hidden), nn.Tanh(), nn.Linear(hidden, config.length * width)
    )


class SubspaceModule(nn.Module):
    """The auto-encoder of the prompts of several tasks; once deployed, a code of each and the decoder."""

    prompts: Tensor
    encoder: nn.Linear | None
    codes: nn.Parameter | None

    def __init__(self, width: int, config: IntrinsicPrompt.Config) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.names = required_tasks("intrinsic_prompt (stage subspace)", config.tasks)
        # Read anew wherever it is attached; what is saved has no need of them.
        self.register_buffer("prompts", torch.zeros(len(self.names), config.length, width), persistent=False)
        self.encoder = nn.Linear(config.length * width, config.dimension)
        self.decoder, self.codes = _decoder(width, config), None
        self._given = False
        self._seen: Tensor | None = None  # tasks of the rows of the last forward

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Keep the prompts (length, d), one for each task, in their order."""
        if len(stored) != len(self.names):
            raise MethodError(
                f"intrinsic_prompt learns the prompts of {len(self.names)} tasks "
                f"({', '.join(self.names)}), but 'from' names {len(stored)}: name the prompt of each, in "
                "this order."
            )
        for row, one in zip(self.prompts, stored, strict=True):
            row.copy_(only_prompt([one], *row.shape))
        self._given = True

    def _decoded(self, tasks: Tensor) -> Tensor:
        """Prompts (numbers, length, d) of the numbers of tasks."""
        codes = self.codes
        if codes is None:
            if not self._given:
                raise MethodError(
                    "intrinsic_prompt learns what prompts of several tasks have in common: name them by "
                    "'from:' in the recipe, one for each task."
                )
            codes = cast(nn.Parameter, cast(nn.Linear, self.encoder)(self.prompts.flatten(1)))
        rows: Tensor = self.decoder(codes[tasks])
        return rows.view(-1, self.config.length, self.width)

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.config.length),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        numbers, there = task_numbers("intrinsic_prompt", self.names, len(x), call)
        present = torch.tensor(there, device=x.device)
        found = self._decoded(present)
        if self.training and not call.context.further:
            self._seen = numbers
        return found if len(there) == 1 else found[torch.searchsorted(present, numbers)]

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """`reconstruction` times the mean square of P̂ − P over the rows of the batch."""
        seen, self._seen = self._seen, None
        if seen is None or self.codes is not None:
            return None
        apart = (self._decoded(torch.arange(len(self.names), device=seen.device)) - self.prompts).square()
        return self.config.reconstruction * apart.mean(dim=(1, 2))[seen].mean()

    @torch.no_grad()
    def deploy(self) -> None:
        """Keep the codes of the tasks, and drop the encoder that makes them."""
        if self.codes is None:
            found = cast(nn.Linear, self.encoder)(self.prompts.flatten(1))
            self.codes, self.encoder = nn.Parameter(found.clone()), None

    @torch.no_grad()
    def written_out(self, task: int, sites: Sequence[Site]) -> WrittenOut:
        """The prompt of one task, as `prompt_tuning`."""
        table = self._decoded(torch.tensor([task], device=self.prompts.device))[0]
        return WrittenOut("prompt_tuning", {"length": self.config.length}, {"table": table})


class CodeModule(nn.Module):
    """z and a frozen decoder; once deployed, the prompt that they make."""

    z: nn.Parameter | None
    table: nn.Parameter | None

    def __init__(self, width: int, config: IntrinsicPrompt.Config) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.z = nn.Parameter(torch.randn(1, config.dimension) * _STD)
        self.table = None
        self._given = False
        for name, value in _decoder(width, config).state_dict().items():
            self.register_buffer(_held(name), value, persistent=False)  # it neither trains nor is saved

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Keep the decoder that a stage `subspace` has left."""
        if len(stored) != 1 or not stored[0].own:
            got = ", ".join(one.label for one in stored)
            raise MethodError(
                f"A code is decoded by one intrinsic_prompt of the stage subspace, but 'from' names {got}."
            )
        way_out = "take its `length`, `dimension` and `hidden`, and the same backbone"
        for name in _DECODER:
            own = getattr(self, _held(name))
            own.copy_(stored[0].tensor(f"decoder.{name}", tuple(own.shape), way_out))
        self._given = True

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.config.length),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self._rows()[None]

    def _rows(self) -> Tensor:
        if self.table is not None:
            return self.table
        if not self._given:
            raise MethodError(
                "intrinsic_prompt (stage task) needs the decoder that a stage subspace has left; name it by "
                "'from:' in the recipe."
            )
        down, down_bias, up, up_bias = (getattr(self, _held(name)) for name in _DECODER)
        inner = nn.functional.linear(cast(Tensor, self.z), down, down_bias).tanh()
        return nn.functional.linear(inner, up, up_bias).view(self.config.length, self.width)

    @torch.no_grad()
    def deploy(self) -> None:
        """Keep the prompt as a parameter of its own, and drop z and the decoder."""
        if self.table is None:
            rows = self._rows() if self._given else torch.zeros(self.config.length, self.width)
            self.table = nn.Parameter(rows.clone())
            self.z = None
            for name in _DECODER:
                delattr(self, _held(name))


def _held(name: str) -> str:
    """The name of a buffer with one of the decoder's tensors."""
    return "decoder_" + name.replace(".", "_")


@register("intrinsic_prompt")
class IntrinsicPrompt:
    """H₀ = [P; Emb(x)] with P = reshape(W₃·tanh(W₂·z + b₂) + b₃), z in R^{d_I}.

    Qin et al. 2021, arXiv:2110.07867 (IPT), in two trainings. `stage: subspace` (their MSF) learns W₁, W₂,
    W₃ on the rows of several tasks, z = W₁·vec(P) + b₁ of each task's own prompt P, which a recipe's `from:`
    names in the order of the tasks (prompts of `prompt_tuning`, say, each trained on its task before). P
    stays as it is. The loss gets `reconstruction` times mean((P̂ − P)²). `stage: task` (IST) trains z alone,
    N(0, 0.02), on one task, through the decoder W₂, W₃ that a stage `subspace` has left and `from:` names;
    once trained it is a prompt like any other.

    The authors add 200·mean((P̂ − P)²) to a cross-entropy that is summed over the target's tokens of the
    batch; losses here are means, beside which that is 200 over their number: about 1 at 64 rows of three
    tokens. Maps start as torch starts them. The tasks share label words or a language model's head: with a
    head for each task most of it would be in the head. Not the identity; not mergeable.

    `subspace`: l·d·d_I + d_I + d_I·h + h + h·l·d + l·d parameters are trained, and T·d_I and the decoder are
    deployed; BART-base, l 100, d_I 250: 78,452,218 trained. `task`: d_I are trained, l·d deployed.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        needs=frozenset({"artefacts", "text"}),
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    peft: PeftFormat | None = PeftFormat("prompt")

    class Config(MethodConfig):
        stage: Literal["subspace", "task"] = Field(
            default="subspace", description="learn the subspace of several tasks, or a task in it"
        )
        length: int = Field(default=100, ge=1, le=4096, description="l")
        dimension: int = Field(default=250, ge=1, le=65_536, description="d_I, of the subspace")
        hidden: int = Field(default=768, ge=1, le=65_536, description="h, of the decoder")
        reconstruction: float = Field(default=1.0, ge=0, le=1e6, description="factor of mean((P̂ − P)²)")
        tasks: tuple[str, ...] | None = Field(
            default=None, description="of stage subspace: names; default: those trained on"
        )

        @model_validator(mode="after")
        def _a_task_is_one(self) -> IntrinsicPrompt.Config:
            if self.stage == "task" and self.tasks is not None:
                raise ValueError("'tasks' is for stage 'subspace'; stage 'task' is of one task")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.stage == "subspace":
            self.peft = None
            self.traits = replace(self.traits, needs=self.traits.needs | {"several_tasks"})

    def _sizes(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[int, int]:
        """Parameters of the prompt as one vector, and of the decoder.

        Raises:
            MethodError: the maps would be larger than any that loading allows.
        """
        rows = self.config.length * prompt_width("intrinsic_prompt", sites, spec, "uniform")
        c = self.config
        decoder = (c.dimension + 1) * c.hidden + (c.hidden + 1) * rows
        if decoder + rows * c.dimension > 10**10:
            raise MethodError(
                f"intrinsic_prompt would have maps of {decoder + rows * c.dimension:,} parameters; set "
                "a smaller "
                "`length`, `dimension` or `hidden`."
            )
        return rows, decoder

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c, (rows, decoder) = self.config, self._sizes(sites, spec)
        if c.stage == "task":
            return ParameterCount(rows, c.dimension)
        tasks = len(required_tasks("intrinsic_prompt (stage subspace)", c.tasks))
        return ParameterCount(tasks * c.dimension + decoder, (rows + 1) * c.dimension + decoder)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        self._sizes(sites, spec)
        width = prompt_width("intrinsic_prompt", sites, spec, "uniform")
        kinds: dict[str, type[Any]] = {"subspace": SubspaceModule, "task": CodeModule}
        module: nn.Module = kinds[self.config.stage](width, self.config)
        return module
