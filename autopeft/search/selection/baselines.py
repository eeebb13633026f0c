"""What a winner is compared with: baselines at the same budget, each with as good a learning rate as it can
get.

| kind | candidates | what *select* chooses |
|---|---|---|
| `lora` | the largest LoRA that fits, at several places | place, rate |
| `own` | of a set of tasks, a LoRA for each, as large as that of `lora` | place, rate |
| `fresh` | the recipe of the bank's start, where the search has one, with nothing of its values | rate |
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

What a start from the bank is worth is the difference to `fresh`.

Of a set of T tasks `lora` is one LoRA that all tasks share, and `own` has T times its parameters: it lies
outside the budget, and says what tasks would reach that are learnt apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from autopeft.counting import Budget, Counts, count
from autopeft.errors import AutoPEFTError, SiteError, UsageError, near
from autopeft.graph import VLLM_RANKS
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import Pooling, pooled
from autopeft.recipe.tasks import for_tasks
from autopeft.recipe.training import address
from autopeft.runs.records import CountTable
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
    "Sweep",
    "baselines",
    "for_each_task",
    "lora_baseline",
    "lora_rates",
    "parse_kinds",
    "spread",
    "swept",
    "untrained",
]

BaselineKind = Literal["lora", "own", "fresh", "single", "random", "middle", "head", "untuned", "few-shot"]
BASELINE_KINDS: tuple[BaselineKind, ...] = get_args(BaselineKind)
# The others would cost as much again as the whole search of this effort.
_QUICK: tuple[BaselineKind, ...] = ("lora", "own", "fresh", "head", "untuned", "few-shot")
_SHOTS = 4
# Places of the LoRA sweep, and learning rates of each method alone, where an effort has fewer than the most.
# More rates of many methods would cost more than the search.
_PLACES = {"quick": 1}
_SINGLE_RATES = {"quick": 1, "normal": 1}

# LoRA's learning rates at rank 12 and above. A smaller rank takes larger ones, in proportion to rank^-0.75:
# on `trec`, rank 1 was best at 2.5e-2 and lost six points at 3e-3.
_LORA_RATES = (5e-4, 1.5e-3, 4.5e-3)
_LORA_RANK, _LORA_POWER, _LORA_FASTEST = 12, 0.75, 3e-2
# A sweep whose best rate is its first or last goes on by this factor, so many times at most. A rate that is
# hardly larger than the one before is not worth a training.
_STRIDE, _FURTHER, _LARGER = 3.0, 2, 1.2
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


@dataclass
class Baseline:
    """Recipes that stand for one way to do without a search.

    Attributes:
        name: what it is called before *select* has chosen.
        candidates: recipe dicts, of which *select* chooses one.
        counts: those of the first candidate; with `each` the means.
        each: every candidate is a run of its own, with a fresh seed of its own, and the baseline is their
            mean: there is no sweep and nothing to choose.
        titles, tables: name and counts of each candidate; by default those of the baseline.
        shots: rows of train before each prompt where nothing is trained; `None` where something is.
        beyond: by candidate, those of the same recipe with the next rates, which are tried only where this
            one is best.
        first_runs: candidates that the sweep trains with its first seed in any case, which come before those
            that it may go on to: none where there is no choice.
        second_runs: candidates that it trains with a second seed: the better half of these.
        sweep_runs: training runs that it takes to choose, whichever candidate is best; where the best one has
            further rates that others have not, a few more follow.
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

    first_runs: int = field(init=False)
    second_runs: int = field(init=False)
    sweep_runs: int = field(init=False)

    def __post_init__(self) -> None:
        self.titles = self.titles or (self.name,) * len(self.candidates)
        self.tables = self.tables or (self.counts,) * len(self.candidates)
        first = len(self.candidates) - sum(map(len, self.beyond.values()))
        self.first_runs = 0 if self.each or len(self.candidates) == 1 else first
        self.second_runs = min(self.first_runs, _SECOND, max(2, math.ceil(self.first_runs / 2)))
        further = min((len(self.beyond.get(i, ())) for i in range(self.first_runs)), default=0)
        self.sweep_runs = self.first_runs + further + self.second_runs

    def fresh_runs(self, seeds: int) -> int:
        """Runs with fresh seeds, where each choice is trained with `seeds` of them. What neither trains nor
        draws examples needs one."""
        if self.shots == 0:
            return 1
        return len(self.candidates) if self.each else seeds

    def remaining(self, kept: Sequence[int]) -> tuple[str, CountTable]:
        """Name and mean counts of some candidates, where each is a run of its own."""
        return _several(len(kept)), _means([self.tables[i] for i in kept])

    def label(self, index: int) -> str:
        """What a sweep's table shows of a candidate: what it is, and its learning rate."""
        training = Recipe.from_dict(dict(self.candidates[index])).training
        rates = {g.learning_rate for name, g in training.groups.items() if address(name)[0] != "head"} - {
            None
        }
        rate = rates.pop() if len(rates) == 1 else training.learning_rate
        return f"{self.titles[index]}, learning rate {rate:.3g}"


def parse_kinds(text: str | Sequence[str] | None, effort: str) -> tuple[BaselineKind, ...]:
    """Read `all`, `none` or a list such as `lora,head`; `None` means what the effort pays for: LoRA,
    the head and what trains nothing in `quick`, all of them in any other. Those that a task cannot have are
    left out later (see `baselines`).

    Raises:
        UsageError: a kind is unknown.
    """
    if text is None:
        return _QUICK if effort == "quick" else BASELINE_KINDS
    words = text.split(",") if isinstance(text, str) else list(text)
    named = [word.strip().lower() for word in words]
    if named in (["all"], ["none"]):
        return BASELINE_KINDS if named == ["all"] else ()
    for word in named:
        if word not in BASELINE_KINDS:
            raise UsageError(
                f"There is no baseline {word!r}.{near(word, BASELINE_KINDS)} "
                f"Write all, none, or some of {', '.join(BASELINE_KINDS)}, separated by commas."
            )
    return tuple(kind for kind in BASELINE_KINDS if kind in named)


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
    fresh: Recipe | None = None,
    tasks: Sequence[str] = (),
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
        fresh: the recipe of the bank's start without its start, where the search has one.
        tasks: the names of those of a set.

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
        if kind == "lora" or (kind == "own" and tasks):
            # A head's hidden layers have a rate of their own beside LoRA as in the space, and where that has
            # no rate for the head at all.
            training = bound.training(bound.middle())
            groups = training.get("groups") if isinstance(training, dict) else None
            apart = not groups or "head" not in groups or "head.hidden" in groups
            vllm = isinstance(budget, ResourceBudget) and budget.within.serve == "vllm"
            lora = lora_baseline(
                spec,
                budget.limits(spec),
                rates,
                places=_PLACES.get(effort, 3),
                most_rank=VLLM_RANKS[-1] if vllm else _MAX_RANK,
                admits=partial(keeps_within, budget=budget, spec=spec),
                pooling=bound.pooling,
                deep=bound.deep_head and apart,
            )
            found.append(lora if kind == "lora" or lora is None else for_each_task(lora, spec, tasks))
        elif kind == "own":
            continue
        elif kind == "fresh":
            found.append(None if fresh is None else fresh_start(fresh, spec, rates, deep=bound.deep_head))
        elif kind == "single":
            members = single_methods(bound, budget, min(rates, _SINGLE_RATES.get(effort, rates)))
            found.append(_from_space("best single method", kind, members))
        elif kind == "random":
            found.append(_random(random_hybrids(bound, budget, hybrids, seed)))
        elif kind == "middle":
            found.append(_from_space("mid-point of the space", kind, middle(bound, budget, rates)))
        elif kind == "head":
            if new_head:
                base: dict[str, Any] = {"autopeft": 2, "name": "head-only"}
                counts = count(Recipe.from_dict(base), spec)
                rated = Sweep("head only", base, counts, spread(_HEAD_RATES, rates), _HEAD_FASTEST)
                found.append(swept(None, "head", [rated]))
        elif not new_head and (kind == "untuned" or prompts):
            found.append(untrained(spec, 0 if kind == "untuned" else _SHOTS))
    made = []
    for baseline in found:
        if baseline is not None:
            recipes = baseline.candidates
            if bound.pooling != "own":
                parsed = (Recipe.from_dict(dict(recipe)) for recipe in recipes)
                recipes = tuple(pooled(recipe, bound.pooling).to_dict() for recipe in parsed)
            tables = tuple({**table, "head": head} for table in baseline.tables)
            whole = {**baseline.counts, "head": head}
            made.append(replace(baseline, candidates=recipes, counts=whole, tables=tables))
    return made


def lora_baseline(
    spec: BackboneSpec,
    limits: tuple[int, int],
    rates: int,
    *,
    places: int = 1,
    most_rank: int = _MAX_RANK,
    admits: Callable[[Recipe], bool] = lambda recipe: True,
    pooling: Pooling = "own",
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
        pooling: what the heads read of the recipes that it is asked about: the mean of all tokens takes more
            than a state that the last layer gives alone.
        deep: whether the head's hidden layers have a rate of their own.
    """
    # Rank 1 at the first place may be too large on all layers.
    (_, first, _), *_ = _lora_places(spec, 1, tiny=False)
    try:
        tiny = count(Recipe.from_dict(_lora(1, first, "all")), spec).deployed > limits[1]
    except SiteError:
        tiny = False
    fitting: list[Sweep] = []
    for place, sites, depths in _lora_places(spec, places, tiny=tiny):
        here: list[tuple[int, str]] = []
        for layers in depths:
            largest = _largest_lora(spec, limits, sites, layers, most_rank, admits, pooling)
            if largest is None or largest in here:
                continue
            # Fewer layers of the same rank are a part of what is tried already.
            rank, at = largest
            if tiny and (len(here) == _TINY_DEPTHS or any(known >= rank for known, _ in here)):
                continue
            here.append(largest)
            on = {"all": "all layers", "last 1": "the last layer"}.get(at, f"the {at} layers")
            title, recipe = f"LoRA rank {rank} on {place} of {on}", _lora(rank, sites, at, deep)
            counts = count(Recipe.from_dict(recipe), spec)
            fitting.append(
                Sweep(title, recipe, counts, lora_rates(rank, rates), _LORA_FASTEST, middle_first=tiny)
            )
    reaching = [sweep for sweep in fitting if sweep.counts.deployed >= limits[0]]
    inside = [s for s in reaching if admits(pooled(Recipe.from_dict(dict(s.recipe)), pooling))]
    sweeps = inside or reaching or fitting
    return swept("LoRA rank sweep" if len(sweeps) > 1 else None, "lora", sweeps)


def for_each_task(lora: Baseline, spec: BackboneSpec, tasks: Sequence[str]) -> Baseline:
    """The candidates of `lora_baseline` with a LoRA for each task in the place of one for all."""

    def apart(told: Mapping[str, Any]) -> Recipe:
        blocks = [{**block, "attach": [{"switch": block["attach"]}]} for block in told["layers"]]
        return for_tasks(Recipe.from_dict({**told, "layers": blocks}), tasks)

    recipes = [apart(told) for told in lora.candidates]
    tables = tuple(count(recipe, spec).to_dict() for recipe in recipes)
    return replace(
        lora,
        name=f"{lora.name} for each task",
        kind="own",
        candidates=tuple(recipe.to_dict() for recipe in recipes),
        counts=tables[0],
        titles=tuple(f"{title} for each task" for title in lora.titles),
        tables=tables,
    )


def fresh_start(recipe: Recipe, spec: BackboneSpec, rates: int, *, deep: bool = False) -> Baseline | None:
    """The recipe of a start without the start, at `rates` rates around the one that it has."""
    middle = recipe.training.learning_rate
    around = [middle / _STRIDE, middle, middle * _STRIDE]
    alike = {**recipe.to_dict(), "training": {"groups": {**_HEAD, **(_HIDDEN if deep else {})}}}
    title, counts = f"{recipe.name} that starts fresh", count(recipe, spec)
    return swept(None, "fresh", [Sweep(title, alike, counts, spread(around, rates), around[-1] * _STRIDE)])


def lora_rates(rank: int, count: int) -> list[float]:
    """`count` learning rates for LoRA of a rank, larger ones for smaller ranks, up to 3e-2."""
    factor = max(1.0, (_LORA_RANK / rank) ** _LORA_POWER)
    scaled = [min(rate * factor, _LORA_FASTEST) for rate in _LORA_RATES]
    return rounded(spread(scaled, count))


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


def _lora_places(spec: BackboneSpec, places: int, *, tiny: bool) -> list[_Place]:
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
    admits: Callable[[Recipe], bool],
    pooling: Pooling,
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
            # The largest rank up to this one that is admitted, as those of smaller ones are; 0 for none.
            kept, over, tried = 0, rank + 1, rank
            while kept + 1 < over:
                recipe = pooled(Recipe.from_dict(_lora(tried, sites, at)), pooling)
                kept, over = (tried, over) if admits(recipe) else (kept, tried)
                tried = (kept + over) // 2
            if kept and kept * unit >= least:
                return kept, at
            reaching = reaching or (rank, at)
        if rank:
            fallback = fallback or (rank, at)
    return reaching or fallback


def _lora(rank: int, sites: list[str] | None, at: str, deep: bool = False) -> dict[str, Any]:
    config: dict[str, Any] = {"rank": rank} if sites is None else {"sites": sites, "rank": rank}
    return {
        "autopeft": 2,
        "name": "lora-baseline",
        "layers": [{"at": at, "attach": [{REFERENCE: config}]}],
        "training": {"groups": {**_HEAD, **(_HIDDEN if deep else {})}},
    }


class Sweep(NamedTuple):
    """A recipe with several learning rates in ascending order, none of them above `fastest`; with
    `middle_first` the others are tried only where the middle one is the best of all recipes."""

    title: str
    recipe: Mapping[str, Any]
    counts: Counts
    rates: Sequence[float]
    fastest: float
    middle_first: bool = False


def swept(name: str | None, kind: BaselineKind, sweeps: Sequence[Sweep]) -> Baseline | None:
    """A baseline of these recipes: each with the rates that come first, and after all of these those with
    further rates, which the sweep goes on to where the first or the last rate is the best. A single rate has
    none."""
    planned: list[tuple[Sweep, Sequence[float], list[float], list[float]]] = []
    for sweep in sweeps:
        first, middle = sweep.rates, len(sweep.rates) // 2
        powers = [_STRIDE**i for i in range(1, _FURTHER + 1)] if len(first) > 1 else []
        above = [first[-1]]
        for power in powers:
            rate = min(first[-1] * power, sweep.fastest)
            if rate > _LARGER * above[-1]:
                above.append(rate)
        slower, faster = rounded(first[0] / power for power in powers), rounded(above[1:])
        if sweep.middle_first:
            slower, faster = [*first[:middle][::-1], *slower], [*first[middle + 1 :], *faster]
            first = first[middle : middle + 1]
        planned.append((sweep, first, slower, faster))

    pairs = [(sweep, rate) for sweep, first, *_ in planned for rate in first]
    beyond: dict[int, tuple[int, ...]] = {}
    start = 0
    for sweep, first, slower, faster in planned:
        last = start + len(first) - 1
        for end, further in ((start, slower), (last, faster)):
            for rate in further:
                beyond[end] = (*beyond.get(end, ()), len(pairs))
                end = len(pairs)
                pairs.append((sweep, rate))
        start = last + 1

    members = []
    for sweep, rate in pairs:
        training = {**sweep.recipe.get("training", {}), "learning_rate": rate}
        recipe = Recipe.from_dict({**sweep.recipe, "training": training})
        members.append(BaselineRecipe(sweep.title, recipe, sweep.counts))
    return _assemble(name, kind, members, beyond)


def spread(rates: Sequence[float], count: int) -> list[float]:
    """`count` learning rates spread geometrically over the range of `rates`; one alone is the middle."""
    if count == 1:
        return [rates[len(rates) // 2]]
    low, high = rates[0], rates[-1]
    return rounded(low * (high / low) ** (i / (count - 1)) for i in range(count))


def rounded(rates: Iterable[float]) -> list[float]:
    """Rates as they are written in recipes: with three digits."""
    return [float(f"{rate:.3g}") for rate in rates]


def _assemble(
    name: str | None,
    kind: BaselineKind,
    members: Sequence[BaselineRecipe],
    beyond: Mapping[int, tuple[int, ...]] | None = None,
) -> Baseline | None:
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
        beyond=beyond or {},
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
