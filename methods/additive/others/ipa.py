"""IPA: a small language model of its own, whose logits tailor those of the frozen one."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import CompositionError, MethodError
from autopeft.method import (
    FEATURE,
    Call,
    Context,
    DecayTarget,
    LossStep,
    MethodConfig,
    ParameterCount,
    Phase,
    Sample,
    Session,
    Traits,
    register,
)
from autopeft.spec import BackboneSpec, Site

__all__ = ["IPA"]


_numbers = itertools.count(1)
_CACHES = ("cache", "past_key_values")  # later and earlier name of transformers


@dataclass(frozen=True)
class DecoderShape:
    """Of a decoder of the Llama family whose projection to the vocabulary is its table of embeddings.

    Attributes:
        words: of the vocabulary.
        layers, width, heads: of the decoder.
        kv_heads: of keys and values.
        ffn: width inside the feed-forward maps.
        rope_theta: base of the rotary positions.
    """

    words: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    rope_theta: float

    @property
    def size(self) -> int:
        """Parameters."""
        maps = 2 * self.width + 2 * self.width * self.kv_heads // self.heads + 3 * self.ffn
        return self.width * (self.words + self.layers * (maps + 2) + 1)

    def build(self) -> nn.Module:
        """The decoder, drawn anew: N(0, 0.02), norms one."""
        from transformers import LlamaConfig, LlamaModel  # slow to import, and few recipes need it

        config = LlamaConfig(
            vocab_size=self.words,
            hidden_size=self.width,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            pad_token_id=None,
        )
        return LlamaModel(config)


class SmallDecoder(nn.Module):
    """A decoder with `controls`, tokens that it alone knows: one stands before each text.

    It reads text without reserved rows, and padding as the mask has it. While text is written, its keys and
    values are kept in the backbone's own cache, behind those of the backbone's layers. So they are repeated,
    put into another order (beams) and cut with these.

    Args:
        shape: of the decoder.
        controls: how many.
        name: of the method, for messages.
    """

    def __init__(self, shape: DecoderShape, controls: int, name: str) -> None:
        super().__init__()
        self.shape, self.name = shape, name
        self.key = f"{name}.{next(_numbers)}"
        self.decoder = shape.build()
        self.controls = nn.Parameter(torch.empty(controls, shape.width))
        self.draw_controls()

    @property
    def table(self) -> Tensor:
        """Embeddings of the vocabulary (words, width)."""
        inner: Any = self.decoder
        table: Tensor = inner.embed_tokens.weight
        return table

    @torch.no_grad()
    def draw_controls(self) -> None:
        """N(mean, std) of the table, each number as its column."""
        std, mean = torch.std_mean(self.table, dim=0, correction=0)
        self.controls.copy_(mean + std * torch.randn_like(self.controls))

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Start from a language model of this shape, and draw the controls anew.

        Raises:
            MethodError: it has other tensors.
        """
        project = getattr(model, "get_output_embeddings", lambda: None)()
        base: Any = getattr(model, "base_model", model)
        found, own = base.state_dict(), self.decoder.state_dict()
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (found, own)]
        wrong = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        if project is not None and not torch.equal(project.weight, base.get_input_embeddings().weight):
            wrong.append("a projection to the vocabulary of its own")
        if wrong:
            raise MethodError(
                f"{type(model).__name__} is no decoder of the shape of {self.name} ({self.shape}): "
                f"{', '.join(wrong[:3])}; set layers, width, heads, kv_heads, ffn and rope_theta as it has "
                "them, or take another model."
            )
        self.decoder.load_state_dict(found)
        self.draw_controls()

    def project(self, states: Tensor) -> Tensor:
        """Logits (…, words) of states (…, width)."""
        return F.linear(states, self.table)

    def forward(self, context: Context, control: Tensor | None = None) -> Tensor:
        """States (batch, tokens, width) of the text that a stack has read.

        Args:
            context: of the stack.
            control: (batch,) the number of the token before each text; by default the first.

        Raises:
            CompositionError: the ids of the text are not known, or what came before is in a cache without
                what this decoder made of it.
        """
        tokens = context.tokens
        if tokens is None:
            raise CompositionError(
                f"{self.name} reads the text itself, and this forward has no ids of it that are one text to "
                "a row: pass input_ids, and a mask (batch, positions), and pack no several texts into a row."
            )
        inner: Any = self.decoder
        embedded = inner.embed_tokens(tokens)
        if not context.cached:
            first = torch.zeros(len(tokens), dtype=torch.long) if control is None else control
            before = self.controls[first.to(tokens.device)].to(embedded.dtype)
            embedded = torch.cat([before[:, None], embedded], dim=1)
        kept = self._kept(context)
        given = self._positions(context, embedded.shape[1])
        if kept is not None:
            from transformers.cache_utils import Cache

            names = inspect.signature(inner.forward).parameters
            given[next(name for name in _CACHES if name in names)] = Cache(layers=kept)
        states: Tensor = inner(inputs_embeds=embedded, use_cache=kept is not None, **given).last_hidden_state
        if kept is not None and not context.cached:
            context.cache.layers.extend(kept)
        return states if context.cached else states[:, 1:]

    def _positions(self, context: Context, length: int) -> dict[str, Any]:
        """Mask and positions behind the control, which counts as a token."""
        if context.text_mask is None:
            return {}
        mask = F.pad(context.text_mask.long(), (1, 0), value=1)
        places = (mask.cumsum(dim=1) - 1)[:, -length:]
        return {"attention_mask": mask, "position_ids": places}

    def _kept(self, context: Context) -> list[Any] | None:
        """What this decoder has in the backbone's cache; `None` where nothing is kept."""
        cache = context.cache
        if cache is None and not context.cached:
            return None
        layers: list[Any] | None = getattr(cache, "layers", None)
        found = [layer for layer in layers or () if getattr(layer, "of", None) == self.key]
        if layers is not None and not context.cached:
            for layer in found:  # of a cache that was emptied
                layers.remove(layer)
            return _fresh(self.shape.layers, self.key)
        mask = context.text_mask
        tokens = 0 if context.tokens is None else context.tokens.shape[1]
        known = mask is None or not found or found[0].get_seq_length() == mask.shape[1] - tokens + 1
        if not found or not known:
            raise CompositionError(
                f"What came before is in a cache that does not hold what {self.name} made of it; generate "
                "with use_cache=False."
            )
        return found


def _fresh(count: int, key: str) -> list[Any]:
    """Empty layers of a cache, which say whose they are."""
    from transformers.cache_utils import DynamicLayer

    layers: list[Any] = [DynamicLayer() for _ in range(count)]
    for layer in layers:
        layer.of = key
    return layers


class QuantilePool:
    """All samples so far, best first, in `count` bins: bin 0 is the best. What equal bins leave over is in
    the last one. Samples of equal reward stay in the order in which they came, and one whose reward is no
    finite number is dropped.

    Lu et al. 2022, arXiv:2205.13636, as the data pool of GXimingLu/IPA has it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.samples: list[Sample] = []

    def add(self, samples: Sequence[Sample]) -> None:
        """Put samples in, and sort all anew.

        Raises:
            MethodError: there are fewer samples than bins.
        """
        fresh = [sample for sample in samples if math.isfinite(sample.reward)]
        self.samples = sorted([*self.samples, *fresh], key=lambda sample: -sample.reward)
        if len(self.samples) < self.count:
            raise MethodError(
                f"{len(self.samples)} samples with a reward do not fill {self.count} bins; take fewer bins, "
                "or more rows to write to."
            )

    def bins(self) -> list[int]:
        """The bin of each sample."""
        size = len(self.samples) // self.count
        return [min(i // size, self.count - 1) for i in range(len(self.samples))]

    def batches(self, rows: int) -> Iterator[tuple[list[Sample], Tensor]]:
        """Samples with their bins (rows,) without end: each once in an epoch, in an order that torch's
        generator draws. What fills no batch at the end of an epoch is left out of it."""
        bins, size = self.bins(), min(rows, len(self.samples))
        while True:
            order = torch.randperm(len(bins)).tolist()
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                yield [self.samples[i] for i in chosen], torch.tensor([bins[i] for i in chosen])


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
