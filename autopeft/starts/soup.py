"""AdapterSoup: the adapters of which domains are averaged for texts of a new one, without labels and without
training (Chronopoulou et al. 2023, arXiv:2302.07027, section 2.3).

Texts are vectors of a frozen model. Domains are chosen by how similar their texts are to the new ones, or by
the clusters that the new ones fall into; at most five, as more brought nothing there. No code was published.
What the paper leaves open is as in the code of the same authors' paper before it
(hierarchical-domain-adaptation, `clustering/gmm_clusters.py`): 101 principal components without the first
one, a mixture of normal distributions with full covariances and 150 iterations. That code has 1,000 texts of
a domain, the paper 100, too few for covariances of so many components: here there is one for each ten.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autopeft import bank
from autopeft.errors import UsageError
from autopeft.recipe import CompositionItem, Item, LayerBlock, Recipe
from autopeft.recipe.models import Merge
from autopeft.starts.ranking import starting_from

__all__ = ["by_clusters", "by_similarity", "soup", "text_vectors"]

_log = logging.getLogger("autopeft")

Vectors = NDArray[np.floating]

_MOST, _LEAST_COSINE, _LEAST_SHARE = 5, 0.15, 0.1
_COMPONENTS, _ITERATIONS = 101, 150
_TEXTS = 10  # of a domain, for each component


@torch.no_grad()
def text_vectors(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16
) -> Vectors:
    """The mean of the model's last states over the tokens of each text: (texts, width)."""
    found = []
    for first in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[first : first + batch_size]), return_tensors="pt", padding=True, truncation=True
        ).to(model.device)
        states = model.base_model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append(((states * mask).sum(1) / mask.sum(1)).float().cpu().numpy())
    return np.concatenate(found)


def by_similarity(domains: Mapping[str, Vectors], new: Vectors) -> list[str]:
    """Of domains those whose texts have a mean cosine above 0.15 with the new ones, the most similar first,
    at most five."""
    cosines = {name: float(np.mean(_unit(own) @ _unit(new).T)) for name, own in domains.items()}
    return _best({name: cosine for name, cosine in cosines.items() if cosine > _LEAST_COSINE})


def by_clusters(domains: Mapping[str, Vectors], new: Vectors, *, seed: int = 0) -> list[str]:
    """Of domains those to whose clusters at least a tenth of the new texts fall, those of most texts first,
    at most five. There are as many clusters as domains, and one belongs to the domain that has most of it.

    Raises:
        UsageError: there are fewer than two domains, or too few texts.
    """
    vectors = np.concatenate([np.empty((0, new.shape[1])), *domains.values()])
    fewest = min(map(len, domains.values()), default=0)
    components = 1 + min(_COMPONENTS - 1, fewest // _TEXTS, vectors.shape[1] - 1)
    if len(domains) < 2 or components < 2:
        raise UsageError(
            f"Clusters tell two or more domains apart by {_TEXTS} texts of each or more, but got "
            f"{len(domains)} domains, the smallest of {fewest} texts; choose by similarity."
        )
    reduced = PCA(components, random_state=seed).fit(vectors)
    mixture = GaussianMixture(len(domains), max_iter=_ITERATIONS, random_state=seed)
    clusters = mixture.fit_predict(reduced.transform(vectors)[:, 1:])
    owners = np.repeat(list(domains), [len(own) for own in domains.values()])
    owner = {c: Counter(owners[clusters == c]).most_common(1)[0][0] for c in np.unique(clusters)}
    fallen = Counter(owner.get(c) for c in mixture.predict(reduced.transform(new)[:, 1:]))
    fallen.pop(None, 0)  # a cluster that has lost its texts
    return _best({str(name): n / len(new) for name, n in fallen.items() if n / len(new) >= _LEAST_SHARE})


def soup(names: Sequence[str]) -> Recipe:
    """The recipe whose entries are the averages of those of hybrids in the bank, frozen.

    Averages of adapters from different seeds are poor (appendix A.1 of the paper): where the bank's records
    tell different seeds, a warning says so.

    Raises:
        UsageError: none is named, or one is not in the bank.
        DataError: one is damaged.
    """
    if not names:
        raise UsageError("A soup is made of one adapter or more, and none was chosen.")
    kept = [bank.entry(name) for name in names]
    seeds = {entry.name: entry.seed for entry in kept if entry.seed is not None}
    if len(set(seeds.values())) > 1:
        told = ", ".join(f"{name} {seed}" for name, seed in seeds.items())
        _log.warning("Adapters from different seeds average badly, and these have: %s.", told)
    recipes = [starting_from(entry) for entry in kept]

    def averaged(item: Item) -> Item:
        if isinstance(item, CompositionItem):
            return item.model_copy(update={"children": tuple(map(averaged, item.children))})
        if not item.start:
            raise UsageError(f"{names[0]} has {item.method}, whose values cannot be averaged.")
        entry = item.start[0].partition(".")[2]
        starts = tuple(f"{name}.{entry}" for name in names)
        merge = Merge(how="mean") if len(starts) > 1 else None
        return item.model_copy(update={"start": starts, "merge": merge, "frozen": True})

    first = recipes[0]
    layers = tuple(
        LayerBlock(at=block.at, stack=block.stack, attach=tuple(map(averaged, block.attach)))
        for block in first.layers
    )
    inputs = {name: item for recipe in recipes for name, item in recipe.inputs.items()}
    return Recipe(name="soup", inputs=inputs, layers=layers, model=tuple(map(averaged, first.model)))


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: -scores[name])[:_MOST]
