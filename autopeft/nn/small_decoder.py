"""A small language model beside the backbone, which reads the same text behind a token of its own."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import CompositionError, MethodError
from autopeft.method import Context

__all__ = ["DecoderShape", "SmallDecoder"]

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
