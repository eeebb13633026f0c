"""IPA: a small language model of its own, whose logits tailor those of the frozen one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import (
    FEATURE,
    Call,
    DecayTarget,
    LossStep,
    MethodConfig,
    ParameterCount,
    Phase,
    Session,
    Traits,
    register,
)
from autopeft.nn import DecoderShape, QuantilePool, SmallDecoder
from autopeft.spec import BackboneSpec, Site

__all__ = ["IPA"]


class PolicyAdapter(nn.Module):
    """The adapter policy, and what it adds to the logits."""

    def __init__(self, shape: DecoderShape, config: IPA.Config) -> None:
        super().__init__()
        self.config = config
        self.policy = SmallDecoder(shape, config.bins, "ipa")
        self.base: Tensor | None = None  # logits of the present step without the policy's
        self.silent = False

    def logits(self, hidden: Tensor, logits: Tensor, call: Call) -> Tensor:
        c = self.config
        if (c.kl_coef or c.entropy_coef) and torch.is_grad_enabled() and not call.context.further:
            self.base = logits.detach()
        if self.silent:
            return torch.zeros_like(logits)
        states = self.policy(call.context, call.context.features.get(self.policy.key))
        assert call.read is not None  # on logits it is there
        return c.alpha * self.policy.project(call.read(states))

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """kl_coef·KL(p ‖ p_base) − entropy_coef·H(p), the mean over the learnt tokens."""
        base, self.base = self.base, None
        if base is None:
            return None
        logits = step.logits
        if logits.ndim == 3:  # of all tokens
            learnt = step.labels[:, 1:] >= 0
            logits, base = logits[:, :-1][learnt], base[:, :-1][learnt]
        own, plain = logits.float().log_softmax(-1), base.float().log_softmax(-1)
        kl = (own.exp() * (own - plain)).sum(-1)
        entropy = -(own.exp() * own).sum(-1)
        return step.mean(self.config.kl_coef * kl - self.config.entropy_coef * entropy)

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """Gains of norms, towards one."""
        named = self.policy.decoder.named_parameters()
        return {parameter: 1.0 for name, parameter in named if "norm" in name}

    @contextmanager
    def silenced(self, silent: bool) -> Iterator[None]:
        """Within, the base writes alone, where `silent`."""
        self.silent = silent
        try:
            yield
        finally:
            self.silent = False


class QuarkAdapter(PolicyAdapter):
    """The same, trained by rewards of what it writes."""

    def __init__(self, shape: DecoderShape, config: IPA.Config) -> None:
        super().__init__(shape, config)
        self.rewards: list[float] = []  # mean of each round

    def phases(self) -> list[Phase]:
        """One, whose output is the mean reward of what each round wrote."""
        self.rewards = []
        own = Phase("quark", run=self.run, resumes=False, output=lambda: {"rewards": self.rewards})
        return [own]  # the pool is in no checkpoint

    def run(self, session: Session) -> None:
        """Take all steps on what was written so far, and write more where it is time."""
        pool, batches = QuantilePool(self.config.bins), None
        while not session.over:
            if batches is None or session.taken % self.config.interval == 0:
                self.write(session, pool)
                batches = pool.batches(session.rows)
            samples, bins = next(batches)
            batch = session.batch(samples)
            session.step({**batch, FEATURE + self.policy.key: bins.to(batch["input_ids"].device)})

    def write(self, session: Session, pool: QuantilePool) -> None:
        """A round: of the base alone before the first step, and of both behind the best control later."""
        c = self.config
        with self.silenced(session.taken == 0):
            fresh = session.write(c.samples, temperature=c.temperature, top_p=c.top_p, most=c.longest)
        pool.add(fresh)
        self.rewards.append(sum(sample.reward for sample in fresh) / len(fresh))

    def remarks(self) -> list[str]:
        """That the policy was never asked, where it was not."""
        if len(self.rewards) != 1:
            return []
        return [
            f"ipa learnt from what the base wrote alone: its {self.config.interval} steps from round to "
            "round (interval) are no fewer than those of the training."
        ]


@register("ipa")
class IPA:
    """softmax(z + α·z_φ): z are the base's logits, z_φ those of an adapter policy φ, at each token.

    Lu et al. 2023, arXiv:2305.15065. φ is a language model of its own over the same vocabulary, here of the
    Llama family with tied embeddings, drawn N(0, 0.02) in the size that the options give. It reads the text
    behind a control token that the base does not see; the `bins` controls are drawn as its embeddings are
    spread. `policy.take(model)` of an attached module starts it from a pretrained model instead, and saved it
    is an entry's `from:`. It takes decoders of the Llama family whose sizes are the options' and whose output
    embeddings are their input embeddings, and refuses all others. So it refuses the authors' φ, GPT-2 large:
    GPT-2 has learnt positions, biases and an FFN without gate. The base may be GPT-2. It gets no gradient.
    Not the identity at init.

    `training: quark` (Lu et al. 2022, arXiv:2205.13636) learns from rewards: before the first step the base
    alone writes to `samples` training rows, and both together, behind the best control, each `interval`
    steps. The reward is the task's metric of each text (exact_match, rouge_l or a function of one's own). All
    samples so far are sorted into `bins` quantiles, whose controls they get. A step minimises the NLL of some
    of them + `kl_coef`·KL(p ‖ p_base) − `entropy_coef`·H(p), the mean over the written tokens. At test the
    best control stands in front. `training: supervised` is ours: the NLL of the rows' own answers behind the
    best control, to start φ where there is no pretrained one. Quark's pool is in no checkpoint, so that a
    paused training begins anew. Not built: adaptive coefficients, hard constraints, another base in training.

    φ's keys and values are kept in the base's cache, so that texts are written from it, with beams and
    padding too. Others' prompts it does not see. For decoders as language models alone, not mergeable, and no
    other library's format says it. V·d + L·(2d² + 2d·d_kv + 3d·d_ff + 2d) + d + bins·d parameters, all of
    them deployed.
    """

    traits = Traits(
        ways=frozenset({"logits"}),
        level="model",
        needs=frozenset({"text", "token_logits"}),
        identity=False,
        phased=True,
        gateable=False,
    )

    class Config(MethodConfig):
        layers: int = Field(default=4, ge=1, le=1000, description="of φ")
        width: int = Field(default=128, ge=2, le=100_000, description="d of φ")
        heads: int = Field(default=4, ge=1, le=1000, description="of φ; they divide `width` evenly")
        kv_heads: int | None = Field(default=None, ge=1, description="of keys and values; default: `heads`")
        ffn: int | None = Field(default=None, ge=1, le=1_000_000, description="d_ff; default: 8/3 of `width`")
        rope_theta: float = Field(default=10_000.0, gt=0, le=1e9, description="base of φ's rotary positions")
        alpha: float = Field(default=1.0, ge=0, le=100, description="α; 0: the base alone")
        training: Literal["quark", "supervised"] = "quark"
        bins: int = Field(default=5, ge=1, le=1000, description="quantiles of the rewards, and controls")
        interval: int = Field(default=750, ge=1, le=10_000_000, description="steps from round to round")
        samples: int | None = Field(
            default=None, ge=1, description="rows written to in a round; default: all"
        )
        temperature: float = Field(default=1.0, gt=0, le=100, description="of what is written in a round")
        top_p: float = Field(default=0.6, gt=0, le=1, description="of what is written in a round")
        longest: int | None = Field(
            default=None, ge=1, description="tokens of a sample; default: of the longest answer"
        )
        kl_coef: float = Field(default=0.0, ge=0, le=1000)
        entropy_coef: float = Field(default=0.0, ge=0, le=1000)

        @model_validator(mode="after")
        def _fits(self) -> IPA.Config:
            kv = self.kv_heads or self.heads
            if self.width % (2 * self.heads) or self.heads % kv:
                raise ValueError(
                    f"width={self.width} over heads={self.heads} must be an even number, and kv_heads={kv} "
                    "must divide heads"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.training == "supervised":
            self.traits = replace(self.traits, phased=False)

    def _shape(self, spec: BackboneSpec) -> DecoderShape:
        c = self.config
        if spec.logits is None:
            raise CompositionError(
                f"ipa needs the vocabulary of {spec.family!r}: take it as a language model."
            )
        ffn = c.ffn or -(-8 * c.width // 24) * 8
        return DecoderShape(
            spec.logits.width, c.layers, c.width, c.heads, c.kv_heads or c.heads, ffn, c.rope_theta
        )

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self._shape(spec).size + self.config.bins * self.config.width
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        kind: Any = QuarkAdapter if self.config.training == "quark" else PolicyAdapter
        module: nn.Module = kind(self._shape(spec), self.config)
        return module
