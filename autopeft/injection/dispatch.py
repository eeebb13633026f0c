"""hook(site): one dispatcher for each site folds what acts there, as the graph says.

Hook order alone cannot express composition (pre-hooks always come first), so every site has a
`SiteDispatcher` with the bound trees of its input and of its output side, and every backbone module at most
one pair of hooks that serve all sites on it, inner sites before outer ones. Hooks are bound methods: they
survive `deepcopy` and pickling and hold no parameters of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbones import Place
from autopeft.composition import Child
from autopeft.errors import CompositionError
from autopeft.injection.bind import BoundModule, rows_of
from autopeft.injection.frames import frames
from autopeft.method import Call

__all__ = ["ModuleHooks", "SiteDispatcher", "first_input", "with_input"]

_INSTEAD = {
    **dict.fromkeys(("q", "k", "v"), "the site 'qkv'"),
    **dict.fromkeys(("up", "gate_proj"), "the site 'down', or act on outputs"),
}
_DEPTH = {"linear": 0, "norm": 1, "embeddings": 1, "region": 2}


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The x of a module's call."""
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value


def with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module's arguments with another x."""
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": x}


@dataclass
class SiteDispatcher:
    """Everything that acts on activations at one site.

    Attributes:
        place: the site and where it is.
        token: the hybrid's.
        inputs, outputs: bound trees of each side, in file order.
        prompts: what fills the reserved rows (embeddings only).
        norm: the region's norm module, where there is one.
        spans: whether x and y are seen at different modules.
        depth: sorts the sites of one module: inner ones come before outer ones.
    """

    place: Place
    token: int
    inputs: Sequence[Child] = ()
    outputs: Sequence[Child] = ()
    prompts: Sequence[BoundModule] = ()
    norm: nn.Module | None = None
    spans: bool = field(init=False)
    depth: tuple[int, bool] = field(init=False)

    def __post_init__(self) -> None:
        site = self.place.site
        self.spans = self.place.entry != self.place.exit
        self.depth = (_DEPTH[site.kind], site.name == "layer")
        if self.inputs and self.place.out_slice is not None:
            raise CompositionError(
                f"{site.path} is a part of a fused projection and shares its input with the other parts, so "
                f"nothing can scale the input of it alone; use {_INSTEAD[site.name]}."
            )

    def _call(self, x: Tensor) -> Call:
        site = self.place.site
        context = frames.context(self.token, site.stack)
        if site.kind != "region" or site.pre_norm is None:
            return Call(context)
        if site.pre_norm:
            residual = frames.captured.get((self.token, site.key, "residual"))
            return Call(context, residual=residual)
        return Call(context, residual=x, norm=self.norm)

    def enter(self, x: Tensor) -> Tensor:
        """The site's input with its input side applied; kept for the exit where that is another module."""
        if self.token in frames.bare:
            return x
        if self.inputs:
            call = self._call(x)
            delta = self.inputs[0].delta(x, x, call)
            for child in self.inputs[1:]:
                delta = delta + child.delta(x, x, call)
            if self.outputs:
                frames.captured[(self.token, self.place.site.key, "entered")] = x
            x = x + delta
        if self.spans and self.outputs:
            frames.captured[(self.token, self.place.site.key, "x")] = x
        return x

    def leave(self, x: Tensor | None, y: Tensor) -> Tensor:
        """The site's output with its output side (and, at the embeddings, the prompts) applied.

        A table of embeddings is altered once in a forward of its stack: GPT-2 looks its token types up in the
        same table, and others may call it too. Embeddings that the caller gives bypass it.
        """
        if self.token in frames.bare:
            return y
        site, stack = self.place.site, (self.token, self.place.site.stack)
        if site.kind == "embeddings":
            if stack in frames.embedded or frames.context(*stack).lost:
                return y
            frames.embedded.add(stack)
        if self.outputs:
            if self.spans:
                x = frames.captured.pop((self.token, site.key, "x"))
            if x is None:
                raise CompositionError(
                    f"The input of {site.path} was not seen; the site map of this family is out of date."
                )
            part = self.place.out_slice
            inner = y if part is None else part.of(y)
            call = self._call(x)
            entered = frames.captured.pop((self.token, site.key, "entered"), None)
            if entered is not None:
                call = replace(call, entered=entered)
            delta = self.outputs[0].delta(x, inner, call)
            for child in self.outputs[1:]:
                delta = delta + child.delta(x, inner, call)
            y = y + (delta if part is None else part.spread(delta, y.shape[-1]))
            frames.captured.pop((self.token, site.key, "residual"), None)

        # The reserved rows, which the embeddings alone fill.
        if not self.prompts:
            return y
        reserved = frames.context(*stack).reserved
        if not reserved.count:
            return y
        text = y if reserved.right else reserved.text(y)  # an image was not made longer before
        rows = torch.cat(rows_of(self.prompts, text, Call(frames.context(*stack))), dim=1)
        return torch.cat([y, rows], dim=1) if reserved.right else reserved.filled(y, rows)


@dataclass
class ModuleHooks:
    """The hooks of one backbone module.

    `residuals` are dispatchers that want this module's input as their residual stream, `entries` those that
    begin and `exits` those that end here.
    """

    residuals: list[SiteDispatcher] = field(default_factory=list)
    entries: list[SiteDispatcher] = field(default_factory=list)
    exits: list[SiteDispatcher] = field(default_factory=list)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        new = x = first_input(args, kwargs)
        for dispatcher in self.residuals:  # a region with a norm in front starts from this residual stream
            if dispatcher.token not in frames.bare:
                frames.captured[(dispatcher.token, dispatcher.place.site.key, "residual")] = x
        for dispatcher in self.entries:
            new = dispatcher.enter(new)
        return (args, kwargs) if new is x else with_input(args, kwargs, new)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs.get("hidden_states")
        new = y = output[0] if isinstance(output, tuple) else output
        for dispatcher in self.exits:
            new = dispatcher.leave(x, new)
        if new is y:
            return output
        return (new, *output[1:]) if isinstance(output, tuple) else new
