"""What a recipe would score: a regression on recorded trials, and the noise of their repeats.

A recipe is described by what is in it: for each method its sizes, how many layers have it and which, its
sites and switches, and the learning rates that act on something. Nothing of that is a sampler's own view of
the space. Several regressions are tried; the one whose predictions of unseen recipes rank them best is used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.base import RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autopeft import Recipe
from autopeft.graph import build_graph
from autopeft.spec import BackboneSpec

__all__ = ["MODELS", "Fit", "Surrogate", "features", "fit", "means", "noise_of"]

Array = NDArray[np.float64]
_FOLDS, _ROUNDS, _NEIGHBOURS = 10, 3, 24


def _gp(width: int) -> RegressorMixin:
    # One length scale: one for each of some 150 features takes a quarter of an hour to validate.
    kernel = ConstantKernel() * Matern(width**0.5, (0.3, 300.0), nu=2.5) + WhiteKernel(0.1)
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))


MODELS: dict[str, Callable[[int], RegressorMixin]] = {
    "trees": lambda width: ExtraTreesRegressor(
        400, min_samples_leaf=2, max_features=0.5, random_state=0, n_jobs=1
    ),
    "boosting": lambda width: GradientBoostingRegressor(
        n_estimators=400, learning_rate=0.05, max_depth=4, subsample=0.7, min_samples_leaf=4, random_state=0
    ),
    "gp": _gp,
}


def features(recipe: Mapping[str, Any], spec: BackboneSpec) -> dict[str, float]:
    """Numbers that describe a recipe; what it lacks is left out, and counts as 0."""
    graph = build_graph(Recipe.from_dict(recipe), spec)
    training = graph.recipe.training
    found: dict[str, float] = {"log parameters": math.log1p(graph.parameter_count().deployed)}
    found["learning rate"] = math.log10(training.learning_rate) + 5.0
    for name, entry in graph.entries.items():
        method = entry.method.name
        layers = {site.layer for site in entry.sites if site.layer is not None}
        found[f"{method} layers"] = float(max(1, len(layers)))
        found.update({f"{method} in layer {layer}": 1.0 for layer in layers})
        found.update({f"layer {layer}": 1.0 for layer in layers})
        found.update({f"{method} at {site.name}": 1.0 for site in entry.sites})
        for key, value in entry.method.config.model_dump(mode="json", exclude={"sites"}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[f"{method} {key}"] = math.log1p(value)
            else:
                found[f"{method} {key}={value}"] = 1.0
        group = training.group_of(name, method)
        if group is not None and group.learning_rate is not None:
            found[f"{method} learning rate"] = math.log10(group.learning_rate) + 5.0
    return found


@dataclass(frozen=True)
class Fit:
    """How well a regression predicts recipes that it has not seen (ten folds, three times).

    Attributes:
        rank: Spearman correlation of prediction and score, over all recipes.
        top: the same over the better half of them.
        r2: share of the variance explained.
    """

    model: str
    rank: float
    top: float
    r2: float


class Surrogate:
    """Scores of recipes at each recorded step, with and without noise.

    Args:
        rows: a recording; recipes that were trained with several seeds count with their mean.
        steps: recorded steps, rising.
        model: of `MODELS`.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], steps: Sequence[int], model: str, spec: BackboneSpec
    ) -> None:
        self.steps, self.spec = tuple(steps), spec
        self._kept: dict[str, dict[int, float]] = {}
        recipes, scores = means(rows, steps)
        self._vectors = DictVectorizer(sparse=False)
        x = self._vectors.fit_transform([features(recipe, spec) for recipe in recipes])
        self._models = [MODELS[model](x.shape[1]) for _ in steps]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, one in enumerate(self._models):
                one.fit(x, scores[:, i])
        self._levels, self._residuals = _residuals(rows, steps)

    def score(self, recipe: Mapping[str, Any], key: str) -> dict[int, float]:
        """The score at each step, without noise; `key` names the recipe."""
        if key not in self._kept:
            x = self._vectors.transform([features(recipe, self.spec)])
            found = np.array([model.predict(x)[0] for model in self._models])
            found = np.clip(found, 0.0, 1.0)
            self._kept[key] = dict(zip(self.steps, found.tolist(), strict=True))
        return self._kept[key]

    def measured(self, recipe: Mapping[str, Any], key: str, rng: np.random.Generator) -> dict[int, float]:
        """One training's scores. The noise is what a recipe of about this score showed between its seeds, the
        same training's at every step."""
        true = self.score(recipe, key)
        near = np.argsort(np.abs(self._levels - true[self.steps[-1]]))[:_NEIGHBOURS]
        noise = self._residuals[rng.choice(near)]
        return {step: true[step] + noise[i] for i, step in enumerate(self.steps)}


def means(rows: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> tuple[list[dict[str, Any]], Array]:
    """Each recipe once, and its scores (recipes, steps), the mean over its seeds; failed trainings are left
    out."""
    recipes: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[list[float]]] = {}
    for row in rows:
        if all(str(step) in row["scores"] for step in steps):
            recipes[row["hash"]] = row["recipe"]
            scores.setdefault(row["hash"], []).append([row["scores"][str(step)] for step in steps])
    return list(recipes.values()), np.array([np.mean(scores[h], axis=0) for h in recipes])


def _residuals(rows: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> tuple[Array, Array]:
    """Of trainings of recipes with several seeds: the recipe's mean last score, and the scores less their
    means, scaled to the spread that one training has."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        if all(str(step) in row["scores"] for step in steps):
            found.setdefault(row["hash"], []).append([row["scores"][str(step)] for step in steps])
    levels, residuals = [np.empty(0)], [np.empty((0, len(steps)))]
    for scores in (np.array(s) for s in found.values() if len(s) > 1):
        scale = math.sqrt(len(scores) / (len(scores) - 1))
        residuals.append((scores - scores.mean(axis=0)) * scale)
        levels.append(np.full(len(scores), scores[:, -1].mean()))
    return np.concatenate(levels), np.concatenate(residuals)


def noise_of(rows: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> list[float]:
    """Standard deviation between the seeds of a recipe at each step, pooled over recipes."""
    _, residuals = _residuals(rows, steps)
    return [float(s) for s in np.sqrt((residuals**2).mean(axis=0))]


def fit(
    rows: Sequence[Mapping[str, Any]],
    step: int,
    spec: BackboneSpec,
    *,
    folds: int = _FOLDS,
    rounds: int = _ROUNDS,
) -> list[Fit]:
    """Every regression under cross-validation, the best one first."""
    recipes, scores = means(rows, [step])
    x = DictVectorizer(sparse=False).fit_transform([features(recipe, spec) for recipe in recipes])
    found = [_validated(name, x, scores[:, 0], folds, rounds) for name in MODELS]
    return sorted(found, key=lambda f: -f.rank)


def _validated(name: str, x: Array, y: Array, folds: int, rounds: int) -> Fit:
    numbers = []
    for round_ in range(rounds):
        predicted = np.empty_like(y)
        for train, test in KFold(folds, shuffle=True, random_state=round_).split(x):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                predicted[test] = MODELS[name](x.shape[1]).fit(x[train], y[train]).predict(x[test])
        top = y >= np.median(y)
        numbers.append(
            (
                spearmanr(predicted, y)[0],
                spearmanr(predicted[top], y[top])[0],
                1 - np.mean((predicted - y) ** 2) / np.var(y),
            )
        )
    rank, top_rank, r2 = np.mean(numbers, axis=0)
    return Fit(name, float(rank), float(top_rank), float(r2))
