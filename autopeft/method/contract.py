"""What a method declares of itself, and what it is told: config, traits, count, and the data of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from autopeft.errors import CompositionError, MethodError, near
from autopeft.method.reserved import Reserved
from autopeft.spec import SITE_NAMES, BackboneSpec, Site

__all__ = [
    "BARE",
    "FEATURE",
    "Call",
    "Context",
    "Interim",
    "Linear",
    "Method",
    "MethodConfig",
    "Narrow",
    "Need",
    "ParameterCount",
    "PeftFormat",
    "PeftKind",
    "Places",
    "Traits",
    "Way",
]

Way = Literal["hook", "region", "weight", "kv", "scores", "prompt", "logits"]
BARE = "bare"
"""The feature that a pre-pass of the bare backbone fills: its last hidden states, (batch, tokens, hidden)."""
FEATURE = "feature_"
"""What the name of a tensor in a batch begins with that says something of its rows, (rows, …), for modules
alone: the rest of it is the name in `Context.features`."""
Narrow = Mapping[str, Mapping[str, tuple[int, ...]]]
"""For each config field that is a size: the tensors of a module that have it, and along which dimensions."""
Linear = Mapping[str, float]
"""Tensors of a module that what it adds is linear in, with the value at which they add nothing."""
PeftKind = Literal["lora", "dora", "ia3", "prompt", "prefix"]
Need = Literal[
    "calibration",
    "decoder",
    "encoder_decoder",
    "several_tasks",
    "artefacts",
    "text",
    "row_logits",
    "token_logits",
]


class MethodConfig(BaseModel):
    """Base of every method's config: unknown keys, wrong types and values out of range are errors.

    `sites` names where the method sits; left out, it takes the method's default sites that exist.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sites: tuple[str, ...] | None = Field(default=None, description="site names; default: the method's own")


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one entry: `deployed` at inference, `trained` while training (fewer only where a small
    adapter makes a whole weight, as HiWi's does, where stages leave one after the other what stays, or where
    no gradient is needed, as by LoRAHub).

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
class Interim:
    """Numbers that an entry has for a part of its training only, while it looks for what it keeps.

    No budget counts them, but a forecast of memory does.

    Attributes:
        trained: parameters that a phase trains in the place of those of `ParameterCount.trained`, each with a
            gradient and the optimizer's state.
        held: numbers without those that are there at once: gradients and scores of a calibration.
        of_each_source: the same for each entry that its `from:` names.
    """

    trained: int = 0
    held: int = 0
    of_each_source: int = 0


@dataclass(frozen=True)
class PeftFormat:
    """The format of Hugging Face peft that says a method: its `peft`.

    | kind | peft's `peft_type` | written from the module's |
    |---|---|---|
    | `lora` | `LORA` | `as_lora(site)`, once deployed |
    | `dora` | `LORA` with `use_dora` | `as_dora(site)`, once deployed |
    | `ia3` | `IA3` | `as_ia3(site)` and `side(site)` |
    | `prompt` | `PROMPT_TUNING` | `prompt`, rows among the input embeddings and nothing else |
    | `prefix` | `PREFIX_TUNING` | `key_value`, the same rows for each text |

    Attributes:
        kind: which format.
        against: why peft cannot say this configuration, as part of a sentence; empty where it can.

    Raises:
        MethodError: peft has no such format.
    """

    kind: PeftKind
    against: str = ""

    def __post_init__(self) -> None:
        kinds = get_args(PeftKind)
        if self.kind not in kinds:
            raise MethodError(
                f"There is no format {self.kind!r} of Hugging Face peft here.{near(str(self.kind), kinds)} "
                f"Formats: {', '.join(kinds)}. A method that none of them says has no `peft`."
            )


@dataclass(frozen=True)
class Traits:
    """What a method declares of itself; the graph checks it before anything is built.

    Attributes:
        ways: how it acts, in one way or in several (see `autopeft.method.modules`); none for policies.
        sites: site names it may take.
        default_sites: where it sits when the recipe names none; those that a backbone lacks are left out.
        level: `layers` (listed under `layers:`), `model` (under `model:`) or `training` (under `policies:`).
        also_in_layers: of a method of the model, that it may be listed under `layers:` as well. There it gets
            its default sites in those layers; under `model:` it gets none.
        needs: what must be there: calibration batches, a decoder, two stacks, several tasks, artefacts, text
            input, logits of each row (`row_logits`) where a language model has them of each token, or the
            other way round those of each token by a decoder alone (`token_logits`).
        mergeable: can be folded into the backbone's weights exactly.
        shifts: merging it gives a bias to a linear map that has none.
        sees_text: its prompts, or what it gives the head, depend on the text. On a causal stack a position
            may then depend on later ones, so that it takes no step of generation from a cache.
        features: what must be in `Context.features` before its first site: `BARE`, for which the bare
            backbone runs first.
        stochastic: draws random numbers while training.
        identity: leaves the backbone's function exactly as it is before training.
        direction: replaces the direction of a weight (DoRA): at most one for each weight.
        pretrained: what it makes of a tensor depends on the pretrained values alone (HiWi): in a chain no
            other may have altered the tensor before.
        phased: trains in phases of its own.
        gateable: a gate may stand in front of it.
        rowwise: what it adds at a position depends on that position's x and y alone (methods on activations
            and on logits).
        every_stack: its prompts stand in each stack; those of others in the one that reads the input alone.
        data_dependent: its deployed size is settled at the end of training: by the data, for which
            `parameter_count` gives an upper bound, or by a choice afterwards, for which it gives the default.
            That figure is what a budget counts; the module `Resizes`.
        remade: its `deploy()` puts other parameters in the place of those that train (HiWi). What alters
            parameters at inference would alter those instead.
        batch_terms: its terms of the loss are of the rows of a batch together (contrasts), and neither a mean
            over rows nor of the parameters alone.
        pools: it has no parameters and settles what the head reads, so that a head's start is fitted to that.
        skips_pooler: of one that pools, the head reads without the model's pooler, which so does nothing.
        replaces_head: what it adds to the logits leaves nothing of the head's own (InfoPrompt): at most one.
        searched: its parameters never train: they are zero until all else has trained, and then a search
            without gradients finds them (LoRAHub). What learns how to use them would learn nothing.
    """

    ways: frozenset[Way] = frozenset()
    sites: tuple[str, ...] = ()
    default_sites: tuple[str, ...] = ()
    level: Literal["layers", "model", "training"] = "layers"
    also_in_layers: bool = False
    needs: frozenset[Need] = field(default_factory=frozenset)
    mergeable: bool = False
    shifts: bool = False
    sees_text: bool = False
    features: frozenset[str] = frozenset()
    stochastic: bool = False
    identity: bool = True
    direction: bool = False
    pretrained: bool = False
    phased: bool = False
    gateable: bool = True
    rowwise: bool = False
    every_stack: bool = False
    data_dependent: bool = False
    remade: bool = False
    batch_terms: bool = False
    pools: bool = False
    skips_pooler: bool = False
    replaces_head: bool = False
    searched: bool = False

    def __post_init__(self) -> None:
        unknown = [s for s in (*self.sites, *self.default_sites) if s not in SITE_NAMES]
        if unknown:
            raise MethodError(f"Unknown sites {unknown} in traits; sites are: {', '.join(SITE_NAMES)}.")
        if self.also_in_layers and (self.level != "model" or not self.default_sites):
            raise MethodError(
                "A method that may also be listed under 'layers:' (also_in_layers) has level 'model', and "
                f"default sites that tell its layers, but this one has level={self.level!r}, "
                f"default_sites={self.default_sites!r}."
            )
        if self.features - {BARE}:
            raise MethodError(
                f"Nothing fills the features {sorted(self.features - {BARE})} before the first site; ask for "
                f"{BARE!r} alone."
            )
        if "scores" in self.ways and "attention" not in self.sites:
            raise MethodError(
                "A method on scores acts at self-attentions and has 'attention' among its sites, but this "
                f"one has sites={self.sites!r}."
            )
        elsewhere = self.ways - {"logits"}
        if "logits" in self.ways and (self.level != "model" or (self.sites and not elsewhere)):
            raise MethodError(
                "A method on logits has level 'model' and, where it acts on nothing else, no sites, as a "
                f"model has one last map, but this one has level={self.level!r}, sites={self.sites!r}."
            )

    @property
    def changes_length(self) -> bool:
        """Whether it lengthens the sequence."""
        return "prompt" in self.ways

    @property
    def levels(self) -> tuple[str, ...]:
        """Where it may be listed."""
        return (self.level, "layers") if self.also_in_layers else (self.level,)


@dataclass(frozen=True)
class Context:
    """Data of one forward of a stack, the same for all its sites.

    What counts real positions takes them from `told`, which refuses a mask that does not tell them.

    Attributes:
        mask: (batch, positions), 1 for real positions and 0 for padding, reserved rows included; `None`
            where no mask was given, or one of another form.
        source_mask: of a decoder behind an encoder, the same for what cross-attention reads.
        text_mask: (batch, tokens), the mask as it came, without reserved rows.
        task_id: (batch,) or `None`.
        reserved: the rows that prompts fill, up to the site that reads it.
        earlier: in a step from a cache, the rows that prompts have filled among the positions of all tokens
            so far, up to the site that reads it; its `tokens` are these.
        features: what is known of the batch, by name: of the pre-pass (`BARE`), what a module has put in
            at a site before this one, under a name that begins with its method's, or what the batch says of
            its rows (`FEATURE`).
        tokens: (batch, tokens), the ids of the text as they came, in a decoding step those of its new tokens;
            `None` where embeddings came, or where it is not known of each token which text it belongs to (a
            mask of another form than (batch, positions), several texts in a row). What acts on logits is told
            of them.
        cache: where keys and values of this forward are kept, as transformers has it; `None` where they are
            not. What keeps some of its own there goes with them: into other orders of rows, too.
        cached: whether keys and values of earlier positions come from a cache (a decoding step).
        past: how many positions of the text these are, reserved rows left out.
        hybrid: token of the hybrid that this forward belongs to.
        further: it is a further forward of a step (`LossStep.again`), of which the modules' own terms of the
            loss are not made.
        lost: nothing is known of the forward: a layer is recomputed after it, and its family does not hand
            the context on.
        other_mask: in words, the shape of a mask of another form, such as one for each pair of positions;
            empty where none came.
        other_source_mask: the same of what cross-attention reads.
        again: (), whether positions begin again within a row of a causal stack, which then holds several
            texts; `None` where they cannot say so.
    """

    mask: Tensor | None = None
    source_mask: Tensor | None = None
    text_mask: Tensor | None = None
    task_id: Tensor | None = None
    reserved: Reserved = Reserved()  # noqa: RUF009 (frozen)
    earlier: Reserved = Reserved()  # noqa: RUF009 (frozen)
    features: dict[str, Tensor] = field(default_factory=dict, compare=False)
    tokens: Tensor | None = None
    cache: Any = field(default=None, compare=False)
    cached: bool = False
    past: int = 0
    hybrid: int = 0
    further: bool = False
    lost: bool = False
    other_mask: str = ""
    other_source_mask: str = ""
    again: Tensor | None = field(default=None, compare=False)

    def told(self, what: str, *, source: bool = False) -> Tensor | None:
        """`mask`, or `source_mask`, for what counts padding apart.

        Args:
            what: what is told by it, as the beginning of an error.

        Raises:
            CompositionError: the mask that came does not tell what is padding.
        """
        other = self.other_source_mask if source else self.other_mask
        if other:
            raise CompositionError(
                f"{what} a mask of shape (batch, positions), but got {other}; pass the 2-D mask."
            )
        return self.source_mask if source else self.mask

    def numbers(self, tokens: int) -> Tensor:
        """Which real token of its text each of the `tokens` positions of text in this forward is, from 0 on,
        (1 or batch, tokens): on whichever side padding is, and behind those that a cache holds. Padding has
        the number of the token before it, or 0."""
        end = self.past + tokens
        if self.text_mask is None:
            return torch.arange(self.past, end)[None]
        return (self.text_mask.long().cumsum(1) - 1).clamp(min=0)[:, self.past : end]


@dataclass(frozen=True)
class Places:
    """Which token of its text each query and each key of an attention is.

    Attributes:
        queries: (1 or batch, queries), how many real tokens of the text come before it; −1 at reserved rows
            and at padding.
        keys: (1 or batch, keys), the same for the keys, those from a cache included.
    """

    queries: Tensor
    keys: Tensor


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
        region: for what takes a region's place, the frozen region with all else that acts inside of it:
            `region(x)` is what it makes of x (batch, positions, hidden), as often as it is asked;
            `region(x, rows)` the same at the positions `rows` (batch, k) of each row alone, (batch, k,
            hidden), which attend to all. Of layers its norm is `norm` where that comes before the attention.
        owner: the entry that is called, where it has rows among the reserved ones.
        places: for what acts on the scores of an attention, where its queries and keys stand.
        carried: of a prompt that makes its rows anew in front of a layer (`Slot.renews`), what the layers
            below have made of them, (batch, rows, hidden).
        read: on logits, `read(states)` is what the last map reads of states (batch, tokens, …) of the text:
            those of some positions or of all, in the order of its input.
    """

    context: Context
    gated: bool = False
    residual: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    entered: Tensor | None = None
    region: Callable[..., Tensor] | None = None
    owner: str | None = None
    places: Places | None = None
    carried: Tensor | None = None
    read: Callable[[Tensor], Tensor] | None = None

    @property
    def rows(self) -> Reserved:
        """Where the reserved rows lie among the positions of x and y."""
        return self.context.reserved


class Method(Protocol):
    """The contract: see `autopeft.method`. The class docstring holds formula, paper and shapes."""

    name: ClassVar[str]
    traits: ClassVar[Traits]
    Config: ClassVar[type[MethodConfig]]
    config: Any

    def __init__(self, config: Any) -> None: ...

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount: ...

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module: ...
