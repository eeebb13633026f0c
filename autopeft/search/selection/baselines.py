"""What a winner is compared with: baselines at the same budget, each with as good a learning rate as it can
get.

| kind | candidates | what *select* chooses |
|---|---|---|
| `lora` | the largest LoRA that fits, at several places | place, rate |
| `single` | each method of the space alone, as large as the budget allows | method, rate |
| `random` | random members of the space | nothing: each is a run of its own |
| `middle` | the mid-point of the space, everything on | rate |
| `head` | the task head on the frozen backbone | rate |
| `untuned` | the backbone as it is | nothing |
| `few-shot` | the backbone as it is, with 4 rows of train before each prompt | nothing |

LoRA's places are q and v of all layers and of the last half of them; larger efforts try all of attention and
every linear map too. Where the budget is too small for rank 1 on q and v of all layers, q and v together, q
alone and v alone are tried, each on the most of the last layers that fit, and on the last half where a higher
rank fits there, else on the last third (`experiments/tiny_lora`). The head is for tasks that start with a new
one, the last two are for those that do not: a new head answers at random. All but these three lie inside the
budget. LoRA is as large as the limits of the search beside the budget allow, too. What keeps these, then what
reaches the lower limit of a range, goes before others; where no LoRA does, it is there to be compared with
alone. Where the best rate of LoRA or of the head is the first or the last of those tried, the sweep goes on
beyond it. At small budgets each place begins with its middle rate alone, and the sweep goes on with the rates
next to it at the best place: six places take two trainings more than two places with all of their rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from autopeft.counting import Budget, Counts, count
from autopeft.errors import AutoPEFTError, SiteError, UsageError, near
from autopeft.graph import VLLM_RANKS
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import Pooling, pooled
from autopeft.recipe.training import address
from autopeft.runs.records import CountTable
from autopeft.search.selection.baseline_rates import Sweep, rounded, spread, with_rates
from autopeft.search.selection.baseline_recipes import (
    REFERENCE,
    BaselineRecipe,
    middle,
    random_hybrids,
    single_methods,
)
from autopeft.search.space.candidate import ResourceBudget, keeps_within
from autopeft.search.space.space import Space
from autopeft.spec import LINEAR_SITES

if TYPE_CHECKING:
    from autopeft.search.space.bound import BoundSpace
    from autopeft.spec import BackboneSpec

__all__ = [
    "BASELINE_KINDS",
    "Baseline",
    "BaselineKind",
    "baselines",
    "default_kinds",
    "head_only",
    "lora_baseline",
    "lora_rates",
    "parse_kinds",
    "untrained",
]

BaselineKind = Literal["lora", "single", "random", "middle", "head", "untuned", "few-shot"]
BASELINE_KINDS: tuple[BaselineKind, ...] = get_args(BaselineKind)
# The others would cost as much again as the whole search of this effort.
_QUICK: tuple[BaselineKind, ...] = ("lora", "head", "untuned", "few-shot")
_SHOTS = 4
# Places of the LoRA sweep, and learning rates of each method alone, where an effort has fewer than the most.
# More rates of many methods would cost more than the search.
_PLACES = {"quick": 1}
_SINGLE_RATES = {"quick": 1, "normal": 1}

# LoRA's learning rates at rank 12 and above. A smaller rank takes larger ones, in proportion to rank^-0.75:
# on `trec`, rank 1 was best at 2.5e-2 and lost six points at 3e-3.
_LORA_RATES = (5e-4, 1.5e-3, 4.5e-3)
_LORA_RANK, _LORA_POWER, _LORA_FASTEST = 12, 0.75, 3e-2
# Of a sweep, so many at most are trained with a second seed; one seed's luck shall not choose.
_SECOND = 6
_HEAD_RATES, _HEAD_FASTEST = (1e-3, 5e-3, 2e-2), 1e-1
_MAX_RANK = 1024
# At small budgets a place has so many LoRAs at most, so that all of them begin no more trainings than
# elsewhere two places with three rates do.
_TINY_DEPTHS = 2
# LoRA's head learns at the middle of the rates that the default space offers, so that what differs is the
# modules. `experiments/single_methods` found LoRA better with it than with 1e-3. Layers before a head's last
# map learn more slowly (`experiments/head_rates`).
_HEAD = {"head": {"learning_rate": 1e-2}}
_HIDDEN = {"head.hidden": {"learning_rate": 3e-4}}


@dataclass(frozen=True)
class Baseline:
    """Recipes that stand for one way to do without a search.

    Attributes:
        name: what it is called before *select* has chosen.
        candidates: recipe dicts, of which *select* chooses one.
        counts: those of the first candidate; with `each` the means.
        each: every candidate is a run of its own, with a fresh seed of its own, and the baseline is their
            mean: there is no sweep and nothing to choose.
        titles, tables: name and counts of each candidate, where they differ.
        shots: rows of train before each prompt where nothing is trained; `None` where something is.
        beyond: by candidate, those of the same recipe with the next rates, which are tried only where this
            one is best.
    """

    name: str
    candidates: tuple[Mapping[str, Any], ...] = field(repr=False)
    counts: CountTable
    kind: BaselineKind = "lora"
    each: bool = False
    titles: tuple[str, ...] = field(default=(), repr=False)
    tables: tuple[CountTable, ...] = field(default=(), repr=False)
    shots: int | None = None
    beyond: Mapping[int, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def first_runs(self) -> int:
        """Candidates that the sweep trains with its first seed in any case, which come before those that it
        may go on to: none where there is no choice."""
        if self.each or len(self.candidates) == 1:
            return 0
        return len(self.candidates) - sum(map(len, self.beyond.values()))

    @property
    def second_runs(self) -> int:
        """Candidates that it trains with a second seed: the better half of these."""
        return min(self.first_runs, _SECOND, max(2, math.ceil(self.first_runs / 2)))

    @property
    def sweep_runs(self) -> int:
        """Training runs that it takes to choose, whichever candidate is best; where the best one has further
        rates that others have not, a few more follow."""
        further = min((len(self.beyond.get(i, ())) for i in range(self.first_runs)), default=0)
        return self.first_runs + further + self.second_runs

    def fresh_runs(self, seeds: int) -> int:
        """Runs with fresh seeds, where each choice is trained with `seeds` of them. What neither trains nor
        draws examples needs one."""
        if self.shots == 0:
            return 1
        return len(self.candidates) if self.each else seeds

    def pooled(self, pooling: Pooling) -> Baseline:
        """The same with heads that read so."""
        if pooling == "own":
            return self
        found = (pooled(Recipe.from_dict(dict(recipe)), pooling).to_dict() for recipe in self.candidates)
        return replace(self, candidates=tuple(found))

    def with_head(self, head: int) -> Baseline:
        """The same with so many parameters of the task head in its counts."""
        tables = tuple({**table, "head": head} for table in self.tables)
        return replace(self, counts={**self.counts, "head": head}, tables=tables)

    def title(self, index: int) -> str:
        """What the baseline is called with that candidate chosen."""
        return self.titles[index] if self.titles else self.name

    def counts_of(self, index: int) -> CountTable:
        """Counts of a candidate."""
        return self.tables[index] if self.tables else self.counts

    def remaining(self, kept: Sequence[int]) -> tuple[str, CountTable]:
        """Name and mean counts of some candidates, where each is a run of its own."""
        if not self.tables:
            return self.name, self.counts
        return _several(len(kept)), _means([self.tables[i] for i in kept])

    def label(self, index: int) -> str:
        """What a sweep's table shows of a candidate: what it is, and its learning rate."""
        training = Recipe.from_dict(dict(self.candidates[index])).training
        rates = {g.learning_rate for name, g in training.groups.items() if address(name)[0] != "head"} - {
            None
        }
        rate = rates.pop() if len(rates) == 1 else training.learning_rate
        return f"{self.title(index)}, learning rate {rate:.3g}"


def default_kinds(effort: str) -> tuple[BaselineKind, ...]:
    """The kinds that an effort pays for: LoRA, the head and what trains nothing in `quick`, all of them in
    any other. Those that a task cannot have are left out later (see `baselines`)."""
    return _QUICK if effort == "quick" else BASELINE_KINDS


def parse_kinds(text: str | Sequence[str] | None, effort: str) -> tuple[BaselineKind, ...]:
    """Read `all`, `none` or a list such as `lora,head`; `None` means what the effort pays for.

    Raises:
        UsageError: a kind is unknown.
    """
    if text is None:
        return default_kinds(effort)
    words = text.split(",") if isinstance(text, str) else list(text)
    asked = [word.strip().lower() for word in words]
    if asked in (["all"], ["none"]):
        return BASELINE_KINDS if asked == ["all"] else ()
    for word in asked:
        if word not in BASELINE_KINDS:
            raise UsageError(
                f"There is no baseline {word!r}.{near(word, BASELINE_KINDS)} "
                f"Write all, none, or some of {', '.join(BASELINE_KINDS)}, separated by commas."
            )
    return tuple(kind for kind in BASELINE_KINDS if kind in asked)


def baselines(
    space: Space | BoundSpace,
    spec: BackboneSpec,
    budget: Budget,
    *,
    rates: int,
    seed: int,
    effort: str = "normal",
    kinds: Sequence[str] | None = None,
    hybrids: int = 3,
    new_head: bool = True,
    head: int = 0,
    prompts: bool = False,
) -> list[Baseline]:
    """Every baseline that exists for this space, backbone and budget, in the order of `BASELINE_KINDS`.

    Args:
        rates: learning rates tried for each structure. In `quick` LoRA has one place, and in `quick` and
            `normal` each method alone has one rate, that of the point where a search starts.
        seed: of the random hybrids.
        effort: name of the effort.
        kinds: which ones; `None` for those that the effort pays for (see `parse_kinds`).
        hybrids: number of random hybrids, one run each.
        new_head: whether the task has a head of its own, which can train alone (see `Head.new_head`).
        head: parameters of that head, for the counts.
        prompts: whether its rows ask something, so that examples can stand before them.

    Raises:
        UsageError: a kind is unknown.
        AutoPEFTError: a number is not positive.
    """
    if rates < 1 or hybrids < 1:
        raise AutoPEFTError(
            f"A baseline needs at least one learning rate and one run, but got {rates=}, {hybrids=}."
        )
    wanted = parse_kinds(kinds, effort)
    bound = space.bind(spec) if isinstance(space, Space) else space
    found: list[Baseline | None] = []
    for kind in wanted:
        if kind == "lora":
            places, deep = _PLACES.get(effort, 3), _hidden_apart(bound)
            found.append(_lora_within(budget, spec, rates, places, deep=deep, pooling=bound.pooling))
        elif kind == "single":
            members = single_methods(bound, budget, min(rates, _SINGLE_RATES.get(effort, rates)))
            found.append(_from_space("best single method", kind, members))
        elif kind == "random":
            found.append(_random(random_hybrids(bound, budget, hybrids, seed)))
        elif kind == "middle":
            found.append(_from_space("mid-point of the space", kind, middle(bound, budget, rates)))
        elif kind == "head":
            found.append(head_only(spec, rates) if new_head else None)
        elif not new_head and (kind == "untuned" or prompts):
            found.append(untrained(spec, 0 if kind == "untuned" else _SHOTS))
    return [b.pooled(bound.pooling).with_head(head) for b in found if b is not None]


def _most_rank(budget: Budget) -> int:
    """The largest rank that LoRA may have where it is to be served."""
    vllm = isinstance(budget, ResourceBudget) and budget.within.serve == "vllm"
    return VLLM_RANKS[-1] if vllm else _MAX_RANK


def _hidden_apart(bound: BoundSpace) -> bool:
    """Whether a head's hidden layers have a rate of their own beside LoRA: as in the space, and where that
    has no rate for the head at all."""
    training = bound.training(bound.middle())
    groups = training.get("groups") if isinstance(training, dict) else None
    return bound.deep_head and (not groups or "head" not in groups or "head.hidden" in groups)


def _lora_within(
    budget: Budget, spec: BackboneSpec, rates: int, places: int, *, deep: bool, pooling: Pooling
) -> Baseline | None:
    """The LoRA baseline of a budget, inside the limits that it has beside the parameters with a head that
    reads so: the mean of all tokens takes more than a state that the last layer gives alone."""

    def admits(recipe: Mapping[str, Any]) -> bool:
        return keeps_within(pooled(Recipe.from_dict(dict(recipe)), pooling), budget, spec)

    return lora_baseline(
        spec,
        budget.limits(spec),
        rates,
        places=places,
        most_rank=_most_rank(budget),
        admits=admits,
        deep=deep,
    )


def lora_baseline(
    spec: BackboneSpec,
    limits: tuple[int, int],
    rates: int,
    *,
    places: int = 1,
    most_rank: int = _MAX_RANK,
    admits: Callable[[Mapping[str, Any]], bool] = lambda recipe: True,
    deep: bool = False,
) -> Baseline | None:
    """LoRA of the largest rank that fits the budget, at the first `places` of: q and v, the whole attention,
    every linear map; and on q and v of the last half of the layers.

    It sits on every layer, or on the last layers where rank 1 is too large, or where their higher rank
    reaches a lower limit that all layers miss. Where rank 1 on q and v of all layers is too large, q alone
    and v alone are tried too, and each of the three also on the last half of the layers, or the last third
    where the half takes no higher rank; of each place the middle rate comes first.

    `None` where even one site of one layer at rank 1 is over the budget, or the backbone has no attention to
    put LoRA on.

    Args:
        admits: whether a recipe keeps the limits beside the budget; on the same layers a smaller rank does
            where a larger one does. Where no LoRA keeps them, it is as large as the budget allows.
        deep: whether the head's hidden layers have a rate of their own.
    """
    fitting: list[_Fitting] = []
    tiny = _is_tiny(spec, limits[1])
    for place, sites, depths in _lora_places(spec, places, tiny):
        here: list[_Fitting] = []
        for layers in depths:
            found = _largest_lora(spec, limits, sites, layers, most_rank, admits)
            if found is None or found in [(f.rank, f.at) for f in here]:
                continue
            # Fewer layers of the same rank are a part of what is tried already.
            if tiny and (len(here) == _TINY_DEPTHS or any(f.rank >= found[0] for f in here)):
                continue
            base = _lora(found[0], sites, found[1], deep)
            here.append(_Fitting(place, *found, base, count(Recipe.from_dict(base), spec)))
        fitting += here
    reaching = [f for f in fitting if f.counts.deployed >= limits[0]]
    inside = [f for f in reaching if admits(f.recipe)] or reaching or fitting
    sweeps = [
        Sweep(f.title, f.recipe, f.counts, lora_rates(f.rank, rates), _LORA_FASTEST, middle_first=tiny)
        for f in inside
    ]
    return _swept("LoRA rank sweep" if len(inside) > 1 else None, "lora", sweeps)


def _is_tiny(spec: BackboneSpec, most: int) -> bool:
    """Whether rank 1 at LoRA's first place is too large on all layers."""
    (_, sites, _), *_ = _lora_places(spec, 1, False)
    try:
        return count(Recipe.from_dict(_lora(1, sites, "all")), spec).deployed > most
    except SiteError:
        return False


class _Fitting(NamedTuple):
    """A LoRA inside the budget."""

    place: str
    rank: int
    at: str
    recipe: dict[str, Any]
    counts: Counts

    @property
    def title(self) -> str:
        layers = {"all": "all layers", "last 1": "the last layer"}.get(self.at, f"the {self.at} layers")
        return f"LoRA rank {self.rank} on {self.place} of {layers}"


def lora_rates(rank: int, count: int) -> list[float]:
    """`count` learning rates for LoRA of a rank, larger ones for smaller ranks, up to 3e-2."""
    factor = max(1.0, (_LORA_RANK / rank) ** _LORA_POWER)
    scaled = [min(rate * factor, _LORA_FASTEST) for rate in _LORA_RATES]
    return rounded(spread(scaled, count))


def head_only(spec: BackboneSpec, rates: int) -> Baseline:
    """The task head on the frozen backbone."""
    base: dict[str, Any] = {"autopeft": 2, "name": "head-only"}
    counts = count(Recipe.from_dict(base), spec)
    sweep = Sweep("head only", base, counts, spread(_HEAD_RATES, rates), _HEAD_FASTEST)
    found = _swept(None, "head", [sweep])
    assert found is not None
    return found


def untrained(spec: BackboneSpec, shots: int) -> Baseline:
    """The backbone as it is, with so many examples before each prompt."""
    recipe = Recipe.from_dict({"autopeft": 2, "name": "few-shot" if shots else "untuned"})
    name = f"few-shot, {shots} examples" if shots else "untuned backbone"
    counts = count(recipe, spec).to_dict()
    return Baseline(name, (recipe.to_dict(),), counts, kind="few-shot" if shots else "untuned", shots=shots)


class _Place(NamedTuple):
    """Sites of LoRA (`None` for the method's own, q and v), and for each LoRA there its layers, of which the
    first that fit are taken."""

    name: str
    sites: list[str] | None
    depths: list[list[str]]


def _lora_places(spec: BackboneSpec, places: int, tiny: bool) -> list[_Place]:
    """The first `places` for LoRA, and beside them single maps where the budget is `tiny`."""
    have = spec.site_names()
    layers = min(s.layers for s in spec.stacks)
    every = ["all", *(f"last {k}" for k in range(layers, 0, -1))]
    depths = [every, *([f"last {layers // n}"] for n in ((2, 3) if tiny else (2,)) if layers >= n)]
    # A fused projection is named by its parts where the backbone tells them apart.
    linear = [s for s in LINEAR_SITES if s in have and not (s == "qkv" and "q" in have)]
    attention: list[str] = [s for s in ("q", "k", "v", "qkv", "o") if s in linear]
    fused = "qkv" in linear
    found = [_Place("qkv", ["qkv"], depths) if fused else _Place("q, v", None, depths)]
    if tiny and not fused:
        found += [_Place(site, [site], depths) for site in ("q", "v") if site in linear]
    if places > 1 and len(attention) > (1 if fused else 2):
        found.append(_Place(", ".join(attention), attention, [every]))
    if places > 2 and len(linear) > len(attention):
        found.append(_Place("every linear map", linear, [every]))
    return found


def _largest_lora(
    spec: BackboneSpec,
    limits: tuple[int, int],
    sites: list[str] | None,
    layers: Sequence[str],
    most_rank: int,
    admits: Callable[[Mapping[str, Any]], bool],
) -> tuple[int, str] | None:
    """Rank and layers of the largest LoRA, of these layers on the first that all limits allow; else on the
    first that rank 1 and the lower limit allow."""
    least, most = limits
    reaching: tuple[int, str] | None = None
    fallback: tuple[int, str] | None = None
    for at in layers:
        try:
            unit = count(Recipe.from_dict(_lora(1, sites, at)), spec).deployed
        except SiteError:
            return None
        rank = min(most // unit, most_rank, min(s.hidden for s in spec.stacks)) if unit else 0
        if rank and rank * unit >= least:
            kept = _largest_rank(rank, partial(_lora, sites=sites, at=at), admits)
            if kept and kept * unit >= least:
                return kept, at
            reaching = reaching or (rank, at)
        if rank:
            fallback = fallback or (rank, at)
    return reaching or fallback


def _largest_rank(
    most: int, made: Callable[[int], Mapping[str, Any]], admits: Callable[[Mapping[str, Any]], bool]
) -> int:
    """The largest rank up to `most` whose recipe is admitted, as those of smaller ones are; 0 for none."""
    if admits(made(most)):
        return most
    kept, over = 0, most
    while over - kept > 1:
        middle = (kept + over) // 2
        kept, over = (middle, over) if admits(made(middle)) else (kept, middle)
    return kept


def _lora(rank: int, sites: list[str] | None, at: str, deep: bool = False) -> dict[str, Any]:
    config: dict[str, Any] = {"rank": rank} if sites is None else {"sites": sites, "rank": rank}
    return {
        "autopeft": 2,
        "name": "lora-baseline",
        "layers": [{"at": at, "attach": [{REFERENCE: config}]}],
        "training": {"groups": {**_HEAD, **(_HIDDEN if deep else {})}},
    }


def _swept(name: str | None, kind: BaselineKind, sweeps: Sequence[Sweep]) -> Baseline | None:
    """A baseline of these recipes with their rates."""
    members, beyond = with_rates(sweeps)
    found = _assemble(name, kind, members)
    return None if found is None else replace(found, beyond=beyond)


def _assemble(name: str | None, kind: BaselineKind, members: Sequence[BaselineRecipe]) -> Baseline | None:
    """A baseline of these candidates, called after the first where it has no name; `None` without any."""
    if not members:
        return None
    return Baseline(
        name or members[0].title,
        tuple(m.recipe.to_dict() for m in members),
        members[0].counts.to_dict(),
        kind=kind,
        titles=tuple(m.title for m in members),
        tables=tuple(m.counts.to_dict() for m in members),
    )


def _from_space(name: str, kind: BaselineKind, members: Sequence[BaselineRecipe]) -> Baseline | None:
    titled = [m if m.title == name else m._replace(title=f"{name}: {m.title}") for m in members]
    return _assemble(name, kind, titled)


def _random(members: Sequence[BaselineRecipe]) -> Baseline | None:
    if not members:
        return None
    tables = tuple(m.counts.to_dict() for m in members)
    return Baseline(
        _several(len(members)),
        tuple(m.recipe.to_dict() for m in members),
        _means(tables),
        kind="random",
        each=True,
        titles=tuple(m.title for m in members),
        tables=tables,
    )


def _several(size: int) -> str:
    return "random hybrid" if size == 1 else f"{size} random hybrids"


def _means(tables: Sequence[CountTable]) -> CountTable:
    deployed, trained = (
        round(sum(table[name] for table in tables) / len(tables)) for name in ("deployed", "trained")
    )
    return Counts(deployed, trained, int(tables[0]["head"]), int(tables[0]["backbone"])).to_dict()
