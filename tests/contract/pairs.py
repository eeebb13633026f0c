"""Which case of `support.cases` is tried on which family, and which of them are refused there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any
from zlib import crc32

import pytest
from support import families, on_logits, on_scores
from support.cases import CASES as REGISTERED
from support.families import FAMILIES
from support.selection import selected
from support.tiny import ARCHITECTURES, DECODERS, ENCODER_DECODERS, OTHERS

# The package has no method on logits, and none on scores alone; two of a test's own stand for either way.
CASES = {**REGISTERED, **on_logits.CASES, **on_scores.CASES}
# (case, architecture) → a word of the refusal: the catalogue says that it cannot apply.
# What has nothing to train: a head reads other states by it, and no text is written with one.
PARAMETERLESS = ("mean-pooling", "mean-pooling-itself")
REFUSED = {
    ("bitfit", "llama"): "bias",
    ("bitfit", "t5"): "bias",
    ("bitfit-layers", "llama"): "bias",
    ("bitfit-layers", "t5"): "bias",
    **{(case, name): "bias" for case in ("u-bitfit", "s-bitfit") for name in ("llama", "t5")},
    **{("prefix-propagation", name): "prefix_tuning" for name in ("gpt2", "llama")},
    ("hiwi", "llama"): "bias",
    ("hiwi", "t5"): "bias",
    **{
        (case, name): "cross-attention"
        for case in CASES
        for name in ARCHITECTURES
        if case.startswith("xattn") and name not in ENCODER_DECODERS
    },
    **{("coda", name): "causal" for name in DECODERS},
    **{("mixlora", name): "no single module" for name in ("bert", "roberta", "mpnet", *ENCODER_DECODERS)},
    **{(case, "vit"): "text input" for case in ("infoprompt", "dept")},
    **{("ipa", name): "language model" for name in ARCHITECTURES if name not in DECODERS},
    **{("ipa", name): "encoder" for name in ENCODER_DECODERS},
    **{(case, name): "not told which" for case in PARAMETERLESS for name in ENCODER_DECODERS},
    **{(case, name): word for name in OTHERS for case, word in FAMILIES[name].refuses.items()},
}
# On families that are not among the architectures, a case of each way of composing stands for the others.
WAYS = ("lora-all", "serial-houlsby", "parallel-residual", "ia3", "bitfit", "prefix", "prompt", "lpt", "pafi")
PAIRS = [
    *((c, a) for c in CASES for a in ARCHITECTURES if (c, a) not in REFUSED),
    *((c, a) for a in OTHERS for c in WAYS if (c, a) not in REFUSED),
]
# What has parameters, and finds them without gradients.
SEARCHED = ("lorahub",)
TRAINED = [(c, a) for c, a in PAIRS if c not in (*PARAMETERLESS, *SEARCHED)]
# Where there is something to train: language models have no head of the task.
LEARNING = [
    (c, a) for c, a in PAIRS if c not in SEARCHED and (c not in PARAMETERLESS or not FAMILIES[a].writes)
]
# What is made of the whole text, or stands in one layer alone, is refused a cache where a text is written on.
SELECTIVE = ("selective-prompt", "selective-prompt-shared", "selective-prompt-all")
OF_TEXTS = (
    "apt",
    "deep-prompt",
    "idpg",
    "idpg-sentence",
    "infoprompt",
    "lpt",
    "lpt-appg",
    "smop",
    "smop-two",
    *SELECTIVE,
)
ON_DECODERS = [
    (c, a)
    for c, a in PAIRS
    if FAMILIES[a].writes
    and c not in ("gate", "route-sequence", "mole", *PARAMETERLESS)
    and not (c in OF_TEXTS and a not in families.ENCODER_DECODERS)
]
# All layers are handed the relative positions as a keyword, behind a norm whose bias is trained: the backward
# of a reentrant checkpoint goes through that norm once for each layer, which torch refuses.
NOT_REENTRANT = (("bitfit", "deberta-v2"),)
USUAL = ("bert", "llama")
SOME = tuple(name for name in ARCHITECTURES if name not in (*USUAL, *ENCODER_DECODERS))


def is_spared(case: str, name: str, taken: Collection[str] = ARCHITECTURES) -> bool:
    """Whether only the slow tests have it. Each case is tried on one of `USUAL`, and on an encoder-decoder
    or on one of the other architectures, of which all have their turn among so many cases; on another family
    two cases are.

    Args:
        taken: the architectures that a test tries the case on.
    """
    if name not in ARCHITECTURES:
        return case in sorted(WAYS, key=lambda other: crc32(f"{other} {name}".encode()))[2:]
    able = [a for a in taken if (case, a) not in REFUSED]
    turn = [a for a in able if a in (ENCODER_DECODERS if crc32(case.encode()) % 2 else SOME)]
    rest = turn or [a for a in able if a not in USUAL]
    group = [a for a in able if a in USUAL] if name in USUAL else rest
    return name != min(group, key=lambda a: crc32(f"{case} {a}".encode()), default=None)


def is_first_way(case: str) -> bool:
    """Whether a case is the one, of all that use its method or composition, that stands for them."""

    def used(item: Any) -> str:
        return item if isinstance(item, str) else next(iter(item))

    ways = [other for other, (_, item) in CASES.items() if used(item) == used(CASES[case][1])]
    return case == min(ways, key=lambda way: crc32(way.encode()))


def drawn(cases: Iterable[tuple[Any, ...]], *, one: bool = False) -> list[Any]:
    """Parameters that begin with a case and an architecture; by default each case on two architectures, and
    on some of the other families; with `one`, each method and composition in one way on one architecture."""
    found = list(cases)
    taken: dict[str, list[str]] = {}
    for case, name, *_ in found:
        if name in ARCHITECTURES:
            taken.setdefault(case, []).append(name)
    usual = [c for c in found if not is_spared(c[0], c[1], taken.get(c[0], ()))]
    if one:  # another one for each case
        first: dict[str, str] = {}
        for case, name, *_ in sorted(usual, key=lambda c: crc32(f"{c[1]} {c[0]}".encode())):
            if name in ARCHITECTURES:
                first.setdefault(case, name)
        usual = [c for c in usual if c[1] in OTHERS or (c[1] == first.get(c[0]) and is_first_way(c[0]))]
    return selected([pytest.param(*c, marks=() if c in usual else pytest.mark.slow) for c in found])
