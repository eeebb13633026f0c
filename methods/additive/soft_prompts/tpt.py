"""TPT: the prompt of another model, brought to this one by a trained projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import (
    Call,
    DecayTarget,
    MethodConfig,
    ParameterCount,
    PeftFormat,
    Phase,
    Slot,
    Stored,
    Traits,
    register,
)
from autopeft.nn import only_prompt, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["TPT", "Projector"]


class Projector(nn.Module):
    """From a prompt (l, d_s) to one (l, d_t): W₂·act(W₁·vec(P) + b₁) + b₂, each row normed where `norm`
    is."""

    def __init__(self, source: int, target: int, config: TPT.Config) -> None:
        super().__init__()
        self.shape = (config.length, target)
        self.down = nn.Linear(config.length * source, config.hidden)
        self.up = nn.Linear(config.hidden, config.length * target)
        self.act = nn.Tanh() if config.activation == "tanh" else nn.LeakyReLU()
        self.norm = nn.LayerNorm(target) if config.norm else None

    @staticmethod
    def size(source: int, target: int, config: TPT.Config) -> int:
        """Parameters: l·d_s·h + h + h·l·d_t + l·d_t, and 2·d_t of the norm."""
        length, hidden = config.length, config.hidden
        maps = (length * source + 1) * hidden + (hidden + 1) * length * target
        return maps + (2 * target if config.norm else 0)

    def forward(self, prompt: Tensor) -> Tensor:
        rows: Tensor = self.up(self.act(self.down(prompt.flatten()))).view(self.shape)
        return rows if self.norm is None else self.norm(rows)  # type: ignore[no-any-return]


class TPTModule(nn.Module):
    """The source prompt through the projector, and then the prompt that came out of it, as a parameter."""

    source: Tensor
    projector: Projector | None
    table: nn.Parameter | None

    def __init__(self, width: int, config: TPT.Config) -> None:
        super().__init__()
        self.config = config
        # Read anew wherever it is attached; what is saved has no need of it.
        self.register_buffer("source", torch.zeros(config.length, config.source_width), persistent=False)
        self.projector = Projector(config.source_width, width, config)
        self.table = None
        self._given = False

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Keep the source prompt (length, d_s)."""
        self._given = True
        self.source.copy_(only_prompt(stored, self.config.length, self.config.source_width))

    def phases(self) -> list[Phase]:
        """`project` trains the projector, `tune` the prompt that it has made.

        Raises:
            MethodError: there is no source prompt to project.
        """
        share = self.config.projection
        if self.projector is None:
            return [Phase("tune")]
        if not self._given:
            raise MethodError("tpt projects the prompt of another model; name it by 'from:' in the recipe.")
        project = Phase("project", share, output=lambda: cast(Projector, self.projector)(self.source))
        return [project] if share == 1 else [project, Phase("tune", 1 - share, begin=self.deploy)]

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """The gain of the projector's norm, towards one."""
        norm = None if self.projector is None else self.projector.norm
        return {} if norm is None else {norm.weight: 1.0}

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.config.length),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self._rows()[None]

    def _rows(self) -> Tensor:
        return cast(Projector, self.projector)(self.source) if self.table is None else self.table  # type: ignore[no-any-return]

    def deploy(self) -> None:
        """Keep the prompt as a parameter of its own, and drop the projector that made it."""
        if self.table is None:
            with torch.no_grad():
                self.table = nn.Parameter(self._rows().clone())
            self.projector = None


@register("tpt")
class TPT:
    """H₀ = [P; Emb(x)] with P = LN(W₂·act(W₁·vec(P_s) + b₁) + b₂) from the prompt P_s (l × d_s) of another
    model.

    Su et al. 2022, arXiv:2111.06719 (transferability of prompt tuning, not the test-time prompt tuning of
    CLIP). A recipe's `from:` names the source prompt, of `prompt_tuning`, `spot`, `tpt` or `p_tuning`
    with the same `length` on a backbone of width d_s = `source_width`. P_s stays as it is. For the share
    `projection` of the steps the projector is trained on the task's rows through this model, whose prompt is
    what it makes (the authors' task tuning); then that prompt is trained by itself, and the projector is
    dropped.
    `projection: 1` trains the projector alone, as the authors do on the source's task; a second recipe on the
    target's task begins `from:` what came of it. Between tasks of one model no projector is needed:
    `prompt_tuning` or `spot` with `from:`.

    Of the paper's two trainings of a projector this is task tuning. Not built is distance minimising, which
    needs prompts of one task trained on both models and moves the projected one towards the other. Nor is the
    choice of a source by the overlap of the neurons in the FFN that two prompts activate (the authors'
    `neuron_similarity`): a recipe names its source.

    `activation` is LeakyReLU, or Tanh, which the authors take from base to large; `norm` is the LayerNorm of
    their experiments, over d_t of each row. W₁, W₂ and their biases start as torch starts them; weight decay
    pulls the LayerNorm's gain to one. Not the identity at init; not mergeable. length·d_t parameters;
    meanwhile trained are l·d_s·h + h + h·l·d_t + l·d_t, and 2·d_t.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        needs=frozenset({"artefacts"}),
        identity=False,
        gateable=False,
        phased=True,
    )
    size_field: ClassVar[str] = "length"
    peft = PeftFormat("prompt")

    class Config(MethodConfig):
        length: int = Field(default=100, ge=1, le=4096, description="l, of both prompts")
        source_width: int = Field(default=768, ge=1, le=65_536, description="d_s, of the source's backbone")
        hidden: int = Field(default=768, ge=1, le=16_384, description="h, of the projector")
        activation: Literal["leaky_relu", "tanh"] = "leaky_relu"
        norm: bool = Field(default=True, description="a LayerNorm on every row of what the projector makes")
        projection: float = Field(default=0.5, gt=0, le=1, description="share of the steps for the projector")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _sizes(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[int, int]:
        """Parameters of the prompt and of the projector.

        Raises:
            MethodError: the projector would be larger than any that loading allows.
        """
        width = prompt_width("tpt", sites, spec, "uniform")
        projector = Projector.size(self.config.source_width, width, self.config)
        if projector > 10**10:
            raise MethodError(
                f"tpt would train a projector of {projector:,} parameters; set a smaller `length` or "
                f"`hidden`."
            )
        return self.config.length * width, projector

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        return ParameterCount(*self._sizes(sites, spec))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        self._sizes(sites, spec)
        return TPTModule(prompt_width("tpt", sites, spec, "uniform"), self.config)
