"""The last layer for the rows that the head reads, where nothing else needs the others.

A classification head reads one position of each row of the batch (the first, or the last token), and the loss
of a language model reads the positions that predict a learnt token. Behind the last layer's keys and values
the other positions serve nobody: the query, the output projection and the FFN are computed for the read
positions alone and spread out again with zeros elsewhere, which is exact for what the head sees, and for its
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autopeft.backbones import StackPlaces
from autopeft.graph import CompositionGraph, is_rowwise_in
from autopeft.injection.attention import DELEGATES, attention_behind, configs_of
from autopeft.injection.dispatch import first_input, with_input
from autopeft.injection.frames import READ, frames
from autopeft.injection.positions import Position, spread_first, take
from autopeft.injection.regions import Replacing, serves_itself
from autopeft.injection.undispatched import dispatching, is_undispatched
from autopeft.method import Slot
from autopeft.method.reserved import reserve

__all__ = ["ReadRows", "Reader", "last_layer_is_rowwise", "read_position", "reader_of", "some_of"]

Reader = Literal["first", "last"]
_MOST = 0.75
"""Share of a row's positions beyond which taking them out saves too little."""


def last_layer_is_rowwise(graph: CompositionGraph, stack: StackPlaces) -> bool:
    """Whether everything that acts in the last layer does so position by position, and the layer runs once:
    its next run would read all positions."""
    return stack.runs == 1 and is_rowwise_in(graph, stack.map.name, len(stack.layers) - 1)


class ReadRows:
    """Narrows the last layer of a stack to the positions of each row that are read.

    Args:
        base: the base model.
        stack: the stack that the head reads.
        reader: which position: the `first` or the `last` token; `None` where each batch names its own.
        slots: gives the rows that prompts have in the sequence; called in each forward, as a further one of a
            step may be without some.
    """

    def __init__(
        self, base: nn.Module, stack: StackPlaces, reader: Reader | None, slots: Callable[[], Sequence[Slot]]
    ) -> None:
        self.reader, self.slots = reader, slots
        self._narrowed: list[tuple[nn.Module, nn.Module]] = []
        self._attentions: list[nn.Module] = []
        last = len(stack.layers) - 1
        for place in stack.places:
            if place.site.layer == last and serves_itself(place):
                self._narrowed.append((base.get_submodule(place.entry), base.get_submodule(place.exit)))
            if place.site.layer == last and place.attends:
                self._attentions.append(base.get_submodule(place.entry))
        self._configs = configs_of(base, [stack])

    @contextmanager
    def of(self, mask: Tensor, read: Tensor | None = None) -> Iterator[None]:
        """Within, forwards of a batch with this mask (B, L) are narrowed.

        Args:
            read: the positions (B, L) that are read, where there is no reader; where these are nearly all,
                or are not given, nothing is narrowed.
        """
        position: Position | None = None
        if self.reader is not None:
            position = read_position(self.reader, self.slots(), mask)
        elif read is not None and (tokens := some_of(read)) is not None:
            position = _moved(tokens, self.slots(), mask)
        if position is None:
            yield
            return
        # The attention goes through our functions where each of its implementations has one, and not where
        # none is known: its own code asks what the implementation is called.
        configs = () if all(map(is_undispatched, self._attentions)) else self._configs
        before = [config._attn_implementation for config in configs]
        ours = [DELEGATES.get(attention_behind(name)) for name in before]
        attentions = self._attentions if None not in ours else []
        handles: list[Any] = []
        try:
            if self.reader:  # inside the sites' own hooks, one narrow row meets what they see whole
                for entry, exit_ in self._narrowed:
                    narrow = _Narrow(position)
                    handles.append(entry.register_forward_pre_hook(narrow.enter, with_kwargs=True))
                    handles.append(exit_.register_forward_hook(narrow.leave, prepend=True))
            else:  # inside the modules themselves, so that all hooks see whole rows
                modules = dict.fromkeys(module for pair in self._narrowed for module in pair)
                handles += [_Several(module, position) for module in modules]
            handles += dispatching(attentions)
            for attention in attentions:
                hook = partial(_hand_on, position)
                handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
            if attentions:
                for config, name in zip(configs, ours, strict=True):
                    config._attn_implementation = {"": name}
            yield
        finally:
            for handle in reversed(handles):
                handle.remove()
            if attentions:
                for config, name in zip(configs, before, strict=True):
                    config._attn_implementation = {"": name}


def some_of(read: Tensor) -> Tensor | None:
    """The read positions of each row, (B, k); as many in each. Rows that have fewer get others beside them:
    all differ, or the gradient of one would count twice. `None` where they are nearly all."""
    count = max(1, int(read.sum(dim=1).max()))
    if count > _MOST * read.shape[1]:
        return None
    return (~read).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def read_position(reader: Reader, slots: Sequence[Slot], mask: Tensor) -> Position:
    """The position of the token that a head reads among all positions, those of prompts included.

    Args:
        reader: which token of each text.
        slots: the rows of prompts.
        mask: (B, L), 1 at real tokens.
    """
    if reader == "first" and all(slot.anchor == "front" for slot in slots):
        return sum(slot.length for slot in slots if slot.in_front)
    token = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    if reader == "last":
        token = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return _moved(token[:, None], slots, mask)[:, 0]


def _moved(tokens: Tensor, slots: Sequence[Slot], mask: Tensor) -> Tensor:
    """The positions of tokens (B, k) of the texts among all positions, those of prompts included."""
    reserved = reserve(slots, mask, mask.shape[1])
    if reserved.kept is None:
        return tokens + reserved.count
    return reserved.kept.expand(len(mask), -1).gather(1, tokens)


def _hand_on(
    position: Position, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (args, kwargs) if frames.bare else (args, {**kwargs, READ: position})


@dataclass
class _Narrow:
    """From all positions to the read one at the entry, back again at the exit; not while the bare backbone
    runs before a hybrid, which reads all that comes of it."""

    position: Position
    length: int = 0  # of the sequence, once it has entered

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if frames.bare:
            return args, kwargs
        x = first_input(args, kwargs)
        self.length = x.shape[1]
        return with_input(args, kwargs, take(x, self.position, 1))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if frames.bare:
            return output
        return spread_first(output, self.position, self.length)


class _Several(Replacing):
    """A module that is computed for several positions of each row; not while the bare backbone runs."""

    def __init__(self, module: nn.Module, position: Position) -> None:
        super().__init__(module)
        self.position = position

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if frames.bare:
            return self.plain(*args, **kwargs)
        x = first_input(args, kwargs)
        args, kwargs = with_input(args, kwargs, take(x, self.position, 1))
        return spread_first(self.plain(*args, **kwargs), self.position, x.shape[1])


def reader_of(layer: nn.Module, logits: Any, mask: Tensor, slots: Sequence[Slot]) -> Reader | None:
    """Which position of a layer's output the head reads, found from the gradient of the logits.

    Args:
        layer: the last layer of the stack that the head reads.
        logits: computes the logits of a batch with `mask`; called once.
        mask: (B, L), rows of different lengths, padded on the right.
        slots: the rows that prompts have in that output.
    """
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(True)
        seen.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layer.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            scores: Tensor = logits()
            weights = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
            (gradient,) = torch.autograd.grad((scores * weights).sum(), seen[-1:], allow_unused=True)
    finally:
        handle.remove()
    if gradient is None:
        return None
    read = gradient.abs().sum(-1) != 0
    rows = torch.arange(len(mask), device=mask.device)
    readers: Sequence[Reader] = ("first", "last")
    for reader in readers:
        only = torch.zeros_like(read)
        only[rows, read_position(reader, slots, mask)] = True
        if torch.equal(read, only):
            return reader
    return None
