"""DePT: a short prompt, and a low-rank update of the token embeddings by their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Stored, Traits, register
from autopeft.nn import PromptInit, PromptTable, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["DePT"]


class DecomposedPrompt(PromptTable):
    """The prompt `table` (length, d), and A (s, rank), B (rank, d) of the update scale·A·B."""

    def __init__(self, config: DePT.Config, width: int) -> None:
        super().__init__(config.length, width, config.init, config.words)
        self.A = nn.Parameter(torch.empty(config.max_length, config.rank))
        self.B = nn.Parameter(torch.zeros(config.rank, width))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale, self.longest_text = config.alpha / math.sqrt(config.rank), config.max_length

    def side(self, site: Site) -> Literal["output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Row k of scale·A·B at the k-th real token of each text, zeros at reserved rows."""
        context, rows = call.context, call.rows
        tokens = y.shape[1] - rows.count
        numbers = context.numbers(tokens).to(y.device)
        # Padding may make a batch longer than each of its texts is.
        if context.past + tokens > len(self.A) and int(numbers.max()) >= len(self.A):
            raise MethodError(
                f"dept has max_length={len(self.A)} and so an update for as many tokens, but a text has "
                f"{int(numbers.max()) + 1:,}; shorten the texts (max length), or raise `max_length`."
            )
        return rows.placed(self.scale * (self.A[numbers] @ self.B), y)

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Begin with a stored prompt (length, d), and with the update where it has one."""
        super().start_from(stored)
        if stored[0].method == DePT.name:
            way_out = "start from one of the same `max_length` and `rank`"
            for name, own in (("A", self.A), ("B", self.B)):
                own.copy_(stored[0].tensor(name, tuple(own.shape), way_out))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The prompt, and the pair of the update."""
        return {"prompt": [self.table], "low_rank": [self.A, self.B]}


@register("dept")
class DePT:
    """H₀ = [P; Emb(x) + α/√r·A·B], P (l × d), A (s × r) and B (r × d) trained; in the encoder of two stacks.

    Shi & Lipani 2024, arXiv:2309.05173. Row k of A·B comes to the k-th token of each text; rows of prompts
    get none. Texts have at most s = `max_length` tokens, longer ones are refused. The k-th real token gets
    row k on every backbone, wherever padding is, and the count goes on in steps of generation. So padding
    changes nothing. The authors' decoders count from the padded front, and what they write gets no update. As
    in their code (ZhengxiangShi/DePT) the update is scaled by α/√r, α = 8 (the paper has A·B alone), A is
    Kaiming-uniform(a = √5) and B zero: at first it is prompt_tuning with l rows. P begins as a text, whose
    token ids are `words`, repeated or cut to l; without them as `init` says, `vocabulary` of drawn tokens.
    Defaults are those of their T5-base: l = 40, r = 45, s = 256, as many parameters as 100 rows have. The two
    parts train at rates of their own there, 0.3 or 0.4 and 5e-4 to 0.3; in a recipe `training: {groups:
    {dept.prompt: {learning_rate: 0.3}, dept.low_rank: {learning_rate: 5e-4}}}`. Not the identity at init; not
    mergeable.

    l·d + r·(s + d).
    """

    name: ClassVar[str]
    traits = Traits(
        ways=frozenset({"prompt", "hook"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        needs=frozenset({"text"}),
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    part_names: ClassVar[tuple[str, ...]] = ("prompt", "low_rank")

    class Config(MethodConfig):
        length: int = Field(default=40, ge=1, le=4096, description="l")
        rank: int = Field(default=45, ge=1, le=4096, description="r")
        alpha: float = Field(default=8.0, gt=0, le=1024, description="α")
        max_length: int = Field(default=256, ge=1, le=1 << 20, description="s, in tokens")
        init: PromptInit = Field(default="vocabulary", description="what the prompt begins as")
        words: tuple[int, ...] | None = Field(
            default=None, min_length=1, description="ids of the tokens that the prompt begins as"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        return prompt_width("dept", sites, spec, self.config.init)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c, d = self.config, self._width(sites, spec)
        n = c.length * d + c.rank * (c.max_length + d)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return DecomposedPrompt(self.config, self._width(sites, spec))
