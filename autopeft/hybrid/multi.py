"""Several recipes on one live model at once, each acting on its own rows of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn
from transformers import PreTrainedModel

from autopeft.backbones import base_model_of, spec_of_model
from autopeft.errors import CompositionError, UsageError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid.draws import seeded
from autopeft.hybrid.hybrid import Hybrid
from autopeft.hybrid.inputs import Artefact, start_entries, with_inputs
from autopeft.hybrid.modules import (
    ROOT,
    Root,
    Untouched,
    build_modules,
    head_of,
    lane_name,
    refuse_attached,
    refuse_packed,
)
from autopeft.hybrid.persistence import Persistence
from autopeft.injection import LaneInjection, MultiInjection, changing, split_rows
from autopeft.injection.frames import TOKENS, frames
from autopeft.method import reserved_rows
from autopeft.recipe import Recipe

if TYPE_CHECKING:
    from autopeft.hybrid.callback import HybridCallback
    from autopeft.hybrid.loss_step import Total

__all__ = ["LaneHybrid", "MultiHybrid", "answering", "attach_many"]


def attach_many(
    model: PreTrainedModel, recipes: Sequence[Recipe], *, seeds: Sequence[int | None] | None = None
) -> MultiHybrid:
    """Put several recipes on a model at once: hybrid i acts on the i-th slice of each batch's rows only.

    A batch of K·B rows holds B rows for each of K hybrids, in order; a forward may give other sizes:
    `model(**inputs, rows=(2, 3, 3))`. All share the frozen backbone. Each hybrid has its own copy of the task
    head. Logits and gradients of a hybrid equal those that it has alone on its rows, up to rounding (and to
    other draws of dropout), and no hybrid's rows depend on another's, so a loss that is the sum over the
    slices gives each hybrid its own gradients.

    Args:
        model: any supported model, with or without a task head.
        recipes: one for each hybrid.
        seeds: where each hybrid's random init starts, as in `attach`.

    Raises:
        UsageError: a recipe does not fit the model, recipes cannot stand in one batch, something is attached
            already, or another thread is attaching. The model is then unchanged.

    Example:
        >>> multi = attach_many(model, [first, second], seeds=[0, 1])          # doctest: +SKIP
        >>> logits = model(**batch).logits                                     # doctest: +SKIP
        >>> for hybrid, rows in zip(multi.hybrids, multi.rows(len(logits))):   # doctest: +SKIP
        ...     loss += cross_entropy(logits[rows], labels[rows])              # doctest: +SKIP
    """
    with changing(model, "attach several hybrids"):
        refuse_attached(model)
        found = [with_inputs(recipe) for recipe in recipes]
        recipes, inputs = [recipe for recipe, _ in found], [opened for _, opened in found]
        starts = [None] * len(recipes) if seeds is None else list(seeds)
        if not recipes or len(starts) != len(recipes):
            raise UsageError(
                "`attach_many` needs at least one recipe and one seed for each, but got "
                f"{len(recipes)} recipes and {len(starts)} seeds."
            )
        spec, layout = spec_of_model(model)
        graphs = []
        for number, recipe in enumerate(recipes, start=1):
            try:
                graphs.append(build_graph(recipe, spec))
            except UsageError as error:
                where = f"Recipe {number} of {len(recipes)}, {recipe.name!r}"
                raise type(error)(f"{where}: {error}") from error
        roots = []
        for graph, seed in zip(graphs, starts, strict=True):
            with seeded(seed):
                modules = build_modules(graph)
            refuse_packed(model, layout, modules)
            roots.append(Root(modules, graph.recipe, spec))
        _refuse_in_one_batch(graphs, roots)
        multi = MultiHybrid(model)
        base = base_model_of(model)
        for recipe, graph, root in zip(recipes, graphs, roots, strict=True):
            hybrid = LaneHybrid(multi, recipe, graph, root)
            hybrid.lane = LaneInjection(model, base, layout, graph, hybrid.modules)
            hybrid.injection = hybrid.lane
            multi.hybrids += (hybrid,)
        try:
            multi._enter(starts, inputs)
        except BaseException:
            multi.detach()
            raise
        return multi


def _refuse_in_one_batch(graphs: Sequence[CompositionGraph], roots: Sequence[Root]) -> None:
    """Raise CompositionError for methods that cannot share a model with other hybrids, and where prompts of
    different length would not be exact in one batch."""
    on_logits = [e.name for graph in graphs for e in graph.entries.values() if "logits" in e.ways]
    if on_logits:
        raise CompositionError(
            f"{on_logits[0]} acts on logits, whose rows need not be those of the batch, so that several "
            "hybrids cannot share a model with it; attach them one at a time."
        )
    around = [e.name for graph in graphs for e in graph.entries.values() if "region" in e.ways]
    if around:
        raise CompositionError(
            f"{around[0]} takes the place of whole layers, which all rows of a batch go through, so that "
            "several hybrids cannot share a model with it; attach them one at a time."
        )
    before = [e.name for graph in graphs for e in graph.entries.values() if e.traits.features]
    if before:
        raise CompositionError(
            f"{before[0]} reads what the bare backbone makes of its text, which runs first for one hybrid "
            "only; attach them one at a time."
        )
    lengths = []
    for graph, root in zip(graphs, roots, strict=True):
        modules: Mapping[str, Any] = dict(root.named_children())
        prompting = [entry for entry in graph.entries.values() if "prompt" in entry.ways]
        for entry in prompting:
            if any(modules[entry.name].slots(site) for site in entry.sites if site.layer is not None):
                raise CompositionError(
                    f"{entry.name} puts rows in front of layers, which it can for one hybrid only; attach "
                    "them one at a time."
                )
        lengths.append(sum(reserved_rows(modules[entry.name], entry.sites) for entry in prompting))
    if len(set(lengths)) == 1:
        return
    what = f"Prompts of {', '.join(map(str, lengths))} rows cannot stand in one batch here"
    way_out = "choose recipes whose prompts have the same length, or attach them one at a time."
    if graphs[0].spec.modality != "text":
        raise CompositionError(
            f"{what}: the padding that evens them out needs a mask, and a {graphs[0].spec.modality} backbone "
            f"takes none; {way_out}"
        )
    found = (getattr(module, "counts_padding", "") for root in roots for module in root.children())
    counting = next((words for words in found if words), None)
    if counting is not None:
        raise CompositionError(
            f"{what}: {counting} counts the padding that evens them out; use one that leaves padding out, "
            f"{way_out}"
        )


class HeadCopy(nn.Module):
    """A copy of a task head's parameters, by their names in the model."""

    def __init__(self, head: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = tuple(head)
        self.copies = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in head.values())

    def named(self) -> dict[str, nn.Parameter]:
        return dict(zip(self.names, self.copies, strict=True))


class MultiHybrid:
    """Hybrids that share a model. Made by `attach_many`; a context manager that detaches at its end.

    Attributes:
        model: the model, with all modules registered as `model.autopeft`.
        hybrids: what `attach` gives, for each recipe: `parameter_groups()`, `modules`, `recipe`, `save()` …
        attached: whether they are on the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.hybrids: tuple[LaneHybrid, ...] = ()
        self._injection: MultiInjection | None = None
        self.attached = False
        self._token = next(TOKENS)
        self.untouched = Untouched(model)
        self._persistence = Persistence(model, self)

    def _enter(self, seeds: Sequence[int | None], inputs: Sequence[Mapping[str, Artefact]]) -> None:
        self.attached = True  # from here on detach() has something to undo
        base, head = base_model_of(self.model), head_of(self.model)
        children: dict[str, nn.Module] = {lane_name(i): hybrid.root for i, hybrid in enumerate(self.hybrids)}
        for i, hybrid in enumerate(self.hybrids):
            hybrid.own_head = children[f"head{i}"] = HeadCopy(head)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        root = Root(children).to(next(base.parameters()).device).train(self.model.training)
        root._lanes = self._token
        self.model.add_module(ROOT, root)
        self._persistence.install()
        for hybrid, seed, found in zip(self.hybrids, seeds, inputs, strict=True):
            hybrid.attached = True
            with seeded(seed):
                hybrid.initialise(base)
            start_entries(hybrid.recipe, hybrid.modules, found, hybrid.spec)
        self._injection = MultiInjection(
            [hybrid.lane for hybrid in self.hybrids], [hybrid.head() for hybrid in self.hybrids], self._token
        )
        self._injection.install()

    def detach(self) -> None:
        """Take all hybrids off: every parameter, buffer, hook, flag and config value is as it was before
        `attach_many`, the model's own head included.

        Modules and heads live on in `hybrids`; detaching twice does nothing.

        Raises:
            UsageError: another thread is in a forward of them, or attaches or detaches.
        """
        if not self.attached:
            return
        injection = self._injection
        with changing(self.model, "detach them", None if injection is None else injection.forwards):
            self.attached = False
            if injection is not None:
                injection.remove()
            self._persistence.remove()
            self.model._modules.pop(ROOT, None)
            self.untouched.restore()
            for hybrid in self.hybrids:
                hybrid.attached = False

    def __enter__(self) -> MultiHybrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def rows(self, total: int, sizes: Sequence[int] | None = None) -> tuple[slice, ...]:
        """The slice of `total` rows that each hybrid has: equal ones, or ones of these sizes.

        Raises:
            UsageError: they cannot be divided so.
        """
        found, start = [], 0
        for size in split_rows(total, len(self.hybrids), sizes).sizes:
            found.append(slice(start, start + size))
            start += size
        return tuple(found)

    @contextmanager
    def alone(self, index: int) -> Iterator[LaneHybrid]:
        """Give hybrid `index` all rows of the forwards inside (to evaluate it, say), in this thread."""
        hybrid = self.hybrids[index]
        before = frames.alone.get(self._token)
        frames.alone[self._token] = range(len(self.hybrids))[index]
        try:
            yield hybrid
        finally:
            frames.alone.pop(self._token, None)
            if before is not None:
                frames.alone[self._token] = before

    @contextmanager
    def bare(self, index: int) -> Iterator[None]:
        """Within, nothing of them acts, and the model has the head of hybrid `index` for its own."""
        injection, alone = self._injection, frames.alone.get(self._token)
        assert injection is not None
        with changing(self.model, "measure without them", injection.forwards):
            injection.remove()
            try:
                with injection.head_of(index):
                    yield
            finally:
                injection.install()
                if alone is not None:
                    frames.alone[self._token] = alone

    def reloaded(self) -> None:
        """Take over the values that the model has loaded for all of them."""
        for hybrid in self.hybrids:
            hybrid.prepared = True
        self.hybrids[0].refresh()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Everything that training changes, hybrid by hybrid."""
        return [p for hybrid in self.hybrids for p in hybrid.trainable_parameters()]

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"MultiHybrid({', '.join(repr(h.recipe.name) for h in self.hybrids)}; {state})"


class LaneHybrid(Hybrid):
    """One of several hybrids on a model: what `Hybrid` is, with a task head of its own.

    It comes and goes with the others, and cannot be merged into weights that others share.

    Attributes:
        multi: the hybrids that it belongs to.
        lane: its part of their injection.
    """

    own_head: HeadCopy
    lane: LaneInjection

    def __init__(self, multi: MultiHybrid, recipe: Recipe, graph: CompositionGraph, root: Root) -> None:
        super().__init__(multi.model, recipe, graph, root, multi.untouched)
        self.multi = multi

    def head(self) -> dict[str, nn.Parameter]:
        """Its own copy of the task head, by the names that the parameters have in the model."""
        return self.own_head.named()

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within, nothing of all the hybrids acts, and the model has this hybrid's head."""
        with self.multi.bare(self.multi.hybrids.index(self)):
            yield

    def callback(self, total: Total | None = None) -> HybridCallback:
        """See `Hybrid.callback`; the Trainer's rows are this hybrid's alone only within
        `MultiHybrid.alone`."""
        if frames.alone.get(self.multi._token) != self.multi.hybrids.index(self):
            raise UsageError(
                "Several hybrids are on this model, and the Trainer's rows would be divided among them; "
                "build and run it within `with hybrids.alone(i):`."
            )
        return super().callback(total)

    def detach(self) -> NoReturn:
        raise UsageError(
            "This hybrid is one of several on its model and goes with them; call detach() on what "
            "attach_many() gave."
        )

    def merge(self) -> NoReturn:
        raise UsageError(
            "This hybrid shares its backbone with others, so it cannot be folded into the weights; "
            "save() it and load it on a model of its own."
        )

    def weight_changes(self) -> NoReturn:
        self.merge()


@contextmanager
def answering(hybrid: Hybrid) -> Iterator[Hybrid]:
    """Within, forwards of its model, in this thread, are a hybrid's alone: one of several has all rows.

    Raises:
        UsageError: it is detached.
    """
    hybrid.require_attached()
    if not isinstance(hybrid, LaneHybrid):
        yield hybrid
        return
    with hybrid.multi.alone(hybrid.multi.hybrids.index(hybrid)):
        yield hybrid
